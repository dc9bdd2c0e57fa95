"""What the chat routes answer.

A completion is the provider's own: what it adds to OpenAI's shape is passed on.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from gateway.schemas.answers import Answer, Count, Credits, KeyPrefix, Number, RequestId, Usd


class Open(Answer):
    """An object of a provider's, which may have more fields."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)


class AssistantMessage(Open):
    """What the model said."""

    role: str = Field(examples=["assistant"])
    content: str | list[Any] | None = Field(default=None, examples=["Hello!"])


class Choice(Open):
    """One of the answers that were asked for."""

    index: Count = 0
    message: AssistantMessage
    finish_reason: str | None = Field(default=None, examples=["stop"])


class CompletionUsage(Open):
    """Tokens as OpenAI counts them: cached ones are in the prompt, reasoning is in the completion."""

    prompt_tokens: Count = Field(examples=[8])
    completion_tokens: Count = Field(examples=[4])
    total_tokens: Count = Field(examples=[12])


class GatewayUsage(Answer):
    """What the call has cost."""

    request_id: RequestId
    user_api_key: KeyPrefix
    tokens_charged: Count = Field(default=0, examples=[12])
    credits_charged: Credits = 0
    cost_usd: Usd | None = Field(
        default=None, description="What the provider takes; null at a flat price.", examples=["0.00001"]
    )
    charge_usd: Usd = Field(default="0", description="What the customer pays.", examples=["0.0000105"])
    user_balance_after: Credits = 0
    balance_after_usd: Usd = "0"
    status: Literal["pending"] | None = Field(
        default=None,
        description="There, and with it none of the amounts, where the database could not be reached: "
        "the call is settled later. GET /v1/requests/{id} tells.",
        examples=["pending"],
    )


class ChatCompletion(Open):
    """The provider's answer in OpenAI's shape, and what it has cost."""

    id: str | None = Field(default=None, examples=["chatcmpl-9x2"])
    object: str | None = Field(default=None, examples=["chat.completion"])
    created: int | None = Field(default=None, examples=[1795262400])
    model: str | None = Field(default=None, examples=["gpt-4o-mini"])
    choices: list[Choice]
    usage: CompletionUsage
    gateway_usage: GatewayUsage


class GeneratedText(Answer):
    """The answer to one text."""

    response: str = Field(examples=["Hello!"])
    tokens_used: Count = Field(examples=[12])
    cost: Number | None = Field(
        description="What the customer pays, in USD; null while the settlement is pending.",
        examples=[0.0000105],
    )


class LayersUsage(Answer):
    """Tokens of the call."""

    inputTokens: Count = Field(examples=[8])  # noqa: N815 - the contract's names
    outputTokens: Count = Field(examples=[4])  # noqa: N815
    totalTokens: Count = Field(examples=[12])  # noqa: N815


class LayersAnswer(Answer):
    """The answer to one message."""

    content: str = Field(examples=["Hello!"])
    usage: LayersUsage


class PricingOverride(Answer):
    """What the whole of a call with more prompt tokens than `min_prompt_tokens` pays for a token instead."""

    min_prompt_tokens: Count = Field(
        description="Cached ones included. The prices are those of a prompt that has more than these.",
        examples=[200000],
    )
    prompt: Usd = Field(examples=["0.000000315"])
    completion: Usd = Field(examples=["0.00000126"])
    input_cache_read: Usd = "0"
    input_cache_write: Usd = "0"
    audio: Usd = "0"


class Pricing(Answer):
    """What the customer pays, in USD for one token, request or image, as exact decimal text."""

    prompt: Usd = Field(examples=["0.0000001575"])
    completion: Usd = Field(examples=["0.00000063"])
    request: Usd = Field(examples=["0"])
    input_cache_read: Usd = "0"
    input_cache_write: Usd = "0"
    audio: Usd = "0"
    image: Usd = "0"
    overrides: list[PricingOverride] = Field(
        default=[],
        description="What long prompts pay instead, ascending: the last that applies. Only where it is more.",
    )


class Model(Answer):
    """A model that the key may call. Lengths are in tokens."""

    id: str = Field(examples=["gpt-4o-mini"])
    object: Literal["model"]
    created: int = Field(description="Seconds since 1970.", examples=[1795262400])
    owned_by: str = Field(description="The provider that is tried first.", examples=["openai"])
    name: str = Field(examples=["GPT-4o mini"])
    pricing: Pricing
    context_length: Count | None = Field(examples=[128000])
    max_output_tokens: Count | None = Field(examples=[16384])
    input_modalities: list[str] = Field(examples=[["text", "image"]])
    output_modalities: list[str] = Field(examples=[["text"]])


class ModelList(Answer):
    """The models that the key may call."""

    object: Literal["list"]
    data: list[Model]


class ModelNames(Answer):
    """The models that can be called."""

    models: list[str] = Field(examples=[["gpt-4o-mini", "deepseek-chat"]])
