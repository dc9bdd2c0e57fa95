"""What admins send."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator
from pydantic_core import PydanticCustomError

from gateway.schemas.chat import MAX_TOKENS
from gateway.schemas.values import (
    Body,
    Commission,
    Credits,
    Day,
    Email,
    Id,
    KeyText,
    Name,
    Patch,
    PositiveCount,
    PositiveUsd,
    RateLimits,
    SignedCredits,
    SignedUsd,
    Time,
    TopUpUsd,
    Usd,
    Username,
    WarnPercent,
    Weight,
)

if TYPE_CHECKING:
    from pydantic import ValidationInfo

PROVIDER_KEY_CHARS = 4000

ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}$")]
ModelNames = Annotated[list[Annotated[str, Field(min_length=1, max_length=300)]], Field(max_length=1000)]
UpstreamModel = Annotated[
    str, StringConstraints(min_length=1, max_length=300, pattern=r"^[^\x00-\x1f\x7f]*$")
]
ProviderName = Annotated[str, Field(min_length=1, max_length=64)]
# It goes into a header: visible ASCII alone.
ProviderKey = Annotated[
    str,
    StringConstraints(min_length=1, max_length=PROVIDER_KEY_CHARS, pattern=r"^[!-~]+$"),
]
WebhookSecret = Annotated[str, StringConstraints(min_length=24, max_length=100, pattern=r"^[!-~]+$")]
BaseUrl = Annotated[str, Field(min_length=1, max_length=512)]
Priority = Annotated[int, Field(ge=-1_000_000, le=1_000_000)]
Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]


def _exactly_one(body: Body, *names: str) -> None:
    if sum(getattr(body, name) is not None for name in names) != 1:
        raise PydanticCustomError("one_of", "give exactly one of {names}", {"names": ", ".join(names)})


class CreateCustomerRequest(Body):
    """The body of POST /customers. The username is the email unless another is given."""

    name: Name
    email: Email
    company: Name | None = None
    username: Username | None = None


class UpdateCustomerRequest(Patch):
    """The body of PATCH /admin/customers/{id}. `active` false suspends at once."""

    nullable: ClassVar[frozenset[str]] = frozenset({"email", "company", "low_balance_usd"})

    name: Name | None = None
    username: Username | None = None
    email: Email | None = None
    company: Name | None = None
    time_zone: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """Of the IANA database. Days and months begin in it, from then on."""
    active: bool | None = None
    low_balance_usd: Usd | None = None
    """The operator is told when the balance falls below it. Null: as the settings have it; 0: never."""


class CreateUserRequest(Body):
    """The body of POST /admin/create_user: a customer, its first key, credits and limits of that key."""

    name: Name
    email: Email | None = None
    company: Name | None = None
    credits: Credits | None = None
    rate_limits: RateLimits | None = None


class AddCreditsRequest(Body):
    """The body of POST /admin/add_credits. A negative amount corrects."""

    user_id: Id | None = None
    api_key: KeyText | None = None
    email: Email | None = None
    credits: SignedCredits | None = None
    usd: SignedUsd | None = None
    reference: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    note: Annotated[str, Field(max_length=1000)] | None = None

    @model_validator(mode="after")
    def _one_customer_and_one_amount(self) -> Self:
        _exactly_one(self, "user_id", "api_key", "email")
        _exactly_one(self, "credits", "usd")
        return self


class SetLimitsRequest(Body):
    """The body of POST /admin/limit.

    Without `model` a key's limits are over all its models together; with one, for that model alone; with `*`
    for each model by itself. `warn` holds soft marks; a limit without one gets it at `warn_percent`.
    """

    api_key: KeyText | None = None
    key_id: Id | None = None
    user_id: Id | None = None
    service: Id | Name | None = None
    """By id or by name."""
    model: ModelName | Literal["*"] | None = None
    rate_limits: RateLimits | None = None
    warn: RateLimits | None = None
    warn_percent: WarnPercent | None = None

    @model_validator(mode="after")
    def _one_subject_and_a_change(self) -> Self:
        _exactly_one(self, "api_key", "key_id", "user_id", "service")
        if self.model is not None and self.api_key is None and self.key_id is None:
            raise PydanticCustomError("model", "only a key has limits by model")
        if (
            not (self.rate_limits or RateLimits()).model_fields_set
            | (self.warn or RateLimits()).model_fields_set
        ):
            raise PydanticCustomError("empty", "rate_limits or warn must name a limit")
        return self


class RouteRequest(Body):
    """A model that a service is to sell, and its place among the services that do.

    What is not named stays as it is; of a new route it is the service's priority, weight 1, and active.
    """

    model: Annotated[str, Field(min_length=1, max_length=300)]
    """By our name or the provider's."""
    priority: Priority | None = None
    """Lower is tried first. None: the service's."""
    weight: Weight | None = None
    """The share of the traffic among routes of equal priority."""
    active: bool = True


