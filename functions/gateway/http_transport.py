"""Connections to the database and to providers, on the event loop itself.

HTTP/1.1 and the pool are httpcore's, as below httpx. What is ours is the network under it: anyio, which is
httpcore's own, took a fifth of the CPU of a chat request, and sent each request in two packets.
"""

from __future__ import annotations

import asyncio
import select
from typing import TYPE_CHECKING, Any

import httpcore
import httpx

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import AsyncIterator, Iterable

_HAPPY_EYEBALLS_SECONDS = 0.25
"""How long one of a host's addresses has before the next is tried beside it (RFC 8305)."""
_MOST_UNREAD_BYTES = 256 * 1024
"""What a peer may send ahead of its reader."""
_MOST_HELD_BYTES = 64 * 1024

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
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=_Network(),
        )

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


class _Network(httpcore.AsyncNetworkBackend):
    """Opens connections."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        assert local_address is None
        assert not socket_options
        try:
            async with asyncio.timeout(timeout):
                _, stream = await asyncio.get_running_loop().create_connection(
                    _Stream, host, port, happy_eyeballs_delay=_HAPPY_EYEBALLS_SECONDS
                )
        except TimeoutError as error:
            raise httpcore.ConnectTimeout from error
        except (OSError, UnicodeError) as error:  # a host's name may be none
            raise httpcore.ConnectError(str(error)) from error
        return stream

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Stream(asyncio.Protocol, httpcore.AsyncNetworkStream):
    """One connection. Whoever reads it and whoever writes it is one task at a time.

    The head of a request is held back until its body follows, or its end: one packet then wakes the peer
    once. httpcore tells that a body was sent after that.
    """

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self._unread = bytearray()
        self._held = b""
        self._paused = False
        self._ended = False
        """Whether the peer has said its last word."""
        self._lost = False
        self._failure: Exception | None = None
        self._is_fresh = True
        """Whether nothing was written since something was read."""
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._takes_more = True
        self._readable: select.poll | None = None

    # The event loop's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._unread += data
        if len(self._unread) > _MOST_UNREAD_BYTES and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        _wake(self._reader)

    def eof_received(self) -> bool:
        self._ended = True
        _wake(self._reader)
        # What is still to be written may be: a peer can be done with its answer before it has read the whole
        # request. TLS knows no half-closed connection, and warns of a True.
        return self._transport.get_extra_info("sslcontext") is None

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = self._lost = True
        self._failure = exc
        _wake(self._reader)
        _wake(self._writer)

    def pause_writing(self) -> None:
        self._takes_more = False

    def resume_writing(self) -> None:
        self._takes_more = True
        _wake(self._writer)

    # httpcore's side.

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        """Return what has come, waiting for it; b"" where the peer has ended it."""
        self._flush()
        self._is_fresh = True
        if not self._unread and not self._ended:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(timeout):
                    await self._reader
            except TimeoutError as error:
                raise httpcore.ReadTimeout from error
            finally:
                self._reader = None
        if self._unread:
            data = bytes(self._unread[:max_bytes])
            del self._unread[:max_bytes]
            if self._paused and len(self._unread) <= _MOST_UNREAD_BYTES // 2:
                self._paused = False
                self._transport.resume_reading()
            return data
        if self._failure is not None:
            raise httpcore.ReadError(str(self._failure))
        return b""

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Write. Returns when what is not yet sent is little, the system's buffers aside."""
        if self._lost or self._transport.is_closing():
            raise httpcore.WriteError(str(self._failure or ""))
        is_head = self._is_fresh and len(buffer) < _MOST_HELD_BYTES and buffer.endswith(b"\r\n\r\n")
        self._is_fresh = False
        if is_head:
            self._held = buffer
            return
        self._flush(buffer)
        if self._takes_more:
            return
        self._writer = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                await self._writer
        except TimeoutError as error:
            raise httpcore.WriteTimeout from error
        finally:
            self._writer = None
        if self._lost:
            raise httpcore.WriteError(str(self._failure or ""))

    def _flush(self, more: bytes = b"") -> None:
        held, self._held = self._held, b""
        if held or more:
            self._transport.write(held + more if held else more)

    async def aclose(self) -> None:
        self._transport.abort()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                transport = await asyncio.get_running_loop().start_tls(
                    self._transport, self, ssl_context, server_hostname=server_hostname
                )
        except BaseException as error:
            self._transport.abort()
            if isinstance(error, TimeoutError):
                raise httpcore.ConnectTimeout from error
            if isinstance(error, OSError):  # which ssl.SSLError is
                raise httpcore.ConnectError(str(error)) from error
            raise
        if transport is None:
            raise httpcore.ConnectError("the connection was closed in its handshake")
        self._transport = transport
        return self

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            return self._is_readable()
        names = {"server_addr": "peername", "client_addr": "sockname"}
        return self._transport.get_extra_info(names.get(info, info))

    def _is_readable(self) -> bool:
        """Whether something waits on an idle connection: its end, or an answer that nobody has asked for."""
        if self._unread or self._ended or self._transport.is_closing():
            return True
        if self._readable is None:
            connected: socket.socket = self._transport.get_extra_info("socket")
            self._readable = select.poll()
            self._readable.register(connected.fileno(), select.POLLIN)
        # What has arrived in the system, and which the event loop has not seen yet.
        return bool(self._readable.poll(0))


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
