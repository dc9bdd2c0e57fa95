"""OpenAI's wire: chat completions, plain and streamed, and the list of models.

Tokens of a prompt are counted as OpenAI's cookbook does (3 a message and its role, 1 for a name, 3 for the
answer). Its count of tools and media is not published: tools count as their JSON, an image as 85.
"""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra.local.simulator.answers import (
    Choice,
    Question,
    Tool,
    answer,
    count_tokens,
    data_url,
    given_call,
    given_media,
    given_text,
    media_kind,
)
from infra.local.simulator.behaviour import NAMES
from infra.local.simulator.endpoint import Refusal, event, interrupted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from infra.local.simulator.behaviour import Behaviour
    from infra.local.simulator.endpoint import Asked

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
_BAD_REQUEST, _UNAUTHORIZED, _NOT_FOUND = 400, 401, 404
_MOST_CHOICES = 128


def refuse(status: int, message: str, *, code: str | None = None, param: str | None = None) -> Refusal:
    """Return an HTTP error in OpenAI's shape."""
    kind = _ERROR_TYPES.get(status, "server_error")
    return Refusal(status, {"error": {"message": message, "type": kind, "param": param, "code": code}})


def bearer_key(headers: Mapping[str, str]) -> str:
    """Return the key where OpenAI takes it."""
    return headers.get("authorization", "").removeprefix("Bearer ")


def check_key(headers: Mapping[str, str], key: str | None) -> None:
    """Refuse a wrong bearer key, where one is configured."""
    given = bearer_key(headers)
    if key is not None and given != key:
        raise refuse(_UNAUTHORIZED, f"Incorrect API key provided: {given}.", code="invalid_api_key")


def model_list() -> dict[str, Any]:
    """Return what GET /v1/models answers."""
    return {
        "object": "list",
        "data": [
            {"id": name, "object": "model", "created": _CREATED, "owned_by": "simulator"} for name in NAMES
        ],
    }


def require(condition: bool, message: str, param: str) -> None:
    """Refuse with 400, naming the parameter, unless the condition holds."""
    if not condition:
        raise refuse(_BAD_REQUEST, message, param=param)


def read_bound(body: dict[str, Any]) -> int | None:
    """Return the bound on the output of each choice, under either of its names."""
    given = {
        name: body[name] for name in ("max_tokens", "max_completion_tokens") if body.get(name) is not None
    }
    require(
        len(given) <= 1,
        "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.",
        "max_tokens",
    )
    for name, value in given.items():
        valid = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        require(valid, f"Invalid value for '{name}': expected a positive integer.", name)
        return int(value)
    return None


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(
        part.get("text", "") for part in parts if isinstance(part, dict) and part.get("type") == "text"
    )


