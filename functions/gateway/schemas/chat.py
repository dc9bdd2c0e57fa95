"""What clients send to the chat routes.

The models check what the gateway must understand, strictly (`false` is no number), and keep everything else.
They are read, never sent: what goes upstream is the client's own JSON object.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

MAX_TOKENS = 10_000_000
"""Above the context of any model; keeps products of tokens and prices within what the ledger can hold."""
MAX_CHOICES = 128
MAX_MODELS = 16

ModelName = Annotated[str, Field(min_length=1, max_length=256)]
TokenBound = Annotated[int, Field(ge=1, le=MAX_TOKENS)]


class _Open(BaseModel):
    """Strict about the fields that are named, open to those that are not."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)


class ImageURL(_Open):
    url: Annotated[str, Field(min_length=1)]
    detail: str | None = None


class InputAudio(_Open):
    data: Annotated[str, Field(min_length=1)]
    format: str


class ContentPart(_Open):
    """One part of a message. A type that is not known here is passed on, for the provider to judge."""

    type: Annotated[str, Field(min_length=1, max_length=64)]
    text: str | None = None
    refusal: str | None = None
    image_url: ImageURL | None = None
    input_audio: InputAudio | None = None
    file: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _holds_what_its_type_says(self) -> Self:
        if self.type in _PART_FIELDS and getattr(self, self.type) is None:
            raise PydanticCustomError(
                "missing", "a part of type '{part}' needs the field '{part}'", {"part": self.type}
            )
        return self


_PART_FIELDS = frozenset({"text", "refusal", "image_url", "input_audio", "file"})


def _content_shape(value: Any) -> str | None:
    if isinstance(value, str):
        return "text"
    return "parts" if isinstance(value, list) else None


Content = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[ContentPart], Field(fail_fast=True), Tag("parts")],
    Discriminator(
        _content_shape,
        custom_error_type="content_type",
        custom_error_message="must be a string or an array of content parts",
    ),
]


class FunctionCall(_Open):
    name: Annotated[str, Field(min_length=1)]
    arguments: str


class ToolCall(_Open):
    id: str | None = None
    type: str = "function"
    function: FunctionCall | None = None


class Message(_Open):
    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: Content | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _complete_for_its_role(self) -> Self:
        if self.role == "tool" and self.tool_call_id is None:
            raise PydanticCustomError("missing", "a message of role 'tool' needs the field 'tool_call_id'")
        # An assistant's turn may consist of tool calls, a refusal or audio alone.
        if self.role in {"developer", "system", "user", "tool"} and self.content is None:
            raise PydanticCustomError(
                "missing", "a message of role '{role}' needs the field 'content'", {"role": self.role}
            )
        return self


class Function(_Open):
    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(_Open):
    type: Annotated[str, Field(min_length=1, max_length=64)]
    function: Function | None = None

    @model_validator(mode="after")
    def _function_is_given(self) -> Self:
        if self.type == "function" and self.function is None:
            raise PydanticCustomError("missing", "a tool of type 'function' needs the field 'function'")
        return self


class StreamOptions(_Open):
    include_usage: bool | None = None


class ResponseFormat(_Open):
    type: Annotated[str, Field(min_length=1, max_length=64)]


class ChatCompletionRequest(_Open):
    """The body of POST /v1/chat/completions."""

    model: ModelName
    # fail_fast: six megabytes of bad messages are refused at the first.
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    models: Annotated[list[ModelName], Field(max_length=MAX_MODELS)] | None = None
    max_tokens: TokenBound | None = None
    max_completion_tokens: TokenBound | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | list[str] | None = None
    user: str | None = None

    @property
    def output_bound(self) -> int | None:
        """The client's bound on the tokens of one choice; the tighter one where it names two."""
        bounds = [bound for bound in (self.max_completion_tokens, self.max_tokens) if bound is not None]
        return min(bounds, default=None)

    @property
    def choices(self) -> int:
        """How many answers are generated, and paid for."""
        return self.n or 1

    @property
    def wants_stream(self) -> bool:
        return bool(self.stream)

    @property
    def wants_usage(self) -> bool:
        """Whether a stream's last chunk is to carry usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def candidates(self) -> tuple[str, ...]:
        """The models to try, in order, each once: `model`, then `models`."""
        return tuple(dict.fromkeys([self.model, *(self.models or [])]))


class GenerateRequest(BaseModel):
    """The body of POST /generate. `model_id` is a catalogue id or a model's name."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    text: Annotated[str, Field(min_length=1)]
    model_id: Annotated[int, Field(ge=1, lt=2**31)] | ModelName
    max_length: TokenBound | None = None


class LayersChatRequest(BaseModel):
    """The body of POST /api/layers/chat."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, protected_namespaces=())

    providerName: Annotated[str, Field(min_length=1, max_length=64)]  # noqa: N815 - the contract's name
    model_name: ModelName
    message: Annotated[str, Field(min_length=1)]
