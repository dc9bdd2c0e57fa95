"""OpenAI's Images API, as OpenAI and those who imitate it speak it: images from a prompt, and edits.

Edits go as multipart/form-data; as JSON where an image is named by its URL, which OpenAI alone fetches. Not
everyone edits (looked up in November 2026): Together AI takes images by URL in fields of its own, and xAI
as JSON, for a price by the image that was sent, which no class of ours has.
"""

from __future__ import annotations

import base64
import os
import re
from typing import TYPE_CHECKING, Any

from gateway import json_text
from gateway.providers.failures import refuse_parameter, unreadable, unsupported_content
from gateway.providers.headers import request_headers
from gateway.providers.openai_compatible import OPENAI_COMPATIBLE, error_in_body, read_cost, token_count
from gateway.providers.wire import ImageAnswer, UpstreamRequest
from gateway.schemas.usage import TokenUsage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gateway.providers.wire import ImageCall, ImageWire, InputImage, ProviderCall, ProviderError

# Output tokens of an image of gpt-image-1 and 1.5, of the dearest shape (OpenAI's guide, "Cost and latency").
# They know nothing finer than high.
_FIXED = {"low": 408, "medium": 1584, "high": 6240, "xhigh": 6240, "max": 6240}
# gpt-image-2 and later: how fine the longer edge is cut. The first three are those of OpenAI's calculator
# (1024 x 1024 in high quality is 7024 tokens, 3840 x 2160 is 13342). For xhigh and max it publishes none:
# taken here is that each doubles the tokens of the one before.
_FINENESS = {"low": 16, "medium": 48, "high": 96, "xhigh": 136, "max": 192}
_AREA_OFFSET, _AREA_SCALE = 2_000_000, 4_000_000
_STANDARD_SIZES = ((1024, 1024), (1536, 1024))
"""What `auto` chooses among; upright or not makes no difference."""
_TEXT_TOKENS = 1024
"""Room for the text that gpt-image-1.5 writes beside the image, and bills as output."""
_SIZE = re.compile(r"([1-9]\d{1,4})x([1-9]\d{1,4})")


class OpenAIImageWire:
    """OpenAI's images, as a provider has them.

    `edits`: whether it takes images to edit; `takes_urls`: whether it fetches those that are named by their
    URL; `fields`: all that it knows of a request, None where it knows whatever OpenAI does.
    """

    name = "openai-images"

    def __init__(
        self, *, edits: bool = True, takes_urls: bool = False, fields: frozenset[str] | None = None
    ) -> None:
        self._edits = edits
        self._takes_urls = takes_urls
        self._fields = fields

    def output_bound(self, body: Mapping[str, Any]) -> int:
        """Return the most that any of OpenAI's models takes at this size and quality.

        Of `auto`, or what is not known, the dearest.
        """
        size = _SIZE.fullmatch(str(body.get("size")))
        sizes = ((int(size[1]), int(size[2])),) if size else _STANDARD_SIZES
        quality = body.get("quality")
        grades = (quality,) if quality in _FINENESS else tuple(_FINENESS)
        tokens = (
            max(_FIXED[grade], image_tokens(grade, width, height))
            for grade in grades
            for width, height in sizes
        )
        return max(tokens) + _TEXT_TOKENS

    def build_request(self, call: ImageCall) -> UpstreamRequest:
        """Return the client's own fields with the model put right, and the images as they came.

        Raises Unprocessable (422) for what the provider does not know, for images where it edits none, or
        fetches none; and ProviderError (operator) where the key is missing or unusable.
        """
        body = {name: value for name, value in call.body.items() if name != "models" and value is not None}
        for name in [name for name in body if self._fields is not None and name not in self._fields]:
            # Both ask for nothing that would not be so anyway.
            if body.pop(name) not in ("auto", False):
                refuse_parameter(call, name)
        body["model"] = call.model
        headers = request_headers(call)
        files = (*call.images, *([call.mask] if call.mask else []))
        if files and not self._edits:
            raise unsupported_content(call, files[0].param, "images to edit through the gateway")
        by_url = [file for file in files if file.url is not None]
        if by_url and not self._takes_urls:
            raise unsupported_content(call, by_url[0].param, "image by its URL: send the image itself")
        if not files:
            path, content = "generations", json_text.dump(body)
        elif by_url:
            path, content = "edits", json_text.dump(_with_references(call, body))
        else:
            boundary = os.urandom(16).hex()
            headers["content-type"] = f"multipart/form-data; boundary={boundary}"
            path, content = "edits", b"".join(_form(call, body, boundary))
        return UpstreamRequest("POST", f"{call.base_url.rstrip('/')}/images/{path}", headers, content)

    def parse_answer(self, call: ImageCall, content: bytes) -> ImageAnswer:
        try:
            body = json_text.parse_provider(content)
        except ValueError as error:
            raise unreadable(call, f"not JSON: {error}") from None
        if not isinstance(body, dict):
            raise unreadable(call, f"a JSON {type(body).__name__} where an object belongs")
        data = body.get("data")
        if body.get("error") and not data:
            raise error_in_body(call, body)
        if not isinstance(data, list) or not data or not all(map(_is_image, data)):
            raise unreadable(call, "an answer without images")
        reported = body.get("usage")
        return ImageAnswer(
            body=body,
            usage=read_image_usage(reported),
            images=len(data),
            reported_cost_usd=read_cost(reported),
        )

    def parse_error(
        self, call: ProviderCall, status: int, headers: Mapping[str, str], content: bytes
    ) -> ProviderError:
        return OPENAI_COMPATIBLE.parse_error(call, status, headers, content)


