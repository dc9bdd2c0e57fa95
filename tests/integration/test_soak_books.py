"""The soak's check of the books: what is right passes, and each thing that is wrong is found."""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from tests.benchmarks.soak import books
from tests.benchmarks.soak.load import Ledger, Told
from tests.fixtures.gateway import RunningGateway, module_gateway
from tests.fixtures.wire import CHAT, HELLO

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["module_gateway"]

# Each breaks one row of what `kept` has made, past the guards.
BREAKS = {
    "delete from gateway.ledger_entries where request_id = %s": {
        "the ledger check is ok",
        "and is booked once, as it was charged",
        "rollups, log, ledger and balance agree for each customer",
    },
    "update gateway.ledger_entries set request_id = 'req_of_nobody' where request_id = %s": {
        "the ledger check is ok",
        "and is booked once, as it was charged",
    },
    "update gateway.usage_rollups set requests = requests + 1 where customer_id ="
    " (select customer_id from gateway.requests where id = %s)": {
        "rollups, log, ledger and balance agree for each customer"
    },
    "update gateway.usage_rollups set charge_usd = charge_usd + 0.0000000001 where customer_id ="
    " (select customer_id from gateway.requests where id = %s)": {
        "rollups, log, ledger and balance agree for each customer"
    },
    "update gateway.accounts set held_usd = 0.01 where customer_id ="
    " (select customer_id from gateway.requests where id = %s)": {
        "the ledger check is ok",
        "nothing is held",
        "rollups, log, ledger and balance agree for each customer",
    },
    "update gateway.requests set state = 'expired', outcome = null where id = %s": {
        "every admitted request was settled"
    },
    "update gateway.requests set settled_at = null where id = %s": {"every admitted request was settled"},
}


@dataclass(frozen=True, slots=True)
class Desk:
    """What the soak has as its world."""

    operator: RunningGateway

    def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return self.operator.connection.execute(query.encode(), parameters or None).fetchall()

    def kept_settlements(self) -> list[Any]:
        return list(self.operator.settings.spool_dir.glob("*.settlement.json"))


@pytest.fixture(scope="module")
def kept(module_gateway: RunningGateway) -> tuple[str, Ledger]:
    """A plain call, a refusal and a stream that was left, as their clients saw them; the plain call's id."""
    model, customer = module_gateway.model("echo"), module_gateway.customer("1")
    ledger = Ledger()
    client = module_gateway.http(customer)
    answer = client.post(CHAT, json={"model": model, "messages": HELLO})
    request_id = answer.headers["x-request-id"]
    charge = Decimal(answer.json()["gateway_usage"]["charge_usd"])
    ledger.told[request_id] = Told("plain", 200, whole=True, left=False, charge_usd=charge)
    streamed = client.post(CHAT, json={"model": model, "messages": HELLO, "stream": True})
    told = Told("stream that is left", 200, whole=False, left=True, charge_usd=None)
    ledger.told[streamed.headers["x-request-id"]] = told
    refused = client.post(CHAT, json={"model": model, "messages": HELLO, "max_tokens": -1})
    refusal = Told("bad input", 422, whole=True, left=False, charge_usd=None)
    ledger.told[refused.headers["x-request-id"]] = refusal
    assert (answer.status_code, streamed.status_code, refused.status_code) == (200, 200, 422)
    return request_id, ledger


@pytest.fixture
def desk(module_gateway: RunningGateway) -> Iterator[Desk]:
    """A look at the books, after which they are as before."""
    with module_gateway.connection.transaction(force_rollback=True):
        module_gateway.connection.execute("set local session_replication_role = replica")
        yield Desk(module_gateway)


def wrong(desk: Desk, ledger: Ledger) -> set[str]:
    return {check.what for check in books.check(desk, ledger) if not check.ok}


def test_books_that_are_exact_pass(kept: tuple[str, Ledger], desk: Desk) -> None:
    assert [check for check in books.check(desk, kept[1]) if not check.ok] == []


@pytest.mark.parametrize(("statement", "found"), BREAKS.items())
def test_what_is_wrong_in_the_books_is_found(
    kept: tuple[str, Ledger], desk: Desk, statement: str, found: set[str]
) -> None:
    request_id, ledger = kept
    assert desk.operator.connection.execute(statement.encode(), [request_id]).rowcount == 1
    assert wrong(desk, ledger) == found


def test_a_client_that_was_told_something_else_is_found(kept: tuple[str, Ledger], desk: Desk) -> None:
    request_id, ledger = kept
    told = ledger.told[request_id]
    assert told.charge_usd is not None
    other = Ledger(told={**ledger.told, request_id: replace(told, charge_usd=told.charge_usd + 1)})
    assert wrong(desk, other) == {"each client was told what it was charged"}


def test_an_answer_that_is_not_in_the_books_is_found(kept: tuple[str, Ledger], desk: Desk) -> None:
    request_id, ledger = kept
    other = Ledger(told={**ledger.told, "req_of_nobody": ledger.told[request_id]})
    assert wrong(desk, other) == {"each answer is in the books"}


def test_a_refusal_that_is_charged_is_found(kept: tuple[str, Ledger], desk: Desk) -> None:
    request_id, ledger = kept
    other = Ledger(told={**ledger.told, request_id: replace(ledger.told[request_id], status=402)})
    assert "no refusal is charged" in wrong(desk, other)


def test_a_settlement_that_waits_is_found(kept: tuple[str, Ledger], desk: Desk) -> None:
    spool = desk.operator.settings.spool_dir
    spool.mkdir(exist_ok=True)
    waiting = spool / "req_waiting.settlement.json"
    waiting.write_text("{}", encoding="utf-8")
    try:
        assert wrong(desk, kept[1]) == {"no settlement waits to be replayed"}
    finally:
        waiting.unlink()
