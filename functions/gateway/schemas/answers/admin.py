"""What the operator's routes answer."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from gateway.schemas.answers import (
    Answer,
    Count,
    Credits,
    Day,
    Id,
    KeyPrefix,
    LimitsAnswer,
    NewKey,
    Number,
    Page,
    Percent,
    Success,
    Time,
    Usd,
)
from gateway.schemas.answers.usage import CrossedLimit, Percentiles  # noqa: TC001 - pydantic reads it


class CreatedCustomer(Answer):
    """A customer that was just added."""

    id: Id
    name: str = Field(examples=["Ada"])
    email: str = Field(examples=["ada@example.com"])
    company: str | None
    username: str = Field(examples=["ada@example.com"])
    created_at: Time


class Customer(Answer):
    """A customer, with its account."""

    id: Id
    name: str = Field(examples=["Ada"])
    username: str = Field(examples=["ada@example.com"])
    email: str | None = Field(examples=["ada@example.com"])
    company: str | None
    time_zone: str = Field(description="Its days and months begin in it.", examples=["Europe/London"])
    active: bool = Field(description="False: suspended; each of its keys is refused.")
    created_at: Time
    erased_at: Time | None = Field(description="When the person was erased, for good. The books stay.")
    signs_in: bool = Field(description="Whether a person of Supabase Auth is linked to it.")
    credits: Credits
    balance_usd: Usd
    held_usd: Usd
    debt_usd: Usd = Field(description="What it owes; while it does, no request is admitted.", examples=["0"])
    low_balance_usd: Usd | None = Field(
        description="The operator is told when the balance falls below it. Null: as the settings have it; "
        "0: never."
    )
    active_keys: Count


class CustomerList(Page[Customer]):
    """Customers by id."""


class CreatedUser(Success):
    """A customer that was just added, with a key."""

    user_id: Id
    api_key: NewKey
    credits: Credits


class AddedCredits(Success):
    """What was paid in, and what the customer has now."""

    user_id: Id
    credits_added: Number = Field(examples=[500000])
    added_usd: Usd
    balance_after: Credits
    balance_after_usd: Usd
    debt_usd: Usd = Field(description="What is still owed: a debt is paid first.", examples=["0"])
    duplicate: bool = Field(description="The reference was known: nothing was paid in this time.")


class BalanceKey(Answer):
    """A key, as far as the list of balances shows it."""

    id: Id
    prefix: KeyPrefix
    active: bool


class BusyKey(Answer):
    """A key of those that used the most tokens today."""

    api_key: KeyPrefix
    key_id: Id
    user_id: Id
    name: str = Field(description="The customer's.", examples=["Ada"])
    tokens_used: Count = Field(examples=[5000])
    cost: Number = Field(description="What was charged, in USD.", examples=[0.1])
    requests: Count = Field(examples=[25])


class Activity(Answer):
    """One of the last calls."""

    request_id: str = Field(examples=["req_01a1fd2ab32670e3815c293832e5f73a"])
    api_key: KeyPrefix
    user_id: Id
    model: str = Field(examples=["gpt-4o-mini"])
    tokens_used: Count = Field(examples=[150])
    timestamp: Time
    status: Literal["running", "succeeded", "failed", "cancelled", "cut", "expired"]


class ComparedCost(Answer):
    """What a provider that tells its costs took in a day, and what that came to by the prices here."""

    day: Day
    requests: Count = Field(description="Those whose cost the provider told.")
    cost_usd: Usd
    provider_cost_usd: Usd


class ProviderHealth(Answer):
    """A service, by what it did today (UTC)."""

    provider: str = Field(examples=["openai"])
    service: str = Field(examples=["openai"])
    service_id: Id
    active: bool
    requests: Count = Field(description="Attempts, those that gave way to another service included.")
    errors: Count
    error_rate: Number = Field(description="Errors of the requests, from 0 to 1.", examples=[0.02])
    latency_ms: Percentiles
    time_to_first_token_ms: Percentiles
    last_error_at: Time | None
    failing_since: Time | None = Field(description="Null: nothing has failed since the last answer.")
    set_aside_until: Time | None = Field(
        description="Until then it is tried last, or one of its models is. Null: it is not set aside."
    )
    cost_compared: ComparedCost | None = Field(description="The last day; null: it tells no costs.")


class Held(Answer):
    """What runs now."""

    requests: Count
    usd: Usd


class UndeliveredEvent(Answer):
    """An event that the webhook's receiver has not taken."""

    id: str
    type: str = Field(examples=["limit.soft_crossed"])
    created_at: Time
    attempts: Count
    next_attempt_at: Time | None = Field(description="Null: given up.")
    last_status: int | None
    last_error: str | None


