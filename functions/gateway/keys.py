"""The routes of API keys: made, listed, changed, rotated, switched off and on, revoked.

What a caller may hand out lies within what it may do itself. The database decides that, in the transaction
that makes or changes the key.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from gateway import json_text
from gateway.auth import is_key, key_hash, key_prefix, new_key, unknown_key
from gateway.errors import Conflict, Forbidden, NotFound, Unprocessable
from gateway.http import JSONResponse, Operation, read_body, read_model, validate
from gateway.paging import Page, path_id, query_flag, query_id
from gateway.principals import authorized
from gateway.refusals import accept, found
from gateway.schemas.keys import (
    CreateKeyRequest,
    CreateOlderKeyRequest,
    DeleteOlderKeyRequest,
    RotateKeyRequest,
    UpdateKeyRequest,
    limits_by_model,
)
from gateway.schemas.values import as_sent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import BaseModel
    from starlette.requests import Request
    from starlette.responses import Response

    from gateway.principals import AuthorizedEndpoint, Principal
    from gateway.runtime.process import Process

SCOPE = "keys"
DEFAULT_SCOPES = ("chat", "usage")

_SECRET_HEADERS = {"cache-control": "no-store"}


class Keys:
    """The endpoints of keys. A caller sees the keys of its customer, an admin all."""

    def __init__(self, process: Process) -> None:
        self._database = process.database

    async def create(self, request: Request, principal: Principal) -> Response:
        """POST /v1/keys."""
        asked, _ = await read_model(request, CreateKeyRequest, exact=True)
        told = await self._make(
            principal,
            customer_id=_customer(principal, asked.customer_id),
            name=asked.name,
            scopes=asked.scopes,
            allowed_models=asked.allowed_models,
            allowed_services=asked.allowed_services,
            expires_at=asked.expires_at,
            limits=asked.limits.limits() if asked.limits else None,
            model_limits=limits_by_model(asked.model_limits),
            warn=asked.warn.limits() if asked.warn else None,
            warn_percent=as_sent(asked.warn_percent),
        )
        return JSONResponse(told, status_code=201, headers=_SECRET_HEADERS)

    async def create_older(self, request: Request, principal: Principal) -> Response:
        """POST /api/keys."""
        asked, _ = await read_model(request, CreateOlderKeyRequest)
        customer_id = await self._named_customer(principal, asked.customer_email, request.headers.get("user"))
        told = await self._make(
            principal,
            customer_id=customer_id,
            name=asked.name,
            allowed_models=asked.allowed_models,
            rate_limit=asked.rate_limit,
        )
        shown = {name: told[name] for name in ("id", "key", "name", "rate_limit", "allowed_models")}
        return JSONResponse(shown, headers=_SECRET_HEADERS)

    async def list(self, request: Request, principal: Principal) -> Response:
        """GET /v1/keys and GET /api/keys. `customer_id` is for admins."""
        page = Page.read(request)
        customer_id = query_id(request, "customer_id")
        if customer_id is not None and not principal.is_admin and customer_id != principal.customer_id:
            raise _no_customer("customer_id")
        rows = await self._database.list_keys(
            customer_id=principal.reach if customer_id is None else customer_id,
            limit=page.wanted,
            after=page.cursor or 0,
            active=query_flag(request, "active"),
        )
        return JSONResponse(page.listed(rows))

    async def read(self, request: Request, principal: Principal) -> Response:
        """GET /v1/keys/{id}."""
        key_id = path_id(request, "key")
        rows = await self._database.list_keys(customer_id=principal.reach, key_id=key_id)
        return JSONResponse(found(next(iter(rows), None), _no_key()))

    async def update(self, request: Request, principal: Principal) -> Response:
        """PATCH /v1/keys/{id}."""
        key_id = path_id(request, "key")
        asked, _ = await read_model(request, UpdateKeyRequest, exact=True)
        _check_expiry(asked.expires_at)
        told = await self._database.update_key(
            key_id,
            asked.changes(),
            customer_id=principal.reach,
            caller_key_id=principal.bounding_key_id,
            actor=principal.actor,
        )
        return JSONResponse(_accept(told))

    async def rotate(self, request: Request, principal: Principal) -> Response:
        """POST /v1/keys/{id}/rotate, which needs no body."""
        key_id = path_id(request, "key")
        body = await read_body(request)
        asked = validate(RotateKeyRequest, json_text.parse_request(body) if body else {})
        key = new_key()
        told = await self._database.rotate_key(
            key_id,
            customer_id=principal.reach,
            caller_key_id=principal.bounding_key_id,
            prefix=key_prefix(key),
            secret_hash=key_hash(key),
            grace_seconds=asked.grace_seconds,
            actor=principal.actor,
        )
        return JSONResponse({**_accept(told), "key": key}, headers=_SECRET_HEADERS)

    async def toggle(self, request: Request, principal: Principal) -> Response:
        """POST /v1/keys/{id}/toggle and POST /api/keys/{id}/toggle."""
        told = await self._set_state(principal, "toggled", key_id=path_id(request, "key"))
        return JSONResponse({"id": told["id"], "active": told["active"]})

    async def revoke(self, request: Request, principal: Principal) -> Response:
        """DELETE /v1/keys/{id}."""
        return _revoked(await self._set_state(principal, "revoked", key_id=path_id(request, "key")))

    async def revoke_older(self, request: Request, principal: Principal) -> Response:
        """DELETE /api/keys, which names the key by itself."""
        asked, _ = await read_model(request, DeleteOlderKeyRequest)
        if not is_key(asked.key):
            raise _no_key()
        return _revoked(await self._set_state(principal, "revoked", key_hash=key_hash(asked.key)))

    async def _make(
        self,
        principal: Principal,
        *,
        customer_id: int | None,
        name: str,
        scopes: Sequence[str] | None = None,
        allowed_models: Sequence[int | str] | None = None,
        allowed_services: Sequence[int] | None = None,
        expires_at: datetime | None = None,
        rate_limit: int | None = None,
        limits: dict[str, Any] | None = None,
        model_limits: dict[str, Any] | None = None,
        warn: dict[str, Any] | None = None,
        warn_percent: str | None = None,
    ) -> dict[str, Any]:
        _check_expiry(expires_at)
        given = _scopes(principal, scopes, customer_id)
        key = new_key()
        told = await self._database.create_key(
            customer_id=customer_id,
            name=name,
            prefix=key_prefix(key),
            secret_hash=key_hash(key),
            scopes=given,
            allowed_models=allowed_models,
            allowed_services=allowed_services,
            expires_at=None if expires_at is None else expires_at.isoformat(),
            rate_limit=rate_limit,
            limits=limits,
            model_limits=model_limits,
            warn=warn,
            warn_percent=warn_percent,
            bounded=not principal.is_admin,
            maker_key_id=principal.bounding_key_id,
            actor=principal.actor,
        )
        return {**_accept(told), "key": key}

    async def _set_state(self, principal: Principal, state: str, **key: Any) -> dict[str, Any]:
        return _accept(
            await self._database.set_key_state(
                customer_id=principal.reach,
                caller_key_id=principal.bounding_key_id,
                state=state,
                actor=principal.actor,
                **key,
            )
        )

    async def _named_customer(self, principal: Principal, email: str | None, username: str | None) -> int:
        """Return the customer that an older route names, by default the caller's own."""
        own = principal.customer_id
        named = {
            param: await self._database.find_customer(**{by: name})
            for param, by, name in (("customer_email", "email", email), ("user", "username", username))
            if name
        }
        if not principal.is_admin and any(customer_id != own for customer_id in named.values()):
            # One answer, whether there is such a customer or not.
            raise _not_own_customer(next(iter(named)))
        for param, customer_id in named.items():
            if customer_id is None:
                raise _no_customer(param)
        customers = set(named.values()) or {own}
        if len(customers) > 1:
            raise Unprocessable(
                "customer_email and the user header name two customers.", param="customer_email"
            )
        customer_id = customers.pop()
        if customer_id is None:
            raise Unprocessable(
                "This key belongs to no customer: name one by customer_email or the user header.",
                param="customer_email",
            )
        return customer_id


