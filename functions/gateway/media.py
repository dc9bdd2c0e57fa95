"""The routes for images and embeddings: metered calls in OpenAI's shapes, as chat is."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gateway import json_text
from gateway.auth import api_key
from gateway.calls import Calls, Measured, gateway_usage
from gateway.errors import Unprocessable
from gateway.http import JSONResponse, Operation, read_body, validate
from gateway.providers.registry import PROVIDERS
from gateway.providers.wire import EmbeddingCall, ImageCall, InputImage
from gateway.schemas.usage import TokenUsage
from gateway.tokens import IMAGE_TOKENS, count_embedded, count_text, embedding_bound, image_bound
from gateway.upstream import Exchange, Upstream, read_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import httpx
    from pydantic import BaseModel
    from starlette.requests import Request
    from starlette.responses import Response

    from gateway.calls import Call
    from gateway.multipart import Part
    from gateway.providers.wire import EmbeddingAnswer, ImageAnswer, Provider, ProviderCall
    from gateway.runtime.process import Process
    from gateway.schemas.media import ImageReference, ImageRequest

# For the provider's own eyes: no image and no embedding depends on them.
_ASIDES = frozenset({"user", "safety_identifier"})
_NUMBERS = frozenset({"n", "output_compression"})
_MAX_DIGITS = 9
_FLAGS = {"true": True, "false": False}
_SIGNATURES = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"GIF8", "image/gif"))


class Media:
    """The endpoints for images and embeddings."""

    def __init__(self, process: Process) -> None:
        self._calls = Calls(
            process.meter,
            Upstream(process.settings, process.providers_http, process.logger),
            seconds=process.settings.request_timeout_seconds,
        )

    async def generate(self, request: Request) -> Response:
        """POST /v1/images/generations."""
        from gateway.schemas.media import ImageGenerationRequest  # noqa: PLC0415 - 6 ms, as below

        key = api_key(request.headers)
        raw = await read_body(request)
        body = json_text.parse_request(raw)
        asked = validate(ImageGenerationRequest, body)
        return await self._make_images(request, asked, body, key=key, raw=raw, endpoint="images.generations")

    async def edit(self, request: Request) -> Response:
        """POST /v1/images/edits, as a form or as JSON."""
        from gateway.multipart import is_form, parse_form  # noqa: PLC0415 - 1 ms that no start should pay
        from gateway.schemas.media import ImageEditFields, ImageEditRequest  # noqa: PLC0415

        key = api_key(request.headers)
        raw = await read_body(request)
        content_type = request.headers.get("content-type", "")
        asked: ImageRequest
        if is_form(content_type):
            parts = parse_form(raw, content_type)
            body, images, mask = _read_form(parts)
            asked = validate(ImageEditFields, body)
            # A client's second try has another boundary.
            raw = _fingerprint(parts)
        else:
            given = json_text.parse_request(raw)
            asked = edit = validate(ImageEditRequest, given)
            images = tuple(
                _referenced(image, f"images.{number}.image_url") for number, image in enumerate(edit.images)
            )
            mask = _referenced(edit.mask, "mask.image_url") if edit.mask else None
            body = {name: value for name, value in given.items() if name not in {"images", "mask"}}
        return await self._make_images(
            request, asked, body, key=key, raw=raw, endpoint="images.edits", images=images, mask=mask
        )

    async def embed(self, request: Request) -> Response:
        """POST /v1/embeddings."""
        from gateway.schemas.media import EmbeddingRequest  # noqa: PLC0415

        key = api_key(request.headers)
        raw = await read_body(request)
        body = json_text.parse_request(raw)
        asked = validate(EmbeddingRequest, body)
        call = await self._calls.admit(
            request,
            key,
            raw,
            Exchange(body, kind=EmbeddingCall, droppable=_ASIDES),
            endpoint="embeddings",
            models=(asked.model,),
            input_tokens_bound=embedding_bound(asked.input),
            output="embedding",
            output_bounds=_bounds(lambda provider: 0 if provider.embeddings else None),
        )

        async def measure(answer: EmbeddingAnswer) -> Measured:
            usage = answer.usage
            if usage is None:
                count = await asyncio.to_thread(count_embedded, asked.input, _model(call))
                usage = TokenUsage(input=count)
            return Measured(usage, estimated=answer.usage is None, provider_cost_usd=answer.reported_cost_usd)

        answer, used, settled = await self._calls.answer(call, _read_embeddings, measure)
        # Whoever reads `usage` is to find it, told by the provider or not.
        counted = {"prompt_tokens": used.total_input, "total_tokens": used.total_input}
        usage = {} if answer.usage else {"usage": counted}
        return JSONResponse(
            {**answer.body, **usage, "gateway_usage": gateway_usage(call, settled)}, headers=call.headers
        )

    async def _make_images(
        self,
        request: Request,
        asked: ImageRequest,
        body: Mapping[str, Any],
        *,
        key: str,
        raw: bytes,
        endpoint: str,
        images: tuple[InputImage, ...] = (),
        mask: InputImage | None = None,
    ) -> Response:
        given = len(images) + (mask is not None)
        call = await self._calls.admit(
            request,
            key,
            raw,
            Exchange(body, kind=ImageCall, files={"images": images, "mask": mask}, droppable=_ASIDES),
            endpoint=endpoint,
            models=asked.candidates,
            # Providers bill several images as so many calls: each has read everything.
            input_tokens_bound=image_bound(asked.prompt, given) * asked.choices,
            choices=asked.choices,
            output="image",
            media_input=given > 0,
            media_output=True,
            output_bounds=_bounds(
                lambda provider: provider.images.output_bound(body) if provider.images else None
            ),
        )

        async def measure(answer: ImageAnswer) -> Measured:
            usage, estimated = await _image_usage(call, answer, asked, given)
            return Measured(usage, estimated=estimated, provider_cost_usd=answer.reported_cost_usd)

        answer, _, settled = await self._calls.answer(call, _read_images, measure)
        return JSONResponse(
            {**answer.body, "gateway_usage": gateway_usage(call, settled)}, headers=call.headers
        )


async def _read_images(call: ProviderCall, response: httpx.Response) -> ImageAnswer:
    assert isinstance(call, ImageCall)
    assert call.wire is not None
    return call.wire.parse_answer(call, await read_answer(call, response))


async def _read_embeddings(call: ProviderCall, response: httpx.Response) -> EmbeddingAnswer:
    assert isinstance(call, EmbeddingCall)
    assert call.wire is not None
    return call.wire.parse_answer(call, await read_answer(call, response))


async def _image_usage(
    call: Call, answer: ImageAnswer, asked: ImageRequest, given: int
) -> tuple[TokenUsage, bool]:
    """Return what an answer is charged for, and whether the gateway counted it."""
    bound = call.exchange.candidate.max_output_tokens if call.exchange.candidate else 0
    if bound == 0:
        # Paid by the image: no tokens were held for, and none are charged for.
        return TokenUsage(images=answer.images), False
    if answer.usage is not None:
        return replace(answer.usage, images=answer.images), False
    # Nobody can count an image's tokens from here: the bound is what was agreed to.
    prompt = await asyncio.to_thread(count_text, asked.prompt, _model(call))
    read = given * IMAGE_TOKENS * answer.images
    usage = TokenUsage(
        input=prompt * answer.images,
        image_input=read if given else None,
        image_output=bound * answer.images,
        images=answer.images,
    )
    return usage, True


def _model(call: Call) -> str:
    return call.exchange.candidate.model if call.exchange.candidate else ""


def _bounds(bound: Callable[[Provider], int | None]) -> dict[str, int]:
    """Return how many tokens one output takes at most, by provider. One that is left out is not asked."""
    return {
        name: tokens
        for provider in PROVIDERS
        if (tokens := bound(provider)) is not None
        for name in (provider.name, *provider.aliases)
    }


def _read_form(
    parts: Sequence[Part],
) -> tuple[dict[str, Any], tuple[InputImage, ...], InputImage | None]:
    """Return a form's fields as JSON would have them, its images and its mask."""
    from gateway.schemas.media import MAX_INPUT_IMAGES  # noqa: PLC0415

    body: dict[str, Any] = {}
    images: list[InputImage] = []
    mask: InputImage | None = None
    for part in parts:
        name = part.name.removesuffix("[]")
        if name == "image":
            images.append(_uploaded(part))
        elif name == "mask" and mask is None:
            mask = _uploaded(part)
        elif part.name == "models[]":
            body.setdefault("models", []).append(part.text())
        elif part.name in body or name == "mask":
            raise Unprocessable(f"{part.name}: is given twice.", param=part.name)
        else:
            body[part.name] = _value(part.name, part.text())
    if not 1 <= len(images) <= MAX_INPUT_IMAGES:
        raise Unprocessable(f"image: 1 to {MAX_INPUT_IMAGES} images are needed.", param="image")
    return body, tuple(images), mask


