"""The outbox: what happened is written with what it tells of, and sent at least once, by one at a time."""

from __future__ import annotations

import uuid
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from tests.database.engine import call, race

if TYPE_CHECKING:
    from tests.database.engine import Engine, JSONObject
    from tests.fixtures.database import Connection

ATTEMPTS = 20


@pytest.fixture
def outbox(engine: Engine) -> Engine:
    """The engine with a webhook."""
    engine.run("update gateway.settings set webhook_url = 'https://x.example', webhook_secret = 'v1.a.b.c'")
    return engine


def raise_event(engine: Engine, dedupe_key: str | None = None) -> str | None:
    told: str | None = engine.value(
        "select gateway.raise_event('ledger.mismatch', 'ledger', '{\"accounts\": 1}', %s)::text", dedupe_key
    )
    return told


def claim(engine: Engine, limit: int = 10, lease: int = 60) -> list[JSONObject]:
    told: list[JSONObject] = engine.call("claim_deliveries", p_limit=limit, p_lease_seconds=lease)[
        "deliveries"
    ]
    return told


def finish(
    engine: Engine, delivery: JSONObject, *, delivered: bool = False, status: int | None = 500
) -> JSONObject:
    told: JSONObject = engine.call(
        "finish_delivery",
        p_event_id=uuid.UUID(delivery["event_id"]),
        p_attempt=delivery["attempt"],
        p_delivered=delivered,
        p_status=status,
        p_error=None if delivered else f"the receiver answered {status}",
    )
    return told


def let_time_pass(engine: Engine) -> None:
    """Until every attempt is due and every claim has run out."""
    engine.run(
        "update gateway.event_deliveries set claimed_until = claimed_until - interval '1 day',"
        " next_attempt_at = next_attempt_at - interval '1 day'"
    )


def test_what_is_claimed_is_what_was_raised(outbox: Engine) -> None:
    raised = raise_event(outbox)
    told = outbox.call("claim_deliveries", p_limit=10, p_lease_seconds=60)
    assert (told["url"], told["secret"]) == ("https://x.example", "v1.a.b.c")
    [delivery] = told["deliveries"]
    assert delivery["id"] == "evt_" + str(raised).replace("-", "")
    assert (delivery["event_id"], delivery["attempt"]) == (raised, 1)
    assert (delivery["type"], delivery["data"]) == ("ledger.mismatch", {"accounts": 1})
    assert finish(outbox, delivery, delivered=True, status=204)["state"] == "delivered"
    let_time_pass(outbox)
    assert claim(outbox) == []


def test_one_dedupe_key_raises_one_event(outbox: Engine) -> None:
    assert raise_event(outbox, "ledger:2026-11-21")
    assert raise_event(outbox, "ledger:2026-11-21") is None
    assert raise_event(outbox, "ledger:2026-11-22")
    assert raise_event(outbox)
    assert raise_event(outbox)
    assert len(claim(outbox)) == 4


def test_raised_at_once_under_one_key_it_is_one(outbox: Engine) -> None:
    def work(connection: Connection, _: int) -> Any:
        row = connection.execute(
            "select gateway.raise_event('provider.failing', 'service:1', '{}', 'service:1:today')"
        ).fetchone()
        return row and row[0]

    assert sum(told is not None for told in race(outbox.database, 8, work)) == 1
    assert len(claim(outbox)) == 1


def test_an_event_of_what_was_rolled_back_is_not_there(outbox: Engine) -> None:
    with outbox.database.connect(autocommit=False) as connection:
        connection.execute("select gateway.raise_event('balance.low', 'customer:1', '{}')")
        connection.rollback()
    assert outbox.value("select count(*) from gateway.events") == 0
    assert claim(outbox) == []


def test_two_maintainers_never_have_the_same_one_at_once(outbox: Engine) -> None:
    for _ in range(60):
        raise_event(outbox)

    def work(connection: Connection, _: int) -> list[str]:
        taken: list[str] = []
        while found := call(connection, "claim_deliveries", p_limit=3, p_lease_seconds=60)["deliveries"]:
            taken += [delivery["event_id"] for delivery in found]
        return taken

    taken = Counter(identity for part in race(outbox.database, 8, work) for identity in part)
    # skip locked: what another was just looking at is left to it, and is not claimed by nobody
    taken.update(delivery["event_id"] for delivery in claim(outbox, 100))
    assert len(taken) == 60
    assert set(taken.values()) == {1}


def test_a_maintainer_that_died_leaves_its_claim_to_another(outbox: Engine) -> None:
    raise_event(outbox)
    [first] = claim(outbox)
    assert claim(outbox) == []
    let_time_pass(outbox)
    [second] = claim(outbox)
    assert (second["id"], second["attempt"]) == (first["id"], 2)


