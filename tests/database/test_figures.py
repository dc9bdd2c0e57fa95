"""Monitors, rollups, closed periods, log and ledger agree: at any turn of the clock, in any zone and order.

The server's clock can't be turned, so requests are: each is admitted now, moved to the time that a test is
about, and settled there by the real function, in time or long after its quarter of an hour was closed.
"""

from __future__ import annotations

import functools
import itertools
import json
import random
import shutil
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from threading import Event
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from psycopg.types.json import set_json_loads

from infra.local import paths
from infra.local.database import migrate
from tests.database.engine import Engine, call, race
from tests.database.figures import (
    QUARTER,
    assert_figures_agree,
    bin_of,
    bucket_of,
    by_interval,
    close_all,
    move,
    period_of,
    shown,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.database.engine import Customer, JSONObject
    from tests.fixtures.database import Connection, NewDatabase

ZONES = ("UTC", "Asia/Kolkata", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe")
MOMENT = timedelta(microseconds=1)
FEBRUARY = datetime(2026, 2, 1, tzinfo=UTC)
INTERVALS = (("hour", None), ("day", FEBRUARY), ("month", FEBRUARY))
USAGES: tuple[dict[str, int] | None, ...] = (
    {"input": 100, "output": 50},
    {"input": 7, "cached_input": 90, "cache_write": 3, "output": 11, "reasoning": 5},
    {
        "input": 1,
        "audio_input": 40,
        "image_input": 258,
        "output": 2,
        "audio_output": 30,
        "image_output": 1290,
    },
    {"input": 0, "output": 0, "images": 2},
    None,
)


@pytest.fixture
def books(engine: Engine) -> Engine:
    """The engine with a second model and service, no limit in the way, and rollups that are kept for ever."""
    set_json_loads(functools.partial(json.loads, parse_float=Decimal), engine.connection)
    engine.model("dear", {"input": "10", "cached_input": "1", "output": "40"}, provider="anthropic")
    engine.service(["dear"], provider="anthropic")
    engine.settings(default_requests_per_minute=None, usage_detail_days=None)
    return engine


def some_chance(seed: object) -> random.Random:
    return random.Random(repr(seed))  # noqa: S311 - to be the same at every run


def customer_in(engine: Engine, zone: str) -> Customer:
    customer = engine.customer("1000")
    engine.run("update gateway.customers set time_zone = %s where id = %s", zone, customer.id)
    return customer


def set_back(engine: Engine, to: datetime) -> None:
    """Nothing has been closed since then: as if maintenance had not run."""
    with engine.by_engine():
        engine.run("update gateway.usage_closing set closed_until = %s", bucket_of(to))


def admitted_at(engine: Engine, key_hash: str, at: datetime, model: str = "echo") -> JSONObject:
    return move(engine, engine.admitted(key_hash, p_models=[model]), at)


def settle_some(engine: Engine, admission: JSONObject, chance: random.Random) -> None:
    """Settle it in one of the ways in which a request may end."""
    usage = chance.choice(USAGES)
    route = admission["candidates"][0]
    failed = [{**{name: route[name] for name in ("route_id", "service_id")}, "status": 503}]
    engine.settle(
        admission,
        usage=usage,
        outcome="failed" if usage is None else chance.choice(["succeeded", "cut", "cancelled"]),
        route_id=None if usage is None else route["route_id"],
        latency_ms=chance.randrange(1, 100_000),
        time_to_first_token_ms=chance.choice([None, chance.randrange(0, 3000)]),
        failed_routes=[{**failed[0], "fault": chance.choice(["transient", "client", "operator"])}]
        if usage is None
        else None,
    )


def turns(engine: Engine, zone: str) -> list[datetime]:
    """Moments about which a minute, a quarter, a day, a month turn in a zone, or its clocks change."""
    now: datetime = engine.value("select now()")
    today = period_of(now, "day", zone)
    month = period_of(now, "month", zone)
    edges = [
        (now - timedelta(hours=2)).replace(second=0, microsecond=0),
        bucket_of(now - timedelta(hours=3)),
        today,
        period_of(today - MOMENT, "day", zone),
        month,
        period_of(month - MOMENT, "month", zone),
        # America/New_York and Australia/Lord_Howe change their clocks, the latter by half an hour
        datetime(2026, 3, 8, 7, tzinfo=UTC),
        datetime(2026, 11, 1, 6, tzinfo=UTC),
        datetime(2026, 4, 4, 15, tzinfo=UTC),
        datetime(2026, 10, 3, 15, 30, tzinfo=UTC),
    ]
    return [at for edge in edges for at in (edge - MOMENT, edge, edge + QUARTER) if at < now]


@pytest.mark.parametrize("zone", ZONES)
def test_figures_agree_at_every_turn_of_the_clock(books: Engine, zone: str) -> None:
    customer = customer_in(books, zone)
    set_back(books, FEBRUARY)
    chance = some_chance(zone)
    for at in turns(books, zone):
        settle_some(books, admitted_at(books, customer.key_hash, at, chance.choice(["echo", "dear"])), chance)
    # those that will be settled when their time has been closed
    late = [admitted_at(books, customer.key_hash, at) for at in turns(books, zone)]
    lapsed = [admitted_at(books, customer.key_hash, at) for at in turns(books, zone)[::3]]

    assert_figures_agree(books)
    assert_intervals_agree(books, customer.id, zone)
    assert len(close_all(books)) > 200  # a day at a time
    assert_figures_agree(books)
    assert_intervals_agree(books, customer.id, zone)

    for admission in lapsed:
        books.lapse(admission)
    assert books.call("expire_holds")["expired"] == len(lapsed)
    for admission in late:
        settle_some(books, admission, chance)
    assert books.value("select count(*) from gateway.usage_rollups where late") > 0
    assert_figures_agree(books)
    assert_intervals_agree(books, customer.id, zone)
    for admission in lapsed[::2]:
        settle_some(books, admission, chance)
    close_all(books)
    assert books.value("select count(*) from gateway.usage_rollups where late") == 0
    for admission in lapsed[1::2]:  # expired, closed, and now settled after all
        settle_some(books, admission, chance)
    assert_figures_agree(books)
    close_all(books)
    assert_figures_agree(books)
    assert_intervals_agree(books, customer.id, zone)
    books.assert_books_agree()


def assert_intervals_agree(engine: Engine, customer_id: int, zone: str) -> None:
    """Each interval of the time series beside the log, and every interval of the range there, in order."""
    now: datetime = engine.value("select now()")
    for per, earliest in INTERVALS:
        since = period_of(earliest or now - timedelta(days=3), per, zone)
        for group_by in (None, "model", "key"):
            rows = engine.call(
                "read_usage",
                p_customer_id=customer_id,
                p_from=since,
                p_to=now,
                p_interval=per,
                p_group_by=group_by,
            )
            of_log = by_interval(engine, customer_id, per, zone, group_by=group_by)
            assert shown(rows) == {key: value for key, value in of_log.items() if key[0] >= since}, (
                per,
                group_by,
            )
            if group_by is None:
                starts = [datetime.fromisoformat(row["start"]) for row in rows]
                assert starts == every_start(since, now, per, zone)
                assert [row["end"] for row in rows[:-1]] == [row["start"] for row in rows[1:]]


def every_start(since: datetime, until: datetime, per: str, zone: str) -> list[datetime]:
    found, at = [], until
    while (start := period_of(at, per, zone)) >= since:
        found.append(start)
        at = start - MOMENT
    return found[::-1]


@pytest.mark.parametrize("seed", range(4))
def test_any_order_of_calls_closings_and_changes_of_zone_keeps_the_figures(books: Engine, seed: int) -> None:
    chance = some_chance(seed)
    customers = [customer_in(books, zone) for zone in ZONES[:3]]
    keys = [(each, key) for each in customers for key in (each.key_hash, books.key(each.id)[1])]
    now: datetime = books.value("select now()")
    start = now - timedelta(days=40)
    set_back(books, start)
    running: list[JSONObject] = []
    expired: list[JSONObject] = []
    for _ in range(120):
        step = chance.random()
        if step < 0.5:
            customer, key = chance.choice(keys)
            # a few keep to one quarter of an hour, so that rows meet
            at = start + chance.choice(
                [timedelta(days=chance.uniform(0, 39)), timedelta(days=20), timedelta(days=39.9)]
            )
            running.append(admitted_at(books, key, at, chance.choice(["echo", "dear"])))
        elif step < 0.75 and running:
            settle_some(books, running.pop(chance.randrange(len(running))), chance)
        elif step < 0.8 and running:
            lapsed = running.pop(chance.randrange(len(running)))
            books.lapse(lapsed)
            books.call("expire_holds")
            expired.append(lapsed)
        elif step < 0.85 and expired:
            settle_some(books, expired.pop(chance.randrange(len(expired))), chance)
        elif step < 0.95:
            books.call("close_usage", p_limit=chance.choice([1, 3, 20_000]))
        else:
            books.run(
                "update gateway.customers set time_zone = %s where id = %s",
                chance.choice(ZONES),
                chance.choice(customers).id,
            )
    assert_figures_agree(books)
    for customer in customers:
        zone = books.value("select time_zone from gateway.customers where id = %s", customer.id)
        assert_intervals_agree(books, customer.id, zone)
    close_all(books)
    assert_figures_agree(books)
    books.assert_books_agree()


# The closing beside those who settle


def test_a_bucket_is_not_closed_while_somebody_adds_to_it_and_nobody_waits(books: Engine) -> None:
    customer = customer_in(books, "UTC")
    at = books.value("select now()") - timedelta(hours=3)
    set_back(books, at - timedelta(hours=1))
    admission = admitted_at(books, customer.key_hash, at)
    with books.database.connect(autocommit=False) as settling:
        books.settle(admission, connection=settling)
        told = books.call("close_usage")
        assert (told["rows"], told["behind"]) == (0, True)  # it came as far as the bucket that is in use
        assert datetime.fromisoformat(told["closed_until"]) == bucket_of(at)
        assert books.call("close_usage")["behind"] is False  # there is nothing to be done just now
        settling.commit()
    assert [told["rows"] for told in close_all(books)] == [1]
    assert_figures_agree(books)


def wait_for_a_lock(engine: Engine, future: Any) -> None:
    while not wait([future], timeout=0.002).done:
        if engine.value(
            "select count(*) from pg_stat_activity"
            " where datname = current_database() and wait_event_type = 'Lock'"
        ):
            return
    raise AssertionError(future.result())


@pytest.mark.parametrize("kept", [True, False])
def test_who_settles_while_its_bucket_is_being_closed_waits_and_is_counted_once(
    books: Engine, kept: bool
) -> None:
    customer = customer_in(books, "Asia/Kolkata")
    at = books.value("select now()") - timedelta(hours=3)
    set_back(books, at - timedelta(hours=1))
    books.settle(admitted_at(books, customer.key_hash, at))
    admission = admitted_at(books, customer.key_hash, at)
    with (
        books.database.connect(autocommit=False) as closing,
        books.database.connect() as settling,
        ThreadPoolExecutor(1) as pool,
    ):
        assert call(closing, "close_usage")["rows"] == 1
        settlement = pool.submit(books.settle, admission, connection=settling)
        wait_for_a_lock(books, settlement)
        assert books.call("close_usage") == {"busy": True, "behind": False}
        if kept:
            closing.commit()
        else:
            closing.rollback()
        assert settlement.result()["status"] == "settled"
    assert books.value("select count(*) from gateway.usage_rollups where late") == (1 if kept else 0)
    assert_figures_agree(books)
    close_all(books)
    assert_figures_agree(books)


def expire(connection: Connection) -> None:
    while call(connection, "expire_holds", p_limit=7)["expired"]:
        pass


def move_from_zone_to_zone(connection: Connection, customer: Customer) -> None:
    for zone in ZONES * 5:
        connection.execute("update gateway.customers set time_zone = %s where id = %s", [zone, customer.id])


def test_figures_agree_when_settlements_expiries_and_closings_meet(books: Engine) -> None:
    customers = [customer_in(books, zone) for zone in ZONES[:3]]
    now: datetime = books.value("select now()")
    set_back(books, now - timedelta(days=3))
    chance = some_chance(5)
    # in few quarters of an hour, so that all meet in the same rows
    times = [now - timedelta(hours=hours) for hours in (70, 69.9, 30, 29.8, 1, 0)]
    admissions = [
        admitted_at(
            books, chance.choice(customers).key_hash, chance.choice(times), chance.choice(["echo", "dear"])
        )
        for _ in range(300)
    ]
    for admission in admissions[200:]:
        books.lapse(admission)
    done = Event()

    def close(connection: Connection, number: int) -> None:
        chance = some_chance(number)
        while not done.is_set():
            call(connection, "close_usage", p_limit=chance.choice([1, 20_000]))

    def work(connection: Connection, number: int) -> None:
        if number == 4:
            expire(connection)
        elif number == 5:
            move_from_zone_to_zone(connection, customers[0])
        else:
            for admission in admissions[number::4]:
                books.settle(admission, connection=connection, latency_ms=number)

    with ThreadPoolExecutor(1) as pool:
        closers = pool.submit(race, books.database, 2, close)
        try:
            race(books.database, 6, work)
        finally:
            done.set()
        closers.result()
    assert books.value("select count(*) from gateway.requests where state = 'held'") == 0
    assert_figures_agree(books)
    close_all(books)
    assert_figures_agree(books)
    books.assert_books_agree()


# What is kept, and in which zone


def test_rollups_are_kept_as_long_as_the_setting_says_and_days_for_ever(books: Engine) -> None:
    customer = customer_in(books, "America/New_York")
    now: datetime = books.value("select now()")
    times = [now - timedelta(days=days) for days in (200, 94, 93.9, 60, 36, 34)]
    set_back(books, times[0])
    for at in times:
        books.settle(admitted_at(books, customer.key_hash, at))
    before = books.call("read_monitor", p_customer_id=customer.id)
    close_all(books)
    assert books.value("select count(*) from gateway.usage_rollups") == len(times)
    books.settings(usage_detail_days=35)
    close_all(books)
    ((kept,),) = books.query("select array_agg(bucket) from gateway.usage_rollups")
    assert kept == [bucket_of(times[5])]
    assert (
        books.value("select count(*) from gateway.usage_periods where per = 'quarter' and grouped_by = 'all'")
        == 1
    )
    assert books.call("read_monitor", p_customer_id=customer.id) == before
    zone = "America/New_York"
    rows = books.call(
        "read_usage", p_customer_id=customer.id, p_from=times[0], p_to=now, p_interval="day", p_group_by="key"
    )
    assert shown(rows) == by_interval(books, customer.id, "day", zone, group_by="key")
    # the longest is longer than what there is
    books.settings(usage_detail_days=None)
    close_all(books)
    assert books.value("select count(*) from gateway.usage_rollups") == 1
    # one that is settled after its rollup went is in the days all the same
    books.settle(admitted_at(books, customer.key_hash, times[0]))
    close_all(books)
    rows = books.call("read_usage", p_customer_id=customer.id, p_from=times[0], p_to=now, p_interval="month")
    assert shown(rows) == by_interval(books, customer.id, "month", zone)


def test_days_that_have_lost_their_rollups_keep_the_zone_they_were_closed_in(books: Engine) -> None:
    customer = customer_in(books, "Asia/Kolkata")
    now: datetime = books.value("select now()")
    old = period_of(now - timedelta(days=60), "day", "Asia/Kolkata") - MOMENT
    young = period_of(now - timedelta(days=10), "day", "Asia/Kolkata") - MOMENT
    set_back(books, old)
    for at in (old, young):
        books.settle(admitted_at(books, customer.key_hash, at))
    books.settings(usage_detail_days=35)
    close_all(books)
    books.run("update gateway.customers set time_zone = 'America/New_York' where id = %s", customer.id)
    rows = books.call(
        "read_usage", p_customer_id=customer.id, p_from=old - timedelta(days=3), p_to=now, p_interval="day"
    )
    there = ZoneInfo("America/New_York")
    days = [datetime.fromisoformat(row["start"]).astimezone(there).date() for row in rows if row["requests"]]
    assert days == [old.astimezone(ZoneInfo("Asia/Kolkata")).date(), young.astimezone(there).date()]
    assert books.call("read_monitor", p_customer_id=customer.id)["total_requests"] == 2


def test_another_zone_than_the_customers_is_made_up_from_the_rollups(books: Engine) -> None:
    customer = customer_in(books, "UTC")
    now: datetime = books.value("select now()")
    set_back(books, now - timedelta(days=20))
    for hours in range(0, 400, 7):
        books.settle(admitted_at(books, customer.key_hash, now - timedelta(hours=hours)))
    close_all(books)
    for zone, customer_id in itertools.product(ZONES, (customer.id, None)):
        for per in ("hour", "day", "month"):
            rows = books.call(
                "read_usage",
                p_customer_id=customer_id,
                p_from=now - timedelta(days=19),
                p_to=now,
                p_interval=per,
                p_time_zone=zone,
            )
            assert shown(rows) == by_interval(books, customer_id, per, zone), (zone, customer_id, per)


# What is shown


def test_an_hour_that_comes_twice_is_two_hours_and_a_day_has_as_many_as_it_has(shared_engine: Engine) -> None:
    customer = shared_engine.customer()
    for zone, day, hours, minutes in (
        ("America/New_York", "2026-11-01", 25, 60),
        ("America/New_York", "2026-03-08", 23, 60),
        ("Asia/Kathmandu", "2026-05-05", 24, 60),
        # midnight itself comes twice
        ("America/Havana", "2026-11-01", 25, 60),
        ("America/Havana", "2026-10-31", 24, 60),
    ):
        start = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone))
        stop = (datetime.fromisoformat(day) + timedelta(days=1)).replace(tzinfo=ZoneInfo(zone))
        rows = shared_engine.call(
            "read_usage",
            p_customer_id=customer.id,
            p_from=start,
            p_to=stop,
            p_interval="hour",
            p_time_zone=zone,
        )
        assert len(rows) == hours
        starts = [datetime.fromisoformat(row["start"]) for row in rows]
        assert all(
            after - before == timedelta(minutes=minutes) for before, after in itertools.pairwise(starts)
        )
        (whole,) = shared_engine.call(
            "read_usage",
            p_customer_id=customer.id,
            p_from=start,
            p_to=stop,
            p_interval="day",
            p_time_zone=zone,
        )
        assert datetime.fromisoformat(whole["end"]) - datetime.fromisoformat(whole["start"]) == timedelta(
            hours=hours
        )