EnabledModels = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=300)] | RouteRequest], Field(max_length=1000)
]


class CreateServiceRequest(Body):
    """The body of POST /admin/services. The provider key is kept sealed and never shown."""

    name: Name
    provider: ProviderName
    base_url: BaseUrl | None = None
    """None: the provider's own."""
    provider_key: Annotated[ProviderKey | None, Field(repr=False)] = None
    enabled_models: EnabledModels = Field(default_factory=list)
    limits: RateLimits | None = None
    priority: Priority = 100
    """Lower is tried first."""
    active: bool = True


class UpdateServiceRequest(Patch):
    """The body of PATCH /admin/services/{id}. A base URL of another origin needs the provider key anew."""

    nullable: ClassVar[frozenset[str]] = frozenset({"base_url", "provider_key"})

    name: Name | None = None
    base_url: BaseUrl | None = None
    provider_key: Annotated[ProviderKey | None, Field(repr=False)] = None
    enabled_models: EnabledModels | None = None
    limits: RateLimits | None = None
    priority: Priority | None = None
    active: bool | None = None


TOKEN_CLASSES = (
    "input",
    "output",
    "cached_input",
    "cache_write",
    "audio_input",
    "image_input",
    "audio_output",
    "image_output",
    "cache_write_1h",
)


class PriceTier(Body):
    """What a request takes instead, all of it, that has more than so many input tokens, cached ones included.

    USD per million tokens of each class: of the classes that the price itself has, and of no other.
    """

    above_input_tokens: Tokens
    input: Usd
    output: Usd
    cached_input: Usd | None = None
    cache_write: Usd | None = None
    audio_input: Usd | None = None
    image_input: Usd | None = None
    audio_output: Usd | None = None
    image_output: Usd | None = None
    cache_write_1h: Usd | None = None


MAX_TIERS = 16


class Prices(Body):
    """What a provider takes: USD per million tokens of each class, USD per request and image.

    A class without a price costs what its base class (input or output) costs. Without one of
    `cache_write_1h`, requests that ask for a cache of an hour are refused. `tiers` are for long prompts.
    """

    input: Usd
    output: Usd
    cached_input: Usd | None = None
    cache_write: Usd | None = None
    audio_input: Usd | None = None
    image_input: Usd | None = None
    audio_output: Usd | None = None
    image_output: Usd | None = None
    per_request: Usd | None = None
    per_image: Usd | None = None
    cache_write_1h: Usd | None = None
    source: Annotated[str, Field(max_length=500)] | None = None
    source_date: Day | None = None
    tiers: Annotated[list[PriceTier], Field(max_length=MAX_TIERS)] | None = None
    """In any order."""

    @field_validator("tiers")
    @classmethod
    def _of_different_lengths_and_of_the_same_classes(
        cls, tiers: list[PriceTier] | None, info: ValidationInfo
    ) -> list[PriceTier] | None:
        found: set[int] = set()
        for tier in tiers or ():
            length = tier.above_input_tokens
            if length in found:
                raise PydanticCustomError(
                    "twice", "two begin above {length} input tokens", {"length": length}
                )
            found.add(length)
            for name in TOKEN_CLASSES:
                # a price that is itself malformed is told of by itself
                if name in info.data and (info.data[name] is None) != (getattr(tier, name) is None):
                    lacks = "lacks" if getattr(tier, name) is None else "alone has"
                    raise PydanticCustomError(
                        "classes",
                        "the one above {length} input tokens {lacks} {name}",
                        {"length": length, "lacks": lacks, "name": name},
                    )
        return tiers


