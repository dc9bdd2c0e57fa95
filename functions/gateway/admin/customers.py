"""Customers, their credits and limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.admin.refusals import client_key_hash, erased, invalid_amount, named, taken, unknown
from gateway.auth import key_hash, key_prefix, new_key
from gateway.database.client import DatabaseError
from gateway.errors import Conflict, Unprocessable
from gateway.http import JSONResponse, read_model, validate
from gateway.paging import Page, path_id
from gateway.refusals import accept, found
from gateway.schemas.admin import (
    AddCreditsRequest,
    CreateCustomerRequest,
    CreateUserRequest,
    SetLimitsRequest,
    UpdateCustomerRequest,
)
from gateway.schemas.admin_queries import SearchQuery
from gateway.schemas.values import as_sent

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from gateway.principals import Principal
    from gateway.runtime.process import Process

EACH_MODEL = "*"
WARN_PERCENT = 80

_INVALID_PARAMETER = "22023"


class Customers:
    """Customers, their credits and limits."""

    def __init__(self, process: Process) -> None:
        self._database = process.database

    async def create(self, request: Request, principal: Principal) -> Response:
        """POST /customers."""
        asked, _ = await read_model(request, CreateCustomerRequest)
        told = accept(
            await self._database.create_customer(
                name=asked.name,
                email=asked.email,
                company=asked.company,
                username=asked.username,
                actor=principal.actor,
            ),
            email_taken=taken("email"),
            username_taken=taken("username"),
        )
        shown = ("id", "name", "email", "company", "username", "created_at")
        return JSONResponse({name: told[name] for name in shown}, status_code=201)

    async def list(self, request: Request, _principal: Principal) -> Response:
        """GET /admin/customers: `?q=` searches names and addresses, `?active=` is true or false."""
        query = validate(SearchQuery, dict(request.query_params))
        page = Page.read(request)
        rows = await self._database.list_customers(
            limit=page.wanted, after=page.cursor or 0, query=query.q, active=query.active
        )
        return JSONResponse(page.listed(rows))

    async def read(self, request: Request, _principal: Principal) -> Response:
        """GET /admin/customers/{id}."""
        rows = await self._database.list_customers(customer_id=path_id(request, "customer"))
        return JSONResponse(found(next(iter(rows), None), unknown("customer")))

    async def update(self, request: Request, principal: Principal) -> Response:
        """PATCH /admin/customers/{id}. `active` false suspends at once."""
        customer_id = path_id(request, "customer")
        asked, _ = await read_model(request, UpdateCustomerRequest, exact=True)
        changes = {name: as_sent(getattr(asked, name)) for name in asked.model_fields_set}
        told = accept(
            await self._database.update_customer(customer_id, changes, actor=principal.actor),
            unknown_customer=unknown("customer"),
            erased_customer=erased(),
            email_taken=taken("email"),
            username_taken=taken("username"),
            unknown_time_zone=Unprocessable(
                "time_zone must be the name of a time zone, such as Asia/Kolkata.",
                code="unknown_time_zone",
                param="time_zone",
            ),
        )
        return JSONResponse(told)

    async def erase(self, request: Request, principal: Principal) -> Response:
        """DELETE /admin/customers/{id}: forgets the person and keeps the books."""
        told = accept(
            await self._database.erase_customer(path_id(request, "customer"), actor=principal.actor),
            unknown_customer=unknown("customer"),
        )
        return JSONResponse(told)

    async def create_user(self, request: Request, principal: Principal) -> Response:
        """POST /admin/create_user."""
        asked, _ = await read_model(request, CreateUserRequest, exact=True)
        key = new_key()
        try:
            told = await self._database.create_user(
                name=asked.name,
                prefix=key_prefix(key),
                secret_hash=key_hash(key),
                email=asked.email,
                company=asked.company,
                credit_count=as_sent(asked.credits),
                rate_limits=asked.rate_limits.limits() if asked.rate_limits else None,
                actor=principal.actor,
            )
        except DatabaseError as error:
            if error.code == _INVALID_PARAMETER:
                raise invalid_amount("credits") from error
            raise
        told = accept(told, email_taken=taken("email"), username_taken=taken("email"))
        return JSONResponse(
            {
                "status": "success",
                "user_id": told["customer_id"],
                "api_key": key,
                "credits": told["credits"],
            },
            status_code=201,
            headers={"cache-control": "no-store"},
        )

    async def add_credits(self, request: Request, principal: Principal) -> Response:
        """POST /admin/add_credits."""
        asked, _ = await read_model(request, AddCreditsRequest, exact=True)
        told = accept(
            await self._database.add_credits(
                customer_id=asked.user_id,
                key_hash=client_key_hash(asked.api_key),
                email=asked.email,
                usd=as_sent(asked.usd),
                credit_count=as_sent(asked.credits),
                reference=asked.reference,
                note=asked.note,
                actor=principal.actor,
            ),
            unknown_customer=unknown("customer", param=named(asked, "user_id", "api_key", "email")),
            erased_customer=erased(param=named(asked, "user_id", "api_key", "email")),
            invalid_amount=invalid_amount(named(asked, "usd", "credits")),
            reserved_reference=Unprocessable(
                "reference: stripe:… is for payments that Stripe tells of",
                param="reference",
                code="reserved_reference",
            ),
            reference_conflict=Conflict(
                "Another amount was booked under this reference.",
                code="reference_conflict",
                param="reference",
            ),
            more_than_free=Conflict(
                "The correction is more than is free of the balance.",
                code="more_than_free",
                param=named(asked, "usd", "credits"),
            ),
        )
        return JSONResponse(
            {
                "status": "success",
                "user_id": told["customer_id"],
                "credits_added": told["credits_added"],
                "added_usd": told["added_usd"],
                "balance_after": told["credits_after"],
                "balance_after_usd": told["balance_after_usd"],
                "debt_usd": told["debt_usd"],
                "duplicate": told["duplicate"],
            }
        )

    async def balances(self, request: Request, _principal: Principal) -> Response:
        """GET /admin/balance."""
        page = Page.read(request)
        rows = await self._database.list_balances(limit=page.wanted, after=page.cursor or 0)
        users, cursor = page.cut(rows, by="user_id")
        return JSONResponse({"status": "success", "users": users, "next_cursor": cursor})

    async def limit(self, request: Request, principal: Principal) -> Response:
        """POST /admin/limit."""
        asked, _ = await read_model(request, SetLimitsRequest, exact=True)
        by_name = isinstance(asked.service, str)
        told = accept(
            await self._database.set_limits(
                key_hash=client_key_hash(asked.api_key),
                key_id=asked.key_id,
                customer_id=asked.user_id,
                service_id=None if by_name else asked.service,  # type: ignore[arg-type]
                service_name=asked.service if by_name else None,  # type: ignore[arg-type]
                model=None if asked.model == EACH_MODEL else asked.model,
                each_model=asked.model == EACH_MODEL,
                rate_limits=asked.rate_limits.changes() if asked.rate_limits else {},
                warn=asked.warn.changes() if asked.warn else {},
                warn_percent=str(WARN_PERCENT if asked.warn_percent is None else asked.warn_percent),
                actor=principal.actor,
            ),
            unknown_key=unknown("key", param=named(asked, "api_key", "key_id")),
            unknown_customer=unknown("customer", param="user_id"),
            unknown_service=unknown("service", param="service"),
            unknown_model=unknown("model", param="model"),
        )
        return JSONResponse({"status": "success", **told})
