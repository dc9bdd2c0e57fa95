"""Access tokens of Supabase Auth: who a person is that signs in, in place of a key.

A token is a JSON Web Token (RFC 7519) that the project's Auth server has signed. Which algorithm checks it is
told by the key that checks it, and never by the token (RFC 8725, 3.1): a key of the project's JWKS by its
type, the shared secret, where the operator has set one, HS256 and nothing else. Of the claims, those that the
Auth server alone writes are believed. What a person writes about itself, `user_metadata`, is not read.

Nothing is asked of the Auth server for each token, so that a session that was signed out lives until its
token expires. Whether the user was deleted or banned meanwhile is seen in the database.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
import re
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx

from gateway.errors import Unauthorized, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gateway.settings import Settings

MAX_TOKEN_CHARS = 8192
AUTHENTICATED = "authenticated"
"""The audience and the role of everybody who has signed in."""
ADMIN = "admin"
LEEWAY_SECONDS = 30

FRESH_SECONDS = 600.0
"""How long a key set is used before it is fetched anew."""
LAST_GOOD_SECONDS = 3600.0
"""How long one is used while no newer can be had."""
INTERVAL_SECONDS = 30.0
"""The least time between two fetches, whatever key ids clients send."""
FIRST_INTERVAL_SECONDS = 3.0
"""The same while there is no key set at all."""
FETCH_SECONDS = 5.0
MAX_ANSWER_BYTES = 64 * 1024
MAX_KEYS = 32
_OK = 200

_TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)
# Keys and conditions that a token brings along itself, and forms of it that Supabase does not use.
_REFUSED_HEADERS = frozenset({"crit", "b64", "zip", "enc", "jwk", "jku", "x5u", "x5c", "x5t", "x5t#S256"})
_KINDS = (("ES256", "EC", "P-256"), ("RS256", "RSA", None), ("EdDSA", "OKP", "Ed25519"))
_HEAD = "eyJ"
"""How the base64 of a JSON object begins."""


@dataclass(frozen=True, slots=True)
class Person:
    """Whom a good token is of."""

    user_id: str
    """A UUID, in its canonical form."""
    is_admin: bool
    """By `app_metadata`, which the project's service key alone can write."""


class _InvalidError(Exception):
    """A token is not good. The text is for the log, and shows nothing of the token."""


class _AwayError(Exception):
    """The Auth server gave no usable answer."""


def is_access_token(text: str) -> bool:
    """Return whether a credential is a token, and no key."""
    return text.startswith(_HEAD) and text.count(".") == 2  # noqa: PLR2004 - header, claims, signature


