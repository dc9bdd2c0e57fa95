"""Anthropic's wire: POST /v1/messages, plain and streamed, the count of tokens, and the list of models."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from infra.local.simulator.answers import answer, read_arguments, signature
from infra.local.simulator.anthropic_request import (
    VERSIONS,
    InvalidRequestError,
    parse_request,
    read_question,
)
from infra.local.simulator.behaviour import NAMES
from infra.local.simulator.endpoint import Refusal, event, interrupted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from infra.local.simulator.answers import Choice, Question
    from infra.local.simulator.anthropic_request import MessagesRequest
    from infra.local.simulator.behaviour import Behaviour
    from infra.local.simulator.endpoint import Asked

WIRE = "anthropic"
_CREATED = "2025-01-01T00:00:00Z"  # of every model in the list
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_BAD_REQUEST, _UNAUTHORIZED, _NOT_FOUND = 400, 401, 404
_ANY_BOUND = 1_000_000
_FIRST_OUTPUT_TOKENS = 1  # what message_start says of the output, before there is any


def refuse(status: int, message: str, *, number: int = 0) -> Refusal:
    """Return an HTTP error in Anthropic's shape."""
    kind = _ERROR_TYPES.get(status, "api_error")
    return Refusal(status, _error(kind, message) | {"request_id": f"req_sim_{number}"})


def _error(kind: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}}


def header_key(headers: Mapping[str, str]) -> str:
    """Return the key; where both headers carry one, `x-api-key` counts."""
    return headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")


def check_headers(asked: Asked, key: str | None) -> None:
    """Refuse a key that is wrong or elsewhere than in its header, and a request that names no version."""
    if not asked.key or (key is not None and key in asked.url):
        raise refuse(_UNAUTHORIZED, "x-api-key or authorization header is required", number=asked.number)
    if key is not None and asked.key != key:
        raise refuse(_UNAUTHORIZED, "invalid x-api-key", number=asked.number)
    version = asked.headers.get("anthropic-version")
    if version not in VERSIONS:
        words = "header is required" if version is None else f'"{version}" is not a valid version'
        raise refuse(_BAD_REQUEST, f"anthropic-version: {words}", number=asked.number)


def model_list() -> dict[str, Any]:
    """Return what GET /v1/models answers."""
    data = [
        {
            "type": "model",
            "id": name,
            "display_name": f"Simulator {name}",
            "created_at": _CREATED,
            "lifecycle": "active",
        }
        for name in NAMES
    ]
    return {"data": data, "has_more": False, "first_id": NAMES[0], "last_id": NAMES[-1]}


@dataclass(frozen=True, slots=True)
class AnsweredMessage:
    """An answered request, ready to be written plain or as a stream."""

    number: int
    request: MessagesRequest
    question: Question
    behaviour: Behaviour
    choice: Choice

    @property
    def usage(self) -> dict[str, Any]:
        """Anthropic's usage: what was read from the cache and written to it is not in input_tokens."""
        prompt = self.question.prompt_tokens
        read, written = self.behaviour.cached_of(prompt), self.behaviour.cache_written_of(prompt)
        lives_long = any(mark.ttl == "1h" for mark in self.request.cache_controls)
        usage: dict[str, Any] = {
            "input_tokens": prompt - read - written,
            "cache_creation_input_tokens": written,
            "cache_read_input_tokens": read,
            "cache_creation": {
                "ephemeral_5m_input_tokens": 0 if lives_long else written,
                "ephemeral_1h_input_tokens": written if lives_long else 0,
            },
            "output_tokens": 0 if self.behaviour.is_blocked else self.choice.output_tokens,
            "service_tier": "standard",
        }
        if self.choice.reasoning_tokens:
            usage["output_tokens_details"] = {"thinking_tokens": self.choice.reasoning_tokens}
        return usage

    @property
    def _stop(self) -> dict[str, Any]:
        if self.behaviour.is_blocked or self.choice.is_filtered:
            details = {"type": "refusal", "category": "cyber", "explanation": None}
            return {"stop_reason": "refusal", "stop_sequence": None, "stop_details": details}
        if self.choice.is_cut:
            return {"stop_reason": "max_tokens", "stop_sequence": None}
        if self.choice.tool_calls:
            return {"stop_reason": "tool_use", "stop_sequence": None}
        said = "".join(self.choice.content)
        whole = "You said: " + self.question.text
        found = next((stop for stop in self.question.stop if stop in whole and stop not in said), None)
        if found is not None:
            return {"stop_reason": "stop_sequence", "stop_sequence": found}
        return {"stop_reason": "end_turn", "stop_sequence": None}

    def _blocks(self) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Yield each content block as it starts, and the deltas that complete it."""
        if self.behaviour.is_blocked:
            return
        choice = self.choice
        if choice.reasoning and self.behaviour.redacts_thoughts:
            yield {"type": "redacted_thinking", "data": signature("redacted")}, []
        elif choice.reasoning:
            omitted = getattr(self.request.thinking, "display", None) == "omitted"
            pieces = () if omitted else choice.reasoning
            thoughts = [{"type": "thinking_delta", "thinking": piece} for piece in pieces]
            signed = {"type": "signature_delta", "signature": signature("".join(pieces))}
            yield {"type": "thinking", "thinking": "", "signature": ""}, [*thoughts, signed]
        if choice.content:
            yield (
                {"type": "text", "text": ""},
                [{"type": "text_delta", "text": piece} for piece in choice.content],
            )
        for position, call in enumerate(choice.tool_calls):
            started = {"type": "tool_use", "id": f"toolu_sim_{self.number}_{position}", "name": call.name}
            fragments = ["", *call.fragments]
            yield (
                {**started, "input": {}},
                [{"type": "input_json_delta", "partial_json": fragment} for fragment in fragments],
            )

    def _head(self) -> dict[str, Any]:
        return {
            "id": f"msg_sim_{self.number}",
            "type": "message",
            "role": "assistant",
            "model": self.request.model,
        }

    def plain(self) -> dict[str, Any]:
        """Return the whole answer as one object."""
        content = [_whole(block, deltas) for block, deltas in self._blocks()]
        message = {**self._head(), "content": content, "stop_details": None, **self._stop}
        return {**message, "usage": self.usage} if self.behaviour.tells_usage else message

    def events(self) -> Iterator[bytes]:
        """Yield the stream's events as bytes, with what goes wrong in them."""
        failed = _error("overloaded_error", "Overloaded")
        whole = (event(content, content["type"]) for content in self._events())
        return interrupted(whole, self.behaviour, event(failed, "error"))

    def _events(self) -> Iterator[dict[str, Any]]:
        usage = self.usage
        cumulative = {
            name: usage[name]
            for name in (
                "input_tokens",
                "cache_creation_input_tokens",
                "cache_read_input_tokens",
                "output_tokens",
                "output_tokens_details",
            )
            if name in usage
        }
        first = {name: value for name, value in usage.items() if name != "output_tokens_details"}
        head = {**self._head(), "content": [], "stop_reason": None, "stop_sequence": None}
        last: dict[str, Any] = {"type": "message_delta", "delta": self._stop}
        if self.behaviour.tells_usage:
            head["usage"] = {**first, "output_tokens": _FIRST_OUTPUT_TOKENS}
            last["usage"] = cumulative
        yield {"type": "message_start", "message": head}
        for index, (block, deltas) in enumerate(self._blocks()):
            yield {"type": "content_block_start", "index": index, "content_block": block}
            if index == 0:
                yield {"type": "ping"}
            for delta in deltas:
                yield {"type": "content_block_delta", "index": index, "delta": delta}
            yield {"type": "content_block_stop", "index": index}
        yield last
        yield {"type": "message_stop"}


