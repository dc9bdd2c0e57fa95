"""Requests of any time, and every figure of them: from the log, from the rollups, from the closed periods."""

from __future__ import annotations

import functools
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from tests.database.engine import Engine, JSONObject

CLASSES = (
    "input", "cached_input", "cache_write", "audio_input", "image_input",
    "output", "reasoning", "audio_output", "image_output",
)  # fmt: skip
QUARTER = timedelta(minutes=15)

SUMS = (
    "requests", "errors", "failures", *(f"{name}_tokens" for name in CLASSES), "images", "total_tokens",
    "cost_usd", "charge_usd", "uncollected_usd", "latency_ms", "latencies", "time_to_first_token_ms",
    "first_tokens",
)  # fmt: skip
"""The columns that rollups and periods share, but for the counts of times."""

_SUMMED = ", ".join(f"sum({name}) as {name}" for name in SUMS)
_BINS = {
    name: f"(select jsonb_object_agg(bin, n) from (select bin, sum(r.{name}[bin]) as n from rows as r"
    f" cross join generate_subscripts(r.{name}, 1) as bin group by bin) as b where n > 0) as {name}"
    for name in ("latency_counts", "first_token_counts")
}


def move(engine: Engine, admission: JSONObject, at: datetime) -> JSONObject:
    """Have a request that runs been admitted at another time: no clock of a server's can be turned."""
    with engine.by_engine():
        changed = engine.run(
            "update gateway.requests set admitted_at = %s where id = %s", at, admission["request_id"]
        )
    assert changed == 1
    return {**admission, "admitted_at": at.isoformat()}


