"""What Anthropic's Messages API takes, and what it refuses.

The models hold the fields of the vendor's own SDK (anthropic 2.12, `MessageCreateParams`), but for its server
tools, files and containers, which the simulator has not. What goes beyond shapes is in `checked`, after the
vendor's pages on errors, extended thinking, tool use, prompt caching and structured outputs (November 2026).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from infra.local.simulator.answers import (
    Question,
    Tool,
    count_tokens,
    given_call,
    given_media,
    given_text,
    signature,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

OLDER_VERSION = "2023-06-01"
VERSIONS = (OLDER_VERSION, "2026-10-21")
"""The later one takes no sampling parameters, and no citations on a user's text."""

_SAMPLING = ("temperature", "top_p", "top_k")
_LEAST_BUDGET = 1024
_MOST_BREAKPOINTS = 4
_PER_MESSAGE, _PER_ANSWER, _PER_IMAGE, _PER_DOCUMENT = 4, 3, 1500, 2000
_TOOL_PROMPT = 346
_MOST_ERRORS = 3


class InvalidRequestError(ValueError):
    """The request is one that Anthropic answers with 400 invalid_request_error; the text is its message."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class CacheControl(_Strict):
    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] = "5m"


class _Cacheable(_Strict):
    cache_control: CacheControl | None = None


class TextBlock(_Cacheable):
    type: Literal["text"]
    text: Annotated[str, Field(min_length=1)]
    citations: list[dict[str, Any]] | None = None


class Base64Image(_Strict):
    type: Literal["base64"]
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: str


class URLSource(_Strict):
    type: Literal["url"]
    url: str


class ImageBlock(_Cacheable):
    type: Literal["image"]
    source: Annotated[Base64Image | URLSource, Discriminator("type")]
    transformations: dict[str, Any] | None = None


class Base64PDF(_Strict):
    type: Literal["base64"]
    media_type: Literal["application/pdf"]
    data: str


class PlainText(_Strict):
    type: Literal["text"]
    media_type: Literal["text/plain"]
    data: str


class ContentSource(_Strict):
    type: Literal["content"]
    content: str | list[Annotated[TextBlock | ImageBlock, Discriminator("type")]]


class CitationsConfig(_Strict):
    enabled: bool | None = None


class DocumentBlock(_Cacheable):
    type: Literal["document"]
    source: Annotated[Base64PDF | PlainText | ContentSource | URLSource, Discriminator("type")]
    citations: CitationsConfig | None = None
    context: str | None = None
    title: str | None = None


class ThinkingBlock(_Strict):
    type: Literal["thinking"]
    thinking: str
    signature: str


class RedactedThinkingBlock(_Strict):
    type: Literal["redacted_thinking"]
    data: str


class ToolUseBlock(_Cacheable):
    type: Literal["tool_use"]
    id: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]+$")]
    name: Annotated[str, Field(min_length=1, max_length=200)]
    input: dict[str, Any]
    caller: dict[str, Any] | None = None


def _content_shape(value: Any) -> str:
    return "str" if isinstance(value, str) else "list"


_ResultBlock = Annotated[TextBlock | ImageBlock | DocumentBlock, Discriminator("type")]


class ToolResultBlock(_Cacheable):
    type: Literal["tool_result"]
    tool_use_id: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]+$")]
    content: (
        Annotated[
            Annotated[str, Tag("str")] | Annotated[list[_ResultBlock], Tag("list")],
            Discriminator(_content_shape),
        ]
        | None
    ) = None
    is_error: bool = False


Block = Annotated[
    TextBlock
    | ImageBlock
    | DocumentBlock
    | ThinkingBlock
    | RedactedThinkingBlock
    | ToolUseBlock
    | ToolResultBlock,
    Discriminator("type"),
]


class Message(_Strict):
    role: Literal["user", "assistant", "system"]
    content: Annotated[
        Annotated[str, Tag("str")] | Annotated[list[Block], Tag("list")], Discriminator(_content_shape)
    ]

    @property
    def blocks(self) -> Sequence[Any]:
        """The content as blocks; a string is short for one of text."""
        if isinstance(self.content, str):
            return (TextBlock.model_construct(type="text", text=self.content),) if self.content else ()
        return self.content


class CustomTool(_Cacheable):
    type: Literal["custom"] | None = None
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    eager_input_streaming: bool | None = None
    defer_loading: bool | None = None
    input_examples: list[dict[str, Any]] | None = None
    allowed_callers: list[str] | None = None


class _Choice(_Strict):
    disable_parallel_tool_use: bool = False


class ChoiceAuto(_Choice):
    type: Literal["auto"]


class ChoiceAny(_Choice):
    type: Literal["any"]


class ChoiceTool(_Choice):
    type: Literal["tool"]
    name: str


class ChoiceNone(_Strict):
    type: Literal["none"]


class ThinkingEnabled(_Strict):
    type: Literal["enabled"]
    budget_tokens: Annotated[int, Field(ge=_LEAST_BUDGET)]
    display: Literal["summarized", "omitted"] | None = None


class ThinkingAdaptive(_Strict):
    type: Literal["adaptive"]
    display: Literal["summarized", "omitted"] | None = None


class ThinkingDisabled(_Strict):
    type: Literal["disabled"]


class ThinkingBetweenTools(_Strict):
    type: Literal["between_tools"]


class JSONOutputFormat(_Strict):
    type: Literal["json_schema"]
    json_schema: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(_Strict):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JSONOutputFormat | None = None


class Metadata(_Strict):
    user_id: Annotated[str, Field(max_length=512)] | None = None


class MessagesRequest(_Strict):
    """The body of POST /v1/messages."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=100_000)]
    max_tokens: Annotated[int, Field(ge=1)]
    system: (
        Annotated[
            Annotated[str, Tag("str")] | Annotated[list[TextBlock], Tag("list")],
            Discriminator(_content_shape),
        ]
        | None
    ) = None
    stream: bool = False
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    stop_sequences: list[Annotated[str, Field(min_length=1)]] | None = None
    tools: list[CustomTool] | None = None
    tool_choice: Annotated[ChoiceAuto | ChoiceAny | ChoiceTool | ChoiceNone, Discriminator("type")] | None = (
        None
    )
    thinking: (
        Annotated[
            ThinkingEnabled | ThinkingAdaptive | ThinkingDisabled | ThinkingBetweenTools,
            Discriminator("type"),
        ]
        | None
    ) = None
    output_config: OutputConfig | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    cache_control: CacheControl | None = None
    inference_geo: str | None = None
    speed: Literal["standard", "fast"] | None = None

    @property
    def system_blocks(self) -> Sequence[TextBlock]:
        if isinstance(self.system, str):
            return (TextBlock.model_construct(type="text", text=self.system),) if self.system else ()
        return self.system or ()

    @property
    def cache_controls(self) -> tuple[CacheControl, ...]:
        """Every breakpoint, in the order of the prompt."""
        places: list[Any] = [*(self.tools or ()), *self.system_blocks]
        for message in self.messages:
            for block in message.blocks:
                if isinstance(block, ToolResultBlock) and isinstance(block.content, list):
                    places += block.content
                places.append(block)
        marks = [getattr(place, "cache_control", None) for place in places] + [self.cache_control]
        return tuple(mark for mark in marks if mark is not None)


