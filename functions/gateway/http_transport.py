"""Connections to the database and to providers, on the event loop itself.

The pool is httpcore's and HTTP/1.1 is read and written by h11, as below httpx. What is ours is the connection
between them. httpcore's own, with anyio under it, took a third of the CPU of a chat request, sent each
request in two packets, and gave what a server sent beyond its answer to the next request as its answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import select
from typing import TYPE_CHECKING

import h11
import httpcore
import httpx

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import AsyncIterable, AsyncIterator

_HAPPY_EYEBALLS_SECONDS = 0.25
"""How long one of a host's addresses has before the next is tried beside it (RFC 8305)."""
_MOST_UNREAD_BYTES = 256 * 1024
"""What a peer may send ahead of its reader."""
_MOST_HEAD_BYTES = 100 * 1024
_SENT = "http11.send_request_body.complete"
"""The one event of httpcore's that a request's `trace` is told: all of it was written."""
_SWITCHING_PROTOCOLS = 101

_EXCEPTIONS: dict[type[Exception], type[httpx.TransportError]] = {
    httpcore.ConnectTimeout: httpx.ConnectTimeout,
    httpcore.ReadTimeout: httpx.ReadTimeout,
    httpcore.WriteTimeout: httpx.WriteTimeout,
    httpcore.PoolTimeout: httpx.PoolTimeout,
    httpcore.ConnectError: httpx.ConnectError,
    httpcore.ReadError: httpx.ReadError,
    httpcore.WriteError: httpx.WriteError,
    httpcore.UnsupportedProtocol: httpx.UnsupportedProtocol,
    httpcore.LocalProtocolError: httpx.LocalProtocolError,
    httpcore.RemoteProtocolError: httpx.RemoteProtocolError,
}
_FAILURES = tuple(_EXCEPTIONS)


