"""What the routes of usage answer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gateway.schemas.answers import (
    Answer,
    Count,
    Credits,
    Id,
    KeyPrefix,
    LimitsAnswer,
    Number,
    Page,
    RequestId,
    Success,
    Time,
    Usd,
)


class CallingCustomer(Answer):
    """The customer that the caller belongs to."""

    id: Id
    name: str = Field(examples=["Ada Lovelace"])
    email: str | None = Field(examples=["ada@example.com"])
    time_zone: str = Field(description="In which days and months begin.", examples=["Asia/Kolkata"])


class OwnKey(Answer):
    """The calling key."""

    id: Id
    name: str = Field(examples=["production"])
    prefix: KeyPrefix
    expires_at: Time | None


class Caller(Answer):
    """Who calls, and what it may do."""

    customer: CallingCustomer | None = Field(description="Null: an operator, who belongs to no customer.")
    key: OwnKey | None = Field(description="Null: a person with an access token.")
    scopes: list[Literal["chat", "usage", "keys", "billing", "admin"]] = Field(examples=[["chat", "usage"]])
    is_admin: bool
    own_requests_only: bool = Field(description="It sees its own requests, and not its customer's.")


class Balance(Success):
    """What a customer has."""

    user_id: Id
    credits: Credits
    balance_usd: Usd
    held_usd: Usd = Field(description="What running calls may still cost; it is a part of the balance.")


class Tokens(Answer):
    """Tokens by class. No token is in two classes, save that reasoning is a part of the output.

    What was written to a cache for an hour is a part of what was written to it.

    A class that is missing was not told by the provider.
    """

    input: Count = 0
    cached_input: Count = 0
    cache_write: Count = 0
    audio_input: Count = 0
    image_input: Count = 0
    output: Count = 0
    reasoning: Count = 0
    audio_output: Count = 0
    image_output: Count = 0
    images: Count = Field(default=0, description="Images, not tokens.")
    cache_write_1h: Count = 0


class RequestRecord(Answer):
    """The record of a call. What was said is never stored."""

    id: RequestId
    created_at: Time
    endpoint: str = Field(examples=["chat.completions"])
    key_id: Id
    customer_id: Id
    model: str = Field(examples=["gpt-4o-mini"])
    requested_model: str = Field(description="As the client named it.", examples=["openai/gpt-4o-mini"])
    provider: str | None = Field(description="Who answered; null where nobody did.", examples=["openai"])
    state: Literal["held", "settled", "expired", "refused"] = Field(
        description="`held` while it runs; `expired`: nobody settled it in time; `refused`: one of a sample.",
        examples=["settled"],
    )
    outcome: str | None = Field(
        description="`succeeded`, `failed`, `cut` (by the provider) or `cancelled` (by the client); "
        "null while the call runs.",
        examples=["succeeded"],
    )
    status: int | None = Field(description="The HTTP status of the answer.", examples=[200])
    error_code: str | None
    finish_reason: str | None = Field(examples=["stop"])
    streamed: bool
    usage_estimated: bool | None = Field(description="The provider told no usage: tokens were counted here.")
    tokens: Tokens
    cost_usd: Usd | None = Field(
        description="What the provider takes; hidden from customers at a flat price."
    )
    charge_usd: Usd | None = Field(description="What the customer pays.")
    uncollected_usd: Usd | None = Field(description="What the provider billed beyond the bound.")
    hold_usd: Usd | None = Field(description="What is held while the call runs.")
    latency_ms: Count | None
    time_to_first_token_ms: Count | None


class RequestList(Page[RequestRecord]):
    """A page of the log, the newest first.

    Under a filter it may be short or even empty and still have a `next_cursor`: so much was looked through.
    """


class UsageMetrics(Answer):
    """What was used: ever, today and this month, by the customer's clock. Calls that still run are not in it.

    What is called cost here is what the customer was charged, in USD.
    """

    total_requests: Count = Field(examples=[150])
    total_tokens: Count = Field(examples=[15000])
    total_cost: Number = Field(examples=[0.3])
    requests_today: Count = Field(examples=[5])
    tokens_today: Count = Field(examples=[500])
    cost_today: Number = Field(examples=[0.01])
    requests_this_month: Count = Field(examples=[45])
    tokens_this_month: Count = Field(examples=[4500])
    cost_this_month: Number = Field(examples=[0.09])
    average_tokens_per_request: Number = Field(examples=[100.0])
    most_used_model: str | None = Field(
        description="By requests of this month or, where there are none, ever.", examples=["gpt-4o-mini"]
    )
    last_request_time: Time | None
    average_latency_ms: Number | None = Field(description="Of this month's requests.", examples=[840.5])


class LimitWindows(Answer):
    """Limits by window; null or missing: there is none. Spend is exact, as decimal text.

    Where several apply under one name (the key's, those of the key that made it, the customer's), the one
    with the least left. A limit that each model has for itself is shown of the model that is nearest to it.
    """

    requests_per_minute: Count | None = Field(examples=[60])
    requests_per_hour: Count | None = Field(examples=[1000])
    requests_per_day: Count | None = Field(examples=[10000])
    tokens_per_minute: Count | None = Field(examples=[10000])
    tokens_per_hour: Count | None = Field(examples=[100000])
    tokens_per_day: Count | None = Field(examples=[1000000])
    requests_per_month: Count = 0
    tokens_per_month: Count = 0
    spend_usd_per_minute: Usd = "0"
    spend_usd_per_hour: Usd = "0"
    spend_usd_per_day: Usd = "0"
    spend_usd_per_month: Usd = "0"


class CrossedLimit(Answer):
    """A soft mark that was crossed, once for each window."""

    subject: Literal["key", "customer", "service"]
    id: Id = Field(description="The subject's.")
    name: str | None = Field(description="A key's prefix or a service's name.", examples=["sk_AlwVbh…"])
    customer_id: Id | None
    model: str | None = Field(description="Null: over all models.")
    limit: str = Field(examples=["tokens_per_day"])
    window_start: Time
    mark: Usd | Count = Field(examples=[80000])
    used: Usd | Count = Field(examples=[80412])
    crossed_at: Time


class Monitor(Success):
    """What the caller has used, and its limits."""

    timestamp: Time
    user_id: Id
    api_key: KeyPrefix | None = Field(description="The calling key's; null for a person.")
    current_credits: Credits
    balance_usd: Usd
    usage_metrics: UsageMetrics
    rate_limits: LimitWindows
    soft_limits_crossed: list[CrossedLimit] = Field(
        description="By what was really used, the newest twenty.", examples=[[]]
    )


class CurrentUsage(Answer):
    """What is used of each window that has a limit, and whether a request would be let through."""

    allowed: bool = Field(
        description="Whether admission would let one more request pass, however small. Without `model`: "
        "whether every window that is shown has something left, and the balance too."
    )
    reason: str = Field(
        description="`Within limits`, or what a call would be refused with.", examples=["Within limits"]
    )
    requests_per_minute: Count = Field(default=0, examples=[3])
    requests_per_hour: Count = 0
    requests_per_day: Count = 0
    requests_per_month: Count = 0
    tokens_per_minute: Count = 0
    tokens_per_hour: Count = 0
    tokens_per_day: Count = 0
    tokens_per_month: Count = 0
    spend_usd_per_minute: Usd = "0"
    spend_usd_per_hour: Usd = "0"
    spend_usd_per_day: Usd = "0"
    spend_usd_per_month: Usd = "0"


class ResetTimes(Answer):
    """When the running windows end, by the customer's clock."""

    minute: Time
    hour: Time
    day: Time
    month: Time


