"""OpenAI's chat completions wire, as OpenAI and everyone who imitates it speak it.

What differs between those providers is in their registry entries. What differs between their answers is
read here without asking who sent them, since self-hosted servers of unknown make speak this wire too.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from gateway import json_text
from gateway.providers.failures import (
    provider_error,
    refuse_parameter,
    retry_after,
    short,
    term,
    unreadable,
    unsupported_content,
)
from gateway.providers.headers import request_headers
from gateway.providers.sse import EventTooLargeError, ServerSentEvent, SSEDecoder
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
    from collections.abc import Collection, Iterator, Mapping

MAX_PLAUSIBLE_TOKENS = 100_000_000
"""A count above this is no count: no model has a context a tenth as long."""

_BOUND_FIELDS = ("max_tokens", "max_completion_tokens")
# Other names for what is held for: llama.cpp lets the first two win over max_tokens and n.
_OTHER_BOUNDS = ("n_predict", "n_cmpl", "max_new_tokens", "max_output_tokens")
# Servers' own words for "the model was done": TGI's, Together AI's.
_DONE_REASONS = frozenset({"eos", "eos_token", "stop_sequence"})
# What is paid for apart from the tokens: it has no price here, and so can't be bought, as no unpriced model
# can. `preset` is OpenRouter's: one may choose another model.
_SOLD_APART = ("web_search_options", "search_parameters", "speed", "preset")
_FREE_PLUGINS = frozenset({"response-healing", "context-compression"})
_CLIENTS_TOOLS = frozenset({"function", "custom"})
# What answers hold beside what was said, whoever gave them, and what is said of caches. No model reads it.
_ASIDES = frozenset(
    {
        "reasoning",
        "reasoning_content",
        "reasoning_details",
        "extra_content",
        "citations",
        "annotations",
        "cache_control",
    }
)
_USAGE_NULL_AT_END = ',"usage":null}'


class OpenAICompatibleWire:
    """OpenAI's chat completions, plain and streamed."""

    name = "openai"

    def build_request(self, call: ProviderCall) -> UpstreamRequest:
        """Return the client's own object with the model, the bound and the stream options put right.

        `models` and `route: fallback` stay behind: the gateway falls back by itself, so that each attempt
        is priced and admitted. Asides of other providers stay behind where the provider would refuse them.
        Raises Unprocessable (422) for what the provider lacks, and for what has no price here, such as
        searches and faster tiers; and ProviderError (operator) where the key is missing or unusable.
        """
        provider = call.provider
        left_out = {*_unpriced(call), *_lacking(call)}
        body = {
            name: value
            for name, value in call.body.items()
            if name not in _BOUND_FIELDS
            and name not in left_out
            and name not in {"models", "stream", "stream_options"}
        }
        if body.get("route") == "fallback":
            del body["route"]
        if not provider.knows_developers and body.get("messages"):
            body["messages"] = [_by_its_older_role(message) for message in body["messages"]]
        if provider.asides is not None:
            _leave_asides(call, body, _ASIDES - provider.asides)
        body["model"] = call.model
        if call.output_bound is not None:
            body[provider.output_bound_field] = call.output_bound
        if call.stream:
            body["stream"] = True
            options = dict(call.body.get("stream_options") or {})
            options.pop("include_usage", None)
            if provider.stream_usage_option:
                options["include_usage"] = True
            if options:
                body["stream_options"] = options
        return UpstreamRequest(
            method="POST",
            url=f"{call.base_url.rstrip('/')}/chat/completions",
            headers=request_headers(call),
            content=json_text.dump(body),
        )

    def parse_answer(self, call: ProviderCall, content: bytes) -> Answer:
        """Return the provider's object as it came, and what can be read from it."""
        try:
            body = json_text.parse_provider(content)
        except ValueError as error:
            raise unreadable(call, f"not JSON: {error}") from None
        if not isinstance(body, dict):
            raise unreadable(call, f"a JSON {type(body).__name__} where an object belongs")
        choices = body.get("choices")
        if body.get("error") and not choices:
            # OpenRouter answers 200 and puts the error into the body when the model fails.
            raise error_in_body(call, body)
        if (
            not isinstance(choices, list)
            or not all(isinstance(choice, dict) for choice in choices)
            or not choices
        ):
            raise unreadable(call, "an answer without choices")
        generated = tuple("".join(_texts(choice.get("message"))) for choice in choices)
        reported = body.get("usage")
        usage = read_usage(reported, reasoning_apart=call.provider.reasoning_apart)
        for choice in choices:
            _put_right(choice)
        return Answer(
            body=body,
            usage=credible(usage, generated),
            finish_reasons=tuple(
                choice["finish_reason"] for choice in choices if isinstance(choice.get("finish_reason"), str)
            ),
            generated=generated,
            reported_cost_usd=read_cost(reported),
        )

    def parse_error(
        self, call: ProviderCall, status: int, headers: Mapping[str, str], content: bytes
    ) -> ProviderError:
        try:
            body = json_text.parse_provider(content)
        except ValueError:
            body = None
        return _error(call, status, body, seconds=retry_after(headers), excerpt=content)

    def open_stream(self, call: ProviderCall) -> OpenAIStream:
        return OpenAIStream(call)

    def build_list_request(self, call: ProviderCall) -> UpstreamRequest:
        """Return GET /models. Raises ProviderError (operator) where the key is missing or unusable."""
        headers = {name: value for name, value in request_headers(call).items() if name != "content-type"}
        return UpstreamRequest(
            method="GET", url=f"{call.base_url.rstrip('/')}/models", headers=headers, content=b""
        )

    def parse_list(self, content: bytes) -> frozenset[str] | None:
        """Return the ids. Together AI sends the list itself, without an object around it."""
        try:
            body = json_text.parse_provider(content)
        except ValueError:
            return None
        entries = body.get("data") if isinstance(body, dict) else body
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            return None
        return frozenset(entry["id"] for entry in entries if isinstance(entry.get("id"), str))


