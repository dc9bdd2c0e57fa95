"""Limits: of requests, tokens and money; by minute, hour, day and month; of keys, customers and services."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.database.engine import usd

if TYPE_CHECKING:
    from tests.database.engine import Customer, Engine

# One call of `echo` at its bound: 1 request, 1,500 tokens, 0.0063 USD charged and 0.006 USD of cost.
WINDOWS = ("minute", "hour", "day", "month")


def limit(engine: Engine, subject: dict[str, Any], **limits: Any) -> None:
    told = engine.call("set_limits", **subject, p_rate_limits=limits)
    assert "error" not in told, told


def world(engine: Engine) -> tuple[Customer, str, int]:
    """A customer, and a model with a service of its own."""
    customer = engine.customer(requests_per_minute=10_000)
    name = f"limited-{customer.id}"
    engine.model(name)
    return customer, name, engine.service([name])


@pytest.mark.parametrize("per", WINDOWS)
@pytest.mark.parametrize("subject", ["key", "key and model", "each model", "customer", "service"])
@pytest.mark.parametrize(("metric", "most"), [("requests", 2), ("tokens", 3000), ("spend_usd", "0.0126")])
def test_limit_admits_what_fits_and_no_more(
    shared_engine: Engine, subject: str, per: str, metric: str, most: int | str
) -> None:
    engine = shared_engine
    engine.into_a_fresh_minute(2)
    customer, name, service = world(engine)
    subjects: dict[str, dict[str, Any]] = {
        "key": {"p_key_id": customer.key_id},
        "key and model": {"p_key_id": customer.key_id, "p_model": name},
        "each model": {"p_key_id": customer.key_id, "p_each_model": True},
        "customer": {"p_customer_id": customer.id},
        "service": {"p_service_id": service},
    }
    if (subject, metric) == ("service", "spend_usd"):
        most = "0.012"  # its cost, without the commission
    limit(engine, subjects[subject], **{f"{metric}_per_{per}": most})
    for _ in range(2):
        engine.admitted(customer.key_hash, p_models=[name])
    told = engine.refused(customer.key_hash, p_models=[name])
    assert told["refusal"] == "rate_limit_exceeded"
    assert told["subject"] == {"customer": "customer", "service": "service"}.get(subject, "key")
    assert (told["metric"], told["per"], told["limit"], told["never"]) == (metric, per, str(most), False)
    zone_end = engine.value(
        "select ceil(extract(epoch from gateway.window_end(%s, gateway.window_start(%s,"
        " clock_timestamp(), 'UTC'),"
        " 'UTC') - clock_timestamp()))::int",
        per,
        per,
    )
    assert told["retry_after_seconds"] in {zone_end, zone_end + 1}
    # the next window is another
    engine.run("update gateway.limit_counters set window_start = window_start - interval '40 days'")
    engine.admitted(customer.key_hash, p_models=[name])


def test_tokens_and_money_in_flight_count_at_their_bound(engine: Engine, customer: Customer) -> None:
    limit(engine, {"p_customer_id": customer.id}, tokens_per_day=100_000, spend_usd_per_day="5")
    admission = engine.admitted(customer.key_hash)
    assert engine.counter("customer", customer.id, "day") == (1, 1500, usd("0.0063"))
    engine.settle(admission)
    assert engine.counter("customer", customer.id, "day") == (1, 150, usd("0.00063"))
    engine.fail(engine.admitted(customer.key_hash))
    assert engine.counter("customer", customer.id, "day") == (2, 150, usd("0.00063"))


def test_settlement_corrects_only_the_windows_that_admitted_it(engine: Engine, customer: Customer) -> None:
    limit(engine, {"p_customer_id": customer.id}, tokens_per_hour=100_000, tokens_per_month=1_000_000)
    earlier = engine.admitted(customer.key_hash)
    # an hour passes: what was admitted then is of the hour before
    with engine.by_engine():
        engine.run(
            "update gateway.limit_counters set window_start = window_start - interval '1 hour' where"
            " per = 'hour'"
        )
        engine.run(
            "update gateway.requests as r set counted = array(select (c.subject, c.subject_id,"
            " c.model_id, c.per,"
            " c.window_start - case when c.per = 'hour' then interval '1 hour' else '0' end,"
            " c.requests, c.tokens, c.spend_usd)::gateway.counted from unnest(r.counted) as c)"
        )
    engine.admitted(customer.key_hash)
    assert engine.counter("customer", customer.id, "hour")[:2] == (1, 1500)
    engine.settle(earlier)
    assert engine.counter("customer", customer.id, "hour")[:2] == (1, 1500)
    assert engine.counter("customer", customer.id, "month")[:2] == (2, 1650)


def test_a_counter_set_back_by_hand_fails_no_settlement(engine: Engine, customer: Customer) -> None:
    limit(engine, {"p_customer_id": customer.id}, tokens_per_day=100_000)
    admission = engine.admitted(customer.key_hash)
    engine.run("update gateway.limit_counters set requests = 0, tokens = 0, spend_usd = 0")
    engine.settle(admission)
    assert engine.counter("customer", customer.id, "day") == (1 - 1, 0, 0)
    admission = engine.admitted(customer.key_hash)
    engine.run("delete from gateway.limit_counters")
    assert engine.settle(admission)["charge_usd"] == "0.00063"


def test_requests_are_sixty_a_minute_for_each_key_and_model_by_default(shared_engine: Engine) -> None:
    engine = shared_engine
    engine.into_a_fresh_minute(10)
    customer = engine.customer()
    engine.model(f"other-{customer.id}")
    engine.service([f"other-{customer.id}"])
    for left in range(59, -1, -1):
        told = engine.admitted(customer.key_hash)["rate_limits"]["requests"]
        assert (told["limit"], told["remaining"]) == (60, left)
    told = engine.refused(customer.key_hash)
    assert (told["metric"], told["per"], told["limit"], told["subject"]) == (
        "requests",
        "minute",
        "60",
        "key",
    )
    assert told["rate_limits"]["requests"]["remaining"] == 0
    # another model, and another key, have windows of their own
    engine.admitted(customer.key_hash, p_models=[f"other-{customer.id}"])
    _, second = engine.key(customer.id)
    engine.admitted(second)


@pytest.mark.parametrize(
    ("subject", "limits", "expected"),
    [
        ({}, {"requests_per_minute": 100}, 100),
        ({"p_each_model": True}, {"requests_per_minute": 100}, 100),
        ({"p_model": "echo"}, {"requests_per_minute": 100}, 100),
        # a row of another window says nothing of this one
        ({}, {"requests_per_hour": 1000}, 60),
        ({}, {"tokens_per_minute": 10_000}, 60),
        ({"p_each_model": True}, {"requests_per_minute": 7}, 7),
    ],
)
def test_a_row_of_the_keys_own_replaces_the_default(
    shared_engine: Engine, subject: dict[str, Any], limits: dict[str, int], expected: int
) -> None:
    customer = shared_engine.customer()
    limit(shared_engine, {"p_key_id": customer.key_id, **subject}, **limits)
    told = shared_engine.admitted(customer.key_hash)["rate_limits"]["requests"]
    assert (told["limit"], told["remaining"]) == (expected, expected - 1)


def test_the_row_that_names_the_model_goes_before_that_for_each(shared_engine: Engine) -> None:
    customer, name, _ = world(shared_engine)
    key = {"p_key_id": customer.key_id}
    limit(shared_engine, {**key, "p_each_model": True}, requests_per_minute=5)
    limit(shared_engine, {**key, "p_model": name}, requests_per_minute=9)
    assert shared_engine.admitted(customer.key_hash, p_models=[name])["rate_limits"]["requests"]["limit"] == 9
    assert shared_engine.admitted(customer.key_hash)["rate_limits"]["requests"]["limit"] == 5


def test_a_limit_of_null_is_removed(shared_engine: Engine) -> None:
    customer = shared_engine.customer()
    key = {"p_key_id": customer.key_id}
    limit(shared_engine, key, requests_per_minute=0, tokens_per_day=5)
    assert shared_engine.refused(customer.key_hash)["never"] is True
    limit(shared_engine, key, requests_per_minute=None, tokens_per_day=None)
    assert shared_engine.admitted(customer.key_hash)["rate_limits"]["requests"]["limit"] == 60
    assert shared_engine.query("select * from gateway.limits where key_id = %s", customer.key_id) == []


def test_without_a_default_nothing_is_counted_that_nobody_limits(shared_engine: Engine) -> None:
    shared_engine.settings(default_requests_per_minute=None)
    customer = shared_engine.customer()
    admission = shared_engine.admitted(customer.key_hash)
    assert admission["rate_limits"] == {"requests": None, "tokens": None}
    assert (
        shared_engine.query(
            "select * from gateway.limit_counters where subject = 'key' and subject_id = %s", customer.key_id
        )
        == []
    )


def test_a_limit_of_a_service_drops_the_candidate(engine: Engine, customer: Customer) -> None:
    first = engine.value("select id from gateway.services")
    second = engine.service(["echo"], priority=200)
    limit(engine, {"p_service_id": first}, requests_per_day=1)
    assert [c["service_id"] for c in engine.admitted(customer.key_hash)["candidates"]] == [first, second]
    assert [c["service_id"] for c in engine.admitted(customer.key_hash)["candidates"]] == [second]
    # of the operator's own limits a client's headers say nothing
    assert engine.admitted(customer.key_hash)["rate_limits"]["requests"]["limit"] == 60


def test_a_service_counts_only_what_it_answered(engine: Engine, customer: Customer) -> None:
    first = engine.value("select id from gateway.services")
    second = engine.service(["echo"], priority=200)
    for service in (first, second):
        limit(
            engine, {"p_service_id": service}, requests_per_day=10, tokens_per_day=10_000, spend_usd_per_day=1
        )
    admission = engine.admitted(customer.key_hash)
    assert engine.counter("service", first, "day") == (1, 1500, usd("0.006"))
    assert engine.counter("service", second, "day") == (1, 1500, usd("0.006"))
    engine.settle(admission, route_id=admission["candidates"][1]["route_id"])
    assert engine.counter("service", first, "day") == (0, 0, 0)
    assert engine.counter("service", second, "day") == (1, 150, usd("0.0006"))


def test_a_model_that_did_not_answer_is_given_its_request_back(engine: Engine, customer: Customer) -> None:
    engine.model("other")
    engine.service(["other"])
    limit(
        engine, {"p_key_id": customer.key_id, "p_each_model": True}, requests_per_day=5, tokens_per_day=10_000
    )
    admission = engine.admitted(customer.key_hash, p_models=["echo", "other"])
    ids = {row[1]: row[0] for row in engine.query("select id, name from gateway.models")}
    engine.settle(admission, route_id=admission["candidates"][1]["route_id"])
    assert engine.counter("key", customer.key_id, "day", ids["echo"])[:2] == (0, 0)
    assert engine.counter("key", customer.key_id, "day", ids["other"])[:2] == (1, 150)


@pytest.mark.parametrize("metric", ["requests", "tokens", "spend_usd"])
def test_a_soft_mark_warns_and_admits(shared_engine: Engine, metric: str) -> None:
    customer = shared_engine.customer()
    mark = {"requests": 1, "tokens": 1500, "spend_usd": "0.0063"}[metric]
    shared_engine.call("set_limits", p_customer_id=customer.id, p_warn={f"{metric}_per_month": mark})
    assert shared_engine.admitted(customer.key_hash)["warnings"] == []
    assert shared_engine.admitted(customer.key_hash)["warnings"] == [f"{metric}_per_month"]


def test_a_limit_warns_from_eighty_percent_on_if_not_told_otherwise(shared_engine: Engine) -> None:
    customer = shared_engine.customer()
    limit(shared_engine, {"p_key_id": customer.key_id}, requests_per_day=5)
    warned = [bool(shared_engine.admitted(customer.key_hash)["warnings"]) for _ in range(5)]
    assert warned == [False, False, False, False, True]


def test_never_is_said_where_no_window_could_admit_it(shared_engine: Engine) -> None:
    customer = shared_engine.customer()
    limit(shared_engine, {"p_key_id": customer.key_id}, tokens_per_day=1499)
    assert shared_engine.refused(customer.key_hash)["never"] is True


def test_never_goes_by_the_narrowest_window_not_by_the_fullest(shared_engine: Engine) -> None:
    shared_engine.into_a_fresh_minute(3)
    customer = shared_engine.customer()
    limit(shared_engine, {"p_key_id": customer.key_id}, tokens_per_minute=2000, tokens_per_day=5000)
    for bound in (900, 0):  # 1,900 and 1,000 tokens: 2,100 of the day are left, and none of the minute
        shared_engine.admit(customer.key_hash, p_max_output_tokens=bound)
    told = shared_engine.refused(customer.key_hash, p_max_output_tokens=1500)
    assert (told["never"], told["per"], told["limit"]) == (True, "minute", "2000")


def test_of_several_full_windows_the_last_to_end_is_to_be_waited_for(shared_engine: Engine) -> None:
    shared_engine.into_a_fresh_minute(3)
    customer = shared_engine.customer()
    limit(
        shared_engine,
        {"p_key_id": customer.key_id},
        tokens_per_minute=1500,
        requests_per_hour=1,
        tokens_per_month=2000,
    )
    shared_engine.admitted(customer.key_hash)
    told = shared_engine.refused(customer.key_hash)
    assert (told["metric"], told["per"]) == ("tokens", "month")
    assert told["retry_after_seconds"] > 3600


def test_headers_show_the_tightest_window(shared_engine: Engine) -> None:
    customer = shared_engine.customer()
    limit(
        shared_engine,
        {"p_key_id": customer.key_id},
        requests_per_minute=50,
        requests_per_day=20,
        tokens_per_hour=9000,
    )
    limit(shared_engine, {"p_customer_id": customer.id}, requests_per_month=30, tokens_per_month=8000)
    told = shared_engine.admitted(customer.key_hash)["rate_limits"]
    assert (told["requests"]["limit"], told["requests"]["remaining"]) == (20, 19)
    assert (told["tokens"]["limit"], told["tokens"]["remaining"]) == (8000, 6500)
    assert 0 < told["requests"]["reset_seconds"] <= 86_400


def test_days_are_the_customers_and_a_services_are_utc(engine: Engine, customer: Customer) -> None:
    engine.run("update gateway.customers set time_zone = 'Asia/Kolkata' where id = %s", customer.id)
    service = engine.value("select id from gateway.services")
    limit(engine, {"p_customer_id": customer.id}, requests_per_day=5)
    limit(engine, {"p_service_id": service}, requests_per_day=5)
    engine.admitted(customer.key_hash)
    starts = dict(engine.query("select subject, window_start from gateway.limit_counters where per = 'day'"))
    assert (starts["customer"].hour, starts["customer"].minute) == (18, 30)
    assert (starts["service"].hour, starts["service"].minute) == (0, 0)


def test_a_limit_edited_by_hand_holds_for_the_next_request(engine: Engine, customer: Customer) -> None:
    engine.run("insert into gateway.limits (customer_id, per, requests) values (%s, 'day', 1)", customer.id)
    engine.admitted(customer.key_hash)
    assert engine.refused(customer.key_hash)["subject"] == "customer"
    engine.run("update gateway.limits set requests = 2")
    engine.admitted(customer.key_hash)
    # below what is used already
    engine.run("update gateway.limits set requests = 1, spend_usd = 0.001")
    assert engine.refused(customer.key_hash)["refusal"] == "rate_limit_exceeded"
    engine.run("delete from gateway.limits")
    engine.admitted(customer.key_hash)
