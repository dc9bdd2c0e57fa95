"""OpenAI's wire: chat completions, plain and streamed, and the list of models.

Tokens of a prompt are counted as OpenAI's cookbook does (3 a message and its role, 1 for a name, 3 for the
answer). Its count of tools and media is not published: tools count as their JSON, an image as 85.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra.local.simulator.answers import Choice, Question, Tool, answer, count_tokens
from infra.local.simulator.behaviour import NAMES, Behaviour, parse_behaviour
from infra.local.simulator.transport import Transport

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import Receive, Scope, Send

    from infra.local.simulator.calls import CallLog

WIRE = "openai"
_CREATED = 1_735_689_600  # of every model in the list
_PER_MESSAGE, _PER_NAME, _PER_ANSWER, _PER_IMAGE = 3, 1, 3, 85
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "invalid_request_error",
    403: "permission_error",
    404: "invalid_request_error",
    408: "timeout",
    409: "conflict",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_exceeded",
}
_BAD_REQUEST, _UNAUTHORIZED, _NOT_FOUND, _TOO_MANY = 400, 401, 404, 429
_MOST_CHOICES = 128


class Refusal(Exception):  # noqa: N818 - an answer, not a fault
    """An HTTP error of the provider, in OpenAI's shape."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        kind = _ERROR_TYPES.get(status, "server_error")
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def check_key(headers: dict[str, str], key: str | None) -> None:
    """Refuse a wrong bearer key, where one is configured."""
    given = headers.get("authorization", "").removeprefix("Bearer ")
    if key is not None and given != key:
        raise Refusal(_UNAUTHORIZED, f"Incorrect API key provided: {given}.", code="invalid_api_key")


def model_list() -> dict[str, Any]:
    """Return what GET /v1/models answers."""
    return {
        "object": "list",
        "data": [
            {"id": name, "object": "model", "created": _CREATED, "owned_by": "simulator"} for name in NAMES
        ],
    }


def _require(condition: bool, message: str, param: str) -> None:
    if not condition:
        raise Refusal(_BAD_REQUEST, message, param=param)


def _bound(body: dict[str, Any]) -> int | None:
    given = {
        name: body[name] for name in ("max_tokens", "max_completion_tokens") if body.get(name) is not None
    }
    _require(
        len(given) <= 1,
        "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.",
        "max_tokens",
    )
    for name, value in given.items():
        valid = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        _require(valid, f"Invalid value for '{name}': expected a positive integer.", name)
        return int(value)
    return None


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(
        part.get("text", "") for part in parts if isinstance(part, dict) and part.get("type") == "text"
    )


def _prompt_tokens(body: dict[str, Any]) -> int:
    total = _PER_ANSWER
    for message in body["messages"]:
        total += _PER_MESSAGE + count_tokens(str(message.get("role", "")))
        total += count_tokens(_text(message.get("content")))
        if name := message.get("name"):
            total += _PER_NAME + count_tokens(str(name))
        for call in message.get("tool_calls") or []:
            function = call.get("function", {})
            total += count_tokens(function.get("name", "")) + count_tokens(function.get("arguments", ""))
        if isinstance(message.get("content"), list):
            total += _PER_IMAGE * sum(part.get("type") == "image_url" for part in message["content"])
    if tools := body.get("tools"):
        total += count_tokens(json.dumps(tools, ensure_ascii=False))
    return total


def _tools(body: dict[str, Any]) -> tuple[Tool, ...]:
    """Return the tools to choose from; none where the model has its answer and is to speak now."""
    offered = tuple(
        Tool(tool["function"]["name"], tool["function"].get("parameters") or {})
        for tool in body.get("tools") or []
        if tool.get("type") == "function"
    )
    wanted = body.get("tool_choice", "auto")
    if wanted == "none" or body["messages"][-1].get("role") == "tool":
        return ()
    if isinstance(wanted, dict):
        name = wanted.get("function", {}).get("name")
        return tuple(tool for tool in offered if tool.name == name)
    return offered


