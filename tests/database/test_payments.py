"""What is told of a payment in whatever order comes to the same books, and who owes has nothing free."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.database.engine import call, race, usd, watched

if TYPE_CHECKING:
    from tests.database.engine import Customer, Engine, JSONObject
    from tests.fixtures.database import Connection

ENTRY = "insert into gateway.ledger_entries (customer_id, kind, amount_usd, balance_after_usd, actor)"
PAID = {"currency": "usd", "paid_minor": 1000}


def books(engine: Engine, customer: Customer) -> tuple[Any, ...]:
    """(balance, held, debt)"""
    return (*engine.account(customer.id), engine.debt(customer.id))


def payment(engine: Engine) -> tuple[Any, ...]:
    return engine.query("select credited_usd, refunded_usd, disputed_usd from gateway.payments")[0]


def refund(number: int, cents: int, *, failed: bool = False) -> JSONObject:
    return {"refund": {"id": f"re_{number}", "amount_minor": cents, "failed": failed}}


def test_a_reversal_takes_what_is_free_and_the_rest_is_owed(engine: Engine) -> None:
    customer = engine.customer(None)
    engine.paid(customer.id, 1000)
    engine.call("add_credits", p_customer_id=customer.id, p_usd=usd("-7"))
    engine.refunded(1000)
    assert books(engine, customer) == (0, 0, 7)
    assert engine.ledger(customer.id) == [("credit", usd(10)), ("correction", usd(-7)), ("refund", usd(-3))]
    # nothing is free, so that a second reversal is owed whole
    engine.paid(customer.id, 100, "pi_2")
    assert books(engine, customer) == (0, 0, 6)
    engine.refunded(100, "pi_2")
    assert books(engine, customer) == (0, 0, 7)
    assert engine.ledger(customer.id)[3:] == [
        ("credit", usd(1)),
        ("debt_payment", usd(-1)),
        ("refund", usd(0)),
    ]
    engine.assert_books_agree()


@pytest.mark.parametrize("policy", ["release", "charge"])
def test_what_an_expired_hold_leaves_goes_to_the_debt(engine: Engine, policy: str) -> None:
    engine.settings(expired_hold_policy=policy)
    customer = engine.customer(None)
    engine.paid(customer.id, 1)
    admission = engine.admitted(customer.key_hash)
    engine.refunded(1)
    assert books(engine, customer) == (usd("0.0063"), usd("0.0063"), usd("0.0063"))
    engine.lapse(admission)
    engine.call("expire_holds")
    owed = usd("0") if policy == "release" else usd("0.0063")
    assert books(engine, customer) == (0, 0, owed)
    # what a late settlement gives back of it, too
    engine.settle(admission)
    assert books(engine, customer) == (0, 0, 0 if policy == "release" else usd("0.00063"))
    engine.assert_books_agree()


def test_credits_of_an_admin_pay_the_debt_first_and_corrections_find_nothing_free(engine: Engine) -> None:
    customer = engine.customer(None)
    engine.paid(customer.id, 1000)
    engine.call("add_credits", p_customer_id=customer.id, p_usd=usd("-10"))
    engine.refunded(1000)
    told = engine.call("add_credits", p_customer_id=customer.id, p_usd=usd("-1"))
    assert told == {"error": "more_than_free", "free_usd": "0"}
    told = engine.call("add_credits", p_customer_id=customer.id, p_usd=usd("4"), p_reference="cash")
    assert (told["balance_after_usd"], told["debt_usd"]) == ("0", "6")
    again = engine.call("add_credits", p_customer_id=customer.id, p_usd=usd("4"), p_reference="cash")
    assert (again["duplicate"], again["debt_usd"]) == (True, "6")
    told = engine.call("add_credits", p_customer_id=customer.id, p_usd=usd("7"))
    assert (told["balance_after_usd"], told["debt_usd"]) == ("1", "0")
    engine.admitted(customer.key_hash)
    engine.assert_books_agree()


def of_its_own(facts: JSONObject, number: int) -> JSONObject:
    """The same, with ids that no other payment's refunds and disputes have."""
    return {
        name: {**fact, "id": f"{fact['id']} {number}"} if isinstance(fact, dict) else fact
        for name, fact in facts.items()
    }


