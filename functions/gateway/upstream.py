"""Calls of providers: over the routes that a request was admitted to, in their order.

A route that fails before a byte of its answer was used gives way to the next, where the failure may pass:
no connection, 408, 429, 5xx. A connection that breaks after the request was sent does not: the provider may
have done the work, and another would do it again. A route whose wire can't say what the client said gives way
as well. Before it does, a route is tried once more where that takes no time worth speaking of: after a
connection that failed, where the provider says to come back within seconds, and, if it is the last one, after
a failure of its server.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from gateway import telemetry
from gateway.errors import GatewayError, Unprocessable
from gateway.providers.failures import UNSUPPORTED_PARAMETER
from gateway.providers.registry import find_provider
from gateway.providers.wire import EmbeddingCall, Fault, ImageCall, ProviderCall, ProviderError
from gateway.service_keys import open_sealed
from gateway.service_urls import check_base_url

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.database.rpc import Candidate
    from gateway.observability import Logger
    from gateway.providers.wire import UpstreamRequest
    from gateway.settings import Settings

Result = TypeVar("Result")
Use = Callable[[ProviderCall, httpx.Response], Awaitable[Result]]

BROKEN = (httpx.TransportError, httpx.DecodingError)
"""What reading a response raises where it breaks off."""

_MAX_ANSWER_BYTES = 64 * 1024 * 1024
_MAX_ERROR_BYTES = 64 * 1024
_ERROR_SECONDS = 5.0
"""How long the text of an error is waited for: its status says enough to go on with."""
_CONNECT_PAUSE_SECONDS = 0.1
"""Before a connection that failed is tried again, on average."""
_LONGEST_PAUSE_SECONDS = 3.0
"""The longest retry-after that is waited for on the last route."""
_LONGEST_PAUSE_BEFORE_OTHERS_SECONDS = 0.5
"""The same where another route is left: it may answer sooner."""
_BACK_OFF_SECONDS = 0.5
"""Before the last route is tried again after a failure that says no time, on average."""
_BUSY = frozenset({429, 503})
_MOMENTARY = frozenset({500, 502, 503, 529})
"""Failures of a server that came at once: with 504 it was too slow already, with 429 it wants us to wait."""
_MOST_DROPPED = 32
"""Parameters that are left out of one call; each takes a translation of the whole body."""
_REQUEST_ID_HEADERS = ("x-request-id", "request-id", "x-generation-id")


@dataclass(slots=True)
class Exchange:
    """What one request has with the providers, as far as it has come. Settlement goes by it."""

    body: Mapping[str, Any] = field(repr=False)
    kind: type[ProviderCall] = ProviderCall
    """What is called for: chat, or another kind of call."""
    files: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What calls of that kind have beside the body."""
    stream: bool = False
    wants_usage: bool = False
    candidates: Sequence[Candidate] = ()
    """The routes to try, in order; empty until the request is admitted."""
    candidate: Candidate | None = None
    """The route whose provider has the call, and may bill it; None while none has."""
    provider_request_id: str | None = None
    forwarded: bool = False
    """Whether the client has been given any of the answer: no other route can follow."""
    failed_routes: list[Mapping[str, Any]] = field(default_factory=list)
    drops: bool = False
    """Whether parameters that a provider can't be told are left out; else the client is told (422)."""
    droppable: frozenset[str] = frozenset()
    """Those that are left out in any case: they say nothing to the model, and change no answer."""
    dropped: frozenset[str] = frozenset()
    """Those that were left out of the call that the provider has."""
    announced: frozenset[str] | None = None
    """What of them the response's headers have told, once they are out: no other is left out after that."""
    started: float | None = None
    """When the request was admitted, by the event loop's clock."""
    deadline: float | None = None
    """By the same clock: a pause that would last beyond it is not made."""
    attempt: telemetry.Attempt = telemetry.NOT_FOLLOWED
    """The latest call of a provider, as telemetry follows it."""

    def may_drop(self, param: str | None) -> bool:
        """Whether a parameter may be left out of a call for a provider that can't be told it."""
        told = self.announced is None or param in self.announced
        return param in self.droppable or (self.drops and told)


