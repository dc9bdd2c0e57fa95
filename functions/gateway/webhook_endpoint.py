"""Where the operator's events go: the webhook's URL, and the secret that signs what is sent there."""

from __future__ import annotations

import base64
import binascii
import json
from typing import TYPE_CHECKING

from gateway import sealing
from gateway.errors import Unprocessable
from gateway.service_urls import check_resolved

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.service_urls import Resolver

SECRET_LEAD = "whsec_"  # noqa: S105 - the lead of every secret is none
"""What comes after it is base64, as the Standard Webhooks scheme writes a secret."""
MIN_SECRET_BYTES = 24
MAX_SECRET_BYTES = 64
MAX_URL_CHARS = 2000

# Bound to the settings' one row and column: no sealed provider key can stand in for it.
_CONTEXT = json.dumps(["sluice", sealing.VERSION, "settings", "webhook_secret"]).encode()


async def check_webhook_url(url: str, *, allow_private: bool = False, resolve: Resolver | None = None) -> str:
    """Return the URL as it is to be called: what was given. To be asked when it is set and at each delivery.

    It may have a query, for receivers that are told apart by it; otherwise it is held to what a service's
    base URL is held to. Raises Unprocessable (422, param webhook_url).
    """
    base, _, query = url.partition("?")
    if len(url) > MAX_URL_CHARS or not (query.isascii() and query.isprintable()) or set(query) & set(" #\\?"):
        raise Unprocessable("webhook_url is not a URL.", param="webhook_url", code="invalid_webhook_url")
    try:
        await check_resolved(base, allow_private=allow_private, resolve=resolve)
    except Unprocessable as error:
        message = error.message.replace("base_url", "webhook_url", 1)
        raise Unprocessable(message, param="webhook_url", code="invalid_webhook_url") from None
    return url


def signing_key(secret: str) -> bytes:
    """Return what the HMAC is made with: the bytes after `whsec_`, or the text itself.

    Raises ValueError unless it has from 24 to 64 bytes.
    """
    if secret.startswith(SECRET_LEAD):
        try:
            key = base64.b64decode(secret.removeprefix(SECRET_LEAD), validate=True)
        except binascii.Error:
            raise ValueError("must be base64 after whsec_") from None
    else:
        key = secret.encode()
    if not MIN_SECRET_BYTES <= len(key) <= MAX_SECRET_BYTES:
        raise ValueError(f"must have from {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes")
    return key


def seal_secret(secret: str, *, master_keys: Mapping[str, bytes]) -> str:
    """Return the webhook secret as the settings keep it. Raises SealError where there is no master key."""
    return sealing.seal(secret, master_keys=master_keys, context=_CONTEXT)


def open_secret(sealed: str, *, master_keys: Mapping[str, bytes]) -> bytes:
    """Return the signing key of a sealed webhook secret. Raises SealError."""
    secret = sealing.open_sealed(
        sealed,
        master_keys=master_keys,
        context=_CONTEXT,
        what="the webhook secret",
        why=": it is not one, or was changed since",
    )
    return signing_key(secret)
