"""What the Messages routes answer, in Anthropic's shape."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gateway.schemas.answers import Answer, Count, RequestId
from gateway.schemas.answers.chat import GatewayUsage, Open


class MessageBlock(Open):
    """A block of content: `text`, `tool_use`, `thinking` or `redacted_thinking`, with what belongs to it.

    Thoughts of other providers than Anthropic have a signature of the gateway's. Sent back as they are, they
    reach the provider again.
    """

    type: str = Field(examples=["text"])
    text: str | None = Field(default=None, examples=["Hello!"])


class MessageUsage(Open):
    """Tokens as Anthropic counts them: what was read from the cache or written to it is not in the input."""

    input_tokens: Count = Field(examples=[8])
    output_tokens: Count = Field(examples=[4])
    cache_read_input_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None


class MessagesAnswer(Open):
    """The model's answer, and what it has cost."""

    id: str | None = Field(default=None, examples=["msg_01a1fd2ab32670e3815c293832e5f73a"])
    type: Literal["message"]
    role: Literal["assistant"] = "assistant"
    model: str | None = Field(default=None, examples=["claude-sonnet-4-5"])
    content: list[MessageBlock]
    stop_reason: str | None = Field(default=None, examples=["end_turn"])
    stop_sequence: str | None = None
    usage: MessageUsage
    gateway_usage: GatewayUsage


class TokenEstimate(Answer):
    """How many tokens the input would have, about."""

    input_tokens: Count = Field(examples=[8])


class MessagesErrorDetails(Answer):
    """The cause, for programs."""

    error_code: str | None = Field(default=None, description="Stable.", examples=["insufficient_credits"])
    param: str | None = Field(default=None, description="The dotted path of the field at fault.")


class MessagesError(Answer):
    """Why a request was refused."""

    type: Literal[
        "invalid_request_error",
        "authentication_error",
        "billing_error",
        "permission_error",
        "not_found_error",
        "conflict_error",
        "request_too_large",
        "rate_limit_error",
        "api_error",
        "overloaded_error",
        "timeout_error",
    ]
    message: str = Field(description="For people.")
    details: MessagesErrorDetails | None = None


class MessagesErrorAnswer(Answer):
    """The body of every error under /v1/messages, in the shape that Anthropic's SDKs parse."""

    type: Literal["error"]
    error: MessagesError
    request_id: RequestId | None = None
