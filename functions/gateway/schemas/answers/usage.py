"""What the routes of usage answer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gateway.schemas.answers import Answer, Count, Credits, Id, RequestId, Success, Time, Usd


class Balance(Success):
    """What a customer has."""

    user_id: Id
    credits: Credits
    balance_usd: Usd
    held_usd: Usd = Field(description="What running calls may still cost; it is a part of the balance.")


class Tokens(Answer):
    """Tokens by class. No token is in two classes, save that reasoning is a part of the output.

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
    state: Literal["held", "settled", "expired"]
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