class OpenAIStream:
    """One streamed answer.

    Usage is taken out of the chunks wherever a provider puts it: on a chunk of its own with empty choices
    (OpenAI), on the last chunk with choices (Mistral), on every chunk (vLLM's continuous statistics), under
    `x_groq` (Groq): the last one that makes sense wins. Clients that asked for it get it from
    `usage_chunk`, the others see no trace of it.
    """

    def __init__(self, call: ProviderCall) -> None:
        self._call = call
        self._decoder = SSEDecoder()
        self._texts: dict[int, list[str]] = {}
        self._finish_reasons: dict[int, str] = {}
        self._head: dict[str, Any] = {}
        self._usage: TokenUsage | None = None
        self._usage_reported: dict[str, Any] | None = None
        self._cost: Decimal | None = None
        self._said_done = False
        self._failed = False

    @property
    def usage(self) -> TokenUsage | None:
        return credible(self._usage, self.generated)

    @property
    def input_usage(self) -> None:
        return None

    @property
    def reported_cost_usd(self) -> Decimal | None:
        return self._cost

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        return tuple(self._finish_reasons[index] for index in sorted(self._finish_reasons))

    @property
    def generated(self) -> tuple[str, ...]:
        return tuple("".join(self._texts[index]) for index in sorted(self._texts))

    @property
    def complete(self) -> bool:
        if self._failed:
            return False
        if self._said_done:
            return True
        expected = self._call.body.get("n") or 1
        return len(self._finish_reasons) >= expected and self._finish_reasons.keys() >= self._texts.keys()

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
        if pending and pending[-1].data.strip() != "[DONE]":
            # The last event lacks its blank line: whole if it is JSON, else what a cut has left.
            try:
                json_text.parse_provider(pending[-1].data)
            except ValueError:
                del pending[-1]
        return self._take_all(pending)

    def usage_chunk(self, usage: TokenUsage | None = None, **fields: Any) -> Chunk:
        reported = self._usage_reported
        if self.usage is None:
            reported = openai_usage(usage) if usage is not None else None
        return Chunk({**self._head, "choices": [], "usage": reported, **fields})

    def _take_all(self, events: list[ServerSentEvent]) -> list[StreamEvent]:
        taken: list[StreamEvent] = []
        for event in events:
            result = self._take(event)
            if result is not None:
                taken.append(result)
            if self._said_done or self._failed:
                break
        return taken

    def _take(self, event: ServerSentEvent) -> StreamEvent | None:
        text = event.data.strip()
        if not text:
            return None
        if text == "[DONE]":
            self._said_done = True
            return StreamDone()
        try:
            chunk = json_text.parse_provider(text)
        except ValueError as error:
            return self._fail(unreadable(self._call, f"a chunk that is not JSON: {error}"))
        if not isinstance(chunk, dict):
            return self._fail(unreadable(self._call, f"a chunk that is a JSON {type(chunk).__name__}"))
        return self._take_chunk(chunk, text, is_error=event.event == "error")

    def _take_chunk(self, chunk: dict[str, Any], text: str, *, is_error: bool) -> StreamEvent | None:
        usage = self._take_usage(chunk)
        if is_error or chunk.get("error"):
            return self._fail(error_in_body(self._call, chunk))
        if not self._head:
            self._head = {
                name: value for name, value in chunk.items() if name not in {"choices", "usage", "x_groq"}
            }
        choices = chunk.get("choices")
        if choices == [] and usage is not None:
            return None
        changed = False
        for choice in choices if isinstance(choices, list) else []:
            changed = _put_right(choice) or changed
            self._take_choice(choice)
        return self._pass_on(chunk, None if changed else text)

    def _take_usage(self, chunk: dict[str, Any]) -> dict[str, Any] | None:
        reported = chunk.get("usage")
        if not isinstance(reported, dict):
            groq = chunk.get("x_groq")
            nested = groq.get("usage") if isinstance(groq, dict) else None
            usage = read_usage(nested)
            if usage is not None:
                self._usage, self._usage_reported = usage, nested
            return None
        usage = read_usage(reported, reasoning_apart=self._call.provider.reasoning_apart)
        if usage is not None:
            self._usage, self._usage_reported = usage, reported
            self._cost = read_cost(reported)
        return reported

    def _take_choice(self, choice: Any) -> None:
        if not isinstance(choice, dict):
            return
        index = choice.get("index")
        index = index if isinstance(index, int) else 0
        texts = self._texts.setdefault(index, [])
        texts.extend(_texts(choice.get("delta")))
        reason = choice.get("finish_reason")
        if isinstance(reason, str) and reason:
            self._finish_reasons[index] = reason

    def _pass_on(self, chunk: dict[str, Any], raw: str | None) -> Chunk:
        if "usage" in chunk:
            if not self._call.wants_usage:
                del chunk["usage"]
                # OpenAI's own position for it; cutting the text spares encoding each chunk anew. The brace
                # that ends the text closes the outermost object, so this is no other object's usage.
                cut = raw is not None and raw.endswith(_USAGE_NULL_AT_END)
                raw = f"{raw[: -len(_USAGE_NULL_AT_END)]}}}" if raw is not None and cut else None
            elif chunk["usage"] is not None:
                chunk["usage"] = None
                raw = None
        if raw is not None and ("\n" in raw or "NaN" in raw or "Infinity" in raw):
            raw = None
        return Chunk(chunk, raw)

    def _fail(self, error: ProviderError) -> StreamFailed:
        self._failed = True
        return StreamFailed(error)


