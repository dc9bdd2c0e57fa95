"""Who calls the management routes, and what they may do. The chat routes ask inside their admission."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

from gateway.auth import bearer_token, key_hash, may_be_key, unknown_key
from gateway.auth_tokens import is_access_token
from gateway.database.client import DatabaseError
from gateway.errors import Forbidden, Unauthorized
from gateway.observability import append_log_keys
from gateway.refusals import database_refused

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.requests import Request
    from starlette.responses import Response

    from gateway.auth_tokens import AuthTokens, Person
    from gateway.database.rpc import Database
    from gateway.http import Endpoint

    AuthorizedEndpoint = Callable[[Request, "Principal"], Awaitable[Response]]

ADMIN = "admin"
PERSON_SCOPES = frozenset({"usage", "keys", "billing"})
"""What a person may do for its customer. Chat needs a key, which the person can make."""
_OVERSEEING = frozenset({"usage", "keys", ADMIN})
"""Scopes with which a key sees its whole customer, and not its own requests alone."""


class Callers(Protocol):
    """What a process has for telling who calls."""

    @property
    def database(self) -> Database: ...

    @property
    def auth_tokens(self) -> AuthTokens: ...


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller of one request: a key, or a person with an access token of Supabase Auth."""

    key_id: int | None
    """None for a person."""
    customer_id: int | None
    """None for an operator, who belongs to no customer."""
    prefix: str | None
    """What may be shown of the key; None for a person."""
    scopes: frozenset[str]
    username: str | None
    user_id: str | None = None
    """The person's id in Supabase Auth."""

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> Self:
        """Make it of what api.authenticate_key tells."""
        return cls(
            key_id=told["key_id"],
            customer_id=told["customer_id"],
            prefix=told["prefix"],
            scopes=frozenset(told["scopes"]),
            username=told["username"],
        )

    @property
    def is_admin(self) -> bool:
        return ADMIN in self.scopes

    @property
    def actor(self) -> str:
        """The caller's name in the audit log and the ledger: `key sk_AbC123…`, or `user <id>`."""
        return f"user {self.user_id}" if self.key_id is None else f"key {self.prefix}"

    @property
    def reach(self) -> int | None:
        """The customer whose objects the caller may see; None: everybody's."""
        return None if self.is_admin else self.customer_id

    @property
    def own_key_id(self) -> int | None:
        """The key whose requests alone the caller may see; None: those of all that it reaches."""
        return self.key_id if self.scopes.isdisjoint(_OVERSEEING) else None

    @property
    def grantable(self) -> frozenset[str]:
        """The scopes that the caller may give to a key. A person has no scope chat, and makes keys for it."""
        return self.scopes if self.key_id is not None else self.scopes | {"chat"}

    @property
    def bounding_key_id(self) -> int | None:
        """The key beyond which the caller may make or change no key; None where no key bounds it."""
        return None if self.is_admin else self.key_id


async def authenticate(request: Request, callers: Callers) -> Principal:
    """Return who sends this request: by a key, or by an access token of Supabase Auth.

    Raises Unauthorized (401) for no credential and, with one message, for a key that is unknown, revoked,
    switched off or expired, or for a token that is no good; Forbidden (403) where the customer is suspended,
    or where the person has none; Unavailable (503); DatabaseError.
    """
    credential = bearer_token(request.headers)
    if is_access_token(credential):
        principal = await _person(await callers.auth_tokens.verify(credential), callers)
    else:
        principal = await _key(credential, callers.database)
    append_log_keys(key_prefix=principal.prefix, user_id=principal.user_id, customer_id=principal.customer_id)
    return principal


async def _key(key: str, database: Database) -> Principal:
    if not may_be_key(key):
        raise unknown_key()
    told = await database.authenticate_key(key_hash(key))
    error = told.get("error")
    if error == "customer_suspended":
        raise _suspended()
    if error is not None:
        raise unknown_key()
    return Principal.read(told)


async def _person(person: Person, callers: Callers) -> Principal:
    told = await callers.database.authenticate_user(person.user_id, is_admin=person.is_admin)
    if told.get("error") == "may_link" and await callers.auth_tokens.confirms_addresses():
        told = await callers.database.authenticate_user(person.user_id, is_admin=person.is_admin, link=True)
    error = told.get("error")
    if error == "customer_suspended":
        raise _suspended()
    if error == "unknown_user":
        raise Unauthorized(
            "The access token is not valid. Sign in again, or send an API key.",
            code="invalid_token",
            detail="its user was deleted or banned",
        )
    if error is not None:
        raise Forbidden("No account here belongs to this user.", code="no_customer", detail=error)
    return Principal(
        key_id=None,
        customer_id=told["customer_id"],
        prefix=None,
        scopes=PERSON_SCOPES | {ADMIN} if person.is_admin else PERSON_SCOPES,
        username=told["username"],
        user_id=person.user_id,
    )


def _suspended() -> Forbidden:
    return Forbidden("This account is suspended.", code="customer_suspended")


def require_admin(principal: Principal) -> None:
    """Raise Forbidden (403) unless the caller is an admin."""
    if not principal.is_admin:
        raise Forbidden("Only an admin may do this.", code="scope_missing")


def require_scope(principal: Principal, *scopes: str) -> None:
    """Raise Forbidden (403) unless the caller has one of these scopes, or is an admin."""
    if not principal.is_admin and principal.scopes.isdisjoint(scopes):
        wanted = " or ".join(f"'{scope}'" for scope in scopes)
        raise Forbidden(f"This key may not do this: it lacks the scope {wanted}.", code="scope_missing")


def require_key(principal: Principal) -> int:
    """Return the id of the key that calls. Raises Forbidden (403) for a person: the route is about keys."""
    if principal.key_id is None:
        raise Forbidden(
            "This route tells about the API key that calls it. Call it with one.", code="key_required"
        )
    return principal.key_id


def authorized(callers: Callers, endpoint: AuthorizedEndpoint, *scopes: str) -> Endpoint:
    """Return the endpoint for a route, which runs only for callers with one of these scopes, admins included.

    Without scopes any good key will do. The caller is known before the body is read. What the database fails
    in becomes the contract's error.
    """

    async def serve(request: Request) -> Response:
        try:
            principal = await authenticate(request, callers)
            if ADMIN in scopes:
                require_admin(principal)
            elif scopes:
                require_scope(principal, *scopes)
            return await endpoint(request, principal)
        except DatabaseError as error:
            raise database_refused(error) from error

    return serve
