"""`sluice usage`: what was used, as a table and a line."""

from __future__ import annotations

import enum
from collections import defaultdict
from decimal import Decimal
from typing import Annotated, Any

import typer

from infra.operator.api import Api, Connection
from infra.operator.tables import print_json, print_table, sparkline
from infra.operator.users import AsJson, find_customer


class Interval(enum.StrEnum):
    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


class Group(enum.StrEnum):
    MODEL = "model"
    KEY = "key"
    PROVIDER = "provider"


def show_usage(  # noqa: PLR0917 - options, given by name
    user: Annotated[
        str | None, typer.Option(help="Of this customer: its id or address. By default all.")
    ] = None,
    since: Annotated[str | None, typer.Option("--from", help="Such as 2026-11-01.")] = None,
    until: Annotated[str | None, typer.Option("--to")] = None,
    interval: Annotated[Interval, typer.Option()] = Interval.DAY,
    by: Annotated[Group | None, typer.Option(help="One table line for each of these.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show requests, tokens, cost, charge and latency over time."""
    with Api(Connection.from_environment()) as api:
        customer_id = None if user is None else find_customer(api, user)["id"]
        told = api.get(
            "/v1/usage",
            customer_id=customer_id,
            interval=interval.value,
            group_by=None if by is None else by.value,
            **{"from": since, "to": until},
        )
    if as_json:
        print_json(told)
    elif by is None:
        _print_series(told["data"], interval)
    else:
        _print_groups(told["data"], by)


def _print_series(rows: list[dict[str, Any]], interval: Interval) -> None:
    shown = [row for row in rows if row["requests"] or row["errors"]]
    print_table(
        [interval.value, *_COLUMNS],
        [[_start(row, interval), *_figures(row)] for row in shown],
        empty="Nothing was used in this time.",
    )
    if shown:
        print(f"\nrequests  {sparkline([row['requests'] for row in rows])}")
        print(f"charge    {sparkline([float(row['charge_usd']) for row in rows])}")


def _print_groups(rows: list[dict[str, Any]], by: Group) -> None:
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["group"] is not None:
            groups[str(row["group"])].append(row)
    starts = sorted({row["start"] for row in rows})
    totals = sorted(groups.items(), key=lambda group: -_sum(group[1], "charge_usd"))
    print_table(
        [by.value, "requests", "errors", "tokens", "cost USD", "charge USD", "over time"],
        [
            [
                name,
                int(_sum(lines, "requests")),
                int(_sum(lines, "errors")),
                int(_sum(lines, "total_tokens")),
                _sum(lines, "cost_usd"),
                _sum(lines, "charge_usd"),
                _over_time(lines, starts),
            ]
            for name, lines in totals
        ],
        empty="Nothing was used in this time.",
    )


_COLUMNS = ("requests", "errors", "tokens", "cost USD", "charge USD", "p50 ms", "p95 ms")


def _figures(row: dict[str, Any]) -> list[Any]:
    cost = row["cost_usd"]
    return [
        row["requests"],
        row["errors"],
        row["total_tokens"],
        None if cost is None else Decimal(cost),
        Decimal(row["charge_usd"]),
        row["latency_ms"]["p50"],
        row["latency_ms"]["p95"],
    ]


def _start(row: dict[str, Any], interval: Interval) -> str:
    # As the series was cut: in the zone that was asked for, not in this machine's.
    lengths = {Interval.HOUR: 16, Interval.DAY: 10, Interval.MONTH: 7}
    return str(row["start"])[: lengths[interval]].replace("T", " ")


def _sum(rows: list[dict[str, Any]], name: str) -> Decimal:
    return sum((Decimal(row[name] or 0) for row in rows), Decimal(0))


def _over_time(rows: list[dict[str, Any]], starts: list[str]) -> str:
    by_start = {row["start"]: float(row["charge_usd"]) for row in rows}
    return sparkline([by_start.get(start, 0.0) for start in starts])