@pytest.mark.parametrize("closing", [False, True])
def test_the_hour_before_the_second_midnight_is_the_days_that_begins(books: Engine, closing: bool) -> None:
    customer = customer_in(books, "America/Havana")
    set_back(books, datetime(2026, 10, 31, tzinfo=UTC))
    for text in ("2026-11-01 03:40", "2026-11-01 04:20", "2026-11-01 05:20"):
        at = datetime.fromisoformat(text).replace(tzinfo=UTC)
        books.settle(admitted_at(books, customer.key_hash, at))
    if closing:
        close_all(books)
    for zone in ("America/Havana", None):
        for day, requests in (("2026-10-31", 1), ("2026-11-01", 2)):
            for customer_id in (customer.id, None):
                told = books.call(
                    "read_time_series",
                    p_customer_id=customer_id,
                    p_from=day,
                    p_to=day,
                    p_time_zone=zone or "America/Havana",
                )
                assert [row["requests"] for row in told["data"]] == [requests], (day, customer_id)


def test_groups_beyond_what_is_shown_cost_no_more_than_to_be_counted(books: Engine) -> None:
    """A thousand keys by the hour of a month are 700,000 points: not made, only to be refused."""
    customer = books.customer()
    with books.by_engine():
        books.run(
            "insert into gateway.usage_rollups (customer_id, bucket, key_id, model_id, requests,"
            " last_request_at)"
            " select %s, gateway.rollup_bucket(now() - interval '3 days'), n, 1, 1, now()"
            " from generate_series(1001, 2000) as n",
            customer.id,
        )
    asked = {"p_customer_id": customer.id, "p_interval": "hour", "p_group_by": "key"}
    now: datetime = books.value("select now()")
    for days, refused in ((30, True), (0.3, False)):
        with books.database.connect() as connection:
            connection.execute("set statement_timeout = '5s'")
            told = call(
                connection,
                "read_time_series",
                **asked,
                p_from=(now - timedelta(days=3 + days / 2)).isoformat(),
                p_to=(now - timedelta(days=3 - days / 2)).isoformat(),
            )
        if refused:
            assert told == {"error": "too_many_points"}
        else:
            assert sum(row["requests"] for row in told["data"]) == 1000


