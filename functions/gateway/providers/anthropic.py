"""Anthropic's Messages API, natively.

A request is translated in `anthropic_request`. What is read here was looked up in November 2026:
https://platform.claude.com/docs/en/api/messages/create, …/api/errors, …/build-with-claude/streaming and
…/build-with-claude/handling-stop-reasons.

What a model thought goes out as `reasoning_content`, and with its signatures as `reasoning_details` in
OpenRouter's shape: sent back in the next turn, they let the model go on from its thoughts. Blocks that only
Anthropic's own tools make can't occur, since those tools are refused.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gateway import json_text
from gateway.providers.anthropic_request import REASONING_FORMAT, build_body
from gateway.providers.failures import client_code, provider_error, retry_after, term, unreadable
from gateway.providers.headers import request_headers
from gateway.providers.openai_compatible import credible, openai_usage, token_count
from gateway.providers.sse import EventTooLargeError, SSEDecoder
from gateway.providers.wire import (
    Answer,
    ChatWire,
    Chunk,
    Fault,
    ProviderCall,
    ProviderError,
    StreamDone,
    StreamEvent,
    StreamFailed,
    UpstreamRequest,
)
from gateway.schemas.usage import TokenUsage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from decimal import Decimal

    from gateway.providers.sse import ServerSentEvent

_FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
    # Of its own tools' loops, which we don't start. Nothing was cut: the turn can be sent back.
    "pause_turn": "stop",
}
_TIERS = {"standard": "default", "priority": "priority"}
# The status that an error inside a stream would have had.
_STATUSES = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
# Of status 400, and about our account there. (No other field tells them from the client's faults.)
_ABOUT_THE_ACCOUNT = (
    "credit balance is too low",
    "reached your specified api usage limits",
    "organization has been disabled",
)


class AnthropicWire:
    """The Messages API, plain and streamed."""

    name = "anthropic"

    def build_request(self, call: ProviderCall) -> UpstreamRequest:
        """Return the call as a Messages request.

        Raises Unprocessable (422) naming what the API can't be told, and ProviderError (operator) where the
        key is missing or unusable.
        """
        return UpstreamRequest(
            method="POST",
            url=f"{call.base_url.rstrip('/')}/messages",
            headers=request_headers(call),
            content=json_text.dump(build_body(call)),
        )

    def parse_answer(self, call: ProviderCall, content: bytes) -> Answer:
        try:
            body = json_text.parse_provider(content)
        except ValueError as error:
            raise unreadable(call, f"not JSON: {error}") from None
        if not isinstance(body, dict):
            raise unreadable(call, f"a JSON {type(body).__name__} where an object belongs")
        if body.get("type") == "error":
            raise _reported(call, body)
        blocks = body.get("content")
        if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
            raise unreadable(call, "a message without content")
        message = _Message()
        for block in blocks:
            message.add(block)
        finish_reason = _finish_reason(body)
        reported = body.get("usage")
        usage = credible(read_usage(reported), (message.generated,))
        answer: dict[str, Any] = {
            "id": body.get("id"),
            "object": "chat.completion",
            "created": int(time.time()),
            "model": body.get("model"),
            "choices": [
                {
                    "index": 0,
                    "message": {**message.as_openai(), "refusal": _refusal(body)},
                    "logprobs": None,
                    "finish_reason": finish_reason,
                    **_native(body),
                }
            ],
        }
        if usage is not None:
            answer["usage"] = openai_usage(usage)
        tier = _TIERS.get(str(reported.get("service_tier"))) if isinstance(reported, dict) else None
        if tier is not None:
            answer["service_tier"] = tier
        return Answer(
            body=answer,
            usage=usage,
            finish_reasons=(finish_reason,) if finish_reason else (),
            generated=(message.generated,),
        )

    def parse_error(
        self, call: ProviderCall, status: int, headers: Mapping[str, str], content: bytes
    ) -> ProviderError:
        try:
            body = json_text.parse_provider(content)
        except ValueError:
            body = None
        return _error(call, status, body, seconds=retry_after(headers), excerpt=content)

    def open_stream(self, call: ProviderCall) -> AnthropicStream:
        return AnthropicStream(call)

    def build_list_request(self, call: ProviderCall) -> UpstreamRequest:
        """Return GET /models, of one page: there is room for a thousand."""
        headers = {name: value for name, value in request_headers(call).items() if name != "content-type"}
        return UpstreamRequest(
            method="GET", url=f"{call.base_url.rstrip('/')}/models?limit=1000", headers=headers, content=b""
        )

    def parse_list(self, content: bytes) -> frozenset[str] | None:
        try:
            body = json_text.parse_provider(content)
        except ValueError:
            return None
        entries = body.get("data") if isinstance(body, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            return None
        return frozenset(entry["id"] for entry in entries if isinstance(entry.get("id"), str))


class _Places:
    """Where a block stands in the message as `anthropic_request` builds it again: texts make one block."""

    def __init__(self) -> None:
        self._taken = 0
        self._has_text = False

    def take(self, kind: Any) -> int:
        place = self._taken
        if kind != "text" or not self._has_text:
            self._taken += 1
        self._has_text = self._has_text or kind == "text"
        return place


class _Message:
    """A message's blocks as OpenAI's one message."""

    def __init__(self) -> None:
        self._places = _Places()
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._details: list[dict[str, Any]] = []
        self._calls: list[dict[str, Any]] = []
        self._citations: list[dict[str, Any]] = []
        self._generated: list[str] = []

    @property
    def generated(self) -> str:
        return "".join(self._generated)

    def add(self, block: dict[str, Any]) -> None:
        kind = block.get("type")
        if kind == "text":
            self._places.take(kind)
            self._texts.append(_string(block.get("text")))
            self._generated.append(self._texts[-1])
            cited = block.get("citations")
            self._citations += [_dict(entry) for entry in cited] if isinstance(cited, list) else []
        elif kind == "thinking":
            text = _string(block.get("thinking"))
            self._reasoning.append(text)
            self._generated.append(text)
            self._details.append({**self._detail(kind), "text": text, "signature": block.get("signature")})
        elif kind == "redacted_thinking":
            self._details.append({**self._detail(kind), "data": block.get("data")})
        elif kind == "tool_use":
            self._places.take(kind)
            name, arguments = _string(block.get("name")), _json(block.get("input"))
            self._generated += [name, arguments]
            self._calls.append(
                {
                    "id": block.get("id"),
                    "type": "function",
                    "function": {"name": name, "arguments": arguments},
                }
            )

    def _detail(self, kind: str) -> dict[str, Any]:
        return _detail(kind, len(self._details), self._places.take(kind))

    def as_openai(self) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": "".join(self._texts) if self._texts or not self._calls else None,
        }
        if any(self._reasoning):
            message["reasoning_content"] = "".join(self._reasoning)
        lists = {
            "reasoning_details": self._details,
            "tool_calls": self._calls,
            "citations": [{"index": index, **cited} for index, cited in enumerate(self._citations)],
        }
        message.update({name: values for name, values in lists.items() if values})
        return message


class AnthropicStream:
    """One streamed answer.

    The first chunk waits for the first content, so that a model that turns out to be overloaded can still
    give way to another. Usage is cumulative: each event's figures replace the earlier ones. It counts as told
    once the last figures came; before that, the output is a guess of the provider's own.
    """

    def __init__(self, call: ProviderCall) -> None:
        self._call = call
        self._decoder = SSEDecoder()
        self._places = _Places()
        self._head: dict[str, Any] = {
            "id": None,
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": call.model,
        }
        self._blocks: dict[int, _OpenBlock] = {}
        self._calls = self._thoughts = self._citations = 0
        self._generated: list[str] = []
        self._reported: dict[str, Any] = {}
        self._usage: TokenUsage | None = None
        self._finish_reason: str | None = None
        self._begun = False
        self._said_done = False
        self._failed = False

    @property
    def usage(self) -> TokenUsage | None:
        return credible(self._usage, self.generated)

    @property
    def input_usage(self) -> TokenUsage | None:
        begun = read_usage(self._reported)
        return None if begun is None else replace(begun, output=0, reasoning=None)

    @property
    def reported_cost_usd(self) -> Decimal | None:
        return None

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        return (self._finish_reason,) if self._finish_reason else ()

    @property
    def generated(self) -> tuple[str, ...]:
        return ("".join(self._generated),)

    @property
    def complete(self) -> bool:
        return not self._failed and (self._said_done or self._finish_reason is not None)

    def feed(self, data: bytes) -> list[StreamEvent]:
        if self._said_done or self._failed:
            return []
        try:
            events = self._decoder.feed(data)
        except EventTooLargeError as error:
            return [self._fail(unreadable(self._call, str(error)))]
        return self._take_all(events)

    def close(self) -> list[StreamEvent]:
        if self._said_done or self._failed:
            return []
        try:
            pending = self._decoder.close()
        except EventTooLargeError as error:
            return [self._fail(unreadable(self._call, str(error)))]
        if pending:
            # The last event lacks its blank line: whole if it is JSON, else what a cut has left.
            try:
                json_text.parse_provider(pending[-1].data)
            except ValueError:
                del pending[-1]
        return self._take_all(pending)

    def usage_chunk(self, usage: TokenUsage | None = None, **fields: Any) -> Chunk:
        counted = self.usage or usage
        reported = openai_usage(counted) if counted is not None else None
        return Chunk({**self._head, "choices": [], "usage": reported, **fields})

    def _take_all(self, events: list[ServerSentEvent]) -> list[StreamEvent]:
        taken: list[StreamEvent] = []
        for event in events:
            taken += self._take(event)
            if self._said_done or self._failed:
                break
        return taken

    def _take(self, event: ServerSentEvent) -> list[StreamEvent]:
        try:
            said = json_text.parse_provider(event.data)
        except ValueError as error:
            return [self._fail(unreadable(self._call, f"an event that is not JSON: {error}"))]
        if not isinstance(said, dict):
            return [self._fail(unreadable(self._call, f"an event that is a JSON {type(said).__name__}"))]
        return self._read(said, event)

    def _read(self, said: dict[str, Any], event: ServerSentEvent) -> list[StreamEvent]:  # noqa: PLR0911 - a table
        match said.get("type", event.event):
            case "message_start":
                self._start(_dict(said.get("message")))
            case "content_block_start":
                return self._open(_index(said), _dict(said.get("content_block")))
            case "content_block_delta":
                return self._extend(_index(said), _dict(said.get("delta")))
            case "content_block_stop":
                return self._shut(_index(said))
            case "message_delta":
                return self._finish(said)
            case "message_stop":
                self._said_done = True
                return [StreamDone()]
            case "error":
                return [self._fail(_reported(self._call, said))]
        # A ping, or an event of a later day: the API's versioning says that there may be some.
        return []

    def _start(self, message: dict[str, Any]) -> None:
        self._head["id"] = message.get("id")
        self._head["model"] = message.get("model", self._call.model)
        self._reported = dict(_dict(message.get("usage")))

    def _open(self, index: int, block: dict[str, Any]) -> list[StreamEvent]:
        kind = block.get("type")
        if kind not in {"text", "thinking", "redacted_thinking", "tool_use"}:
            return []
        opened = self._blocks[index] = _OpenBlock(str(kind), self._thoughts, self._places.take(kind))
        self._thoughts += kind in {"thinking", "redacted_thinking"}
        if kind == "text":
            return self._extend(index, {"type": "text_delta", "text": block.get("text")})
        if kind == "redacted_thinking":
            return [self._chunk(opened.thought(data=block.get("data")))]
        if kind == "thinking":
            return self._extend(index, {"type": "thinking_delta", "thinking": block.get("thinking")})
        opened.call, self._calls = self._calls, self._calls + 1
        opened.input = block.get("input")
        name = _string(block.get("name"))
        self._generated.append(name)
        function = {"name": name, "arguments": ""}
        return [
            self._chunk(
                {
                    "tool_calls": [
                        {
                            "index": opened.call,
                            "id": block.get("id"),
                            "type": "function",
                            "function": function,
                        }
                    ]
                }
            )
        ]

    def _extend(self, index: int, delta: dict[str, Any]) -> list[StreamEvent]:  # noqa: PLR0911 - a table
        block = self._blocks.get(index)
        if block is None:
            return []
        match delta.get("type"):
            case "text_delta":
                text = _string(delta.get("text"))
                return self._say(text, lambda: {"content": text})
            case "thinking_delta":
                text = _string(delta.get("thinking"))
                return self._say(text, lambda: {"reasoning_content": text, **block.thought(text=text)})
            case "signature_delta":
                return [self._chunk(block.thought(signature=delta.get("signature")))]
            case "input_json_delta":
                return self._say_arguments(block, _string(delta.get("partial_json")))
            case "citations_delta":
                cited = {"index": self._citations, **_dict(delta.get("citation"))}
                self._citations += 1
                return [self._chunk({"citations": [cited]})]
        return []

    def _shut(self, index: int) -> list[StreamEvent]:
        block = self._blocks.pop(index, None)
        if block is None or block.kind != "tool_use" or block.argued:
            return []
        # A call without arguments streams none, and no text at all is no JSON.
        return self._say_arguments(block, _json(block.input))

    def _say_arguments(self, block: _OpenBlock, text: str) -> list[StreamEvent]:
        block.argued = block.argued or bool(text)
        return self._say(
            text, lambda: {"tool_calls": [{"index": block.call, "function": {"arguments": text}}]}
        )

    def _finish(self, said: dict[str, Any]) -> list[StreamEvent]:
        told = {name: value for name, value in _dict(said.get("usage")).items() if value is not None}
        self._reported |= told
        if "output_tokens" in told:
            self._usage = read_usage(self._reported)
        delta = _dict(said.get("delta"))
        self._finish_reason = _finish_reason(delta) or self._finish_reason
        refusal = _refusal(delta)
        if self._finish_reason is None:
            return []
        return [
            self._chunk(
                {"refusal": refusal} if refusal else {},
                finish_reason=self._finish_reason,
                **_native(delta),
            )
        ]

    def _say(self, text: str, delta: Callable[[], dict[str, Any]]) -> list[StreamEvent]:
        if not text:
            return []
        self._generated.append(text)
        return [self._chunk(delta())]

    def _chunk(self, delta: dict[str, Any], *, finish_reason: str | None = None, **native: Any) -> Chunk:
        if not self._begun:
            self._begun = True
            delta = {"role": "assistant", **delta}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason, **native}
        chunk = {**self._head, "choices": [choice]}
        if self._call.wants_usage:
            chunk["usage"] = None
        return Chunk(chunk)

    def _fail(self, error: ProviderError) -> StreamFailed:
        self._failed = True
        return StreamFailed(error)


class _OpenBlock:
    """A content block that is being streamed."""

    def __init__(self, kind: str, thought: int, place: int) -> None:
        self.kind = kind
        self.call = 0
        """Which of the tool calls it is."""
        self.input: Any = None
        """The arguments as the block began with them."""
        self.argued = False
        self._head = _detail(kind, thought, place)
        self._shown = False

    def thought(self, **part: Any) -> dict[str, Any]:
        """Return a delta with a part of this thought. The first says what it is: parts are joined."""
        head = self._head
        if self._shown:
            head = {name: head[name] for name in ("type", "index")}
        elif self.kind == "thinking":
            # Where the text is omitted, the signature alone comes.
            head = {**head, "text": ""}
        self._shown = True
        return {"reasoning_details": [head | part]}


def read_usage(reported: Any) -> TokenUsage | None:
    """Return the API's usage in disjoint classes; None where it makes no sense.

    Here, unlike at OpenAI, `input_tokens` leaves out what was read from the cache and written to it. What was
    thought is inside `output_tokens`. No prompt is empty: 0 of all three counts as not told.
    """
    if not isinstance(reported, dict):
        return None
    fresh, output = token_count(reported.get("input_tokens")), token_count(reported.get("output_tokens"))
    cached = token_count(reported.get("cache_read_input_tokens"))
    written = token_count(reported.get("cache_creation_input_tokens"))
    if fresh is None or output is None or not fresh + (cached or 0) + (written or 0):
        return None
    hour = token_count(_dict(reported.get("cache_creation")).get("ephemeral_1h_input_tokens"))
    thought = token_count(_dict(reported.get("output_tokens_details")).get("thinking_tokens"))
    return TokenUsage(
        input=fresh,
        cached_input=cached,
        cache_write=written,
        cache_write_1h=min(hour, written) if hour and written else None,
        output=output,
        reasoning=None if thought is None else min(thought, output),
    )


def _finish_reason(message: Mapping[str, Any]) -> str | None:
    reason = message.get("stop_reason")
    return _FINISH_REASONS.get(reason, "stop") if isinstance(reason, str) else None


def _native(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return what OpenAI has no word for: the reason as Anthropic says it, and which stop sequence it was."""
    native = {"native_finish_reason": message.get("stop_reason")}
    if message.get("stop_sequence") is not None:
        native["stop_reason"] = message["stop_sequence"]
    return native