def parse_request(body: dict[str, Any], version: str) -> MessagesRequest:
    """Read and check a body as that version of the API does. Raises InvalidRequestError in its words."""
    if version != OLDER_VERSION:
        for name in _SAMPLING:
            if name in body:
                raise InvalidRequestError(f"{name}: Extra inputs are not permitted")
    try:
        request = MessagesRequest.model_validate(body)
    except ValidationError as invalid:
        lines = [
            f"{'.'.join(str(step) for step in error['loc'] if step not in {'str', 'list'})}: {error['msg']}"
            for error in invalid.errors(include_url=False, include_context=False)
        ]
        raise InvalidRequestError("; ".join(lines[:_MOST_ERRORS])) from None
    _check_thinking(request)
    _check_tools(request)
    _check_turns(request, version)
    _check_caching(request)
    if request.output_config and request.output_config.format:
        _check_schema(request.output_config.format.json_schema, "output_config.format.schema")
    for number, tool in enumerate(request.tools or ()):
        if tool.input_schema.get("type") != "object":
            raise InvalidRequestError(f"tools.{number}.custom.input_schema.type: Field required")
        if tool.strict:
            _check_schema(tool.input_schema, f"tools.{number}.custom.input_schema")
    return request


def _check_thinking(request: MessagesRequest) -> None:
    thinking = request.thinking
    if not isinstance(thinking, ThinkingEnabled | ThinkingAdaptive):
        return
    if isinstance(thinking, ThinkingEnabled) and thinking.budget_tokens >= request.max_tokens:
        raise InvalidRequestError("`max_tokens` must be greater than `thinking.budget_tokens`.")
    if request.temperature not in {None, 1}:
        raise InvalidRequestError("`temperature` may only be set to 1 when thinking is enabled.")
    if request.top_k is not None:
        raise InvalidRequestError("`top_k` must be unset when thinking is enabled.")
    if isinstance(request.tool_choice, ChoiceAny | ChoiceTool):
        raise InvalidRequestError("Thinking may not be enabled when tool_choice forces tool use.")
    last = next((message for message in reversed(request.messages) if message.role == "assistant"), None)
    if isinstance(thinking, ThinkingEnabled) and last is not None:
        kinds = [block.type for block in last.blocks]
        if "tool_use" in kinds and kinds[0] not in {"thinking", "redacted_thinking"}:
            raise InvalidRequestError(
                f"messages.{request.messages.index(last)}.content.0.type: Expected `thinking` or "
                f"`redacted_thinking`, but found `{kinds[0]}`. When `thinking` is enabled, a final "
                "`assistant` message must start with a thinking block."
            )


