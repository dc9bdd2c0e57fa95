"""No hold leaks: a lease ends by itself, once, and what comes after it is settled late, once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.database.engine import digest, usd

if TYPE_CHECKING:
    from tests.database.engine import Customer, Engine, JSONObject

NOTHING = {"expired": 0, "charged_usd": "0", "released_usd": "0"}


def test_a_running_lease_is_left_alone(engine: Engine, customer: Customer) -> None:
    engine.admitted(customer.key_hash)
    before = engine.dump()
    assert engine.call("expire_holds") == NOTHING
    assert engine.dump() == before


def test_an_expired_hold_is_released(engine: Engine, customer: Customer) -> None:
    admission = engine.admitted(customer.key_hash)
    engine.lapse(admission)
    assert engine.check()["orphan_holds"] == 1
    assert engine.call("expire_holds") == {"expired": 1, "charged_usd": "0", "released_usd": "0.0063"}
    assert engine.account(customer.id) == (10, 0)
    assert engine.ledger(customer.id) == [("credit", usd(10))]
    request = engine.request(admission["request_id"])
    assert (request["state"], request["error_code"]) == ("expired", "hold_expired")
    assert engine.call("expire_holds") == NOTHING
    assert engine.check()["orphan_holds"] == 0
    engine.assert_books_agree()


def test_an_expired_hold_is_charged_where_the_policy_says_so(engine: Engine, customer: Customer) -> None:
    engine.settings(expired_hold_policy="charge")
    admission = engine.admitted(customer.key_hash)
    engine.lapse(admission)
    assert engine.call("expire_holds") == {"expired": 1, "charged_usd": "0.0063", "released_usd": "0"}
    assert engine.account(customer.id) == (usd("9.9937"), 0)
    assert engine.ledger(customer.id)[1:] == [("charge", usd("-0.0063"))]
    engine.assert_books_agree()
    # settled late, the difference comes back
    told = engine.settle(admission)
    assert (told["charge_usd"], told["uncollected_usd"]) == ("0.00063", "0")
    assert engine.ledger(customer.id)[2:] == [("late_settlement", usd("0.00567"))]
    assert engine.account(customer.id) == (usd("9.99937"), 0)
    engine.assert_books_agree()


def test_a_late_settlement_charges_once(engine: Engine, customer: Customer) -> None:
    admission = engine.admitted(customer.key_hash)
    engine.lapse(admission)
    engine.call("expire_holds")
    told = engine.settle(admission)
    assert (told["already"], told["charge_usd"], told["uncollected_usd"]) == (False, "0.00063", "0")
    before = engine.dump()
    again = engine.settle(admission, usage={"input": 1000, "output": 500})
    assert again == {**told, "already": True}
    assert engine.dump() == before
    assert engine.ledger(customer.id)[1:] == [("late_settlement", usd("-0.00063"))]
    assert engine.call("expire_holds") == NOTHING
    engine.assert_books_agree()


def test_a_late_settlement_takes_no_more_than_is_free(engine: Engine) -> None:
    customer = engine.customer("0.0063")
    admission = engine.admitted(customer.key_hash)
    engine.lapse(admission)
    engine.call("expire_holds")
    second = engine.admitted(customer.key_hash)  # holds all of it
    told = engine.settle(admission)
    assert (told["charge_usd"], told["uncollected_usd"]) == ("0.00063", "0.00063")
    assert engine.account(customer.id) == (usd("0.0063"), usd("0.0063"))
    assert engine.settle(second)["uncollected_usd"] == "0"
    engine.assert_books_agree()


def test_a_late_failure_charges_nothing(engine: Engine, customer: Customer) -> None:
    admission = engine.admitted(customer.key_hash)
    engine.lapse(admission)
    engine.call("expire_holds")
    assert engine.fail(admission)["charge_usd"] == "0"
    assert engine.account(customer.id) == (10, 0)
    engine.assert_books_agree()


def test_counters_and_rollups_come_out_the_same_late_or_in_time(engine: Engine) -> None:
    found = []
    for late in (False, True):
        customer = engine.customer()
        engine.call(
            "set_limits",
            p_customer_id=customer.id,
            p_rate_limits={"requests_per_month": 9, "tokens_per_month": 9000, "spend_usd_per_month": 9},
        )
        admission = engine.admitted(customer.key_hash)
        if late:
            engine.lapse(admission)
            engine.call("expire_holds")
            assert engine.counter("customer", customer.id, "month") == (1, 0, 0)
        engine.settle(admission)
        rollup = engine.query(
            "select service_id, requests, errors, total_tokens, cost_usd, charge_usd from"
            " gateway.usage_rollups"
            " where customer_id = %s and requests + errors <> 0",
            customer.id,
        )
        found.append((engine.counter("customer", customer.id, "month"), rollup))
    assert found[0] == found[1]
    assert found[0][0] == (1, 150, usd("0.00063"))
    assert len(found[0][1]) == 1
    # and no row of the rollup counts less than nothing
    assert (
        engine.query("select * from gateway.usage_rollups where least(requests, errors, charge_usd) < 0")
        == []
    )


def test_settling_twice_charges_once(engine: Engine, customer: Customer) -> None:
    admission = engine.admitted(customer.key_hash)
    first = engine.settle(admission)
    before = engine.dump()
    assert engine.settle(admission) == {**first, "already": True}
    assert engine.fail(admission)["charge_usd"] == "0.00063"
    assert engine.dump() == before


def test_a_settled_request_never_expires(engine: Engine, customer: Customer) -> None:
    admission = engine.admitted(customer.key_hash)
    engine.settle(admission)
    engine.lapse(admission)
    assert engine.call("expire_holds") == NOTHING


def test_a_request_that_is_not_there_is_said_to_be_unknown(engine: Engine, customer: Customer) -> None:
    admission = engine.admitted(customer.key_hash)
    before = engine.dump()
    unknown = {"status": "unknown_request"}
    assert engine.settle({**admission, "request_id": "req_" + "0" * 32}) == unknown
    assert engine.settle({**admission, "admitted_at": "2020-01-01T00:00:00Z"}) == unknown
    assert engine.settle({**admission, "admitted_at": None}) == unknown
    assert engine.dump() == before


def test_a_refused_request_cannot_be_settled(engine: Engine, customer: Customer) -> None:
    engine.refused(customer.key_hash, p_models=["none"], p_request_id="req_" + "a" * 32)
    rows = engine.query(
        "select admitted_at::text, state from gateway.requests where id = %s", "req_" + "a" * 32
    )
    assert [row[1] for row in rows] == ["refused"]
    admission = engine.admitted(customer.key_hash)
    told = engine.settle({**admission, "request_id": "req_" + "a" * 32, "admitted_at": rows[0][0]})
    assert told == {"status": "unknown_request"}


def test_the_oldest_leases_end_first_and_no_more_than_asked(engine: Engine, customer: Customer) -> None:
    admissions = [engine.admitted(customer.key_hash) for _ in range(5)]
    for admission in admissions:
        engine.lapse(admission)
    assert engine.call("expire_holds", p_limit=2)["expired"] == 2
    states = [engine.request(admission["request_id"])["state"] for admission in admissions]
    assert states == ["expired", "expired", "held", "held", "held"]
    assert engine.call("expire_holds")["expired"] == 3
    assert engine.account(customer.id) == (10, 0)


def keyed(engine: Engine, customer: Customer, **parameters: Any) -> JSONObject:
    return engine.admit(
        customer.key_hash, p_idempotency_key="order 7", p_body_hash=digest("body"), **parameters
    )


def test_nobody_pays_twice_for_a_key_that_was_used_again_after_the_expiry(
    engine: Engine, customer: Customer
) -> None:
    first = keyed(engine, customer)
    engine.lapse(first)
    engine.call("expire_holds")
    second = keyed(engine, customer)
    assert second["admitted"], second
    # the first comes in late while the second runs, or after it: its charge is the operator's loss
    told = engine.settle(first)
    assert (told["charge_usd"], told["uncollected_usd"]) == ("0.00063", "0.00063")
    engine.settle(second)
    assert engine.ledger(customer.id)[1:] == [("charge", usd("-0.00063"))]
    assert keyed(engine, customer)["refusal"] == "idempotency_reused"
    engine.assert_books_agree()


def test_a_refused_retry_does_not_let_a_third_one_pay_again(engine: Engine) -> None:
    customer = engine.customer("0.007")
    first = keyed(engine, customer)
    engine.lapse(first)
    engine.call("expire_holds")
    assert keyed(engine, customer, p_max_output_tokens=5000)["refusal"] == "insufficient_credits"
    assert engine.settle(first)["uncollected_usd"] == "0"
    third = keyed(engine, customer)
    assert (third["refusal"], third["first_request_id"]) == ("idempotency_reused", first["request_id"])


def test_a_failed_retry_does_not_let_a_third_one_pay_again(engine: Engine, customer: Customer) -> None:
    first = keyed(engine, customer)
    engine.lapse(first)
    engine.call("expire_holds")
    engine.fail(keyed(engine, customer))
    assert engine.settle(first)["uncollected_usd"] == "0"
    third = keyed(engine, customer)
    assert (third["refusal"], third["first_request_id"]) == ("idempotency_reused", first["request_id"])
    assert [kind for kind, _ in engine.ledger(customer.id)] == ["credit", "late_settlement"]


def test_a_key_whose_expired_hold_was_charged_is_not_free(engine: Engine, customer: Customer) -> None:
    engine.settings(expired_hold_policy="charge")
    engine.lapse(keyed(engine, customer))
    engine.call("expire_holds")
    assert keyed(engine, customer)["refusal"] == "idempotency_reused"