class _Deliveries(Answer):
    waiting: Count
    waiting_since: Time | None
    given_up: Count
    last_delivered_at: Time | None
    undelivered: list[UndeliveredEvent] = Field(description="The newest twenty that failed.", examples=[[]])


class TopicHealth(_Deliveries):
    """How the publishing to the SNS topic is doing."""

    topic_set: bool = Field(description="Whether the maintenance function has one in its environment.")


class WebhookHealth(_Deliveries):
    """How the webhook is doing, and the SNS topic, which gets the same events."""

    webhook_set: bool
    topic: TopicHealth


class SystemFigures(Answer):
    """The whole system today (UTC). Calls count when they have ended."""

    total_users: Count = Field(examples=[50])
    active_users_today: Count = Field(examples=[12])
    total_requests_today: Count = Field(examples=[150])
    total_tokens_today: Count = Field(examples=[15000])
    total_cost_today: Number = Field(description="What was charged, in USD.", examples=[0.3])
    cost_today_usd: Usd = Field(description="What the providers take.")
    margin_today_usd: Usd = Field(description="What was collected, less the providers' cost.")
    uncollected_today_usd: Usd = Field(description="Charges that balances could not give.")
    errors_today: Count
    refusals_today: Count = Field(description="Calls that were refused before they cost anything.")
    top_users_by_usage: list[BusyKey] = Field(description="The ten keys with the most tokens today.")
    recent_activity: list[Activity] = Field(description="The last ten calls of the last 31 days.")
    providers: list[ProviderHealth]
    held: Held
    soft_limits_crossed: list[CrossedLimit] = Field(description="The newest twenty.")
    webhook: WebhookHealth


class SystemMonitor(Success):
    """The whole system at a glance."""

    timestamp: Time
    data: SystemFigures


class TopCustomer(Answer):
    """A customer, by what it was charged."""

    customer_id: Id
    name: str = Field(examples=["Ada"])
    active: bool
    requests: Count = Field(examples=[1250])
    total_tokens: Count = Field(examples=[180000])
    charge_usd: Usd


class TopCustomers(Answer):
    """Who was charged the most, the most first."""

    data: list[TopCustomer]
    from_: Day = Field(alias="from")
    to: Day = Field(description="The day after the last.")


class Event(Answer):
    """What happened, and how far the telling has come."""

    id: str = Field(pattern=r"^evt_[0-9a-f]{32}$", examples=["evt_01a1fd2ab32670e3815c293832e5f73a"])
    type: str = Field(examples=["limit.soft_crossed"])
    created_at: Time
    customer_id: Id | None
    subject: str = Field(examples=["key:12"])
    data: dict[str, Any] = Field(
        description="As the webhook is sent it.", examples=[{"limit": "tokens_per_day"}]
    )
    state: Literal["unsent", "waiting", "delivered", "given_up"] = Field(
        description="`unsent`: no webhook was set when it came."
    )
    attempts: Count
    next_attempt_at: Time | None
    delivered_at: Time | None
    last_status: int | None = Field(
        description="The receiver's; null: there was no answer, or no attempt yet."
    )
    last_error: str | None
    topic_state: Literal["unsent", "waiting", "delivered", "given_up"] = Field(
        description="The same of the SNS topic.", examples=["unsent"]
    )


class EventList(Page[Event]):
    """Events, the newest first."""