def read_given(messages: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield every piece of a conversation; what is not known here is there whole, as `unknown`."""
    functions: dict[str, str] = {}
    for message in messages:
        role = "system" if message["role"] == "developer" else message["role"]
        tool = functions.get(message.get("tool_call_id", ""), "") if role == "tool" else None
        content = message.get("content")
        if isinstance(content, str):
            yield given_text(role, content, tool=tool)
        for part in content if isinstance(content, list) else []:
            yield _given_part(role, part, tool)
        if isinstance(message.get("refusal"), str):
            yield given_text(role, message["refusal"])
        for call in message.get("tool_calls") or []:
            function = call.get("function") or {}
            functions[call.get("id", "")] = function.get("name", "")
            yield given_call(function.get("name", ""), function.get("arguments", ""))


def _given_part(role: str, part: dict[str, Any], tool: str | None) -> dict[str, Any]:
    kind = part.get("type")
    value = part.get(kind) if isinstance(kind, str) else None
    if kind in {"text", "refusal"} and isinstance(value, str):
        return given_text(role, value, tool=tool)
    if kind == "input_audio" and isinstance(value, dict):
        return _given_media(role, "audio", f"data:;base64,{value.get('data')}", tool)
    if kind in {"image_url", "video_url"} and isinstance(value, dict):
        return _given_media(role, kind.removesuffix("_url"), str(value.get("url")), tool)
    if kind == "file" and isinstance(value, dict):
        url = value.get("file_data") or value.get("file_id")
        return _given_media(role, "file", str(url), tool)
    return {"role": role, "unknown": part}


def _given_media(role: str, kind: str, url: str, tool: str | None) -> dict[str, Any]:
    inline = data_url(url)
    if inline is None:
        return given_media(role, kind, url=url, tool=tool)
    media_type, data = inline
    known = media_kind(media_type) if kind == "file" else kind
    try:
        return given_media(role, known, data=data, tool=tool)
    except ValueError as error:
        raise refuse(_BAD_REQUEST, f"Invalid base64 in a data URL: {error}", code="invalid_base64") from None


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
    require(
        isinstance(messages, list) and bool(messages), "Missing required parameter: 'messages'.", "messages"
    )
    assert isinstance(messages, list)
    require(
        all(isinstance(message, dict) and isinstance(message.get("role"), str) for message in messages),
        "Invalid type for 'messages': expected objects with a role.",
        "messages",
    )
    require(
        body.get("stream") is True or not body.get("stream_options"),
        "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
        "stream_options",
    )
    choices = body.get("n") or 1
    require(isinstance(choices, int) and 1 <= choices <= _MOST_CHOICES, "Invalid value for 'n'.", "n")
    shape = body.get("response_format") or {}
    stop = body.get("stop") or ()
    asked = [_text(message.get("content")) for message in messages if message["role"] in {"user", "tool"}]
    return Question(
        text=asked[-1] if asked else "",
        prompt_tokens=_prompt_tokens(body),
        bound=read_bound(body),
        choices=choices,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        tools=_tools(body),
        parallel_tool_calls=body.get("parallel_tool_calls", True) is not False,
        wants_json=shape.get("type") in {"json_object", "json_schema"},
        json_schema=(shape.get("json_schema") or {}).get("schema"),
        given=tuple(read_given(messages)),
    )


def usage_of(
    question: Question, behaviour: Behaviour, output_tokens: int, reasoning_tokens: int
) -> dict[str, Any]:
    """Return OpenAI's usage; cached tokens lie inside the prompt's, reasoning inside the completion's."""
    details = {"cached_tokens": behaviour.cached_of(question.prompt_tokens), "audio_tokens": 0}
    if behaviour.writes_cache:
        # OpenRouter's name for it.
        details["cache_write_tokens"] = behaviour.cache_written_of(question.prompt_tokens)
    return {
        "prompt_tokens": question.prompt_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": question.prompt_tokens + output_tokens,
        "prompt_tokens_details": details,
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
        if choice.is_filtered:
            return "content_filter"
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

    @property
    def _tells_usage_there(self) -> bool:
        """Whether the usage stands beside the last finish reason."""
        asked = self.behaviour.usage_on_each_chunk or self.behaviour.usage_on_last_choice
        return asked and self.behaviour.tells_usage

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
                elif is_last and self._tells_usage_there:
                    chunk["usage"] = self.usage
                elif wants_usage:
                    chunk["usage"] = None
                yield chunk
        if wants_usage and not self.behaviour.usage_on_last_choice:
            yield {**head, "choices": [], "usage": self.usage}

    def events(self) -> Iterator[bytes]:
        """Yield the stream's events as bytes, with what goes wrong in them."""
        whole = itertools.chain(map(event, self.chunks()), [b"data: [DONE]\n\n"])
        return interrupted(whole, self.behaviour, event(stream_error()))


def stream_error() -> dict[str, Any]:
    """Return the error that comes inside an answer whose status was 200."""
    message = "The server had an error while processing your request. Sorry about that!"
    return {"error": {"message": message, "type": "server_error", "param": None, "code": None}}


class OpenAIWire:
    """What all of OpenAI's endpoints have in common."""

    name = WIRE
    request_id_header = "x-request-id"

    def key(self, asked: Asked) -> str:
        return bearer_key(asked.headers)

    def model(self, asked: Asked) -> str:
        return str(asked.body.get("model") or "")

    def is_streamed(self, asked: Asked) -> bool:
        return asked.body.get("stream") is True

    def authenticate(self, asked: Asked, key: str | None) -> None:
        check_key(asked.headers, key)

    def refusal(self, status: int, message: str, *, code: str | None = None) -> Refusal:
        return refuse(status, message, code=code)

    def stream_error(self) -> Any:
        return stream_error()


def known(
    asked: Asked, behaviour: Behaviour | None, *, blocked: str = "content_policy_violation"
) -> Behaviour:
    """Return the behaviour of a model that there is, and that takes the prompt. Raises Refusal.

    `blocked` is the code of a refusal by the filter.
    """
    require(isinstance(asked.body.get("model"), str), "you must provide a model parameter", "model")
    if behaviour is None:
        message = f"The model `{asked.body['model']}` does not exist or you do not have access to it."
        raise refuse(_NOT_FOUND, message, code="model_not_found")
    if behaviour.is_too_long:
        message = (
            "This model's maximum context length is 128000 tokens. However, your messages resulted in 128001 "
            "tokens. Please reduce the length of the messages."
        )
        raise refuse(_BAD_REQUEST, message, code="context_length_exceeded", param="messages")
    if behaviour.is_blocked:
        message = "Your request was rejected as a result of our safety system."
        raise refuse(_BAD_REQUEST, message, code=blocked)
    return behaviour


class ChatCompletions(OpenAIWire):
    """POST /v1/chat/completions."""

    def reply(self, asked: Asked, behaviour: Behaviour | None) -> Completion:
        asked_for = known(asked, behaviour)
        question = read_question(asked.body)
        return Completion(asked.number, asked.body, question, asked_for, answer(question, asked_for))
