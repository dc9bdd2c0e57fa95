"""OpenAI's images and embeddings, judged by its SDK's types and by what its lists say an image takes."""

from __future__ import annotations

import base64
import email.parser
import email.policy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import CreateEmbeddingResponse, ImagesResponse
from openai.types.embedding_create_params import EmbeddingCreateParams
from openai.types.image_generate_params import ImageGenerateParamsNonStreaming
from pydantic import TypeAdapter

from gateway.errors import Unprocessable
from gateway.providers.openai_embeddings import OPENAI_EMBEDDINGS, read_embedding_usage
from gateway.providers.openai_images import (
    COMPATIBLE_IMAGES,
    OPENAI_IMAGES,
    image_tokens,
    read_image_usage,
)
from gateway.providers.registry import PROVIDERS, provider_named
from gateway.providers.wire import EmbeddingCall, Fault, ImageCall, InputImage, ProviderError
from gateway.schemas.media import EmbeddingRequest, ImageEditRequest, ImageGenerationRequest
from gateway.schemas.usage import TokenUsage
from gateway.tokens import count_embedded, embedding_bound
from infra.local.simulator.openai_media import IMAGE_TOKENS

if TYPE_CHECKING:
    from email.message import Message

    from gateway.providers.wire import UpstreamRequest

KEY = "sk-upstream"
PNG = b"\x89PNG\r\n\x1a\n"
BODY = {"model": "gpt-image-2", "prompt": "A lighthouse", "n": 2, "size": "1024x1024", "quality": "low"}
# What fal.ai, which passes OpenAI's tokens on at 30 USD for a million, publishes for gpt-image-2, in USD.
PUBLISHED = {
    ("low", 1024, 1024): 0.006,
    ("low", 3840, 2160): 0.012,
    ("medium", 1024, 1536): 0.042,
    ("medium", 2560, 1440): 0.056,
    ("high", 1024, 768): 0.145,
    ("high", 1024, 1024): 0.211,
    ("high", 1920, 1080): 0.158,
    ("high", 2560, 1440): 0.222,
    ("high", 3840, 2160): 0.401,
}


def image_call(provider: str = "openai", **given: Any) -> ImageCall:
    fields: dict[str, Any] = {"body": BODY, "model": "upstream-image", "output_bound": 1000, **given}
    return ImageCall(
        provider=provider_named(provider), base_url="https://api.example/v1/", stream=False, key=KEY, **fields
    )


def build(provider: str, **given: Any) -> UpstreamRequest:
    wire = provider_named(provider).images
    assert wire is not None
    return wire.build_request(image_call(provider, **given))


def embedding_call(body: dict[str, Any]) -> EmbeddingCall:
    return EmbeddingCall(
        provider=provider_named("openai"),
        base_url="https://api.example/v1",
        model="upstream-embedding",
        body=body,
        output_bound=0,
        stream=False,
        key=KEY,
    )


def form_of(request: UpstreamRequest) -> list[Message]:
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(
        f"content-type: {request.headers['content-type']}\r\n\r\n".encode() + request.content
    )
    return list(message.iter_parts())


def named(part: Message) -> str:
    return str(part.get_param("name", header="content-disposition"))


def test_a_start_does_not_import_what_only_media_need() -> None:
    program = "import sys, chat.handler; print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "functions")},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert "gateway.media" in loaded
    assert not loaded & {"gateway.schemas.media", "gateway.multipart", "gateway.providers.gemini_media"}


def test_a_generation_is_what_the_sdk_would_send() -> None:
    request = OPENAI_IMAGES.build_request(image_call(body={**BODY, "models": ["other"], "user": None}))
    assert request.url == "https://api.example/v1/images/generations"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    sent = json.loads(request.content)
    assert sent == {**BODY, "model": "upstream-image"}
    TypeAdapter(ImageGenerateParamsNonStreaming).validate_python(sent, strict=True)


@pytest.mark.parametrize("count", [1, 3])
def test_an_edit_is_a_form_with_every_field_and_file(count: int) -> None:
    images = tuple(
        InputImage("image", content=PNG + bytes([n]), media_type="image/png") for n in range(count)
    )
    mask = InputImage("mask", content=PNG, media_type="image/png")
    request = COMPATIBLE_IMAGES.build_request(image_call("openai-compatible", images=images, mask=mask))
    assert request.url == "https://api.example/v1/images/edits"
    parts = form_of(request)
    files = [part for part in parts if part.get_filename()]
    fields = {named(part): part.get_payload() for part in parts if not part.get_filename()}
    assert fields == {**{name: str(value) for name, value in BODY.items()}, "model": "upstream-image"}
    assert [named(part) for part in files] == ["image" if count == 1 else "image[]"] * count + ["mask"]
    assert [part.get_payload(decode=True) for part in files] == [*(image.content for image in images), PNG]
    assert {part.get_content_type() for part in files} == {"image/png"}


