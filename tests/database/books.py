"""What the database holds beside what it should hold: by the plain model, or worked out from the requests."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from tests.database.model import (
    METRICS,
    UNUSED,
    Amounts,
    CounterKey,
    Subject,
    Terms,
    added,
    read_prices,
    tokens_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.database.engine import Engine, JSONObject
    from tests.database.programs import World

ROLLED_UP = (
    "requests", "errors", "input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens",
    "reasoning_tokens", "total_tokens", "cost_usd", "charge_usd", "uncollected_usd",
)  # fmt: skip
SOFT_METRICS = tuple(f"warn_{metric}" for metric in METRICS)
EVERYTHING = {
    "accounts": "select customer_id, balance_usd, held_usd, debt_usd from gateway.accounts",
    "ledger": "select customer_id, kind, amount_usd, balance_after_usd, request_id, reference,"
    " debt_change_usd from gateway.ledger_entries order by id",
    "payments": "select payment_intent, customer_id, credited_usd, refunded_usd, disputed_usd"
    " from gateway.payments",
    "requests": "select id, state, outcome, hold_usd, cost_usd, charge_usd, collected_usd, uncollected_usd,"
    " model_id, service_id, usage_estimated from gateway.requests where state <> 'refused'",
    "counters": "select subject, subject_id, model_id, per, window_start, requests, tokens, spend_usd"
    " from gateway.limit_counters",
    "limits": "select key_id, customer_id, service_id, model_id, each_model, per, "
    + ", ".join(METRICS + SOFT_METRICS)
    + " from gateway.limits",
    "keyed": "select key_id, idempotency_key, request_id, charged, freed from gateway.idempotency_keys",
    "rollups": "select customer_id, bucket, key_id, model_id, service_id, "
    + ", ".join(ROLLED_UP)
    + " from gateway.usage_rollups",
    "refusals": "select customer_id, key_id, code, sum(refusals)::int from gateway.refusal_rollups"
    " group by 1, 2, 3",
    "check": "select api.check_ledger()",
}


def compare(world: World) -> None:
    """The whole database beside the whole model."""
    model = world.model
    connection = world.engine.connection
    with connection.pipeline():
        cursors = {name: connection.execute(query.encode()) for name, query in EVERYTHING.items()}
    found = {name: cursor.fetchall() for name, cursor in cursors.items()}

    assert {row[0]: row[1:] for row in found["accounts"]} == {
        customer.id: (customer.balance, customer.held, customer.debt) for customer in model.customers.values()
    }
    ledger: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
    for customer_id, *entry in found["ledger"]:
        ledger[customer_id].append(tuple(entry))
    assert ledger == {customer_id: entries for customer_id, entries in model.ledger.items() if entries}
    assert {row[0]: row[1:] for row in found["payments"]} == {
        payment.id: (payment.customer_id, payment.credited, payment.refunded, payment.disputed)
        for payment in model.payments.values()
    }
    assert {row[0]: row[1:] for row in found["requests"]} == {
        request.id: (
            request.state,
            request.outcome,
            request.hold,
            request.cost,
            request.charge,
            request.collected,
            request.uncollected,
            request.model_id,
            request.service_id,
            request.outcome in {"cancelled", "cut"},
        )
        for request in model.requests.values()
    }
    counters = by_window(found["counters"])
    assert {
        (key, counter.start): counters.pop((key, counter.start), None)
        for key, counter in model.counters.items()
    } == {(key, counter.start): counter.used for key, counter in model.counters.items()}
    # a counter that a refused request was the first to ask for is there, and counts nothing
    assert all(used == UNUSED for used in counters.values())
    assert dict(map(limits_of_row, found["limits"])) == {key: row for key, row in model.limits.items() if row}
    assert {row[:2]: row[2:] for row in found["keyed"]} == {
        key: (keyed.request_id, keyed.charged, keyed.freed) for key, keyed in model.keyed.items()
    }
    assert figures_of_rollups(found["rollups"]) == {
        key: {name: value for name, value in row.items() if value} for key, row in model.rollups().items()
    }
    assert {row[:3]: row[3] for row in found["refusals"]} == model.refusals
    ((checked,),) = found["check"]
    assert (checked["ok"], checked["orphan_holds"]) == (
        True,
        sum(request.state == "held" and request.lapsed is not None for request in model.requests.values()),
    )


Rows = list[tuple[Any, ...]]


def by_window(rows: Rows) -> dict[tuple[CounterKey, datetime], Amounts]:
    return {(CounterKey(*row[:4]), row[4]): Amounts(*row[5:]) for row in rows}


def limits_of_row(row: tuple[Any, ...]) -> tuple[tuple[Subject, str], dict[str, Any]]:
    key_id, customer_id, service_id, model_id, each_model, per, *figures = row
    if key_id is not None:
        subject = Subject("key", key_id, -1 if each_model else model_id or 0)
    else:
        subject = Subject("customer", customer_id) if customer_id else Subject("service", service_id)
    named = zip(METRICS + SOFT_METRICS, figures, strict=True)
    return (subject, per), {name: figure for name, figure in named if figure is not None}


def figures_of_rollups(rows: Rows) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The rollups that come to anything, without what in them is zero."""
    found = {}
    for row in rows:
        figures = {name: value for name, value in zip(ROLLED_UP, row[5:], strict=True) if value}
        if figures:
            found[row[:5]] = figures
    return found


