"""Connections to the database and to providers, on the event loop itself.

HTTP/1.1 is read and written by h11, as below httpx. What is ours is the connection and the pool: httpcore's,
with anyio under them, took half of the CPU of a chat request, sent each request in two packets, and gave what
a server sent beyond its answer to the next request as its answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import select
from typing import TYPE_CHECKING

import h11
import httpx

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import AsyncIterator

_HAPPY_EYEBALLS_SECONDS = 0.25
"""How long one of a host's addresses has before the next is tried beside it (RFC 8305)."""
_MOST_UNREAD_BYTES = 256 * 1024
"""What a peer may send ahead of its reader."""
_MOST_HEAD_BYTES = 100 * 1024
_SENT = "http11.send_request_body.complete"
"""The one event of httpcore's that a request's `trace` is told: all of it was written."""
_SWITCHING_PROTOCOLS = 101
_PORTS = {"http": 80, "https": 443}

_Origin = tuple[str, str, int]


class PooledTransport(httpx.AsyncBaseTransport):
    """httpx.AsyncHTTPTransport over HTTP/1.1: kept connections, and no more calls at once than `limits` has.

    It belongs to one event loop. Raises httpx.TransportError.
    """

    def __init__(self, tls: ssl.SSLContext, limits: httpx.Limits) -> None:
        tls.set_alpn_protocols(["http/1.1"])
        self._tls = tls
        self._most_idle = limits.max_keepalive_connections
        self._idle_seconds = limits.keepalive_expiry
        self._turn = None if limits.max_connections is None else asyncio.Semaphore(limits.max_connections)
        self._idle: dict[_Connection, float] = {}
        """When each was left, by the event loop's clock, the longest first."""
        self._busy: set[_Connection] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        origin = _origin(request.url)
        patience = request.extensions.get("timeout", {})
        if self._turn is not None:
            try:
                async with asyncio.timeout(patience.get("pool")):
                    await self._turn.acquire()
            except TimeoutError as error:
                raise httpx.PoolTimeout("no connection was free", request=request) from error
        connection = self._take(origin)
        self._busy.add(connection)
        try:
            head = await connection.exchange(request)
        except BaseException:
            self._give_back(connection)
            raise
        return httpx.Response(
            head.status_code,
            headers=head.headers.raw_items(),
            stream=_Body(self, connection, request),
            extensions={"http_version": b"HTTP/" + head.http_version, "reason_phrase": head.reason},
        )

    def _take(self, origin: _Origin) -> _Connection:
        """Return a connection to this origin: of those that are idle the latest, else a new one."""
        self._close_old()
        while True:
            found = next((each for each in reversed(self._idle) if each.origin == origin), None)
            if found is None:
                return _Connection(origin, self._tls)
            del self._idle[found]
            if found.is_quiet():
                return found
            found.close()

    def _give_back(self, connection: _Connection) -> None:
        self._busy.discard(connection)
        if connection.is_open:
            self._idle[connection] = asyncio.get_running_loop().time()
            self._close_old()
        if self._turn is not None:
            self._turn.release()

    def _close_old(self) -> None:
        """Close those that are idle for too long, or too many."""
        now = asyncio.get_running_loop().time()
        while self._idle:
            longest, since = next(iter(self._idle.items()))
            too_many = self._most_idle is not None and len(self._idle) > self._most_idle
            too_long = self._idle_seconds is not None and now - since > self._idle_seconds
            if not too_many and not too_long:
                return
            del self._idle[longest]
            longest.close()

    async def aclose(self) -> None:
        for connection in (*self._idle, *self._busy):
            connection.close()
        self._idle.clear()

    def end(self, connection: _Connection) -> None:
        """Take back a connection whose response is closed."""
        connection.end()
        self._give_back(connection)


class _Body(httpx.AsyncByteStream):
    """The body of a response, as it arrives."""

    def __init__(self, pool: PooledTransport, connection: _Connection, request: httpx.Request) -> None:
        self._pool = pool
        self._connection = connection
        self._request = request
        self._is_closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._is_closed:
            raise httpx.ReadError("the response has been closed", request=self._request)
        try:
            async for part in self._connection.receive_body(self._request):
                yield part
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._pool.end(self._connection)


def _origin(url: httpx.URL) -> _Origin:
    if url.scheme not in _PORTS or not url.host:
        raise httpx.UnsupportedProtocol(f"no HTTP goes to {url.scheme!r}")
    return url.scheme, url.raw_host.decode("ascii"), url.port or _PORTS[url.scheme]


class _State(enum.Enum):
    NEW = enum.auto()
    ACTIVE = enum.auto()
    """From its connecting or its request until the response is closed."""
    IDLE = enum.auto()
    CLOSED = enum.auto()