def _value(name: str, text: str) -> Any:
    if name in _NUMBERS and text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS:
        return int(text)
    return _FLAGS.get(text.lower(), text) if name == "stream" else text


def _uploaded(part: Part) -> InputImage:
    if not part.is_file:
        raise Unprocessable(
            f"{part.name}: must be a file. Name an image by its URL in a JSON body.", param=part.name
        )
    content = bytes(part.content)
    return InputImage(part.name, content=content, media_type=_media_type(content, part.name))


def _referenced(image: ImageReference, param: str) -> InputImage:
    """Return an image that JSON holds or names. Raises Unprocessable (422) where it is neither."""
    url = image.image_url
    scheme = url[:8].lower()
    if scheme.startswith("https://"):
        return InputImage(param, url=url)
    head, comma, data = url.partition(",")
    if not (scheme.startswith("data:") and comma and head.lower().endswith(";base64")):
        raise Unprocessable(f"{param}: must be an https URL or a data URL in base64.", param=param)
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise Unprocessable(f"{param}: is not valid base64.", param=param) from None
    return InputImage(param, content=content, media_type=_media_type(content, param))


def _media_type(content: bytes, param: str) -> str:
    """Return what an image is by its own first bytes: what a client calls it is often a guess."""
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return "image/webp"
    for signature, media_type in _SIGNATURES:
        if content.startswith(signature):
            return media_type
    raise Unprocessable(f"{param}: must be a PNG, JPEG, WebP or GIF image.", param=param)