def audit(engine: Engine) -> dict[tuple[CounterKey, datetime], Amounts]:
    """What must hold in any order of things: everything worked out anew from the requests and the ledger.

    Returns by how much requests stand for more than was reserved for them, by counter and window.
    """
    checked = engine.check()
    assert (checked["ok"], checked["mismatches"], checked["misbooked_requests"]) == (True, [], 0)
    requests = [
        row[0]
        for row in engine.query(
            "select to_jsonb(r) from gateway.requests as r where state <> 'refused' order by admitted_at"
        )
    ]
    booked: dict[str, Decimal] = defaultdict(Decimal)
    balances: dict[int, Decimal] = defaultdict(Decimal)
    debts: dict[int, Decimal] = defaultdict(Decimal)
    for customer_id, amount, balance_after, request_id, debt_change in engine.query(
        "select customer_id, amount_usd, balance_after_usd, request_id, debt_change_usd"
        " from gateway.ledger_entries order by id"
    ):
        balances[customer_id] += amount
        debts[customer_id] += debt_change or 0
        assert debts[customer_id] >= 0
        assert balance_after == balances[customer_id] >= 0
        if request_id is not None:
            booked[request_id] -= amount
    held: dict[int, Decimal] = defaultdict(Decimal)
    counted: dict[tuple[CounterKey, datetime], Amounts] = defaultdict(lambda: UNUSED)
    rolled_up: dict[tuple[Any, ...], dict[str, Any]] = defaultdict(lambda: defaultdict(int))
    beyond: dict[tuple[CounterKey, datetime], Amounts] = defaultdict(lambda: UNUSED)
    paying: dict[tuple[int, str], int] = defaultdict(int)
    for request in requests:
        usage = usage_of(request)
        cost, charge = bill(request, usage)
        assert (request["cost_usd"], request["charge_usd"]) == (cost, charge)
        assert (
            booked.pop(request["id"], Decimal(0))
            == request["collected_usd"]
            == charge - request["uncollected_usd"]
        )
        if request["state"] == "held":
            held[request["customer_id"]] += request["hold_usd"]
        else:
            roll_up(rolled_up, request, usage)
        for share in request["counted"]:
            key = CounterKey(*(share[name] for name in CounterKey._fields))
            window = (key, datetime.fromisoformat(share["window_start"]))
            now = stands_for(request, share, usage)
            counted[window] = added(counted[window], now)
            beyond[window] = added(
                beyond[window],
                Amounts(
                    0,
                    max(now.tokens - share["tokens"], 0),
                    max(now.spend_usd - Decimal(share["spend_usd"]), Decimal(0)),
                ),
            )
        if request["idempotency_key"] is not None:
            paying[request["key_id"], request["idempotency_key"]] += request["collected_usd"] > 0
    assert not booked
    assert max(paying.values(), default=0) <= 1, "two requests with one Idempotency-Key were paid for"
    for customer_id, balance, held_usd, debt in engine.query(
        "select customer_id, balance_usd, held_usd, debt_usd from gateway.accounts"
    ):
        assert (balance, held_usd, debt) == (balances[customer_id], held[customer_id], debts[customer_id])
        assert balance >= held_usd
        assert debt == 0 or balance == held_usd
    for *name, start, used_requests, used_tokens, used_usd in engine.query(
        "select subject, subject_id, model_id, per, window_start, requests, tokens, spend_usd"
        " from gateway.limit_counters"
    ):
        assert Amounts(used_requests, used_tokens, used_usd) == counted[CounterKey(*name), start], name
    assert figures_of_rollups(engine.query(EVERYTHING["rollups"])) == {
        key: {name: value for name, value in row.items() if value} for key, row in rolled_up.items()
    }
    return beyond