def bucket_of(at: datetime) -> datetime:
    at = at.astimezone(UTC)
    return at.replace(minute=at.minute // 15 * 15, second=0, microsecond=0)


@functools.cache
def period_of(at: datetime, per: str, zone: str) -> datetime:
    """The first moment of the hour, day or month by the clock of a zone, worked out without the database."""
    there = ZoneInfo(zone)
    at = bucket_of(at)

    def same(other: datetime) -> bool:
        mine, its = at.astimezone(there), other.astimezone(there)
        if per == "hour":
            return (mine.date(), mine.hour, mine.utcoffset()) == (its.date(), its.hour, its.utcoffset())
        return (
            mine.date() == its.date()
            if per == "day"
            else mine.date().replace(day=1) == its.date().replace(day=1)
        )

    while same(at - QUARTER):
        at -= QUARTER
    return at


def sums_of(engine: Engine, rows: str, *parameters: Any) -> JSONObject:
    """The sums over a query's rows, and what lies in each bin."""
    found: JSONObject = engine.value(
        f"with rows as ({rows}) select to_jsonb(s) from (select {_SUMMED}, {', '.join(_BINS.values())}"
        " from rows) as s",
        *parameters,
    )
    return {name: value for name, value in found.items() if value}


def sums_of_log(engine: Engine, where: str = "true", *parameters: Any) -> JSONObject:
    """The same, worked out from the requests that have ended."""
    found: JSONObject = defaultdict(int)
    bins: dict[str, dict[str, int]] = {
        "latency_counts": defaultdict(int),
        "first_token_counts": defaultdict(int),
    }
    for (row,) in engine.query(
        f"select to_jsonb(r) from gateway.requests as r where state in ('settled', 'expired') and {where}",
        *parameters,
    ):
        found["requests"] += 1
        found["errors"] += row["state"] == "expired" or row["outcome"] == "failed"
        found["failures"] += sum(failed["fault"] != "client" for failed in row["failed_routes"] or ())
        for name in CLASSES:
            found[f"{name}_tokens"] += row[f"{name}_tokens"] or 0
            if name != "reasoning":
                found["total_tokens"] += row[f"{name}_tokens"] or 0
        found["images"] += row["images"] or 0
        for name in ("cost_usd", "charge_usd", "uncollected_usd"):
            found[name] += row[name]
        for name, count, counts in (
            ("latency_ms", "latencies", "latency_counts"),
            ("time_to_first_token_ms", "first_tokens", "first_token_counts"),
        ):
            if row[name] is not None:
                found[name] += row[name]
                found[count] += 1
                bins[counts][str(bin_of(row[name]))] += 1
    return {name: value for name, value in {**found, **bins}.items() if value}


def bin_of(ms: int) -> int:
    """The bin of a time, in whole numbers: ms to the fourth lies between two powers of two."""
    return (max(ms, 1) ** 4).bit_length() - 1


def closed(customer_id: int, per: str, grouped_by: str) -> str:
    return (
        "select * from gateway.usage_periods"
        f" where customer_id = {customer_id} and per = '{per}' and grouped_by = '{grouped_by}'"
    )


def close_all(engine: Engine) -> list[JSONObject]:
    """Close until nothing is left to be closed; what each closing told."""
    told = [engine.call("close_usage")]
    while told[-1]["behind"]:
        told.append(engine.call("close_usage"))
    return told


def assert_figures_agree(engine: Engine) -> None:
    """Log, rollups, closed periods, monitors and ledger come to the same, of all and of each customer."""
    rollups = _comparable(sums_of(engine, "select * from gateway.usage_rollups"))
    assert rollups == (of_log := _comparable(sums_of_log(engine))), (rollups, of_log)
    closed_rows = (
        "select * from gateway.usage_rollups where not late"
        " and bucket < (select closed_until from gateway.usage_closing)"
    )
    expected = _comparable(sums_of(engine, closed_rows))
    for per, groupings in (
        ("quarter", ("all", "model", "service")),
        ("day", ("all", "model", "service")),
        ("month", ("all", "model", "service")),
    ):
        for grouped_by in groupings:
            assert _comparable(sums_of(engine, closed(0, per, grouped_by))) == expected, (per, grouped_by)
    for customer_id, zone in engine.query("select id, time_zone from gateway.customers order by id"):
        expected = _comparable(sums_of(engine, f"{closed_rows} and customer_id = {customer_id}"))
        for per in ("day", "month"):
            for grouped_by in ("all", "key", "model", "service", "key_model", "key_service"):
                found = _comparable(sums_of(engine, closed(customer_id, per, grouped_by)))
                assert found == expected, (customer_id, per, grouped_by)
        assert_customer_agrees(engine, customer_id, zone)
    ((used, tokens, charge),) = engine.query(
        "select coalesce(sum(requests), 0), coalesce(sum(total_tokens), 0), coalesce(sum(charge_usd), 0)"
        " from gateway.key_days"
    )
    ((of_rollups,),) = engine.query(
        "select jsonb_build_array(coalesce(sum(requests), 0), coalesce(sum(total_tokens), 0),"
        f" coalesce(sum(charge_usd), 0)::text) from ({closed_rows}) as r"
    )
    assert [used, tokens, charge] == [of_rollups[0], of_rollups[1], Decimal(of_rollups[2])]


def assert_customer_agrees(engine: Engine, customer_id: int, zone: str) -> None:
    """What a customer is shown, beside its log and its ledger."""
    monitor = engine.call("read_monitor", p_customer_id=customer_id)
    totals = engine.call("read_totals", p_customer_id=customer_id)
    now = engine.value("select now()")
    for name, since in (
        ("total_{}", None),
        ("{}_today", period_of(now, "day", zone)),
        ("{}_this_month", period_of(now, "month", zone)),
    ):
        of_log = sums_of_log(
            engine,
            "customer_id = %s and admitted_at >= coalesce(%s::timestamptz, '-infinity')",
            customer_id,
            since,
        )
        usd_name = "charge".join(name.split("{}")) + "_usd"
        assert (
            monitor[name.format("requests")],
            monitor[name.format("tokens")],
            Decimal(monitor[usd_name]),
        ) == (
            of_log.get("requests", 0),
            of_log.get("total_tokens", 0),
            of_log.get("charge_usd", Decimal(0)),
        ), name
    everything = sums_of_log(engine, "customer_id = %s", customer_id)
    collected = everything.get("charge_usd", Decimal(0)) - everything.get("uncollected_usd", Decimal(0))
    ((booked,),) = engine.query(
        "select coalesce(-sum(amount_usd), 0) from gateway.ledger_entries"
        " where customer_id = %s and request_id is not null",
        customer_id,
    )
    assert collected == booked
    assert totals["total_tokens"] == totals["input_tokens"] + totals["output_tokens"]
    assert (totals["total_tokens"], Decimal(totals["charge_usd"]), Decimal(totals["cost_usd"])) == (
        everything.get("total_tokens", 0),
        everything.get("charge_usd", Decimal(0)),
        everything.get("cost_usd", Decimal(0)),
    )


def by_interval(
    engine: Engine, customer_id: int | None, per: str, zone: str, *, group_by: str | None = None
) -> dict[tuple[datetime, Any], tuple[int, int, Decimal]]:
    """(requests, tokens, charge) by interval and group, from the log, intervals made without the database."""
    column = {"model": "model_id", "key": "key_id", None: "0"}[group_by]
    found: dict[tuple[datetime, Any], tuple[int, int, Decimal]] = {}
    tokens = " + ".join(f"coalesce({name}_tokens, 0)" for name in CLASSES if name != "reasoning")
    for at, of, used, charge in engine.query(
        f"select admitted_at, {column}, {tokens}, charge_usd from gateway.requests"
        " where state in ('settled', 'expired') and (%s::bigint is null or customer_id = %s)",
        customer_id,
        customer_id,
    ):
        key = (period_of(at, per, zone), of or None)
        before = found.get(key, (0, 0, Decimal(0)))
        found[key] = (before[0] + 1, before[1] + used, before[2] + charge)
    return found


def shown(rows: list[JSONObject]) -> dict[tuple[datetime, Any], tuple[int, int, Decimal]]:
    """What read_usage tells, without what is zero."""
    return {
        (datetime.fromisoformat(row["start"]), row["group_id"]): (
            row["requests"],
            row["total_tokens"],
            Decimal(row["charge_usd"]),
        )
        for row in rows
        if row["requests"]
    }


def _comparable(sums: JSONObject) -> JSONObject:
    """Numbers of one type, whatever the database made them."""
    return {
        name: {key: int(n) for key, n in value.items()} if isinstance(value, dict) else Decimal(value)
        for name, value in sums.items()
    }