def test_an_image_by_its_url_goes_as_json_to_openai_alone() -> None:
    images = (
        InputImage("images.0.image_url", url="https://example.com/a.png"),
        InputImage("images.1.image_url", content=PNG, media_type="image/png"),
    )
    sent = json.loads(OPENAI_IMAGES.build_request(image_call(images=images)).content)
    assert sent["images"] == [
        {"image_url": "https://example.com/a.png"},
        {"image_url": f"data:image/png;base64,{base64.b64encode(PNG).decode()}"},
    ]
    for provider in PROVIDERS:
        if provider.images is COMPATIBLE_IMAGES:
            with pytest.raises(Unprocessable) as caught:
                COMPATIBLE_IMAGES.build_request(image_call(provider.name, images=images))
            assert caught.value.param == "images.0.image_url"


@pytest.mark.parametrize("provider", ["together", "xai"])
def test_who_edits_no_form_is_sent_none(provider: str) -> None:
    image = InputImage("image", content=PNG, media_type="image/png")
    body = {"model": "m", "prompt": "A lighthouse"}
    with pytest.raises(Unprocessable) as caught:
        build(provider, body=body, images=(image,))
    assert (caught.value.param, caught.value.code) == ("image", "unsupported_content")
    assert json.loads(build(provider, body=body).content) == {**body, "model": "upstream-image"}


def test_xai_is_sent_what_it_knows_and_is_asked_for_nothing_else() -> None:
    known = {"model": "m", "prompt": "A lighthouse", "n": 2, "response_format": "b64_json", "user": "u"}
    nothing = {"size": "auto", "quality": "auto", "background": "auto", "stream": False, "moderation": None}
    assert json.loads(build("xai", body={**known, **nothing}).content) == {**known, "model": "upstream-image"}
    for name, value in (("size", "1024x1024"), ("quality", "high"), ("style", "vivid")):
        body = {**known, name: value}
        with pytest.raises(Unprocessable) as caught:
            build("xai", body=body)
        assert (caught.value.param, caught.value.code) == (name, "unsupported_parameter")
        left_out = build("xai", body=body, dropped=frozenset({name}))
        assert json.loads(left_out.content) == {**known, "model": "upstream-image"}


@pytest.mark.parametrize(("form", "usd"), PUBLISHED.items())
def test_tokens_of_an_image_are_those_of_the_published_prices(form: tuple[str, int, int], usd: float) -> None:
    # Published to the tenth of a cent, rounded now up, now down.
    assert image_tokens(*form) * 30e-6 == pytest.approx(usd, abs=0.001)


@pytest.mark.parametrize(("size", "quality"), [*IMAGE_TOKENS, *((f"{w}x{h}", q) for q, w, h in PUBLISHED)])
def test_the_bound_is_above_what_any_model_takes(size: str, quality: str) -> None:
    width, height = map(int, size.split("x"))
    bound = OPENAI_IMAGES.output_bound({"size": size, "quality": quality})
    assert bound > image_tokens(quality, width, height)
    assert bound > IMAGE_TOKENS.get((size, quality), 0)
    for unsaid in ({"size": size}, {"size": size, "quality": "auto"}, {"size": size, "quality": "hd"}):
        assert OPENAI_IMAGES.output_bound(unsaid) >= bound


@given(
    st.sampled_from(["low", "medium", "high", "xhigh", "max"]),
    st.integers(16, 240).map(lambda n: n * 16),
    st.integers(16, 240).map(lambda n: n * 16),
)
def test_a_finer_image_is_held_for_dearer(quality: str, width: int, height: int) -> None:
    grades = ["low", "medium", "high", "xhigh", "max"]
    bounds = [OPENAI_IMAGES.output_bound({"size": f"{width}x{height}", "quality": grade}) for grade in grades]
    assert bounds == sorted(bounds)
    upright = OPENAI_IMAGES.output_bound({"size": f"{height}x{width}", "quality": quality})
    assert upright == bounds[grades.index(quality)]


def test_auto_is_the_dearest_of_what_it_chooses_among() -> None:
    automatic = OPENAI_IMAGES.output_bound({})
    for size in ("1024x1024", "1536x1024", "1024x1536"):
        for quality in ("low", "medium", "high", "xhigh", "max"):
            assert automatic >= OPENAI_IMAGES.output_bound({"size": size, "quality": quality})


ANSWER: dict[str, Any] = {
    "created": 1795262400,
    "data": [{"b64_json": "aGk="}, {"url": "https://x.example/1.png"}],
    "usage": {
        "input_tokens": 50,
        "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
        "output_tokens": 300,
        "output_tokens_details": {"text_tokens": 28, "image_tokens": 272},
        "total_tokens": 350,
    },
}


