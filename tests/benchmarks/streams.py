"""Many streams at once from the paced provider: what a chunk costs, and how late each one comes."""

from __future__ import annotations

import asyncio
import resource
import time
from dataclasses import dataclass, field
from statistics import quantiles
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tests.benchmarks import cpu, memory
from tests.benchmarks.load import LoadError
from tests.benchmarks.paced import STAMP, Pace, request_body

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.benchmarks.load import Endpoint

# A chunk's CPU is the difference between these: what a stream costs beside its chunks is in both.
SHORT = Pace(8, 25, 25)
LONG = Pace(120, 25, 25)
AT_ONCE = 24
SLOW = Pace(33, 500, 1000)
SLOW_AT_ONCE = 500
SLOW_SPREAD_SECONDS = 10.0
"""Over which they begin: a crowd at a gate would measure the gate."""
PACES = (SHORT, LONG, SLOW)

_TIMEOUT_SECONDS = 60.0
_HTTP_OK = b"HTTP/1.1 200 "
_END = b"data: [DONE]"


@dataclass(frozen=True, slots=True)
class PacedStreams:
    """What so many streams at once came to. CPU is in milliseconds a stream, by process."""

    streams: int
    chunks: int
    """Of each stream."""
    first_byte_p50_ms: float
    first_byte_p99_ms: float
    lag_p50_ms: float
    """From when the provider sent a chunk to when the client had it."""
    lag_p99_ms: float
    lag_max_ms: float
    seconds: float
    """From the first stream's start to the last one's end."""
    cpu_ms: Mapping[str, float]
    memory_kib: Mapping[str, float]
    """What each stream has added to the proportional memory while all were open; empty where none saw it."""


@dataclass(slots=True)
class _Seen:
    """What the clients saw, in seconds."""

    wanted: int
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    """All have begun."""
    first_bytes: list[float] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    ended: int = 0


def run_paced(
    endpoint: Endpoint,
    pace: Pace,
    *,
    count: int,
    watched: Mapping[str, cpu.Watched],
    spread_seconds: float = 0.0,
) -> PacedStreams:
    """Read so many streams at once, which begin over `spread_seconds`.

    Raises LoadError where one isn't whole, or where they were to be open together and weren't.
    """
    seen = _Seen(count)
    before_bytes, before = _memory(watched), cpu.seconds(watched)
    began = time.monotonic()
    open_bytes = asyncio.run(_run(endpoint, pace, count, spread_seconds, watched, seen))
    seconds = time.monotonic() - began
    after = cpu.seconds(watched)
    lags, firsts = _percentiles(seen.lags), _percentiles(seen.first_bytes)
    return PacedStreams(
        count,
        pace.chunks,
        firsts[0] * 1000,
        firsts[1] * 1000,
        lags[0] * 1000,
        lags[1] * 1000,
        max(seen.lags) * 1000,
        seconds,
        {name: (after[name] - used) * 1000 / count for name, used in before.items()},
        {name: (held - before_bytes[name]) / count / 1024 for name, held in open_bytes.items()},
    )


def allow_open_files(wanted: int) -> None:
    """Let this process, and those that it starts, have so many open files, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


def _percentiles(values: list[float]) -> tuple[float, float]:
    cuts = quantiles(values, n=100, method="inclusive")
    return cuts[49], cuts[98]


def _memory(watched: Mapping[str, cpu.Watched]) -> dict[str, int]:
    return {
        name: (memory.of_tree(each.pid) if each.with_children else memory.of(each.pid)).proportional
        for name, each in watched.items()
    }


async def _run(  # noqa: PLR0917 - one call
    endpoint: Endpoint,
    pace: Pace,
    count: int,
    spread_seconds: float,
    watched: Mapping[str, cpu.Watched],
    seen: _Seen,
) -> dict[str, int]:
    """Read the streams; return what the processes held while all were open, where they were to be so."""
    gap = spread_seconds / count
    open_bytes: dict[str, int] = {}

    async def one(number: int) -> None:
        await asyncio.sleep(number * gap)
        await _read(endpoint, pace, seen)

    async def look() -> None:
        """Look once in the midst: all have begun, none has ended."""
        await seen.opened.wait()
        open_bytes.update(await asyncio.to_thread(_memory, watched))
        if seen.ended:
            raise LoadError(f"{seen.ended} of {count} streams had ended before all were looked at")

    try:
        async with (
            asyncio.timeout(spread_seconds + pace.seconds + _TIMEOUT_SECONDS),
            asyncio.TaskGroup() as group,
        ):
            for number in range(count):
                group.create_task(one(number))
            if spread_seconds:
                group.create_task(look())
    except* LoadError as errors:
        raise LoadError(str(errors.exceptions[0])) from errors
    except* (OSError, EOFError, ValueError) as errors:
        raise LoadError(f"a stream broke: {errors.exceptions[0]!r}") from errors
    return open_bytes


async def _read(endpoint: Endpoint, pace: Pace, seen: _Seen) -> None:
    """Read one stream to its end. Raises LoadError, OSError, EOFError or ValueError where it has none."""
    parts = urlsplit(endpoint.url)
    body = request_body(pace)
    headers = {
        "host": parts.netloc,
        **endpoint.headers,
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    began = time.monotonic()
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(f"POST {parts.path} HTTP/1.1\r\n{head}\r\n".encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        if not answer.startswith(_HTTP_OK) or b"chunked" not in answer.lower():
            raise LoadError(f"no stream: {(answer + await reader.read(300))!r}")
        waiting, chunks, done, first = b"", 0, False, True
        while size := int((await reader.readline()).partition(b";")[0], 16):
            waiting += await reader.readexactly(size)
            now = time.monotonic()
            if first:
                seen.first_bytes.append(now - began)
                first = False
                if len(seen.first_bytes) == seen.wanted:
                    seen.opened.set()
            await reader.readexactly(2)
            # An event may come in pieces: what has no end yet waits for it.
            whole, end, waiting = waiting.rpartition(b"\n\n")
            sent = [float(stamp) for stamp in STAMP.findall(whole + end)]
            chunks += len(sent)
            seen.lags.extend(now - each for each in sent)
            done = done or _END in whole + end
        if chunks != pace.chunks or not done:
            raise LoadError(f"a stream had {chunks} of {pace.chunks} chunks{'' if done else ' and no end'}")
        seen.ended += 1
    finally:
        writer.close()
