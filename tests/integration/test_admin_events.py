"""GET /admin/events, POST /admin/events/{id}/resend and GET /admin/top_customers."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from gateway.auth import key_hash
from gateway.database.rpc import Admission, Settlement
from gateway.http import new_request_id
from tests.fixtures.management import Management, assert_error, management

if TYPE_CHECKING:
    from tests.fixtures.management import Customer

__all__ = ["management"]

NO_EVENT = f"evt_{'0' * 32}"


def raise_event(management: Management, kind: str = "provider.failing") -> str:
    raised = management.value(
        "select gateway.raise_event(%s, 'service:1', '{\"service\": \"openai\"}')::text", kind
    )
    return f"evt_{raised.replace('-', '')}"


def set_webhook(management: Management, url: str | None) -> None:
    management.connection.execute(
        "update gateway.settings set webhook_url = %s, webhook_secret = %s", [url, url and "v1.a.b.c"]
    )


def deliver(management: Management, *, delivered: bool, attempts: int = 1) -> None:
    """Claim what is due and say what came of it, as the maintenance function does."""
    for _ in range(attempts):
        management.connection.execute(
            "update gateway.event_deliveries set next_attempt_at = '2000-01-01'"
            " where next_attempt_at is not null"
        )
        for claim in management.value("select api.claim_deliveries(1000, 60)")["deliveries"]:
            management.value(
                "select api.finish_delivery(%s, %s, %s, %s, %s)",
                claim["event_id"],
                claim["attempt"],
                delivered,
                204 if delivered else 500,
                None if delivered else "the receiver answered 500",
            )


async def listed(management: Management, query: str = "") -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = (await management.ok("GET", f"/admin/events?limit=200{query}"))["data"]
    return told


async def state_of(management: Management, event: str) -> dict[str, Any]:
    return next(row for row in await listed(management) if row["id"] == event)


@pytest.fixture
def events(management: Management) -> Management:
    management.connection.execute("delete from gateway.events")
    set_webhook(management, None)
    return management


async def test_each_state_is_told_and_can_be_asked_for(events: Management) -> None:
    unsent = raise_event(events)
    set_webhook(events, "https://hooks.example.com/sluice")
    delivered = raise_event(events)
    deliver(events, delivered=True)
    given_up = raise_event(events)
    deliver(events, delivered=False, attempts=20)
    waiting = raise_event(events, "limit.soft_crossed")
    for state, event in (
        ("unsent", unsent),
        ("delivered", delivered),
        ("given_up", given_up),
        ("waiting", waiting),
    ):
        [row] = await listed(events, f"&state={state}")
        assert (row["id"], row["state"]) == (event, state)
    assert [row["id"] for row in await listed(events)] == [waiting, given_up, delivered, unsent]
    assert [row["id"] for row in await listed(events, "&type=limit.soft_crossed")] == [waiting]
    told = await state_of(events, given_up)
    assert (told["attempts"], told["last_status"], told["last_error"]) == (
        20,
        500,
        "the receiver answered 500",
    )
    assert (told["subject"], told["data"], told["next_attempt_at"]) == (
        "service:1",
        {"service": "openai"},
        None,
    )


async def test_the_pages_are_the_whole_list_even_where_events_came_at_once(events: Management) -> None:
    raised = events.query(
        "insert into gateway.events (at, kind, subject, data)"
        " select now(), 'ledger.mismatch', 'ledger', '{}' from generate_series(1, 7) returning id::text"
    )
    made = {f"evt_{identity.replace('-', '')}" for (identity,) in raised}
    seen: list[str] = []
    query = ""
    while True:
        told = await events.ok("GET", f"/admin/events?limit=3{query}")
        seen += [row["id"] for row in told["data"]]
        if told["next_cursor"] is None:
            break
        query = f"&cursor={told['next_cursor']}"
    assert len(seen) == 7
    assert set(seen) == made
    assert await listed(events, f"&cursor={NO_EVENT}") == []


async def test_an_event_is_sent_again_under_its_id_whatever_became_of_it(events: Management) -> None:
    unsent = raise_event(events)
    set_webhook(events, "https://hooks.example.com/sluice")
    delivered = raise_event(events)
    deliver(events, delivered=True)
    given_up = raise_event(events)
    deliver(events, delivered=False, attempts=20)
    for event in (unsent, delivered, given_up):
        told = await events.ok("POST", f"/admin/events/{event}/resend", {})
        assert told == {"id": event, "state": "waiting"}
        assert (await state_of(events, event))["state"] == "waiting"
    claimed = events.value("select api.claim_deliveries(1000, 60)")["deliveries"]
    assert {claim["id"] for claim in claimed} == {unsent, delivered, given_up}
    # What was given up had one attempt more.
    events.value("select api.finish_delivery(%s, 21, false, 500, 'again')", uuid.UUID(given_up[4:]))
    assert (await state_of(events, given_up))["state"] == "given_up"


async def test_what_the_topic_did_not_take_is_in_line_for_it_again_without_a_webhook(
    events: Management,
) -> None:
    topic = "arn:aws:sns:eu-west-1:123456789012:alerts"
    events.value("select api.claim_topic_deliveries(%s, 0, 60)", topic)
    try:
        event = raise_event(events)
        assert (await state_of(events, event))["topic_state"] == "waiting"
        # Nobody has missed it yet.
        assert_error(await events.admin("POST", f"/admin/events/{event}/resend"), 409, "webhook_not_set")
        events.connection.execute("update gateway.topic_deliveries set attempts = 20, next_attempt_at = null")
        told = await state_of(events, event)
        assert (told["state"], told["topic_state"]) == ("unsent", "given_up")
        await events.ok("POST", f"/admin/events/{event}/resend", {})
        assert (await state_of(events, event))["topic_state"] == "waiting"
        [claim] = events.value("select api.claim_topic_deliveries(%s, 10, 60)", topic)["deliveries"]
        events.value(
            "select api.finish_topic_delivery(%s, %s, true, 200, null)", claim["event_id"], claim["attempt"]
        )
        assert (await state_of(events, event))["topic_state"] == "delivered"
    finally:
        events.value("select api.claim_topic_deliveries(null, 0, 60)")


async def test_what_is_not_there_is_404_and_without_a_webhook_nothing_is_sent(events: Management) -> None:
    event = raise_event(events)
    assert_error(await events.admin("POST", f"/admin/events/{event}/resend"), 409, "webhook_not_set")
    set_webhook(events, "https://hooks.example.com/sluice")
    for unknown in (NO_EVENT, "evt_1", event.upper(), event.removeprefix("evt_")):
        response = await events.admin("POST", f"/admin/events/{unknown}/resend")
        assert_error(response, 404, "event_not_found")
    assert (await state_of(events, event))["state"] == "unsent"


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("events?state=lost", "state"),
        ("events?type=x", "type"),
        ("events?cursor=17", "cursor"),
        ("events?limit=0", "limit"),
        ("events?kind=provider.failing", "kind"),
        ("top_customers?from=2026-13-01", "from"),
        ("top_customers?from=2026-11-02&to=2026-11-02", "from"),
        ("top_customers?from=2026-01-01&to=2026-11-02", "from"),
        ("top_customers?to=0001-01-01", "to"),
        ("top_customers?limit=201", "limit"),
        ("top_customers?cursor=1", "cursor"),
    ],
)
async def test_bad_query_is_422_and_named(management: Management, path: str, param: str) -> None:
    assert_error(await management.admin("GET", f"/admin/{path}"), 422, param=param)


async def test_they_are_the_operators_alone(events: Management) -> None:
    event = raise_event(events)
    customer = events.customer(scopes=("chat", "usage", "keys", "billing"))
    for method, path in (
        ("GET", "/admin/events"),
        ("POST", f"/admin/events/{event}/resend"),
        ("GET", "/admin/top_customers"),
    ):
        assert_error(await events.call(method, path, None), 401)
        assert_error(await events.call(method, path, customer.key), 403)
        assert_error(await events.call(method, path, events.person(customer)), 403)


# Who was charged the most


async def use(
    management: Management, customer: Customer, model: str, tokens: int, *, days_ago: int = 0
) -> str:
    """A settled call of so many input tokens; what was charged."""
    admission = await management.process.database.admit_request(
        key_hash=key_hash(customer.key),
        request_id=new_request_id(),
        models=[model],
        endpoint="chat.completions",
        lease_seconds=60,
        input_tokens_bound=tokens,
        max_output_tokens=1,
    )
    assert isinstance(admission, Admission), admission
    at = datetime.fromisoformat(admission.admitted_at) - timedelta(days=days_ago)
    with management.connection.transaction():
        # No clock of a server's can be turned.
        management.connection.execute("set local session_replication_role = replica")
        management.connection.execute(
            "update gateway.requests set admitted_at = %s where id = %s", [at, admission.request_id]
        )
    settlement = Settlement(
        request_id=admission.request_id,
        admitted_at=at.isoformat(),
        outcome="succeeded",
        status=200,
        latency_ms=120,
        route_id=admission.candidates[0].route_id,
        usage={"input": tokens, "output": 0},
        finish_reason="stop",
    )
    settled = await management.process.database.settle_request(settlement.as_json())
    assert settled
    return str(settled.charge_usd)


async def sold(management: Management) -> str:
    model = (await management.model())["name"]
    service = {
        "name": f"sells {model}",
        "provider": "openai-compatible",
        "base_url": "https://8.8.8.8/v1",
        "provider_key": "a-key-of-the-provider",
        "enabled_models": [model],
    }
    await management.ok("POST", "/admin/services", service, status=201)
    return str(model)


async def test_who_was_charged_the_most_comes_first_closed_late_and_live_alike(
    management: Management,
) -> None:
    model = await sold(management)
    one, other, idle = (management.customer("100") for _ in range(3))

    async def top(query: str = "") -> list[dict[str, Any]]:
        told = await management.ok("GET", f"/admin/top_customers?limit=200{query}")
        return [row for row in told["data"] if row["customer_id"] in {one.id, other.id, idle.id}]

    old = await use(management, one, model, 9_000_000, days_ago=3)
    management.value("select api.close_usage()")
    # Into a bucket that is closed already, and into one that is not.
    late = await use(management, one, model, 1_000_000, days_ago=3)
    small = await use(management, other, model, 2_000_000)
    today = datetime.now(UTC).date()
    for _ in range(2):
        first, second = await top()
        assert (first["customer_id"], first["requests"], first["total_tokens"]) == (one.id, 2, 10_000_000)
        assert (first["charge_usd"], second["charge_usd"]) == ("21", "4.2")
        assert float(old) + float(late) == float(first["charge_usd"])
        assert float(small) == float(second["charge_usd"])
        assert second["name"] == "A customer"
        [alone] = await top(f"&from={today}")
        assert alone["customer_id"] == other.id
        [before] = await top(f"&from={today - timedelta(days=3)}&to={today - timedelta(days=2)}")
        assert (before["customer_id"], before["charge_usd"]) == (one.id, "21")
        # Closed, late ones too, nothing is lost or doubled.
        management.value("select api.close_usage()")
    assert len((await management.ok("GET", "/admin/top_customers?limit=1"))["data"]) == 1
