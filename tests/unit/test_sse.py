from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.providers.sse import EventTooLargeError, ServerSentEvent, SSEDecoder


def _decode(*parts: bytes) -> list[ServerSentEvent]:
    decoder = SSEDecoder()
    events = [event for part in parts for event in decoder.feed(part)]
    return events + decoder.close()


LINES = st.sampled_from(
    [
        b"data: {}",
        b"data:x",
        b"data",
        b"data:  two spaces",
        b"data: \xc3\xa9\xe2\x80\xa8\xff",
        b"event: error",
        b"event",
        b"id: 7",
        b"id: \x00",
        b": keep-alive",
        b":",
        b"retry: 10",
        b"unknown: x",
        b"\xef\xbb\xbfdata: bom",
        b"",
        b"",
    ]
)
ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])
STREAMS = st.lists(st.tuples(LINES, ENDS).map(b"".join), max_size=20).map(b"".join) | st.binary(max_size=100)


@given(STREAMS, st.lists(st.integers(min_value=0, max_value=200), max_size=12))
def test_any_split_gives_the_events_of_the_whole(stream: bytes, cuts: list[int]) -> None:
    bounds = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    parts = [stream[start:end] for start, end in pairwise(bounds)]
    assert _decode(*parts) == _decode(stream)
    assert _decode(*(bytes([byte]) for byte in stream)) == _decode(stream)


@given(STREAMS)
def test_events_are_those_of_the_standard(stream: bytes) -> None:
    """Against the standard's algorithm written out over the whole text, as an oracle."""
    text = stream.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    expected: list[ServerSentEvent] = []
    data: list[bytes] = []
    event = identity = b""
    # A last line without its end, and the missing blank line, count as there: see `close`.
    for line in [*text.split(b"\n"), b""]:
        if line == b"":
            if data:
                decoded = [part.decode("utf-8", "replace") for part in (b"\n".join(data), event, identity)]
                expected.append(
                    ServerSentEvent(data=decoded[0], event=decoded[1] or "message", id=decoded[2])
                )
            data, event = [], b""
            continue
        name, _, value = line.partition(b":")
        value = value[1:] if value[:1] == b" " else value
        if name == b"data":
            data.append(value)
        elif name == b"event":
            event = value
        elif name == b"id" and b"\0" not in value:
            identity = value
    assert _decode(stream) == expected


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_an_event_with_all_its_fields(end: str) -> None:
    lines = [": hello", "event: delta", "id: 4", "data: one", "data: two", "", "data: next", "", ""]
    assert _decode(end.join(lines).encode()) == [
        ServerSentEvent(data="one\ntwo", event="delta", id="4"),
        ServerSentEvent(data="next", event="message", id="4"),
    ]


def test_an_event_is_given_out_with_its_blank_line_and_not_later() -> None:
    decoder = SSEDecoder()
    assert decoder.feed(b"data: x\r\n") == []
    assert decoder.feed(b"\r") == [ServerSentEvent(data="x")]
    assert decoder.feed(b"\ndata: y\n\n") == [ServerSentEvent(data="y")]
    assert decoder.close() == []


def test_what_is_pending_at_the_end_is_given_out() -> None:
    assert _decode(b"data: [DONE]") == [ServerSentEvent(data="[DONE]")]
    assert _decode(b"data: a\ndata: b\n") == [ServerSentEvent(data="a\nb")]
    assert _decode(b"event: x\n") == []


@pytest.mark.parametrize("part", [b"data: " + b"x" * 30, b"data: xxxx\n", b":" + b"c" * 200, b"x"])
def test_an_event_beyond_the_limit_is_refused_and_not_gathered(part: bytes) -> None:
    decoder = SSEDecoder(max_event_bytes=100)

    def feed_all() -> None:
        for _ in range(101):
            decoder.feed(part)

    with pytest.raises(EventTooLargeError):
        feed_all()


def test_the_limit_is_for_one_event_and_not_for_the_stream() -> None:
    decoder = SSEDecoder(max_event_bytes=100)
    for _ in range(100):
        assert len(decoder.feed(b": comment\ndata: " + b"x" * 80 + b"\n\n")) == 1