def _customer(principal: Principal, asked: int | None) -> int | None:
    if asked is not None and not principal.is_admin and asked != principal.customer_id:
        raise _not_own_customer("customer_id")
    return principal.customer_id if asked is None else asked


def _scopes(principal: Principal, asked: Sequence[str] | None, customer_id: int | None) -> list[str]:
    if customer_id is None and (asked is None or set(asked) != {"admin"}):
        raise Unprocessable(
            "A key needs a customer_id, unless its scopes are ['admin'] alone.", param="customer_id"
        )
    if asked is None:
        scopes = [scope for scope in DEFAULT_SCOPES if principal.is_admin or scope in principal.grantable]
        if not scopes:
            raise Unprocessable("scopes must be named: this key has none of the usual ones.", param="scopes")
        return scopes
    return list(dict.fromkeys(asked))


def _check_expiry(expires_at: datetime | None) -> None:
    if expires_at is not None and expires_at <= datetime.now(UTC):
        raise Unprocessable("expires_at must lie in the future.", param="expires_at")


def _accept(told: dict[str, Any]) -> dict[str, Any]:
    """Return the key that the database told, or raise its refusal as the contract has it."""
    field = told.get("field", "")
    return accept(
        told,
        unknown_key=_no_key(),
        stopped_caller=unknown_key(),
        revoked_key=Conflict("This key is revoked, for good.", code="key_revoked"),
        admin_key=Forbidden("Only an admin may change an admin key.", code="scope_missing"),
        unknown_customer=_no_customer("customer_id"),
        erased_customer=Conflict("This customer is erased.", code="customer_erased"),
        unknown_model=Unprocessable(f"{field} names a model that is unknown.", param=field),
        unknown_service=Unprocessable(
            "allowed_services names a service that is unknown.", param="allowed_services"
        ),
        exceeds_maker=Forbidden(
            f"The {field} of this key must lie within what the caller has itself.",
            code="exceeds_maker",
            param=field or None,
        ),
        too_many_makers=Forbidden(
            "This key was made by a key that was made by a key, and so on: it can make no more.",
            code="too_many_makers",
        ),
        scopes_of_nobody=Unprocessable(
            "A key that belongs to no customer has the scope 'admin' alone.", param="scopes"
        ),
    )


