"""Secrets at rest: AES-256-GCM under a master key that the database never sees.

A sealed secret reads `v1.<master key id>.<nonce>.<ciphertext>`, the last two in base64url. The associated
data says what it is for: where that is not the same it does not open.

Rotation: put a new master key first. Secrets are opened under the id that they name, and sealed under the
first. Nonces are random: under one master key 2**32 seals are safe (NIST SP 800-38D, 8.3), which no table
holds.
"""

from __future__ import annotations

import base64
import binascii
import os
from typing import TYPE_CHECKING

from gateway.errors import InternalError

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION = "v1"
_NONCE_BYTES = 12
_FIELDS = 4


class SealError(InternalError):
    """A secret can't be sealed or opened. `detail` says why and holds no part of any secret."""


def seal(secret: str, *, master_keys: Mapping[str, bytes], context: bytes) -> str:
    """Return the secret, sealed for this context under the first master key.

    Raises SealError where there is no master key.
    """
    current = next(iter(master_keys), None)
    if current is None:
        raise SealError("no master key is set (SLUICE_MASTER_KEYS)")
    nonce = os.urandom(_NONCE_BYTES)
    # Imported where a secret is opened: 35 ms that the start of a function shouldn't pay.
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

    ciphertext = AESGCM(master_keys[current]).encrypt(nonce, secret.encode(), context)
    return ".".join((VERSION, current, _encode(nonce), _encode(ciphertext)))


def open_sealed(sealed: str, *, master_keys: Mapping[str, bytes], context: bytes, what: str, why: str) -> str:
    """Return the secret. `what` names it in an error, `why` says there for what it may not open.

    Raises SealError where the text is not a sealed secret, where its master key is not among ours, and where
    it was sealed for another context, or changed since: AES-GCM can't tell which.
    """
    version, _, rest = sealed.partition(".")
    fields = rest.split(".")
    if version != VERSION or len(fields) != _FIELDS - 1:
        raise SealError(f"{what} is not in a form that is known")
    master_key = master_keys.get(fields[0])
    if master_key is None:
        # The name is cut: it comes from the row, and may be anything.
        raise SealError(
            f"{what} is sealed under the master key {fields[0][:64]!r}, which is not in SLUICE_MASTER_KEYS"
        )
    try:
        nonce, ciphertext = _decode(fields[1]), _decode(fields[2])
    except (binascii.Error, ValueError):
        raise SealError(f"{what} is damaged") from None
    from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - see seal
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

    try:
        return AESGCM(master_key).decrypt(nonce, ciphertext, context).decode()
    except (InvalidTag, ValueError):
        raise SealError(f"{what} does not open{why}. Set it anew") from None


def is_current(sealed: str, master_keys: Mapping[str, bytes]) -> bool:
    """Return whether it is sealed under the current master key; if not, rotation has work to do."""
    return sealed.startswith(f"{VERSION}.{next(iter(master_keys), '')}.")


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _decode(text: str) -> bytes:
    if not text.isascii():
        raise ValueError("not base64")
    return base64.b64decode(text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4), validate=True)
