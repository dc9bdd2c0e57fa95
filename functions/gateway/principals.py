"""Who calls the management routes, and what they may do. The chat routes ask inside their admission."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from gateway.auth import api_key, key_hash, unknown_key
from gateway.database.client import DatabaseError
from gateway.errors import Forbidden
from gateway.observability import append_log_keys
from gateway.refusals import database_refused

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.requests import Request
    from starlette.responses import Response

    from gateway.database.rpc import Database
    from gateway.http import Endpoint

    AuthorizedEndpoint = Callable[[Request, "Principal"], Awaitable[Response]]

ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller of one request, as its key tells."""

    key_id: int
    customer_id: int | None
    """None for an operator's key, which belongs to nobody."""
    prefix: str
    scopes: frozenset[str]
    username: str | None
    allowed_models: frozenset[int] | None
    """None: all."""
    allowed_services: frozenset[int] | None

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> Self:
        """Make it of what api.authenticate_key tells."""
        models, services = told["allowed_models"], told["allowed_services"]
        return cls(
            key_id=told["key_id"],
            customer_id=told["customer_id"],
            prefix=told["prefix"],
            scopes=frozenset(told["scopes"]),
            username=told["username"],
            allowed_models=None if models is None else frozenset(models),
            allowed_services=None if services is None else frozenset(services),
        )

    @property
    def is_admin(self) -> bool:
        return ADMIN in self.scopes

    @property
    def actor(self) -> str:
        """The caller's name in the audit log and the ledger: `key sk_AbC123…`."""
        return f"key {self.prefix}"

    @property
    def reach(self) -> int | None:
        """The customer whose objects the caller may see; None: everybody's."""
        return None if self.is_admin else self.customer_id


async def authenticate(request: Request, database: Database) -> Principal:
    """Return who sends this request.

    Raises Unauthorized (401) for no key and, with one message, for one that is unknown, revoked, switched off
    or expired; Forbidden (403) where the customer is suspended; DatabaseError.
    """
    told = await database.authenticate_key(key_hash(api_key(request.headers)))
    error = told.get("error")
    if error == "customer_suspended":
        raise Forbidden("This account is suspended.", code="customer_suspended")
    if error is not None:
        raise unknown_key()
    principal = Principal.read(told)
    append_log_keys(key_prefix=principal.prefix, customer_id=principal.customer_id)
    return principal


def require_admin(principal: Principal) -> None:
    """Raise Forbidden (403) unless the caller is an admin."""
    if not principal.is_admin:
        raise Forbidden("Only an admin key may do this.", code="scope_missing")


def require_scope(principal: Principal, *scopes: str) -> None:
    """Raise Forbidden (403) unless the caller has one of these scopes, or is an admin."""
    if not principal.is_admin and principal.scopes.isdisjoint(scopes):
        wanted = " or ".join(f"'{scope}'" for scope in scopes)
        raise Forbidden(f"This key may not do this: it lacks the scope {wanted}.", code="scope_missing")


def authorized(database: Database, endpoint: AuthorizedEndpoint, *scopes: str) -> Endpoint:
    """Return the endpoint for a route, which runs only for callers with one of these scopes, admins included.

    Without scopes any good key will do. The caller is known before the body is read. What the database fails
    in becomes the contract's error.
    """

    async def serve(request: Request) -> Response:
        try:
            principal = await authenticate(request, database)
            if ADMIN in scopes:
                require_admin(principal)
            elif scopes:
                require_scope(principal, *scopes)
            return await endpoint(request, principal)
        except DatabaseError as error:
            raise database_refused(error) from error

    return serve
