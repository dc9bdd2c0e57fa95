"""Whether analytics and admission cost the same at five million requests in the log as at five thousand.

    PYTHONPATH=functions:. .venv/bin/python -m tests.benchmarks.analytics

Two databases on one PostgreSQL, a real PostgREST in front of each, and the same customers, keys and models.
Each call is made to the one and to the other in turn; what counts are the medians and their ratio. Takes some
minutes, and 12 GB of disk for as long.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import shutil
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Annotated, Any

import psycopg
import typer
from rich.console import Console
from rich.table import Table

from infra.local.database import create_database, create_roles, migrate
from infra.local.postgres import EmbeddedPostgres
from infra.local.postgrest import PostgRest
from infra.local.processes import HOST, StackError
from tests.benchmarks import filling, machine
from tests.benchmarks.load import LoadError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

BUDGET = 2.0
"""How much longer a call may take with the longer log."""
BUSIEST = 20
"""Customers that are asked about: the busiest of the shorter log, with charts alike in both."""

_RESULTS = Path(__file__).with_name("results")
_PASSWORD = "authenticator-of-the-bench"
_SECRET = "a-secret-of-the-bench-with-more-than-32-characters"
_SETTINGS = {
    "fsync": "off", "synchronous_commit": "off", "full_page_writes": "off",
    "wal_level": "minimal", "max_wal_senders": "0",
    "shared_buffers": "1GB", "maintenance_work_mem": "512MB",
    "max_wal_size": "4GB", "max_connections": "60",
}  # fmt: skip
_ROOM = 16 * 2**30
_OK = 200


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two databases, with a connection to its PostgREST that is kept open."""

    name: str
    requests: int
    fill_seconds: float
    connection: http.client.HTTPConnection
    token: str

    def call(self, function: str, **parameters: Any) -> Any:
        """Call a function of schema api. Raises LoadError for anything but an answer."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        self.connection.request("POST", f"/rpc/{function}", json.dumps(parameters), headers)
        response = self.connection.getresponse()
        body = response.read()
        if response.status != _OK:
            raise LoadError(f"{function}: {response.status} {body[:300]!r}")
        return json.loads(body)


def read_monitor(side: Side, number: int) -> None:
    """As GET /user/monitor does."""
    told = side.call("read_monitor", p_customer_id=number)
    if not told["total_requests"]:
        raise LoadError(f"customer {number} has no requests")


def read_admin_monitor(side: Side, _number: int) -> None:
    """As GET /admin/monitor does."""
    if len(side.call("read_admin_monitor")["recent_activity"]) != 10:
        raise LoadError("there is no activity")


def read_usage(side: Side, number: int) -> None:
    """As GET /v1/usage of a month by the day and model does."""
    now = datetime.now(UTC)
    told = side.call(
        "read_time_series",
        p_customer_id=number,
        p_from=(now - timedelta(days=30)).isoformat(),
        p_to=now.isoformat(),
        p_interval="day",
        p_group_by="model",
    )
    if len(told["data"]) < 30:
        raise LoadError(f"customer {number} has {len(told['data'])} days in the {side.name} log")


def admit_and_settle(side: Side, number: int) -> None:
    """As a chat does: two calls."""
    admission = side.call(
        "admit_request",
        p_key_hash=hashlib.sha256(f"bench-{number} 1".encode()).hexdigest(),
        p_request_id=f"req_{time.time_ns() // 1_000_000:012x}{uuid.uuid4().hex[:20]}",
        p_models=[filling.MODEL],
        p_endpoint="chat.completions",
        p_lease_seconds=900,
        p_input_tokens_bound=400,
        p_max_output_tokens=256,
    )
    if not admission["admitted"]:
        raise LoadError(f"not admitted: {admission}")
    settled = side.call(
        "settle_request",
        p_settlement={
            "request_id": admission["request_id"],
            "admitted_at": admission["admitted_at"],
            "outcome": "succeeded",
            "route_id": admission["candidates"][0]["route_id"],
            "usage": {"input": 312, "output": 128},
            "status": 200,
            "latency_ms": 700,
            "time_to_first_token_ms": 150,
        },
    )
    if settled["status"] != "settled":
        raise LoadError(f"not settled: {settled}")


CALLS: dict[str, Callable[[Side, int], None]] = {
    "/user/monitor": read_monitor,
    "/admin/monitor": read_admin_monitor,
    "/v1/usage, a month by day and model": read_usage,
    "admission and settlement": admit_and_settle,
}


def close_usage(side: Side) -> None:
    """Close what is over, as the maintenance does every minute."""
    while side.call("close_usage")["behind"]:
        pass


def measure(
    sides: Sequence[Side], call: Callable[[Side, int], None], customers: Sequence[int], times: int
) -> list[list[float]]:
    """Return the milliseconds of each call, by side. Who goes first changes from call to call."""
    found: list[list[float]] = [[] for _ in sides]
    for side in sides:
        close_usage(side)
    for turn in range(-BUSIEST, times):
        order = list(enumerate(sides))
        for position, side in order if turn % 2 else reversed(order):
            started = time.perf_counter()
            call(side, customers[turn % len(customers)])
            if turn >= 0:  # before that, plans and caches warm up
                found[position].append((time.perf_counter() - started) * 1000)
    return found


@contextlib.contextmanager
def side_of(server: EmbeddedPostgres, directory: Path, name: str, requests: int) -> Iterator[Side]:
    """Fill a database with about so many requests and serve it."""
    started = time.monotonic()
    create_database(server.url(), name)
    migrate(server.url(name))
    filled = filling.fill(server.url(name), requests)
    seconds = time.monotonic() - started
    print(f"  {filled:,} requests in {seconds:.0f} s", file=sys.stderr, flush=True)
    authenticator = server.url(name, user="authenticator", password=_PASSWORD)
    with PostgRest(authenticator, jwt_secret=_SECRET, log=directory / f"{name}.log") as served:
        connection = http.client.HTTPConnection(HOST, served.port, timeout=60)
        try:
            yield Side(name, filled, seconds, connection, served.token("service_role"))
        finally:
            connection.close()


def busiest(server: EmbeddedPostgres, name: str) -> list[int]:
    """Return the customers with the most models and requests in the last month."""
    with psycopg.connect(server.url(name)) as connection:
        rows = connection.execute(
            "select customer_id from gateway.requests where admitted_at > now() - interval '29 days'"
            " group by 1 order by count(distinct model_id) desc, count(*) desc, 1 limit %s",
            [BUSIEST],
        ).fetchall()
    return [row[0] for row in rows]


def sizes(server: EmbeddedPostgres, name: str) -> dict[str, int]:
    """Return the bytes of each of the larger tables, indexes included."""
    with psycopg.connect(server.url(name)) as connection:
        rows = connection.execute(
            "select coalesce(p.inhparent, c.oid)::regclass::text, sum(pg_total_relation_size(c.oid))::bigint"
            " from pg_class as c left join pg_inherits as p on p.inhrelid = c.oid"
            " where c.relnamespace = 'gateway'::regnamespace and c.relkind = 'r'"
            " group by 1 order by 2 desc limit 6"
        ).fetchall()
    return dict(rows)


def summarise(times: list[list[float]]) -> dict[str, float]:
    """Return the medians of the shorter and the longer log in milliseconds, and how they relate."""
    small, large = (median(each) for each in times)
    return {
        "small_ms": round(small, 3),
        "large_ms": round(large, 3),
        "large_p95_ms": round(quantiles(times[1], n=20)[18], 3),
        "ratio": round(large / small, 3),
    }


def show(console: Console, document: dict[str, Any]) -> None:
    table = Table(title="Medians in milliseconds, over PostgREST")
    for heading in ("", *(f"{requests:,} requests" for requests in document["requests"]), "p95", "ratio"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, found in document["calls"].items():
        within = "[green]" if found["ratio"] <= BUDGET else "[red]"
        table.add_row(
            name,
            f"{found['small_ms']:.2f}",
            f"{found['large_ms']:.2f}",
            f"{found['large_p95_ms']:.2f}",
            f"{within}{found['ratio']:.2f}",
        )
    console.print(table)


def main(
    small: Annotated[int, typer.Option(min=1000, help="Requests in the shorter log.")] = 5_000,
    large: Annotated[int, typer.Option(min=1000, help="Requests in the longer one.")] = 5_000_000,
    times: Annotated[int, typer.Option(min=20, help="How often each call is made to each.")] = 300,
    output: Annotated[Path | None, typer.Option(help="Where the JSON goes.")] = None,
) -> None:
    """Fill two databases and measure both; fail where a call takes twice as long with the longer log."""
    started_at = datetime.now(UTC)
    if shutil.disk_usage(tempfile.gettempdir()).free < _ROOM * large / 5_000_000:
        raise typer.BadParameter("there is not enough room on the disk", param_hint="--large")
    around = machine.describe()
    try:
        with contextlib.ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sluice-analytics-")))
            directory.chmod(0o755)  # PostgreSQL runs as another user where we are root
            server = stack.enter_context(EmbeddedPostgres(directory / "data", settings=_SETTINGS))
            create_roles(server.url(), authenticator_password=_PASSWORD)
            sides = [
                stack.enter_context(side_of(server, directory, name, requests))
                for name, requests in (("small", small), ("large", large))
            ]
            customers = busiest(server, "small")
            times_of = {name: measure(sides, call, customers, times) for name, call in CALLS.items()}
            bytes_of = sizes(server, "large")
    except (StackError, LoadError, psycopg.Error, OSError) as error:
        print(f"analytics: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    calls = {name: summarise(each) for name, each in times_of.items()}
    document = {
        "started_at": started_at.isoformat(timespec="seconds"),
        "machine": {**around, "load_after": round(os.getloadavg()[0], 2)},
        "requests": [side.requests for side in sides],
        "fill_seconds": [round(side.fill_seconds, 1) for side in sides],
        "bytes": bytes_of,
        "times": times,
        "calls": calls,
    }
    path = output or _RESULTS / f"analytics-{started_at:%Y-%m-%dT%H-%M-%SZ}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    console = Console(width=None if sys.stdout.isatty() else 120)
    show(console, document)
    console.print(f"Kept in {path}", soft_wrap=True, highlight=False)
    if any(each["ratio"] > BUDGET for each in calls.values()):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
