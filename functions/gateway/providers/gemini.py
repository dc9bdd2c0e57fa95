"""Google's Gemini API, natively: generateContent, and streamGenerateContent as server-sent events.

A request is translated in `gemini_request`. What is read here was looked up in November 2026:
https://ai.google.dev/api/generate-content and, of ai.google.dev/gemini-api/docs, thinking, image-generation,
thought-signatures and troubleshooting.

What a model thought goes out as `reasoning_content`; its signatures in `extra_content`, as Google's own
endpoint in OpenAI's shape has them; images in `images`, as OpenRouter has them. Sent back in the next turn,
both let the model go on from its thoughts and its images.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from gateway import json_text
from gateway.providers.failures import client_code, provider_error, retry_after, term, unreadable
from gateway.providers.gemini_request import build_body
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
    StreamEvent,
    StreamFailed,
    UpstreamRequest,
)
from gateway.schemas.usage import TokenUsage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from decimal import Decimal

    from gateway.providers.sse import ServerSentEvent

# What else ends an answer (a call that could not be read, no image) has no word at OpenAI, and is "stop".
_FINISH_REASONS = {
    "MAX_TOKENS": "length",
    # The limit of one request of Gemini 4, below that of the model.
    "CONTINUATION": "length",
    "SAFETY": "content_filter",
    "RECITATION": "content_filter",
    "LANGUAGE": "content_filter",
    "BLOCKLIST": "content_filter",
    "PROHIBITED_CONTENT": "content_filter",
    "SPII": "content_filter",
    "IMAGE_SAFETY": "content_filter",
    "IMAGE_PROHIBITED_CONTENT": "content_filter",
    "IMAGE_RECITATION": "content_filter",
    "ESCALATION": "content_filter",
    "PUP_LIMITED_DISABLED": "content_filter",
    "MODEL_ARMOR": "content_filter",
}
# Of status 400, and about our key: said as the 401 that it is everywhere else.
_KEY_REASONS = frozenset({"API_KEY_INVALID", "API_KEY_EXPIRED"})
_ABOUT_THE_KEY = ("api key not valid", "api key expired", "api key not found")
_BAD_REQUEST, _UNAUTHORIZED = 400, 401
_MAX_EVENT_BYTES = 64 * 1024 * 1024
"""One event holds a whole image: of 4096 x 4096 in base64, some 30 MB."""


class GeminiWire:
    """generateContent, plain and streamed."""

    name = "gemini"

    def build_request(self, call: ProviderCall) -> UpstreamRequest:
        """Return the call as a request for content.

        Raises Unprocessable (422) naming what the API can't be told, and ProviderError (operator) where the
        key is missing or unusable.
        """
        method = "streamGenerateContent?alt=sse" if call.stream else "generateContent"
        return UpstreamRequest(
            method="POST",
            url=f"{model_url(call)}:{method}",
            headers=request_headers(call),
            content=json_text.dump(build_body(call)),
        )

    def parse_answer(self, call: ProviderCall, content: bytes) -> Answer:
        body = read_body(call, content)
        candidates = read_candidates(body)
        if not candidates:
            raise unreadable(call, "an answer without candidates")
        head = _head(call, body)
        choices = _Choices(head["id"])
        answered = []
        for candidate in candidates:
            choice = choices.of(candidate)
            delta = choice.take(candidate)
            answered.append(_whole(choice, delta, candidate))
        reported = body.get("usageMetadata")
        usage = credible(read_usage(reported, images=choices.images), choices.generated)
        answer = {"object": "chat.completion", **head, "choices": answered}
        if usage is not None:
            answer["usage"] = openai_usage(usage)
        return Answer(
            body=answer, usage=usage, finish_reasons=choices.finish_reasons, generated=choices.generated
        )

    def parse_error(
        self, call: ProviderCall, status: int, headers: Mapping[str, str], content: bytes
    ) -> ProviderError:
        try:
            body = json_text.parse_provider(content)
        except ValueError:
            body = None
        return _error(call, status, body, seconds=retry_after(headers), excerpt=content)

    def open_stream(self, call: ProviderCall) -> GeminiStream:
        return GeminiStream(call)

    def build_list_request(self, call: ProviderCall) -> UpstreamRequest:
        """Return GET /models, of one page: there is room for a thousand."""
        headers = {name: value for name, value in request_headers(call).items() if name != "content-type"}
        return UpstreamRequest(
            method="GET",
            url=f"{call.base_url.rstrip('/')}/models?pageSize=1000",
            headers=headers,
            content=b"",
        )

    def parse_list(self, content: bytes) -> frozenset[str] | None:
        try:
            body = json_text.parse_provider(content)
        except ValueError:
            return None
        entries = body.get("models") if isinstance(body, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            return None
        names = (entry.get("name") for entry in entries)
        return frozenset(name.removeprefix("models/") for name in names if isinstance(name, str))


def model_url(call: ProviderCall) -> str:
    """Return the address of the call's model; `tunedModels/…` and the like are addresses of their own."""
    name = call.model if "/" in call.model else f"models/{call.model}"
    return f"{call.base_url.rstrip('/')}/{quote(name)}"