def usage_of(request: JSONObject) -> dict[str, int] | None:
    """What a settled request used; None where nothing was to be charged."""
    if request["service_id"] is None:
        return None
    return {
        name: request["images" if name == "images" else f"{name}_tokens"] or 0
        for name in (
            "input", "cached_input", "cache_write", "audio_input", "image_input",
            "output", "reasoning", "audio_output", "image_output", "images", "cache_write_1h",
        )
    }  # fmt: skip


def bill(request: JSONObject, usage: Mapping[str, int] | None) -> tuple[Decimal, Decimal]:
    """(cost, charge) by the prices and terms that the request was admitted under."""
    if request["state"] == "expired":
        assert request["charge_usd"] in {Decimal(0), request["hold_usd"]}
        return Decimal(0), request["charge_usd"]
    if usage is None:
        return Decimal(0), Decimal(0)
    (pinned,) = (
        read_prices(route["prices"])
        for route in request["routes"]
        if (route["service_id"], route["model_id"]) == (request["service_id"], request["model_id"])
    )
    return Terms(
        request["billing_mode"],
        Decimal(request["commission_percent"]),
        Decimal(request["flat_usd_per_1k_tokens"]),
    ).bill(pinned, usage)


def stands_for(request: JSONObject, share: JSONObject, usage: Mapping[str, int] | None) -> Amounts:
    """What a request counts in one counter, from its state."""
    if request["state"] != "settled":
        return Amounts(share["requests"], share["tokens"], Decimal(share["spend_usd"]))
    if share["subject"] == "service":
        answered, spend = share["subject_id"] == request["service_id"], request["cost_usd"]
    else:
        answered, spend = share["model_id"] in {0, request["model_id"]}, request["charge_usd"]
    return Amounts(share["requests"], tokens_of(usage or {}), spend) if answered else UNUSED


def roll_up(
    rolled_up: dict[tuple[Any, ...], dict[str, Any]], request: JSONObject, usage: Mapping[str, int] | None
) -> None:
    at = datetime.fromisoformat(request["admitted_at"]).astimezone(UTC)
    bucket = at.replace(minute=at.minute // 15 * 15, second=0, microsecond=0)
    row = rolled_up[
        request["customer_id"], bucket, request["key_id"], request["model_id"], request["service_id"] or 0
    ]
    row["requests"] += 1
    row["errors"] += request["state"] == "expired" or request["outcome"] == "failed"
    for name in ("input", "cached_input", "cache_write", "output", "reasoning"):
        row[f"{name}_tokens"] += (usage or {}).get(name, 0)
    row["total_tokens"] += tokens_of(usage or {})
    for name in ("cost_usd", "charge_usd", "uncollected_usd"):
        row[name] += request[name]