def _fingerprint(parts: Sequence[Part]) -> bytes:
    """Return a digest of a form's fields, whatever they were parted by."""
    digest = hashlib.sha256()
    for part in parts:
        name = part.name.encode()
        digest.update(b"%d %d %d\n" % (len(name), part.is_file, len(part.content)))
        digest.update(name)
        digest.update(part.content)
    return digest.digest()


def _generation_request() -> type[BaseModel]:
    from gateway.schemas.media import ImageGenerationRequest  # noqa: PLC0415

    return ImageGenerationRequest


def _edit_request() -> type[BaseModel]:
    from gateway.schemas.media import ImageEditRequest  # noqa: PLC0415

    return ImageEditRequest


def _embedding_request() -> type[BaseModel]:
    from gateway.schemas.media import EmbeddingRequest  # noqa: PLC0415

    return EmbeddingRequest


def operations(process: Process) -> list[Operation]:
    """Return the operations for images and embeddings, which the chat function serves."""
    media = Media(process)
    return [
        Operation(
            "POST",
            "/v1/images/generations",
            media.generate,
            "Create images",
            scope="chat",
            load_request_model=_generation_request,
            tags=("images",),
        ),
        Operation(
            "POST",
            "/v1/images/edits",
            media.edit,
            "Edit images",
            scope="chat",
            load_request_model=_edit_request,
            tags=("images",),
        ),
        Operation(
            "POST",
            "/v1/embeddings",
            media.embed,
            "Create embeddings",
            scope="chat",
            load_request_model=_embedding_request,
            tags=("embeddings",),
        ),
    ]
