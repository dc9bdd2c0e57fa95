"""Soft marks: a crossing is what was really used, recorded once for a window, with one event."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.database.engine import race, usd, wait_until_all_wait

if TYPE_CHECKING:
    from tests.database.engine import Customer, Engine, JSONObject
    from tests.fixtures.database import Connection

# One call of `echo`: 1,500 tokens and 0.0063 USD at its bound, 150 tokens and 0.00063 USD when it is settled.


def warn(engine: Engine, subject: dict[str, Any], **marks: Any) -> None:
    told = engine.call("set_limits", **subject, p_rate_limits={}, p_warn=marks)
    assert "error" not in told, told


def crossings(engine: Engine) -> list[tuple[Any, ...]]:
    return engine.query(
        "select subject, subject_id, model_id, metric || '_per_' || per, mark, used, customer_id"
        " from gateway.limit_crossings order by at"
    )


def events(engine: Engine) -> list[JSONObject]:
    return [
        row[0]
        for row in engine.query("select data from gateway.events where kind = %s", "limit.soft_crossed")
    ]


def test_a_bound_that_is_given_back_crosses_nothing(engine: Engine, customer: Customer) -> None:
    warn(engine, {"p_customer_id": customer.id}, tokens_per_day=1000, spend_usd_per_day="0.005")
    admission = engine.admitted(customer.key_hash)
    assert admission["warnings"] == ["spend_usd_per_day", "tokens_per_day"]
    engine.settle(admission)
    failed = engine.admitted(customer.key_hash)
    engine.fail(failed)
    assert (crossings(engine), events(engine)) == ([], [])


def test_what_is_used_crosses_at_the_settlement_that_goes_beyond(engine: Engine, customer: Customer) -> None:
    warn(engine, {"p_customer_id": customer.id}, tokens_per_day=300, spend_usd_per_month="0.00189")
    for number in range(4):
        engine.settle(engine.admitted(customer.key_hash))
        found = [(row[3], row[4], row[5]) for row in crossings(engine)]
        # 150, 300 (met exactly), 450 tokens; 0.00063, 0.00126, 0.00189 (met exactly), 0.00252 USD
        tokens, money = ("tokens_per_day", 300, 450), ("spend_usd_per_month", usd("0.00189"), usd("0.00252"))
        assert found == [[], [], [tokens], [tokens, money]][number]
    shown = {event["limit"]: (event["mark"], event["used"]) for event in events(engine)}
    assert shown == {"tokens_per_day": (300, 450), "spend_usd_per_month": ("0.00189", "0.00252")}
    engine.settle(engine.admitted(customer.key_hash))
    assert len(crossings(engine)) == len(events(engine)) == 2


def test_what_others_still_hold_is_not_used(engine: Engine, customer: Customer) -> None:
    warn(engine, {"p_key_id": customer.key_id}, tokens_per_day=1000)
    running = [engine.admitted(customer.key_hash) for _ in range(8)]
    for admission in running[:6]:  # 900 used, and 3,000 held by the other two
        engine.settle(admission)
    assert engine.counter("key", customer.key_id, "day")[1] == 900 + 3000
    assert crossings(engine) == []
    engine.settle(running[6])
    assert [row[5] for row in crossings(engine)] == [1050]
    engine.settle(running[7])
    assert len(events(engine)) == 1


def test_requests_cross_when_they_are_admitted(engine: Engine, customer: Customer) -> None:
    warn(engine, {"p_customer_id": customer.id}, requests_per_day=2)
    running = []
    for number in range(1, 5):
        running.append(engine.admitted(customer.key_hash))
        assert [row[3:6] for row in crossings(engine)] == ([("requests_per_day", 2, 3)] if number > 2 else [])
    for admission in running:
        engine.fail(admission)
    assert len(events(engine)) == 1


def test_a_refused_request_crosses_nothing(engine: Engine, customer: Customer) -> None:
    warn(engine, {"p_customer_id": customer.id}, requests_per_day=0, tokens_per_day=10)
    engine.refused(customer.key_hash, p_max_output_tokens=10**9)
    assert crossings(engine) == []


def test_each_subject_has_marks_of_its_own(engine: Engine, customer: Customer) -> None:
    model = engine.model("other")
    service = engine.service(["other"])
    warn(engine, {"p_key_id": customer.key_id, "p_each_model": True}, tokens_per_hour=149)
    warn(engine, {"p_key_id": customer.key_id}, tokens_per_hour=148)
    warn(engine, {"p_service_id": service}, spend_usd_per_day="0.0005")
    engine.settle(engine.admitted(customer.key_hash, p_models=["other"]))
    assert sorted(crossings(engine)) == [
        ("key", customer.key_id, 0, "tokens_per_hour", 148, 150, customer.id),
        ("key", customer.key_id, model, "tokens_per_hour", 149, 150, customer.id),
        ("service", service, 0, "spend_usd_per_day", usd("0.0005"), usd("0.0006"), None),
    ]
    told = engine.call("list_crossings", p_customer_id=customer.id)
    assert {(each["subject"], each["model"]) for each in told} == {("key", None), ("key", "other")}
    assert len(engine.call("list_crossings")) == 3
    assert len(engine.call("list_crossings", p_limit=1)) == 1
    stranger = engine.customer()
    assert engine.call("list_crossings", p_customer_id=stranger.id) == []
    assert engine.call("list_crossings", p_customer_id=stranger.id, p_key_id=customer.key_id) == []


def test_a_models_own_mark_comes_before_that_of_each_model(engine: Engine, customer: Customer) -> None:
    warn(engine, {"p_key_id": customer.key_id, "p_each_model": True}, tokens_per_hour=100)
    warn(engine, {"p_key_id": customer.key_id, "p_model": "echo"}, tokens_per_hour=200)
    engine.settle(engine.admitted(customer.key_hash))
    assert crossings(engine) == []
    engine.settle(engine.admitted(customer.key_hash))
    assert [row[4:6] for row in crossings(engine)] == [(200, 300)]


def test_a_fallback_that_did_not_answer_has_used_nothing(engine: Engine, customer: Customer) -> None:
    other = engine.model("other")
    busy, idle = engine.service(["echo"], priority=1), engine.service(["other"], priority=1)
    for service in (busy, idle):
        warn(engine, {"p_service_id": service}, requests_per_day=0)
    warn(engine, {"p_key_id": customer.key_id, "p_each_model": True}, requests_per_day=0)
    admission = engine.admitted(customer.key_hash, p_models=["echo", "other"])
    assert crossings(engine) == []  # which of them has used it is not known yet
    route = next(each for each in admission["candidates"] if each["service_id"] == idle)
    engine.settle(admission, route_id=route["route_id"])
    assert sorted(row[:4] for row in crossings(engine)) == [
        ("key", customer.key_id, other, "requests_per_day"),
        ("service", idle, 0, "requests_per_day"),
    ]


def test_a_makers_mark_is_crossed_by_the_keys_it_made(engine: Engine, customer: Customer) -> None:
    _, child = engine.key(customer.id, p_maker_key_id=customer.key_id)
    warn(engine, {"p_key_id": customer.key_id}, tokens_per_hour=100)
    engine.settle(engine.admitted(child))
    assert [row[:2] for row in crossings(engine)] == [("key", customer.key_id)]


@pytest.mark.parametrize(("policy", "crossed"), [("release", []), ("charge", ["spend_usd_per_day"])])
def test_an_expired_hold_has_used_what_it_was_charged(
    engine: Engine, policy: str, crossed: list[str]
) -> None:
    engine.settings(expired_hold_policy=policy)
    customer = engine.customer()
    warn(engine, {"p_customer_id": customer.id}, tokens_per_day=100, spend_usd_per_day="0.0005")
    admission = engine.admitted(customer.key_hash)
    engine.lapse(admission)
    assert engine.call("expire_holds")["expired"] == 1
    assert [row[3] for row in crossings(engine)] == crossed
    # settled late it has used what it has used, and no admission has marked the counter meanwhile
    engine.run("update gateway.limit_counters set marked = false")
    engine.settle(admission)
    assert sorted(row[3] for row in crossings(engine)) == ["spend_usd_per_day", "tokens_per_day"]
    assert len(events(engine)) == 2


def test_holds_that_expire_together_are_looked_at_together(engine: Engine, customer: Customer) -> None:
    engine.settings(expired_hold_policy="charge")
    warn(engine, {"p_customer_id": customer.id}, spend_usd_per_day="0.0188")
    for _ in range(3):
        engine.lapse(engine.admitted(customer.key_hash))
    engine.call("expire_holds")
    assert [row[5] for row in crossings(engine)] == [usd("0.0189")]


def test_a_provider_that_bills_beyond_the_bound_is_seen(engine: Engine, customer: Customer) -> None:
    warn(engine, {"p_customer_id": customer.id}, tokens_per_day=2000)
    admission = engine.admitted(customer.key_hash)
    assert admission["warnings"] == []
    engine.settle(admission, usage={"input": 5000, "output": 1})
    assert [row[5] for row in crossings(engine)] == [5001]


def test_a_mark_that_is_set_below_what_is_used_is_crossed_by_the_next(
    engine: Engine, customer: Customer
) -> None:
    engine.call("set_limits", p_customer_id=customer.id, p_rate_limits={"tokens_per_day": 10**6})
    for _ in range(3):
        engine.settle(engine.admitted(customer.key_hash))
    warn(engine, {"p_customer_id": customer.id}, tokens_per_day=100, requests_per_day=1)
    assert crossings(engine) == []
    engine.settle(engine.admitted(customer.key_hash))
    assert sorted(row[3:6] for row in crossings(engine)) == [
        ("requests_per_day", 1, 4),
        ("tokens_per_day", 100, 600),
    ]


def turn(engine: Engine, per: str = "minute") -> None:
    """As if the counters were of the window before: running requests were admitted in that."""
    engine.run(
        f"update gateway.limit_counters set window_start = window_start - interval '1 {per}' where per = %s",
        per,
    )
    with engine.by_engine():
        engine.run(
            "update gateway.requests set counted = array(select (x.subject, x.subject_id, x.model_id, x.per,"
            f" x.window_start - case x.per when %s then interval '1 {per}' else interval '0' end, x.requests,"
            " x.tokens, x.spend_usd)::gateway.counted from unnest(counted) as x) where state = 'held'",
            per,
        )


def test_a_window_that_turned_meanwhile_can_still_be_crossed(engine: Engine, customer: Customer) -> None:
    engine.into_a_fresh_minute(10)
    warn(engine, {"p_customer_id": customer.id}, tokens_per_minute=400)
    earlier = [engine.admitted(customer.key_hash) for _ in range(3)]
    start = engine.value("select window_start from gateway.limit_counters where subject = 'customer'")
    turn(engine)
    *later, running = [engine.admitted(customer.key_hash) for _ in range(3)]
    for admission in [*later, *earlier[:2]]:  # 300 in each window, and one still runs in the newer
        engine.settle(admission)
    assert crossings(engine) == []
    engine.settle(earlier[2])
    assert [row[4:6] for row in crossings(engine)] == [(400, 450)]
    seconds = engine.value(
        "select extract(epoch from %s - window_start)::int from gateway.limit_crossings", start
    )
    assert seconds == 60
    # of the newer window by itself
    engine.settle(running)
    assert [row[5] for row in crossings(engine)] == [450, 450]
    assert engine.counter("customer", customer.id, "minute")[1] == 450


def test_a_settlement_that_waits_for_the_turn_of_its_window_corrects_what_was_kept(
    engine: Engine, customer: Customer
) -> None:
    engine.into_a_fresh_minute(10)
    warn(engine, {"p_customer_id": customer.id}, tokens_per_minute=400)
    earlier = engine.admitted(customer.key_hash)  # beyond the mark by its bound of 1,500
    turn(engine)
    with (
        engine.database.connect(autocommit=False) as turning,
        engine.database.connect() as settling,
        ThreadPoolExecutor(1) as pool,
    ):
        engine.admitted(customer.key_hash, connection=turning)
        settled = pool.submit(engine.settle, earlier, connection=settling, usage={"input": 450})
        wait_until_all_wait(engine, [settled])
        turning.commit()
        settled.result()
    tables = ("turned_windows", "limit_counters")
    assert [
        engine.value(f"select tokens from gateway.{table} where subject = 'customer'") for table in tables
    ] == [450, 1500]
    assert [row[4:6] for row in crossings(engine)] == [(400, 450)]


def test_a_new_window_is_not_marked_for_the_old_one(engine: Engine, customer: Customer) -> None:
    engine.into_a_fresh_minute(5)
    warn(engine, {"p_customer_id": customer.id}, tokens_per_minute=1600)
    marked = "select marked from gateway.limit_counters where subject = 'customer'"
    for admission in [engine.admitted(customer.key_hash) for _ in range(2)]:
        assert engine.value(marked)
        engine.settle(admission)
    turn(engine)
    engine.admitted(customer.key_hash)
    assert not engine.value(marked)


def test_a_window_nowhere_near_its_mark_is_not_kept(engine: Engine, customer: Customer) -> None:
    engine.into_a_fresh_minute(5)
    warn(engine, {"p_customer_id": customer.id}, tokens_per_minute=10**6)
    earlier = engine.admitted(customer.key_hash)
    turn(engine)
    engine.settle(engine.admitted(customer.key_hash))
    engine.settle(earlier)
    assert engine.value("select count(*) from gateway.turned_windows") == 0
    assert engine.counter("customer", customer.id, "minute")[:2] == (1, 150)


def test_a_thousand_requests_over_the_mark_are_one_crossing_and_one_event(engine: Engine) -> None:
    customer = engine.customer("100", requests_per_minute=10**6)
    warn(engine, {"p_customer_id": customer.id}, tokens_per_month=75_000, requests_per_month=500)
    engine.run("update gateway.settings set webhook_url = 'https://x.example', webhook_secret = 'v1.a.b.c'")

    def work(connection: Connection, number: int) -> None:
        chance = random.Random(number)  # noqa: S311 - to mix, not to hide
        running: list[JSONObject] = []
        for _ in range(100):
            running.append(engine.admit(customer.key_hash, connection=connection))
            while running and (len(running) > 4 or chance.random() < 0.3):
                engine.settle(running.pop(chance.randrange(len(running))), connection=connection)
        for admission in running:
            engine.settle(admission, connection=connection)

    race(engine.database, 10, work)
    assert engine.counter("customer", customer.id, "month") == (1000, 150_000, usd("0.63"))
    # at the very request, and at the very settlement
    assert sorted(row[3:6] for row in crossings(engine)) == [
        ("requests_per_month", 500, 501),
        ("tokens_per_month", 75_000, 75_150),
    ]
    assert len(events(engine)) == 2
    assert engine.value("select count(*) from gateway.event_deliveries") == 2


def test_nobody_far_from_a_mark_pays_for_it(engine: Engine, customer: Customer) -> None:
    """No look at marks, crossings or running requests: only the counters know, and nobody asks further."""
    warn(engine, {"p_customer_id": customer.id}, tokens_per_day=10**9)
    engine.run("set track_functions = 'pl'")

    def calls() -> int:
        engine.run("select pg_stat_force_next_flush()")
        count: int = engine.value(
            "select coalesce(sum(calls), 0)::int from pg_stat_user_functions where funcname in"
            " ('record_crossings', 'soft_marks', 'still_running', 'record_crossing')"
        )
        return count

    before = calls()
    for _ in range(3):
        engine.settle(engine.admitted(customer.key_hash))
    assert calls() == before
    warn(engine, {"p_customer_id": customer.id}, tokens_per_day=10)
    engine.settle(engine.admitted(customer.key_hash))
    assert calls() > before


def test_an_event_goes_nowhere_where_no_webhook_is_set(engine: Engine, customer: Customer) -> None:
    warn(engine, {"p_customer_id": customer.id}, requests_per_day=0)
    engine.admitted(customer.key_hash)
    assert len(events(engine)) == 1
    assert engine.value("select count(*) from gateway.event_deliveries") == 0