@pytest.mark.parametrize(
    "told",
    [
        [{"refunded_minor": 300}, refund(1, 300), {"refunded_minor": 500}, refund(2, 200)],
        # of a refund that failed the sum may have been told before or never
        [{"refunded_minor": 500}, refund(1, 300), refund(1, 300, failed=True), refund(2, 200)],
        [refund(1, 300, failed=True), refund(2, 500)],
        [{"refunded_minor": 300}, {"refunded_minor": 500}, {"refunded_minor": 400}],
        # of one that was told of in the sum alone
        [{"refunded_minor": 800}, refund(1, 300), refund(1, 300, failed=True)],
        [
            {"dispute": {"id": "dp", "amount_minor": 600, "withdrawn": True, "returned": False}},
            {"refunded_minor": 700},
            refund(1, 200),
        ],
        [
            {"dispute": {"id": "dp", "amount_minor": 1000, "withdrawn": False, "returned": False}},
            {"dispute": {"id": "dp", "amount_minor": 1000, "withdrawn": True, "returned": False}},
            {"dispute": {"id": "dp", "amount_minor": 1000, "withdrawn": True, "returned": True}},
        ],
    ],
)
def test_every_order_comes_to_the_same(engine: Engine, told: list[JSONObject]) -> None:
    customer = engine.customer("1")
    ends = set()
    for number, order in enumerate(itertools.permutations([{**PAID, "customer_id": customer.id}, *told])):
        engine.paid(customer.id, 1000, f"before {number}")
        engine.call("add_credits", p_customer_id=customer.id, p_usd=-engine.account(customer.id)[0] + 1)
        for facts in order:
            engine.payment_event(f"pi {number}", of_its_own(facts, number))
        row = engine.query(
            "select credited_usd, refunded_usd, disputed_usd from gateway.payments where payment_intent = %s",
            f"pi {number}",
        )
        ends.add((*books(engine, customer), *row[0]))
        engine.call("add_credits", p_customer_id=customer.id, p_usd=usd("100"))
    assert len(ends) == 1, ends
    engine.assert_books_agree()


@pytest.mark.parametrize("order", [*itertools.permutations(range(4))])
def test_the_last_word_of_a_dispute_counts_in_whatever_order_it_comes(
    engine: Engine, order: tuple[int, ...]
) -> None:
    """Won, lost after all, won again: money of the operator's or the customer's with every turn."""
    customer = engine.customer(None)
    engine.paid(customer.id, 1000)
    heard: list[tuple[int, bool]] = []
    for turn in order:
        returned = turn % 2 == 1
        engine.payment_event(
            "pi_1",
            {
                "created": f"2026-11-2{turn}T12:00:00+00:00",
                "dispute": {"id": "dp", "amount_minor": 600, "withdrawn": True, "returned": returned},
            },
        )
        heard.append((turn, returned))
        assert payment(engine) == (10, 0, 0 if max(heard)[1] else 6)
    assert books(engine, customer) == (10, 0, 0)
    # what tells of no movement (an appeal, an inquiry) changes nothing, however late
    late = {"id": "dp", "amount_minor": 600, "withdrawn": False, "returned": False}
    engine.payment_event("pi_1", {"created": "2026-12-01T12:00:00+00:00", "dispute": late})
    assert books(engine, customer) == (10, 0, 0)
    engine.assert_books_agree()


def test_credits_by_hand_take_no_reference_of_stripes(engine: Engine) -> None:
    """Else the payment of that name could never be booked: its event would fail for ever."""
    customer = engine.customer(None)
    told = engine.call("add_credits", p_customer_id=customer.id, p_usd=usd("5"), p_reference="stripe:pi_1")
    assert told == {"error": "reserved_reference"}
    assert engine.paid(customer.id, 1000)["outcome"] == "recorded"
    told = engine.call("add_credits", p_customer_id=customer.id, p_usd=usd("10"), p_reference="stripe:pi_1")
    assert told == {"error": "reserved_reference"}
    assert books(engine, customer) == (10, 0, 0)


def test_the_sum_alone_and_the_refunds_one_by_one_do_not_add_up_twice(engine: Engine) -> None:
    customer = engine.customer(None)
    engine.paid(customer.id, 1000)
    engine.payment_event("pi_1", refund(1, 300))
    engine.refunded(300)
    assert payment(engine) == (10, 3, 0)
    engine.refunded(450)
    assert payment(engine) == (10, usd("4.5"), 0)
    engine.payment_event("pi_1", refund(1, 300, failed=True))
    assert payment(engine) == (10, usd("1.5"), 0)


