"""The headers of a request to a provider. They hold its key, and are never shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.providers.failures import operator_fault
from gateway.providers.wire import AuthStyle

if TYPE_CHECKING:
    from gateway.providers.wire import ProviderCall


def request_headers(call: ProviderCall) -> dict[str, str]:
    """Return the headers of a call. Raises ProviderError (operator) where the key is missing or unusable."""
    provider = call.provider
    headers = {
        "content-type": "application/json",
        "accept": "text/event-stream" if call.stream else "application/json",
        **provider.extra_headers,
    }
    if call.stream:
        # A compressed stream reaches us when the compressor's block is full, not when the token is there.
        headers["accept-encoding"] = "identity"
    for name, setting in provider.attribution.items():
        value = call.site_url if setting == "site_url" else call.site_name
        if value:
            headers[name] = value
    key = (call.key or "").strip()
    if not key:
        if provider.key_needed:
            raise operator_fault(call, "no provider key is set")
        return headers
    if not key.isascii() or not key.isprintable():
        # An HTTP client would name the header's value in its error.
        raise operator_fault(call, "the provider key holds characters that no header may")
    if provider.auth is AuthStyle.BEARER:
        headers["authorization"] = f"Bearer {key}"
    else:
        headers[provider.auth.value] = key
    return headers
