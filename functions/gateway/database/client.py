"""The connection to PostgREST. The only module that imports the Supabase client."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import httpx
from postgrest import AsyncPostgrestClient, AsyncRPCFilterRequestBuilder
from postgrest.base_request_builder import RequestConfig
from postgrest.exceptions import APIError

from gateway import json_text, telemetry
from gateway.http_client import DirectClient

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from gateway.settings import Settings

SCHEMA = "api"
CALLS_AT_A_TIME = 32
"""Of one process. More would only wait in PostgREST, whose own pool is smaller. They wait here and not in the
transport, whatever that is: what its queue costs depends on it, and the error says what was waited for."""
CONNECT_SECONDS = 3.0
READ_SECONDS = 10.0
_patience: ContextVar[float] = ContextVar("patience", default=READ_SECONDS)
LIMITS = httpx.Limits(
    max_connections=CALLS_AT_A_TIME, max_keepalive_connections=CALLS_AT_A_TIME, keepalive_expiry=20
)
"""Of the connections to PostgREST that a process keeps. PostgREST closes an idle one after 30 s: a call that
is sent at that moment is lost, so that we are to be the first."""

# SQLSTATE classes and PostgREST codes of a database that is away, overloaded or shutting down.
_AWAY = ("08", "53", "57", "PGRST00")
# Deadlock and serialization failure: the transaction was rolled back whole, so that it may be tried again.
_ROLLED_BACK = frozenset({"40P01", "40001"})
_ROLLED_BACK_TRIES = 3
# An answer that is not PostgREST's, from what stands before it.
_GATEWAY_STATUSES = frozenset({"502", "503", "504"})


class DatabaseError(Exception):
    """A call of a SQL function failed; nothing was committed. `code` is a SQLSTATE or PostgREST's own."""

    def __init__(self, function: str, code: str | None, message: str) -> None:
        super().__init__(f"{function}: {code or 'error'}: {message}")
        self.function = function
        self.code = code


class DatabaseAwayError(DatabaseError):
    """The database can't be reached or did not answer in time; what was sent may have been committed."""


class DatabaseClient:
    """Calls SQL functions of the schema `api`.

    `http` is shared, kept open and closed by whoever made it; it belongs to one event loop.
    """

    def __init__(self, rest_url: str, key: str, http: httpx.AsyncClient) -> None:
        headers = {"apikey": key}
        if not key.startswith("sb_"):
            # The older keys are tokens and go as such; the newer are none, and a 401 if sent like that.
            headers["authorization"] = f"Bearer {key}"
        self._postgrest = AsyncPostgrestClient(rest_url, schema=SCHEMA, headers=headers, http_client=http)
        self._url = rest_url
        self._made: dict[str, RequestConfig[httpx.AsyncClient]] = {}
        self._turn = asyncio.Semaphore(CALLS_AT_A_TIME)

    async def call_long(self, function: str, parameters: Mapping[str, Any], *, seconds: float) -> Any:
        """Return what `call` does, of a function that may take up to `seconds` to answer."""
        token = _patience.set(seconds)
        try:
            return await self.call(function, parameters)
        finally:
            _patience.reset(token)

    async def call(self, function: str, parameters: Mapping[str, Any]) -> Any:
        """Return the function's JSON. Raises DatabaseAwayError, or DatabaseError where the call failed.

        Sent once, except where the transaction was rolled back for another one's sake.
        """
        trace = telemetry.current()
        if trace is None:
            return await self._call(function, parameters)
        query = trace.begin_query(function, self._url)
        try:
            return await self._call(function, parameters)
        except DatabaseError as error:
            query.failed(error.code or type(error).__name__, error.code)
            raise
        finally:
            query.end()

    async def _call(self, function: str, parameters: Mapping[str, Any]) -> Any:
        tries = _ROLLED_BACK_TRIES
        while True:
            tries -= 1
            try:
                return await self._send(function, parameters)
            except APIError as error:
                code = error.code or ""
                if code in _ROLLED_BACK and tries > 0:
                    await asyncio.sleep(0.01)
                    continue
                # A failure of SQL always has its SQLSTATE. PostgREST tells none where its connection broke
                # under a statement, which may then have been committed.
                away = not code or code.startswith(_AWAY) or code in _GATEWAY_STATUSES
                kind = DatabaseAwayError if away else DatabaseError
                raise kind(function, error.code, error.message or "") from error
            except (httpx.TransportError, httpx.InvalidURL) as error:
                raise DatabaseAwayError(function, None, type(error).__name__) from error

    async def _send(self, function: str, parameters: Mapping[str, Any]) -> Any:
        if self._turn.locked():
            await self._wait_for_turn(function)
        else:
            await self._turn.acquire()
        try:
            return (await self._request(function, parameters).execute()).data
        finally:
            self._turn.release()

    async def _wait_for_turn(self, function: str) -> None:
        try:
            async with asyncio.timeout(READ_SECONDS):
                await self._turn.acquire()
        except TimeoutError as error:
            raise DatabaseAwayError(function, None, "calls before this one got no answer") from error

    def _request(self, function: str, parameters: Mapping[str, Any]) -> AsyncRPCFilterRequestBuilder:
        """Return what postgrest's `rpc` does; of a function's calls only the first makes URL and headers."""
        made = self._made.get(function)
        if made is None:
            made = self._made[function] = self._postgrest.rpc(function, {}).request
            made.headers["content-type"] = "application/json"
        return AsyncRPCFilterRequestBuilder(_FunctionCall(made, parameters))


class _FunctionCall(RequestConfig[httpx.AsyncClient]):
    """A call as postgrest would send it: its own `send` merges the headers and looks for dates each time."""

    def __init__(self, made: RequestConfig[httpx.AsyncClient], parameters: Mapping[str, Any]) -> None:
        super().__init__(
            made.session,
            made.path,
            made.http_method,
            made.headers,
            made.params,
            made.auth,
            parameters,
            retry_enabled=made.retry_enabled,
        )

    def send(self, additional_headers: httpx.Headers) -> Awaitable[httpx.Response]:  # noqa: ARG002 - no POST is tried again
        content = json_text.dump(self.json)
        return self.session.request(self.http_method, str(self.path), content=content, headers=self.headers)


def open_http(settings: Settings, transport: httpx.AsyncBaseTransport) -> httpx.AsyncClient:
    """Return the HTTP client for PostgREST, with short time-outs. The transport has LIMITS."""
    connect = min(CONNECT_SECONDS, settings.connect_timeout_seconds)
    return _PatientClient(transport, timeout=httpx.Timeout(READ_SECONDS, connect=connect))


class _PatientClient(DirectClient):
    """Waits for an answer as long as the call at hand may take."""

    def build_request(self, method: str, url: httpx.URL | str, **told: Any) -> httpx.Request:
        request = super().build_request(method, url, **told)
        request.extensions["timeout"]["read"] = _patience.get()
        return request