def _check_tools(request: MessagesRequest) -> None:
    names = [tool.name for tool in request.tools or ()]
    if len(names) != len(set(names)):
        raise InvalidRequestError("tools: Tool names must be unique.")
    choice = request.tool_choice
    if choice is not None and not names:
        raise InvalidRequestError("tool_choice may only be specified while providing tools.")
    if isinstance(choice, ChoiceTool) and choice.name not in names:
        raise InvalidRequestError(f"Tool '{choice.name}' not found in provided tools")


def _check_turns(request: MessagesRequest, version: str) -> None:
    for number, message in enumerate(request.messages):
        if not message.blocks and not (message is request.messages[-1] and message.role == "assistant"):
            raise InvalidRequestError(
                f"messages.{number}: all messages must have non-empty content except for the optional "
                "final assistant message"
            )
        _check_blocks(number, message)
        cited = any(getattr(block, "citations", None) and block.type == "text" for block in message.blocks)
        if cited and message.role == "user" and version != OLDER_VERSION:
            raise InvalidRequestError(
                f"messages.{number}.content: `citations` are not allowed in user messages"
            )
    called: list[str] = []
    for number, blocks in _turns(request):
        answered = [block.tool_use_id for block in blocks if isinstance(block, ToolResultBlock)]
        _check_results(number, called, answered)
        if any(not isinstance(block, ToolResultBlock) for block in blocks[: len(answered)]):
            raise InvalidRequestError(
                f"messages.{number}: `tool_result` blocks must come first in the content"
            )
        called = [block.id for block in blocks if isinstance(block, ToolUseBlock)]
        if len(called) != len(set(called)):
            raise InvalidRequestError(f"messages.{number}: `tool_use` ids must be unique")
    _check_results(len(request.messages), called, [])
    last = request.messages[-1].blocks
    ends_with_space = (
        bool(last) and isinstance(last[-1], TextBlock) and last[-1].text != last[-1].text.rstrip()
    )
    if request.messages[-1].role == "assistant" and ends_with_space:
        raise InvalidRequestError("messages: final assistant content cannot end with trailing whitespace")