class Limits(Success):
    """The limits that the caller falls under now, and what is used of them."""

    api_key: KeyPrefix | None = Field(description="The calling key's; null for a person.")
    current_limits: LimitWindows
    current_usage: CurrentUsage
    soft_limits: LimitsAnswer = Field(
        description="The soft marks of those limits that have one: beyond it the answers carry a warning."
    )
    reset_times: ResetTimes
    time_zone: str = Field(description="In which days and months begin.", examples=["Asia/Kolkata"])


class Percentiles(Answer):
    """Milliseconds, at most 9.1 % off; null where there is nothing to tell."""

    p50: Number | None = Field(examples=[820])
    p95: Number | None = Field(examples=[2400])
    average: Number | None = Field(examples=[1010])


class UsagePoint(Answer):
    """What was used in one interval, of one group where groups were asked for."""

    start: Time
    end: Time
    group: str | None = Field(
        description="A model's name, a key's prefix or a provider; null without groups, and for requests "
        "that nobody answered.",
        examples=["gpt-4o-mini"],
    )
    group_id: Id | None = Field(description="The model's or the key's id.")
    requests: Count = Field(description="Those that have ended.", examples=[45])
    errors: Count = Field(description="Of these, those that failed or expired.", examples=[1])
    tokens: Tokens
    total_tokens: Count = Field(examples=[4500])
    cost_usd: Usd | None = Field(
        description="What the providers take; hidden from customers at a flat price."
    )
    charge_usd: Usd
    uncollected_usd: Usd
    latency_ms: Percentiles
    time_to_first_token_ms: Percentiles


