"""Client keys: how they look, how they are read from a request, how they are kept.

A key is `sk_` and 40 base62 characters: 34 of chance (202 bits) and six of checksum, the CRC-32 of the 34 in
base62, as in GitHub's tokens. The checksum tells a mistyped key, and a scanner's false find, without asking
the database. Only the SHA-256 is kept: with 202 bits there is nothing to guess, so there is nothing to slow.
"""

from __future__ import annotations

import hashlib
import secrets
import string
import zlib
from typing import TYPE_CHECKING

from gateway.errors import Unauthorized

if TYPE_CHECKING:
    from starlette.datastructures import Headers

KEY_LEAD = "sk_"
RANDOM_CHARS = 34
CHECKSUM_CHARS = 6
KEY_CHARS = len(KEY_LEAD) + RANDOM_CHARS + CHECKSUM_CHARS
PREFIX_CHARS = 6
MIN_CHOSEN_CHARS = 16
MAX_CHOSEN_CHARS = 128
CHOSEN_PREFIX_CHARS = 4
"""How much of a key's random part is shown, so that its owner can tell it from others."""

_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_IN_ALPHABET = frozenset(_ALPHABET)

EXPECTED = "Send your key as 'Authorization: Bearer sk_…', or in the x-api-key or api-key header."


def new_key() -> str:
    """Return a fresh key. It is shown once: only `key_hash` of it is kept."""
    random = "".join(secrets.choice(_ALPHABET) for _ in range(RANDOM_CHARS))
    return f"{KEY_LEAD}{random}{_checksum(random)}"


def is_key(text: str) -> bool:
    """Return whether `text` has the form and the checksum of a key."""
    if len(text) != KEY_CHARS or not text.startswith(KEY_LEAD):
        return False
    random = text[len(KEY_LEAD) : -CHECKSUM_CHARS]
    # The checksum is no secret: a comparison in constant time would guard nothing.
    return _IN_ALPHABET.issuperset(text[len(KEY_LEAD) :]) and text[-CHECKSUM_CHARS:] == _checksum(random)


def may_be_key(text: str) -> bool:
    """Return whether the database is worth asking.

    A mistyped key of ours is told by its checksum. What is not of our form may be an admin key that the
    operator chose: the database decides.
    """
    if text.startswith(KEY_LEAD) and len(text) == KEY_CHARS:
        return is_key(text)
    return MIN_CHOSEN_CHARS <= len(text) <= MAX_CHOSEN_CHARS and text.isascii() and text.isprintable()


def key_hash(key: str) -> str:
    """Return the SHA-256 of a key, in lower-case hexadecimal: what the database knows it by."""
    return hashlib.sha256(key.encode()).hexdigest()


def key_prefix(key: str) -> str:
    """Return what may be shown of a key: `sk_abc123…`; of one that somebody chose, less."""
    shown = len(KEY_LEAD) + PREFIX_CHARS if is_key(key) else CHOSEN_PREFIX_CHARS
    return f"{key[:shown]}…"


def bearer_token(headers: Headers) -> str:
    """Return the credential that a request carries, of whatever form.

    It may stand in several headers, if it is the same in all. Raises Unauthorized (401) where there is none,
    where there are two, or where the scheme is not Bearer.
    """
    found: set[str] = set()
    for value in headers.getlist("authorization"):
        scheme, _, token = value.strip().partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Unauthorized(f"The Authorization header is not of the form 'Bearer <key>'. {EXPECTED}")
        found.add(token.strip())
    for name in ("x-api-key", "api-key"):
        found.update(value.strip() for value in headers.getlist(name) if value.strip())
    if not found:
        raise Unauthorized(f"No API key was given. {EXPECTED}", code="missing_api_key")
    if len(found) > 1:
        raise Unauthorized(f"Different API keys were given in several headers. {EXPECTED}")
    return found.pop()


def api_key(headers: Headers) -> str:
    """Return the client key that a request carries.

    Raises Unauthorized (401) as `bearer_token` does, and for what can't be a key: a mistyped one of ours,
    one that is too short or too long. That answer is the one of a key that the database doesn't know.
    """
    token = bearer_token(headers)
    if not may_be_key(token):
        raise unknown_key()
    return token


def unknown_key() -> Unauthorized:
    """Return the error for a key that is unknown, mistyped, revoked or expired: one answer for all."""
    return Unauthorized(f"The API key is not valid. {EXPECTED}")


def _checksum(random: str) -> str:
    # 62**6 exceeds 2**32, so that six characters always hold it.
    value = zlib.crc32(random.encode())
    digits = ""
    for _ in range(CHECKSUM_CHARS):
        value, digit = divmod(value, len(_ALPHABET))
        digits = _ALPHABET[digit] + digits
    return digits
