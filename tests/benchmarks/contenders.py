"""Who can be put under load: the upstream itself, and how a gateway's process is started."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from infra.local import paths
from infra.local.processes import HOST, StackError, free_port, start_child, stop_child, tail
from tests.benchmarks.load import Endpoint
from tests.benchmarks.upstream import PATH, PLAIN, STREAM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from tests.benchmarks.cpu import Watched
    from tests.benchmarks.paced import Pace
    from tests.benchmarks.upstream import Upstream

DIRECT = "no gateway"
PROVIDER_KEY = "sk-the-upstream-takes-any-key"

MANY_CUSTOMERS = 16
"""As many as connections at most: a busy gateway's requests are of many, and one customer's wait for
each other."""
_START_SECONDS = 120.0
_HTTP_OK = 200


@dataclass(frozen=True, slots=True)
class Contender:
    """One that runs."""

    name: str
    version: str
    plain: Endpoint
    stream: Endpoint
    paced: Endpoint
    """Where streams of the paced provider are asked for."""
    watched: Mapping[str, Watched] = field(default_factory=dict)
    """What its CPU is accounted to; the gateway's own process is `own`."""
    check_books: Callable[[], int] | None = None
    """Raises LoadError unless the books are in order; returns how many requests were settled and charged."""
    check_streams: Callable[[Pace, int], None] | None = None
    """Raises LoadError unless so many paced streams, and no more, are charged as they were."""
    plain_of_many: Endpoint | None = None
    """Where the plain requests of many customers go, where it knows customers."""


Starter = contextlib.AbstractContextManager[Contender]


@contextlib.contextmanager
def paced_upstream(directory: Path) -> Iterator[str]:
    """Run the paced provider; yields its base URL."""
    port = free_port()
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "PYTHONPATH": os.pathsep.join([str(paths.FUNCTIONS), str(paths.REPOSITORY)]),
    }
    command = [sys.executable, "-m", "tests.benchmarks.paced", str(port)]
    url = f"http://{HOST}:{port}"
    with started(command, directory / "paced.log", environment, f"{url}/"):
        yield f"{url}/v1"


@contextlib.contextmanager
def direct(upstream: Upstream, paced_url: str) -> Iterator[Contender]:
    """The upstream itself: what is above it is what a gateway adds."""
    headers = {"authorization": f"Bearer {PROVIDER_KEY}"}
    yield Contender(
        DIRECT,
        "",
        Endpoint(upstream.url + PLAIN + PATH, headers, stream=False),
        Endpoint(upstream.url + STREAM + PATH, headers, stream=True),
        Endpoint(paced_url + PATH, headers, stream=True),
    )


@contextlib.contextmanager
def started(command: list[str], log: Path, environment: Mapping[str, str], health: str) -> Iterator[int]:
    """Start a server, wait until `health` answers 200, yield its process id, stop it.

    StackError with its last words where it does not start.
    """
    process = start_child(command, log=log, on_owner_death=signal.SIGTERM, environment=environment)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not _is_well(health):
            if process.poll() is not None or time.monotonic() > deadline:
                raise StackError(f"{log.stem} did not start:\n{tail(log, 600)}")
            time.sleep(0.1)
        yield process.pid
    finally:
        stop_child(process, signal.SIGTERM, patience=15)


def _is_well(url: str) -> bool:
    address, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(address, timeout=5)
    try:
        connection.request("GET", f"/{path}")
        return connection.getresponse().status == _HTTP_OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