class UsageSeries(Answer):
    """Usage over time, the oldest first. Intervals in which nothing was used are there, too, with zeros."""

    data: list[UsagePoint]
    from_: Time = Field(alias="from", description="As asked for, widened to whole intervals.")
    to: Time
    interval: Literal["hour", "day", "month"]
    time_zone: str = Field(examples=["Asia/Kolkata"])
    group_by: Literal["model", "key", "provider"] | None


class CallingKeyRateLimit(Answer):
    """OpenRouter's field for a limit of requests."""

    requests: int = Field(description="-1: there is none.", examples=[60])
    interval: str = Field(examples=["1m"])
    note: str


class CallingKeyData(Answer):
    """Amounts are USD of the charge; days, weeks (from Monday) and months are the customer's."""

    label: KeyPrefix
    limit: Number | None = Field(
        description="Of the key's daily and monthly spending limits, the one that leaves least.",
        examples=[20],
    )
    limit_remaining: Number | None = Field(examples=[14.5])
    limit_reset: Literal["daily", "monthly"] | None
    include_byok_in_limit: bool
    usage: Number = Field(examples=[25.5])
    usage_daily: Number = Field(examples=[1.25])
    usage_weekly: Number = Field(examples=[3.5])
    usage_monthly: Number = Field(examples=[5.5])
    byok_usage: Number = Field(description="Nobody brings a key here: 0.", examples=[0])
    byok_usage_daily: Number = Field(examples=[0])
    byok_usage_weekly: Number = Field(examples=[0])
    byok_usage_monthly: Number = Field(examples=[0])
    is_free_tier: bool = Field(description="Nothing was ever paid in.", examples=[False])
    is_management_key: bool = Field(description="It may make keys.", examples=[False])
    is_provisioning_key: bool = Field(description="The same by its older name.", examples=[False])
    creator_user_id: None
    expires_at: Time | None
    rate_limit: CallingKeyRateLimit


class CallingKey(Answer):
    """The calling key, as OpenRouter describes one."""

    data: CallingKeyData


class CreditTotalsData(Answer):
    """In USD. What is left is the difference."""

    total_credits: Number = Field(description="Paid in, less what was taken back.", examples=[100.5])
    total_usage: Number = Field(description="Charged.", examples=[25.75])


class CreditTotals(Answer):
    """What was paid in and used in all, as OpenRouter tells it."""

    data: CreditTotalsData


class PriceToPayData(Answer):
    """Over all keys, ever; in USD."""

    username: str = Field(examples=["ada@example.com"])
    total_input_tokens: Count = Field(examples=[15240])
    total_output_tokens: Count = Field(examples=[8320])
    total_tokens: Count = Field(examples=[23560])
    base_price: Number = Field(
        description="What the providers take; at a flat price, all of it.", examples=[0.02945]
    )
    commission_5_percent: Number = Field(
        description="What is added to it, whatever the percentage.", examples=[0.001473]
    )
    final_price: Number = Field(description="Their sum: what was charged.", examples=[0.030923])


class PriceToPay(Answer):
    """What was used, and what it costs."""

    priceToPay: PriceToPayData  # noqa: N815 - the contract's name