class PooledTransport(httpx.AsyncBaseTransport):
    """httpx.AsyncHTTPTransport over HTTP/1.1, on the event loop itself."""

    def __init__(self, tls: ssl.SSLContext, limits: httpx.Limits) -> None:
        tls.set_alpn_protocols(["http/1.1"])
        self._pool = _Pool(tls, limits)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        assert isinstance(request.stream, httpx.AsyncByteStream)
        try:
            response = await self._pool.handle_async_request(
                httpcore.Request(
                    request.method,
                    httpcore.URL(
                        scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
                    ),
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        except _FAILURES as error:
            raise _EXCEPTIONS[type(error)](str(error), request=request) from error
        return httpx.Response(
            response.status,
            headers=response.headers,
            stream=_Body(response, request),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        await self._pool.aclose()


class _Body(httpx.AsyncByteStream):
    """The body of a response, as it arrives."""

    def __init__(self, response: httpcore.Response, request: httpx.Request) -> None:
        self._response = response
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for part in self._response.aiter_stream():
                yield part
        except _FAILURES as error:
            raise _EXCEPTIONS[type(error)](str(error), request=self._request) from error

    async def aclose(self) -> None:
        await self._response.aclose()


class _Pool(httpcore.AsyncConnectionPool):
    """httpcore's pool of connections of ours."""

    def __init__(self, tls: ssl.SSLContext, limits: httpx.Limits) -> None:
        super().__init__(
            ssl_context=tls,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
        )
        self._tls = tls
        self._idle_seconds = limits.keepalive_expiry

    def create_connection(self, origin: httpcore.Origin) -> httpcore.AsyncConnectionInterface:
        return _Connection(origin, self._tls, self._idle_seconds)


class _State(enum.Enum):
    NEW = enum.auto()
    ACTIVE = enum.auto()
    """From its connecting or its request until the response is closed."""
    IDLE = enum.auto()
    CLOSED = enum.auto()


class _Connection(asyncio.Protocol, httpcore.AsyncConnectionInterface):
    """One connection, of one request at a time. It is kept only if nothing is left of the last one."""

    _transport: asyncio.Transport

    def __init__(self, origin: httpcore.Origin, tls: ssl.SSLContext, idle_seconds: float | None) -> None:
        self._origin = origin
        self._tls = tls
        self._idle_seconds = idle_seconds
        self._loop = asyncio.get_running_loop()
        self._state = _State.NEW
        self._expires_at: float | None = None
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MOST_HEAD_BYTES)
        self._unread = bytearray()
        self._is_paused = False
        self._has_ended = False
        """Whether the peer has said its last word."""
        self._is_lost = False
        self._failure: Exception | None = None
        self._takes_more = True
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._readable: select.poll | None = None

    # What the event loop tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._unread += data
        if len(self._unread) > _MOST_UNREAD_BYTES and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()
        _wake(self._reader)

    def eof_received(self) -> bool:
        self._has_ended = True
        _wake(self._reader)
        # What is still to be written may be: a peer can be done with its answer before it has read the whole
        # request. TLS knows no half-closed connection, and warns of a True.
        return self._transport.get_extra_info("sslcontext") is None

    def connection_lost(self, exc: Exception | None) -> None:
        self._has_ended = self._is_lost = True
        self._failure = exc
        _wake(self._reader)
        _wake(self._writer)

    def pause_writing(self) -> None:
        self._takes_more = False

    def resume_writing(self) -> None:
        self._takes_more = True
        _wake(self._writer)

    # What the pool asks.

    def can_handle_request(self, origin: httpcore.Origin) -> bool:
        return origin == self._origin

    def is_available(self) -> bool:
        return self._state is _State.IDLE

    def is_idle(self) -> bool:
        return self._state is _State.IDLE

    def is_closed(self) -> bool:
        return self._state is _State.CLOSED

    def has_expired(self) -> bool:
        if self._state is not _State.IDLE:
            return False
        return self._is_readable() or (self._expires_at is not None and self._loop.time() > self._expires_at)

    def info(self) -> str:
        return f"{str(self._origin)!r}, HTTP/1.1, {self._state.name}"

    async def aclose(self) -> None:
        self._close()

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request; return its response with the body unread.

        Raises httpcore's exceptions; ConnectionNotAvailable, upon which the pool finds it another one.
        """
        if self._state not in {_State.NEW, _State.IDLE}:
            raise httpcore.ConnectionNotAvailable
        is_new = self._state is _State.NEW
        self._state = _State.ACTIVE
        patience = request.extensions.get("timeout", {})
        try:
            if is_new:
                await self._connect(request, patience.get("connect"))
            # A server may answer and close before it has read the whole request.
            with contextlib.suppress(httpcore.WriteError):
                await self._send(request, patience.get("write"))
            head = await self._receive_head(patience.get("read"))
        except BaseException:
            self._close()
            raise
        return httpcore.Response(
            head.status_code,
            headers=head.headers.raw_items(),
            content=_Received(self, patience.get("read")),
            extensions={"http_version": b"HTTP/" + head.http_version, "reason_phrase": head.reason},
        )

    async def receive_body(self, seconds: float | None) -> AsyncIterator[bytes]:
        """Yield the body of the response as it arrives."""
        while isinstance(event := await self._receive(seconds), h11.Data):
            yield bytes(event.data)

    def end(self) -> None:
        """Be ready for the next request, or close where this one's answer is not whole or is not all."""
        http = self._http
        is_whole = http.our_state is h11.DONE and http.their_state is h11.DONE
        # What follows an answer unasked would be taken for the next one's.
        if not is_whole or http.trailing_data[0] or self._unread or self._has_ended:
            self._close()
        elif self._state is _State.ACTIVE:
            http.start_next_cycle()
            self._state = _State.IDLE
            if self._idle_seconds is not None:
                self._expires_at = self._loop.time() + self._idle_seconds

    def _close(self) -> None:
        if self._state is not _State.CLOSED:
            self._state = _State.CLOSED
            transport = getattr(self, "_transport", None)
            if transport is not None:
                transport.abort()

    async def _connect(self, request: httpcore.Request, seconds: float | None) -> None:
        host, is_secure = self._origin.host.decode("ascii"), self._origin.scheme == b"https"
        name = request.extensions.get("sni_hostname") or host
        try:
            async with asyncio.timeout(seconds):
                await self._loop.create_connection(
                    lambda: self, host, self._origin.port, happy_eyeballs_delay=_HAPPY_EYEBALLS_SECONDS
                )
            if is_secure:
                async with asyncio.timeout(seconds):
                    secure = await self._loop.start_tls(
                        self._transport, self, self._tls, server_hostname=name
                    )
                if secure is None:
                    raise httpcore.ConnectError("the connection was closed in its handshake")
                self._transport = secure
        except TimeoutError as error:
            raise httpcore.ConnectTimeout from error
        except (OSError, UnicodeError) as error:  # ssl.SSLError is an OSError, and a host's name may be none
            raise httpcore.ConnectError(str(error)) from error

    async def _send(self, request: httpcore.Request, seconds: float | None) -> None:
        """Write the whole request. Its head goes with its body: one packet wakes the peer once."""
        http = self._http
        assert not isinstance(request.stream, bytes)
        content: AsyncIterable[bytes] = request.stream  # type: ignore[assignment]
        try:
            pending = http.send(
                h11.Request(method=request.method, target=request.url.target, headers=request.headers)
            )
            async for part in content:
                await self._write((pending or b"") + (http.send(h11.Data(data=part)) or b""), seconds)
                pending = b""
            pending = (pending or b"") + (http.send(h11.EndOfMessage()) or b"")
        except h11.LocalProtocolError as error:
            raise httpcore.LocalProtocolError(str(error)) from error
        if pending:
            await self._write(pending, seconds)
        trace = request.extensions.get("trace")
        if trace is not None:
            await trace(_SENT, {})

    async def _receive_head(self, seconds: float | None) -> h11.Response:
        while True:
            event = await self._receive(seconds)
            if isinstance(event, h11.Response):
                return event
            if not isinstance(event, h11.InformationalResponse) or event.status_code == _SWITCHING_PROTOCOLS:
                raise httpcore.RemoteProtocolError("an answer that nobody has asked for")

    async def _receive(self, seconds: float | None) -> h11.Event | type[h11.PAUSED]:
        http = self._http
        try:
            while True:
                event = http.next_event()
                if event is not h11.NEED_DATA:
                    return event  # type: ignore[return-value] # it is not told from PAUSED
                data = await self._read(seconds)
                if not data and http.their_state is h11.SEND_RESPONSE:
                    raise httpcore.RemoteProtocolError("Server disconnected without sending a response.")
                http.receive_data(data)
        except h11.RemoteProtocolError as error:
            raise httpcore.RemoteProtocolError(str(error)) from error

    async def _read(self, seconds: float | None) -> bytes:
        """Return what has come, waiting for it; b"" where the peer has ended it."""
        if not self._unread and not self._has_ended:
            self._reader = self._loop.create_future()
            try:
                async with asyncio.timeout(seconds):
                    await self._reader
            except TimeoutError as error:
                raise httpcore.ReadTimeout from error
            finally:
                self._reader = None
        if self._unread:
            data = bytes(self._unread)
            self._unread.clear()
            if self._is_paused:
                self._is_paused = False
                self._transport.resume_reading()
            return data
        if self._failure is not None:
            raise httpcore.ReadError(str(self._failure))
        return b""

    async def _write(self, data: bytes, seconds: float | None) -> None:
        """Write. Returns when little of it is left that the system has not taken."""
        if self._is_lost or self._transport.is_closing():
            raise httpcore.WriteError(str(self._failure or ""))
        self._transport.write(data)
        if self._takes_more:
            return
        self._writer = self._loop.create_future()
        try:
            async with asyncio.timeout(seconds):
                await self._writer
        except TimeoutError as error:
            raise httpcore.WriteTimeout from error
        finally:
            self._writer = None
        if self._is_lost:
            raise httpcore.WriteError(str(self._failure or ""))

    def _is_readable(self) -> bool:
        """Whether something waits on an idle connection: its end, or an answer that nobody has asked for."""
        if self._unread or self._has_ended or self._transport.is_closing():
            return True
        if self._readable is None:
            connected: socket.socket = self._transport.get_extra_info("socket")
            self._readable = select.poll()
            self._readable.register(connected.fileno(), select.POLLIN)
        # What has arrived in the system, and which the event loop has not seen yet.
        return bool(self._readable.poll(0))


class _Received:
    """The body of a response, as httpcore's pool passes it on."""

    def __init__(self, connection: _Connection, seconds: float | None) -> None:
        self._connection = connection
        self._seconds = seconds
        self._is_closed = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._connection.receive_body(self._seconds)

    async def aclose(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._connection.end()


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