class Upstream:
    """Sends calls to providers. It neither meters nor translates."""

    def __init__(self, settings: Settings, http: httpx.AsyncClient, logger: Logger) -> None:
        self._settings = settings
        self._http = http
        self._logger = logger

    async def exchange(self, exchange: Exchange, use: Use[Result]) -> Result:
        """Call the routes in turn and return what `use` makes of the first successful response.

        `use` gets the response with its body unread, and may raise ProviderError as well. The response is
        closed after it, which stops a provider that is still generating. Raises the ProviderError of the
        last route tried; and Unprocessable (422), if no wire can say what the client said.
        """
        failure: ProviderError | None = None
        refusal: Unprocessable | None = None
        last = len(exchange.candidates) - 1
        for position, candidate in enumerate(exchange.candidates):
            exchange.candidate = exchange.provider_request_id = None
            try:
                call, request = self._translate(exchange, candidate)
            except Unprocessable as error:
                refusal = refusal or error
                continue
            except ProviderError as error:
                self._record(exchange, candidate, error)
                raise
            exchange.dropped = call.dropped
            try:
                return await self._call(exchange, candidate, call, request, use, is_last=position == last)
            except ProviderError as error:
                if exchange.forwarded or not error.retryable:
                    raise
                failure = error
        if failure is not None:
            # Before what other routes can't say: it may pass, and the client may then send the same again.
            raise failure
        if refusal is not None:
            raise refusal
        raise AssertionError("a request is admitted to one route at least")

    async def _call(
        self,
        exchange: Exchange,
        candidate: Candidate,
        call: ProviderCall,
        request: UpstreamRequest,
        use: Use[Result],
        *,
        is_last: bool,
    ) -> Result:
        """Call one route, a second time where its failure is one of a moment. Raises ProviderError."""
        tried_again = False
        while True:
            attempt = exchange.attempt = _begin_attempt(call, request)
            try:
                response = await self._send(exchange, candidate, call, request)
                try:
                    exchange.provider_request_id = _provider_request_id(response)
                    result = await use(call, response)
                    attempt.answered(result)
                    return result
                finally:
                    await response.aclose()
            except ProviderError as error:
                attempt.failed(_error_type(error))
                self._record(exchange, candidate, error)
                pause = None if tried_again or exchange.forwarded else _pause(error, is_last=is_last)
                if pause is None or not _in_time(exchange, pause):
                    raise
            finally:
                attempt.stop()
            exchange.candidate = exchange.provider_request_id = None
            tried_again = True
            await asyncio.sleep(pause)

    def _translate(self, exchange: Exchange, candidate: Candidate) -> tuple[ProviderCall, UpstreamRequest]:
        """Return the call of this route, and its request.

        Raises ProviderError (operator), and Unprocessable where the wire can't say what the client said.
        """
        call = self._prepare(exchange, candidate)
        if call.wire is None:
            raise _misconfigured(candidate, f"no {type(call).__name__} goes to this provider")
        while True:
            try:
                return call, call.wire.build_request(call)
            except Unprocessable as error:
                if (
                    not exchange.may_drop(error.param)
                    or error.code != UNSUPPORTED_PARAMETER
                    or error.param is None
                    or error.param in call.dropped
                    or len(call.dropped) == _MOST_DROPPED
                ):
                    raise
                call = replace(call, dropped=call.dropped | {error.param})

    def _record(self, exchange: Exchange, candidate: Candidate, error: ProviderError) -> None:
        exchange.failed_routes.append(_failure(exchange, candidate, error))
        level = self._logger.error if error.fault is Fault.OPERATOR else self._logger.warning
        level(
            "A provider failed.",
            extra={
                "service_name": candidate.service_name,
                "provider": candidate.provider,
                "fault": error.fault.value,
                "provider_status": error.status,
                "detail": error.detail,
            },
        )

    def _prepare(self, exchange: Exchange, candidate: Candidate) -> ProviderCall:
        """Return the call of this route, with its key opened. Raises ProviderError (operator)."""
        provider = find_provider(candidate.provider)
        base_url = candidate.base_url or (provider.base_url if provider else None)
        if provider is None or base_url is None:
            raise _misconfigured(candidate, "the provider is not known, or the service has no base URL")
        try:
            # Checked again at each call: a hand edit in the database must not aim at an inside address.
            check_base_url(base_url, allow_private=self._settings.allow_private_urls)
            key = candidate.provider_key and open_sealed(
                candidate.provider_key,
                master_keys=self._settings.master_keys,
                service_id=candidate.service_id,
                provider=candidate.provider,
                base_url=base_url,
            )
        except GatewayError as error:
            raise _misconfigured(candidate, error.detail or error.message) from error
        return exchange.kind(
            provider=provider,
            base_url=base_url,
            model=candidate.upstream_model,
            body=exchange.body,
            output_bound=candidate.max_output_tokens,
            stream=exchange.stream,
            key=key,
            wants_usage=exchange.wants_usage,
            site_url=self._settings.openrouter_site_url,
            site_name=self._settings.openrouter_site_name,
            **exchange.files,
        )

    async def _send(
        self, exchange: Exchange, candidate: Candidate, call: ProviderCall, upstream: UpstreamRequest
    ) -> httpx.Response:
        """Send the call and return the response of status 2xx, its body unread. The caller closes it.

        Raises ProviderError.
        """

        async def trace(event: str, _details: object) -> None:
            # From here on the provider works: a client that leaves before the first byte has used it.
            if event.endswith(".send_request_body.complete"):
                exchange.candidate = candidate

        wire = call.wire
        assert wire is not None, "the call was translated by it"
        request = self._http.build_request(
            upstream.method,
            upstream.url,
            headers={**upstream.headers, **exchange.attempt.headers},
            content=upstream.content,
            extensions={"trace": trace},
        )
        try:
            response = await self._http.send(request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise ProviderError(
                call.provider.name,
                Fault.TRANSIENT,
                f"{call.provider.subject} can't be reached.",
                detail=type(error).__name__,
            ) from error
        except httpx.TransportError as error:
            raise broken_connection(call, error) from error
        if response.is_success:
            exchange.candidate = candidate
            return response
        exchange.candidate = None
        try:
            async with asyncio.timeout(_ERROR_SECONDS):
                content = await read_bounded(response, _MAX_ERROR_BYTES)
        except (*BROKEN, TimeoutError):
            content = b""
        finally:
            await response.aclose()
        raise wire.parse_error(call, response.status_code, response.headers, content)


async def read_answer(call: ProviderCall, response: httpx.Response) -> bytes:
    """Return the whole body of an answer. Raises ProviderError where it breaks off or is too large."""
    try:
        content = await read_bounded(response, _MAX_ANSWER_BYTES + 1)
    except BROKEN as error:
        raise broken_connection(call, error) from error
    if len(content) > _MAX_ANSWER_BYTES:
        raise ProviderError(
            call.provider.name,
            Fault.PROTOCOL,
            f"{call.provider.subject} sent an answer that is too large.",
            detail=f"more than {_MAX_ANSWER_BYTES} bytes",
        )
    return content


async def read_bounded(response: httpx.Response, limit: int) -> bytes:
    """Return the body, at most `limit` bytes of it. Raises httpx.TransportError and httpx.DecodingError."""
    content = bytearray()
    async for part in response.aiter_bytes():
        content += part
        if len(content) >= limit:
            break
    return bytes(content[:limit])


def broken_connection(call: ProviderCall, error: httpx.RequestError) -> ProviderError:
    """Return the failure of a connection that broke after the request was sent."""
    return ProviderError(
        call.provider.name,
        Fault.PROTOCOL,
        f"The connection to {call.provider.title} broke.",
        detail=type(error).__name__,
    )


def _begin_attempt(call: ProviderCall, request: UpstreamRequest) -> telemetry.Attempt:
    trace = telemetry.current()
    if trace is None:
        return telemetry.NOT_FOLLOWED
    kinds: dict[type[ProviderCall], str] = {EmbeddingCall: "embeddings", ImageCall: "images"}
    return trace.begin_attempt(
        telemetry.Inference(
            provider=call.provider.name,
            kind=kinds.get(type(call), "chat"),
            model=call.model,
            url=request.url,
            stream=call.stream,
            body=call.body,
            output_bound=call.output_bound,
            own=not call.provider.key_needed,
        )
    )


def _error_type(error: ProviderError) -> str:
    """Return a failure as a word of few: the status, the exception of a connection, or whose fault it is."""
    if error.status is not None:
        return str(error.status)
    kind = error.__cause__
    return type(kind).__name__ if isinstance(kind, httpx.HTTPError) else error.fault.value


def _misconfigured(candidate: Candidate, detail: str) -> ProviderError:
    return ProviderError(
        candidate.provider,
        Fault.OPERATOR,
        "The gateway's connection to the provider is not in order. Its operator has to see to it.",
        detail=detail,
    )


def _pause(error: ProviderError, *, is_last: bool) -> float | None:
    """Return the seconds after which the same route is worth another try; None where it is not.

    `is_last`: no other route is left. Jittered, so that a provider that comes back is not met by everybody at
    once.
    """
    if error.fault is not Fault.TRANSIENT:
        return None
    if error.status is None:
        return _CONNECT_PAUSE_SECONDS * (0.5 + random.random())  # noqa: S311
    longest = _LONGEST_PAUSE_SECONDS if is_last else _LONGEST_PAUSE_BEFORE_OTHERS_SECONDS
    if error.status in _BUSY and error.retry_after is not None and error.retry_after <= longest:
        return error.retry_after + _CONNECT_PAUSE_SECONDS * random.random()  # noqa: S311
    if is_last and error.status in _MOMENTARY and error.retry_after is None:
        return _BACK_OFF_SECONDS * (0.5 + random.random())  # noqa: S311
    return None


def _in_time(exchange: Exchange, pause: float) -> bool:
    return exchange.deadline is None or asyncio.get_running_loop().time() + pause < exchange.deadline


def _failure(exchange: Exchange, candidate: Candidate, error: ProviderError) -> Mapping[str, Any]:
    """Return what the log keeps of a failed route: nothing that a provider may have quoted of the prompt."""
    now = asyncio.get_running_loop().time()
    failure: dict[str, Any] = {
        "route_id": candidate.route_id,
        "service_id": candidate.service_id,
        "status": error.status,
        "fault": error.fault.value,
        "after_ms": 0 if exchange.started is None else max(round((now - exchange.started) * 1000), 0),
    }
    if error.retry_after is not None:
        failure["retry_after"] = round(error.retry_after, 3)
    return failure


def _provider_request_id(response: httpx.Response) -> str | None:
    found = (response.headers[name] for name in _REQUEST_ID_HEADERS if name in response.headers)
    told = next(found, None)
    return told[:200] if told else None
