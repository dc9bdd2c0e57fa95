"""Failures of providers as every wire reports them: fit for the client, and without a secret.

What a wire has to read for itself is its provider's shape of an error, and whose fault it is. The rest is
here.
"""

from __future__ import annotations

import math
import re
import time
from typing import TYPE_CHECKING, Any

from gateway.errors import Unprocessable
from gateway.providers.wire import Fault, ProviderCall, ProviderError
from gateway.redaction import REDACTED, redact

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

UNSUPPORTED_PARAMETER = "unsupported_parameter"
"""The code of a parameter that a provider can't be told, and that may be left out if a setting says so."""

_MAX_MESSAGE_CHARS = 600
_MAX_RETRY_AFTER_SECONDS = 3600.0
_EXCERPT_BYTES = 2000
_MAX_PARAM_CHARS = 128
# OpenAI's codes, and the words by which other providers say the same (looked up in November 2026). A
# provider's own code goes before its words: these may quote the prompt.
_CODES: Mapping[str, tuple[str, ...]] = {
    "context_length_exceeded": (
        "prompt is too long",  # Anthropic
        "exceed context limit",
        "maximum context length",  # OpenAI, DeepSeek, Mistral, vLLM, Groq
        "maximum prompt length",  # xAI
        "exceeds the context window",  # OpenAI's Responses
        "exceeds the available context size",  # llama.cpp
        "exceeds the maximum number of tokens",  # Gemini
        "`inputs` tokens + `max_new_tokens` must be",  # TGI, Together AI
    ),
    "content_policy_violation": (
        "content filtering policy",  # Anthropic
        "content policy",
        "content management policy",  # Azure
        "rejected as a result of our safety system",  # OpenAI's images
        "requires moderation",  # OpenRouter
        "content exists risk",  # DeepSeek
        "violates usage guidelines",  # xAI
    ),
    "image_parse_error": (
        "could not process image",  # Anthropic
        "unable to process input image",  # Gemini
        "failed to load image",  # vLLM, llama.cpp
        "cannot identify image file",  # whoever reads it with Pillow
    ),
    "image_too_large": ("image exceeds", "image dimensions exceed"),  # Anthropic
}
_SYNONYMS = {
    "context_window_exceeded": "context_length_exceeded",
    "context_length_exceeded_error": "context_length_exceeded",
    "prompt_too_long": "context_length_exceeded",
    "exceed_context_size_error": "context_length_exceeded",  # llama.cpp
    "content_filter": "content_policy_violation",  # Azure
    "content_policy_violation_error": "content_policy_violation",
    "moderation_blocked": "content_policy_violation",  # OpenAI's images
}
_TERM = re.compile(r"[A-Za-z0-9_.:/-]{1,64}")


def unreadable(call: ProviderCall, detail: str) -> ProviderError:
    """Return the failure of an answer that is none."""
    return ProviderError(
        call.provider.name,
        Fault.PROTOCOL,
        f"{call.provider.subject} sent an answer that could not be read.",
        detail=scrub(call, detail),
    )


def operator_fault(call: ProviderCall, detail: str, status: int | None = None) -> ProviderError:
    """Return a failure that the gateway's operator has to see to; `detail` is for the log alone."""
    return ProviderError(
        call.provider.name,
        Fault.OPERATOR,
        f"The gateway's connection to {call.provider.title} is not in order. Its operator has to see to it.",
        status=status,
        detail=detail,
    )