def _revoked(told: dict[str, Any]) -> Response:
    return JSONResponse({"id": told["id"], "active": told["active"], "deleted": True})


def _no_key() -> NotFound:
    return NotFound("There is no such key.", code="key_not_found")


def _no_customer(param: str) -> NotFound:
    return NotFound("There is no such customer.", code="customer_not_found", param=param)


def _not_own_customer(param: str) -> Forbidden:
    return Forbidden("Only an admin may make keys of another customer.", code="scope_missing", param=param)


def operations(process: Process) -> Sequence[Operation]:
    """Return the routes of keys."""
    keys = Keys(process)

    def route(
        method: str,
        path: str,
        endpoint: AuthorizedEndpoint,
        summary: str,
        body: type[BaseModel] | None = None,
        *,
        status: int = 200,
    ) -> Operation:
        return Operation(
            method,
            path,
            authorized(process, endpoint, SCOPE),
            summary,
            scope=SCOPE,
            request_model=body,
            status=status,
            tags=("keys",),
        )

    return (
        route("POST", "/v1/keys", keys.create, "Make a key", CreateKeyRequest, status=201),
        route("GET", "/v1/keys", keys.list, "List keys"),
        route("GET", "/v1/keys/{id}", keys.read, "Read a key"),
        route("PATCH", "/v1/keys/{id}", keys.update, "Change a key", UpdateKeyRequest),
        route("DELETE", "/v1/keys/{id}", keys.revoke, "Revoke a key"),
        route("POST", "/v1/keys/{id}/rotate", keys.rotate, "Give a key a new secret", RotateKeyRequest),
        route("POST", "/v1/keys/{id}/toggle", keys.toggle, "Switch a key off or on"),
        route("POST", "/api/keys", keys.create_older, "Make a key (older route)", CreateOlderKeyRequest),
        route("GET", "/api/keys", keys.list, "List keys (older route)"),
        route("DELETE", "/api/keys", keys.revoke_older, "Revoke a key (older route)", DeleteOlderKeyRequest),
        route("POST", "/api/keys/{id}/toggle", keys.toggle, "Switch a key off or on (older route)"),
    )