def _turns(request: MessagesRequest) -> list[tuple[int, list[Any]]]:
    """Return the number of each turn's first message and its blocks; the API joins those of one role."""
    turns: list[tuple[int, list[Any]]] = []
    role = None
    for number, message in enumerate(request.messages):
        if message.role != role:
            turns.append((number, []))
        turns[-1][1].extend(message.blocks)
        role = message.role
    return turns


def _check_results(number: int, called: list[str], answered: list[str]) -> None:
    """Check that a turn answers each tool call of the turn before it, once, and no other."""
    if missing := [tool_id for tool_id in called if tool_id not in answered]:
        raise InvalidRequestError(
            f"messages.{number - 1}: `tool_use` ids were found without `tool_result` blocks immediately "
            f"after: {', '.join(missing)}. Each `tool_use` block must have a corresponding "
            "`tool_result` block in the next message."
        )
    if unknown := [tool_id for tool_id in answered if tool_id not in called]:
        raise InvalidRequestError(
            f"messages.{number}.content.0: unexpected `tool_use_id` found in `tool_result` blocks: "
            f"{', '.join(unknown)}. Each `tool_result` block must have a corresponding `tool_use` block in "
            "the previous message."
        )
    if len(answered) != len(set(answered)):
        raise InvalidRequestError(
            f"messages.{number}.content: each tool_use must have a single result. "
            "Found multiple `tool_result` blocks with one id."
        )


_ROLES: dict[str, tuple[type[_Strict], ...]] = {
    "user": (TextBlock, ImageBlock, DocumentBlock, ToolResultBlock),
    "assistant": (TextBlock, ThinkingBlock, RedactedThinkingBlock, ToolUseBlock),
    "system": (TextBlock,),
}


def _check_blocks(number: int, message: Message) -> None:
    texts = [block.text for block in message.blocks if isinstance(block, TextBlock)]
    if texts and not any(map(str.strip, texts)):
        raise InvalidRequestError("messages: text content blocks must contain non-whitespace text")
    for place, block in enumerate(message.blocks):
        path = f"messages.{number}.content.{place}"
        if not isinstance(block, _ROLES[message.role]):
            raise InvalidRequestError(
                f"{path}: `{block.type}` blocks are not allowed in {message.role} messages"
            )
        if isinstance(block, ThinkingBlock) and block.signature != signature(block.thinking):
            raise InvalidRequestError(f"{path}: Invalid `signature` in `thinking` block")
        if isinstance(block, RedactedThinkingBlock) and block.data != signature("redacted"):
            raise InvalidRequestError(f"{path}: Invalid `data` in `redacted_thinking` block")


def _check_caching(request: MessagesRequest) -> None:
    marks = request.cache_controls
    if len(marks) > _MOST_BREAKPOINTS:
        raise InvalidRequestError(
            f"A maximum of {_MOST_BREAKPOINTS} blocks with cache_control may be provided. Found {len(marks)}."
        )
    lives = [mark.ttl == "1h" for mark in marks]
    if lives != sorted(lives, reverse=True):
        raise InvalidRequestError(
            "a ttl='1h' cache_control block must not come after a ttl='5m' cache_control block"
        )


def _check_schema(schema: Any, path: str) -> None:
    if isinstance(schema, list):
        for entry in schema:
            _check_schema(entry, path)
    if not isinstance(schema, dict):
        return
    if schema.get("type") == "object" and schema.get("additionalProperties") is not False:
        raise InvalidRequestError(
            f"{path}: For 'object' type, 'additionalProperties' must be explicitly set to false"
        )
    for name, value in schema.items():
        if name in {"properties", "$defs", "definitions"} and isinstance(value, dict):
            for entry in value.values():
                _check_schema(entry, path)
        elif name in {"items", "anyOf", "allOf"}:
            _check_schema(value, path)


