"""What the operator is told of money: once per crossing, by the booking that makes it, or not at all."""

from __future__ import annotations

import uuid
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from gateway.openapi.events import EVENTS
from tests.database.engine import call, race, usd

if TYPE_CHECKING:
    from tests.database.engine import Customer, Engine, JSONObject
    from tests.fixtures.database import Connection

TOPIC = "arn:aws:sns:eu-central-1:123456789012:alerts"
CHARGE = usd("0.00063")
"""What `Engine.settle` charges: 100 tokens in and 50 out, with the commission."""


def told(engine: Engine, *kinds: str) -> list[JSONObject]:
    """The data of the events of these kinds, the oldest first."""
    rows = engine.query(
        "select kind, data from gateway.events where kind = any (%s) order by at, id", list(kinds)
    )
    for kind, data in rows:
        EVENTS[kind].data.model_validate(data)  # as the document has it
    return [row[1] for row in rows]


def kinds(engine: Engine) -> list[str]:
    return [row[0] for row in engine.query("select kind from gateway.events order by at, id")]


def spend(engine: Engine, customer: Customer) -> None:
    engine.settle(engine.admitted(customer.key_hash))


# The balance falls below its mark


def test_the_settlement_that_crosses_the_mark_tells_of_it_and_no_other(engine: Engine) -> None:
    engine.settings(low_balance_usd=str(10 - 2 * CHARGE))
    customer = engine.customer("10")
    spend(engine, customer)
    spend(engine, customer)
    assert told(engine, "balance.low") == []  # at the mark is not below it
    spend(engine, customer)
    [event] = told(engine, "balance.low")
    assert event == {
        "customer_id": customer.id,
        "balance_usd": "9.99811",
        "held_usd": "0",
        "low_balance_usd": "9.99874",
    }
    assert engine.query("select subject, customer_id from gateway.events where kind = 'balance.low'") == [
        (f"customer:{customer.id}", customer.id)
    ]
    spend(engine, customer)
    assert len(told(engine, "balance.low")) == 1


def test_what_brings_it_back_arms_it_again(engine: Engine) -> None:
    engine.settings(low_balance_usd="10")
    customer = engine.customer("10")
    spend(engine, customer)
    engine.call("add_credits", p_customer_id=customer.id, p_usd=CHARGE / 2)
    spend(engine, customer)
    assert len(told(engine, "balance.low")) == 1  # it never was back
    engine.call("add_credits", p_customer_id=customer.id, p_usd=2 * CHARGE)
    spend(engine, customer)
    assert len(told(engine, "balance.low")) == 2


@pytest.mark.parametrize(
    ("setting", "own", "alerts"),
    [("10", None, 1), ("10", "0", 0), ("1", "10", 1), (None, None, 0), (None, "10", 1), ("0", None, 0)],
)
def test_a_customers_own_mark_goes_before_the_settings(
    engine: Engine, setting: str | None, own: str | None, alerts: int
) -> None:
    engine.settings(low_balance_usd=setting)
    customer = engine.customer("10")
    changed = engine.call("update_customer", p_id=customer.id, p_changes={"low_balance_usd": own})
    assert changed["low_balance_usd"] == own
    spend(engine, customer)
    assert len(told(engine, "balance.low")) == alerts


def test_a_mark_set_above_a_balance_tells_nothing(engine: Engine) -> None:
    customer = engine.customer("10")
    spend(engine, customer)
    engine.settings(low_balance_usd="20")
    spend(engine, customer)
    assert told(engine, "balance.low") == []


def test_running_calls_are_no_spending(engine: Engine) -> None:
    """What is held is still there, and may come back."""
    engine.settings(low_balance_usd="9.999")
    customer = engine.customer("10")
    admission = engine.admitted(customer.key_hash)
    assert engine.account(customer.id)[1] > usd("0.001")
    engine.fail(admission)
    assert told(engine, "balance.low") == []


def test_one_of_many_settlements_at_once_tells_of_the_crossing(engine: Engine) -> None:
    engine.settings(low_balance_usd=str(10 - 10 * CHARGE), default_requests_per_minute=None)
    customer = engine.customer("10")
    for rounds in range(1, 3):
        admissions = [engine.admitted(customer.key_hash) for _ in range(24)]

        def work(connection: Connection, number: int, held: list[JSONObject] = admissions) -> None:
            for admission in held[number::8]:
                engine.settle(admission, connection=connection)

        race(engine.database, 8, work)
        assert len(told(engine, "balance.low")) == rounds
        balance = engine.account(customer.id)[0]
        assert balance < 10 - 10 * CHARGE
        engine.call("add_credits", p_customer_id=customer.id, p_usd=10 - balance)
    engine.assert_books_agree()


