"""What the routes for images and embeddings answer: the provider's own, with what it adds."""

from __future__ import annotations

from pydantic import Field

from gateway.schemas.answers import Count, Number  # noqa: TC001 - pydantic reads the annotations
from gateway.schemas.answers.chat import GatewayUsage, Open


class GeneratedImage(Open):
    """An image: one of `b64_json` and `url` is there."""

    b64_json: str | None = Field(default=None, examples=["iVBORw0KGgo="])
    url: str | None = Field(default=None, description="Where the provider keeps it for a while.")
    revised_prompt: str | None = None


class ImagesUsage(Open):
    """Tokens as OpenAI counts them, where the provider tells."""

    input_tokens: Count = Field(examples=[14])
    output_tokens: Count = Field(examples=[1056])
    total_tokens: Count = Field(examples=[1070])


class Images(Open):
    """The images that were made, and what they have cost."""

    created: int | None = Field(default=None, examples=[1795262400])
    data: list[GeneratedImage]
    usage: ImagesUsage | None = None
    gateway_usage: GatewayUsage


class Embedding(Open):
    """One input's vector."""

    index: Count = 0
    embedding: list[Number] | str = Field(
        description="The numbers, or the base64 of 32-bit floats, as was asked for.",
        examples=[[0.0023, -0.0093, 0.0157]],
    )


class EmbeddingUsage(Open):
    """Tokens of all inputs."""

    prompt_tokens: Count = Field(examples=[5])
    total_tokens: Count = Field(examples=[5])


class Embeddings(Open):
    """A vector for each input, in their order, and what they have cost."""

    object: str | None = Field(default=None, examples=["list"])
    model: str | None = Field(default=None, examples=["text-embedding-3-small"])
    data: list[Embedding]
    usage: EmbeddingUsage
    gateway_usage: GatewayUsage
