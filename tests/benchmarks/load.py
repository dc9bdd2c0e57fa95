"""One run of wrk, and one of streams read one after the other."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tests.benchmarks import cpu, fixed_answer

if TYPE_CHECKING:
    from collections.abc import Mapping

_SCRIPT = Path(__file__).with_name("wrk.lua")
_TIMEOUT_SECONDS = 10
_HTTP_OK = 200


class LoadError(RuntimeError):
    """A run that must not be counted: an answer was wrong, an error, or not there."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the plain request goes, or the streamed one, and how it says who sends it."""

    url: str
    headers: Mapping[str, str] = field(repr=False)
    stream: bool
    keys: tuple[str, ...] = field(default=(), repr=False)
    """Whose requests take turns, where they are not all of the one key of the headers."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a closed loop of `connections` came to. CPU is in milliseconds a request, by process."""

    connections: int
    requests: int
    requests_per_second: float
    p50_ms: float
    p99_ms: float
    cpu_ms: Mapping[str, float]


def run_wrk(
    endpoint: Endpoint, *, connections: int, seconds: int, watched: Mapping[str, cpu.Watched]
) -> Load:
    """Load `endpoint` with its request. Raises LoadError for anything but an answer of 2xx."""
    headers = _headers(endpoint)
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "BENCH_BODY": fixed_answer.request_body(stream=endpoint.stream).decode(),
        "BENCH_HEADERS": "\n".join(f"{name}: {value}" for name, value in headers.items()),
        "BENCH_KEYS": "\n".join(endpoint.keys),
    }
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", f"--timeout={_TIMEOUT_SECONDS}s"]
    before = cpu.seconds(watched)
    try:
        ran = subprocess.run(
            [*command, f"--script={_SCRIPT}", endpoint.url],
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds + _TIMEOUT_SECONDS + 5,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise LoadError("wrk did not end") from error
    after = cpu.seconds(watched)
    report = next((line for line in ran.stdout.splitlines() if line.startswith("{")), None)
    if ran.returncode != 0 or report is None:
        raise LoadError(f"wrk failed: {(ran.stderr or ran.stdout)[-500:].strip()}")
    told: dict[str, int] = json.loads(report)
    failures = {name: told[name] for name in ("connect", "read", "write", "status", "timeout") if told[name]}
    if failures or not told["requests"]:
        raise LoadError(f"of {told['requests']} requests failed: {failures or 'all'}")
    return Load(
        connections=connections,
        requests=told["requests"],
        requests_per_second=told["requests"] * 1e6 / told["microseconds"],
        p50_ms=told["p50"] / 1000,
        p99_ms=told["p99"] / 1000,
        cpu_ms={name: (after[name] - used) * 1000 / told["requests"] for name, used in before.items()},
    )


@dataclass(frozen=True, slots=True)
class Streams:
    """Medians over streams that were read one after the other on one connection."""

    streams: int
    first_byte_ms: float
    """From the request's first byte out to the first byte of the body in: the first chunk, not the head."""
    whole_ms: float


def run_streams(endpoint: Endpoint, *, count: int) -> Streams:
    """Read `count` streams. Raises LoadError where one is not the upstream's, or the connection closes."""
    firsts: list[float] = []
    wholes: list[float] = []
    connection = _connect(endpoint)
    try:
        for _ in range(count):
            started = time.perf_counter()
            response = _send(connection, endpoint)
            content = response.read1()
            firsts.append(time.perf_counter() - started)
            content += response.read()
            wholes.append(time.perf_counter() - started)
            _check(connection, response, content, endpoint)
    except (OSError, http.client.HTTPException) as error:
        raise LoadError(f"a stream broke: {error!r}") from error
    finally:
        connection.close()
    return Streams(count, median(firsts) * 1000, median(wholes) * 1000)


def check_answer(endpoint: Endpoint) -> None:
    """Raise LoadError unless the upstream's answer comes, twice on one connection."""
    connection = _connect(endpoint)
    try:
        for _ in range(2):
            response = _send(connection, endpoint)
            _check(connection, response, response.read(), endpoint)
    except (OSError, http.client.HTTPException) as error:
        raise LoadError(f"no answer: {error!r}") from error
    finally:
        connection.close()


def _headers(endpoint: Endpoint) -> dict[str, str]:
    return {**endpoint.headers, "content-type": "application/json"}


def _connect(endpoint: Endpoint) -> http.client.HTTPConnection:
    parts = urlsplit(endpoint.url)
    assert parts.hostname
    return http.client.HTTPConnection(parts.hostname, parts.port, timeout=_TIMEOUT_SECONDS)


def _send(connection: http.client.HTTPConnection, endpoint: Endpoint) -> http.client.HTTPResponse:
    body = fixed_answer.request_body(stream=endpoint.stream)
    connection.request("POST", urlsplit(endpoint.url).path, body=body, headers=_headers(endpoint))
    return connection.getresponse()


def _check(
    connection: http.client.HTTPConnection,
    response: http.client.HTTPResponse,
    content: bytes,
    endpoint: Endpoint,
) -> None:
    if response.status != _HTTP_OK:
        raise LoadError(f"status {response.status}: {content[:300]!r}")
    check = fixed_answer.check_event_stream if endpoint.stream else fixed_answer.check_completion
    try:
        check(content)
    except fixed_answer.WrongAnswerError as error:
        raise LoadError(str(error)) from error
    # http.client lets go of its socket where the server has said that it closes.
    if connection.sock is None:
        raise LoadError("the connection was not kept")