def test_a_settlement_that_is_rolled_back_or_repeated_tells_nothing(engine: Engine) -> None:
    engine.settings(low_balance_usd="10")
    customer = engine.customer("10")
    admission = engine.admitted(customer.key_hash)
    with engine.database.connect(autocommit=False) as connection:
        engine.settle(admission, connection=connection)
        connection.rollback()
    assert kinds(engine) == []
    engine.settle(admission)
    assert engine.settle(admission)["already"]
    assert kinds(engine) == ["balance.low"]


def test_refunds_corrections_and_charged_holds_cross_it_too(engine: Engine) -> None:
    engine.settings(low_balance_usd="10", expired_hold_policy="charge")
    refunded, corrected, lapsed = (engine.customer(None) for _ in range(3))
    for number, customer in enumerate((refunded, corrected, lapsed)):
        engine.paid(customer.id, 1000, f"pi_{number}")
        engine.fail(engine.admitted(customer.key_hash))
    engine.refunded(100, "pi_0")
    engine.call("add_credits", p_customer_id=corrected.id, p_usd=usd("-1"))
    engine.lapse(engine.admitted(lapsed.key_hash))
    assert engine.call("expire_holds")["expired"] == 1
    assert [event["customer_id"] for event in told(engine, "balance.low")] == [
        refunded.id,
        corrected.id,
        lapsed.id,
    ]
    assert told(engine, "hold.expired_unsettled") == []  # a hold that is charged costs the operator nothing


def test_a_correction_to_the_mark_or_further_below_it_tells_nothing(engine: Engine) -> None:
    engine.settings(low_balance_usd="9")
    customer = engine.customer("10")
    engine.fail(engine.admitted(customer.key_hash))
    for balance, events in ((9, 0), (8, 1), (7, 1)):
        engine.call("add_credits", p_customer_id=customer.id, p_usd=usd("-1"))
        assert engine.account(customer.id)[0] == balance
        assert len(told(engine, "balance.low")) == events


# Calls are refused for want of money


def test_the_first_call_refused_for_money_tells_of_it_until_the_customer_pays(engine: Engine) -> None:
    customer = engine.customer("0.002")
    for _ in range(3):
        engine.refused(customer.key_hash)
    [event] = told(engine, "balance.exhausted")
    assert event == {
        "customer_id": customer.id,
        "balance_usd": "0.002",
        "held_usd": "0",
        "debt_usd": "0",
        "needed_usd": "0.0063",
    }
    engine.call("add_credits", p_customer_id=customer.id, p_usd=usd("0.0001"))
    engine.refused(customer.key_hash)
    engine.refused(customer.key_hash)
    assert len(told(engine, "balance.exhausted")) == 2


def test_a_call_that_is_only_too_long_exhausts_nothing(engine: Engine) -> None:
    customer = engine.customer("0.006")
    refusal = engine.refused(customer.key_hash)
    assert refusal["affordable_output_tokens"] >= 16
    assert kinds(engine) == []


def test_one_of_many_refusals_at_once_tells_of_it(engine: Engine) -> None:
    engine.settings(default_requests_per_minute=None)
    customer = engine.customer("0.002")

    def work(connection: Connection, _: int) -> None:
        for _ in range(5):
            engine.refused(customer.key_hash, connection=connection)

    race(engine.database, 8, work)
    assert kinds(engine) == ["balance.exhausted"]


def test_who_owes_is_told_of_as_exhausted(engine: Engine) -> None:
    customer = engine.customer(None)
    engine.paid(customer.id, 100)
    engine.admitted(customer.key_hash)
    engine.refunded(100)
    assert engine.debt(customer.id) > 0
    engine.refused(customer.key_hash)
    engine.refused(customer.key_hash)
    [event] = told(engine, "balance.exhausted")
    assert (Decimal(event["debt_usd"]), event["needed_usd"]) == (engine.debt(customer.id), None)


def test_other_refusals_tell_nothing(engine: Engine) -> None:
    customer = engine.customer("10", requests_per_minute=1)
    engine.admitted(customer.key_hash)
    assert engine.refused(customer.key_hash)["refusal"] == "rate_limit_exceeded"
    assert engine.refused(customer.key_hash, p_models=["none"])["refusal"] == "model_not_found"
    assert kinds(engine) == []


# A charge that the balance could not give