class ResentEvent(Answer):
    """An event that is in line for the webhook."""

    id: str = Field(examples=["evt_01a1fd2ab32670e3815c293832e5f73a"])
    state: Literal["waiting"]


class UserBalance(Answer):
    """One customer's account."""

    user_id: Id
    name: str = Field(examples=["Ada"])
    email: str | None = Field(examples=["ada@example.com"])
    credits: Credits
    balance_usd: Usd
    held_usd: Usd
    debt_usd: Usd = Field(examples=["0"])
    api_keys: list[BalanceKey]


class BalanceList(Success):
    """Customers' accounts, by id."""

    users: list[UserBalance]
    next_cursor: str | None = Field(description="The cursor of the next page; null where this is the last.")


class SubjectLimits(Success):
    """All limits of the subject that was named, by window."""

    rate_limits: LimitsAnswer
    warn: LimitsAnswer = Field(description="The soft marks, absolute.")


class KnownProvider(Answer):
    """What a service can be a connection to."""

    name: str = Field(examples=["openai"])
    title: str = Field(examples=["OpenAI"])
    base_url: str | None = Field(
        description="Its own; null: each service names one.", examples=["https://api.openai.com/v1"]
    )
    key_needed: bool


class KnownProviders(Answer):
    """All providers that the gateway knows."""

    data: list[KnownProvider]


class ServiceRoute(Answer):
    """A model that a service sells, or did."""

    id: Id
    model: str = Field(examples=["gpt-4o-mini"])
    upstream_model: str = Field(description="Its name at the provider.", examples=["gpt-4o-mini"])
    priority: int | None = Field(description="Lower is tried first; null: the service's.", examples=[None])
    weight: Number = Field(description="Share of the traffic among equal priorities.", examples=[1])
    active: bool


class ServiceFailing(Answer):
    """What fails just now. The first answer ends it."""

    model: str | None = Field(description="Null: the service as a whole.", examples=[None])
    failures: Count = Field(description="Calls in a row.", examples=[3])
    failing_since: Time
    last_failure_at: Time
    last_status: int | None = Field(description="Null: there was no answer.", examples=[503])
    last_fault: Literal["transient", "operator", "protocol"] = Field(
        description="It may pass; or key, credit or address are not in order; or what came was no answer."
    )
    set_aside_until: Time | None = Field(description="Until then it is tried last.")


class Service(Answer):
    """A connection to a provider. Of its key only the last four characters are told."""

    id: Id
    name: str = Field(examples=["openai"])
    provider: str = Field(examples=["openai"])
    base_url: str | None = Field(description="Null: the provider's own.")
    provider_key_set: bool
    provider_key_last4: str | None = Field(examples=["x9Qf"])
    enabled_models: list[str] = Field(examples=[["gpt-4o-mini"]])
    routes: list[ServiceRoute] = Field(description="Of the models that are or were enabled.")
    health: list[ServiceFailing] = Field(description="Empty where all is well.", examples=[[]])
    limits: LimitsAnswer
    priority: int = Field(description="Lower is tried first.", examples=[100])
    active: bool
    created_at: Time


class ServiceTest(Answer):
    """What a real call of the provider has shown."""

    ok: bool
    status: int | None = Field(description="The provider's HTTP status; null: no answer.", examples=[200])
    latency_ms: Count = Field(examples=[212])
    problem: (
        Literal[
            "unknown_provider",
            "address",
            "key_missing",
            "key_unreadable",
            "dns",
            "connect",
            "tls",
            "timeout",
            "redirected",
            "unauthorized",
            "no_credit",
            "rate_limited",
            "model_not_found",
            "refused",
            "provider_failed",
            "not_compatible",
            "no_models",
        ]
        | None
    ) = Field(description="Null: none.", examples=[None])
    message: str | None = Field(description="How to mend it.", examples=[None])
    provider_said: str | None = Field(description="A line of the provider's own, redacted.", examples=[None])
    models_missing: list[str] | None = Field(
        description="Enabled models that the provider does not list; null where it lists none.", examples=[[]]
    )


