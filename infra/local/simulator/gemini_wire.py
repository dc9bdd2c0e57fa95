"""Gemini's wire: generateContent and streamGenerateContent, embeddings, and the list of models."""

from __future__ import annotations

import base64
import itertools
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from infra.local.simulator.answers import answer, count_tokens, embedding, picture, read_arguments, signature
from infra.local.simulator.behaviour import NAMES
from infra.local.simulator.endpoint import Refusal, event, interrupted
from infra.local.simulator.gemini_request import (
    BatchEmbedContentsRequest,
    EmbedContentRequest,
    InvalidArgumentError,
    parse_request,
    prompt_tokens,
    read_question,
    validated,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from infra.local.simulator.answers import Choice, Question
    from infra.local.simulator.behaviour import Behaviour
    from infra.local.simulator.endpoint import Asked, Wire
    from infra.local.simulator.gemini_request import GenerateContentRequest

WIRE = "gemini"
VERSIONS = ("v1beta", "v1")
"""Google's own SDK speaks v1 since its third major version; the REST pages still say v1beta."""
_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    402: "FAILED_PRECONDITION",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    413: "INVALID_ARGUMENT",
    422: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_BAD_REQUEST, _FORBIDDEN, _NOT_FOUND, _TOO_MANY = 400, 403, 404, 429
_IMAGE_TOKENS = 1290  # of one image of up to 1024 by 1024, says Google's price list
_DIMENSIONS = 3072
_TYPE = "type.googleapis.com/google.rpc."


def refuse(status: int, message: str, *, details: tuple[dict[str, Any], ...] = ()) -> Refusal:
    """Return an HTTP error in Google's shape."""
    return Refusal(status, _error(status, message, details))


def _error(status: int, message: str, details: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    error: dict[str, Any] = {
        "code": status,
        "message": message,
        "status": _STATUSES.get(status, "INTERNAL" if status >= 500 else "UNKNOWN"),  # noqa: PLR2004
    }
    return {"error": {**error, "details": list(details)} if details else error}


def check_key(asked: Asked, key: str | None) -> None:
    """Refuse a key that is wrong, or elsewhere than in its header: a key in an address is in every log."""
    if "key" in parse_qs(asked.query) or (key is not None and key in asked.url) or not asked.key:
        raise refuse(
            _FORBIDDEN,
            "Method doesn't allow unregistered callers (callers without established identity). Please use "
            "API Key "
            "or other form of API consumer identity to call this API.",
        )
    if key is not None and asked.key != key:
        info = {
            "@type": f"{_TYPE}ErrorInfo",
            "reason": "API_KEY_INVALID",
            "domain": "googleapis.com",
            "metadata": {"service": "generativelanguage.googleapis.com"},
        }
        raise refuse(_BAD_REQUEST, "API key not valid. Please pass a valid API key.", details=(info,))


def model_list() -> dict[str, Any]:
    """Return what GET /models answers."""
    methods = ["generateContent", "countTokens", "embedContent"]
    return {
        "models": [
            {
                "name": f"models/{name}",
                "version": "001",
                "displayName": f"Simulator {name}",
                "inputTokenLimit": 1_048_576,
                "outputTokenLimit": 65_536,
                "supportedGenerationMethods": methods,
            }
            for name in NAMES
        ]
    }


@dataclass(frozen=True, slots=True)
class GeneratedContent:
    """An answered request, ready to be written plain or as a stream."""

    number: int
    model: str
    request: GenerateContentRequest
    question: Question
    behaviour: Behaviour
    choices: tuple[Choice, ...]
    as_events: bool

    @property
    def _makes_image(self) -> bool:
        wanted = self.request.generation_config.response_modalities
        return self.behaviour.makes_image and (not wanted or "IMAGE" in wanted)

    @property
    def usage(self) -> dict[str, Any]:
        """Google's usage: the prompt's count holds what was cached, the candidates' no thoughts."""
        details = prompt_tokens(self.request, self.question.given)
        prompt = sum(count for _, count in details)
        usage: dict[str, Any] = {
            "promptTokenCount": prompt,
            "totalTokenCount": prompt,
            "promptTokensDetails": _by_modality(details),
        }
        if cached := self.behaviour.cached_of(prompt):
            usage["cachedContentTokenCount"] = cached
            usage["cacheTokensDetails"] = _by_modality([("TEXT", cached)])
        if self.behaviour.is_blocked:
            return usage
        thoughts = sum(choice.reasoning_tokens for choice in self.choices)
        said = sum(choice.output_tokens for choice in self.choices) - thoughts
        image = _IMAGE_TOKENS * len(self.choices) if self._makes_image else 0
        usage["candidatesTokenCount"] = said + image
        usage["totalTokenCount"] = prompt + said + image + thoughts
        if thoughts:
            usage["thoughtsTokenCount"] = thoughts
        if image:
            usage["candidatesTokensDetails"] = _by_modality([("TEXT", said), ("IMAGE", image)])
        return usage

    @property
    def _shows_thoughts(self) -> bool:
        thinking = self.request.generation_config.thinking_config
        return thinking is not None and thinking.include_thoughts is True

    def _parts(self, index: int, choice: Choice) -> Iterator[dict[str, Any]]:
        """Yield a candidate's parts, piece by piece."""
        if self._shows_thoughts:
            for piece in choice.reasoning:
                yield {"text": piece, "thought": True}
        for piece in choice.content:
            yield {"text": piece}
        for position, call in enumerate(choice.tool_calls):
            called: dict[str, Any] = {"name": call.name, "args": read_arguments("".join(call.fragments))}
            if choice.reasoning:
                # The models that sign their thoughts are those that give each call an id.
                called = {"id": f"call_sim_{self.number}_{index}_{position}", **called}
            part: dict[str, Any] = {"functionCall": called}
            if choice.reasoning and position == 0:
                part["thoughtSignature"] = signature("thought")
            yield part
        if self._makes_image:
            data = base64.b64encode(picture(self.question.text)).decode()
            yield {"inlineData": {"mimeType": "image/png", "data": data}}

    def _finish(self, choice: Choice) -> str:
        if choice.is_filtered:
            return "SAFETY"
        return "MAX_TOKENS" if choice.is_cut else "STOP"

    def _body(self, candidates: list[dict[str, Any]], usage: dict[str, Any] | None) -> dict[str, Any]:
        body: dict[str, Any] = {"candidates": candidates} if candidates else {}
        if self.behaviour.is_blocked:
            body["promptFeedback"] = {"blockReason": "PROHIBITED_CONTENT"}
        if usage is not None and self.behaviour.tells_usage:
            body["usageMetadata"] = usage
        return {**body, "modelVersion": self.model, "responseId": f"sim{self.number}"}

    def plain(self) -> Any:
        """Return the whole answer as one object, or as the list in which it would have been streamed."""
        if self.behaviour.is_blocked:
            return self._body([], self.usage)
        candidates = [
            {
                "content": {"parts": _joined(self._parts(index, choice)), "role": "model"},
                "finishReason": self._finish(choice),
                "index": index,
            }
            for index, choice in enumerate(self.choices)
        ]
        return self._body(candidates, self.usage)

    def _chunks(self) -> Iterator[dict[str, Any]]:
        if self.behaviour.is_blocked:
            yield self._body([], self.usage)
            return
        whole = self.usage
        so_far = {
            name: whole[name] for name in ("promptTokenCount", "totalTokenCount", "promptTokensDetails")
        }
        so_far["totalTokenCount"] = so_far["promptTokenCount"]
        for index, choice in enumerate(self.choices):
            for part in self._parts(index, choice):
                yield self._body([{"content": {"parts": [part], "role": "model"}, "index": index}], so_far)
            is_last = index == len(self.choices) - 1
            content = {"parts": [{"text": ""}], "role": "model"}
            last = {"content": content, "finishReason": self._finish(choice), "index": index}
            yield self._body([last], whole if is_last else so_far)

    def events(self) -> Iterator[bytes]:
        """Yield the stream's events as bytes, with what goes wrong in them. There is no end mark."""
        if not self.as_events:
            return iter([json.dumps(list(self._chunks()), ensure_ascii=False).encode()])
        return interrupted(map(event, self._chunks()), self.behaviour, event(stream_error()))


def stream_error() -> dict[str, Any]:
    """Return the error that comes inside an answer whose status was 200."""
    return _error(503, "The model is overloaded. Please try again later.")


def _by_modality(details: list[tuple[str, int]]) -> list[dict[str, Any]]:
    return [{"modality": modality, "tokenCount": count} for modality, count in details]


def _joined(parts: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the parts of a whole answer: texts of one kind, one after the other, are one part."""
    joined: list[dict[str, Any]] = []
    for _, run in itertools.groupby(parts, lambda part: ("text" in part, part.get("thought"))):
        several = list(run)
        if "text" in several[0]:
            joined.append({**several[0], "text": "".join(part["text"] for part in several)})
        else:
            joined += several
    return joined


class _GeminiWire:
    """What all of Gemini's methods have in common."""

    name = WIRE
    request_id_header = "x-request-id"

    def key(self, asked: Asked) -> str:
        return asked.headers.get("x-goog-api-key", "")

    def model(self, asked: Asked) -> str:
        return asked.path.partition("/models/")[2].rpartition(":")[0]

    def is_streamed(self, asked: Asked) -> bool:
        return asked.path.endswith(":streamGenerateContent")

    def authenticate(self, asked: Asked, key: str | None) -> None:
        check_key(asked, key)

    def refusal(self, status: int, message: str, *, code: str | None = None) -> Refusal:
        del code  # Google has none
        details: tuple[dict[str, Any], ...] = ()
        if status == _TOO_MANY:
            details = ({"@type": f"{_TYPE}RetryInfo", "retryDelay": "1s"},)
        return refuse(status, message, details=details)

    def stream_error(self) -> Any:
        return stream_error()

    def _unknown(self, asked: Asked) -> Refusal:
        return refuse(
            _NOT_FOUND,
            f"models/{self.model(asked)} is not found for API version v1beta, or is not supported for "
            "generateContent. Call ListModels to see the list of available models and their supported "
            "methods.",
        )


class GenerateContent(_GeminiWire):
    """POST /models/{model}:generateContent and :streamGenerateContent."""

    def reply(self, asked: Asked, behaviour: Behaviour | None) -> GeneratedContent:
        try:
            request = parse_request(asked.body, behaviour)
        except InvalidArgumentError as invalid:
            raise invalid_argument(invalid) from None
        if behaviour is None:
            raise self._unknown(asked)
        if behaviour.is_too_long:
            message = (
                "The input token count (1048577) exceeds the maximum number of tokens allowed (1048576)."
            )
            raise refuse(_BAD_REQUEST, message)
        thinking = request.generation_config.thinking_config
        if thinking is not None and thinking.thinking_budget == 0:
            behaviour = replace(behaviour, reasoning_tokens=0)
        question = read_question(request)
        return GeneratedContent(
            asked.number,
            self.model(asked),
            request,
            question,
            behaviour,
            answer(question, behaviour),
            as_events=parse_qs(asked.query).get("alt") == ["sse"],
        )


def invalid_argument(invalid: InvalidArgumentError) -> Refusal:
    """Return a 400 in Google's words; those about the JSON itself name the fields apart, too."""
    violations = [{"description": line} for line in str(invalid).split("\n") if line.startswith("Invalid ")]
    bad = {"@type": f"{_TYPE}BadRequest", "fieldViolations": violations}
    return refuse(_BAD_REQUEST, str(invalid), details=(bad,) if violations else ())


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The embeddings of some contents; `is_batch` says whether they were asked for together."""

    texts: tuple[str, ...]
    dimensions: tuple[int, ...]
    behaviour: Behaviour
    is_batch: bool

    @property
    def usage(self) -> dict[str, Any]:
        count = sum(count_tokens(text) for text in self.texts)
        return {"promptTokenCount": count, "promptTokenDetails": _by_modality([("TEXT", count)])}

    def plain(self) -> dict[str, Any]:
        values = [
            {"values": embedding(text, size)} for text, size in zip(self.texts, self.dimensions, strict=True)
        ]
        body: dict[str, Any] = {"embeddings": values} if self.is_batch else {"embedding": values[0]}
        return {**body, "usageMetadata": self.usage} if self.behaviour.tells_usage else body

    def events(self) -> Iterator[bytes]:
        return iter(())


class EmbedContent(_GeminiWire):
    """POST /models/{model}:embedContent and :batchEmbedContents."""

    def reply(self, asked: Asked, behaviour: Behaviour | None) -> Embeddings:
        is_batch = asked.path.endswith(":batchEmbedContents")
        try:
            if is_batch:
                requests = validated(BatchEmbedContentsRequest, asked.body).requests
            else:
                requests = [validated(EmbedContentRequest, asked.body)]
            texts = tuple(self._text(asked, request, is_batch=is_batch) for request in requests)
        except InvalidArgumentError as invalid:
            raise invalid_argument(invalid) from None
        if behaviour is None:
            raise self._unknown(asked)
        sizes = tuple(request.output_dimensionality or _DIMENSIONS for request in requests)
        return Embeddings(texts, sizes, behaviour, is_batch)

    def _text(self, asked: Asked, request: EmbedContentRequest, *, is_batch: bool) -> str:
        if is_batch and request.model != f"models/{self.model(asked)}":
            raise InvalidArgumentError(
                "* BatchEmbedContentsRequest.model: model does not match its requests'.\n"
            )
        text = "".join(part.text or "" for part in request.content.parts)
        if not text:
            raise InvalidArgumentError("* EmbedContentRequest.content: contains an empty Part.\n")
        return text


METHODS: Mapping[str, Wire] = {
    "generateContent": GenerateContent(),
    "streamGenerateContent": GenerateContent(),
    "embedContent": EmbedContent(),
    "batchEmbedContents": EmbedContent(),
}
