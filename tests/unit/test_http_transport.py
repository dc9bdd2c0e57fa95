"""Servers that misbehave: what is ours under httpcore ends each call as httpx itself would, or better."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from gateway.http_client import DirectClient
from gateway.http_transport import PooledTransport
from tests.fixtures.certificates import certificate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    Serve = Callable[["Connection"], Awaitable[None]]

BODY = b'{"a": 1}'
GOOD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
PATIENCE = httpx.Timeout(10)
LIMITS = httpx.Limits(max_connections=4, max_keepalive_connections=4, keepalive_expiry=5)


@dataclass(slots=True)
class Connection:
    """A connection as its server has it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    number: int

    async def request(self) -> bytes:
        """Read one request, whole; b"" where the client has gone."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return b""
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        length = int(lengths[0].partition(b":")[2]) if lengths else 0
        return head + await self.reader.readexactly(length)

    async def say(self, *parts: bytes) -> None:
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()
            await asyncio.sleep(0.01)


@dataclass(slots=True)
class Server:
    """A server on a port of 127.0.0.1, which does on each connection what it is told."""

    serve: Serve
    tls: ssl.SSLContext | None = None
    connections: list[Connection] = field(default_factory=list)
    url: str = ""
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Server]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            connection = Connection(reader, writer, len(self.connections))
            self.connections.append(connection)
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self.serve(connection)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=self.tls)
        scheme = "http" if self.tls is None else "https"
        self.url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}/path"
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)


def ours(tls: ssl.SSLContext | None = None, patience: httpx.Timeout = PATIENCE) -> httpx.AsyncClient:
    return DirectClient(PooledTransport(tls or ssl.create_default_context(), LIMITS), timeout=patience)


def theirs(tls: ssl.SSLContext | None = None, patience: httpx.Timeout = PATIENCE) -> httpx.AsyncClient:
    verify = tls or ssl.create_default_context()
    return httpx.AsyncClient(verify=verify, limits=LIMITS, timeout=patience, trust_env=False)


BOTH = pytest.mark.parametrize("client", [ours, theirs])


def answering(*parts: bytes, close: bool = False) -> Serve:
    async def serve(connection: Connection) -> None:
        while await connection.request():
            await connection.say(*parts)
            if close:
                return

    return serve


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"

ANSWERS: dict[str, tuple[bytes, ...]] = {
    "whole": (GOOD,),
    "by single bytes": tuple(GOOD[i : i + 1] for i in range(len(GOOD))),
    "head and body apart": (GOOD[:-2], GOOD[-2:]),
    "chunks": (CHUNKED + chunked(b"{", b"}"),),
    "chunks cut anywhere": tuple((CHUNKED + chunked(b"{", b"}"))[i : i + 7] for i in range(0, 70, 7)),
    "chunk extensions and trailers": (CHUNKED + b"1;a=b\r\n{\r\n1\r\n}\r\n0\r\nx: y\r\n\r\n",),
    "100 first": (b"HTTP/1.1 100 Continue\r\n\r\n" + GOOD,),
    "100 and early hints first, apart": (
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n",
        GOOD,
    ),
    "length twice, the same": (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\n{}",),
}


@BOTH
@pytest.mark.parametrize("parts", ANSWERS.values(), ids=ANSWERS.keys())
async def test_an_answer_is_read_however_it_is_cut_and_the_connection_kept(
    client: Any, parts: tuple[bytes, ...]
) -> None:
    async with Server(answering(*parts)).running() as server, client() as http:
        for _ in range(3):
            response = await http.post(server.url, content=BODY)
            assert (response.status_code, response.content) == (200, b"{}")
        assert len(server.connections) == 1


ENDINGS: dict[str, tuple[bytes, ...]] = {
    "connection: close": (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}",),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\n\r\n{}",),
    "no length": (b"HTTP/1.1 200 OK\r\n\r\n", b"{}"),
}


@BOTH
@pytest.mark.parametrize("parts", ENDINGS.values(), ids=ENDINGS.keys())
async def test_an_answer_that_ends_with_its_connection_is_whole_and_the_next_has_another(
    client: Any, parts: tuple[bytes, ...]
) -> None:
    async with Server(answering(*parts, close=True)).running() as server, client() as http:
        for _ in range(3):
            assert (await http.post(server.url, content=BODY)).content == b"{}"
        assert len(server.connections) == 3


FAILURES: dict[str, tuple[type[Exception], tuple[bytes, ...]]] = {
    "nothing": (httpx.RemoteProtocolError, ()),
    "half a head": (httpx.RemoteProtocolError, (GOOD[:20],)),
    "a body that is cut": (httpx.RemoteProtocolError, (GOOD[:-1],)),
    "chunks without an end": (httpx.RemoteProtocolError, (CHUNKED + b"2\r\n{}\r\n",)),
    "a chunk that is cut": (httpx.RemoteProtocolError, (CHUNKED + b"9\r\n{}",)),
    "a chunk of no size": (httpx.RemoteProtocolError, (CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n",)),
    "no HTTP": (httpx.RemoteProtocolError, (b"\x16\x03\x01 hello\r\n\r\n",)),
    "a status of no number": (httpx.RemoteProtocolError, (b"HTTP/1.1 abc OK\r\n\r\n",)),
    "two lengths": (
        httpx.RemoteProtocolError,
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{} ",),
    ),
    "a negative length": (httpx.RemoteProtocolError, (b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",)),
    "a head without an end": (
        httpx.RemoteProtocolError,
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 40_000,),
    ),
}


@BOTH
@pytest.mark.parametrize(("kind", "parts"), FAILURES.values(), ids=FAILURES.keys())
async def test_what_is_no_whole_answer_is_an_error_and_spoils_no_other_call(
    client: Any, kind: type[Exception], parts: tuple[bytes, ...]
) -> None:
    async def serve(connection: Connection) -> None:
        if connection.number == 0:
            await answering(*parts, close=True)(connection)
        else:
            await answering(GOOD)(connection)

    async with Server(serve).running() as server, client() as http:
        with pytest.raises(kind):
            await http.post(server.url, content=BODY)
        assert (await http.post(server.url, content=BODY)).content == b"{}"
        assert len(server.connections) == 2


@BOTH
async def test_a_reset_is_an_error_of_reading(client: Any) -> None:
    async def serve(connection: Connection) -> None:
        await connection.request()
        # With something unread the system sends a reset in place of an end.
        connection.writer.get_extra_info("socket").setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")
        connection.writer.transport.abort()

    async with Server(serve).running() as server, client() as http:
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            await http.post(server.url, content=BODY)


@BOTH
@pytest.mark.parametrize("parts", [(), (GOOD[:20],), (GOOD[:-1],), (CHUNKED,)])
async def test_a_silent_server_is_waited_for_so_long_and_its_connection_closed(
    client: Any, parts: tuple[bytes, ...]
) -> None:
    gone = asyncio.Event()

    async def serve(connection: Connection) -> None:
        await connection.request()
        await connection.say(*parts)
        with contextlib.suppress(ConnectionError):
            assert await connection.reader.read() == b""
        gone.set()

    async with Server(serve).running() as server, client(patience=httpx.Timeout(0.1)) as http:
        with pytest.raises(httpx.ReadTimeout):
            await http.post(server.url, content=BODY)
        async with asyncio.timeout(2):
            await gone.wait()


@BOTH
async def test_nobody_there_is_an_error_of_connecting(client: Any) -> None:
    async with Server(answering(GOOD)).running() as server:
        url = server.url
    async with client() as http:
        with pytest.raises(httpx.ConnectError) as refused:
            await http.post(url, content=BODY)
        assert refused.value.request.url == url


@BOTH
@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 64 + ".invalid"])
async def test_no_such_name_is_an_error_of_connecting(client: Any, host: str) -> None:
    async with client() as http:
        with pytest.raises((httpx.ConnectError, httpx.ConnectTimeout, httpx.InvalidURL)):
            await http.post(f"http://{host}/", content=BODY)


@BOTH
async def test_a_connection_that_the_server_has_closed_is_not_used_again(client: Any) -> None:
    closed = asyncio.Event()

    async def serve(connection: Connection) -> None:
        await connection.request()
        await connection.say(GOOD)
        connection.writer.close()
        closed.set()

    async with Server(serve).running() as server, client() as http:
        for number in range(1, 4):
            closed.clear()
            assert (await http.post(server.url, content=BODY)).content == b"{}"
            await closed.wait()
            assert len(server.connections) == number


async def test_an_end_that_the_event_loop_has_not_seen_yet_is_noticed() -> None:
    async def serve(connection: Connection) -> None:
        await connection.request()
        await connection.say(GOOD)
        await connection.reader.read(1)

    async with Server(serve).running() as server, ours() as http:
        await http.post(server.url, content=BODY)
        # Between this and the next call the loop has no turn in which it could be told.
        connected = server.connections[0].writer.get_extra_info("socket")
        connected.shutdown(1)
        assert (await http.post(server.url, content=BODY)).content == b"{}"
        assert len(server.connections) == 2


WRONG = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwrong"


async def test_an_answer_that_nobody_has_asked_for_is_given_to_nobody() -> None:
    told = asyncio.Event()

    async def serve(connection: Connection) -> None:
        while await connection.request():
            await connection.say(GOOD)
            await connection.say(WRONG)
            told.set()

    async with Server(serve).running() as server, ours() as http:
        for number in range(1, 4):
            told.clear()
            assert (await http.post(server.url, content=BODY)).content == b"{}"
            await told.wait()
            await asyncio.sleep(0.02)
            assert len(server.connections) == number


@pytest.mark.parametrize("extra", range(1, len(WRONG) + 1))
async def test_two_answers_in_one_packet_are_never_one_for_the_next_request(extra: int) -> None:
    async with Server(answering(GOOD + WRONG[:extra])).running() as server, ours() as http:
        for number in range(1, 4):
            assert (await http.post(server.url, content=BODY)).content == b"{}"
            assert len(server.connections) == number


async def test_an_answer_before_the_request_was_read_is_given() -> None:
    async def serve(connection: Connection) -> None:
        await connection.reader.readuntil(b"\r\n\r\n")
        await connection.say(b"HTTP/1.1 413 No\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno")
        await asyncio.sleep(0.3)

    async with Server(serve).running() as server, ours() as http:
        response = await http.post(server.url, content=bytes(20_000_000))
        assert (response.status_code, response.content) == (413, b"no")


@BOTH
async def test_a_server_that_does_not_read_is_waited_for_so_long(client: Any) -> None:
    async def serve(_connection: Connection) -> None:
        await asyncio.sleep(5)

    async with Server(serve).running() as server, client(patience=httpx.Timeout(0.2)) as http:
        # An error of writing is not the end: the server may have answered before.
        with pytest.raises((httpx.WriteTimeout, httpx.ReadTimeout)):
            await http.post(server.url, content=bytes(50_000_000))


@BOTH
async def test_large_bodies_arrive_both_ways_past_slow_readers(client: Any) -> None:
    sent = bytes(range(256)) * 20_000
    received: list[bytes] = []

    async def serve(connection: Connection) -> None:
        while request := await connection.request():
            received.append(request.partition(b"\r\n\r\n")[2])
            await connection.say(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(sent), sent)

    async with Server(serve).running() as server, client(patience=httpx.Timeout(5)) as http:
        for _ in range(2):
            request = http.build_request("POST", server.url, content=sent)
            response = await http.send(request, stream=True)
            got = bytearray()
            async for part in response.aiter_bytes():
                got += part
                if len(got) < 1_000_000:
                    await asyncio.sleep(0.001)
            await response.aclose()
            assert bytes(got) == sent
        assert received == [sent, sent]
        assert len(server.connections) == 1


async def test_what_nobody_reads_is_not_taken() -> None:
    taken = 0

    async def serve(connection: Connection) -> None:
        nonlocal taken
        await connection.request()
        connection.writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")
        while True:
            await connection.say(bytes(1_000_000))
            taken += 1_000_000

    async with Server(serve).running() as server, ours() as http:
        response = await http.send(http.build_request("GET", server.url), stream=True)
        await asyncio.sleep(0.5)
        assert taken < 20_000_000
        await response.aclose()


@BOTH
@pytest.mark.parametrize("stage", ["answer", "body"])
async def test_a_call_that_is_cancelled_closes_its_connection(client: Any, stage: str) -> None:
    reached, gone = asyncio.Event(), asyncio.Event()

    async def serve(connection: Connection) -> None:
        await connection.request()
        if connection.number:
            await connection.say(GOOD)
            return
        if stage == "body":
            await connection.say(GOOD[:-1])
        reached.set()
        with contextlib.suppress(ConnectionError):
            assert await connection.reader.read() == b""
        gone.set()

    async with Server(serve).running() as server, client(patience=httpx.Timeout(5)) as http:
        call = asyncio.create_task(http.post(server.url, content=BODY))
        await reached.wait()
        await asyncio.sleep(0.05)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        async with asyncio.timeout(2):
            await gone.wait()
        assert (await http.post(server.url, content=BODY)).content == b"{}"
        assert len(server.connections) == 2


@BOTH
async def test_a_stream_arrives_piece_by_piece_and_closing_it_closes_the_connection(client: Any) -> None:
    go, gone = asyncio.Event(), asyncio.Event()

    async def serve(connection: Connection) -> None:
        await connection.request()
        await connection.say(CHUNKED + b"3\r\none\r\n")
        await go.wait()
        await connection.say(b"3\r\ntwo\r\n")
        with contextlib.suppress(ConnectionError):
            assert await connection.reader.read() == b""
        gone.set()

    async with Server(serve).running() as server, client(patience=httpx.Timeout(5)) as http:
        response = await http.send(http.build_request("POST", server.url, content=BODY), stream=True)
        pieces = response.aiter_bytes()
        assert await anext(pieces) == b"one"
        go.set()
        assert await anext(pieces) == b"two"
        await response.aclose()
        async with asyncio.timeout(2):
            await gone.wait()


async def test_a_body_is_told_as_sent_after_it_was_written_and_not_before() -> None:
    events: list[tuple[str, int]] = []
    server_has = asyncio.Event()

    async def serve(connection: Connection) -> None:
        while await connection.request():
            server_has.set()
            await connection.say(GOOD)

    async def trace(event: str, _details: object) -> None:
        # What was written by then is there by the time that the server has had its turns.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await server_has.wait()
        events.append((event, server_has.is_set()))

    async with Server(serve).running() as server, ours() as http:
        await http.post(server.url, content=BODY, extensions={"trace": trace})
    assert events == [("http11.send_request_body.complete", True)]


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "DELETE"])
async def test_a_request_without_a_body_is_sent(method: str) -> None:
    seen: list[bytes] = []

    async def serve(connection: Connection) -> None:
        while request := await connection.request():
            seen.append(request)
            await connection.say(GOOD[:-2] if request.startswith(b"HEAD") else GOOD)

    async with Server(serve).running() as server, ours() as http:
        for _ in range(2):
            assert (await http.request(method, server.url)).status_code == 200
    assert len(seen) == 2
    assert seen[0].startswith(method.encode() + b" /path HTTP/1.1\r\n")


async def test_requests_are_those_of_httpx() -> None:
    seen: list[bytes] = []

    async def serve(connection: Connection) -> None:
        while request := await connection.request():
            seen.append(request)
            await connection.say(GOOD)

    named = {"Authorization": "Bearer x", "User-Agent": "me", "X-Name": "one, two"}
    async with Server(serve).running() as server:
        for client in (ours, theirs):
            async with client() as http:
                await http.post(server.url, content=BODY, headers=named)
                await http.post(
                    server.url + "?a=b%20c", json={"a": "ü"}, headers=httpx.Headers({"host": "h"})
                )
                await http.get(server.url, params={"q": "a b"})

    def parts(request: bytes) -> tuple[bytes, set[bytes], bytes]:
        head, _, body = request.partition(b"\r\n\r\n")
        line, *headers = head.split(b"\r\n")
        told = {header.partition(b":")[0].lower() + header.partition(b":")[2] for header in headers}
        return line, {each for each in told if not each.startswith(b"accept-encoding")}, body

    assert [parts(each) for each in seen[:3]] == [parts(each) for each in seen[3:]]


async def test_more_calls_than_connections_wait_their_turn() -> None:
    busy, most = 0, 0

    async def serve(connection: Connection) -> None:
        nonlocal busy, most
        while await connection.request():
            busy += 1
            most = max(most, busy)
            await asyncio.sleep(0.01)
            busy -= 1
            await connection.say(GOOD)

    async with Server(serve).running() as server, ours(patience=httpx.Timeout(5)) as http:
        answers = await asyncio.gather(*(http.post(server.url, content=BODY) for _ in range(20)))
        assert {each.content for each in answers} == {b"{}"}
        assert most <= 4
        assert len(server.connections) <= 4


@BOTH
async def test_a_pool_that_stays_full_is_an_error(client: Any) -> None:
    async def serve(connection: Connection) -> None:
        await connection.request()
        await asyncio.sleep(5)

    patience = httpx.Timeout(2, pool=0.1)
    async with Server(serve).running() as server, client(patience=patience) as http:
        calls = [asyncio.create_task(http.post(server.url, content=BODY)) for _ in range(4)]
        while len(server.connections) < 4:  # noqa: ASYNC110 - the server tells of none
            await asyncio.sleep(0.01)
        with pytest.raises(httpx.PoolTimeout):
            await http.post(server.url, content=BODY)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


@pytest.fixture
def contexts(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's TLS, for the name `host.example.com`, and that of a client that trusts it."""
    path = certificate("host.example.com", tmp_path)
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(path)
    return serving, ssl.create_default_context(cafile=path)