def _whole(block: dict[str, Any], deltas: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a content block as the plain answer has it."""

    def joined(name: str) -> str:
        return "".join(delta.get(name, "") for delta in deltas)

    match block["type"]:
        case "text":
            return {**block, "text": joined("text"), "citations": None}
        case "thinking":
            return {**block, "thinking": joined("thinking"), "signature": joined("signature")}
        case "tool_use":
            return {**block, "input": read_arguments(joined("partial_json"))}
        case _:
            return block


class _AnthropicWire:
    """What all of Anthropic's endpoints have in common."""

    name = WIRE
    request_id_header = "request-id"

    def key(self, asked: Asked) -> str:
        return header_key(asked.headers)

    def model(self, asked: Asked) -> str:
        return str(asked.body.get("model") or "")

    def is_streamed(self, asked: Asked) -> bool:
        return asked.body.get("stream") is True

    def authenticate(self, asked: Asked, key: str | None) -> None:
        check_headers(asked, key)

    def refusal(self, status: int, message: str, *, code: str | None = None) -> Refusal:
        del code  # Anthropic has none
        return refuse(status, message)

    def stream_error(self) -> Any:
        return _error("overloaded_error", "Overloaded")


class Messages(_AnthropicWire):
    """POST /v1/messages."""

    def reply(self, asked: Asked, behaviour: Behaviour | None) -> AnsweredMessage:
        try:
            request = parse_request(asked.body, asked.headers["anthropic-version"])
            question = read_question(request)
        except InvalidRequestError as invalid:
            raise refuse(_BAD_REQUEST, str(invalid), number=asked.number) from None
        if behaviour is None:
            raise refuse(_NOT_FOUND, f"model: {request.model}", number=asked.number)
        if behaviour.is_too_long:
            message = "prompt is too long: 200001 tokens > 200000 maximum"
            raise refuse(_BAD_REQUEST, message, number=asked.number)
        thinks = getattr(request.thinking, "type", None) != "disabled"
        asked_for = behaviour if thinks else replace(behaviour, reasoning_tokens=0)
        (choice,) = answer(question, asked_for)
        return AnsweredMessage(asked.number, request, question, asked_for, choice)


@dataclass(frozen=True, slots=True)
class Count:
    """How many tokens a request would take."""

    input_tokens: int

    @property
    def usage(self) -> dict[str, Any]:
        return {}

    def plain(self) -> dict[str, Any]:
        return {"input_tokens": self.input_tokens}

    def events(self) -> Iterator[bytes]:
        return iter(())


class CountTokens(_AnthropicWire):
    """POST /v1/messages/count_tokens."""

    def is_streamed(self, asked: Asked) -> bool:
        del asked
        return False

    def reply(self, asked: Asked, behaviour: Behaviour | None) -> Count:
        if "max_tokens" in asked.body or "stream" in asked.body:
            raise refuse(_BAD_REQUEST, "max_tokens: Extra inputs are not permitted", number=asked.number)
        try:
            question = read_question(
                parse_request({**asked.body, "max_tokens": _ANY_BOUND}, asked.headers["anthropic-version"])
            )
        except InvalidRequestError as invalid:
            raise refuse(_BAD_REQUEST, str(invalid), number=asked.number) from None
        if behaviour is None:
            raise refuse(_NOT_FOUND, f"model: {self.model(asked)}", number=asked.number)
        return Count(question.prompt_tokens)