@pytest.mark.parametrize(
    "parameters",
    [
        {"p_interval": "week"},
        {"p_interval": None},
        {"p_interval": "day", "p_group_by": "service"},
        {"p_interval": "day", "p_to": "infinity"},
        {"p_interval": "hour", "p_to": "2030-01-01"},
        {"p_interval": "day", "p_customer_id": None, "p_group_by": "key"},
        {"p_interval": "day", "p_customer_id": None, "p_key_id": 1},
    ],
)
def test_what_there_is_no_chart_of_is_refused(shared_engine: Engine, parameters: dict[str, Any]) -> None:
    given = {"p_customer_id": 1, "p_from": "2026-01-01", "p_to": "2026-01-02", **parameters}
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        shared_engine.call("read_usage", **given)


def test_bins_are_a_quarter_of_an_octave(shared_engine: Engine) -> None:
    times = sorted({0, 1, 2, 3, 1_000_000, 3_600_000} | {round(1.07**n) for n in range(200)})
    found = shared_engine.query("select ms, gateway.time_bin(ms) from unnest(%s::integer[]) as ms", times)
    assert dict(found) == {ms: bin_of(ms) for ms in times}
    for ms, middle in shared_engine.query(
        "select ms, gateway.time_of_bin(gateway.time_bin(ms)) from unnest(%s::integer[]) as ms", times[1:]
    ):
        assert abs(middle - ms) <= 0.0906 * ms + 0.5