def test_one_whose_lease_ran_out_does_not_speak_for_its_successor(outbox: Engine) -> None:
    raise_event(outbox)
    [first] = claim(outbox)
    let_time_pass(outbox)
    [second] = claim(outbox)
    assert finish(outbox, first)["state"] == "stale"
    assert claim(outbox) == []  # the claim of the second still holds
    # but what it has delivered is delivered
    assert finish(outbox, first, delivered=True, status=200)["state"] == "delivered"
    assert finish(outbox, second)["state"] == "stale"
    assert outbox.value("select delivered_at is not null from gateway.event_deliveries")


def test_attempts_are_made_at_growing_distances_and_given_up_after_three_days(outbox: Engine) -> None:
    raise_event(outbox)
    waited = 0.0
    for number in range(1, ATTEMPTS):
        [delivery] = claim(outbox)
        assert delivery["attempt"] == number
        assert finish(outbox, delivery)["state"] == "waiting"
        minutes = outbox.value(
            "select extract(epoch from next_attempt_at - clock_timestamp())::float / 60"
            " from gateway.event_deliveries"
        )
        longest = min(2 ** (number - 1), 360)
        assert longest * 0.9 - 0.1 <= minutes <= longest
        waited += minutes
        assert claim(outbox) == []  # not due
        let_time_pass(outbox)
    assert 2.5 < waited / 1440 <= 3
    [delivery] = claim(outbox)
    assert finish(outbox, delivery) == {"state": "given_up", "next_attempt_at": None}
    let_time_pass(outbox)
    assert claim(outbox) == []
    told = outbox.call("read_deliveries")
    assert (told["waiting"], told["given_up"], told["webhook_set"]) == (0, 1, True)
    [shown] = told["undelivered"]
    assert (shown["attempts"], shown["last_status"]) == (ATTEMPTS, 500)
    assert shown["last_error"] == "the receiver answered 500"
    # an operator may have it sent again
    outbox.run("update gateway.event_deliveries set next_attempt_at = now()")
    [delivery] = claim(outbox)
    assert finish(outbox, delivery, delivered=True, status=200)["state"] == "delivered"


def test_what_fails_together_does_not_come_back_together(outbox: Engine) -> None:
    for _ in range(20):
        raise_event(outbox)
    for delivery in claim(outbox, 20):
        finish(outbox, delivery)
    spread = outbox.value(
        "select extract(epoch from max(next_attempt_at) - min(next_attempt_at))::float"
        " from gateway.event_deliveries"
    )
    assert spread > 1


def test_the_longest_due_come_first(outbox: Engine) -> None:
    raised = [raise_event(outbox) for _ in range(3)]
    assert [claim(outbox, 1)[0]["event_id"] for _ in raised] == raised


def test_nothing_is_claimed_where_the_webhook_was_taken_away(outbox: Engine) -> None:
    raise_event(outbox)
    outbox.run("update gateway.settings set webhook_url = null")
    told = outbox.call("claim_deliveries", p_limit=10, p_lease_seconds=60)
    assert told == {"url": None, "secret": None, "deliveries": []}
    told = outbox.call("read_deliveries")
    assert (told["webhook_set"], told["waiting"], told["undelivered"]) == (False, 1, [])


def test_old_events_crossings_and_windows_are_forgotten(outbox: Engine) -> None:
    customer = outbox.customer()
    outbox.call("set_limits", p_customer_id=customer.id, p_rate_limits={}, p_warn={"requests_per_day": 0})
    outbox.admitted(customer.key_hash)
    raise_event(outbox)
    outbox.run(
        "insert into gateway.turned_windows select subject, subject_id, model_id, per, window_start,"
        " requests, tokens, spend_usd from gateway.limit_counters"
    )
    counts = (
        "select (select count(*) from gateway.events), (select count(*) from gateway.event_deliveries),"
        " (select count(*) from gateway.limit_crossings), (select count(*) from gateway.turned_windows)"
    )
    [(events, deliveries, crossings, windows)] = outbox.query(counts)
    assert min(events, deliveries, crossings, windows) > 0
    with outbox.by_engine():
        outbox.run("update gateway.events set at = now() - interval '89 days'")
        outbox.run("update gateway.limit_crossings set at = now() - interval '399 days'")
        outbox.run("update gateway.turned_windows set turned_at = now() - interval '23 hours'")
    assert outbox.call("forget_events") == 0
    with outbox.by_engine():
        outbox.run("update gateway.events set at = at - interval '2 days'")
        outbox.run("update gateway.limit_crossings set at = at - interval '2 days'")
        outbox.run("update gateway.turned_windows set turned_at = turned_at - interval '2 hours'")
    assert outbox.call("forget_events", p_limit=1) == 3
    assert outbox.call("forget_events") == events + crossings + windows - 3
    assert outbox.query(counts) == [(0, 0, 0, 0)]
