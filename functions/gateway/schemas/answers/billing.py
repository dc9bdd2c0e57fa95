"""What the billing function answers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from gateway.schemas.answers import Answer, Count, Id, Page, Percent, Time, Usd

PaymentStatus = Literal[
    "pending", "paid", "failed", "not_credited", "partially_refunded", "refunded", "disputed"
]


class Payment(Answer):
    """A payment by Stripe."""

    id: Id
    created_at: Time = Field(description="When it was first heard of.")
    paid_at: Time | None
    currency: str | None = Field(examples=["usd"])
    status: PaymentStatus = Field(
        description="`not_credited`: paid, but not in USD, or for nobody who is a customer."
    )
    credited_usd: Usd
    refunded_usd: Usd = Field(examples=["0"])
    disputed_usd: Usd = Field(examples=["0"])


class AdminPayment(Payment):
    """A payment, with what Stripe calls it."""

    customer_id: Id | None
    payment_intent: str = Field(examples=["pi_3PqR8s2eZvKYlo2C1a2b3c4d"])
    checkout_session: str | None = Field(examples=["cs_test_a1b2c3d4"])
    livemode: bool = Field(description="Whether the money is real.")
    asked_usd: Usd | None = Field(description="What was to be paid.")
    paid_minor: Count | None = Field(description="What was paid, in the currency's smallest unit.")


class AdminPaymentList(Page[AdminPayment]):
    """A page of payments."""


class Billing(Page[Payment]):
    """The account, what a top-up may be, and a page of its payments."""

    customer_id: Id
    configured: bool = Field(description="Whether a top-up can be paid here.")
    suspended: bool = Field(description="Whether no request is admitted because of the debt.")
    balance_usd: Usd
    held_usd: Usd
    debt_usd: Usd = Field(description="What the next top-up pays first.", examples=["0"])
    amounts_usd: list[Usd] = Field(description="The amounts that are offered.", examples=[["10", "25"]])
    minimum_usd: Usd = Field(examples=["5"])
    maximum_usd: Usd = Field(examples=["1000"])


class Checkout(Answer):
    """Where to pay."""

    url: str = Field(examples=["https://checkout.stripe.com/c/pay/cs_test_a1b2c3d4"])


class WebhookReceipt(Answer):
    """What became of an event."""

    received: Literal[True]
    outcome: Literal["recorded", "duplicate", "ignored"]


class Replayed(Answer):
    """What became of the events that were fetched."""

    recorded: Count
    duplicate: Count
    ignored: Count
    next: str | None = Field(
        description="Not all in one call: send it as `after` to go on. Null: this was all.", examples=[None]
    )


class StatementMonth(Answer):
    """A month with a statement."""

    month: str = Field(pattern=r"^[0-9]{4}-[0-9]{2}$", examples=["2026-11"])
    closed: bool = Field(description="Whether it is over, so that its statement does not change any more.")


class StatementMonthList(Page[StatementMonth]):
    """A page of months, the newest first."""


class StatementCharge(Answer):
    """What the requests of one model cost at one price."""

    model: str | None = Field(description="Null: what the sums of a dropped log leave to the ledger's.")
    requests: Count
    expired_holds: bool = Field(description="Whether these are holds that were charged when they expired.")
    billing_mode: Literal["markup", "flat"] | None
    commission_percent: Percent | None
    flat_usd_per_1k_tokens: Usd | None
    prices: dict[str, Any] | None = Field(
        description="The provider's, in USD per million tokens, as they were pinned. Null at a flat price.",
        examples=[{"input": 0.15, "output": 0.6}],
    )
    input_tokens: Count
    cached_input_tokens: Count
    cache_write_tokens: Count
    audio_input_tokens: Count
    image_input_tokens: Count
    output_tokens: Count
    reasoning_tokens: Count
    audio_output_tokens: Count
    image_output_tokens: Count
    images: Count
    charge_usd: Usd
    recomputed_usd: Usd | None = Field(description="The same, from usage and prices. Null: the log is gone.")


class StatementEntry(Answer):
    """Money that is no request's."""

    at: Time
    kind: Literal["credit", "correction", "refund", "dispute", "reinstatement", "debt_payment"]
    amount_usd: Usd
    debt_change_usd: Usd
    balance_after_usd: Usd
    reference: str | None
    payment_id: Id | None


class StatementCheck(Answer):
    """Whether the charges follow from the prices."""

    source: Literal["request_log", "sums"] = Field(
        description="`sums`: the month's log was dropped; the lines are of the sums that are kept."
    )
    requests: Count
    differing: Count | None = Field(description="How many charges are not what their prices make of them.")
    difference_usd: Usd | None
    balance_agrees: bool = Field(description="Whether the entries come to the closing balance.")


class Statement(Answer):
    """A month in a customer's time zone.

    The opening balance, with all sums but the charges added and these taken off, is the closing balance.
    """

    customer_id: Id
    month: str = Field(pattern=r"^[0-9]{4}-[0-9]{2}$", examples=["2026-11"])
    closed: bool
    time_zone: str = Field(examples=["Asia/Kolkata"])
    from_: Time = Field(alias="from")
    to: Time
    opening_balance_usd: Usd
    credits_usd: Usd
    corrections_usd: Usd
    reversals_usd: Usd
    debt_payments_usd: Usd
    charges_usd: Usd
    closing_balance_usd: Usd
    opening_debt_usd: Usd
    closing_debt_usd: Usd
    charges: list[StatementCharge]
    entries: list[StatementEntry]
    check: StatementCheck
