"""The events: OpenAPI 3.1's `webhooks`, each with when it is sent and what it tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gateway.openapi.schemas import example, reference
from gateway.schemas.answers import events

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.schemas.answers import Answer


@dataclass(frozen=True, slots=True)
class Event:
    """One kind of event."""

    summary: str
    description: str
    data: type[Answer]
    subject: str
    """What it is about, as events and the SNS attribute name it."""


EVENTS: Mapping[str, Event] = {
    "balance.low": Event(
        "A balance is low",
        "A booking took it from at least `low_balance_usd`, the customer's own or else the settings', to "
        "below. Once for each crossing: what brings the balance back to the mark arms it again.",
        events.BalanceLow,
        "customer:42",
    ),
    "balance.exhausted": Event(
        "A customer is out of credits",
        "A call was refused because there is no money for its least answer, or because the customer is in "
        "debt. Once, until it has paid in.",
        events.BalanceExhausted,
        "customer:42",
    ),
    "limit.soft_crossed": Event(
        "A soft limit is crossed",
        "What is really used of a window has gone beyond its soft mark. Once for each window.",
        events.SoftLimitCrossed,
        "key:12",
    ),
    "request.uncollected": Event(
        "A charge could not be collected",
        "The provider billed more than was held, or the call was settled after its hold had expired, and the "
        "balance could not give the rest. Once for each such call.",
        events.RequestUncollected,
        "request:req_01a1fd2ab32670e3815c293832e5f73a",
    ),
    "hold.expired_unsettled": Event(
        "Holds have expired that nobody settled",
        "The calls may have cost the operator, and their customers pay nothing (`expired_hold_policy` is "
        "`release`). Once for each batch of up to 500.",
        events.HoldsExpired,
        "holds",
    ),
    "ledger.mismatch": Event(
        "The books disagree",
        "The check that runs every hour has found what the one before had not. Once for each distinct "
        "finding; GET /admin/ledger/check shows the whole of it.",
        events.LedgerDisagrees,
        "ledger",
    ),
    "ledger.ok": Event(
        "The books agree again", "After a `ledger.mismatch`, once.", events.LedgerOk, "ledger"
    ),
    "provider.failing": Event(
        "A service is set aside",
        "It failed three times in a row, or refused its key, credit or address at once (`fault` is "
        "`operator`, `status` such as 401). Sent again each time that a probe fails, at growing distances.",
        events.ProviderHealthChanged,
        "service:7",
    ),
    "provider.recovered": Event(
        "A service answers again", "After `provider.failing`.", events.ProviderHealthChanged, "service:7"
    ),
    "provider.cost_differs": Event(
        "A provider bills otherwise than our prices say",
        "What it told of yesterday's costs is more than a tenth off ours, and more than a cent.",
        events.ProviderCostDiffers,
        "service:7",
    ),
    "payment.reversed": Event(
        "A payment was taken back",
        "By a refund or a dispute. What the balance could not give is a debt.",
        events.PaymentReversed,
        "payment:5",
    ),
    "payment.disputed": Event(
        "A payment is disputed", "Once for each dispute.", events.PaymentDisputed, "payment:5"
    ),
    "payment.unexpected": Event(
        "A payment needs a person",
        "It was paid and could not be credited as it came.",
        events.PaymentUnexpected,
        "payment:5",
    ),
    "customer.in_debt": Event(
        "A customer owes",
        "A reversal took more than was free. Its calls are refused until it has paid.",
        events.CustomerInDebt,
        "customer:42",
    ),
    "webhook.test": Event(
        "A ping", "POST /admin/webhook/test sends it, to the webhook alone.", events.Ping, "webhook"
    ),
}

_SENDING = (
    "Sent to the settings' `webhook_url`, signed as Standard Webhooks has it "
    "(https://www.standardwebhooks.com), at least once: a receiver knows one that it has by its "
    "`webhook-id`. Events of one subject may overtake each other: `created_at` has their order. What is not "
    "answered with 2xx within ten seconds is sent again for some three days."
)
_HEADERS = {
    "webhook-id": ("The event's id.", "evt_01a1fd2ab32670e3815c293832e5f73a"),
    "webhook-timestamp": ("Seconds since 1970 at which this attempt was sent.", "1795262400"),
    "webhook-signature": (
        "`v1,` and the base64 of HMAC-SHA256 over id, timestamp and body, with dots between.",
        "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=",
    ),
}


def webhooks(schemas: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document's `webhooks`. `schemas` holds those of the events' data."""
    return {kind: {"post": _operation(kind, event, schemas)} for kind, event in EVENTS.items()}


def _operation(kind: str, event: Event, schemas: Mapping[str, Any]) -> dict[str, Any]:
    schema = {
        "type": "object",
        "required": ["id", "type", "created_at", "data"],
        "additionalProperties": False,
        "properties": {
            "id": {"type": "string", "pattern": "^evt_[0-9a-f]{32}$"},
            "type": {"const": kind},
            "created_at": {"type": "string", "format": "date-time"},
            "data": reference(event.data),
        },
    }
    shown = {
        "id": _HEADERS["webhook-id"][1],
        "type": kind,
        "created_at": "2026-11-21T12:00:00+00:00",
        "data": example(reference(event.data), schemas),
    }
    return {
        "operationId": "event_" + kind.replace(".", "_"),
        "summary": event.summary,
        "description": f"{event.description} Subject: such as `{event.subject}`.\n\n{_SENDING}",
        "tags": ["admin"],
        "security": [],
        "parameters": [
            {
                "name": name,
                "in": "header",
                "required": True,
                "description": text,
                "schema": {"type": "string"},
                "example": shown_header,
            }
            for name, (text, shown_header) in _HEADERS.items()
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": schema, "example": shown}},
        },
        "responses": {"2XX": {"description": "Taken. The body is not read."}},
    }
