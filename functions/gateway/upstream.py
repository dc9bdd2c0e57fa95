"""Calls of providers: over the routes that a request was admitted to, in their order.

A route that fails before a byte of its answer was used gives way to the next, where the failure may pass:
no connection, 408, 429, 5xx. A connection that breaks after the request was sent does not: the provider may
have done the work, and another would do it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from gateway.errors import GatewayError
from gateway.providers.registry import find_provider
from gateway.providers.wire import Fault, ProviderCall, ProviderError
from gateway.service_keys import open_sealed
from gateway.service_urls import check_base_url

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.database.rpc import Candidate
    from gateway.observability import Logger
    from gateway.settings import Settings

Result = TypeVar("Result")
Use = Callable[[ProviderCall, httpx.Response], Awaitable[Result]]

BROKEN = (httpx.TransportError, httpx.DecodingError)
"""What reading a response raises where it breaks off."""

_MAX_ANSWER_BYTES = 64 * 1024 * 1024
_MAX_ERROR_BYTES = 64 * 1024
_ERROR_SECONDS = 5.0
"""How long the text of an error is waited for: its status says enough to go on with."""
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
        last route tried, and GatewayError where the wire can't say what the client said.
        """
        last = len(exchange.candidates) - 1
        for position, candidate in enumerate(exchange.candidates):
            try:
                call = self._prepare(exchange, candidate)
                response = await self._send(exchange, candidate, call)
                try:
                    exchange.provider_request_id = _provider_request_id(response)
                    return await use(call, response)
                finally:
                    await response.aclose()
            except ProviderError as error:
                exchange.failed_routes.append(_failure(candidate, error))
                self._report(candidate, error)
                if exchange.forwarded or not error.retryable or position == last:
                    raise
                exchange.candidate = exchange.provider_request_id = None
        raise AssertionError("a request is admitted to one route at least")

    def _report(self, candidate: Candidate, error: ProviderError) -> None:
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

    async def _send(self, exchange: Exchange, candidate: Candidate, call: ProviderCall) -> httpx.Response:
        """Send the call and return the response of status 2xx, its body unread. The caller closes it.

        Raises ProviderError, and GatewayError where the wire can't say what the client said.
        """

        async def trace(event: str, _details: object) -> None:
            # From here on the provider works: a client that leaves before the first byte has used it.
            if event.endswith(".send_request_body.complete"):
                exchange.candidate = candidate

        wire = call.wire
        if wire is None:
            raise _misconfigured(candidate, f"no {type(call).__name__} goes to this provider")
        upstream = wire.build_request(call)
        request = self._http.build_request(
            upstream.method,
            upstream.url,
            headers=upstream.headers,
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


def _misconfigured(candidate: Candidate, detail: str) -> ProviderError:
    return ProviderError(
        candidate.provider,
        Fault.OPERATOR,
        "The gateway's connection to the provider is not in order. Its operator has to see to it.",
        detail=detail,
    )


def _failure(candidate: Candidate, error: ProviderError) -> Mapping[str, Any]:
    """Return what the log keeps of a failed route: nothing that a provider may have quoted of the prompt."""
    return {
        "route_id": candidate.route_id,
        "service_id": candidate.service_id,
        "status": error.status,
        "fault": error.fault.value,
    }


def _provider_request_id(response: httpx.Response) -> str | None:
    found = (response.headers[name] for name in _REQUEST_ID_HEADERS if name in response.headers)
    told = next(found, None)
    return told[:200] if told else None