def test_an_answer_is_read_in_classes_that_do_not_overlap() -> None:
    answer = OPENAI_IMAGES.parse_answer(image_call(), json.dumps(ANSWER).encode())
    assert ImagesResponse.model_validate(answer.body).usage is not None
    assert answer.images == 2
    assert answer.usage == TokenUsage(input=10, image_input=40, output=28, image_output=272)
    assert answer.usage is not None
    assert answer.usage.total == 350


JUNK = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.lists(st.none())
COUNT = st.integers(0, 10**6) | JUNK


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "input_tokens": COUNT,
            "output_tokens": COUNT,
            "input_tokens_details": JUNK
            | st.dictionaries(st.sampled_from(["text_tokens", "image_tokens", "cached_tokens"]), COUNT),
            "output_tokens_details": JUNK
            | st.dictionaries(st.sampled_from(["text_tokens", "image_tokens"]), COUNT),
        },
    )
)
def test_usage_adds_up_or_is_none(reported: dict[str, Any]) -> None:
    usage = read_image_usage(reported)
    if usage is not None:
        assert usage.total_input == reported["input_tokens"]
        assert usage.total_output == reported["output_tokens"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"data": []}',
        b'{"data": [{}]}',
        b'{"data": [{"b64_json": ""}]}',
        b'{"data": ["x"]}',
    ],
)
def test_what_is_no_answer_is_the_providers_fault(content: bytes) -> None:
    with pytest.raises(ProviderError) as caught:
        OPENAI_IMAGES.parse_answer(image_call(), content)
    assert caught.value.fault is Fault.PROTOCOL
    with pytest.raises(ProviderError) as caught:
        OPENAI_EMBEDDINGS.parse_answer(embedding_call({"input": "x"}), content)
    assert caught.value.fault is Fault.PROTOCOL


def test_an_error_inside_a_200_is_an_error() -> None:
    content = b'{"error": {"message": "no", "code": 503}}'
    with pytest.raises(ProviderError) as caught:
        OPENAI_IMAGES.parse_answer(image_call(), content)
    assert caught.value.retryable


def test_a_moderated_prompt_is_the_clients_fault() -> None:
    content = json.dumps(
        {
            "error": {
                "message": "Rejected.",
                "type": "image_generation_user_error",
                "code": "moderation_blocked",
            }
        }
    ).encode()
    error = OPENAI_IMAGES.parse_error(image_call(), 400, {}, content)
    assert error.fault is Fault.CLIENT
    assert error.as_gateway_error().status == 400


def test_an_embedding_is_what_the_sdk_would_send() -> None:
    body = {"model": "e", "input": ["a", "b"], "dimensions": 8, "encoding_format": "base64"}
    request = OPENAI_EMBEDDINGS.build_request(embedding_call(body))
    assert request.url == "https://api.example/v1/embeddings"
    sent = json.loads(request.content)
    assert sent == {**body, "model": "upstream-embedding"}
    TypeAdapter(EmbeddingCreateParams).validate_python(sent)


def test_an_answer_of_embeddings_is_the_providers_own() -> None:
    told = {
        "object": "list",
        "model": "text-embedding-3-small",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.25, -1.0]}],
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
    }
    answer = OPENAI_EMBEDDINGS.parse_answer(embedding_call({"input": "x"}), json.dumps(told).encode())
    assert answer.body == told
    assert answer.usage == TokenUsage(input=5)
    CreateEmbeddingResponse.model_validate(answer.body)


@pytest.mark.parametrize(
    "reported", [None, {}, {"prompt_tokens": 0}, {"prompt_tokens": -1}, {"prompt_tokens": "5"}]
)
def test_untold_usage_of_embeddings_is_none(reported: Any) -> None:
    assert read_embedding_usage(reported) is None


TOKENS = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=20)
INPUTS = (
    st.text(min_size=1, max_size=200)
    | st.lists(st.text(min_size=1, max_size=50), min_size=1, max_size=10)
    | TOKENS
    | st.lists(TOKENS, min_size=1, max_size=5)
)


@settings(deadline=None)  # the first count loads the encoding
@given(INPUTS)
def test_the_bound_of_an_embedding_is_above_its_count(value: Any) -> None:
    asked = EmbeddingRequest.model_validate({"model": "m", "input": value})
    assert asked.input == value
    assert embedding_bound(value) >= count_embedded(value)


@pytest.mark.parametrize("model", [ImageGenerationRequest, ImageEditRequest, EmbeddingRequest])
def test_what_is_not_known_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        model.model_validate({"model": "m", "prompt": "p", "input": "x", "surprise": 1})
