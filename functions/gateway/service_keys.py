"""Provider keys at rest: AES-256-GCM under a master key that the database never sees.

A sealed key reads `v1.<master key id>.<nonce>.<ciphertext>`, the last two in base64url. The associated data
binds it to the service's row, its provider and the origin of its base URL: a service that is moved to
another host no longer opens, so that a key which nobody can read can't be mailed to a stranger either.

Rotation: put a new master key first. Keys are opened under the id that they name, and sealed under the first.
Nonces are random: under one master key 2**32 seals are safe (NIST SP 800-38D, 8.3), which no table holds.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from typing import TYPE_CHECKING

from gateway.errors import InternalError
from gateway.service_urls import origin

if TYPE_CHECKING:
    from collections.abc import Mapping

_VERSION = "v1"
_NONCE_BYTES = 12
_FIELDS = 4


class ServiceKeyError(InternalError):
    """A provider key can't be sealed or opened. `detail` says why and holds no part of any key."""


def seal(
    provider_key: str, *, master_keys: Mapping[str, bytes], service_id: int, provider: str, base_url: str
) -> str:
    """Return the provider key, sealed for this service, provider and origin under the first master key.

    Raises ServiceKeyError where there is no master key.
    """
    current = next(iter(master_keys), None)
    if current is None:
        raise ServiceKeyError("no master key is set (SLUICE_MASTER_KEYS)")
    nonce = os.urandom(_NONCE_BYTES)
    # Imported where a key is opened: 35 ms that the start of a function shouldn't pay.
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

    context = _context(service_id, provider, base_url)
    ciphertext = AESGCM(master_keys[current]).encrypt(nonce, provider_key.encode(), context)
    return ".".join((_VERSION, current, _encode(nonce), _encode(ciphertext)))


def open_sealed(
    sealed: str, *, master_keys: Mapping[str, bytes], service_id: int, provider: str, base_url: str
) -> str:
    """Return the provider key.

    Raises ServiceKeyError where the text is not a sealed key, where its master key is not among ours, and
    where it was sealed for another service, provider or origin, or changed since: AES-GCM can't tell which.
    """
    version, _, rest = sealed.partition(".")
    fields = rest.split(".")
    if version != _VERSION or len(fields) != _FIELDS - 1:
        raise ServiceKeyError(f"the provider key of service {service_id} is not in a form that is known")
    master_key = master_keys.get(fields[0])
    if master_key is None:
        # The name is cut: it comes from the row, and may be anything.
        raise ServiceKeyError(
            f"the provider key of service {service_id} is sealed under the master key {fields[0][:64]!r}, "
            "which is not in SLUICE_MASTER_KEYS"
        )
    try:
        nonce, ciphertext = _decode(fields[1]), _decode(fields[2])
    except (binascii.Error, ValueError):
        raise ServiceKeyError(f"the provider key of service {service_id} is damaged") from None
    from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - see seal
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

    try:
        opened = AESGCM(master_key).decrypt(nonce, ciphertext, _context(service_id, provider, base_url))
        return opened.decode()
    except (InvalidTag, ValueError):
        raise ServiceKeyError(
            f"the provider key of service {service_id} does not open for provider {provider} at "
            f"{origin(base_url)}: it was sealed for another, or changed since. Set it anew"
        ) from None


def is_current(sealed: str, master_keys: Mapping[str, bytes]) -> bool:
    """Return whether the key is sealed under the current master key; if not, rotation has work to do."""
    return sealed.startswith(f"{_VERSION}.{next(iter(master_keys), '')}.")


def _context(service_id: int, provider: str, base_url: str) -> bytes:
    # JSON keeps the parts apart, whatever they hold.
    return json.dumps(["sluice", _VERSION, service_id, provider, origin(base_url)]).encode()


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _decode(text: str) -> bytes:
    if not text.isascii():
        raise ValueError("not base64")
    return base64.b64decode(text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4), validate=True)
