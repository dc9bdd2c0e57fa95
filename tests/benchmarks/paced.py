"""A provider that streams a chunk at a time, as models do, and writes into each when it was sent.

Run as `python -m tests.benchmarks.paced PORT`. It is asked by a model's name: `paced-120-25-25` is a stream
of 120 chunks with 25 ms between them, `paced-33-500-1000` one of 33 with a pause drawn anew each time. The
first chunk comes at once. The clock is CLOCK_MONOTONIC, which all processes of a machine share: a client that
reads it as well knows how long each chunk was under way.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra.local.processes import HOST

if TYPE_CHECKING:
    from collections.abc import Iterator

PATH = "/v1/chat/completions"
PROMPT_TOKENS = 66
STAMP = re.compile(rb'"content": ?"(\d+\.\d{6}) "')
"""When a chunk was sent, in seconds of the monotonic clock."""

_MODEL = re.compile(r"paced-(\d+)-(\d+)-(\d+)")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_WELL = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_UNKNOWN = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Pace:
    """How many chunks, and between which bounds each next one is waited for, in milliseconds."""

    chunks: int
    least_ms: int
    most_ms: int

    @property
    def model(self) -> str:
        return f"paced-{self.chunks}-{self.least_ms}-{self.most_ms}"

    @property
    def seconds(self) -> float:
        """Of a stream, on average."""
        return (self.chunks - 1) * (self.least_ms + self.most_ms) / 2000


def pace_of(model: object) -> Pace | None:
    """Return what a model's name asks for; None where it is none of ours."""
    match = _MODEL.fullmatch(model) if isinstance(model, str) else None
    return Pace(*map(int, match.groups())) if match else None


def request_body(pace: Pace) -> bytes:
    """Return a request for a stream of this pace."""
    return json.dumps(
        {
            "model": pace.model,
            "messages": [{"role": "user", "content": "Tell me the time, over and over."}],
            "max_tokens": pace.chunks,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()


def _event(
    model: str, delta: dict[str, str] | None, *, reason: str | None = None, usage: Any = None
) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
    chunk = {
        "id": "chatcmpl-paced",
        "object": "chat.completion.chunk",
        "created": 1_790_000_000,
        "model": model,
        "choices": [] if delta is None else [choice],
        "usage": usage,
    }
    return f"data: {json.dumps(chunk)}\n\n".encode()


def _framed(content: bytes) -> bytes:
    return f"{len(content):x}\r\n".encode() + content + b"\r\n"


class _Connection(asyncio.Protocol):
    """One connection: requests one after the other, each answered by a stream."""

    def __init__(self) -> None:
        self._received = b""
        self._transport: asyncio.Transport | None = None
        self._streaming: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, rest = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        needed = int(length[1]) if length else 0
        if not end or len(rest) < needed:
            return
        self._received = rest[needed:]
        self._answer(head.split(b" ", 1)[0], rest[:needed])

    def connection_lost(self, _error: Exception | None) -> None:
        if self._streaming is not None:
            self._streaming.cancel()

    def _answer(self, method: bytes, body: bytes) -> None:
        assert self._transport is not None
        pace = pace_of(json.loads(body).get("model")) if method == b"POST" else None
        if pace is None:
            self._transport.write(_WELL if method == b"GET" else _UNKNOWN)
            self._transport.close()
            return
        self._transport.write(_HEAD + _framed(_event(pace.model, {"role": "assistant", "content": ""})))
        self._go_on(pace, self._pauses(pace), _event(pace.model, {"content": "%s "}))

    @staticmethod
    def _pauses(pace: Pace) -> Iterator[float]:
        for _ in range(pace.chunks - 1):
            yield random.uniform(pace.least_ms, pace.most_ms) / 1000  # noqa: S311 - a pause is no secret

    def _go_on(self, pace: Pace, pauses: Iterator[float], chunk: bytes) -> None:
        """Send the next chunk, and wait for the one after it or end."""
        assert self._transport is not None
        if self._transport.is_closing():
            return
        content = _framed(chunk.replace(b"%s", f"{time.monotonic():.6f}".encode()))
        pause = next(pauses, None)
        if pause is not None:
            self._transport.write(content)
            self._streaming = asyncio.get_running_loop().call_later(pause, self._go_on, pace, pauses, chunk)
            return
        usage = {
            "prompt_tokens": PROMPT_TOKENS,
            "completion_tokens": pace.chunks,
            "total_tokens": PROMPT_TOKENS + pace.chunks,
        }
        last = _event(pace.model, {}, reason="stop") + _event(pace.model, None, usage=usage)
        self._transport.write(content + _framed(last + b"data: [DONE]\n\n") + b"0\r\n\r\n")


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Connection, HOST, port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