def test_what_could_not_be_collected_is_told_once(engine: Engine) -> None:
    engine.settings(low_balance_usd="0")
    customer = engine.customer("0.0063")
    admission = engine.admitted(customer.key_hash)
    for _ in range(2):
        engine.settle(admission, usage={"input": 1000, "output": 5000})
    [event] = told(engine, "request.uncollected")
    assert event == {
        "request_id": admission["request_id"],
        "customer_id": customer.id,
        "key_id": customer.key_id,
        "model": "echo",
        "service_id": admission["candidates"][0]["service_id"],
        "hold_usd": "0.0063",
        "cost_usd": "0.042",
        "charge_usd": "0.0441",
        "collected_usd": "0.0063",
        "uncollected_usd": "0.0378",
        "late": False,
    }
    assert engine.value("select uncollected_usd from gateway.requests where state = 'settled'") == usd(
        "0.0378"
    )


def test_a_late_settlement_says_that_it_is(engine: Engine) -> None:
    customer = engine.customer("0.0063")
    admission = engine.admitted(customer.key_hash)
    engine.lapse(admission)
    engine.call("expire_holds")
    engine.call("add_credits", p_customer_id=customer.id, p_usd=usd("-0.0063"))
    engine.settle(admission)
    [event] = told(engine, "request.uncollected")
    assert (event["late"], event["uncollected_usd"]) == (True, "0.00063")


# Holds that nobody settled


def test_a_batch_of_expired_holds_is_told_in_one_event(engine: Engine) -> None:
    one, other = engine.customer(), engine.customer()
    admissions = [engine.admitted(customer.key_hash) for customer in (one, one, other)]
    for admission in admissions:
        engine.lapse(admission)
    assert engine.call("expire_holds")["expired"] == 3
    assert engine.call("expire_holds")["expired"] == 0
    [event] = told(engine, "hold.expired_unsettled")
    assert (event["holds"], event["customers"], event["released_usd"]) == (3, 2, "0.0189")
    assert event["request_ids"] == [admission["request_id"] for admission in admissions]


# The books


def differ(engine: Engine, customer: Customer, by: str) -> None:
    with engine.by_engine():
        engine.run(
            "update gateway.accounts set balance_usd = balance_usd + %s where customer_id = %s",
            usd(by),
            customer.id,
        )


def test_each_finding_is_told_once_and_its_end(engine: Engine) -> None:
    one, other = engine.customer(), engine.customer()
    assert engine.call("watch_ledger") == {"ok": True, "raised": None}
    differ(engine, one, "1")
    assert engine.call("watch_ledger") == {"ok": False, "raised": "ledger.mismatch"}
    spend(engine, one)  # traffic changes the figures and not the finding
    assert engine.call("watch_ledger") == {"ok": False, "raised": None}
    differ(engine, other, "2")
    assert engine.call("watch_ledger")["raised"] == "ledger.mismatch"
    differ(engine, one, "-1")
    assert engine.call("watch_ledger")["raised"] == "ledger.mismatch"
    differ(engine, other, "-2")
    assert engine.call("watch_ledger") == {"ok": True, "raised": "ledger.ok"}
    assert engine.call("watch_ledger") == {"ok": True, "raised": None}
    first, second, third = told(engine, "ledger.mismatch")
    assert [event["customers"] for event in (first, second, third)] == [1, 2, 1]
    assert first["since"] == second["since"] == third["since"]
    [mismatch] = first["mismatches"]
    assert (mismatch["customer_id"], mismatch["balance_usd"], mismatch["ledger_usd"]) == (one.id, "11", "10")
    assert told(engine, "ledger.ok") == [{"accounts": 2}]


def test_an_event_shows_twenty_accounts_of_however_many(engine: Engine) -> None:
    customers = [engine.customer() for _ in range(22)]
    for customer in customers:
        differ(engine, customer, "1")
    engine.call("watch_ledger")
    [event] = told(engine, "ledger.mismatch")
    assert (event["customers"], len(event["mismatches"])) == (22, 20)


def test_checks_at_once_tell_of_a_finding_once(engine: Engine) -> None:
    differ(engine, engine.customer(), "1")
    race(engine.database, 4, lambda connection, _: call(connection, "watch_ledger"))
    assert kinds(engine) == ["ledger.mismatch"]


def test_the_check_is_due_once_an_hour_for_one_caller(engine: Engine) -> None:
    def claim(connection: Connection, _: int) -> Any:
        return call(connection, "claim_ledger_check", p_every_seconds=3600)

    assert sum(race(engine.database, 6, claim)) == 1
    assert claim(engine.connection, 0) is False
    with engine.by_engine():
        engine.run("update gateway.maintenance_state set ledger_checked_at = now() - interval '3601 seconds'")
    assert sum(race(engine.database, 6, claim)) == 1


