"""What customers and admins send about billing, and what of Stripe's objects is read."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from gateway.schemas.values import Body, Id, Time, TopUpUsd

EventId = Annotated[str, StringConstraints(pattern=r"^evt_[A-Za-z0-9_]{1,200}$")]


class CheckoutRequest(Body):
    """The body of POST /v1/billing/checkout. `customer_id` is for admins."""

    usd: TopUpUsd
    customer_id: Id | None = None


class ReplayRequest(Body):
    """The body of POST /admin/payments/replay: one event, or what has happened since some time."""

    event_id: EventId | None = None
    since: Time | None = None
    after: EventId | None = None
    """Goes on behind this event, where an answer said that there is more."""

    @model_validator(mode="after")
    def _one(self) -> ReplayRequest:
        if (self.event_id is None) == (self.since is None):
            raise PydanticCustomError("one_of", "give exactly one of event_id, since")
        if self.after is not None and self.since is None:
            raise PydanticCustomError("needs", "after goes with since")
        return self


class StatementQuery(BaseModel):
    """The query of GET /v1/billing/statements/{month}."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    customer_id: Annotated[int, Field(ge=1, lt=2**63)] | None = None
    format: Literal["json", "csv", "html"] = "json"


# Stripe's objects: what we go by, whatever else they have.


class _Stripes(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


Minor = Annotated[int, Field(ge=0, lt=2**53)]
"""An amount in the currency's smallest unit."""
StripeId = Annotated[str, StringConstraints(min_length=1, max_length=255)]
Currency = Annotated[str, StringConstraints(pattern=r"^[a-z]{3}$")]


class StripeEventData(_Stripes):
    object: dict[str, Any]


class StripeEvent(_Stripes):
    id: StripeId
    object: Literal["event"]
    type: Annotated[str, StringConstraints(min_length=1, max_length=255)]
    created: Annotated[int, Field(ge=0, lt=2**40)]
    livemode: bool
    data: StripeEventData


class StripeSession(_Stripes):
    id: StripeId
    mode: str | None = None
    payment_intent: StripeId | None = None
    payment_status: str | None = None
    client_reference_id: str | None = None
    metadata: dict[str, str] | None = None
    currency: Currency | None = None
    amount_total: Minor | None = None


class StripeCharge(_Stripes):
    payment_intent: StripeId | None = None
    currency: Currency
    amount_refunded: Minor


class StripeRefund(_Stripes):
    id: StripeId
    payment_intent: StripeId | None = None
    amount: Minor
    status: str | None = None


class StripeDispute(_Stripes):
    id: StripeId
    payment_intent: StripeId | None = None
    amount: Minor
    status: str


class StripeEventList(_Stripes):
    data: list[dict[str, Any]]
    has_more: bool = False
