"""The providers that the gateway knows: one entry each.

An OpenAI-compatible provider is one entry here, its rows in the catalogue and its fixtures. A new wire
format is also one file beside this one.

Where an entry departs from the defaults, the reason stands beside it (looked up in November 2026).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.errors import Unprocessable
from gateway.providers.late_wire import late_wire
from gateway.providers.openai_compatible import OPENAI_COMPATIBLE
from gateway.providers.openai_embeddings import OPENAI_EMBEDDINGS
from gateway.providers.openai_images import (
    COMPATIBLE_IMAGES,
    OPENAI_IMAGES,
    TOGETHER_IMAGES,
    XAI_IMAGES,
)
from gateway.providers.wire import DOCUMENT_CHAT, MEDIA_CHAT, TEXT_CHAT, AuthStyle, Capability, Provider

if TYPE_CHECKING:
    from collections.abc import Mapping

PROVIDERS: tuple[Provider, ...] = (
    Provider(
        name="openai",
        title="OpenAI",
        wire=OPENAI_COMPATIBLE,
        images=OPENAI_IMAGES,
        embeddings=OPENAI_EMBEDDINGS,
        base_url="https://api.openai.com/v1",
        # max_tokens is deprecated there, and refused by the reasoning models.
        output_bound_field="max_completion_tokens",
        asides=frozenset(),
    ),
    Provider(
        name="anthropic",
        title="Anthropic",
        wire=late_wire("gateway.providers.anthropic", "ANTHROPIC"),
        messages=late_wire("gateway.providers.anthropic_messages", "ANTHROPIC_MESSAGES"),
        chat=DOCUMENT_CHAT,
        base_url="https://api.anthropic.com/v1",
        auth=AuthStyle.X_API_KEY,
        extra_headers={"anthropic-version": "2023-06-01"},
    ),
    Provider(
        name="gemini",
        title="Google Gemini",
        wire=late_wire("gateway.providers.gemini", "GEMINI"),
        chat=MEDIA_CHAT | {Capability.IMAGE_OUTPUT},
        images=late_wire("gateway.providers.gemini_media", "GEMINI_IMAGES"),
        embeddings=late_wire("gateway.providers.gemini_media", "GEMINI_EMBEDDINGS"),
        base_url="https://generativelanguage.googleapis.com/v1beta",
        aliases=("google", "google-gemini"),
        auth=AuthStyle.X_GOOG_API_KEY,
    ),
    Provider(
        name="deepseek",
        title="DeepSeek",
        wire=OPENAI_COMPATIBLE,
        base_url="https://api.deepseek.com",
        # "unknown variant `developer`, expected one of `system`, `user`, `assistant`, `tool`"
        knows_developers=False,
    ),
    Provider(
        name="openrouter",
        title="OpenRouter",
        wire=OPENAI_COMPATIBLE,
        embeddings=OPENAI_EMBEDDINGS,
        base_url="https://openrouter.ai/api/v1",
        # Usage always comes; the option is deprecated and without effect.
        stream_usage_option=False,
        lists_models_to_all=True,
        # The second name is the older one of the third.
        attribution={"http-referer": "site_url", "x-title": "site_name", "x-openrouter-title": "site_name"},
    ),
    Provider(
        name="groq",
        title="Groq",
        wire=OPENAI_COMPATIBLE,
        base_url="https://api.groq.com/openai/v1",
        output_bound_field="max_completion_tokens",
        # "property 'annotations' is unsupported"; null as well.
        asides=frozenset({"reasoning"}),
        # "Pricing matches the on-demand tier"; `performance` is capacity that was bought beforehand.
        service_tiers=("auto", "on_demand", "flex", "performance"),
    ),
    Provider(
        name="mistral",
        title="Mistral",
        wire=OPENAI_COMPATIBLE,
        embeddings=OPENAI_EMBEDDINGS,
        base_url="https://api.mistral.ai/v1",
        # stream_options.include_usage and max_completion_tokens are both refused with 422 ("extra inputs are
        # not permitted"); the last chunk carries usage all the same.
        stream_usage_option=False,
        knows_developers=False,
        # Likewise; the seed has another name there, `random_seed`.
        lacks=frozenset(
            {
                "user",
                "safety_identifier",
                "seed",
                "logit_bias",
                "logprobs",
                "top_logprobs",
                "store",
                "service_tier",
                "verbosity",
            }
        ),
        # "Extra inputs are not permitted" in messages, too; null as well.
        asides=frozenset(),
    ),
    Provider(
        name="together",
        title="Together AI",
        wire=OPENAI_COMPATIBLE,
        images=TOGETHER_IMAGES,
        embeddings=OPENAI_EMBEDDINGS,
        base_url="https://api.together.xyz/v1",
        aliases=("togetherai",),
    ),
    Provider(
        name="xai",
        title="xAI",
        wire=OPENAI_COMPATIBLE,
        images=XAI_IMAGES,
        base_url="https://api.x.ai/v1",
        aliases=("grok",),
        # Bounds the visible answer and the reasoning together; max_tokens is deprecated.
        output_bound_field="max_completion_tokens",
        # "counted separately from completion_tokens, but counted in the total_tokens" (xAI's documentation).
        reasoning_apart=True,
    ),
    Provider(
        name="huggingface",
        title="Hugging Face",
        wire=OPENAI_COMPATIBLE,
        embeddings=OPENAI_EMBEDDINGS,
        base_url="https://router.huggingface.co/v1",
        aliases=("hf",),
        lists_models_to_all=True,
    ),
    Provider(
        name="ollama",
        title="Ollama",
        wire=OPENAI_COMPATIBLE,
        embeddings=OPENAI_EMBEDDINGS,
        base_url="http://127.0.0.1:11434/v1",
        key_needed=False,
    ),
    Provider(
        name="vllm",
        title="vLLM",
        wire=OPENAI_COMPATIBLE,
        images=COMPATIBLE_IMAGES,
        embeddings=OPENAI_EMBEDDINGS,
        base_url="http://127.0.0.1:8000/v1",
        key_needed=False,
    ),
    Provider(
        name="openai-compatible",
        title="the OpenAI-compatible service",
        wire=OPENAI_COMPATIBLE,
        images=COMPATIBLE_IMAGES,
        embeddings=OPENAI_EMBEDDINGS,
        base_url=None,
        key_needed=False,
        # Who knows: many a server asks for the key only where it costs something.
        lists_models_to_all=True,
    ),
    Provider(
        name="completions",
        title="the completions service",
        wire=late_wire("gateway.providers.text_completions", "TEXT_COMPLETIONS"),
        chat=TEXT_CHAT,
        base_url=None,
        key_needed=False,
        lists_models_to_all=True,
    ),
    Provider(
        name="local",
        title="the local model",
        wire=late_wire("gateway.providers.openai_text", "OPENAI_TEXT"),
        chat=TEXT_CHAT,
        base_url=None,
        # A server of our own (gateway.local_models) that listens on the loopback may do without one.
        key_needed=False,
    ),
)


def _by_name() -> Mapping[str, Provider]:
    table: dict[str, Provider] = {}
    for provider in PROVIDERS:
        for name in (provider.name, *provider.aliases):
            if name in table:
                raise ValueError(f"two providers are named {name}")
            table[name] = provider
    return table


_BY_NAME = _by_name()


def find_provider(name: str) -> Provider | None:
    """Return the provider of this name or alias, in any case; None where there is none."""
    return _BY_NAME.get(name.lower())


def provider_named(name: str) -> Provider:
    """Return the provider of this name or alias. Raises Unprocessable (422) where there is none."""
    provider = find_provider(name)
    if provider is None:
        names = ", ".join(known.name for known in PROVIDERS)
        raise Unprocessable(
            f"{name[:64]!r} is not a provider that the gateway knows. It knows: {names}.",
            param="provider",
            code="unknown_provider",
        )
    return provider
