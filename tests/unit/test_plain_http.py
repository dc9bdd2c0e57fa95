"""What is read of HTTP without h11 is what h11 reads, of any bytes, however they are cut."""

from __future__ import annotations

import asyncio
import ssl
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import h11
import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.http_transport import _Connection, _plain_request, _State

if TYPE_CHECKING:
    from collections.abc import Sequence

REQUEST = httpx.Request("POST", "http://host/path?a=b", content=b'{"a": 1}')
PLAIN = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ndate: today\r\n\r\nabc"
CHUNKS = b"3\r\nabc\r\n00a\r\n0123456789\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nServer: x/1 (y)\r\n\r\n" + CHUNKS
TLS = ssl.create_default_context()

Read = tuple[int | None, list[tuple[bytes, bytes]], bytes, str, bool]
"""Status, headers and body; how it ended; whether the connection can be used again."""


class Wire(asyncio.Transport):
    """A connection that goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


async def read_by_us(parts: Sequence[bytes], request: httpx.Request) -> Read:
    connection = _Connection(("http", "host", 80), TLS)
    connection.connection_made(Wire())
    connection._state = _State.IDLE

    async def arrive() -> None:
        for part in parts:
            connection.data_received(part)
            for _ in range(3):
                await asyncio.sleep(0)
        connection.eof_received()

    async def read() -> Read:
        status, headers, body = None, [], b""
        try:
            head = await connection.exchange(request)
            status, headers = head.status, head.headers
            while part := await connection.receive_body(request):
                body += part
        except httpx.RemoteProtocolError:
            return status, headers, body, "error", False
        # Whatever else comes is there when it is asked whether it can be kept; only its end is not.
        await arriving
        connection._has_ended = False
        connection.end()
        return status, headers, body, "whole", connection.is_open

    arriving = asyncio.create_task(arrive())
    try:
        return await read()
    finally:
        await arriving


def read_by_h11(content: bytes, request: httpx.Request) -> Read:
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=100 * 1024)
    http.send(h11.Request(method=request.method, target=request.url.raw_path, headers=request.headers.raw))
    http.send(h11.Data(data=request.content))
    http.send(h11.EndOfMessage())
    status, headers, body = None, [], b""
    try:
        http.receive_data(content)
        ended = False
        while True:
            event = http.next_event()
            if isinstance(event, h11.InformationalResponse) and event.status_code == 101:
                return None, [], b"", "error", False
            if isinstance(event, h11.Response):
                status, headers = event.status_code, event.headers.raw_items()
            elif isinstance(event, h11.Data):
                body += event.data
            elif event is h11.NEED_DATA:
                if ended or http.their_state is h11.SEND_RESPONSE:
                    return status, headers, body, "error", False
                http.receive_data(b"")
                ended = True
            elif not isinstance(event, h11.InformationalResponse):
                break
    except h11.RemoteProtocolError:
        return status, headers, body, "error", False
    if status is None:
        return status, headers, body, "error", False
    is_open = http.our_state is http.their_state is h11.DONE and not http.trailing_data[0]
    return status, headers, body, "whole", is_open


def _lines(*choices: bytes) -> st.SearchStrategy[bytes]:
    return st.sampled_from(choices)


STATUS_LINES = _lines(
    b"HTTP/1.1 200 OK", b"HTTP/1.1 200 ", b"HTTP/1.1 200", b"HTTP/1.0 200 OK", b"HTTP/1.1 204 No",
    b"HTTP/1.1 304 N", b"HTTP/1.1 100 Continue", b"HTTP/1.1 101 Switch", b"HTTP/1.1 103 Hints",
    b"HTTP/1.1 500 \xff", b"HTTP/1.1 999 x", b"HTTP/2 200 OK", b"http/1.1 200 OK", b"HTTP/1.1  200 OK",
    b"HTTP/1.1 20 OK", b"HTTP/1.1 200 a\tb",
)  # fmt: skip
FIELDS = _lines(
    b"content-length: 3", b"Content-Length:3", b"content-length: 3 ", b"content-length: 03",
    b"content-length: 4", b"content-length: +3", b"content-length: 3, 3", b"content-length: 0",
    b"content-length : 3", b"content-length:", b"transfer-encoding: chunked", b"Transfer-Encoding: Chunked",
    b"transfer-encoding: gzip, chunked", b"transfer-encoding: identity", b"connection: close",
    b"connection: keep-alive", b"Connection: Keep-Alive, x", b"x: y", b"x:", b"x: \xe9\t ", b"x: a\x00b",
    b"x: a\x0bb", b" folded", b"\tfolded", b": nameless", b"x y: z", b"x", b"x: a\rb", b"x: a\nb: c",
    b"upgrade: websocket", b"",
)  # fmt: skip
BODIES = _lines(
    b"abc", b"", b"abcd", b"3\r\nabc\r\n0\r\n\r\n", b"3;a=b\r\nabc\r\n0\r\n\r\n",
    b"3\r\nabc\r\n0\r\nx: y\r\n\r\n", b"03\r\nabc\r\n1\r\nd\r\n000\r\n\r\n", b"3\r\nabcd\r\n0\r\n\r\n",
    b"3\nabc\n0\n\n", b"-3\r\nabc\r\n0\r\n\r\n", b"3 \r\nabc\r\n0 \r\n\r\n",
    b"0\r\n\r\nHTTP/1.1 200 OK\r\n", b"3\r\nabc\r\n0\r\n\r\n!", b"g\r\n", b"fffffffffffffffff\r\n",
    b"3\r\nab", b"3\r\nabc\r", b"3\r\nabc\r\n0\r\n", b"\r\n", b"3\r\nabc\r\n\r\n0\r\n\r\n",
)  # fmt: skip
ENDS = _lines(b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\n")


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """An answer made of pieces that are right, odd and wrong."""
    if draw(st.booleans()):
        content = draw(_lines(PLAIN, CHUNKED + draw(BODIES)))
    else:
        lines = [draw(STATUS_LINES), *draw(st.lists(FIELDS, max_size=4))]
        content = b"".join(line + draw(ENDS) for line in lines) + draw(ENDS) + draw(BODIES)
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(content)))
        taken = draw(st.integers(0, 2))
        content = content[:at] + draw(st.binary(max_size=2)) + content[at + taken :]
    return draw(_lines(b"", b"HTTP/1.1 100 Continue\r\n\r\n")) + content


@st.composite
def cut(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    content = draw(answers())
    _, parts = whole(content, *sorted(draw(st.sets(st.integers(0, len(content)), max_size=5))))
    return content, [part for part in parts if part]


def whole(content: bytes, *places: int) -> tuple[bytes, list[bytes]]:
    return content, [content[start:end] for start, end in pairwise([0, *places, len(content)])]


@settings(max_examples=400, deadline=None)
@given(arrived=cut(), method=st.sampled_from(["POST", "POST", "POST", "HEAD"]))
@example(whole(PLAIN), "POST")
@example(whole(CHUNKED + b"0\r\n\r\n", 70, 90), "POST")
@example(whole(CHUNKED + b"1;a=b\r\nx\r\n0\r\na: b\r\n\r\n", len(CHUNKED)), "POST")
@example(whole(CHUNKED + b"3\r\nabcde0\r\n\r\n"), "POST")
@example(whole(PLAIN.replace(b"date: today", b"content-length: 2")), "POST")
@example(whole(PLAIN.replace(b"date: today", b"transfer-encoding: chunked")), "POST")
@example(whole(PLAIN.replace(b"\r\n", b"\n"), 20), "POST")
@example(whole(PLAIN.replace(b"200", b"204")), "POST")
async def test_any_bytes_are_read_as_h11_reads_them(arrived: tuple[bytes, list[bytes]], method: str) -> None:
    content, parts = arrived
    request = httpx.Request(method, REQUEST.url, content=REQUEST.content)
    status, headers, *rest = await read_by_us(parts, request)
    # h11 writes the values that it goes by in lower case.
    by_us = status, [(name, value.lower()) for name, value in headers], *rest
    status, headers, *rest = read_by_h11(content, request)
    assert by_us == (status, [(name, value.lower()) for name, value in headers], *rest)


@pytest.mark.parametrize("content", [PLAIN, CHUNKED + b"0\r\n\r\n"], ids=["length", "chunked"])
async def test_what_is_plain_is_read_without_h11(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    def fail(*_arguments: object, **_named: object) -> None:
        raise AssertionError("h11 was asked")

    monkeypatch.setattr(h11, "Connection", fail)
    for step in (1, 7, len(content)):
        parts = [content[at : at + step] for at in range(0, len(content), step)]
        *_, ended, is_open = await read_by_us(parts, REQUEST)
        assert (ended, is_open) == ("whole", True)


NAMES = st.sampled_from(
    ["x", "Host", "content-length", "transfer-encoding", "connection", "expect", "é", "a b", ""]
)
VALUES = st.one_of(
    st.sampled_from(
        ["", "8", "9", "chunked", "close", "keep-alive", " a", "a ", "a\tb", "a\r\nb: c", "a\nb", "a\0", "é"]
    ),
    st.text(st.characters(max_codepoint=255), max_size=4),
)


@settings(max_examples=400)
@given(
    named=st.lists(st.tuples(NAMES, VALUES), max_size=3),
    method=st.sampled_from(["POST", "GET", "PO ST", "P\r\n", ""]),
    content=st.sampled_from([b"", b'{"a": 1}']),
    with_host=st.booleans(),
)
@example(named=[("x", "a\r\nb: c")], method="POST", content=b"", with_host=True)
@example(named=[("x\r\nb", "c")], method="POST", content=b"", with_host=True)
@example(named=[("content-length", "9")], method="POST", content=b'{"a": 1}', with_host=True)
def test_what_is_written_without_h11_is_what_h11_writes(
    named: list[tuple[str, str]], method: str, content: bytes, with_host: bool
) -> None:
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in named]
    headers = [(b"Host", b"host")] * with_host + raw
    request = httpx.Request(method, REQUEST.url, headers=headers, stream=httpx.ByteStream(content))
    written = _plain_request(request)
    if written is not None:
        http = h11.Connection(h11.CLIENT)
        event = h11.Request(method=method, target=request.url.raw_path, headers=request.headers.raw)
        by_h11 = [http.send(event), http.send(h11.Data(data=content)), http.send(h11.EndOfMessage())]
        assert sorted(written.split(b"\r\n")) == sorted(
            b"".join(each or b"" for each in by_h11).split(b"\r\n")
        )
        assert http.our_state is h11.DONE


def test_an_usual_request_is_written_without_h11() -> None:
    assert _plain_request(REQUEST) == (
        b"POST /path?a=b HTTP/1.1\r\nHost: host\r\nContent-Length: 8\r\n\r\n" + b'{"a": 1}'
    )
