"""Stripe's events: that one is Stripe's, and what it tells of a payment.

The signature is of the raw body: `Stripe-Signature: t=<seconds>,v1=<HMAC-SHA256 of "<t>.<body>">`, in
hexadecimal, with a v1 for each secret while one replaces another
(https://docs.stripe.com/webhooks#verify-manually).
"""

from __future__ import annotations

import hashlib
import hmac
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from gateway.errors import BadRequest
from gateway.schemas.billing import (
    StripeCharge,
    StripeDispute,
    StripeEvent,
    StripeRefund,
    StripeSession,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import SecretStr

TOLERANCE_SECONDS = 300
"""How far a signature's time may lie from ours, as in Stripe's libraries: what is older may be a replay."""
CUSTOMER_ID = "sluice_customer_id"
"""What our customer's id is called in the metadata of what we make at Stripe. What has none is not ours."""
ASKED_USD = "sluice_usd"

SESSION_TYPES = frozenset(
    {
        "checkout.session.completed",
        "checkout.session.async_payment_succeeded",
        "checkout.session.async_payment_failed",
    }
)
REFUND_TYPES = frozenset({"refund.created", "refund.updated", "refund.failed", "charge.refund.updated"})
DISPUTE_TYPES = frozenset(
    {
        "charge.dispute.created",
        "charge.dispute.updated",
        "charge.dispute.closed",
        "charge.dispute.funds_withdrawn",
        "charge.dispute.funds_reinstated",
    }
)
CHARGE_REFUNDED = "charge.refunded"
TYPES = (*sorted(SESSION_TYPES), CHARGE_REFUNDED, *sorted(REFUND_TYPES), *sorted(DISPUTE_TYPES))
"""The events that the webhook is to be sent."""

# An inquiry (warning_…) moves no money; a dispute that was prevented never did. An appeal (appeal_…) does not
# say where the money is: what was told before stands until the dispute is won or lost, or its money moves.
_WITHDRAWN = frozenset({"needs_response", "under_review", "lost", "won"})
_FAILED_REFUND = frozenset({"failed", "canceled"})
_MAX_SIGNATURES = 16
_MAX_TIME_DIGITS = 15
_ID = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)
_USD = re.compile(r"[0-9]{1,9}(\.[0-9]{1,2})?", re.ASCII)


def verify(body: bytes, header: str | None, secrets: Sequence[SecretStr], *, now: float) -> None:
    """Raise BadRequest (400) unless one of the secrets has signed this very body, within the tolerance.

    `now` in seconds since 1970.
    """
    if header is None:
        raise _unsigned("There is no Stripe-Signature header.")
    parts = [part.strip().partition("=") for part in header.split(",")]
    times = [value for name, _, value in parts if name == "t"]
    given = [value for name, _, value in parts if name == "v1"][:_MAX_SIGNATURES]
    if (
        len(times) != 1
        or not (times[0].isascii() and times[0].isdecimal() and len(times[0]) <= _MAX_TIME_DIGITS)
        or not given
    ):
        raise _unsigned("The Stripe-Signature header can't be read.")
    signed = times[0].encode() + b"." + body
    matches = False
    for secret in secrets:
        expected = hmac.new(secret.get_secret_value().encode(), signed, hashlib.sha256).hexdigest().encode()
        # Each is compared, whichever matches, and in a time that does not tell how much of it does.
        for signature in given:
            matches |= hmac.compare_digest(expected, signature.encode())
    if not matches:
        raise _unsigned("No signature of this body is by a secret that is known here.")
    if abs(now - int(times[0])) > TOLERANCE_SECONDS:
        raise _unsigned("The signature's time is too far from ours.")


def parse(value: Any) -> StripeEvent:
    """Return an event as it was sent or fetched. Raises BadRequest (400)."""
    try:
        return StripeEvent.model_validate(value)
    except ValidationError as error:
        raise _unreadable(error) from None


def told(event: StripeEvent) -> dict[str, Any] | None:
    """Return what an event tells, as api.record_payment_event takes it in; None where that is nothing to us.

    Raises BadRequest (400) where its object is not as Stripe documents it.
    """
    try:
        facts = _facts(event)
    except ValidationError as error:
        raise _unreadable(error) from None
    if facts is None or facts["payment_intent"] is None:
        return None
    return {
        "id": event.id,
        "type": event.type,
        "created": datetime.fromtimestamp(event.created, UTC).isoformat(),
        "livemode": event.livemode,
        **facts,
    }


def _facts(event: StripeEvent) -> dict[str, Any] | None:
    thing = event.data.object
    if event.type in SESSION_TYPES:
        return _of_session(StripeSession.model_validate(thing), event.type)
    if event.type == CHARGE_REFUNDED:
        charge = StripeCharge.model_validate(thing)
        return {
            "payment_intent": charge.payment_intent,
            "currency": charge.currency,
            "refunded_minor": charge.amount_refunded,
        }
    if event.type in REFUND_TYPES:
        refund = StripeRefund.model_validate(thing)
        failed = refund.status in _FAILED_REFUND
        return {
            "payment_intent": refund.payment_intent,
            "refund": {"id": refund.id, "amount_minor": refund.amount, "failed": failed},
        }
    if event.type in DISPUTE_TYPES:
        dispute = StripeDispute.model_validate(thing)
        returned = dispute.status == "won" or event.type == "charge.dispute.funds_reinstated"
        return {
            "payment_intent": dispute.payment_intent,
            "dispute": {
                "id": dispute.id,
                "amount_minor": dispute.amount,
                "withdrawn": event.type == "charge.dispute.funds_withdrawn" or dispute.status in _WITHDRAWN,
                "returned": returned,
            },
        }
    return None


def _of_session(session: StripeSession, kind: str) -> dict[str, Any] | None:
    metadata = session.metadata or {}
    named = metadata.get(CUSTOMER_ID, "")
    if session.mode != "payment" or not _ID.fullmatch(named):
        return None  # another product's, on the same account
    facts: dict[str, Any] = {
        "payment_intent": session.payment_intent,
        "checkout_session": session.id,
        "currency": session.currency,
        # Whoever opened the page may have been given another's: the two are ours, and must agree.
        "customer_id": int(named) if session.client_reference_id == named else None,
    }
    asked = metadata.get(ASKED_USD, "")
    if _USD.fullmatch(asked):
        facts["asked_usd"] = asked
    if kind == "checkout.session.async_payment_failed":
        facts["failed"] = True
    elif session.payment_status == "paid":
        facts["paid_minor"] = session.amount_total or 0
    return facts


def _unsigned(reason: str) -> BadRequest:
    return BadRequest(reason, code="invalid_signature")


def _unreadable(error: ValidationError) -> BadRequest:
    where = ", ".join(".".join(map(str, fault["loc"])) for fault in error.errors(include_input=False)[:5])
    return BadRequest("This is no event of Stripe's.", code="invalid_event", detail=f"at {where}")