def read_question(request: MessagesRequest) -> Question:
    """Return what is asked. Raises InvalidRequestError where media is no base64."""
    try:
        given = tuple(_given(request))
    except ValueError as error:
        raise InvalidRequestError(f"messages: invalid base64 data: {error}") from None
    asked = [piece for piece in given if piece["role"] in {"user", "tool"} and "text" in piece]
    choice = request.tool_choice
    shape = request.output_config.format if request.output_config else None
    return Question(
        text=_last_text(request) or (asked[-1]["text"] if asked else ""),
        prompt_tokens=_prompt_tokens(request, given),
        bound=request.max_tokens,
        stop=tuple(request.stop_sequences or ()),
        tools=_tools(request),
        parallel_tool_calls=not getattr(choice, "disable_parallel_tool_use", False),
        wants_json=shape is not None,
        json_schema=None if shape is None else shape.json_schema,
        given=given,
    )


def _last_text(request: MessagesRequest) -> str:
    """Return the text of the last user's turn; its blocks are one text, as OpenAI's parts are."""
    for message in reversed(request.messages):
        if message.role == "user":
            return "".join(block.text for block in message.blocks if isinstance(block, TextBlock))
    return ""


def _given(request: MessagesRequest) -> Iterator[dict[str, Any]]:
    for text in request.system_blocks:
        yield given_text("system", text.text)
    functions: dict[str, str] = {}
    for message in request.messages:
        for block in message.blocks:
            if isinstance(block, ToolUseBlock):
                functions[block.id] = block.name
                yield given_call(block.name, block.input)
            elif isinstance(block, ToolResultBlock):
                tool = functions.get(block.tool_use_id, "")
                inner = (
                    [TextBlock(type="text", text=block.content)] if isinstance(block.content, str) else None
                )
                for part in inner or block.content or ():
                    yield _given_block("tool", part, tool)
            elif isinstance(block, TextBlock | ImageBlock | DocumentBlock):
                yield _given_block(message.role, block, None)


def _given_block(role: str, block: Any, tool: str | None) -> dict[str, Any]:
    if isinstance(block, TextBlock):
        return given_text(role, block.text, tool=tool)
    kind = "image" if isinstance(block, ImageBlock) else "file"
    source = block.source
    if isinstance(source, URLSource):
        return given_media(role, kind, url=source.url, tool=tool)
    if isinstance(source, Base64Image | Base64PDF):
        return given_media(role, kind, data=source.data, tool=tool)
    text = source.data if isinstance(source, PlainText) else json.dumps(source.model_dump(mode="json"))
    return given_text(role, text, tool=tool)


def _tools(request: MessagesRequest) -> tuple[Tool, ...]:
    """Return the tools to choose from; none where the model has its answer and is to speak now."""
    choice = request.tool_choice
    last = request.messages[-1]
    if isinstance(choice, ChoiceNone) or any(isinstance(block, ToolResultBlock) for block in last.blocks):
        return ()
    offered = tuple(Tool(tool.name, tool.input_schema) for tool in request.tools or ())
    if isinstance(choice, ChoiceTool):
        return tuple(tool for tool in offered if tool.name == choice.name)
    return offered


def _prompt_tokens(request: MessagesRequest, given: Sequence[dict[str, Any]]) -> int:
    """Count texts by o200k_base, and the rest by rough constants from the vendor's pages."""
    total = _PER_ANSWER + _PER_MESSAGE * len(request.messages)
    for piece in given:
        if "call" in piece:
            total += count_tokens(piece["call"]) + count_tokens(json.dumps(piece["arguments"]))
        total += count_tokens(piece.get("text", ""))
        total += _PER_IMAGE * ("image" in piece) + _PER_DOCUMENT * ("file" in piece)
    if request.tools:
        tools = [tool.model_dump(mode="json", exclude_none=True) for tool in request.tools]
        total += _TOOL_PROMPT + count_tokens(json.dumps(tools, ensure_ascii=False))
    return total
