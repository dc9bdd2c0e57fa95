"""What clients send to the routes for images and embeddings.

Of images only what is named here is taken: a field that is not known could change what the call costs.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from gateway.schemas.chat import MAX_MODELS, ModelName

MAX_IMAGES = 10
"""Made by one request."""
MAX_INPUT_IMAGES = 16
MAX_PROMPT_CHARS = 32_000
MAX_INPUTS = 2048
"""Texts embedded by one request."""
MAX_TOKEN = 2**31 - 1
MAX_DIMENSIONS = 65_536

Size = Annotated[
    str,
    Field(
        pattern=r"^(auto|[1-9][0-9]{1,4}x[1-9][0-9]{1,4})$",
        description="`auto`, or width and height in pixels.",
        examples=["1024x1024"],
    ),
]
Quality = Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"]


class _Closed(BaseModel):
    # Built at the first use: most processes of the chat function never see an image.
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, defer_build=True)


class ImageReference(_Closed):
    """An image: a data URL, or an address that the provider fetches where it does that."""

    image_url: Annotated[str, Field(min_length=1, examples=["data:image/png;base64,iVBORw0KGgo="])]


class ImageRequest(_Closed):
    """What images are made by."""

    model: ModelName
    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARS)]
    models: Annotated[list[ModelName], Field(max_length=MAX_MODELS)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] | None = None
    size: Size | None = None
    quality: Quality | None = None
    background: Literal["auto", "transparent", "opaque"] | None = None
    # Neither gif nor svg: what they take at most is not published, and an SVG's author is billed apart.
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    response_format: Literal["url", "b64_json"] | None = None
    moderation: Literal["auto", "low"] | None = None
    stream: Annotated[
        Literal[False] | None, Field(description="Images are not streamed: `true` is refused.")
    ] = None
    user: str | None = None
    safety_identifier: str | None = None

    @property
    def choices(self) -> int:
        """How many images are made, and paid for."""
        return self.n or 1

    @property
    def candidates(self) -> tuple[str, ...]:
        """The models to try, in order, each once: `model`, then `models`."""
        return tuple(dict.fromkeys([self.model, *(self.models or [])]))


class ImageGenerationRequest(ImageRequest):
    """The body of POST /v1/images/generations."""

    style: Literal["vivid", "natural"] | None = None


class ImageEditFields(ImageRequest):
    """The fields of POST /v1/images/edits that are no files."""

    input_fidelity: Literal["high", "low"] | None = None


class ImageEditRequest(ImageEditFields):
    """The body of POST /v1/images/edits as JSON."""

    images: Annotated[list[ImageReference], Field(min_length=1, max_length=MAX_INPUT_IMAGES)]
    mask: ImageReference | None = None


def _input_shape(value: Any) -> str | None:
    if isinstance(value, str):
        return "text"
    if not isinstance(value, list) or not value:
        return None
    first = value[0]
    if isinstance(first, str):
        return "texts"
    if isinstance(first, list):
        return "token_lists"
    return "tokens" if isinstance(first, int) and not isinstance(first, bool) else None


Text = Annotated[str, Field(min_length=1)]
Token = Annotated[int, Field(ge=0, le=MAX_TOKEN)]
Tokens = Annotated[list[Token], Field(min_length=1, fail_fast=True)]
EmbeddingInput = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[list[Text], Field(max_length=MAX_INPUTS, fail_fast=True), Tag("texts")]
    | Annotated[Tokens, Tag("tokens")]
    | Annotated[list[Tokens], Field(max_length=MAX_INPUTS, fail_fast=True), Tag("token_lists")],
    Discriminator(
        _input_shape,
        custom_error_type="input_type",
        custom_error_message="must be a string, or an array of strings, of tokens or of arrays of tokens",
    ),
]


class EmbeddingRequest(_Closed):
    """The body of POST /v1/embeddings.

    Closed, too: what is not known here could put words before each input, and they are paid for.
    """

    model: ModelName
    input: EmbeddingInput
    dimensions: Annotated[int, Field(ge=1, le=MAX_DIMENSIONS)] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    user: str | None = None
    # Mistral's names.
    output_dimension: Annotated[int, Field(ge=1, le=MAX_DIMENSIONS)] | None = None
    output_dtype: Literal["float", "int8", "uint8", "binary", "ubinary"] | None = None