class AuthTokens:
    """Checks the tokens of one issuer. `open_http` makes the client for its key set, at the first need."""

    def __init__(
        self,
        settings: Settings,
        open_http: Callable[[], httpx.AsyncClient],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._issuer = settings.auth_issuer
        self._secret = settings.auth_jwt_secret
        self._api_key = _own_api_key(settings)
        self._server = _AuthServer(open_http)
        self._keys = _KeySet(self._server, settings.auth_jwks_url, clock)

    async def verify(self, token: str) -> Person:
        """Return whom the token is of.

        Raises Unauthorized (401), with one message whatever the fault; Unavailable (503) where there are no
        keys to check it by.
        """
        try:
            return _person(await self._open(token), self._issuer)
        except _InvalidError as error:
            raise Unauthorized(
                "The access token is not valid. Sign in again, or send an API key.",
                code="invalid_token",
                detail=str(error),
            ) from None

    async def confirms_addresses(self) -> bool:
        """Return whether the project has people confirm their addresses before they sign in.

        Where it does not, anybody may have signed up by anybody's address. Raises Unavailable (503).
        """
        headers = {"apikey": self._api_key} if self._api_key else {}
        try:
            told = await self._server.get(f"{self._issuer}/settings", headers)
        except _AwayError as error:
            raise _unavailable(str(error)) from error
        return isinstance(told, dict) and told.get("mailer_autoconfirm") is False

    async def aclose(self) -> None:
        await self._server.aclose()

    async def _open(self, token: str) -> dict[str, Any]:
        """Return the claims, which are then the issuer's."""
        if len(token) > MAX_TOKEN_CHARS or not _TOKEN.fullmatch(token):
            raise _InvalidError("malformed")
        header = _read_object(token.partition(".")[0])
        if _REFUSED_HEADERS & header.keys():
            raise _InvalidError("its header brings its own key or condition")
        kid = header.get("kid")
        if kid is not None and not isinstance(kid, str):
            raise _InvalidError("its key id is no text")
        if self._secret is not None and not self._keys.knows(kid):
            claims = _verified(token, self._secret.get_secret_value().encode(), "HS256")
            if claims is not None:
                return claims
        key = await self._keys.find(kid) if kid is not None else None
        if key is None:
            raise _InvalidError("signed by no known key")
        claims = _verified(token, key.material, key.algorithm)
        if claims is None:
            raise _InvalidError("its signature does not fit")
        return claims


@dataclass(frozen=True, slots=True)
class _Key:
    algorithm: str
    material: Any


class _KeySet:
    """The issuer's public keys, kept in the process."""

    def __init__(self, server: _AuthServer, url: str | None, clock: Callable[[], float]) -> None:
        self._server = server
        self._url = url
        self._clock = clock
        self._turn = asyncio.Lock()
        self._keys: Mapping[str, _Key] = {}
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._fault = ""

    def knows(self, kid: str | None) -> bool:
        return kid in self._keys

    async def find(self, kid: str) -> _Key | None:
        """Return the key of this id, None where the issuer has none. Raises Unavailable (503)."""
        if self._url is None:
            return None
        if self._is_due(kid):
            async with self._turn:
                if self._is_due(kid):  # else another call has fetched it while this one waited
                    await self._fetch(self._url)
        if not self._is_usable():
            raise _unavailable(f"no key set: {self._fault}")
        return self._keys.get(kid)

    def _is_usable(self) -> bool:
        return self._fetched_at is not None and self._clock() - self._fetched_at < LAST_GOOD_SECONDS

    def _is_due(self, kid: str) -> bool:
        now = self._clock()
        interval = INTERVAL_SECONDS if self._is_usable() else FIRST_INTERVAL_SECONDS
        if self._tried_at is not None and now - self._tried_at < interval:
            return False
        stale = self._fetched_at is None or now - self._fetched_at >= FRESH_SECONDS
        return stale or kid not in self._keys

    async def _fetch(self, url: str) -> None:
        try:
            self._keys = _read_keys(await self._server.get(url, {}))
            self._fetched_at = self._clock()
        except _AwayError as error:
            self._fault = str(error)
        finally:
            # Counted from its end, so that a slow server is asked no more often for being slow.
            self._tried_at = self._clock()


class _AuthServer:
    """Small JSON documents, from one server that is trusted for what it says and not for how much."""

    def __init__(self, open_http: Callable[[], httpx.AsyncClient]) -> None:
        self._open_http = open_http
        self._http: httpx.AsyncClient | None = None

    async def get(self, url: str, headers: Mapping[str, str]) -> Any:
        """Return what is at `url`. Raises _AwayError. Redirects are not followed."""
        if self._http is None:
            self._http = self._open_http()
        body = bytearray()
        try:
            async with (
                asyncio.timeout(FETCH_SECONDS),
                self._http.stream(
                    "GET", url, headers={**headers, "accept-encoding": "identity"}, follow_redirects=False
                ) as response,
            ):
                if response.status_code != _OK:
                    raise _AwayError(f"HTTP {response.status_code}")
                # As it comes: nothing is unpacked that a few bytes could make large.
                async for part in response.aiter_raw():
                    body += part
                    if len(body) > MAX_ANSWER_BYTES:
                        raise _AwayError(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
            return json.loads(body)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError, RecursionError) as error:
            raise _AwayError(type(error).__name__) from error

    async def aclose(self) -> None:
        if self._http is not None:
            await self._http.aclose()


def _unavailable(detail: str) -> Unavailable:
    return Unavailable(
        "Access tokens can't be checked at the moment.",
        retry_after=FIRST_INTERVAL_SECONDS,
        code="auth_unavailable",
        detail=detail,
    )


def _own_api_key(settings: Settings) -> str | None:
    """Return the project's key for its Auth server: for that of the same project, and of no other."""
    if settings.auth_issuer is None:
        return None
    issuer, project = urlsplit(settings.auth_issuer), urlsplit(settings.rest_url)
    same = (issuer.scheme, issuer.netloc) == (project.scheme, project.netloc)
    return settings.supabase_key.get_secret_value() if same else None


def _read_keys(document: Any) -> dict[str, _Key]:
    """Return the keys of a JWKS that can check signatures, by their ids. Raises _AwayError for no JWKS."""
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise _AwayError("no key set")
    keys: dict[str, _Key] = {}
    for told in listed[:MAX_KEYS]:
        key = _read_key(told)
        if key is not None:
            keys.setdefault(told["kid"], key)
    return keys


def _read_key(told: Any) -> _Key | None:
    """Return a public key of a kind that Supabase signs with; its type fixes the algorithm."""
    if not isinstance(told, dict) or not isinstance(told.get("kid"), str) or "d" in told:
        return None
    algorithm = next(
        (name for name, kty, crv in _KINDS if (told.get("kty"), told.get("crv")) == (kty, crv)), None
    )
    if algorithm is None or told.get("alg", algorithm) != algorithm or told.get("use", "sig") != "sig":
        return None
    import jwt  # noqa: PLC0415 - 30 ms, for a process that is never sent a token

    try:
        material = jwt.PyJWK(told, algorithm=algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    if algorithm == "RS256" and material.key_size < 2048:  # noqa: PLR2004 - bits
        return None
    return _Key(algorithm, material)


def _verified(token: str, material: Any, algorithm: str) -> dict[str, Any] | None:
    """Return the claims if this key has signed the token by this algorithm, else None."""
    import jwt  # noqa: PLC0415

    try:
        payload = jwt.PyJWS().decode(token, material, algorithms=[algorithm])
    except jwt.PyJWTError:
        return None
    return _parse_object(payload)


def _person(claims: Mapping[str, Any], issuer: str | None) -> Person:
    now = time.time()
    if issuer is None or claims.get("iss") != issuer:
        raise _InvalidError("another issuer's")
    if claims.get("aud") not in (AUTHENTICATED, [AUTHENTICATED]) or claims.get("role") != AUTHENTICATED:
        raise _InvalidError("not of somebody who has signed in")
    expires_at, issued_at = _moment(claims, "exp"), _moment(claims, "iat")
    not_before = _moment(claims, "nbf") if "nbf" in claims else issued_at
    if now >= expires_at + LEEWAY_SECONDS:
        raise _InvalidError("expired")
    if max(issued_at, not_before) > now + LEEWAY_SECONDS or issued_at > expires_at:
        raise _InvalidError("not valid yet")
    if claims.get("is_anonymous", False) is not False:
        raise _InvalidError("of somebody anonymous")
    metadata = claims.get("app_metadata")
    return Person(
        user_id=_user_id(claims.get("sub")),
        is_admin=isinstance(metadata, dict) and metadata.get("role") == ADMIN,
    )


def _user_id(subject: Any) -> str:
    try:
        user_id = str(uuid.UUID(subject))
    except (ValueError, TypeError, AttributeError):
        user_id = ""
    if not user_id or user_id != subject.lower():
        raise _InvalidError("its subject is no user's id")
    return user_id


def _moment(claims: Mapping[str, Any], name: str) -> float:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _InvalidError(f"{name} is no time")
    return float(value)


def _read_object(segment: str) -> dict[str, Any]:
    try:
        text = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    except ValueError:
        raise _InvalidError("malformed") from None
    return _parse_object(text)


def _parse_object(text: bytes) -> dict[str, Any]:
    """Return a JSON object, in which no name stands twice: of two, another reader might take the other."""
    try:
        value = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise _InvalidError("malformed") from None
    if not isinstance(value, dict):
        raise _InvalidError("malformed")
    return value


def _without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    named = dict(pairs)
    if len(named) < len(pairs):
        raise ValueError("a name stands twice")
    return named


def _no_constant(name: str) -> None:
    raise ValueError(name)