NAMED = {"sni_hostname": "host.example.com"}


@BOTH
async def test_tls_connections_are_kept_streamed_and_ended(client: Any, contexts: Any) -> None:
    serving, trusting = contexts
    sent = bytes(range(256)) * 4000

    async def serve(connection: Connection) -> None:
        while request := await connection.request():
            assert request.endswith(sent)
            await connection.say(CHUNKED + chunked(sent, sent))

    async with Server(serve, serving).running() as server, client(trusting, httpx.Timeout(5)) as http:
        for _ in range(3):
            response = await http.post(server.url, content=sent, extensions=NAMED)
            assert response.content == sent * 2
        assert len(server.connections) == 1
        # It is closed behind our back, and noticed.
        server.connections[0].writer.close()
        await asyncio.sleep(0.05)
        assert (await http.post(server.url, content=sent, extensions=NAMED)).content == sent * 2
        assert len(server.connections) == 2


@BOTH
@pytest.mark.parametrize(
    ("parts", "kind"), [((GOOD[:-1],), httpx.RemoteProtocolError), ((), httpx.HTTPError)]
)
async def test_a_tls_connection_that_breaks_is_an_error(
    client: Any, contexts: Any, parts: tuple[bytes, ...], kind: type[Exception]
) -> None:
    async def serve(connection: Connection) -> None:
        await connection.request()
        await connection.say(*parts)
        if not parts:
            connection.writer.transport.abort()

    async with Server(serve, contexts[0]).running() as server, client(contexts[1]) as http:
        with pytest.raises(kind) as broken:
            await http.post(server.url, content=BODY, extensions=NAMED)
        assert isinstance(broken.value, httpx.ReadError | httpx.RemoteProtocolError)


