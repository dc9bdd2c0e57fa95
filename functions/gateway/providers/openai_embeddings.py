"""OpenAI's Embeddings API, as OpenAI and everyone who imitates it speak it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway import json_text
from gateway.providers.failures import unreadable
from gateway.providers.headers import request_headers
from gateway.providers.openai_compatible import OPENAI_COMPATIBLE, error_in_body, read_cost, token_count
from gateway.providers.wire import EmbeddingAnswer, UpstreamRequest
from gateway.schemas.usage import TokenUsage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.providers.wire import EmbeddingWire, ProviderCall, ProviderError


class OpenAIEmbeddingWire:
    """OpenAI's embeddings."""

    name = "openai-embeddings"

    def build_request(self, call: ProviderCall) -> UpstreamRequest:
        """Return the client's own object with the model put right."""
        return UpstreamRequest(
            method="POST",
            url=f"{call.base_url.rstrip('/')}/embeddings",
            headers=request_headers(call),
            content=json_text.dump({**call.body, "model": call.model}),
        )

    def parse_answer(self, call: ProviderCall, content: bytes) -> EmbeddingAnswer:
        try:
            body = json_text.parse_provider(content)
        except ValueError as error:
            raise unreadable(call, f"not JSON: {error}") from None
        if not isinstance(body, dict):
            raise unreadable(call, f"a JSON {type(body).__name__} where an object belongs")
        data = body.get("data")
        if body.get("error") and not data:
            raise error_in_body(call, body)
        if not isinstance(data, list) or not data or not all(map(_is_embedding, data)):
            raise unreadable(call, "an answer without embeddings")
        reported = body.get("usage")
        return EmbeddingAnswer(
            body=body, usage=read_embedding_usage(reported), reported_cost_usd=read_cost(reported)
        )

    def parse_error(
        self, call: ProviderCall, status: int, headers: Mapping[str, str], content: bytes
    ) -> ProviderError:
        return OPENAI_COMPATIBLE.parse_error(call, status, headers, content)


def read_embedding_usage(reported: Any) -> TokenUsage | None:
    """Return what was sent; None where it makes no sense. No input is empty: 0 counts as not told."""
    if not isinstance(reported, dict):
        return None
    sent = token_count(reported.get("prompt_tokens")) or token_count(reported.get("total_tokens"))
    return TokenUsage(input=sent) if sent else None


def _is_embedding(entry: Any) -> bool:
    # A list of numbers, or base64 of 32-bit floats. They are not looked at: a batch has millions.
    return isinstance(entry, dict) and isinstance(entry.get("embedding"), list | str)


OPENAI_EMBEDDINGS: EmbeddingWire = OpenAIEmbeddingWire()