class _Connection(asyncio.Protocol):
    """One connection, of one request at a time. It is kept only if nothing is left of the last one."""

    def __init__(self, origin: _Origin, tls: ssl.SSLContext) -> None:
        self.origin = origin
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._is_connected = False
        self._state = _State.NEW
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
        self._is_connected = True

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

    # What the pool does.

    @property
    def is_open(self) -> bool:
        return self._state is not _State.CLOSED

    def is_quiet(self) -> bool:
        """Whether nothing waits on an idle connection: its end, or an answer that nobody has asked for."""
        if self._unread or self._has_ended or self._transport.is_closing():
            return False
        if self._readable is None:
            connected: socket.socket = self._transport.get_extra_info("socket")
            self._readable = select.poll()
            self._readable.register(connected.fileno(), select.POLLIN)
        # What has arrived in the system, and which the event loop has not seen yet.
        return not self._readable.poll(0)

    async def exchange(self, request: httpx.Request) -> h11.Response:
        """Send a request; return the head of its response. Closes where that fails."""
        patience = request.extensions.get("timeout", {})
        is_new = self._state is _State.NEW
        self._state = _State.ACTIVE
        try:
            if is_new:
                await self._connect(request, patience.get("connect"))
            # A server may answer and close before it has read the whole request.
            with contextlib.suppress(httpx.WriteError):
                await self._send(request, patience.get("write"))
            return await self._receive_head(patience.get("read"))
        except httpx.TransportError as error:
            self.close()
            error.request = request
            raise
        except BaseException:
            self.close()
            raise

    async def receive_body(self, request: httpx.Request) -> AsyncIterator[bytes]:
        """Yield the body of the response as it arrives."""
        seconds = request.extensions.get("timeout", {}).get("read")
        try:
            while isinstance(event := await self._receive(seconds), h11.Data):
                yield bytes(event.data)
        except httpx.TransportError as error:
            error.request = request
            raise

    def end(self) -> None:
        """Be ready for the next request, or close where this one's answer is not whole or is not all."""
        http = self._http
        is_whole = http.our_state is h11.DONE and http.their_state is h11.DONE
        # What follows an answer unasked would be taken for the next one's.
        if not is_whole or http.trailing_data[0] or self._unread or self._has_ended:
            self.close()
        elif self._state is _State.ACTIVE:
            http.start_next_cycle()
            self._state = _State.IDLE

    def close(self) -> None:
        self._state = _State.CLOSED
        if self._is_connected:
            self._transport.abort()

    async def _connect(self, request: httpx.Request, seconds: float | None) -> None:
        scheme, host, port = self.origin
        try:
            async with asyncio.timeout(seconds):
                await self._loop.create_connection(
                    lambda: self, host, port, happy_eyeballs_delay=_HAPPY_EYEBALLS_SECONDS
                )
            if scheme == "https":
                name = request.extensions.get("sni_hostname") or host
                async with asyncio.timeout(seconds):
                    secure = await self._loop.start_tls(
                        self._transport, self, self._tls, server_hostname=name
                    )
                if secure is None:
                    raise httpx.ConnectError("the connection was closed in its handshake")
                self._transport = secure
        except TimeoutError as error:
            raise httpx.ConnectTimeout("") from error
        except (OSError, UnicodeError) as error:  # ssl.SSLError is an OSError, and a host's name may be none
            raise httpx.ConnectError(str(error)) from error

    async def _send(self, request: httpx.Request, seconds: float | None) -> None:
        """Write the whole request. Its head goes with its body: one packet wakes the peer once."""
        http = self._http
        assert isinstance(request.stream, httpx.AsyncByteStream)
        try:
            pending = http.send(
                h11.Request(method=request.method, target=request.url.raw_path, headers=request.headers.raw)
            )
            async for part in request.stream:
                await self._write((pending or b"") + (http.send(h11.Data(data=part)) or b""), seconds)
                pending = b""
            pending = (pending or b"") + (http.send(h11.EndOfMessage()) or b"")
        except h11.LocalProtocolError as error:
            raise httpx.LocalProtocolError(str(error)) from error
        if pending:
            await self._write(pending, seconds)
        trace = request.extensions.get("trace")
        if trace is not None:
            await trace(_SENT, {})

    async def _receive_head(self, seconds: float | None) -> h11.Response:
        """Return the answer's head; what comes before it is only to keep us waiting."""
        while True:
            event = await self._receive(seconds)
            if isinstance(event, h11.Response):
                return event
            if not isinstance(event, h11.InformationalResponse) or event.status_code == _SWITCHING_PROTOCOLS:
                raise httpx.RemoteProtocolError("an answer that nobody has asked for")

    async def _receive(self, seconds: float | None) -> h11.Event | type[h11.PAUSED]:
        http = self._http
        try:
            while True:
                event = http.next_event()
                if event is not h11.NEED_DATA:
                    return event  # type: ignore[return-value] # it is not told from PAUSED
                data = await self._read(seconds)
                if not data and http.their_state is h11.SEND_RESPONSE:
                    raise httpx.RemoteProtocolError("Server disconnected without sending a response.")
                http.receive_data(data)
        except h11.RemoteProtocolError as error:
            raise httpx.RemoteProtocolError(str(error)) from error

    async def _read(self, seconds: float | None) -> bytes:
        """Return what has come, waiting for it; b"" where the peer has ended it."""
        if not self._unread and not self._has_ended:
            self._reader = self._loop.create_future()
            try:
                async with asyncio.timeout(seconds):
                    await self._reader
            except TimeoutError as error:
                raise httpx.ReadTimeout("") from error
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
            raise httpx.ReadError(str(self._failure))
        return b""

    async def _write(self, data: bytes, seconds: float | None) -> None:
        """Write. Returns when little of it is left that the system has not taken."""
        if self._is_lost or self._transport.is_closing():
            raise httpx.WriteError(str(self._failure or ""))
        self._transport.write(data)
        if self._takes_more:
            return
        self._writer = self._loop.create_future()
        try:
            async with asyncio.timeout(seconds):
                await self._writer
        except TimeoutError as error:
            raise httpx.WriteTimeout("") from error
        finally:
            self._writer = None
        if self._is_lost:
            raise httpx.WriteError(str(self._failure or ""))


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