@pytest.mark.parametrize("closing", [False, True])
def test_percentiles_are_within_a_tenth_of_the_exact_ones(books: Engine, closing: bool) -> None:
    customer = customer_in(books, "UTC")
    chance = some_chance(11)
    at = books.value("select now()") - timedelta(hours=2)
    set_back(books, at - timedelta(days=1))
    times = [int(chance.lognormvariate(6.5, 1.2)) + 1 for _ in range(201)]
    for number, ms in enumerate(times):
        books.settle(
            admitted_at(books, customer.key_hash, at - timedelta(minutes=number)),
            latency_ms=ms,
            time_to_first_token_ms=ms // 3 if number % 2 else None,
        )
    if closing:
        close_all(books)
    (row,) = books.call(
        "read_usage",
        p_customer_id=customer.id,
        p_from=at - timedelta(hours=5),
        p_to=at + QUARTER,
        p_interval="month",
    )
    assert row["latency_ms"]["average"] == sum(times) // len(times)
    firsts = [ms // 3 for ms in times[1::2]]
    for told, exact in ((row["latency_ms"], sorted(times)), (row["time_to_first_token_ms"], sorted(firsts))):
        for name, share in (("p50", 0.5), ("p95", 0.95)):
            true = exact[max(-(-len(exact) * int(share * 100) // 100) - 1, 0)]
            assert abs(told[name] - true) <= 0.0906 * true + 0.5, (name, told, true)


def test_nothing_used_is_zeros_and_no_percentiles(shared_engine: Engine) -> None:
    customer = shared_engine.customer()
    rows = shared_engine.call(
        "read_usage",
        p_customer_id=customer.id,
        p_from="2026-05-01T00:00Z",
        p_to="2026-05-04T00:00Z",
        p_interval="day",
    )
    assert [row["start"] for row in rows] == [f"2026-05-0{day}T00:00:00+00:00" for day in (1, 2, 3)]
    nothing: dict[str, Any] = {"p50": None, "p95": None, "average": None}
    assert all(
        (row["requests"], row["charge_usd"], row["latency_ms"], row["time_to_first_token_ms"], row["group"])
        == (0, "0", nothing, nothing, None)
        for row in rows
    )
    monitor = shared_engine.call("read_monitor", p_customer_id=customer.id)
    assert (monitor["total_requests"], monitor["most_used_model"], monitor["last_request_time"]) == (
        0,
        None,
        None,
    )
    assert shared_engine.call("read_monitor", p_customer_id=10**9) is None
    assert shared_engine.call("read_totals", p_customer_id=10**9) is None


def test_a_key_sees_its_own(books: Engine) -> None:
    customer = customer_in(books, "Asia/Kolkata")
    key_id, key_hash = books.key(customer.id)
    other = customer_in(books, "UTC")
    now: datetime = books.value("select now()")
    set_back(books, now - timedelta(days=2))
    for number, key in enumerate((customer.key_hash, key_hash, key_hash, other.key_hash)):
        books.settle(
            admitted_at(books, key, now - timedelta(hours=20 * (number % 2)), ["echo", "dear"][number % 2])
        )
    for _ in range(2):
        assert books.call("read_monitor", p_customer_id=customer.id)["total_requests"] == 3
        mine = books.call("read_monitor", p_customer_id=customer.id, p_key_id=key_id)
        assert (mine["total_requests"], mine["total_tokens"]) == (2, 300)
        # the other customer's key is nobody's here
        assert books.call("read_monitor", p_customer_id=other.id, p_key_id=key_id)["total_requests"] == 0
        for group_by in (None, "model", "provider", "key"):
            rows = books.call(
                "read_usage",
                p_customer_id=customer.id,
                p_key_id=key_id,
                p_from=now - timedelta(days=2),
                p_to=now,
                p_interval="day",
                p_group_by=group_by,
            )
            assert sum(row["requests"] for row in rows) == 2
        close_all(books)


def test_the_cost_is_hidden_from_customers_in_flat_mode(books: Engine) -> None:
    customer = customer_in(books, "UTC")
    books.settle(books.admitted(customer.key_hash))
    day = {"p_customer_id": customer.id, "p_from": "2026-01-01", "p_to": "2026-12-31", "p_interval": "month"}
    assert books.call("read_monitor", p_customer_id=customer.id)["cost_usd"] == "0.0006"
    books.settings(billing_mode="flat")
    assert books.call("read_monitor", p_customer_id=customer.id)["cost_usd"] is None
    assert {row["cost_usd"] for row in books.call("read_usage", **day, p_for_customer=True)} == {None}
    assert "0.0006" in {row["cost_usd"] for row in books.call("read_usage", **day)}


def test_the_most_used_model_is_this_months_or_else_evers(books: Engine) -> None:
    customer = customer_in(books, "America/New_York")
    now: datetime = books.value("select now()")
    last_month = period_of(now, "month", "America/New_York") - MOMENT
    set_back(books, last_month - timedelta(days=1))
    for _ in range(3):
        books.settle(admitted_at(books, customer.key_hash, last_month, "dear"))
    assert books.call("read_monitor", p_customer_id=customer.id)["most_used_model"] == "dear"
    books.settle(admitted_at(books, customer.key_hash, now, "echo"))
    assert books.call("read_monitor", p_customer_id=customer.id)["most_used_model"] == "echo"
    close_all(books)
    assert books.call("read_monitor", p_customer_id=customer.id)["most_used_model"] == "echo"


# The whole system


def providers_of(monitor: JSONObject) -> dict[str, JSONObject]:
    return {row["provider"]: row for row in monitor["providers"]}


@pytest.mark.parametrize("closing", [False, True])
def test_the_admin_monitor_is_todays_by_utc(books: Engine, closing: bool) -> None:
    now: datetime = books.value("select now()")
    today = period_of(now, "day", "UTC")
    set_back(books, today - timedelta(days=1))
    customers = [customer_in(books, zone) for zone in ZONES[:3]]
    keys = [books.key(customers[number % 3].id) for number in range(13)]
    yesterday = admitted_at(books, customers[0].key_hash, today - MOMENT)
    books.settle(yesterday, usage={"input": 9000, "output": 0})
    for number, (_, key_hash) in enumerate(keys):
        books.settle(
            admitted_at(books, key_hash, today + (now - today) * number / 13),
            usage={"input": 10 * (number + 1), "output": 0},
        )
    route = books.admitted(customers[0].key_hash, p_models=["dear"])
    candidate = route["candidates"][0]
    tried = {"route_id": candidate["route_id"], "service_id": candidate["service_id"], "status": 500}
    books.fail(route, failed_routes=[{**tried, "fault": "transient"}, {**tried, "fault": "client"}])
    running = books.admitted(customers[1].key_hash)
    books.refused(customers[1].key_hash, p_models=["none"])
    if closing:
        close_all(books)
    told = books.call("read_admin_monitor")
    assert (
        told["total_users"],
        told["active_users_today"],
        told["total_requests_today"],
        told["total_tokens_today"],
        told["errors_today"],
        told["refusals_today"],
    ) == (3, 3, 14, 910, 1, 1)
    assert (told["cost_today_usd"], told["total_charge_today_usd"]) == ("0.00182", "0.001911")
    assert (told["margin_today_usd"], told["uncollected_today_usd"]) == ("0.000091", "0")
    assert [(row["key_id"], row["tokens"], row["requests"]) for row in told["top_users_by_usage"]] == [
        (keys[number][0], 10 * (number + 1), 1) for number in range(12, 2, -1)
    ]
    assert len(told["recent_activity"]) == 10
    newest = told["recent_activity"][0]
    assert (newest["request_id"], newest["status"], newest["key_prefix"]) == (
        running["request_id"],
        "running",
        "sk_test",
    )
    assert told["held"] == {"requests": 1, "usd": running["hold_usd"]}
    by_provider = providers_of(told)
    failing, working = by_provider["anthropic"], by_provider["openai-compatible"]
    assert (failing["requests"], failing["errors"], failing["error_rate"]) == (1, 1, 1)
    assert failing["last_error_at"] is not None
    assert (working["requests"], working["errors"], working["last_error_at"]) == (13, 0, None)
    assert working["latency_ms"]["p50"] == 5


def test_who_came_since_the_closing_may_be_the_busiest(books: Engine) -> None:
    now: datetime = books.value("select now()")
    today = period_of(now, "day", "UTC")
    customer = customer_in(books, "UTC")
    set_back(books, today)
    keys = [books.key(customer.id) for _ in range(12)]
    for _, key_hash in keys:
        books.settle(admitted_at(books, key_hash, today), usage={"input": 100, "output": 0})
    close_all(books)
    for _, key_hash in keys[-2:]:
        books.settle(books.admitted(key_hash), usage={"input": 1, "output": 0})
    busiest = [row["key_id"] for row in books.call("read_admin_monitor")["top_users_by_usage"]]
    assert busiest[:2] == [key_id for key_id, _ in keys[-2:]]
    assert len(busiest) == 10


def test_the_last_use_of_a_key_is_known_however_long_ago(books: Engine) -> None:
    customer = customer_in(books, "UTC")
    now: datetime = books.value("select now()")
    at = now - timedelta(days=150)
    set_back(books, at)
    last_used = functools.partial(books.value, "select gateway.last_used_at(%s)", customer.key_id)
    assert last_used() is None
    books.settings(usage_detail_days=93)
    books.settle(admitted_at(books, customer.key_hash, at))
    assert last_used() == at
    close_all(books)
    assert books.value("select count(*) from gateway.usage_rollups") == 0
    assert last_used() == at
    late = at + timedelta(days=1)
    books.settle(admitted_at(books, customer.key_hash, late))
    assert last_used() == late


@pytest.mark.parametrize("statement", [
    "update gateway.usage_periods set requests = 0",
    "delete from gateway.key_days",
    "update gateway.usage_closing set closed_until = now()",
    "truncate gateway.usage_closing",
])  # fmt: skip
def test_the_closed_tier_is_not_edited_by_hand(shared_engine: Engine, statement: str) -> None:
    with pytest.raises(psycopg.errors.RestrictViolation):
        shared_engine.run(statement)


def test_the_migration_fills_in_what_older_rollups_lack(new_database: NewDatabase, tmp_path: Path) -> None:
    initial, *_ = sorted(paths.MIGRATIONS.glob("*.sql"))
    shutil.copy(initial, tmp_path)
    with new_database(migrated=False) as database, database.connect() as connection:
        migrate(database.url, directory=tmp_path)
        engine = Engine(database, connection)
        set_json_loads(functools.partial(json.loads, parse_float=Decimal), connection)
        engine.model("echo")
        engine.service(["echo"])
        customer = engine.customer("1000", requests_per_minute=1000)
        chance = some_chance("before")
        now: datetime = engine.value("select now()")
        for _ in range(40):
            at = now - timedelta(days=chance.choice([0, 1, 30]), hours=chance.uniform(0, 3))
            engine.settle(
                admitted_at(engine, customer.key_hash, at),
                usage=chance.choice(USAGES[:4]),
                latency_ms=chance.randrange(1, 50_000),
                time_to_first_token_ms=chance.choice([None, 0, chance.randrange(2000)]),
            )
        engine.lapse(admitted_at(engine, customer.key_hash, now - timedelta(hours=5)))
        engine.call("expire_holds")
        migrate(database.url)
        assert_figures_agree(engine)
        close_all(engine)
        assert_figures_agree(engine)


@pytest.mark.parametrize("told", [{}, [], [None, 7, "route"], [{"route_id": 10**9, "fault": "transient"}]])
def test_no_settlement_fails_for_what_is_told_of_failed_routes(books: Engine, told: Any) -> None:
    customer = customer_in(books, "UTC")
    settled = books.settle(books.admitted(customer.key_hash), failed_routes=told)
    assert settled["status"] == "settled"
    assert books.value("select sum(failures) from gateway.usage_rollups") == 0
