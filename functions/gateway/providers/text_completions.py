"""OpenAI's legacy text completions: a prompt goes out, and text that goes on from it comes back.

For services that speak nothing newer. A base URL that ends in /completions is the whole address, as such
services tell it; any other is where /completions and /models are to be found. How a conversation becomes a
prompt stands in `plain_prompt`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway import json_text
from gateway.providers.failures import refuse_parameter, unreadable
from gateway.providers.headers import request_headers
from gateway.providers.openai_compatible import (
    OPENAI_COMPATIBLE,
    OpenAIStream,
    credible,
    error_in_body,
    openai_finish_reason,
    read_cost,
    read_usage,
)
from gateway.providers.plain_prompt import USER_TURN, is_in_turns, plain_prompt
from gateway.providers.wire import Answer, ChatWire, ProviderCall, ProviderError, UpstreamRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.providers.wire import StreamEvent

_PATH = "/completions"
_MAX_STOPS = 4
"""What OpenAI takes of them, and those who imitate it."""

# The sampling of the legacy API, and what vLLM, llama.cpp and TGI have beside it.
_PASSED_ON = frozenset(
    {
        "temperature",
        "top_p",
        "n",
        "seed",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "user",
        "top_k",
        "min_p",
        "repetition_penalty",
    }
)
_SEEN_TO = frozenset(
    {
        "model",
        "models",
        "messages",
        "max_tokens",
        "max_completion_tokens",
        "stream",
        "stream_options",
        "stop",
    }
)
# What asks for nothing that would not be so anyway.
_WITHOUT_EFFECT: Mapping[str, tuple[Any, ...]] = {
    "route": ("fallback",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "reasoning_effort": ("none",),
    "service_tier": ("auto", "default"),
    "store": (False,),
}


class TextCompletionsWire:
    """POST …/completions, plain and streamed."""

    name = "completions"

    def build_request(self, call: ProviderCall) -> UpstreamRequest:
        """Return the conversation as a prompt.

        Raises Unprocessable (422) naming what a prompt can't say, and ProviderError (operator) where the key
        is missing or unusable.
        """
        provider = call.provider
        body: dict[str, Any] = {"model": call.model, "prompt": plain_prompt(call)}
        for name, value in call.body.items():
            if value is None or name in _SEEN_TO:
                continue
            if name in _PASSED_ON:
                if name not in call.dropped:
                    body[name] = value
            elif value not in _WITHOUT_EFFECT.get(name, ()):
                refuse_parameter(call, name)
        if call.output_bound is not None:
            body[provider.output_bound_field] = call.output_bound
        stops = _stops(call)
        if stops:
            body["stop"] = stops
        if call.stream:
            body["stream"] = True
            if provider.stream_usage_option:
                body["stream_options"] = {"include_usage": True}
        return UpstreamRequest(
            method="POST",
            url=f"{_root(call)}{_PATH}",
            headers=request_headers(call),
            content=json_text.dump(body),
        )

    def parse_answer(self, call: ProviderCall, content: bytes) -> Answer:
        """Return the texts as the messages of a chat completion."""
        try:
            body = json_text.parse_provider(content)
        except ValueError as error:
            raise unreadable(call, f"not JSON: {error}") from None
        if not isinstance(body, dict):
            raise unreadable(call, f"a JSON {type(body).__name__} where an object belongs")
        choices = body.get("choices")
        if body.get("error") and not choices:
            raise error_in_body(call, body)
        if not isinstance(choices, list) or not choices:
            raise unreadable(call, "an answer without choices")
        reader = _Reader(call)
        answered: list[dict[str, Any]] = []
        for place, choice in enumerate(choices):
            if not isinstance(choice, dict) or not isinstance(choice.get("text"), str):
                raise unreadable(call, "a choice without a text")
            index, text, reason = reader.read(choice, place)
            message = {"role": "assistant", "content": text}
            answered.append(
                {"index": index, "message": message, "logprobs": None, "finish_reason": reason or "stop"}
            )
        generated = tuple(choice["message"]["content"] for choice in answered)
        return Answer(
            body={**_head(body, "chat.completion"), "choices": answered, **_usage_of(body)},
            usage=credible(read_usage(body.get("usage")), generated),
            finish_reasons=tuple(choice["finish_reason"] for choice in answered),
            generated=generated,
            reported_cost_usd=read_cost(body.get("usage")),
        )

    def parse_error(
        self, call: ProviderCall, status: int, headers: Mapping[str, str], content: bytes
    ) -> ProviderError:
        return OPENAI_COMPATIBLE.parse_error(call, status, headers, content)

    def open_stream(self, call: ProviderCall) -> TextStream:
        return TextStream(call)

    def build_list_request(self, call: ProviderCall) -> UpstreamRequest:
        """Return GET …/models. Raises ProviderError (operator) where the key is missing or unusable."""
        headers = {name: value for name, value in request_headers(call).items() if name != "content-type"}
        return UpstreamRequest(method="GET", url=f"{_root(call)}/models", headers=headers, content=b"")

    def parse_list(self, content: bytes) -> frozenset[str] | None:
        return OPENAI_COMPATIBLE.parse_list(content)


class TextStream(OpenAIStream):
    """One streamed answer: each chunk of text is read as the chunk of a chat that says it."""

    def __init__(self, call: ProviderCall) -> None:
        super().__init__(call)
        self._reader = _Reader(call)
        self._begun: set[int] = set()

    def _take_chunk(self, chunk: dict[str, Any], text: str, *, is_error: bool) -> StreamEvent | None:
        choices = chunk.get("choices")
        if is_error or chunk.get("error") or not isinstance(choices, list):
            return super()._take_chunk(chunk, text, is_error=is_error)
        read = [self._as_chat(choice) for choice in choices if isinstance(choice, dict)]
        said = {**_head(chunk, "chat.completion.chunk"), "choices": read, **_usage_of(chunk)}
        if "x_groq" in chunk:
            said["x_groq"] = chunk["x_groq"]
        return super()._take_chunk(said, json_text.dump(said).decode(), is_error=False)

    def _as_chat(self, choice: dict[str, Any]) -> dict[str, Any]:
        index, text, reason = self._reader.read(choice, 0)
        delta = {"content": text} if text else {}
        if index not in self._begun:
            self._begun.add(index)
            delta = {"role": "assistant", "content": text}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}


class _Reader:
    """Reads the choices of one answer. Before a turn stands a space that belongs to the prompt's layout."""

    def __init__(self, call: ProviderCall) -> None:
        self._trims = _in_turns(call)
        self._spoken: set[int] = set()

    def read(self, choice: Mapping[str, Any], place: int) -> tuple[int, str, str | None]:
        """Return the index, the text and the finish reason of a choice, or of a piece of it."""
        index = choice.get("index")
        index = index if isinstance(index, int) and not isinstance(index, bool) else place
        text = choice.get("text")
        text = text if isinstance(text, str) else ""
        if self._trims and index not in self._spoken:
            text = text.lstrip()
        if text:
            self._spoken.add(index)
        return index, text, openai_finish_reason(choice.get("finish_reason"))


def _root(call: ProviderCall) -> str:
    return call.base_url.rstrip("/").removesuffix(_PATH)


def _in_turns(call: ProviderCall) -> bool:
    return is_in_turns([message["role"] for message in call.body.get("messages") or []])


def _stops(call: ProviderCall) -> list[str]:
    """Return the client's stop sequences, and where the user's next turn would begin, if there is room."""
    given = None if "stop" in call.dropped else call.body.get("stop")
    stops = [given] if isinstance(given, str) else list(given or [])
    if _in_turns(call) and len(stops) < _MAX_STOPS:
        stops.append(USER_TURN)
    return stops


def _head(body: Mapping[str, Any], kind: str) -> dict[str, Any]:
    kept = {name: body[name] for name in ("id", "created", "model", "system_fingerprint") if name in body}
    return {"id": "", "object": kind, "created": 0, "model": "", **kept}


def _usage_of(body: Mapping[str, Any]) -> dict[str, Any]:
    return {"usage": body["usage"]} if "usage" in body else {}


TEXT_COMPLETIONS: ChatWire = TextCompletionsWire()