def test_a_payment_is_credited_once_whatever_it_is_told_by(engine: Engine) -> None:
    customer = engine.customer(None)
    for _ in range(3):
        engine.paid(customer.id, 1000)
    engine.payment_event("pi_1", {"customer_id": customer.id, "currency": "usd", "paid_minor": 9000})
    assert books(engine, customer) == (10, 0, 0)
    same = {**PAID, "customer_id": customer.id, "id": "evt_1"}
    told = [engine.payment_event("pi_2", same)["outcome"] for _ in range(2)]
    assert told == ["recorded", "duplicate"]
    assert books(engine, customer) == (20, 0, 0)


def test_reversals_top_ups_and_requests_at_once_keep_the_invariants(engine: Engine) -> None:
    customer = engine.customer("0.05")
    for number in range(4):
        engine.paid(customer.id, 25, f"pi_{number}")
    # nearly all of it is spent: reversals and requests are about the same few cents
    engine.call("add_credits", p_customer_id=customer.id, p_usd=usd("-1"))

    def work(connection: Connection, number: int) -> None:
        for turn in range(25):
            if number < 4:
                admission = engine.admit(customer.key_hash, connection=connection)
                if admission["admitted"]:
                    engine.settle(admission, connection=connection)
            elif number < 6:
                told = {"refunded_minor": turn}
                engine.payment_event(f"pi_{turn % 4}", told, connection=connection)
            else:
                call(connection, "add_credits", p_customer_id=customer.id, p_usd=usd("0.002"))

    with watched(engine.database):
        race(engine.database, 8, work)
    balance, held, debt = books(engine, customer)
    assert held == 0
    assert debt == 0 or balance == 0
    engine.assert_books_agree()
    assert engine.check()["misbooked_payments"] == 0


@pytest.mark.parametrize(
    ("plant", "fault"),
    [
        ("update gateway.payments set refunded_usd = 1", "misbooked_payments"),
        ("update gateway.ledger_entries set debt_change_usd = 1 where kind = 'refund'", "mismatches"),
        ("update gateway.accounts set debt_usd = debt_usd + 1", "mismatches"),
    ],
)
def test_the_check_of_the_books_finds_false_payments_and_debts(
    engine: Engine, plant: str, fault: str
) -> None:
    customer = engine.customer(None)
    engine.paid(customer.id, 1000)
    engine.call("add_credits", p_customer_id=customer.id, p_usd=usd("-7"))
    engine.refunded(1000)
    engine.assert_books_agree()
    with engine.by_engine():
        engine.run(plant)
    told = engine.check()
    assert told["ok"] is False
    assert told[fault]


@pytest.mark.parametrize(
    "statement",
    [
        "update gateway.accounts set debt_usd = 1 where balance_usd > held_usd",
        "update gateway.accounts set debt_usd = -1",
        "update gateway.payments set credited_usd = credited_usd + 1",
        "update gateway.payments set refunded_usd = 11",
        ENTRY + " select customer_id, 'refund', 0, 0, 'x' from gateway.accounts",
        ENTRY + " select customer_id, 'debt_payment', -1, 0, 'x' from gateway.accounts",
    ],
)
def test_no_books_can_be_written_that_make_no_sense(engine: Engine, statement: str) -> None:
    customer = engine.customer(None)
    engine.paid(customer.id, 1000)
    with engine.connection.transaction():
        engine.run("select set_config('gateway.engine', 'on', true)")
        with pytest.raises(psycopg.errors.CheckViolation), engine.connection.transaction():
            engine.run(statement)


def test_the_operator_is_told_once_of_each(engine: Engine) -> None:
    customer = engine.customer(None)
    engine.paid(customer.id, 1000)
    engine.call("add_credits", p_customer_id=customer.id, p_usd=usd("-9"))
    engine.refunded(400)
    engine.refunded(500)
    for _ in range(2):
        engine.disputed(100)
    kinds = engine.query(
        "select kind, count(*)::int from gateway.events where kind ~ '^(payment|customer)'"
        " group by 1 order by 1"
    )
    assert kinds == [("customer.in_debt", 1), ("payment.disputed", 1), ("payment.reversed", 3)]
