"""The log by the page: every request once, in order, whatever comes in between, at a steady cost."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.database.engine import Customer, Engine, JSONObject

NOON = datetime(2026, 11, 15, 12, tzinfo=UTC)
MOST_READ = 10_000
"""Rows that one page looks at, at most."""


def plant(engine: Engine, customer: Customer, *times: datetime, **columns: Any) -> list[str]:
    """Requests that were admitted at these times, past the guards; their ids."""
    ids = [f"req_{engine.value('select md5(random()::text)')}" for _ in times]
    columns = {"state": "settled", "outcome": "succeeded", "key_id": customer.key_id, **columns}
    names = ", ".join(columns)
    with engine.by_engine():
        for request_id, at in zip(ids, times, strict=True):
            engine.run(
                "insert into gateway.requests (id, admitted_at, customer_id, requested_model, endpoint,"
                " streamed, hold_usd, lease_until, input_tokens_bound, output_tokens_bound, billing_mode,"
                f" commission_percent, flat_usd_per_1k_tokens, routes, counted, {names})"
                " select %s, %s, %s, 'm', 'e', false, 0, now(), 0, 0, 'markup', 5, 0, '[]', '{}', "
                + ", ".join(["%s"] * len(columns)),
                request_id,
                at,
                customer.id,
                *columns.values(),
            )
    return ids


def plant_many(engine: Engine, customer: Customer, count: int, *, since: datetime, outcome: str) -> None:
    """So many requests, a second apart."""
    with engine.by_engine():
        engine.run(
            "insert into gateway.requests (id, admitted_at, customer_id, key_id, requested_model, endpoint,"
            " streamed, state, outcome, hold_usd, lease_until, input_tokens_bound, output_tokens_bound,"
            " billing_mode, commission_percent, flat_usd_per_1k_tokens, routes, counted)"
            " select 'req_' || md5(random()::text), %s + n * interval '1 second', %s, %s, 'm', 'e', false,"
            " 'settled', %s, 0, now(), 0, 0, 'markup', 5, 0, '[]', '{}' from generate_series(1, %s) as n",
            since,
            customer.id,
            customer.key_id,
            outcome,
            count,
        )
    engine.run("analyze gateway.requests")


def page(
    engine: Engine, customer: Customer | None, after: JSONObject | None = None, **query: Any
) -> JSONObject:
    told: JSONObject = engine.call(
        "list_requests",
        p_limit=query.pop("p_limit", 50),
        p_customer_id=customer and customer.id,
        p_before_at=after and after["at"],
        p_before_id=after and after["id"],
        **query,
    )
    return told


def ids(told: JSONObject) -> list[str]:
    return [record["id"] for record in told["data"]]


def pages(engine: Engine, customer: Customer, **query: Any) -> list[str]:
    """The ids on all pages."""
    found: list[str] = []
    after = None
    while True:
        told = page(engine, customer, after, **query)
        found += ids(told)
        after = told["next"]
        if after is None:
            return found


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 50])
def test_every_request_is_on_one_page_though_many_came_at_one_moment(
    shared_engine: Engine, limit: int
) -> None:
    engine = shared_engine
    customer, stranger = engine.customer(), engine.customer()
    chance = random.Random(limit)  # noqa: S311 - the same cases at every run
    # over the turn of a month, and so of a partition
    times = [
        datetime(2026, 11, 30, 23, 59, 58, tzinfo=UTC) + timedelta(seconds=chance.randint(0, 4))
        for _ in range(20)
    ]
    planted = list(zip(times, plant(engine, customer, *times), strict=True))
    plant(engine, stranger, *times)
    assert pages(engine, customer, p_limit=limit) == [found for _, found in sorted(planted, reverse=True)]


def test_what_comes_in_between_moves_no_page(shared_engine: Engine) -> None:
    engine = shared_engine
    customer = engine.customer()
    old = plant(engine, customer, *(NOON + timedelta(seconds=n) for n in range(10)))
    first = page(engine, customer, p_limit=4)
    newer = plant(engine, customer, *(NOON + timedelta(hours=1, seconds=n) for n in range(5)))
    second = page(engine, customer, first["next"], p_limit=4)
    last = page(engine, customer, second["next"], p_limit=4)
    assert ids(first) + ids(second) + ids(last) == old[::-1]
    assert last["next"] is None
    assert pages(engine, customer) == newer[::-1] + old[::-1]
    # a page that is full to the last row is known to be the last
    assert page(engine, customer, p_limit=15)["next"] is None


def test_each_filter_finds_its_own(shared_engine: Engine) -> None:
    engine = shared_engine
    customer = engine.customer()
    other_key, _ = engine.key(customer.id)
    echo, service = engine.query(
        "select m.id, s.id from gateway.models as m, gateway.services as s where m.name = 'echo'"
    )[0]
    made = {
        name: plant(engine, customer, NOON + timedelta(minutes=n), **columns)[0]
        for n, (name, columns) in enumerate(
            {
                "succeeded": {"model_id": echo, "service_id": service},
                "failed": {"outcome": "failed"},
                "cancelled": {"outcome": "cancelled", "key_id": other_key},
                "cut": {"outcome": "cut"},
                "refused": {"state": "refused", "outcome": None},
                "expired": {"state": "expired", "outcome": None},
                "running": {"state": "held", "outcome": None},
            }.items()
        )
    }
    for status, request_id in made.items():
        assert ids(page(engine, customer, p_status=status)) == [request_id]
    for query, names in (
        ({"p_key_id": other_key}, ["cancelled"]),
        ({"p_model": "echo"}, ["succeeded"]),
        ({"p_model": "m"}, list(made)),
        ({"p_model": "none-such"}, []),
        ({"p_provider": "openai-compatible"}, ["succeeded"]),
        ({"p_provider": "none-such"}, []),
        ({"p_errors": True}, ["failed", "expired"]),
        ({"p_errors": True, "p_status": "failed"}, ["failed"]),
        # what begins at p_from is in, what begins at p_to is not
        (
            {"p_from": str(NOON + timedelta(minutes=2)), "p_to": str(NOON + timedelta(minutes=4))},
            ["cancelled", "cut"],
        ),
    ):
        assert ids(page(engine, customer, **query)) == [made[name] for name in reversed(names)], query
    assert page(engine, customer, p_key_id=engine.customer().key_id) == {"error": "unknown_key"}
    assert engine.call("list_requests", p_limit=1, p_customer_id=10**9) == {"error": "unknown_customer"}


@pytest.mark.parametrize(("zone", "offset"), [("UTC", 0), ("Asia/Kolkata", 330), ("America/New_York", -300)])
def test_a_day_is_the_customers(shared_engine: Engine, zone: str, offset: int) -> None:
    engine = shared_engine
    customer = engine.customer()
    engine.run("update gateway.customers set time_zone = %s where id = %s", zone, customer.id)
    midnight = datetime(2026, 11, 14, tzinfo=UTC) - timedelta(minutes=offset)
    moment = timedelta(microseconds=1)
    planted = plant(
        engine,
        customer,
        midnight - moment,
        midnight,
        midnight + timedelta(days=2) - moment,
        midnight + timedelta(days=2),
    )
    told = page(engine, customer, p_from="2026-11-14", p_to="2026-11-15")
    assert ids(told) == [planted[2], planted[1]]


def test_a_rare_find_in_a_long_log_costs_a_short_page_not_a_long_search(shared_engine: Engine) -> None:
    engine = shared_engine
    customer = engine.customer()
    rare = plant(engine, customer, NOON)[0]
    plant_many(engine, customer, 2 * MOST_READ + 500, since=NOON, outcome="failed")
    read, told = rows_read(engine, lambda: page(engine, customer, p_status="succeeded"))
    assert told["data"] == []
    assert told["next"] is not None
    # looked at twice: for what is asked, and for where to go on
    assert MOST_READ <= read <= 2 * MOST_READ + 100
    second = page(engine, customer, told["next"], p_status="succeeded")
    assert second["data"] == []
    third = page(engine, customer, second["next"], p_status="succeeded")
    assert (ids(third), third["next"]) == ([rare], None)
    assert len(pages(engine, customer, p_status="failed", p_limit=200)) == 2 * MOST_READ + 500


def rows_read(engine: Engine, work: Any) -> tuple[int, JSONObject]:
    """Rows of the log that `work` read, as the server itself counts them, and what it returned."""
    count = (
        "select coalesce(sum(seq_tup_read + idx_tup_fetch), 0)::bigint from pg_stat_xact_user_tables"
        " where schemaname = 'gateway' and relname like 'requests%'"
    )
    with engine.connection.transaction():
        before = engine.value(count)
        told = work()
        return engine.value(count) - before, told


@pytest.mark.parametrize("whose", ["customer", "all"])
def test_a_page_reads_what_it_shows_however_long_the_log_is(shared_engine: Engine, whose: str) -> None:
    engine = shared_engine
    customer = engine.customer()
    for month in (10, 11, 12):
        plant_many(engine, customer, 4000, since=datetime(2026, month, 20, tzinfo=UTC), outcome="succeeded")
    asked = customer if whose == "customer" else None
    after = None
    for _ in range(4):
        last = after
        read, told = rows_read(engine, lambda last=last: page(engine, asked, last))
        assert len(told["data"]) == 50
        # and the few that share the moment of the page's last
        assert read <= 120, read
        after = told["next"]
    in_between = {"at": str(datetime(2026, 11, 20, 0, 30, tzinfo=UTC)), "id": "req_"}
    read, told = rows_read(engine, lambda: page(engine, asked, in_between))
    assert len(told["data"]) == 50
    assert read <= 120, read


def test_the_cost_at_a_flat_price_is_shown_to_admins_alone(shared_engine: Engine) -> None:
    engine = shared_engine
    customer = engine.customer()
    [request_id] = plant(engine, customer, NOON)
    with engine.by_engine():
        engine.run(
            "update gateway.requests set billing_mode = 'flat', cost_usd = 1 where id = %s", request_id
        )
    seen = page(engine, customer)["data"][0]
    shown = page(engine, customer, p_show_cost=True)["data"][0]
    assert (seen["cost_usd"], shown["cost_usd"]) == (None, "1")