def read_body(call: ProviderCall, content: bytes) -> dict[str, Any]:
    """Return the object of a 2xx answer. Raises ProviderError where it is none, or an error."""
    try:
        body = json_text.parse_provider(content)
    except ValueError as error:
        raise unreadable(call, f"not JSON: {error}") from None
    if not isinstance(body, dict):
        raise unreadable(call, f"a JSON {type(body).__name__} where an object belongs")
    if body.get("error"):
        raise _reported(call, body)
    return body


def read_candidates(body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the candidates of an answer.

    A prompt that was blocked has none, though its tokens are told: it makes a candidate that was filtered.
    """
    candidates = body.get("candidates")
    read = [entry for entry in candidates if isinstance(entry, dict)] if isinstance(candidates, list) else []
    feedback = _dict(body.get("promptFeedback"))
    reason = feedback.get("blockReason")
    if not read and isinstance(reason, str):
        return [{"blockReason": reason, "finishMessage": feedback.get("blockReasonMessage")}]
    return read


def read_parts(candidate: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the parts of a candidate's content."""
    parts = _dict(candidate.get("content")).get("parts")
    for part in parts if isinstance(parts, list) else []:
        if isinstance(part, dict):
            yield part


def native_reason(candidate: dict[str, Any]) -> str | None:
    """Return why a candidate ended, as Gemini says it; None while it has not."""
    reason = candidate.get("blockReason") or candidate.get("finishReason")
    return reason if isinstance(reason, str) and reason != "FINISH_REASON_UNSPECIFIED" else None


class _Choice:
    """One candidate, as far as it has come. Plain answers and streams are read by the same hand."""

    def __init__(self, answer_id: str, index: int) -> None:
        self.index = index
        self.finish_reason: str | None = None
        self.generated: list[str] = []
        self.images = 0
        self._answer_id = answer_id
        self._calls = 0
        self._signature: str | None = None
        self._citations: list[Any] = []

    def take(self, candidate: dict[str, Any]) -> dict[str, Any]:
        """Return what a candidate says as OpenAI's delta: empty where it says nothing."""
        texts: dict[str, list[str]] = {"reasoning_content": [], "content": []}
        lists: dict[str, list[dict[str, Any]]] = {"tool_calls": [], "images": [], "citations": []}
        for part in read_parts(candidate):
            thought = part.get("thought") is True
            text, called, data = part.get("text"), part.get("functionCall"), part.get("inlineData")
            if isinstance(text, str) and text:
                texts["reasoning_content" if thought else "content"].append(text)
                self.generated.append(text)
            if isinstance(called, dict):
                lists["tool_calls"].append(_signed(self._call(called), part))
            elif isinstance(data, dict):
                # What it drew while it thought is neither its answer nor paid for.
                if not thought:
                    lists["images"].append(_signed(self._image(data), part))
            elif isinstance(part.get("thoughtSignature"), str):
                self._signature = part["thoughtSignature"]
        lists["citations"] = self._cited(candidate)
        delta: dict[str, Any] = {name: "".join(pieces) for name, pieces in texts.items() if pieces}
        delta |= {name: entries for name, entries in lists.items() if entries}
        self._finish(candidate, delta)
        return delta

    def _call(self, called: dict[str, Any]) -> dict[str, Any]:
        name, arguments = _string(called.get("name")), _json(called.get("args"))
        self.generated += [name, arguments]
        number, self._calls = self._calls, self._calls + 1
        call_id = called.get("id")
        if not isinstance(call_id, str) or not call_id:
            seed = f"{self._answer_id}/{self.index}/{number}"
            call_id = f"call_{hashlib.sha256(seed.encode()).hexdigest()[:24]}"
        return {
            "index": number,
            "id": call_id,
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }

    def _image(self, data: dict[str, Any]) -> dict[str, Any]:
        number, self.images = self.images, self.images + 1
        url = f"data:{_string(data.get('mimeType'))};base64,{_string(data.get('data'))}"
        return {"index": number, "type": "image_url", "image_url": {"url": url}}

    def _cited(self, candidate: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the sources that were not told before: a stream may tell them again."""
        metadata = _dict(candidate.get("citationMetadata"))
        told = metadata.get("citationSources") or metadata.get("citations")
        fresh = []
        for source in told if isinstance(told, list) else []:
            if isinstance(source, dict) and source not in self._citations:
                fresh.append({"index": len(self._citations), **source})
                self._citations.append(source)
        return fresh

    def _finish(self, candidate: dict[str, Any], delta: dict[str, Any]) -> None:
        reason = native_reason(candidate)
        if reason is None:
            return
        if candidate.get("blockReason"):
            self.finish_reason = "content_filter"
        elif reason == "STOP" and self._calls:
            self.finish_reason = "tool_calls"
        else:
            self.finish_reason = _FINISH_REASONS.get(reason, "stop")
        message = candidate.get("finishMessage")
        if self.finish_reason == "content_filter" and isinstance(message, str) and message:
            delta["refusal"] = message
        if self._signature is not None:
            # Held back until here: the last one counts, and clients join what they are told twice.
            delta["extra_content"] = {"google": {"thought_signature": self._signature}}
            self._signature = None


class _Choices:
    """The candidates of one answer, by their index."""

    def __init__(self, answer_id: str) -> None:
        self._answer_id = answer_id
        self._choices: dict[int, _Choice] = {}

    def of(self, candidate: dict[str, Any]) -> _Choice:
        index = candidate.get("index")
        index = index if isinstance(index, int) else 0
        if index not in self._choices:
            self._choices[index] = _Choice(self._answer_id, index)
        return self._choices[index]

    def _sorted(self) -> list[_Choice]:
        return [self._choices[index] for index in sorted(self._choices)]

    @property
    def images(self) -> int:
        return sum(choice.images for choice in self._choices.values())

    @property
    def generated(self) -> tuple[str, ...]:
        return tuple("".join(choice.generated) for choice in self._sorted())

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        return tuple(choice.finish_reason for choice in self._sorted() if choice.finish_reason)

    def all_finished(self, expected: int) -> bool:
        """Whether each of so many choices has ended; a prompt that was blocked has but one."""
        reasons = [choice.finish_reason for choice in self._choices.values()]
        return None not in reasons and len(reasons) >= expected


class GeminiStream:
    """One streamed answer: each event is a part of the answer in the shape of a whole one.

    There is no mark of the end: it is whole once every choice has finished. Usage is cumulative, and told
    with each event: the latest counts.
    """

    def __init__(self, call: ProviderCall) -> None:
        self._call = call
        self._decoder = SSEDecoder(max_event_bytes=_MAX_EVENT_BYTES)
        self._head: dict[str, Any] = {}
        self._choices = _Choices("")
        self._begun: set[int] = set()
        self._reported: Any = None
        self._blocked = False
        self._failed = False

    @property
    def usage(self) -> TokenUsage | None:
        return credible(read_usage(self._reported, images=self._choices.images), self.generated)

    @property
    def input_usage(self) -> TokenUsage | None:
        told = read_usage(self._reported)
        if told is None:
            return None
        return replace(told, output=0, audio_output=None, image_output=None, reasoning=None)

    @property
    def reported_cost_usd(self) -> Decimal | None:
        return None

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        return self._choices.finish_reasons

    @property
    def generated(self) -> tuple[str, ...]:
        return self._choices.generated

    @property
    def complete(self) -> bool:
        expected = 1 if self._blocked else self._call.body.get("n") or 1
        return not self._failed and self._choices.all_finished(expected)

    def feed(self, data: bytes) -> list[StreamEvent]:
        if self._failed:
            return []
        try:
            events = self._decoder.feed(data)
        except EventTooLargeError as error:
            return [self._fail(unreadable(self._call, str(error)))]
        return self._take_all(events)

    def close(self) -> list[StreamEvent]:
        if self._failed:
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
        head = self._head or _head(self._call, {})
        return Chunk({"object": "chat.completion.chunk", **head, "choices": [], "usage": reported, **fields})

    def _take_all(self, events: list[ServerSentEvent]) -> list[StreamEvent]:
        taken: list[StreamEvent] = []
        for event in events:
            taken += self._take(event)
            if self._failed:
                break
        return taken

    def _take(self, event: ServerSentEvent) -> list[StreamEvent]:
        try:
            said = json_text.parse_provider(event.data)
        except ValueError as error:
            return [self._fail(unreadable(self._call, f"an event that is not JSON: {error}"))]
        if not isinstance(said, dict):
            return [self._fail(unreadable(self._call, f"an event that is a JSON {type(said).__name__}"))]
        if said.get("error"):
            return [self._fail(_reported(self._call, said))]
        if not self._head:
            self._head = _head(self._call, said)
            self._choices = _Choices(self._head["id"])
        reported = said.get("usageMetadata")
        if read_usage(reported) is not None:
            # Some events tell a tier alone.
            self._reported = reported
        candidates = read_candidates(said)
        self._blocked = self._blocked or any("blockReason" in candidate for candidate in candidates)
        chunks = (self._chunk(candidate) for candidate in candidates)
        return [chunk for chunk in chunks if chunk is not None]

    def _chunk(self, candidate: dict[str, Any]) -> Chunk | None:
        choice = self._choices.of(candidate)
        delta = choice.take(candidate)
        reason = native_reason(candidate)
        if not delta and reason is None:
            return None
        if choice.index not in self._begun:
            self._begun.add(choice.index)
            delta = {"role": "assistant", **delta}
        streamed: dict[str, Any] = {
            "index": choice.index,
            "delta": delta,
            "logprobs": _logprobs(candidate),
            "finish_reason": choice.finish_reason if reason is not None else None,
        }
        if reason is not None:
            streamed["native_finish_reason"] = reason
        chunk = {"object": "chat.completion.chunk", **self._head, "choices": [streamed]}
        if self._call.wants_usage:
            chunk["usage"] = None
        return Chunk(chunk)

    def _fail(self, error: ProviderError) -> StreamFailed:
        self._failed = True
        return StreamFailed(error)


def _head(call: ProviderCall, body: dict[str, Any]) -> dict[str, Any]:
    answer_id = body.get("responseId")
    return {
        "id": answer_id if isinstance(answer_id, str) and answer_id else f"gen-{secrets.token_hex(12)}",
        "created": int(time.time()),
        "model": body.get("modelVersion") or call.model,
    }


def _whole(choice: _Choice, delta: dict[str, Any], candidate: dict[str, Any]) -> dict[str, Any]:
    """Return a choice of a plain answer."""
    calls = delta.get("tool_calls")
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if calls else "",
        "refusal": None,
        **delta,
    }
    if calls:
        message["tool_calls"] = [
            {name: value for name, value in call.items() if name != "index"} for call in calls
        ]
    return {
        "index": choice.index,
        "message": message,
        "logprobs": _logprobs(candidate),
        "finish_reason": choice.finish_reason,
        "native_finish_reason": native_reason(candidate),
    }


def read_usage(reported: Any, *, images: int = 0) -> TokenUsage | None:
    """Return the API's usage in disjoint classes; None where it makes no sense.

    `promptTokenCount` holds what came from a cache; `toolUsePromptTokenCount` and `thoughtsTokenCount` stand
    beside the others' counts, unless the total says that the thoughts are inside the candidates'. Counts of
    zero are not written. Video and documents are charged as text is. `images` is how many were made: what the
    breakdown leaves open then counts as images, which are the dearest.
    """
    if not isinstance(reported, dict):
        return None
    names = ("promptTokenCount", "candidatesTokenCount", "toolUsePromptTokenCount", "totalTokenCount")
    counts = [token_count(reported.get(name) or 0) for name in names]
    prompt, made, tools, total = counts
    if not prompt or made is None or tools is None:
        return None
    thought = token_count(reported.get("thoughtsTokenCount"))
    if thought and thought <= made and total == prompt + made + tools:
        made -= thought
    cached = token_count(reported.get("cachedContentTokenCount"))
    cached = None if cached is None else min(cached, prompt)
    rest = prompt - (cached or 0)
    sent = _by_modality(reported.get("promptTokensDetails"))
    if sum(sent.values()) > rest:
        # The breakdown holds what was cached, whose parts are charged as cached.
        kept = _by_modality(reported.get("cacheTokensDetails"))
        sent = {name: max(count - kept.get(name, 0), 0) for name, count in sent.items()}
    audio = min(sent["AUDIO"], rest) if "AUDIO" in sent else None
    image = min(sent["IMAGE"], rest - (audio or 0)) if "IMAGE" in sent else None
    drawn = _by_modality(reported.get("candidatesTokensDetails"))
    if images and "IMAGE" not in drawn:
        drawn["IMAGE"] = max(made - sum(drawn.values()), 0)
    image_output = min(drawn["IMAGE"], made) if "IMAGE" in drawn else None
    audio_output = min(drawn["AUDIO"], made - (image_output or 0)) if "AUDIO" in drawn else None
    return TokenUsage(
        input=rest - (audio or 0) - (image or 0) + tools,
        cached_input=cached,
        audio_input=audio,
        image_input=image,
        output=made - (image_output or 0) - (audio_output or 0) + (thought or 0),
        audio_output=audio_output,
        image_output=image_output,
        reasoning=thought,
        images=images or None,
    )


def _by_modality(details: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for entry in details if isinstance(details, list) else []:
        modality, count = _dict(entry).get("modality"), token_count(_dict(entry).get("tokenCount", 0))
        if isinstance(modality, str) and count is not None:
            counts[modality] = counts.get(modality, 0) + count
    return counts


def _logprobs(candidate: dict[str, Any]) -> dict[str, Any] | None:
    result = _dict(candidate.get("logprobsResult"))
    chosen, tops = result.get("chosenCandidates"), result.get("topCandidates")
    if not isinstance(chosen, list):
        return None
    alternatives = [_dict(top).get("candidates") for top in tops] if isinstance(tops, list) else []
    content = []
    for position, token in enumerate(chosen):
        others = alternatives[position] if position < len(alternatives) else None
        others = others if isinstance(others, list) else []
        content.append({**_logprob(token), "top_logprobs": [_logprob(other) for other in others]})
    return {"content": content, "refusal": None}


def _logprob(entry: Any) -> dict[str, Any]:
    token = _string(_dict(entry).get("token"))
    logprob = _dict(entry).get("logProbability", 0.0)
    return {"token": token, "logprob": logprob, "bytes": list(token.encode("utf-8", "replace"))}


def _reported(call: ProviderCall, body: dict[str, Any]) -> ProviderError:
    """Read an error that came with status 200, or inside a stream; its code is what the status would be."""
    code = _dict(body.get("error")).get("code")
    status = code if isinstance(code, int) and 400 <= code <= 599 else 502  # noqa: PLR2004
    return _error(call, status, body, seconds=None, excerpt=json_text.dump(body))


def _error(
    call: ProviderCall, status: int, body: Any, *, seconds: float | None, excerpt: bytes
) -> ProviderError:
    if isinstance(body, list) and body:
        # streamGenerateContent without server-sent events wraps all that it says in a list.
        body = body[0]
    error = _dict(_dict(body).get("error"))
    said = _string(error.get("message"))
    details = error.get("details")
    entries = [entry for entry in details if isinstance(entry, dict)] if isinstance(details, list) else []
    reason = next((entry["reason"] for entry in entries if isinstance(entry.get("reason"), str)), None)
    for entry in entries:
        delay = entry.get("retryDelay")
        if seconds is None and isinstance(delay, str):
            seconds = retry_after({"retry-after": delay.removesuffix("s")})
    lowered = said.lower()
    if status == _BAD_REQUEST and (
        reason in _KEY_REASONS or any(words in lowered for words in _ABOUT_THE_KEY)
    ):
        status = _UNAUTHORIZED
    return provider_error(
        call,
        status,
        _fault(status, error.get("status")),
        said=said,
        terms=(term(error.get("status")), term(reason)),
        code=client_code(said) or ("request_too_large" if status == 413 else None),  # noqa: PLR2004
        retry_after=seconds,
        excerpt=excerpt,
    )


def _fault(status: int, name: Any) -> Fault:
    if status in {408, 429} or status >= 500:  # noqa: PLR2004
        return Fault.TRANSIENT
    # FAILED_PRECONDITION: billing, or the country that we call from. 404: the model's name there is ours.
    if name in {"FAILED_PRECONDITION", "PERMISSION_DENIED", "UNAUTHENTICATED", "NOT_FOUND"}:
        return Fault.OPERATOR
    return Fault.OPERATOR if status < 400 or status in {401, 402, 403, 404, 405} else Fault.CLIENT  # noqa: PLR2004


def _signed(entry: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    signature = part.get("thoughtSignature")
    if not isinstance(signature, str):
        return entry
    return {**entry, "extra_content": {"google": {"thought_signature": signature}}}


def _json(value: Any) -> str:
    return json.dumps(_dict(value), ensure_ascii=False)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""


GEMINI: ChatWire = GeminiWire()