def read_question(body: dict[str, Any]) -> Question:
    """Read a chat completion request; Refusal for what OpenAI refuses."""
    messages = body.get("messages")
    _require(
        isinstance(messages, list) and bool(messages), "Missing required parameter: 'messages'.", "messages"
    )
    assert isinstance(messages, list)
    _require(
        all(isinstance(message, dict) and isinstance(message.get("role"), str) for message in messages),
        "Invalid type for 'messages': expected objects with a role.",
        "messages",
    )
    _require(
        body.get("stream") is True or not body.get("stream_options"),
        "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
        "stream_options",
    )
    choices = body.get("n") or 1
    _require(isinstance(choices, int) and 1 <= choices <= _MOST_CHOICES, "Invalid value for 'n'.", "n")
    shape = body.get("response_format") or {}
    stop = body.get("stop") or ()
    asked = [_text(message.get("content")) for message in messages if message["role"] in {"user", "tool"}]
    return Question(
        text=asked[-1] if asked else "",
        prompt_tokens=_prompt_tokens(body),
        bound=_bound(body),
        choices=choices,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        tools=_tools(body),
        parallel_tool_calls=body.get("parallel_tool_calls", True) is not False,
        wants_json=shape.get("type") in {"json_object", "json_schema"},
        json_schema=(shape.get("json_schema") or {}).get("schema"),
    )


