"""OpenAI's images and embeddings.

Images are as the GPT image models': base64, with usage. Their output tokens are those that OpenAI's guide
gives for gpt-image-1 ("Cost and latency"); other sizes count by their area.
"""

from __future__ import annotations

import base64
import re
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra.local.simulator.answers import count_tokens, embedding, picture
from infra.local.simulator.endpoint import FileGiven
from infra.local.simulator.openai_wire import OpenAIWire, known, require

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from infra.local.simulator.behaviour import Behaviour
    from infra.local.simulator.endpoint import Asked

IMAGE_TOKENS: Mapping[tuple[str, str], int] = {
    ("1024x1024", "low"): 272,
    ("1024x1024", "medium"): 1056,
    ("1024x1024", "high"): 4160,
    ("1024x1536", "low"): 408,
    ("1024x1536", "medium"): 1584,
    ("1024x1536", "high"): 6240,
    ("1536x1024", "low"): 400,
    ("1536x1024", "medium"): 1568,
    ("1536x1024", "high"): 6208,
}
_INPUT_IMAGE_TOKENS = 194
_FIELDS = frozenset(
    {
        "model",
        "prompt",
        "n",
        "size",
        "quality",
        "background",
        "moderation",
        "output_format",
        "output_compression",
        "user",
        "safety_identifier",
    }
)
_EDIT_FIELDS = _FIELDS | {"image", "image[]", "images", "mask", "input_fidelity"}
_MOST_IMAGES = 10
_MOST_INPUTS = 2048
_DIMENSIONS = 1536
_BAD_REQUEST = 400
_BEYOND_BOUND = 10


@dataclass(frozen=True, slots=True)
class MadeImages:
    """Answered images."""

    prompt: str
    given: tuple[str, ...]
    """The digest of every image that was sent, the mask last."""
    count: int
    size: str
    quality: str
    behaviour: Behaviour

    @property
    def usage(self) -> dict[str, Any]:
        text, images = count_tokens(self.prompt), _INPUT_IMAGE_TOKENS * len(self.given)
        each = image_tokens(self.size, self.quality)
        made = self.count * each * (1 if self.behaviour.keeps_bound else _BEYOND_BOUND)
        return {
            "input_tokens": text + images,
            "input_tokens_details": {"text_tokens": text, "image_tokens": images},
            "output_tokens": made,
            "output_tokens_details": {"text_tokens": 0, "image_tokens": made},
            "total_tokens": text + images + made,
        }

    def plain(self) -> dict[str, Any]:
        """Return the images; each depends on the prompt, on what was sent, and on its number."""
        subject = " ".join([self.prompt, *self.given])
        data = [
            {"b64_json": base64.b64encode(picture(f"{subject} {number}")).decode()}
            for number in range(self.count)
        ]
        body = {
            "created": int(time.time()),
            "background": "opaque",
            "output_format": "png",
            "quality": self.quality,
            "size": self.size,
            "data": data,
        }
        return {**body, "usage": self.usage} if self.behaviour.tells_usage else body

    def events(self) -> Iterator[bytes]:
        return iter(())


def image_tokens(size: str, quality: str) -> int:
    """Return the output tokens of one image."""
    if (size, quality) in IMAGE_TOKENS:
        return IMAGE_TOKENS[size, quality]
    width, height = (int(side) for side in size.split("x"))
    return IMAGE_TOKENS["1024x1024", quality] * width * height // 1024**2


class _ImageWire(OpenAIWire):
    name = "openai-images"

    def is_streamed(self, asked: Asked) -> bool:
        del asked
        return False

    def _made(
        self, asked: Asked, behaviour: Behaviour | None, fields: frozenset[str], given: tuple[str, ...]
    ) -> MadeImages:
        body = asked.body
        for name in body:
            require(name in fields, f"Unknown parameter: '{name}'.", name)
        asked_for = known(asked, behaviour, blocked="moderation_blocked")
        prompt = body.get("prompt")
        require(isinstance(prompt, str) and prompt != "", "Missing required parameter: 'prompt'.", "prompt")
        # A form's numbers come as text.
        count = str(body.get("n") or 1)
        require(count.isdecimal() and 1 <= int(count) <= _MOST_IMAGES, "Invalid value for 'n'.", "n")
        size, quality = body.get("size") or "auto", body.get("quality") or "auto"
        sized = re.fullmatch(r"auto|[1-9]\d{1,3}x[1-9]\d{1,3}", str(size))
        require(sized is not None, f"Invalid size '{size}'.", "size")
        require(
            quality in {"auto", "low", "medium", "high"}, f"Invalid value: '{quality}'. 'quality'", "quality"
        )
        return MadeImages(
            prompt=str(prompt),
            given=given,
            count=int(count),
            size="1024x1024" if size == "auto" else size,
            quality="medium" if quality == "auto" else quality,
            behaviour=asked_for,
        )