class ServiceList(Page[Service]):
    """Services by id."""


class DeletedService(Answer):
    """A service that is gone."""

    id: Id
    deleted: Literal[True]


class PriceTierAnswer(Answer):
    """What a request with more input tokens costs instead, all of it. It has the classes of its price."""

    above_input_tokens: Count = Field(examples=[200000])
    input: Usd
    output: Usd
    cached_input: Usd = "0"
    cache_write: Usd = "0"
    cache_write_1h: Usd = "0"
    audio_input: Usd = "0"
    image_input: Usd = "0"
    audio_output: Usd = "0"
    image_output: Usd = "0"


class PricesAnswer(Answer):
    """One version of what a provider takes: USD per million tokens of each class, as exact decimal text.

    A class that is missing costs what its base class (input or output) costs.
    """

    id: Id
    effective_from: Time
    source: str | None = Field(examples=["https://openai.com/api/pricing"])
    source_date: Day | None
    input: Usd
    output: Usd
    cached_input: Usd = "0"
    cache_write: Usd = "0"
    audio_input: Usd = "0"
    image_input: Usd = "0"
    audio_output: Usd = "0"
    image_output: Usd = "0"
    per_request: Usd = "0"
    per_image: Usd = "0"
    cache_write_1h: Usd = Field(default="0", description="Of what is written to a cache for an hour.")
    tiers: list[PriceTierAnswer] = Field(default=[], description="Prices of long prompts, ascending.")


class Price(PricesAnswer):
    """A version of a price, and whose it is."""

    model: str = Field(examples=["gpt-4o-mini"])
    provider: str = Field(examples=["openai"])
    service_id: Id | None = Field(description="Set: it holds for that service alone.")


class PriceList(Page[Price]):
    """Versions of prices, the newest first."""


class PriceStep(Answer):
    """A class's price before and after, as PricesAnswer has it.

    Null: it has none, and costs what its base class does.
    """

    old: Usd | None
    new: Usd | None


class ChangedPrice(Answer):
    """An offer whose price changes, by class."""

    model: str = Field(examples=["gpt-4o-mini"])
    provider: str = Field(examples=["openai"])
    changes: dict[str, PriceStep] = Field(
        description="A tier's classes have its threshold behind them, as in `input_above_200000`.",
        examples=[{"output": {"old": "0.6", "new": "0.5"}}],
    )


class AddedOffer(Answer):
    """An offer that was not there."""

    model: str = Field(examples=["gpt-4o-mini"])
    provider: str = Field(examples=["openai"])


class PriceImport(Answer):
    """What a price list changes, or with `dry_run` would change.

    Each line is an offer added, a price changed, or unchanged.
    """

    dry_run: bool
    lines: Count = Field(description="Those of offers; a tier's goes with its offer's.")
    models_added: list[str] = Field(examples=[["gpt-4o-mini"]])
    offers_added: list[AddedOffer]
    prices_changed: list[ChangedPrice]
    unchanged: Count
    warnings: list[str] = Field(
        description="What is odd and may be right all the same.",
        examples=[["line 4, cached_input: is more than input"]],
    )


class OfferAnswer(Answer):
    """A provider that sells a model."""

    id: Id
    provider: str = Field(examples=["openai"])
    upstream_model: str = Field(description="The model's name there.", examples=["gpt-4o-mini"])
    prices: PricesAnswer | None = Field(description="What is in force now; null: it can't be called.")


class CatalogueModel(Answer):
    """A model of the catalogue. Lengths are in tokens."""

    id: Id
    name: str = Field(examples=["gpt-4o-mini"])
    display_name: str | None = Field(examples=["GPT-4o mini"])
    context_length: Count | None = Field(examples=[128000])
    max_output_tokens: Count | None = Field(examples=[16384])
    input_modalities: list[str] = Field(examples=[["text", "image"]])
    output_modalities: list[str] = Field(examples=[["text"]])
    active: bool
    created_at: Time
    offers: list[OfferAnswer]


class CatalogueList(Page[CatalogueModel]):
    """Models by id."""


