"""What events tell: the `data` of each, as the webhook and the SNS topic get it.

Ids and figures only: nothing of a person, no secret, nothing of what was asked or answered.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gateway.schemas.answers import Answer, Count, Day, Id, RequestId, Time, Usd
from gateway.schemas.answers.admin import LedgerMismatch  # noqa: TC001 - pydantic reads it


class SoftLimitCrossed(Answer):
    """What is really used of a window has gone beyond its soft mark."""

    subject: Literal["key", "customer", "service"]
    id: Id = Field(description="The subject's.")
    customer_id: Id | None
    model: str | None = Field(description="Null: over all models.", examples=["gpt-4o-mini"])
    limit: str = Field(examples=["tokens_per_day"])
    window_start: Time
    mark: Usd | Count = Field(examples=[80000])
    used: Usd | Count = Field(examples=[80412])


class BalanceLow(Answer):
    """A balance that has fallen below its mark."""

    customer_id: Id
    balance_usd: Usd
    held_usd: Usd
    low_balance_usd: Usd = Field(description="The mark.", examples=["5"])


class BalanceExhausted(Answer):
    """A customer whose call was refused for want of money."""

    customer_id: Id
    balance_usd: Usd
    held_usd: Usd
    debt_usd: Usd = Field(examples=["0"])
    needed_usd: Usd | None = Field(description="By the call; null: a debt refuses every call.")


class RequestUncollected(Answer):
    """A charge that the balance could not give."""

    request_id: RequestId
    customer_id: Id
    key_id: Id | None
    model: str | None = Field(examples=["gpt-4o-mini"])
    service_id: Id | None
    hold_usd: Usd = Field(description="What was held for it.")
    cost_usd: Usd
    charge_usd: Usd
    collected_usd: Usd
    uncollected_usd: Usd
    late: bool = Field(description="Whether its hold had expired before it was settled.")


class HoldsExpired(Answer):
    """Holds that nobody settled, and that were released."""

    holds: Count = Field(examples=[3])
    customers: Count = Field(examples=[2])
    released_usd: Usd = Field(description="Their upper bound: what the calls may have cost at most.")
    first_admitted_at: Time
    last_admitted_at: Time
    request_ids: list[RequestId] = Field(description="The first twenty.")


class LedgerDisagrees(Answer):
    """What the check of the books has found."""

    accounts: Count
    since: Time = Field(description="Since when the books have not agreed.")
    customers: Count = Field(description="Accounts that differ, counted up to a hundred.", examples=[1])
    mismatches: list[LedgerMismatch] = Field(description="The first twenty of them.")
    misbooked_requests: Count
    misbooked_payments: Count


class LedgerOk(Answer):
    """The books agree again."""

    accounts: Count


class ProviderHealthChanged(Answer):
    """A service, and what was last wrong with it."""

    service_id: Id
    service: str = Field(examples=["OpenAI"])
    provider: str = Field(examples=["openai"])
    model: str | None = Field(description="Null: all of the service's.", examples=["gpt-4o-mini"])
    fault: str = Field(
        description="`operator`: its key, credit or address is refused, which is yours to mend; `transient`; "
        "`protocol`.",
        examples=["operator"],
    )
    status: int | None = Field(examples=[401])
    failures: Count
    failing_since: Time
    set_aside_until: Time | None


class ProviderCostDiffers(Answer):
    """A service's day, by our prices and by what the provider told."""

    service_id: Id
    service: str = Field(examples=["OpenRouter"])
    provider: str = Field(examples=["openrouter"])
    day: Day
    requests: Count
    cost_usd: Usd
    provider_cost_usd: Usd


class PaymentReversed(Answer):
    """What a refund or a dispute took back."""

    customer_id: Id
    payment_intent: str = Field(examples=["pi_3OqYzX2eZvKYlo2C0"])
    reason: str = Field(examples=["refund"])
    taken_usd: Usd = Field(description="Of the balance.")
    debt_usd: Usd = Field(description="What the balance could not give.")


class CustomerInDebt(Answer):
    """A customer that owes since a refund or a dispute."""

    customer_id: Id
    debt_usd: Usd


class PaymentDisputed(Answer):
    """A payment that its payer disputes."""

    customer_id: Id | None
    payment_intent: str = Field(examples=["pi_3OqYzX2eZvKYlo2C0"])
    dispute: str = Field(examples=["dp_1OqYzX2eZvKYlo2C"])
    amount_minor: int | None = Field(description="In the currency's smallest unit.", examples=[2500])


class PaymentUnexpected(Answer):
    """A payment that was not credited, for a person to look at."""

    customer_id: Id | None
    payment_intent: str = Field(examples=["pi_3OqYzX2eZvKYlo2C0"])
    reason: str = Field(examples=["currency"])
    currency: str | None = Field(examples=["usd"])
    paid_minor: int | None = Field(description="In the currency's smallest unit.", examples=[2500])
    asked_usd: Usd | None


class Ping(Answer):
    """Nothing."""
