"""A live test of a service: whether its provider can be reached, takes the key and has the models.

The cheapest real call that tells: the list of models, which costs nothing, and where that proves nothing, or
is not there, one chat that may answer with a single token. Nothing is charged to anybody.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import httpx

from gateway.errors import Unprocessable
from gateway.providers.registry import find_provider
from gateway.providers.wire import Fault, ProviderCall, ProviderError
from gateway.sealing import SealError
from gateway.service_keys import open_sealed
from gateway.service_urls import UnresolvedHostError, check_resolved
from gateway.upstream import BROKEN, read_bounded

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gateway.providers.wire import Provider, UpstreamRequest
    from gateway.service_urls import Resolver
    from gateway.settings import Settings

SECONDS = 15.0
"""How long a test takes at most."""
_MAX_BYTES = 8 * 1024 * 1024
_SAID_CHARS = 200
_PROMPT = "1"
_NO_SUCH_MODEL = re.compile(
    r"model.{0,80}(not (exist|found|supported)|doesn.t exist|unknown|invalid)"
    r"|(unknown|invalid|no such) model",
    re.IGNORECASE | re.DOTALL,
)


class Problem(StrEnum):
    """What is wrong with a service."""

    UNKNOWN_PROVIDER = "unknown_provider"
    ADDRESS = "address"
    KEY_MISSING = "key_missing"
    KEY_UNREADABLE = "key_unreadable"
    DNS = "dns"
    CONNECT = "connect"
    TLS = "tls"
    TIMEOUT = "timeout"
    REDIRECTED = "redirected"
    UNAUTHORIZED = "unauthorized"
    NO_CREDIT = "no_credit"
    RATE_LIMITED = "rate_limited"
    MODEL_NOT_FOUND = "model_not_found"
    REFUSED = "refused"
    PROVIDER_FAILED = "provider_failed"
    NOT_COMPATIBLE = "not_compatible"
    NO_MODELS = "no_models"


_MEND = {
    Problem.UNKNOWN_PROVIDER: "The gateway does not know this provider any more. Make a service of one it "
    "knows.",
    Problem.ADDRESS: "The base_url may not be called: set one that is https and leads out of the network.",
    Problem.KEY_MISSING: "No provider_key is set, and this provider demands one. Set it.",
    Problem.KEY_UNREADABLE: "The stored provider_key can't be opened: it was sealed under another master "
    "key or for another address. Set it anew.",
    Problem.DNS: "The host of the base_url has no address. Look for a misspelling.",
    Problem.CONNECT: "Nothing answers at the base_url. Look at its host and port, and whether the server "
    "runs.",
    Problem.TLS: "The server's certificate can't be trusted, or it does not speak TLS there. Renew it, "
    "with the whole chain, or mend the base_url.",
    Problem.TIMEOUT: f"There was no answer within {SECONDS:.0f} seconds. Look at the provider's status "
    "page, or at the server's load.",
    Problem.REDIRECTED: "The base_url leads elsewhere, and the gateway follows no redirects. Set the "
    "address that it leads to.",
    Problem.UNAUTHORIZED: "The provider refuses the key. Make a new one there, and set it as provider_key.",
    Problem.NO_CREDIT: "The account at the provider has no money left. Pay in there.",
    Problem.RATE_LIMITED: "The key is good, but the provider is limiting it now. Wait, or ask there for "
    "more.",
    Problem.MODEL_NOT_FOUND: "The provider does not have every enabled model under that name. Correct the "
    "names at the provider by the offers of the models, or disable them.",
    Problem.REFUSED: "The provider takes the key, but refuses so small a chat.",
    Problem.PROVIDER_FAILED: "The provider fails. Look at its status page, and try again.",
    Problem.NOT_COMPATIBLE: "What answers at the base_url is not this provider's API. Look at the path: it "
    "often ends in /v1.",
    Problem.NO_MODELS: "The provider can be reached, but it tells nothing without a model. Enable one.",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """What a test has found."""

    problem: Problem | None
    status: int | None
    """The provider's last HTTP status; None where there was no answer."""
    latency_ms: int
    models_missing: tuple[str, ...] | None
    """Enabled models that the provider does not list; None where it lists none at all."""
    provider_said: str | None
    """A line of the provider's own, without anything like a secret."""

    def as_json(self) -> dict[str, Any]:
        return {
            "ok": self.problem is None,
            "status": self.status,
            "latency_ms": self.latency_ms,
            "problem": self.problem,
            "message": self.problem and _MEND[self.problem],
            "provider_said": self.provider_said,
            "models_missing": None if self.models_missing is None else list(self.models_missing),
        }


