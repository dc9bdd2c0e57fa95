"""Google's Gemini API for images and embeddings: generateContent and batchEmbedContents, natively.

Looked up in November 2026: ai.google.dev/gemini-api/docs/image-generation, …/embeddings and …/pricing. The
Imagen models and their `predict` are gone since August 2026.
"""

from __future__ import annotations

import math
import re
import struct
import time
from base64 import b64encode
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gateway import json_text
from gateway.providers.failures import provider_error, refuse_parameter, unreadable, unsupported_content
from gateway.providers.gemini import (
    GEMINI,
    model_url,
    native_reason,
    read_body,
    read_candidates,
    read_parts,
    read_usage,
)
from gateway.providers.gemini_request import image_part
from gateway.providers.headers import request_headers
from gateway.providers.openai_compatible import token_count
from gateway.providers.wire import EmbeddingAnswer, Fault, ImageAnswer, UpstreamRequest
from gateway.schemas.usage import TokenUsage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.providers.wire import EmbeddingWire, ImageCall, ImageWire, ProviderCall, ProviderError

# The last four came with 3.1; the models before refuse them.
_SHAPES = (
    *("1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9"),
    *("1:4", "4:1", "1:8", "8:1"),
)
_MAX_DEVIATION = 0.02
"""Of the asked shape from one that can be made: 1792 x 1024, DALL·E's widest, is not quite 16:9."""
_TOKENS = {"1K": 1290, "2K": 1680, "4K": 2520}
"""Of one image, of the model that takes the most (Google's price list)."""
_EDGES = {"1K": 1024, "2K": 2048, "4K": 4096}
_AROUND_TOKENS = 4096
"""Room for what the model thinks before it draws, and says beside it."""
_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")

_IMAGE_SEEN_TO = frozenset({"model", "models", "prompt", "size"})
_IMAGE_WITHOUT_EFFECT: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "quality": ("auto", "standard"),
    "background": ("auto", "opaque"),
    "response_format": ("b64_json",),
    "moderation": ("auto",),
    "stream": (False,),
}
_EMBEDDING_SEEN_TO = frozenset({"model", "input", "dimensions", "encoding_format"})


class GeminiImageWire:
    """Images of the models that make them beside text ("Nano Banana"), from a prompt or from images."""

    name = "gemini-images"

    def output_bound(self, body: Mapping[str, Any]) -> int:
        found = _SIZE.fullmatch(str(body.get("size")))
        return _TOKENS[_grade(int(found[1]), int(found[2])) if found else "1K"] + _AROUND_TOKENS

    def build_request(self, call: ImageCall) -> UpstreamRequest:
        """Translate the call.

        A size is met as near as the API lets it: the shape within 2 %, the edge as 1K, 2K or 4K. Raises
        Unprocessable (422) where it is no such shape, and for everything else that the API can't be told.
        """
        for name, value in call.body.items():
            if name not in _IMAGE_SEEN_TO and value not in (None, *_IMAGE_WITHOUT_EFFECT.get(name, ())):
                refuse_parameter(call, name)
        if call.mask is not None:
            raise unsupported_content(call, call.mask.param, "masks")
        parts = [image_part(call, image) for image in call.images]
        config: dict[str, Any] = {"responseModalities": ["IMAGE"]}
        if call.output_bound:
            config["maxOutputTokens"] = call.output_bound
        shape = _shape(call)
        if shape:
            config["imageConfig"] = shape
        body = {
            "contents": [{"role": "user", "parts": [*parts, {"text": call.body.get("prompt")}]}],
            "generationConfig": config,
        }
        return UpstreamRequest(
            "POST", f"{model_url(call)}:generateContent", request_headers(call), json_text.dump(body)
        )

    def parse_answer(self, call: ImageCall, content: bytes) -> ImageAnswer:
        """Translate a 2xx answer. One without an image is an error of the client, as it is at OpenAI."""
        body = read_body(call, content)
        candidates = read_candidates(body)
        if not candidates:
            raise unreadable(call, "an answer without candidates")
        images = [
            (part["inlineData"].get("mimeType"), part["inlineData"]["data"])
            for candidate in candidates
            for part in read_parts(candidate)
            if part.get("thought") is not True and _holds_data(part)
        ]
        if not images:
            raise _no_image(call, candidates[0])
        usage = read_usage(body.get("usageMetadata"), images=len(images))
        answer: dict[str, Any] = {
            "created": int(time.time()),
            "data": [{"b64_json": data} for _, data in images],
            "output_format": str(images[0][0]).rpartition("/")[2],
        }
        if usage is not None:
            usage = replace(usage, images=None)
            answer["usage"] = _image_usage(usage)
        return ImageAnswer(body=answer, usage=usage, images=len(images))

    def parse_error(
        self, call: ProviderCall, status: int, headers: Mapping[str, str], content: bytes
    ) -> ProviderError:
        return GEMINI.parse_error(call, status, headers, content)


