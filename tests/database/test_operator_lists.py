"""What the operator's pages list: who was charged the most, and what happened and whether it was told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.database.engine import Customer, Engine, JSONObject


def use(engine: Engine, customer: Customer, tokens: int, *, days_ago: int = 0) -> Decimal:
    """A settled request of so many input tokens; what was charged."""
    admission = engine.admitted(customer.key_hash)
    at = datetime.fromisoformat(admission["admitted_at"]) - timedelta(days=days_ago)
    with engine.connection.transaction():
        # no clock of a server's can be turned
        engine.run("set local session_replication_role = replica")
        engine.run("update gateway.requests set admitted_at = %s where id = %s", at, admission["request_id"])
    moved = {**admission, "admitted_at": at.isoformat()}
    return Decimal(engine.settle(moved, usage={"input": tokens, "output": 0})["charge_usd"])


def test_who_was_charged_the_most_counts_closed_late_and_live_once_each(engine: Engine) -> None:
    most, other, _idle = (engine.customer() for _ in range(3))
    now = datetime.now(UTC)

    def top(first: int, last: int, limit: int = 10) -> list[tuple[int, int, Decimal]]:
        told: list[JSONObject] = engine.call(
            "list_top_customers",
            p_from=(now - timedelta(days=first)).date(),
            p_to=(now - timedelta(days=last)).date(),
            p_limit=limit,
        )
        return [(row["customer_id"], row["requests"], Decimal(row["charge_usd"])) for row in told]

    closed = use(engine, most, 9000, days_ago=3)
    engine.call("close_usage")
    late = use(engine, most, 1000, days_ago=3)
    live = use(engine, other, 2000)
    for _ in range(2):
        assert top(9, -1) == [(most.id, 2, closed + late), (other.id, 1, live)]
        assert top(9, -1, limit=1) == [(most.id, 2, closed + late)]
        # the last day is not in it
        assert top(3, 2) == [(most.id, 2, closed + late)]
        assert top(2, -1) == [(other.id, 1, live)]
        assert top(9, 3) == []
        engine.call("close_usage")


def test_events_are_listed_with_their_states_and_no_page_leaves_one_out(engine: Engine) -> None:
    engine.run(
        "insert into gateway.events (at, kind, subject, data)"
        " select now(), 'a.b', 'x', '{}' from generate_series(1, 5)"
    )
    pages: list[str] = []
    before = None
    while page := engine.call("list_events", p_limit=2, p_before=before):
        pages += [row["id"] for row in page]
        before = pages[-1].removeprefix("evt_")
    assert len(set(pages)) == len(pages) == 5
    assert {row["state"] for row in engine.call("list_events", p_limit=9)} == {"unsent"}
    engine.run("insert into gateway.event_deliveries (event_id) select id from gateway.events")
    engine.run("update gateway.event_deliveries set next_attempt_at = null, attempts = 20")
    assert len(engine.call("list_events", p_limit=9, p_state="given_up")) == 5
    assert engine.call("list_events", p_limit=9, p_state="waiting") == []
    assert engine.call("list_events", p_limit=9, p_kind="a.c") == []
    assert engine.call("resend_event", p_event_id=before) == {"error": "webhook_not_set"}
    with engine.by_engine():
        engine.run("update gateway.settings set webhook_url = 'https://8.8.8.8', webhook_secret = 'v1.a.b.c'")
    assert engine.call("resend_event", p_event_id=before)["state"] == "waiting"
    [again] = engine.call("list_events", p_limit=9, p_state="waiting")
    assert again["id"] == pages[-1]