def _unpriced(call: ProviderCall) -> list[str]:
    """Return the parameters to leave out, as what they buy has no price here.

    Raises Unprocessable (422) where they may not be left out, and for tools that the provider runs itself.
    """
    body = call.body
    for index, tool in enumerate(body.get("tools") or []):
        if tool["type"] not in _CLIENTS_TOOLS:
            raise unsupported_content(call, f"tools.{index}", "tools of its own here: they have no price")
    found = [name for name in _SOLD_APART if body.get(name) is not None]
    if not _is_free(body.get("plugins")):
        found.append("plugins")
    if body.get("service_tier") not in (None, *call.provider.service_tiers):
        found.append("service_tier")
    for name in found:
        refuse_parameter(call, name, "what it costs has no price here")
    return found


def _lacking(call: ProviderCall) -> list[str]:
    """Return the parameters to leave out, as the provider has none of the name.

    Raises Unprocessable (422) for one that asks for something and may not be left out.
    """
    found = list(call.provider.lacks)
    for name in _OTHER_BOUNDS:
        if call.body.get(name) is not None:
            refuse_parameter(call, name, "what is held goes by max_tokens and n")
            found.append(name)
    for name in call.provider.lacks & call.body.keys():
        value = call.body[name]
        # Not `in`: a seed of 0 is equal to False.
        if not (value is None or value is False or value in ({}, "auto", "default")):
            refuse_parameter(call, name)
    return found