class GeminiEmbeddingWire:
    """Embeddings of texts, all of a request in one batch."""

    name = "gemini-embeddings"

    def build_request(self, call: ProviderCall) -> UpstreamRequest:
        """Translate the call. Raises Unprocessable (422) for tokens in place of texts, among others."""
        for name, value in call.body.items():
            if name not in _EMBEDDING_SEEN_TO and value is not None:
                refuse_parameter(call, name)
        texts = _texts(call)
        if not all(isinstance(text, str) for text in texts):
            raise unsupported_content(call, "input", "tokens to embed: send the texts")
        url = model_url(call)
        model = url.removeprefix(f"{call.base_url.rstrip('/')}/")
        dimensions = call.body.get("dimensions")
        size = {} if dimensions is None else {"outputDimensionality": dimensions}
        requests = [{"model": model, "content": {"parts": [{"text": text}]}, **size} for text in texts]
        return UpstreamRequest(
            "POST",
            f"{url}:batchEmbedContents",
            request_headers(call),
            json_text.dump({"requests": requests}),
        )

    def parse_answer(self, call: ProviderCall, content: bytes) -> EmbeddingAnswer:
        body = read_body(call, content)
        embeddings = body.get("embeddings")
        if not isinstance(embeddings, list) or not embeddings or not all(map(_is_embedding, embeddings)):
            raise unreadable(call, "an answer without embeddings")
        if len(embeddings) != len(_texts(call)):
            raise unreadable(call, f"{len(embeddings)} embeddings of {len(_texts(call))} texts")
        packed = call.body.get("encoding_format") == "base64"
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": _pack(entry["values"]) if packed else entry["values"],
            }
            for index, entry in enumerate(embeddings)
        ]
        answer: dict[str, Any] = {"object": "list", "data": data, "model": call.model}
        reported = body.get("usageMetadata")
        sent = token_count(reported.get("promptTokenCount")) if isinstance(reported, dict) else None
        if sent:
            answer["usage"] = {"prompt_tokens": sent, "total_tokens": sent}
        return EmbeddingAnswer(body=answer, usage=TokenUsage(input=sent) if sent else None)

    def parse_error(
        self, call: ProviderCall, status: int, headers: Mapping[str, str], content: bytes
    ) -> ProviderError:
        return GEMINI.parse_error(call, status, headers, content)


def _shape(call: ImageCall) -> dict[str, str]:
    size = call.body.get("size")
    if size is None or size == "auto":
        return {}
    found = _SIZE.fullmatch(str(size))
    if found is not None:
        width, height = int(found[1]), int(found[2])
        nearest = min(_SHAPES, key=lambda shape: _deviation(shape, width / height))
        if _deviation(nearest, width / height) <= _MAX_DEVIATION and max(width, height) <= _longest(nearest):
            grade = _grade(width, height)
            # The default is not said: the first models know no other.
            return {"aspectRatio": nearest, **({} if grade == "1K" else {"imageSize": grade})}
    refuse_parameter(call, "size", f"it makes images of the shapes {', '.join(_SHAPES)}, up to 4096 x 4096")
    return {}


def _ratio(shape: str) -> float:
    width, _, height = shape.partition(":")
    return int(width) / int(height)


def _deviation(shape: str, ratio: float) -> float:
    return abs(_ratio(shape) / ratio - 1)


def _longest(shape: str) -> float:
    """Return the longer edge, in pixels, of the largest image of a shape, with what a shape may deviate."""
    ratio = _ratio(shape)
    return _EDGES["4K"] * math.sqrt(max(ratio, 1 / ratio)) * (1 + _MAX_DEVIATION)


def _grade(width: int, height: int) -> str:
    """Return the grade whose area is the nearest."""
    edge = math.sqrt(width * height)
    return min(_EDGES, key=lambda grade: abs(math.log(_EDGES[grade] / edge)))


def _holds_data(part: dict[str, Any]) -> bool:
    data = part.get("inlineData")
    return isinstance(data, dict) and isinstance(data.get("data"), str) and bool(data["data"])


def _no_image(call: ImageCall, candidate: dict[str, Any]) -> ProviderError:
    reason = native_reason(candidate) or "no reason told"
    said = candidate.get("finishMessage")
    told = f": {said}" if isinstance(said, str) and said else "."
    return provider_error(
        call,
        400,
        Fault.CLIENT,
        said=f"no image was made ({reason}){told}",
        terms=(reason,),
        code="no_image" if reason in {"STOP", "NO_IMAGE", "MAX_TOKENS"} else "content_policy_violation",
    )


def _image_usage(usage: TokenUsage) -> dict[str, Any]:
    text = usage.input + (usage.cached_input or 0)
    return {
        "input_tokens": usage.total_input,
        "output_tokens": usage.total_output,
        "total_tokens": usage.total,
        "input_tokens_details": {"text_tokens": text, "image_tokens": usage.image_input or 0},
        "output_tokens_details": {"text_tokens": usage.output, "image_tokens": usage.image_output or 0},
    }


def _texts(call: ProviderCall) -> list[Any]:
    """Return what is to be embedded, each by itself."""
    given = call.body.get("input")
    return given if isinstance(given, list) else [given]


def _is_embedding(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("values"), list) and bool(entry["values"])


def _pack(values: list[float]) -> str:
    """Return base64 of 32-bit floats, the lowest byte first."""
    return b64encode(struct.pack(f"<{len(values)}f", *values)).decode("ascii")


GEMINI_IMAGES: ImageWire = GeminiImageWire()
GEMINI_EMBEDDINGS: EmbeddingWire = GeminiEmbeddingWire()