class _ProblemFound(Exception):  # noqa: N818 - an outcome, not a fault
    def __init__(self, problem: Problem, said: str | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.said = said


class ServiceCheck:
    """One test of one service. `connection` is what api.read_connection tells."""

    def __init__(self, connection: Mapping[str, Any], settings: Settings, http: httpx.AsyncClient) -> None:
        self._connection = connection
        self._settings = settings
        self._http = http
        self._status: int | None = None
        self._latency_ms = 0
        self._missing: tuple[str, ...] | None = None

    async def run(self, *, seconds: float = SECONDS, resolve: Resolver | None = None) -> Finding:
        """Return what is wrong, if anything is. Raises nothing that the service could be the cause of."""
        problem = said = None
        try:
            async with asyncio.timeout(seconds):
                await self._check(await self._prepare(resolve))
        except _ProblemFound as found:
            problem, said = found.problem, found.said
        except TimeoutError:
            problem = Problem.TIMEOUT
        return Finding(problem, self._status, self._latency_ms, self._missing, said)

    async def _prepare(self, resolve: Resolver | None) -> ProviderCall:
        told = self._connection
        provider = find_provider(told["provider"])
        base_url = told["base_url"] or (provider.base_url if provider else None)
        if provider is None or base_url is None:
            raise _ProblemFound(Problem.UNKNOWN_PROVIDER)
        try:
            await check_resolved(base_url, allow_private=self._settings.allow_private_urls, resolve=resolve)
        except UnresolvedHostError:
            raise _ProblemFound(Problem.DNS) from None
        except Unprocessable as error:
            raise _ProblemFound(Problem.ADDRESS, error.message) from None
        if told["provider_key"] is None and provider.key_needed:
            raise _ProblemFound(Problem.KEY_MISSING)
        return ProviderCall(
            provider=provider,
            base_url=base_url,
            model="",
            body={},
            output_bound=None,
            stream=False,
            key=self._opened(provider, base_url),
            site_url=self._settings.openrouter_site_url,
            site_name=self._settings.openrouter_site_name,
        )

    def _opened(self, provider: Provider, base_url: str) -> str | None:
        sealed = self._connection["provider_key"]
        if sealed is None:
            return None
        try:
            return open_sealed(
                sealed,
                master_keys=self._settings.master_keys,
                service_id=self._connection["id"],
                provider=provider.name,
                base_url=base_url,
            )
        except SealError:
            raise _ProblemFound(Problem.KEY_UNREADABLE) from None

    async def _check(self, call: ProviderCall) -> None:
        chat = self._one_token_chat(call)
        refusal = await self._list(call)
        if refusal is None and not (call.provider.lists_models_to_all and call.key):
            self._require_models()
            return
        if chat is None:
            if refusal is None:
                # The list is there, and the key can't be tried without a model.
                raise _ProblemFound(Problem.NO_MODELS)
            raise refusal
        await self._chat(chat, listed=refusal is None)
        self._require_models()

    async def _list(self, call: ProviderCall) -> _ProblemFound | None:
        """Look at the list of models. Return why there is none, where a chat may still tell more."""
        status, headers, content = await self._send(call.provider.wire.build_list_request(call))
        if not httpx.codes.is_success(status):
            error = call.provider.wire.parse_error(call, status, headers, content)
            problem = _problem(error.status or status, error)
            found = _ProblemFound(problem, _said(problem, error))
            if problem in {Problem.REFUSED, Problem.NOT_COMPATIBLE, Problem.MODEL_NOT_FOUND}:
                return _ProblemFound(Problem.NOT_COMPATIBLE, found.said)
            if status == httpx.codes.FORBIDDEN:
                return found  # a key that may chat need not be one that may list
            raise found
        names = call.provider.wire.parse_list(content)
        if names is None:
            return _ProblemFound(Problem.NOT_COMPATIBLE)
        if names:
            self._missing = tuple(
                model["name"]
                for model in self._connection["models"]
                if not _has(names, model["upstream_model"])
            )
        return None

    def _require_models(self) -> None:
        if self._missing:
            raise _ProblemFound(Problem.MODEL_NOT_FOUND)

    def _one_token_chat(self, call: ProviderCall) -> ProviderCall | None:
        names = [model["upstream_model"] for model in self._connection["models"] if model["chats"]]
        if not names:
            return None
        return ProviderCall(
            provider=call.provider,
            base_url=call.base_url,
            model=names[0],
            body={"messages": [{"role": "user", "content": _PROMPT}]},
            output_bound=1,
            stream=False,
            key=call.key,
            site_url=call.site_url,
            site_name=call.site_name,
        )

    async def _chat(self, call: ProviderCall, *, listed: bool) -> None:
        wire = call.provider.wire
        status, headers, content = await self._send(wire.build_request(call))
        try:
            if not httpx.codes.is_success(status):
                raise wire.parse_error(call, status, headers, content)
            wire.parse_answer(call, content)
        except ProviderError as error:
            problem = _problem(error.status or status, error)
            if problem is Problem.MODEL_NOT_FOUND and not listed and status == httpx.codes.NOT_FOUND:
                # Neither the list nor the chat is there: it is the path, not the model.
                problem = Problem.NOT_COMPATIBLE
            raise _ProblemFound(problem, _said(problem, error)) from None

    async def _send(self, upstream: UpstreamRequest) -> tuple[int, Mapping[str, str], bytes]:
        request = self._http.build_request(
            upstream.method, upstream.url, headers=upstream.headers, content=upstream.content
        )
        start = time.perf_counter()
        try:
            response = await self._http.send(request, stream=True)
            try:
                self._status = response.status_code
                content = await read_bounded(response, _MAX_BYTES)
            finally:
                await response.aclose()
        except httpx.TimeoutException:
            raise _ProblemFound(Problem.TIMEOUT) from None
        except BROKEN as error:
            raise _ProblemFound(_broken(error)) from None
        finally:
            self._latency_ms = round((time.perf_counter() - start) * 1000)
        return response.status_code, response.headers, content


def _problem(status: int, error: ProviderError) -> Problem:
    known = {
        401: Problem.UNAUTHORIZED,
        402: Problem.NO_CREDIT,
        403: Problem.UNAUTHORIZED,
        404: Problem.MODEL_NOT_FOUND,
        405: Problem.NOT_COMPATIBLE,
        408: Problem.TIMEOUT,
        429: Problem.RATE_LIMITED,
        504: Problem.TIMEOUT,
    }
    if status in known:
        return known[status]
    if httpx.codes.is_redirect(status):
        return Problem.REDIRECTED
    if httpx.codes.is_server_error(status):
        return Problem.PROVIDER_FAILED
    if error.fault is Fault.PROTOCOL or not httpx.codes.is_client_error(status):
        return Problem.NOT_COMPATIBLE
    if _NO_SUCH_MODEL.search(error.message) or "model_not_found" in (error.code or ""):
        return Problem.MODEL_NOT_FOUND
    return Problem.REFUSED


def _said(problem: Problem, error: ProviderError) -> str | None:
    """Return a line of what the provider said: of a refused key nothing, since many quote the half of it."""
    if problem is Problem.UNAUTHORIZED:
        return None
    said = error.detail if error.fault is Fault.OPERATOR and error.detail else error.message
    return " ".join(said.split())[:_SAID_CHARS]


def _broken(error: BaseException) -> Problem:
    for cause in _causes(error):
        if isinstance(cause, socket.gaierror):
            return Problem.DNS
        if isinstance(cause, ssl.SSLError):
            return Problem.TLS
    return Problem.NOT_COMPATIBLE if isinstance(error, httpx.DecodingError) else Problem.CONNECT


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _has(names: frozenset[str], model: str) -> bool:
    """Return whether a list has a model: as it is, or without what some append to choose among routes."""
    return model in names or f"models/{model}" in names or model.partition(":")[0] in names
