"""A database full of the past: customers, keys, models, and any number of requests over sixty days.

Set-based (filling.sql): the engine's own functions would take an hour for what is made here in minutes. What
comes out is what they would have left: each request settled, its charge in the ledger, its rollup, and all of
it closed. Customers are unequal: the busiest of 1,000 has three per cent of all requests. Requests come in
sessions of one to twenty with one key and model; a fiftieth of them fails.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from tests.benchmarks.load import LoadError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MODEL = "bench-1"
DAYS = 60
PLAN = {
    "days": DAYS,
    "customers": 1000,
    "keys_each": 3,
    "models": 12,
    "models_each": 3,
    "paid_in": 10_000_000,
    "providers": ["openai", "anthropic", "gemini"],
}

_AT_ONCE = 2
_PARTS: dict[str, str] = dict(
    part.split("\n", 1)
    for part in Path(__file__).with_suffix(".sql").read_text(encoding="utf-8").split("-- name: ")[1:]
)
# Past the guards and the foreign keys, which would look up an account for each of millions of entries.
_FAST = b"set session_replication_role = replica; set synchronous_commit = off; set work_mem = '256MB'"


def fill(url: str, requests: int) -> int:
    """Fill a migrated database at `url`, the superuser's, without customers; return how many requests it has.

    About `requests`: five million take some minutes and 10 GB. Raises LoadError where the books disagree
    afterwards.
    """
    with psycopg.connect(url, autocommit=True) as connection:
        now = _value(connection, "select date_trunc('second', now())")
        half = _value(connection, f"select gateway.rollup_bucket(now() - interval '{DAYS / 2} days')")
        given = {**PLAN, "now": now, "requests": requests}
        connection.execute(_composed(_PARTS["world"], given))
        connection.execute(_composed(_PARTS["sessions"], given))
        months = [
            {**given, "partition": f"requests_{month}", "since": since, "until": until}
            for month, since, until in connection.execute(_composed(_PARTS["months"], given)).fetchall()
        ]
        _at_once(url, [(_PARTS["partition"] + _PARTS["requests"], month) for month in months])
        for month in months:
            connection.execute(_composed(_PARTS["attach"], month))
        indexes = connection.execute(_PARTS["ledger_indexes"].encode()).fetchall()
        for name, _ in indexes:
            connection.execute(sql.SQL("drop index gateway.{}").format(sql.Identifier(name)))
        _at_once(url, [(_PARTS["ledger"], {**given, "half": parity}) for parity in (0, 1)])
        _at_once(url, [(definition, None) for _, definition in indexes])
        halves = (("-infinity", half), (half, "infinity"))
        _at_once(url, [(_PARTS["rollups"], {**given, "since": a, "until": b}) for a, b in halves])
        shares = ((0, False), (1, False), (2, True))
        _at_once(
            url, [(_PARTS["closing"], {**given, "half": parity, "of_all": all_}) for parity, all_ in shares]
        )
        connection.execute(_FAST)
        connection.execute(_composed(_PARTS["end"], given))
        connection.execute("reset session_replication_role")
        connection.execute("vacuum analyze")
        _check(connection)
        return int(_value(connection, "select count(*) from gateway.requests"))


def _check(connection: psycopg.Connection[Any]) -> None:
    if found := connection.execute(_PARTS["disagree"].encode()).fetchall():
        raise LoadError(f"the figures disagree: {found}")
    told = _value(connection, "select api.check_ledger()")
    if not told["ok"]:
        raise LoadError(f"the ledger does not add up: {told}")


def _at_once(url: str, works: Sequence[tuple[str, Mapping[str, Any] | None]]) -> None:
    """Run statements with their values, each in a transaction on a connection of its own, two at a time."""

    def run(text: str, values: Mapping[str, Any] | None) -> None:
        with psycopg.connect(url) as connection:
            connection.execute(_FAST)
            connection.execute(text.encode() if values is None else _composed(text, values))

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for done in [pool.submit(run, *work) for work in works]:
            done.result()


def _composed(text: str, values: Mapping[str, Any]) -> sql.Composed:
    return sql.SQL(text).format(
        **{
            name: sql.Identifier(value) if name == "partition" else sql.Literal(value)
            for name, value in values.items()
        }
    )


def _value(connection: psycopg.Connection[Any], text: str) -> Any:
    row = connection.execute(text.encode()).fetchone()
    assert row is not None
    return row[0]