class CreatePriceRequest(Prices):
    """The body of POST /admin/prices: a new version, in force from `effective_from`, by default now.

    With `service_id` it is for that service alone. `upstream_model` adds an offer that is not there yet.
    """

    model: ModelName
    provider: ProviderName
    upstream_model: UpstreamModel | None = None
    service_id: Id | None = None
    effective_from: Time | None = None


class Offer(Body):
    """A provider that sells the model. `upstream_model` is its name there, by default the same."""

    provider: ProviderName
    upstream_model: UpstreamModel | None = None
    prices: Prices | None = None


InputModality = Literal["text", "image", "audio", "video", "file"]
OutputModality = Literal["text", "image", "audio", "embedding"]


class CreateModelRequest(Body):
    """The body of POST /admin/models. Lengths are in tokens."""

    name: ModelName
    display_name: Name | None = None
    context_length: Tokens | None = None
    max_output_tokens: Tokens | None = None
    input_modalities: Annotated[list[InputModality], Field(min_length=1, max_length=5)] | None = None
    """None, here and below: text alone."""
    output_modalities: Annotated[list[OutputModality], Field(min_length=1, max_length=4)] | None = None
    offers: Annotated[list[Offer], Field(max_length=50)] = Field(default_factory=list)


class UpdateModelRequest(Patch):
    """The body of PATCH /admin/models/{id}. `active` false hides the model and refuses it.

    Of `offers` one is added where its provider does not offer the model yet; else it takes the name there and
    the prices that are given, as a new version. Others stay.
    """

    nullable: ClassVar[frozenset[str]] = frozenset({"display_name", "context_length", "max_output_tokens"})

    display_name: Name | None = None
    context_length: Tokens | None = None
    max_output_tokens: Tokens | None = None
    input_modalities: Annotated[list[InputModality], Field(min_length=1, max_length=5)] | None = None
    output_modalities: Annotated[list[OutputModality], Field(min_length=1, max_length=4)] | None = None
    active: bool | None = None
    offers: Annotated[list[Offer], Field(max_length=50)] | None = None


class ChangeSettingsRequest(Patch):
    """The body of PATCH /admin/settings. Null of a default limit: none; of a retention: for ever.

    `webhook_secret` is `whsec_` and base64 of 24 to 64 bytes, or a text of as many. It is kept sealed and
    never shown.
    """

    nullable: ClassVar[frozenset[str]] = frozenset(
        {
            "default_requests_per_minute",
            "default_tokens_per_minute",
            "webhook_url",
            "webhook_secret",
            "log_retention_months",
            "usage_detail_days",
            "low_balance_usd",
        }
    )

    commission_percent: Commission | None = None
    billing_mode: Literal["markup", "flat"] | None = None
    flat_usd_per_1k_tokens: Usd | None = None
    credit_value_usd: PositiveUsd | None = None
    default_max_output_tokens: Annotated[int, Field(ge=16, le=MAX_TOKENS)] | None = None
    default_requests_per_minute: PositiveCount | None = None
    default_tokens_per_minute: PositiveCount | None = None
    expired_hold_policy: Literal["release", "charge"] | None = None
    auth_sign_up: Literal["off", "link", "create"] | None = None
    webhook_url: Annotated[str, Field(min_length=1, max_length=2000)] | None = None
    webhook_secret: Annotated[WebhookSecret | None, Field(repr=False)] = None
    log_retention_months: Annotated[int, Field(ge=2, le=1200)] | None = None
    usage_detail_days: Annotated[int, Field(ge=35, le=36_600)] | None = None
    unsupported_parameters: Literal["refuse", "drop"] | None = None
    """Of parameters that a provider can't be told."""
    top_up_amounts_usd: Annotated[list[TopUpUsd], Field(min_length=1, max_length=12)] | None = None
    """The amounts that are offered."""
    top_up_minimum_usd: TopUpUsd | None = None
    top_up_maximum_usd: TopUpUsd | None = None
    low_balance_usd: Usd | None = None
    """The operator is told when a balance falls below it. Null or 0: of none."""