# The topic


def raise_event(engine: Engine) -> str:
    return str(engine.value("select gateway.raise_event('ledger.ok', 'ledger', '{}')"))


def claim_topic(engine: Engine, topic: str | None = TOPIC, limit: int = 10) -> list[JSONObject]:
    answer = engine.call("claim_topic_deliveries", p_topic_arn=topic, p_limit=limit, p_lease_seconds=60)
    found: list[JSONObject] = answer["deliveries"]
    return found


def finish_topic(engine: Engine, delivery: JSONObject, *, delivered: bool = False) -> JSONObject:
    answer: JSONObject = engine.call(
        "finish_topic_delivery",
        p_event_id=uuid.UUID(delivery["event_id"]),
        p_attempt=delivery["attempt"],
        p_delivered=delivered,
        p_status=200 if delivered else 403,
        p_error=None if delivered else "AuthorizationError",
    )
    return answer


def let_time_pass(engine: Engine) -> None:
    engine.run(
        "update gateway.topic_deliveries set claimed_until = claimed_until - interval '1 day',"
        " next_attempt_at = next_attempt_at - interval '1 day'"
    )


def test_the_topic_gets_what_is_raised_from_when_it_is_named(engine: Engine) -> None:
    raise_event(engine)
    assert claim_topic(engine) == []
    raised = raise_event(engine)
    [delivery] = claim_topic(engine)
    assert (delivery["event_id"], delivery["attempt"], delivery["type"]) == (raised, 1, "ledger.ok")
    assert (delivery["subject"], delivery["data"]) == ("ledger", {})
    assert claim_topic(engine) == []  # while the lease runs
    assert finish_topic(engine, delivery, delivered=True)["state"] == "delivered"
    let_time_pass(engine)
    assert claim_topic(engine) == []
    # and taken away it gets nothing more
    assert claim_topic(engine, None) == []
    raise_event(engine)
    assert claim_topic(engine) == []


def test_the_topic_and_the_webhook_do_not_wait_for_each_other(engine: Engine) -> None:
    engine.run("update gateway.settings set webhook_url = 'https://x.example', webhook_secret = 'v1.a.b.c'")
    claim_topic(engine)
    raise_event(engine)
    [delivery] = claim_topic(engine)
    finish_topic(engine, delivery, delivered=True)
    figures = engine.call("read_deliveries")
    assert (figures["waiting"], figures["topic"]["waiting"]) == (1, 0)
    [delivery] = engine.call("claim_deliveries", p_limit=10, p_lease_seconds=60)["deliveries"]
    assert delivery["attempt"] == 1


def test_the_topics_claims_are_as_the_webhooks(engine: Engine) -> None:
    claim_topic(engine)
    for _ in range(30):
        raise_event(engine)

    def work(connection: Connection, _: int) -> list[str]:
        taken: list[str] = []
        parameters = {"p_topic_arn": TOPIC, "p_limit": 3, "p_lease_seconds": 60}
        while found := call(connection, "claim_topic_deliveries", **parameters)["deliveries"]:
            taken += [delivery["event_id"] for delivery in found]
        return taken

    taken = [identity for part in race(engine.database, 6, work) for identity in part]
    taken += [delivery["event_id"] for delivery in claim_topic(engine, limit=100)]
    assert (len(taken), len(set(taken))) == (30, 30)


def test_who_lost_the_claim_does_not_speak_for_the_topic(engine: Engine) -> None:
    claim_topic(engine)
    raise_event(engine)
    [first] = claim_topic(engine)
    let_time_pass(engine)
    [second] = claim_topic(engine)
    assert finish_topic(engine, first)["state"] == "stale"
    assert claim_topic(engine) == []
    assert finish_topic(engine, first, delivered=True)["state"] == "delivered"
    assert finish_topic(engine, second)["state"] == "stale"


def test_what_the_topic_never_takes_is_given_up_and_seen(engine: Engine) -> None:
    claim_topic(engine)
    raise_event(engine)
    for number in range(1, 21):
        [delivery] = claim_topic(engine)
        assert delivery["attempt"] == number
        answer = finish_topic(engine, delivery)
        assert answer["state"] == ("waiting" if number < 20 else "given_up")
        assert claim_topic(engine) == []
        let_time_pass(engine)
    assert claim_topic(engine) == []
    topic = engine.call("read_deliveries")["topic"]
    assert (topic["topic_set"], topic["waiting"], topic["given_up"]) == (True, 0, 1)
    [shown] = topic["undelivered"]
    assert (shown["attempts"], shown["last_status"], shown["last_error"]) == (20, 403, "AuthorizationError")