class SettingsAnswer(Answer):
    """The settings of the whole."""

    commission_percent: Percent
    billing_mode: Literal["markup", "flat"]
    flat_usd_per_1k_tokens: Usd
    credit_value_usd: Usd
    default_max_output_tokens: Count = Field(examples=[8192])
    default_requests_per_minute: Count | None = Field(examples=[60])
    default_tokens_per_minute: Count | None
    expired_hold_policy: Literal["release", "charge"]
    auth_sign_up: Literal["off", "link", "create"] = Field(
        description="What an access token of Supabase Auth does whose person is no customer yet."
    )
    webhook_url: str | None = Field(examples=["https://hooks.example.com/sluice"])
    webhook_secret_set: bool = Field(description="The secret itself is never shown.")
    log_retention_months: int | None = Field(description="Null: the log is kept for ever.")
    usage_detail_days: int | None = Field(
        description="For how many days usage is kept by the quarter of an hour; null: for ever.",
        examples=[93],
    )
    unsupported_parameters: Literal["refuse", "drop"] = Field(
        description="What becomes of a parameter that a provider can't be told: the call is refused, or "
        "it is left out and named in the header x-gateway-dropped-parameters."
    )
    top_up_amounts_usd: list[Usd] = Field(
        description="The amounts that are offered for a top-up.", examples=[["10", "25", "50", "100"]]
    )
    top_up_minimum_usd: Usd = Field(description="The least that a top-up may be.", examples=["5"])
    top_up_maximum_usd: Usd = Field(description="The most that a top-up may be.", examples=["1000"])
    low_balance_usd: Usd | None = Field(
        description="The operator is told when a balance falls below it, unless the customer has a mark of "
        "its own; null or 0: of none.",
        examples=["1"],
    )


class AuditRecord(Answer):
    """A change of one row.

    Of an update `before` and `after` hold what changed, of a secret only that it did.
    """

    id: Id
    at: Time
    actor: str = Field(
        description="A key, a person of Supabase Auth or, of an edit by hand, the database role.",
        examples=["key sk_AlwVbh…"],
    )
    action: Literal["insert", "update", "delete"]
    entity: str = Field(description="The table.", examples=["settings"])
    entity_id: str = Field(examples=["1"])
    before: dict[str, Any] | None = Field(examples=[{"commission_percent": 5}])
    after: dict[str, Any] | None = Field(examples=[{"commission_percent": 7}])


class AuditList(Page[AuditRecord]):
    """Changes, the newest first."""


class WebhookTest(Answer):
    """What came of sending a ping to the webhook."""

    delivered: bool
    id: str = Field(
        description="The webhook-id that the ping had.", examples=["evt_01a1fd2ab32670e3815c293832e5f73a"]
    )
    status: int | None = Field(description="What the receiver answered; null: nothing.", examples=[204])
    error: str | None = Field(description="What was wrong; null: nothing.", examples=[None])
    duration_ms: Count = Field(examples=[87])


class LedgerMismatch(Answer):
    """An account that its entries or its running calls do not explain."""

    customer_id: Id
    balance_usd: Usd
    ledger_usd: Usd
    held_usd: Usd
    requests_held_usd: Usd
    debt_usd: Usd
    ledger_debt_usd: Usd


class LedgerCheck(Answer):
    """What recomputing the books has found."""

    ok: bool
    full: bool = Field(description="Whether the books were read from their first entry on.")
    accounts: Count
    closed_through: str | None = Field(
        description="The last month whose checkpoints stand for what came before.", examples=["2026-10"]
    )
    mismatches: list[LedgerMismatch] = Field(description="At most a hundred.", examples=[[]])
    misbooked_requests: Count = Field(description="Requests whose entries are not their charge.")
    misbooked_payments: Count = Field(
        description="Payments whose entries are not what was credited and taken back."
    )
    wrong_checkpoints: Count | None = Field(
        description="Checkpoints that the entries do not come to; null where the check was not full."
    )
    orphan_holds: Count = Field(description="Holds whose lease has run out and that nobody has ended.")