def _by_its_older_role(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message with the role `system` where it has that which took its place."""
    return {**message, "role": "system"} if message.get("role") == "developer" else message


def _leave_asides(call: ProviderCall, body: dict[str, Any], asides: Collection[str]) -> None:
    """Leave out of the messages and tools what only other providers know.

    Raises Unprocessable (422) for images that a model has made: they are content, and can't be told.
    """
    body.pop("cache_control", None)
    for name in ("messages", "tools"):
        if body.get(name):
            body[name] = [_plain(each, asides) for each in body[name]]
    for index, message in enumerate(body.get("messages") or []):
        if message.pop("images", None):
            raise unsupported_content(call, f"messages.{index}.images", "images that a model has made")


def _plain(given: Mapping[str, Any], asides: Collection[str]) -> dict[str, Any]:
    """Return a message, a part of one, a call or a tool without asides, and without what is null beside."""
    plain = {
        name: value
        for name, value in given.items()
        if name not in asides and (value is not None or name == "content")
    }
    for name in ("content", "tool_calls"):
        if isinstance(plain.get(name), list):
            plain[name] = [_plain(each, asides) for each in plain[name]]
    return plain


def _is_free(plugins: Any) -> bool:
    """Return whether OpenRouter takes nothing for these plugins."""
    return not plugins or (
        isinstance(plugins, list)
        and all(isinstance(plugin, dict) and plugin.get("id") in _FREE_PLUGINS for plugin in plugins)
    )


def openai_finish_reason(reason: Any) -> str | None:
    """Return OpenAI's word for why an answer ended, None while it has not; an unknown word stays as it is."""
    if not isinstance(reason, str) or not reason:
        # TGI's text completions have an empty one until the end.
        return None
    return "stop" if reason in _DONE_REASONS else reason


def _put_right(choice: Any) -> bool:
    """Give a choice OpenAI's finish reason; return whether that changes it."""
    if not isinstance(choice, dict) or "finish_reason" not in choice:
        return False
    said, choice["finish_reason"] = choice["finish_reason"], openai_finish_reason(choice["finish_reason"])
    return bool(said != choice["finish_reason"])


def read_usage(reported: Any, *, reasoning_apart: bool = False) -> TokenUsage | None:
    """Return OpenAI's usage object in disjoint classes; None where it makes no sense.

    `prompt_tokens` holds the cached, cache-writing, audio and image tokens, each taken out in this order;
    DeepSeek names the cached ones `prompt_cache_hit_tokens`. Where the parts exceed the whole, the later
    part is cut to what is left of it. `completion_tokens` holds the reasoning tokens, unless the total says
    otherwise (or `reasoning_apart` does, and the total is no witness to the contrary): then they are added.

    A count that is negative, broken, a string or beyond MAX_PLAUSIBLE_TOKENS is treated as not told. With no
    prompt count, or none of the answer, there is no usage. No prompt is empty: 0 counts as not told, too.
    """
    if not isinstance(reported, dict):
        return None
    total = token_count(reported.get("total_tokens"))
    cache_hits = token_count(reported.get("prompt_cache_hit_tokens"))
    cache_misses = token_count(reported.get("prompt_cache_miss_tokens"))
    prompt = token_count(reported.get("prompt_tokens"))
    if prompt is None and cache_hits is not None and cache_misses is not None:
        prompt = cache_hits + cache_misses
    if not prompt:
        return None
    completion = token_count(reported.get("completion_tokens"))
    if completion is None:
        if total is None or total < prompt:
            return None
        completion = total - prompt

    sent = _details(reported, "prompt_tokens_details")
    cached = token_count(sent.get("cached_tokens"))
    parts: list[int | None] = []
    rest = prompt
    for told in (
        cache_hits if cached is None else cached,
        token_count(sent.get("cache_write_tokens")),
        token_count(sent.get("audio_tokens")),
        token_count(sent.get("image_tokens")),
    ):
        part = None if told is None else min(told, rest)
        rest -= part or 0
        parts.append(part)

    made = _details(reported, "completion_tokens_details")
    reasoning = token_count(made.get("reasoning_tokens"))
    if reasoning:
        inside, outside = prompt + completion, prompt + completion + reasoning
        if total == outside or (reasoning_apart and total != inside):
            completion += reasoning
    audio = token_count(made.get("audio_tokens"))
    audio = None if audio is None else min(audio, completion)
    image = token_count(made.get("image_tokens"))
    image = None if image is None else min(image, completion - (audio or 0))
    output = completion - (audio or 0) - (image or 0)
    return TokenUsage(
        input=rest,
        cached_input=parts[0],
        cache_write=parts[1],
        audio_input=parts[2],
        image_input=parts[3],
        output=output,
        audio_output=audio,
        image_output=image,
        reasoning=None if reasoning is None else min(reasoning, output),
    )


def openai_usage(usage: TokenUsage) -> dict[str, Any]:
    """Return OpenAI's usage object for counts of our own; details only where they are known."""
    reported: dict[str, Any] = {
        "prompt_tokens": usage.total_input,
        "completion_tokens": usage.total_output,
        "total_tokens": usage.total,
    }
    sent = {
        "cached_tokens": usage.cached_input,
        "cache_write_tokens": usage.cache_write,
        "cache_write_1h_tokens": usage.cache_write_1h,
        "audio_tokens": usage.audio_input,
        "image_tokens": usage.image_input,
    }
    made = {
        "reasoning_tokens": usage.reasoning,
        "audio_tokens": usage.audio_output,
        "image_tokens": usage.image_output,
    }
    for name, details in (("prompt_tokens_details", sent), ("completion_tokens_details", made)):
        known = {key: count for key, count in details.items() if count is not None}
        if known:
            reported[name] = known
    return reported


def read_cost(reported: Any) -> Decimal | None:
    """Return what the provider says that the call cost, in USD (OpenRouter's credits are dollars).

    With a key of the operator's own (BYOK) OpenRouter's `cost` is its fee alone: what the provider takes for
    the tokens comes to it.
    """
    if not isinstance(reported, dict):
        return None
    cost = _usd(reported.get("cost"))
    if cost is not None and reported.get("is_byok") is True:
        cost += _usd(_details(reported, "cost_details").get("upstream_inference_cost")) or 0
    return cost


def _usd(amount: Any) -> Decimal | None:
    if (
        isinstance(amount, bool)
        or not isinstance(amount, int | float)
        or not math.isfinite(amount)
        or amount < 0
    ):
        return None
    # Through its shortest text: Decimal(0.1) would carry the binary fraction's fifty digits.
    return Decimal(str(amount))


def token_count(value: Any) -> int | None:
    """Return a count of tokens; None where it is none, or is beyond MAX_PLAUSIBLE_TOKENS."""
    if isinstance(value, float) and value.is_integer():
        # Servers written in JavaScript or Lua may write 12 as 12.0.
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_PLAUSIBLE_TOKENS:
        return None
    return value


def _details(reported: dict[str, Any], name: str) -> dict[str, Any]:
    details = reported.get(name)
    return details if isinstance(details, dict) else {}


def credible(usage: TokenUsage | None, generated: tuple[str, ...]) -> TokenUsage | None:
    """Return the usage, or None: who says that nothing was made while text arrived has not told what was."""
    if usage is not None and usage.total_output == 0 and any(generated):
        return None
    return usage


def _texts(message: Any) -> Iterator[str]:
    """Yield everything in a message or delta that the model generated, for counting."""
    if not isinstance(message, dict):
        return
    yield from _content_texts(message.get("content"))
    reasoning = message.get("reasoning_content")
    if not isinstance(reasoning, str):
        # OpenRouter's and Groq's name for it. Some servers send both, with the same text.
        reasoning = message.get("reasoning")
    for text in (reasoning, message.get("refusal")):
        if isinstance(text, str):
            yield text
    calls = message.get("tool_calls")
    functions = (
        [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    )
    for function in (*functions, message.get("function_call")):
        if isinstance(function, dict):
            for text in (function.get("name"), function.get("arguments")):
                if isinstance(text, str):
                    yield text


def _content_texts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        # Mistral's reasoning models: [{"type": "thinking", "thinking": [{"type": "text", "text": …}]}, …].
        for part in content:
            if isinstance(part, dict):
                if isinstance(part.get("text"), str):
                    yield part["text"]
                yield from _content_texts(part.get("thinking"))


def error_in_body(call: ProviderCall, body: dict[str, Any]) -> ProviderError:
    """Read an error that came with status 200; OpenRouter's `code` is the status that it would have had."""
    error = body.get("error")
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, str) and code.isdecimal():
        code = int(code[:3])
    status = code if isinstance(code, int) and not isinstance(code, bool) and 400 <= code <= 599 else 502  # noqa: PLR2004
    return _error(call, status, body, seconds=None, excerpt=json_text.dump(body))


def _error(
    call: ProviderCall, status: int, body: Any, *, seconds: float | None, excerpt: bytes
) -> ProviderError:
    error = body.get("error") if isinstance(body, dict) else None
    error = error if isinstance(error, dict) else {}
    code = term(error.get("code"))
    return provider_error(
        call,
        status,
        _fault(status, body, error),
        said=_said(body),
        terms=(term(error.get("type")), code),
        code=code,
        param=short(error.get("param")),
        retry_after=seconds,
        excerpt=excerpt,
    )


def _fault(status: int, body: Any, error: dict[str, Any]) -> Fault:
    if status == 429 and "insufficient_quota" in (error.get("code"), error.get("type")):  # noqa: PLR2004
        # OpenAI's word for credit that has run out: no waiting helps.
        return Fault.OPERATOR
    if status == 404 and error.get("code") == "model_not_found":  # noqa: PLR2004
        # The model's name there is the operator's setting.
        return Fault.OPERATOR
    # 424 is TGI's word for a generation that failed, 498 Groq's for capacity that its tier flex has not.
    if status in {408, 424, 429, 498} or status >= 500:  # noqa: PLR2004
        return Fault.TRANSIENT
    if status in {401, 402, 403}:
        # OpenRouter's 403 is about the prompt where its moderation says what it flagged.
        metadata = error.get("metadata")
        flagged = isinstance(metadata, dict) and "flagged_input" in metadata
        return Fault.CLIENT if flagged else Fault.OPERATOR
    if status < 400 or (status in {404, 405} and not isinstance(body, dict)):  # noqa: PLR2004
        # A redirect, or a page instead of an API: the service's base URL is wrong.
        return Fault.OPERATOR
    return Fault.CLIENT


def _said(body: Any) -> str:
    """Return the text of an error: OpenAI's shape, Mistral's, FastAPI's, or a plain string."""
    for _ in range(4):
        if not isinstance(body, dict):
            break
        body = next((body[name] for name in ("error", "message", "detail") if body.get(name)), None)
    if isinstance(body, list):
        entries = [entry for entry in body if isinstance(entry, dict)][:8]
        return "; ".join(
            f"{json_text.dotted(tuple(entry.get('loc') or ()))}: {entry.get('msg')}"
            if isinstance(entry.get("loc"), list)
            else str(entry.get("msg") or entry.get("message") or "")
            for entry in entries
        )
    return body if isinstance(body, str) else ""


OPENAI_COMPATIBLE: ChatWire = OpenAICompatibleWire()
