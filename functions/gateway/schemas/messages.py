"""What clients send to the Messages routes, in Anthropic's shape.

Of the request's own fields only those that are named here are taken: another could change what the call
costs, or what it reads (faster inference, servers of tools, files of the gateway's own account). Inside of
blocks and tools, what is not named goes to Anthropic as it is.

They are imported at the first request alone: to make the classes takes 5 ms, which no start should pay.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, NotRequired

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag
from typing_extensions import TypedDict

from gateway.schemas.chat import ModelName, TokenBound  # noqa: TC001 - pydantic reads them when it builds

_OPEN = ConfigDict(strict=True, extra="allow")
# The client runs them; all others run at the provider, at prices of their own.
_CLIENT_TOOLS = re.compile(r"(bash|text_editor|computer|memory)_\d{8}")

Text = Annotated[str, Field(min_length=1)]
Object = dict[str, Any]


def _content_shape(value: Any) -> str | None:
    if isinstance(value, str):
        return "text"
    return "blocks" if isinstance(value, list) else None


def _tool_kind(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind is None or kind == "custom":
        return "function"
    return "client" if isinstance(kind, str) and _CLIENT_TOOLS.fullmatch(kind) else None


class Base64Source(TypedDict):
    """The bytes themselves."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    type: Literal["base64"]
    media_type: Text
    data: Text


class URLSource(TypedDict):
    """An address, which the provider fetches where it does that."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    type: Literal["url"]
    url: Text


class TextSource(TypedDict):
    """A document of plain text."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    type: Literal["text"]
    data: str


class ContentSource(TypedDict):
    """A document of blocks."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    type: Literal["content"]
    content: BlockContent


class TextBlock(TypedDict):
    """A text."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    type: Literal["text"]
    text: str
    cache_control: NotRequired[Object | None]


class ImageBlock(TypedDict):
    """An image. Files that were uploaded to Anthropic would be the gateway's own: they are refused."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    type: Literal["image"]
    source: Annotated[Base64Source | URLSource, Discriminator("type")]


class DocumentBlock(TypedDict):
    """A document."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    type: Literal["document"]
    source: Annotated[Base64Source | URLSource | TextSource | ContentSource, Discriminator("type")]
    title: NotRequired[str | None]
    context: NotRequired[str | None]
    citations: NotRequired[Object | None]


class SearchResultBlock(TypedDict):
    """What a search of the client's own has found."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    type: Literal["search_result"]
    source: str
    title: str
    content: list[TextBlock]
    citations: NotRequired[Object | None]


class ToolUseBlock(TypedDict):
    """A call of a tool that the model made."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    type: Literal["tool_use"]
    id: Text
    name: Text
    input: Object


class ToolReferenceBlock(TypedDict):
    """A tool that a search of the client's own has found."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    type: Literal["tool_reference"]
    tool_name: Text


class ToolResultBlock(TypedDict):
    """What a tool answered."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    type: Literal["tool_result"]
    tool_use_id: Text
    content: NotRequired[BlockContent | None]
    is_error: NotRequired[bool | None]


class ThinkingBlock(TypedDict):
    """What the model thought, as it was answered."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    type: Literal["thinking"]
    thinking: str
    signature: str


class RedactedThinkingBlock(TypedDict):
    """The same in what only its maker reads."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    type: Literal["redacted_thinking"]
    data: str


Block = Annotated[
    TextBlock
    | ImageBlock
    | DocumentBlock
    | SearchResultBlock
    | ToolUseBlock
    | ToolResultBlock
    | ToolReferenceBlock
    | ThinkingBlock
    | RedactedThinkingBlock,
    Discriminator("type"),
]
BlockContent = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[Block], Field(fail_fast=True), Tag("blocks")],
    Discriminator(
        _content_shape,
        custom_error_type="content_type",
        custom_error_message="must be a string or an array of content blocks",
    ),
]


class Turn(TypedDict):
    """One message of the conversation."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    role: Literal["user", "assistant", "system"]
    content: BlockContent


class FunctionTool(TypedDict):
    """A function that the model may call."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    type: NotRequired[Literal["custom"] | None]
    name: Annotated[str, Field(min_length=1, max_length=256)]
    input_schema: Object
    description: NotRequired[str | None]
    strict: NotRequired[bool | None]


class ClientTool(TypedDict):
    """A tool that Anthropic has defined and the client runs. Of other providers none knows it."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    type: Annotated[str, Field(examples=["bash_20250124"])]
    name: Text


AnyTool = Annotated[
    Annotated[FunctionTool, Tag("function")] | Annotated[ClientTool, Tag("client")],
    Discriminator(
        _tool_kind,
        custom_error_type="server_tool",
        custom_error_message="tools of this type run at the provider, at prices that the gateway lacks",
    ),
]


class AnyToolChoice(TypedDict):
    """Whether tools are to be called."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: NotRequired[bool | None]


class NamedToolChoice(TypedDict):
    """Which tool is to be called."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    type: Literal["tool"]
    name: Text
    disable_parallel_tool_use: NotRequired[bool | None]


class ThinkingBudget(TypedDict):
    """To think within a bound, in tokens. It is a part of max_tokens."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    type: Literal["enabled"]
    budget_tokens: Annotated[int, Field(ge=1)]


class ThinkingMode(TypedDict):
    """To think as the model sees fit, or not at all."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    type: Literal["adaptive", "between_tools", "disabled"]


class JSONFormat(TypedDict):
    """JSON by a schema."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    type: Literal["json_schema"]
    schema: Object


class OutputConfig(TypedDict):
    """How the answer is to be."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    effort: NotRequired[str | None]
    format: NotRequired[JSONFormat | None]


class ContextEdit(TypedDict):
    """What is left out of a long conversation. To sum it up is billed beside the call: that is refused."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    type: Annotated[str, Field(pattern=r"^clear_[a-z_]+_[0-9]{8}$", examples=["clear_tool_uses_20250919"])]


class ContextManagement(TypedDict):
    """How Anthropic shortens a long conversation."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")  # type: ignore[misc]

    edits: NotRequired[list[ContextEdit] | None]


class Metadata(TypedDict):
    """Whose request it is."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    user_id: NotRequired[str | None]


class CountTokensRequest(BaseModel):
    """The body of POST /v1/messages/count_tokens."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, defer_build=True)

    model: ModelName
    messages: Annotated[list[Turn], Field(min_length=1, fail_fast=True)]
    system: BlockContent | None = None
    tools: Annotated[list[AnyTool], Field(fail_fast=True)] | None = None
    tool_choice: Annotated[AnyToolChoice | NamedToolChoice, Discriminator("type")] | None = None
    thinking: Annotated[ThinkingBudget | ThinkingMode, Discriminator("type")] | None = None
    output_config: OutputConfig | None = None
    output_format: JSONFormat | None = None
    cache_control: Object | None = None
    context_management: ContextManagement | None = None


class MessagesRequest(CountTokensRequest):
    """The body of POST /v1/messages."""

    max_tokens: TokenBound
    metadata: Metadata | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    speed: Literal["standard"] | None = None

    @property
    def wants_stream(self) -> bool:
        return bool(self.stream)