def image_tokens(quality: str, width: int, height: int) -> int:
    """Return the output tokens of an image of gpt-image-2 and later, rounded up."""
    fineness = _FINENESS[quality]
    longer, shorter = max(width, height), min(width, height)
    across = (2 * fineness * shorter + longer) // (2 * longer)
    return -(-fineness * across * (_AREA_OFFSET + width * height) // _AREA_SCALE)


def read_image_usage(reported: Any) -> TokenUsage | None:
    """Return the usage object of OpenAI's images in disjoint classes; None where it makes no sense.

    All output is image tokens but for what is told to be text. Where parts exceed the whole, they are cut.
    """
    if not isinstance(reported, dict):
        return None
    sent, made = token_count(reported.get("input_tokens")), token_count(reported.get("output_tokens"))
    if not sent or not made:
        return None
    inputs, outputs = (
        details if isinstance(details, dict) else {}
        for details in (reported.get("input_tokens_details"), reported.get("output_tokens_details"))
    )
    images = min(token_count(inputs.get("image_tokens")) or 0, sent)
    cached = min(token_count(inputs.get("cached_tokens")) or 0, sent - images)
    text = min(token_count(outputs.get("text_tokens")) or 0, made)
    return TokenUsage(
        input=sent - images - cached,
        cached_input=cached if "cached_tokens" in inputs else None,
        image_input=images if "image_tokens" in inputs else None,
        output=text,
        image_output=made - text,
    )


def _is_image(entry: Any) -> bool:
    return isinstance(entry, dict) and any(
        isinstance(entry.get(name), str) and entry[name] for name in ("b64_json", "url")
    )


def _with_references(call: ImageCall, body: dict[str, Any]) -> dict[str, Any]:
    mask = {"mask": _reference(call.mask)} if call.mask else {}
    return {**body, "images": [_reference(image) for image in call.images], **mask}


def _reference(image: InputImage) -> dict[str, str]:
    if image.url is not None:
        return {"image_url": image.url}
    encoded = base64.b64encode(image.content or b"").decode("ascii")
    return {"image_url": f"data:{image.media_type};base64,{encoded}"}


def _form(call: ImageCall, body: Mapping[str, Any], boundary: str) -> Iterator[bytes]:
    for name, value in body.items():
        if isinstance(value, str):
            text = value.encode("utf-8", "replace")
        elif isinstance(value, bool | int | float):
            text = json_text.dump(value)
        else:
            refuse_parameter(call, name)
            continue
        yield _part(boundary, f'name="{name}"', text)
    several = len(call.images) > 1
    for number, image in enumerate(call.images):
        yield _file(boundary, "image[]" if several else "image", f"image-{number}", image)
    if call.mask:
        yield _file(boundary, "mask", "mask", call.mask)
    yield f"--{boundary}--\r\n".encode()


def _file(boundary: str, field: str, name: str, image: InputImage) -> bytes:
    kind = image.media_type or "application/octet-stream"
    ending = kind.rpartition("/")[2]
    disposition = f'name="{field}"; filename="{name}.{ending}"'
    return _part(boundary, disposition, image.content or b"", f"content-type: {kind}\r\n")


def _part(boundary: str, disposition: str, content: bytes, headers: str = "") -> bytes:
    head = f"--{boundary}\r\ncontent-disposition: form-data; {disposition}\r\n{headers}\r\n"
    return head.encode() + content + b"\r\n"


OPENAI_IMAGES: ImageWire = OpenAIImageWire(takes_urls=True)
COMPATIBLE_IMAGES: ImageWire = OpenAIImageWire()
TOGETHER_IMAGES: ImageWire = OpenAIImageWire(edits=False)
# Size and style "are not supported"; the quality decides the price of some models, and is ignored by others.
XAI_IMAGES: ImageWire = OpenAIImageWire(
    edits=False, fields=frozenset({"model", "prompt", "n", "response_format", "user"})
)
