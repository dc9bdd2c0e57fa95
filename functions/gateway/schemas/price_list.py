"""One line of a price list, as its cells say it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from gateway.schemas.admin import (
    InputModality,
    ModelName,
    OutputModality,
    Prices,
    ProviderName,
    Tokens,
    UpstreamModel,
)

_MAX_DIGITS = 15


def _count(text: Any) -> Any:
    if isinstance(text, str) and text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS:
        return int(text)
    raise PydanticCustomError("count", "must be a whole number")


def _words(text: Any) -> Any:
    words = text.split() if isinstance(text, str) else text
    if len(set(words)) < len(words):
        raise PydanticCustomError("twice", "names one twice")
    return words


_Tokens = Annotated[Tokens, BeforeValidator(_count), WithJsonSchema({"type": "integer"})]


class PriceLine(Prices):
    """A provider's offer of a model: what it takes, and what is known of the model. Lengths are in tokens.

    With `above_input_tokens` it is a tier: what the provider takes for requests with more input tokens.

    Modalities are words with spaces between them. What is not said is unknown: a model that is added without
    modalities reads and writes text.
    """

    model: ModelName
    provider: ProviderName
    upstream_model: UpstreamModel | None = None
    """None: the provider calls it as we do."""
    above_input_tokens: _Tokens | None = None
    context_length: _Tokens | None = None
    max_output_tokens: _Tokens | None = None
    input_modalities: Annotated[list[InputModality], BeforeValidator(_words)] | None = None
    output_modalities: Annotated[list[OutputModality], BeforeValidator(_words)] | None = None
