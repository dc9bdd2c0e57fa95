"""What may never be is refused by the tables themselves, whatever the engine's functions may get wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

if TYPE_CHECKING:
    from tests.database.engine import Customer, Engine

ENTRY = (
    "insert into gateway.ledger_entries"
    " (customer_id, kind, amount_usd, balance_after_usd, request_id, reference, actor)"
    " values (%(customer)s, {}, 'test')"
)


@pytest.fixture
def settled(engine: Engine, customer: Customer) -> dict[str, object]:
    """A customer with a payment under a reference, a settled request and a running one that holds 0.0063."""
    engine.call("add_credits", p_customer_id=customer.id, p_usd=1, p_reference="payment 1")
    request = engine.admitted(customer.key_hash)
    engine.settle(request)
    engine.admitted(customer.key_hash)
    return {"customer": customer.id, "request": request["request_id"]}


@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        # the hard cap
        (
            "update gateway.accounts set held_usd = balance_usd + 0.0000000001",
            "accounts_holds_are_covered",
        ),
        (
            "update gateway.accounts set balance_usd = 0.0062",
            "accounts_holds_are_covered",
        ),
        (
            "update gateway.accounts set held_usd = -0.0000000001",
            "accounts_held_not_negative",
        ),
        ("update gateway.accounts set balance_usd = 'NaN', held_usd = 0", "accounts_are_numbers"),
        # a request is charged once and adjusted once, and a payment counts once
        (ENTRY.format("'charge', -1, 9, %(request)s, null"), "ledger_one_entry_per_request"),
        (ENTRY.format("'credit', 1, 11, null, 'payment 1'"), "ledger_reference_key"),
        # each kind of entry has its direction
        (ENTRY.format("'credit', -1, 9, null, null"), "ledger_credit_is_positive"),
        (ENTRY.format("'charge', 1, 11, 'req_other', null"), "ledger_charge_is_negative"),
        (ENTRY.format("'charge', -1, 9, null, null"), "ledger_request_kinds"),
        (ENTRY.format("'correction', 0, 10, null, null"), "ledger_entries_amount_usd_check"),
        # what is owed is either taken or booked as not taken
        (
            "update gateway.requests set charge_usd = charge_usd + 1 where id = %(request)s",
            "requests_charge_is_booked",
        ),
        (
            "update gateway.requests set charge_usd = -1, collected_usd = -1 where id = %(request)s",
            "charge_usd_check",
        ),
        (
            "update gateway.requests set outcome = null where id = %(request)s",
            "requests_settled_has_outcome",
        ),
        (
            "update gateway.requests set state = 'held' where id = %(request)s",
            "requests_settled_has_outcome",
        ),
        # nothing is counted below zero
        ("update gateway.limit_counters set requests = -1", "limit_counters_requests_check"),
        ("update gateway.limit_counters set tokens = -1", "limit_counters_tokens_check"),
        ("update gateway.limit_counters set spend_usd = -1", "limit_counters_spend_usd_check"),
    ],
)
def test_the_tables_refuse_what_may_never_be(
    engine: Engine, settled: dict[str, object], statement: str, constraint: str
) -> None:
    before = engine.dump()
    engine.run("select set_config('gateway.engine', 'on', false)")
    with pytest.raises((psycopg.errors.CheckViolation, psycopg.errors.UniqueViolation)) as refused:
        engine.connection.execute(statement.encode(), settled)
    assert constraint in (refused.value.diag.constraint_name or "")
    assert engine.dump() == before
