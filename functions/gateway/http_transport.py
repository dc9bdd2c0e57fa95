"""Connections to the database and to providers, on the event loop itself.

The connection and the pool are ours: httpcore's, with anyio under them, took half of the CPU of a chat
request, sent each request in two packets, and gave what a server sent beyond its answer to the next request
as its answer.

HTTP/1.1 in its plain form, as nearly every server speaks it, is read and written here: with h11 a call took
0.26 ms, of which this leaves a tenth. Whatever is not of that form, the rest of a body included, is handed to
h11, which is the judge of what is odd and what is wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import re
import select
from typing import TYPE_CHECKING, NamedTuple

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
_BODILESS = frozenset({204, 304})
_CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
_LINE_END = len(b"\r\n")
_ENDED = "Server disconnected without sending a response."

# RFC 9110, 5.1 and 5.5. No class overlaps what follows it, so that no text takes more than one pass.
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_PLAIN_REQUEST = re.compile(
    rb"%b [!-~]+ HTTP/1\.1\r\n(?:%b: (?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?\r\n)+\r\n"
    % (_TOKEN, _TOKEN)
)
_PLAIN_HEAD = re.compile(rb"HTTP/1\.1 ([2-5][0-9]{2}) ([ -~]*)\r\n(?:%b:[\t -~\x80-\xff]*\r\n)*\r\n" % _TOKEN)
_FIELD = re.compile(rb"([^:\r\n]+):[\t ]*([^\r\n]*)\r\n")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})\r\n")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_PART_OF_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{0,15}\r?")

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
        if self._turn is not None:
            await self._wait_for_turn(self._turn, request)
        connection = self._take(origin)
        self._busy.add(connection)
        try:
            head = await connection.exchange(request)
        except BaseException:
            self._give_back(connection)
            raise
        return _Response(head, _Body(self, connection, request))

    async def _wait_for_turn(self, turn: asyncio.Semaphore, request: httpx.Request) -> None:
        if not turn.locked():
            await turn.acquire()
            return
        try:
            async with asyncio.timeout(request.extensions.get("timeout", {}).get("pool")):
                await turn.acquire()
        except TimeoutError as error:
            raise httpx.PoolTimeout("no connection was free", request=request) from error

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


class _Response(httpx.Response):
    """A response whose body passes as it arrives. httpx has four generators to a part, which cost as much.

    A body with a content-encoding is decoded by them.
    """

    def __init__(self, head: _Head, body: _Body) -> None:
        super().__init__(
            head.status,
            headers=head.headers,
            stream=body,
            extensions={"http_version": head.version, "reason_phrase": head.reason},
        )
        self._body = body
        self._is_plain = "content-encoding" not in self.headers

    async def aread(self) -> bytes:
        if not self._is_plain or self.is_stream_consumed or self.is_closed:
            return await super().aread()
        self.is_stream_consumed = True
        parts: list[bytes] = []
        while part := await self._body.read():
            parts.append(part)
        self._content = b"".join(parts)
        await self.aclose()
        return self._content

    async def aiter_bytes(self, chunk_size: int | None = None) -> AsyncIterator[bytes]:
        if not self._is_plain or chunk_size is not None or self.is_stream_consumed or self.is_closed:
            async for part in super().aiter_bytes(chunk_size):
                yield part
            return
        self.is_stream_consumed = True
        while part := await self._body.read():
            yield part
        await self.aclose()


class _Body(httpx.AsyncByteStream):
    """The body of a response, as it arrives."""

    def __init__(self, pool: PooledTransport, connection: _Connection, request: httpx.Request) -> None:
        self._pool = pool
        self._connection = connection
        self._request = request
        self._is_closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while part := await self.read():
            yield part

    async def read(self) -> bytes:
        """Return what there is, waiting for some of it; b"" at the end. Closes where that fails."""
        if self._is_closed:
            raise httpx.ReadError("the response has been closed", request=self._request)
        try:
            return await self._connection.receive_body(self._request)
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._pool.end(self._connection)


def _origin(url: httpx.URL) -> _Origin:
    scheme, host = url.scheme, url.raw_host
    if scheme not in _PORTS or not host:
        raise httpx.UnsupportedProtocol(f"no HTTP goes to {scheme!r}")
    return scheme, host.decode("ascii"), url.port or _PORTS[scheme]


class _Head(NamedTuple):
    """The head of an answer."""

    status: int
    headers: list[tuple[bytes, bytes]]
    version: bytes
    reason: bytes


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
        self._unread = bytearray()
        self._is_paused = False
        self._has_ended = False
        """Whether the peer has said its last word."""
        self._is_lost = False
        self._failure: Exception | None = None
        self._takes_more = True
        self._reader: asyncio.Future[bool] | None = None
        self._writer: asyncio.Future[bool] | None = None
        self._readable: select.poll | None = None

        # Of the request at hand and of its answer.
        self._http: h11.Connection | None = None
        """What has the rest of it, where that is not plain."""
        self._is_sent = False
        self._is_whole = False
        """Whether the answer has come to its end."""
        self._is_chunked = False
        self._rest = 0
        """Bytes that are still to come: of the body, or of its current chunk with the line's end after it."""

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

    async def exchange(self, request: httpx.Request) -> _Head:
        """Send a request; return the head of its response. Closes where that fails."""
        patience = request.extensions.get("timeout", {})
        is_new = self._state is _State.NEW
        self._state = _State.ACTIVE
        self._http = None
        self._is_sent = self._is_whole = False
        try:
            if is_new:
                await self._connect(request, patience.get("connect"))
            # A server may answer and close before it has read the whole request.
            with contextlib.suppress(httpx.WriteError):
                await self._send(request, patience.get("write"))
            return await self._receive_head(request, patience.get("read"))
        except httpx.TransportError as error:
            self.close()
            error.request = request
            raise
        except BaseException:
            self.close()
            raise

    async def receive_body(self, request: httpx.Request) -> bytes:
        """Return what there is of the response's body, waiting for some of it; b"" at its end."""
        seconds = request.extensions.get("timeout", {}).get("read")
        try:
            while self._http is None:
                if data := self._take_body(request):
                    return data
                if self._is_whole:
                    return b""
                await self._wait_for_more(seconds, "The connection was closed before the body was whole.")
            event = await self._receive(self._http, seconds)
        except httpx.TransportError as error:
            error.request = request
            raise
        return bytes(event.data) if isinstance(event, h11.Data) else b""

    def end(self) -> None:
        """Be ready for the next request, or close where this one's answer is not whole or is not all."""
        http = self._http
        if http is None:
            is_whole = self._is_sent and self._is_whole
        else:
            is_whole = http.our_state is http.their_state is h11.DONE and not http.trailing_data[0]
        # What follows an answer unasked would be taken for the next one's.
        if not is_whole or self._unread or self._has_ended:
            self.close()
        elif self._state is _State.ACTIVE:
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

    # A request goes out.

    async def _send(self, request: httpx.Request, seconds: float | None) -> None:
        """Write the whole request. Its head goes with its body: one packet wakes the peer once."""
        plain = _plain_request(request)
        if plain is None:
            self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MOST_HEAD_BYTES)
            await self._send_by(self._http, request, seconds)
        else:
            await self._write(plain, seconds)
        self._is_sent = True
        trace = request.extensions.get("trace")
        if trace is not None:
            await trace(_SENT, {})

    async def _send_by(self, http: h11.Connection, request: httpx.Request, seconds: float | None) -> None:
        assert isinstance(request.stream, httpx.AsyncByteStream)
        try:
            pending = http.send(_request_event(request))
            async for part in request.stream:
                await self._write((pending or b"") + (http.send(h11.Data(data=part)) or b""), seconds)
                pending = b""
            pending = (pending or b"") + (http.send(h11.EndOfMessage()) or b"")
        except h11.LocalProtocolError as error:
            raise httpx.LocalProtocolError(str(error)) from error
        if pending:
            await self._write(pending, seconds)

    async def _write(self, data: bytes, seconds: float | None) -> None:
        """Write. Returns when little of it is left that the system has not taken."""
        if self._is_lost or self._transport.is_closing():
            raise httpx.WriteError(str(self._failure or ""))
        self._transport.write(data)
        if self._takes_more:
            return
        self._writer = self._loop.create_future()
        try:
            if not await self._in_time(self._writer, seconds):
                raise httpx.WriteTimeout("")
        finally:
            self._writer = None
        if self._is_lost:
            raise httpx.WriteError(str(self._failure or ""))

    # An answer comes in.

    async def _receive_head(self, request: httpx.Request, seconds: float | None) -> _Head:
        while self._http is None:
            head = self._take_head(request)
            if head is not None:
                return head
            await self._wait_for_more(seconds, _ENDED)
        while True:
            # What comes before the answer is only to keep us waiting.
            event = await self._receive(self._http, seconds)
            if isinstance(event, h11.Response):
                return _Head(
                    event.status_code, event.headers.raw_items(), b"HTTP/" + event.http_version, event.reason
                )
            if not isinstance(event, h11.InformationalResponse) or event.status_code == _SWITCHING_PROTOCOLS:
                raise httpx.RemoteProtocolError("an answer that nobody has asked for")

    def _take_head(self, request: httpx.Request) -> _Head | None:
        """Return the head if it is there and plain. One that is not, and never will be, is handed over."""
        unread = self._unread
        end = unread.find(b"\r\n\r\n") + 4
        if end < 4:  # noqa: PLR2004 - it was not found
            if len(unread) > _MOST_HEAD_BYTES or unread.count(b"\n") > unread.count(b"\r\n"):
                self._hand_over(request)
            return None
        found = _PLAIN_HEAD.fullmatch(unread, 0, end) if end <= _MOST_HEAD_BYTES else None
        if found is None:
            self._hand_over(request)
            return None
        status, reason = int(found[1]), found[2]
        headers = [
            (name, value.rstrip(b"\t ")) for name, value in _FIELD.findall(unread, found.end(2) + 2, end)
        ]
        framing = _framing(headers)
        if framing is None or status in _BODILESS or request.method in {"HEAD", "CONNECT"}:
            self._hand_over(request)
            return None
        self._is_chunked, self._rest = framing
        self._is_whole = not self._is_chunked and self._rest == 0
        del unread[:end]
        return _Head(status, headers, b"HTTP/1.1", reason)

    def _take_body(self, request: httpx.Request) -> bytes:
        """Return what there is of the body. Raises httpx.RemoteProtocolError."""
        if self._is_chunked:
            data = self._take_chunks(request)
        else:
            data = (
                bytes(self._unread) if len(self._unread) <= self._rest else bytes(self._unread[: self._rest])
            )
            del self._unread[: len(data)]
            self._rest -= len(data)
            self._is_whole = self._rest == 0
        self._read_on()
        return data

    def _take_chunks(self, request: httpx.Request) -> bytes:
        """Return the data of the chunks that are there. What is odd between two of them is handed over."""
        unread = self._unread
        parts: list[bytes] = []
        at = 0
        passed: int | None = 0
        while not self._is_whole:
            if self._rest > _LINE_END:
                part = bytes(unread[at : at + self._rest - _LINE_END])
                parts.append(part)
                at += len(part)
                self._rest -= len(part)
                if self._rest > _LINE_END:
                    break
            passed = self._pass_line(at)
            if passed is None or passed == at:
                break
            at = passed
        del unread[:at]
        # What came before it is given first.
        if passed is None and not parts:
            if self._rest:
                raise httpx.RemoteProtocolError("a chunk that is longer than it was said to be")
            self._hand_over(request, _CHUNKED)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _pass_line(self, at: int) -> int | None:
        """Return where the line's end after a chunk's data ends, or the next chunk's first line.

        `at` itself where that is not all there, None where it is odd.
        """
        unread = self._unread
        if self._rest:
            if len(unread) < at + _LINE_END:
                return at
            if not unread.startswith(b"\r\n", at):
                return None
            self._rest = 0
            return at + _LINE_END
        return self._pass_size(at)

    def _pass_size(self, at: int) -> int | None:
        unread = self._unread
        size = _CHUNK_SIZE.match(unread, at)
        if size is None:
            return None if _PART_OF_CHUNK_SIZE.fullmatch(unread, at) is None else at
        if length := int(size[1], 16):
            self._rest = length + _LINE_END
            return size.end()
        if unread.startswith(b"\r\n", size.end()):
            self._is_whole = True
            return size.end() + _LINE_END
        return at if bytes(unread[size.end() :]) in {b"", b"\r"} else None

    def _hand_over(self, request: httpx.Request, head: bytes = b"") -> None:
        """Let h11 read on: from the answer's head, or as if it had read `head` by now."""
        http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MOST_HEAD_BYTES)
        http.send(_request_event(request))
        if self._is_sent:
            assert isinstance(request.stream, httpx.ByteStream)
            http.send(h11.Data(data=b"".join(request.stream)))
            http.send(h11.EndOfMessage())
        if head:
            http.receive_data(head)
            http.next_event()
        self._http = http

    async def _receive(self, http: h11.Connection, seconds: float | None) -> h11.Event | type[h11.PAUSED]:
        try:
            while True:
                event = http.next_event()
                if event is not h11.NEED_DATA:
                    return event  # type: ignore[return-value] # it is not told from PAUSED
                while not self._unread and await self._arrives(seconds):
                    pass
                data = bytes(self._unread)
                self._unread.clear()
                self._read_on()
                if not data and http.their_state is h11.SEND_RESPONSE:
                    raise httpx.RemoteProtocolError(_ENDED)
                http.receive_data(data)
        except h11.RemoteProtocolError as error:
            raise httpx.RemoteProtocolError(str(error)) from error

    async def _wait_for_more(self, seconds: float | None, ended: str) -> None:
        """Wait until more has come, unless h11 has taken over. Raises RemoteProtocolError at the end."""
        if self._http is None and not await self._arrives(seconds):
            raise httpx.RemoteProtocolError(ended)

    async def _arrives(self, seconds: float | None) -> bool:
        """Wait until more has come; return False where the peer has ended it."""
        if self._has_ended:
            if self._failure is not None:
                raise httpx.ReadError(str(self._failure))
            return False
        self._reader = self._loop.create_future()
        try:
            if not await self._in_time(self._reader, seconds):
                raise httpx.ReadTimeout("")
        finally:
            self._reader = None
        return True

    def _read_on(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()

    async def _in_time(self, waiter: asyncio.Future[bool], seconds: float | None) -> bool:
        """Wait until it is woken; return False where it was not in so many seconds.

        asyncio.timeout does more, at three times the cost.
        """
        if seconds is None:
            return await waiter
        timer = self._loop.call_later(seconds, _expire, waiter)
        try:
            return await waiter
        finally:
            timer.cancel()


def _wake(waiter: asyncio.Future[bool] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(True)


def _expire(waiter: asyncio.Future[bool]) -> None:
    if not waiter.done():
        waiter.set_result(False)


def _request_event(request: httpx.Request) -> h11.Request:
    return h11.Request(method=request.method, target=request.url.raw_path, headers=request.headers.raw)


def _plain_request(request: httpx.Request) -> bytes | None:
    """Return the whole request as it is sent; None where h11 has to see to it."""
    if not isinstance(request.stream, httpx.ByteStream):
        return None
    body = b"".join(request.stream)
    headers = request.headers.raw
    told = {name.lower(): value for name, value in headers}
    if (
        len(told) < len(headers)
        or b"host" not in told
        or b"transfer-encoding" in told
        or told.get(b"connection", b"keep-alive") != b"keep-alive"
        or told.get(b"content-length", b"0") != b"%d" % len(body)
    ):
        return None
    lines = [b"%b: %b\r\n" % pair for pair in headers]
    head = b"%b %b HTTP/1.1\r\n%b\r\n" % (request.method.encode(), request.url.raw_path, b"".join(lines))
    # The count tells a line break within a name or a value, which would begin another header.
    if head.count(b"\n") != len(lines) + 2 or _PLAIN_REQUEST.fullmatch(head) is None:
        return None
    return head + body


def _framing(headers: list[tuple[bytes, bytes]]) -> tuple[bool, int] | None:
    """Return whether the body is chunked, and else its length; None where that takes more than one header."""
    is_chunked = False
    length: int | None = None
    for name, value in headers:
        match name.lower():
            case b"content-length" if length is None and _LENGTH.fullmatch(value):
                length = int(value)
            case b"transfer-encoding" if not is_chunked and value.lower() == b"chunked":
                is_chunked = True
            case b"connection" if value.lower() == b"keep-alive":
                pass
            case b"content-length" | b"transfer-encoding" | b"connection":
                return None
    if is_chunked == (length is not None):
        return None
    return is_chunked, length or 0
