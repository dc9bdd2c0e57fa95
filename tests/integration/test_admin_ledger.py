"""The proof of the books over HTTP, and the months that maintenance closes for it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from gateway.maintenance import run_once
from tests.fixtures.management import Management, assert_error, management

__all__ = ["management"]


def months_ago(count: int) -> str:
    now = datetime.now(UTC)
    months = now.year * 12 + now.month - 1 - count
    return f"{months // 12}-{months % 12 + 1:02}"


async def test_maintenance_closes_the_months_that_are_over_one_a_run(management: Management) -> None:
    customer = management.customer("5")
    first = await management.ok("GET", "/admin/ledger/check")
    assert (first["ok"], first["full"], first["closed_through"]) == (True, False, None)
    management.connection.execute("set session_replication_role = replica")
    management.connection.execute(
        "update gateway.ledger_entries set created_at = created_at - interval '2 months'"
        " where customer_id = %s",
        [customer.id],
    )
    management.connection.execute("set session_replication_role = origin")
    assert (await run_once(management.process)).ledger_months_closed == (months_ago(2),)
    assert (await run_once(management.process)).ledger_months_closed == (months_ago(1),)
    assert (await run_once(management.process)).ledger_months_closed == ()
    for full in ("true", "false"):
        told = await management.ok("GET", f"/admin/ledger/check?full={full}")
        assert (told["ok"], told["closed_through"]) == (True, months_ago(1))
        assert told["wrong_checkpoints"] == (0 if full == "true" else None)
    management.customer("1")
    assert (await management.ok("GET", "/admin/ledger/check"))["ok"] is True


async def test_books_that_disagree_are_told_and_logged(management: Management) -> None:
    customer = management.customer("5")
    management.connection.execute("set session_replication_role = replica")
    management.connection.execute("delete from gateway.ledger_checkpoints")
    management.connection.execute("delete from gateway.ledger_months")
    management.connection.execute(
        "update gateway.ledger_entries set created_at = created_at - interval '2 months', amount_usd = 6"
        " where customer_id = %s",
        [customer.id],
    )
    try:
        sweep = await run_once(management.process)
        assert sweep.ledger_months_closed == ()
        assert "The books disagree" in management.log.text
        told = await management.ok("GET", "/admin/ledger/check")
        assert told["ok"] is False
        assert told["mismatches"] == [
            {
                "customer_id": customer.id,
                "balance_usd": "5",
                "ledger_usd": "6",
                "held_usd": "0",
                "requests_held_usd": "0",
                "debt_usd": "0",
                "ledger_debt_usd": "0",
            }
        ]
    finally:
        management.connection.execute(
            "update gateway.ledger_entries set amount_usd = 5 where customer_id = %s", [customer.id]
        )
        management.connection.execute("set session_replication_role = origin")
    assert (await management.ok("GET", "/admin/ledger/check?full=true"))["ok"] is True


@pytest.mark.parametrize(("query", "param"), [("full=1", "full"), ("full=", "full"), ("all=true", "all")])
async def test_bad_query_is_422_and_named(management: Management, query: str, param: str) -> None:
    assert_error(await management.admin("GET", f"/admin/ledger/check?{query}"), 422, param=param)