def provider_error(
    call: ProviderCall,
    status: int,
    fault: Fault,
    *,
    said: str,
    terms: Sequence[str | None] = (),
    code: str | None = None,
    param: str | None = None,
    retry_after: float | None = None,
    excerpt: bytes = b"",
) -> ProviderError:
    """Return the failure that a provider reported.

    `said` is its text, `terms` the names that it gave the failure, `excerpt` its body, for the log where no
    text was found. `code` and `param` go to the client, and only where the fault is the client's; the code
    is OpenAI's where that has one for it.
    """
    said = scrub(call, said)
    subject = call.provider.subject
    if fault is Fault.OPERATOR:
        words = said or scrub(call, excerpt[:_EXCERPT_BYTES].decode("utf-8", "replace"))
        return operator_fault(call, f"status {status}: {words}", status)
    # What a provider says of anything but our connection may quote the prompt: the log gets its terms alone.
    detail = ", ".join([f"status {status}", *filter(None, terms)])
    if fault is Fault.CLIENT:
        message = f"{subject} refused the request: {said or f'status {status}'}"
    elif status in {408, 504}:
        message = f"{subject} took too long."
    elif status == 429:  # noqa: PLR2004
        message = f"{subject} is limiting the gateway's requests. Try again later."
    else:
        message = f"{subject} failed (status {status})."
    return ProviderError(
        call.provider.name,
        fault,
        message,
        status=status,
        code=(client_code(said, code, *terms) or code) if fault is Fault.CLIENT else None,
        param=param if fault is Fault.CLIENT else None,
        retry_after=retry_after,
        detail=detail,
    )


def scrub(call: ProviderCall, text: str) -> str:
    """Return a provider's text without our key, our address there, or anything like a secret."""
    for secret in ((call.key or "").strip(), call.base_url.rstrip("/")):
        if secret:
            text = text.replace(secret, REDACTED)
    text = "".join(char if char.isprintable() else " " for char in redact(text))
    return text if len(text) <= _MAX_MESSAGE_CHARS else f"{text[:_MAX_MESSAGE_CHARS]}…"


def term(value: Any) -> str | None:
    """Return a name that programs go by; None for anything else, such as a sentence."""
    return redact(value) if isinstance(value, str) and _TERM.fullmatch(value) else None


def short(value: Any) -> str | None:
    """Return a short text without a secret; None for anything else."""
    return redact(value)[:128] if isinstance(value, str) and value else None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds to wait, within an hour; a date is taken against this machine's clock."""
    lowered = {name.lower(): value for name, value in headers.items()}
    try:
        if "retry-after-ms" in lowered:
            seconds = float(lowered["retry-after-ms"]) / 1000
        else:
            seconds = float(lowered["retry-after"])
    except KeyError:
        return None
    except ValueError:
        from email.utils import parsedate_to_datetime  # noqa: PLC0415 - 5 ms that no start should pay

        try:
            seconds = parsedate_to_datetime(lowered.get("retry-after", "")).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER_SECONDS) if math.isfinite(seconds) else None


def refuse_parameter(call: ProviderCall, param: str, reason: str | None = None) -> None:
    """Raise Unprocessable (422) for a parameter that the provider can't be told.

    Does nothing where the call says that it may be left out: the caller then leaves it out.
    """
    param = param[:_MAX_PARAM_CHARS]
    if param not in call.dropped:
        raise Unprocessable(
            f"{call.provider.subject} can't be told {param!r}{f': {reason}' if reason else ''}.",
            param=param,
            code=UNSUPPORTED_PARAMETER,
        )


def unsupported_content(call: ProviderCall, path: str, what: str) -> Unprocessable:
    """Return the refusal (422) of content that the provider can't be given. It is never left out."""
    return Unprocessable(
        f"{call.provider.subject} takes no {what}.", param=path[:_MAX_PARAM_CHARS], code="unsupported_content"
    )


def client_code(said: str, *terms: str | None) -> str | None:
    """Return OpenAI's code for a client's fault, by the provider's own terms for it or else by its words.

    None where neither is known: the provider's own code is then as good as any.
    """
    for name in terms:
        if name in _CODES:
            return name
        if name in _SYNONYMS:
            return _SYNONYMS[name]
    lowered = said.lower()
    return next((code for code, phrases in _CODES.items() if any(map(lowered.__contains__, phrases))), None)