@BOTH
async def test_a_certificate_of_another_name_is_refused_before_a_request_is_sent(
    client: Any, contexts: Any
) -> None:
    seen: list[bytes] = []

    async def serve(connection: Connection) -> None:
        seen.append(await connection.request())

    async with Server(serve, contexts[0]).running() as server, client(contexts[1]) as http:
        with pytest.raises(httpx.ConnectError, match="certificate"):
            await http.post(server.url, content=BODY)
    assert not any(seen)


@BOTH
async def test_a_server_that_speaks_no_tls_is_an_error_of_connecting(client: Any) -> None:
    async def silent(_connection: Connection) -> None:
        await asyncio.sleep(5)

    async def loud(connection: Connection) -> None:
        await connection.say(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    for serve, kind in ((silent, httpx.ConnectTimeout), (loud, httpx.ConnectError)):
        patience = httpx.Timeout(10, connect=0.3)
        async with Server(serve).running() as server, client(patience=patience) as http:
            with pytest.raises(kind):
                await http.post(server.url.replace("http:", "https:"), content=BODY)


async def gone(connection: Connection) -> bool:
    """Whether the client has closed a connection that it has read to its end."""
    try:
        async with asyncio.timeout(0.3):
            return await connection.reader.read(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


async def once(connection: Connection) -> None:
    """Answer one request and leave the rest to the test."""
    await connection.request()
    await connection.say(GOOD)
    await asyncio.sleep(5)


@asynccontextmanager
async def pool(**limits: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = PooledTransport(ssl.create_default_context(), httpx.Limits(**limits))
    async with DirectClient(transport, timeout=PATIENCE) as http:
        yield http


async def test_an_idle_connection_is_closed_in_time_by_a_call_of_another_server() -> None:
    async with (
        Server(once).running() as one,
        Server(once).running() as other,
        pool(keepalive_expiry=0.1) as http,
    ):
        await http.post(one.url, content=BODY)
        assert not await gone(one.connections[0])
        await http.post(other.url, content=BODY)
        assert await gone(one.connections[0])


async def test_no_more_are_kept_than_allowed_and_those_left_longest_go_first() -> None:
    async with contextlib.AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(Server(once).running()) for _ in range(3)]
        http = await stack.enter_async_context(pool(max_keepalive_connections=2))
        for server in servers:
            await http.post(server.url, content=BODY)
        assert [await gone(server.connections[0]) for server in servers] == [True, False, False]
        await http.aclose()
        assert all([await gone(server.connections[0]) for server in servers])
        with pytest.raises(RuntimeError, match="closed"):
            await http.post(servers[0].url, content=BODY)


async def test_a_client_that_is_closed_ends_what_is_under_way() -> None:
    async with Server(answering(GOOD[:-1])).running() as server, pool() as http:
        call = asyncio.create_task(http.post(server.url, content=BODY))
        await asyncio.sleep(0.05)
        await http.aclose()
        with pytest.raises(httpx.TransportError):
            await call


async def test_servers_are_told_apart_by_name_and_port() -> None:
    async with (
        Server(answering(GOOD)).running() as one,
        Server(answering(WRONG)).running() as other,
        pool() as http,
    ):
        for _ in range(2):
            assert (await http.post(one.url, content=BODY)).content == b"{}"
            assert (await http.post(other.url, content=BODY)).content == b"wrong"
            assert (await http.post(one.url.replace("127.0.0.1", "localhost"), content=BODY)).content == b"{}"
    assert len(other.connections) == 1


@pytest.mark.parametrize("left", ["waiting", "unread", "failed", "cancelled"])
async def test_a_call_that_ends_in_any_way_leaves_its_place(left: str) -> None:
    async def serve(connection: Connection) -> None:
        while request := await connection.request():
            if request.endswith(b"fail"):
                return
            if not request.endswith(b"wait"):
                await connection.say(GOOD)

    async with Server(serve).running() as server, pool(max_connections=1) as http:
        for _ in range(5):
            if left == "unread":
                request = http.build_request("POST", server.url, content=BODY)
                await (await http.send(request, stream=True)).aclose()
            elif left == "failed":
                with pytest.raises(httpx.RemoteProtocolError):
                    await http.post(server.url, content=b"fail")
            else:
                calls = [asyncio.create_task(http.post(server.url, content=b"wait")) for _ in range(3)]
                await asyncio.sleep(0.02)
                for call in reversed(calls) if left == "waiting" else calls:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
        assert (await http.post(server.url, content=BODY)).content == b"{}"


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "/path", "http:///path"])
async def test_what_is_no_address_is_refused(url: str) -> None:
    async with pool() as http:
        with pytest.raises((httpx.UnsupportedProtocol, httpx.InvalidURL)):
            await http.post(url, content=BODY)