def usage_of(
    question: Question, behaviour: Behaviour, output_tokens: int, reasoning_tokens: int
) -> dict[str, Any]:
    """Return OpenAI's usage; cached tokens lie inside the prompt's, reasoning inside the completion's."""
    cached = 0
    if behaviour.has_cache:
        asked = question.prompt_tokens // 2 if behaviour.cached_tokens is None else behaviour.cached_tokens
        cached = min(asked, question.prompt_tokens)
    return {
        "prompt_tokens": question.prompt_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": question.prompt_tokens + output_tokens,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


@dataclass(frozen=True, slots=True)
class Completion:
    """An answered request, ready to be written plain or as a stream."""

    number: int
    body: dict[str, Any]
    question: Question
    behaviour: Behaviour
    choices: tuple[Choice, ...]

    @property
    def usage(self) -> dict[str, Any]:
        return usage_of(
            self.question,
            self.behaviour,
            sum(choice.output_tokens for choice in self.choices),
            sum(choice.reasoning_tokens for choice in self.choices),
        )

    def _finish_reason(self, choice: Choice) -> str:
        if choice.is_cut:
            return "length"
        return "tool_calls" if choice.tool_calls else "stop"

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-sim-{self.number}",
            "object": kind,
            "created": int(time.time()),
            "model": self.body["model"],
            "system_fingerprint": "fp_simulator",
        }

    def _logprobs(self, pieces: tuple[str, ...]) -> dict[str, Any] | None:
        if not self.body.get("logprobs"):
            return None
        tokens = [
            {"token": piece, "logprob": -0.25, "bytes": list(piece.encode()), "top_logprobs": []}
            for piece in pieces
        ]
        return {"content": tokens, "refusal": None}

    def _call_id(self, index: int, position: int) -> str:
        return f"call_sim_{self.number}_{index}_{position}"

    def plain(self) -> dict[str, Any]:
        """Return the whole answer as one object."""
        choices = []
        for index, choice in enumerate(self.choices):
            message: dict[str, Any] = {
                "role": "assistant",
                "content": None if choice.tool_calls else "".join(choice.content),
                "refusal": None,
            }
            if choice.reasoning:
                message["reasoning_content"] = "".join(choice.reasoning)
            if choice.tool_calls:
                message["tool_calls"] = [
                    {
                        "id": self._call_id(index, position),
                        "type": "function",
                        "function": {"name": call.name, "arguments": "".join(call.fragments)},
                    }
                    for position, call in enumerate(choice.tool_calls)
                ]
            choices.append(
                {
                    "index": index,
                    "message": message,
                    "logprobs": self._logprobs(choice.content),
                    "finish_reason": self._finish_reason(choice),
                }
            )
        whole = {**self._head("chat.completion"), "choices": choices}
        return {**whole, "usage": self.usage} if self.behaviour.tells_usage else whole

    def _deltas(self, index: int, choice: Choice) -> Iterator[tuple[dict[str, Any], str | None]]:
        """Yield each delta of one choice with its finish reason."""
        first: dict[str, Any] = {
            "role": "assistant",
            "content": None if choice.tool_calls else "",
            "refusal": None,
        }
        yield first, None
        for piece in choice.reasoning:
            yield {"reasoning_content": piece}, None
        for piece in choice.content:
            yield {"content": piece}, None
        for position, call in enumerate(choice.tool_calls):
            function = {"name": call.name, "arguments": ""}
            named = {"index": position, "id": self._call_id(index, position), "type": "function"}
            yield {"tool_calls": [{**named, "function": function}]}, None
            for fragment in call.fragments:
                yield {"tool_calls": [{"index": position, "function": {"arguments": fragment}}]}, None
        yield {}, self._finish_reason(choice)

    def chunks(self) -> Iterator[dict[str, Any]]:
        """Yield the answer's chunks, the one with usage last where the client asked for it."""
        options = self.body.get("stream_options") or {}
        wants_usage = options.get("include_usage") is True and self.behaviour.tells_usage
        head = self._head("chat.completion.chunk")
        produced = 0
        for index, choice in enumerate(self.choices):
            for delta, finish_reason in self._deltas(index, choice):
                said = delta.get("content") or delta.get("reasoning_content") or ""
                produced += count_tokens(said) if self.behaviour.usage_on_each_chunk else 0
                logprobs = self._logprobs((said,)) if delta.get("content") else None
                part = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
                chunk = {**head, "choices": [part]}
                is_last = finish_reason is not None and index == len(self.choices) - 1
                if self.behaviour.usage_on_each_chunk and not is_last:
                    chunk["usage"] = usage_of(self.question, self.behaviour, produced, 0)
                elif self.behaviour.usage_on_each_chunk or (self.behaviour.usage_on_last_choice and is_last):
                    chunk["usage"] = self.usage
                elif wants_usage:
                    chunk["usage"] = None
                yield chunk
        if wants_usage and not self.behaviour.usage_on_last_choice:
            yield {**head, "choices": [], "usage": self.usage}

    def events(self) -> Iterator[bytes]:
        """Yield the stream's events as bytes, with what goes wrong in them."""
        for sent, chunk in enumerate(self.chunks()):
            if self.behaviour.error_after is not None and sent >= self.behaviour.error_after:
                yield _event(stream_error())
                return
            if self.behaviour.clean_end_after is not None and sent >= self.behaviour.clean_end_after:
                return
            event = _event(chunk)
            if self.behaviour.malformed and sent > 0:
                yield event[: len(event) // 2] + b"\n\n"
                return
            yield event
        yield b"data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def stream_error() -> dict[str, Any]:
    """Return the error that comes inside an answer whose status was 200."""
    message = "The server had an error while processing your request. Sorry about that!"
    return {"error": {"message": message, "type": "server_error", "param": None, "code": None}}


def _status_refusal(status: int, headers: dict[str, str]) -> Refusal:
    """Refuse as a careless provider does: its message repeats the key, which the gateway must not pass on."""
    extra: dict[str, str] = {}
    if status == _TOO_MANY:
        extra["retry-after"] = "1"
    if status < _BAD_REQUEST:
        extra["location"] = "/v1/models"
    key = headers.get("authorization", "").removeprefix("Bearer ")
    return Refusal(
        status, f"Simulated status {status} for the key {key}.", code=f"simulated_{status}", headers=extra
    )


class ChatCompletions:
    """POST /v1/chat/completions as an ASGI app. `key` is the bearer key that it demands, or None."""

    def __init__(self, log: CallLog, key: str | None) -> None:
        self._log = log
        self._key = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        body = await _read_json(receive)
        if body is None:
            return
        model = str(body.get("model") or "")
        call = self._log.begin(WIRE, model, headers, body)
        behaviour = parse_behaviour(headers.get("x-sim-behaviour") or model)
        transport = Transport(call, behaviour or Behaviour(), self._log, receive, send)
        try:
            check_key(headers, self._key)
            completion = _complete(call.number, body, headers, behaviour)
        except Refusal as refusal:
            await transport.run(transport.send_json(refusal.status, refusal.body, refusal.headers))
            return
        call.usage = completion.usage
        if call.streamed:
            await transport.run(transport.send_events(completion.events()))
        elif completion.behaviour.error_after is not None:
            await transport.run(transport.send_json(200, stream_error()))
        else:
            await transport.run(transport.send_json(200, completion.plain()))


async def _read_json(receive: Receive) -> dict[str, Any] | None:
    """Read the whole body; anything but a JSON object is read as an empty one, which lacks a model.

    None where the client left before it was whole: nothing was asked.
    """
    raw = b""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        raw += message.get("body", b"")
        more = message.get("more_body", False)
    try:
        body = json.loads(raw)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _complete(
    number: int, body: dict[str, Any], headers: dict[str, str], behaviour: Behaviour | None
) -> Completion:
    _require(isinstance(body.get("model"), str), "you must provide a model parameter", "model")
    if behaviour is None:
        message = f"The model `{body['model']}` does not exist or you do not have access to it."
        raise Refusal(_NOT_FOUND, message, code="model_not_found")
    if behaviour.status is not None:
        raise _status_refusal(behaviour.status, headers)
    question = read_question(body)
    return Completion(number, body, question, behaviour, answer(question, behaviour))