class ImageGenerations(_ImageWire):
    """POST /v1/images/generations."""

    def reply(self, asked: Asked, behaviour: Behaviour | None) -> MadeImages:
        return self._made(asked, behaviour, _FIELDS, ())


class ImageEdits(_ImageWire):
    """POST /v1/images/edits, as a form or as JSON."""

    def reply(self, asked: Asked, behaviour: Behaviour | None) -> MadeImages:
        body = asked.body
        given = [*_files(body.get("image")), *_files(body.get("image[]")), *_references(body.get("images"))]
        require(bool(given), "Missing required parameter: 'image'.", "image")
        mask = body.get("mask")
        masks = _references([mask]) if isinstance(mask, dict) else _files(mask)
        given += [f"mask {digest}" for digest in masks]
        return self._made(asked, behaviour, _EDIT_FIELDS, tuple(given))


def _files(value: Any) -> list[str]:
    files = value if isinstance(value, list) else [] if value is None else [value]
    for file in files:
        require(isinstance(file, FileGiven), "Invalid type for 'image': expected a file.", "image")
        require(
            file.media_type in {"image/png", "image/jpeg", "image/webp"},
            f"Invalid file 'image': unsupported mimetype ('{file.media_type}').",
            "image",
        )
    return [file.digest for file in files]


def _references(value: Any) -> list[str]:
    found = []
    for entry in value if isinstance(value, list) else []:
        url = entry.get("image_url") if isinstance(entry, dict) else None
        require(isinstance(url, str), "Invalid type for 'images': expected references.", "images")
        found.append(FileGiven.of_url(str(url)).digest if str(url).startswith("data:") else str(url))
    return found


@dataclass(frozen=True, slots=True)
class MadeEmbeddings:
    """Answered embeddings. `tokens` is of all inputs."""

    model: str
    vectors: tuple[list[float], ...]
    as_base64: bool
    tokens: int
    behaviour: Behaviour

    @property
    def usage(self) -> dict[str, Any]:
        return {"prompt_tokens": self.tokens, "total_tokens": self.tokens}

    def plain(self) -> dict[str, Any]:
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": _packed(vector) if self.as_base64 else vector,
            }
            for index, vector in enumerate(self.vectors)
        ]
        body = {"object": "list", "data": data, "model": self.model}
        return {**body, "usage": self.usage} if self.behaviour.tells_usage else body

    def events(self) -> Iterator[bytes]:
        return iter(())


def _packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


class Embeddings(OpenAIWire):
    """POST /v1/embeddings."""

    name = "openai-embeddings"

    def reply(self, asked: Asked, behaviour: Behaviour | None) -> MadeEmbeddings:
        body = asked.body
        asked_for = known(asked, behaviour)
        value = body.get("input")
        inputs = value if isinstance(value, list) and not _is_tokens(value) else [value]
        require(0 < len(inputs) <= _MOST_INPUTS, "Invalid 'input': wrong array length.", "input")
        for entry in inputs:
            valid = (isinstance(entry, str) and entry != "") or _is_tokens(entry)
            require(valid, "'$.input' is invalid. Please check the API reference.", "input")
        size = body.get("dimensions") or _DIMENSIONS
        require(
            isinstance(size, int) and 1 <= size <= _DIMENSIONS, "Invalid value: 'dimensions'.", "dimensions"
        )
        shape = body.get("encoding_format") or "float"
        require(shape in {"float", "base64"}, "Invalid value: 'encoding_format'.", "encoding_format")
        return MadeEmbeddings(
            model=str(body["model"]),
            vectors=tuple(embedding(str(entry), size) for entry in inputs),
            as_base64=shape == "base64",
            tokens=sum(map(_tokens, inputs)),
            behaviour=asked_for,
        )


def _tokens(entry: Any) -> int:
    return count_tokens(entry) if isinstance(entry, str) else len(entry)


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(token, int) for token in value)