def _refusal(message: Mapping[str, Any]) -> str | None:
    explanation = _dict(message.get("stop_details")).get("explanation")
    return explanation if isinstance(explanation, str) and explanation else None


def _detail(kind: str, number: int, place: int) -> dict[str, Any]:
    """Return the head of an entry of reasoning_details: the how-manieth it is, and which block it was."""
    name = "reasoning.text" if kind == "thinking" else "reasoning.encrypted"
    return {"type": name, "format": REASONING_FORMAT, "index": number, "block": place}


def _reported(call: ProviderCall, body: dict[str, Any]) -> ProviderError:
    """Read an error that came with status 200, or inside a stream."""
    kind = _dict(body.get("error")).get("type")
    status = _STATUSES.get(kind, 502) if isinstance(kind, str) else 502
    return _error(call, status, body, seconds=None, excerpt=json_text.dump(body))


def _error(
    call: ProviderCall, status: int, body: Any, *, seconds: float | None, excerpt: bytes
) -> ProviderError:
    error = _dict(_dict(body).get("error"))
    said = _string(error.get("message"))
    return provider_error(
        call,
        status,
        _fault(status, said),
        said=said,
        terms=(term(error.get("type")),),
        code=client_code(said) or ("request_too_large" if status == 413 else None),  # noqa: PLR2004
        retry_after=seconds,
        excerpt=excerpt,
    )


def _fault(status: int, said: str) -> Fault:
    if status in {408, 429} or status >= 500:  # noqa: PLR2004
        return Fault.TRANSIENT
    lowered = said.lower()
    if status == 400 and any(words in lowered for words in _ABOUT_THE_ACCOUNT):  # noqa: PLR2004
        return Fault.OPERATOR
    # 404: the model's name there, and the address, are the operator's settings.
    return Fault.OPERATOR if status < 400 or status in {401, 402, 403, 404, 405} else Fault.CLIENT  # noqa: PLR2004


def _json(value: Any) -> str:
    """Return arguments as text, spaced as the API streams them."""
    return json.dumps(_dict(value), ensure_ascii=False)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _index(event: dict[str, Any]) -> int:
    index = event.get("index")
    return index if isinstance(index, int) else 0


ANTHROPIC: ChatWire = AnthropicWire()
