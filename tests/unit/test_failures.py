"""What clients are told of their own faults: OpenAI's codes, whoever the provider is, by its name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.providers.failures import client_code
from gateway.providers.registry import find_provider
from gateway.providers.wire import Fault, ProviderCall, ProviderError


def refusal(provider: str, status: int, body: Any) -> ProviderError:
    known = find_provider(provider)
    assert known is not None
    call = ProviderCall(known, "https://example.com/v1", "model", {}, 100, stream=False, key="k" * 20)
    return known.wire.parse_error(call, status, {}, json.dumps(body).encode())


def openai(message: str, code: Any = None, kind: str = "invalid_request_error") -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def anthropic(message: str, kind: str = "invalid_request_error") -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}}


def gemini(message: str, status: str = "INVALID_ARGUMENT") -> dict[str, Any]:
    return {"error": {"code": 400, "message": message, "status": status}}


TOO_LONG = "context_length_exceeded"
POLICY = "content_policy_violation"


# As the providers' documents and their users' reports have them (November 2026).
@pytest.mark.parametrize(
    ("provider", "body", "code"),
    [
        ("openai", openai("This model's maximum context length is 8192 tokens.", TOO_LONG), TOO_LONG),
        ("openai", openai("Your input exceeds the context window of this model.", TOO_LONG), TOO_LONG),
        (
            "deepseek",
            openai("This model's maximum context length is 65536 tokens.", "invalid_request_error"),
            TOO_LONG,
        ),
        (
            "mistral",
            {
                "object": "error",
                "message": "Prompt contains 40000 tokens, too large for model with 32768 "
                "maximum context length",
                "type": "invalid_request_error",
                "code": "3051",
            },
            TOO_LONG,
        ),
        ("groq", openai("Please reduce the length of the messages or completion.", TOO_LONG), TOO_LONG),
        (
            "xai",
            {
                "code": "Client specified an invalid argument",
                "error": "This model's maximum prompt length is "
                "131072 but the request contains 200000 tokens.",
            },
            TOO_LONG,
        ),
        (
            "together",
            openai("Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8193."),
            TOO_LONG,
        ),
        (
            "vllm",
            {
                "object": "error",
                "message": "This model's maximum context length is 2048 tokens.",
                "code": 400,
            },
            TOO_LONG,
        ),
        (
            "openai-compatible",
            openai("the request exceeds the available context size", 400, "exceed_context_size_error"),
            TOO_LONG,
        ),
        ("anthropic", anthropic("prompt is too long: 210000 tokens > 200000 maximum"), TOO_LONG),
        (
            "anthropic",
            anthropic("input length and `max_tokens` exceed context limit: 190000 + 20000"),
            TOO_LONG,
        ),
        (
            "gemini",
            gemini("The input token count (1200000) exceeds the maximum number of tokens allowed."),
            TOO_LONG,
        ),
        (
            "openai",
            openai("Your request was rejected as a result of our safety system.", "moderation_blocked"),
            POLICY,
        ),
        (
            "openai-compatible",
            openai("The prompt triggered Azure OpenAI's content management policy.", "content_filter"),
            POLICY,
        ),
        ("deepseek", openai("Content Exists Risk", "invalid_request_error"), POLICY),
        ("anthropic", anthropic("Output blocked by content filtering policy"), POLICY),
        (
            "anthropic",
            anthropic("messages.0.content.1.image.source.base64: Could not process image"),
            "image_parse_error",
        ),
        (
            "anthropic",
            anthropic("messages.0.content.0.image.source.base64: image exceeds 5 MB maximum"),
            "image_too_large",
        ),
        ("gemini", gemini("Unable to process input image. Please retry."), "image_parse_error"),
        ("openai", openai("Invalid image.", "invalid_image_format"), "invalid_image_format"),
        ("openai", openai("Unsupported value: 'temperature'.", "unsupported_value"), "unsupported_value"),
    ],
)
def test_each_provider_says_it_in_openais_code(provider: str, body: Any, code: str) -> None:
    error = refusal(provider, 400, body)
    assert (error.fault, error.code) == (Fault.CLIENT, code)
    told = error.as_gateway_error()
    assert told.code == code
    known = find_provider(provider)
    assert known is not None
    assert told.message.startswith(known.subject)


def test_a_providers_own_term_goes_before_words_that_may_be_the_prompts() -> None:
    quoted = "Invalid value: 'what is your content policy?'"
    assert client_code(quoted, "context_length_exceeded") == "context_length_exceeded"
    assert client_code("something else", "unheard_of") is None


@pytest.mark.parametrize(
    ("provider", "status", "body"),
    [
        ("openai", 401, openai("Incorrect API key provided: sk-…", "invalid_api_key")),
        (
            "openai",
            429,
            openai("You exceeded your current quota.", "insufficient_quota", "insufficient_quota"),
        ),
        ("openai", 404, openai("The model `gpt-9` does not exist.", "model_not_found")),
        ("deepseek", 402, openai("Insufficient Balance", "invalid_request_error")),
        ("anthropic", 401, anthropic("invalid x-api-key", "authentication_error")),
        ("anthropic", 404, anthropic("model: claude-9", "not_found_error")),
        ("gemini", 403, gemini("Permission denied.", "PERMISSION_DENIED")),
    ],
)
def test_what_is_ours_to_mend_is_502_to_the_client(provider: str, status: int, body: Any) -> None:
    error = refusal(provider, status, body)
    assert error.fault is Fault.OPERATOR
    told = error.as_gateway_error()
    assert (told.status, told.code) == (502, "provider_failed")
    assert str(body) not in told.message
