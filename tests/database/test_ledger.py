"""The ledger adds up, and check_ledger sees where it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.database.engine import usd

if TYPE_CHECKING:
    from tests.database.engine import Customer, Engine


def test_a_balance_is_the_sum_of_its_entries(engine: Engine, customer: Customer) -> None:
    engine.settle(engine.admitted(customer.key_hash))
    engine.call("add_credits", p_customer_id=customer.id, p_usd=usd("-1.5"), p_note="mistake")
    engine.call("add_credits", p_customer_id=customer.id, p_credits=1)
    assert engine.ledger(customer.id) == [
        ("credit", usd(10)),
        ("charge", usd("-0.00063")),
        ("correction", usd("-1.5")),
        ("credit", usd("0.00002")),
    ]
    after = engine.query("select balance_after_usd from gateway.ledger_entries order by id")
    assert [row[0] for row in after] == [10, usd("9.99937"), usd("8.49937"), usd("8.49939")]
    assert engine.account(customer.id)[0] == usd("8.49939")
    assert engine.check() == {
        "ok": True,
        "full": False,
        "accounts": 1,
        "closed_through": None,
        "mismatches": [],
        "misbooked_requests": 0,
        "misbooked_payments": 0,
        "wrong_checkpoints": None,
        "orphan_holds": 0,
    }


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (
            "update gateway.accounts set balance_usd = balance_usd + 0.0000000001 where customer_id = 1",
            {"balance_usd": "9.9993700001"},
        ),
        (
            "update gateway.accounts set held_usd = 0 where customer_id = 1",
            {"held_usd": "0", "requests_held_usd": "0.0063"},
        ),
        (
            (
                "insert into gateway.ledger_entries (customer_id, kind, amount_usd, balance_after_usd, actor)"
                " values (1, 'credit', 5, 5, 'x')"
            ),
            {"ledger_usd": "14.99937"},
        ),
        ("delete from gateway.ledger_entries where kind = 'charge'", {"ledger_usd": "10"}),
        ("update gateway.requests set hold_usd = 1 where state = 'held'", {"requests_held_usd": "1"}),
    ],
)
def test_a_planted_mismatch_is_found(
    engine: Engine, customer: Customer, plant: str, found: dict[str, str]
) -> None:
    engine.settle(engine.admitted(customer.key_hash))
    engine.admitted(customer.key_hash)
    engine.customer()  # another, whose books agree
    with engine.by_engine():
        assert engine.run(plant) == 1
    told = engine.check()
    assert (told["ok"], told["accounts"], len(told["mismatches"])) == (False, 2, 1)
    expected = {
        "customer_id": customer.id,
        "balance_usd": "9.99937",
        "ledger_usd": "9.99937",
        "held_usd": "0.0063",
        "requests_held_usd": "0.0063",
        "debt_usd": "0",
        "ledger_debt_usd": "0",
    }
    assert told["mismatches"] == [{**expected, **found}]


@pytest.mark.parametrize(
    "plant",
    [
        "update gateway.requests set charge_usd = 1, collected_usd = 1 where state = 'settled'",
        "update gateway.ledger_entries set request_id = 'req_of nobody' where kind = 'charge'",
        "delete from gateway.requests where state = 'settled'",
    ],
)
def test_a_request_that_is_booked_otherwise_than_it_was_charged_is_found(
    engine: Engine, customer: Customer, plant: str
) -> None:
    engine.settle(engine.admitted(customer.key_hash))
    with engine.by_engine():
        assert engine.run(plant) == 1
    told = engine.check()
    assert told["ok"] is False
    assert told["misbooked_requests"] >= 1


def test_orphan_holds_are_counted(engine: Engine, customer: Customer) -> None:
    for _ in range(3):
        engine.lapse(engine.admitted(customer.key_hash))
    engine.admitted(customer.key_hash)
    assert engine.check()["orphan_holds"] == 3


@pytest.mark.parametrize(
    ("parameters", "answer"),
    [
        ({"p_usd": usd(0)}, "invalid_amount"),
        ({"p_usd": usd("0.00000000001")}, "invalid_amount"),
        ({"p_usd": usd("NaN")}, "invalid_amount"),
        ({"p_usd": usd("1e12")}, "invalid_amount"),
        ({"p_credits": usd("1e30")}, "invalid_amount"),
        ({"p_usd": usd("-10.0000000001")}, "more_than_free"),
    ],
)
def test_an_amount_that_is_none_is_refused_and_books_nothing(
    shared_engine: Engine, parameters: dict[str, Any], answer: str
) -> None:
    customer = shared_engine.customer()
    before = shared_engine.dump()
    told = shared_engine.call("add_credits", p_customer_id=customer.id, **parameters)
    assert told["error"] == answer
    assert shared_engine.dump() == before


def test_more_than_the_books_can_hold_is_refused(shared_engine: Engine) -> None:
    customer = shared_engine.customer()
    told = [
        shared_engine.call("add_credits", p_customer_id=customer.id, p_usd=usd(1_000_000_000))
        for _ in range(10)
    ]
    assert [answer.get("error") for answer in told] == [None] * 9 + ["invalid_amount"]
    shared_engine.assert_books_agree()


def test_a_correction_leaves_what_is_held(shared_engine: Engine) -> None:
    customer = shared_engine.customer("1")
    shared_engine.admitted(customer.key_hash)
    told = shared_engine.call("add_credits", p_customer_id=customer.id, p_usd=usd(-1))
    assert told == {"error": "more_than_free", "free_usd": "0.9937"}
    told = shared_engine.call("add_credits", p_customer_id=customer.id, p_usd=usd("-0.9937"))
    assert told["balance_after_usd"] == "0.0063"


def test_a_reference_counts_once_for_each_customer(shared_engine: Engine) -> None:
    first, second = shared_engine.customer(None), shared_engine.customer(None)
    pay = {"p_usd": usd(5), "p_reference": "payment 1"}
    assert shared_engine.call("add_credits", p_customer_id=first.id, **pay)["duplicate"] is False
    assert shared_engine.call("add_credits", p_customer_id=first.id, **pay)["duplicate"] is True
    assert shared_engine.call("add_credits", p_customer_id=second.id, **pay)["duplicate"] is False
    told = shared_engine.call("add_credits", p_customer_id=first.id, p_usd=usd(6), p_reference="payment 1")
    assert told == {"error": "reference_conflict"}
    assert shared_engine.account(first.id)[0] == shared_engine.account(second.id)[0] == 5


def test_credits_are_shown_rounded_down(shared_engine: Engine) -> None:
    customer = shared_engine.customer("0.0000000001")
    told = shared_engine.call("read_balance", p_customer_id=customer.id)
    assert told == {
        "customer_id": customer.id,
        "credits": 0,
        "balance_usd": "0.0000000001",
        "held_usd": "0",
        "debt_usd": "0",
    }
