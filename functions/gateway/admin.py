"""The operator's routes: customers and their money, limits, services, the catalogue, the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway import service_keys
from gateway.auth import is_key, key_hash, key_prefix, new_key
from gateway.database.client import DatabaseError
from gateway.errors import Conflict, NotFound, Unprocessable
from gateway.http import JSONResponse, Operation, read_model
from gateway.paging import Page, path_id
from gateway.principals import ADMIN, authorized
from gateway.providers.registry import provider_named
from gateway.refusals import accept, found
from gateway.schemas.admin import (
    AddCreditsRequest,
    ChangeSettingsRequest,
    CreateCustomerRequest,
    CreateModelRequest,
    CreatePriceRequest,
    CreateServiceRequest,
    CreateUserRequest,
    Prices,
    SetLimitsRequest,
    UpdateServiceRequest,
)
from gateway.schemas.values import as_sent
from gateway.service_urls import check_base_url, check_resolved, origin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import BaseModel
    from starlette.requests import Request
    from starlette.responses import Response

    from gateway.principals import AuthorizedEndpoint, Principal
    from gateway.providers.wire import Provider
    from gateway.runtime.process import Process

EACH_MODEL = "*"
WARN_PERCENT = 80
TEXT = ("text",)

_LAST_SHOWN = 4
_LEAST_CHARS_TO_SHOW = 12
"""Of a shorter key, four characters would be too much to show."""
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
            email_taken=_taken("email"),
            username_taken=_taken("username"),
        )
        shown = ("id", "name", "email", "company", "username", "created_at")
        return JSONResponse({name: told[name] for name in shown}, status_code=201)

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
                raise _invalid_amount("credits") from error
            raise
        told = accept(told, email_taken=_taken("email"), username_taken=_taken("email"))
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
                key_hash=_key_hash(asked.api_key),
                email=asked.email,
                usd=as_sent(asked.usd),
                credit_count=as_sent(asked.credits),
                reference=asked.reference,
                note=asked.note,
                actor=principal.actor,
            ),
            unknown_customer=_unknown("customer", param=_named(asked, "user_id", "api_key", "email")),
            invalid_amount=_invalid_amount(_named(asked, "usd", "credits")),
            reference_conflict=Conflict(
                "Another amount was booked under this reference.",
                code="reference_conflict",
                param="reference",
            ),
            more_than_free=Conflict(
                "The correction is more than is free of the balance.",
                code="more_than_free",
                param=_named(asked, "usd", "credits"),
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
                key_hash=_key_hash(asked.api_key),
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
            unknown_key=_unknown("key", param=_named(asked, "api_key", "key_id")),
            unknown_customer=_unknown("customer", param="user_id"),
            unknown_service=_unknown("service", param="service"),
            unknown_model=_unknown("model", param="model"),
        )
        return JSONResponse({"status": "success", **told})


class Services:
    """Connections to providers. A provider key comes in, and never goes out again."""

    def __init__(self, process: Process) -> None:
        self._database = process.database
        self._master_keys = process.settings.master_keys
        self._allow_private = process.settings.allow_private_urls

    async def create(self, request: Request, principal: Principal) -> Response:
        """POST /admin/services."""
        asked, _ = await read_model(request, CreateServiceRequest, exact=True)
        provider = provider_named(asked.provider)
        stored, base_url = await self._base_url(provider, asked.base_url)
        if asked.provider_key is None and provider.key_needed:
            raise _key_demanded(f"{provider.title} needs a provider_key.")
        service_id = await self._database.reserve_service_id()
        told = accept(
            await self._database.create_service(
                service_id=service_id,
                name=asked.name,
                provider=provider.name,
                base_url=stored,
                **self._sealed(asked.provider_key, service_id, provider, base_url),
                enabled_models=asked.enabled_models,
                priority=asked.priority,
                active=asked.active,
                limits=asked.limits.limits() if asked.limits else None,
                actor=principal.actor,
            ),
            **_service_refusals(provider.title),
        )
        return JSONResponse(told, status_code=201)

    async def list(self, request: Request, _principal: Principal) -> Response:
        """GET /admin/services."""
        page = Page.read(request)
        rows = await self._database.list_services(limit=page.wanted, after=page.cursor or 0)
        return JSONResponse(page.listed(rows))

    async def read(self, request: Request, _principal: Principal) -> Response:
        """GET /admin/services/{id}."""
        return JSONResponse(await self._find(path_id(request, "service")))

    async def update(self, request: Request, principal: Principal) -> Response:
        """PATCH /admin/services/{id}."""
        service_id = path_id(request, "service")
        asked, _ = await read_model(request, UpdateServiceRequest, exact=True)
        current = await self._find(service_id)
        changes = asked.model_dump(exclude_unset=True, exclude={"base_url", "provider_key", "limits"})
        if asked.limits is not None:
            changes["limits"] = asked.limits.changes()
        if asked.model_fields_set & {"base_url", "provider_key"}:
            changes |= await self._connection(asked, current)
        told = accept(
            await self._database.update_service(service_id, changes, actor=principal.actor),
            unknown_service=_unknown("service"),
            **_service_refusals(current["provider"]),
        )
        return JSONResponse(told)

    async def delete(self, request: Request, principal: Principal) -> Response:
        """DELETE /admin/services/{id}."""
        service_id = path_id(request, "service")
        if not await self._database.delete_service(service_id, actor=principal.actor):
            raise _unknown("service")
        return JSONResponse({"id": service_id, "deleted": True})

    async def _find(self, service_id: int) -> dict[str, Any]:
        rows = await self._database.list_services(service_id=service_id)
        return found(next(iter(rows), None), _unknown("service"))

    async def _connection(self, asked: UpdateServiceRequest, current: dict[str, Any]) -> dict[str, Any]:
        """Return what changes of where a service is and what opens it there."""
        provider = provider_named(current["provider"])
        changes: dict[str, Any] = {}
        before = current["base_url"] or provider.base_url
        after = before
        if "base_url" in asked.model_fields_set:
            changes["base_url"], after = await self._base_url(provider, asked.base_url)
        if after is None:
            raise Unprocessable(f"{provider.title} needs a base_url.", param="base_url")
        if "provider_key" in asked.model_fields_set:
            if asked.provider_key is None and provider.key_needed:
                raise _key_demanded(f"{provider.title} needs a provider_key.")
            changes |= self._sealed(asked.provider_key, current["id"], provider, after)
        elif current["provider_key_set"] and (before is None or origin(before) != origin(after)):
            # A key that nobody can read must not be had by sending it to a host of one's own.
            raise _key_demanded("A base_url of another origin needs the provider_key anew.")
        return changes

    async def _base_url(self, provider: Provider, asked: str | None) -> tuple[str | None, str]:
        """Return the base URL to store, None for the provider's own, and the one to call."""
        if asked is not None:
            normal = await check_resolved(asked, allow_private=self._allow_private)
            return normal, normal
        if provider.base_url is None:
            raise Unprocessable(f"{provider.title} needs a base_url.", param="base_url")
        check_base_url(provider.base_url, allow_private=self._allow_private)
        return None, provider.base_url

    def _sealed(
        self, provider_key: str | None, service_id: int, provider: Provider, base_url: str
    ) -> dict[str, Any]:
        if provider_key is None:
            return {"provider_key": None, "provider_key_last4": None}
        return {
            "provider_key": service_keys.seal(
                provider_key,
                master_keys=self._master_keys,
                service_id=service_id,
                provider=provider.name,
                base_url=base_url,
            ),
            "provider_key_last4": (
                provider_key[-_LAST_SHOWN:] if len(provider_key) >= _LEAST_CHARS_TO_SHOW else None
            ),
        }


class Catalogue:
    """Models, who sells them, and for how much."""

    def __init__(self, process: Process) -> None:
        self._database = process.database

    async def list_models(self, request: Request, _principal: Principal) -> Response:
        """GET /admin/models."""
        page = Page.read(request)
        rows = await self._database.list_catalogue(limit=page.wanted, after=page.cursor or 0)
        return JSONResponse(page.listed(rows))

    async def create_model(self, request: Request, principal: Principal) -> Response:
        """POST /admin/models."""
        asked, _ = await read_model(request, CreateModelRequest, exact=True)
        offers = [
            {
                "provider": _provider_name(offer.provider, f"offers.{position}.provider"),
                "upstream_model": offer.upstream_model or asked.name,
                "prices": offer.prices and _prices(offer.prices),
            }
            for position, offer in enumerate(asked.offers)
        ]
        if len({offer["provider"] for offer in offers}) < len(offers):
            raise Unprocessable("offers names a provider twice.", param="offers")
        told = accept(
            await self._database.create_model(
                name=asked.name,
                offers=offers,
                display_name=asked.display_name,
                context_length=asked.context_length,
                max_output_tokens=asked.max_output_tokens,
                input_modalities=asked.input_modalities or TEXT,
                output_modalities=asked.output_modalities or TEXT,
                actor=principal.actor,
            ),
            name_taken=_taken("name"),
        )
        return JSONResponse(told, status_code=201)

    async def list_prices(self, request: Request, _principal: Principal) -> Response:
        """GET /admin/prices: versions, the newest first; `?model=` of one model."""
        page = Page.read(request)
        rows = await self._database.list_prices(
            limit=page.wanted, before=page.cursor, model=request.query_params.get("model")
        )
        return JSONResponse(page.listed(rows))

    async def create_price(self, request: Request, principal: Principal) -> Response:
        """POST /admin/prices."""
        asked, _ = await read_model(request, CreatePriceRequest, exact=True)
        told = accept(
            await self._database.create_price(
                model=asked.model,
                provider=_provider_name(asked.provider, "provider"),
                prices=_prices(asked),
                upstream_model=asked.upstream_model,
                service_id=asked.service_id,
                effective_from=as_sent(asked.effective_from),
                actor=principal.actor,
            ),
            unknown_model=_unknown("model", param="model"),
            unknown_offer=NotFound(
                "This provider does not offer this model yet: name its upstream_model.",
                code="offer_not_found",
                param="provider",
            ),
            unknown_service=_unknown(
                "service of this provider", param="service_id", code="service_not_found"
            ),
            in_the_past=Unprocessable(
                "effective_from must not lie in the past: what was admitted is not priced again.",
                param="effective_from",
            ),
        )
        return JSONResponse(told, status_code=201)


class System:
    """The settings of the whole, and the proof that its books add up."""

    def __init__(self, process: Process) -> None:
        self._database = process.database

    async def read_settings(self, _request: Request, principal: Principal) -> Response:
        """GET /admin/settings."""
        return JSONResponse(await self._database.change_settings({}, actor=principal.actor))

    async def change_settings(self, request: Request, principal: Principal) -> Response:
        """PATCH /admin/settings."""
        asked, _ = await read_model(request, ChangeSettingsRequest, exact=True)
        changes = {name: as_sent(getattr(asked, name)) for name in asked.model_fields_set}
        return JSONResponse(await self._database.change_settings(changes, actor=principal.actor))

    async def check_ledger(self, _request: Request, _principal: Principal) -> Response:
        """GET /admin/ledger/check."""
        return JSONResponse(await self._database.check_ledger())


def _prices(prices: Prices) -> dict[str, Any]:
    return {
        name: as_sent(value) for name in Prices.model_fields if (value := getattr(prices, name)) is not None
    }


def _provider_name(name: str, param: str) -> str:
    try:
        return provider_named(name).name
    except Unprocessable as error:
        error.param = param
        raise


def _key_hash(key: str | None) -> str | None:
    if key is None:
        return None
    if not is_key(key):
        raise _unknown("key", param="api_key")
    return key_hash(key)


def _named(asked: BaseModel, *names: str) -> str | None:
    return next((name for name in names if getattr(asked, name) is not None), None)


def _service_refusals(provider: str) -> dict[str, Any]:
    return {
        "name_taken": _taken("name"),
        "unknown_model": Unprocessable(
            f"enabled_models names a model that the catalogue does not have from {provider}.",
            code="model_not_found",
            param="enabled_models",
        ),
    }


def _key_demanded(message: str) -> Unprocessable:
    return Unprocessable(message, code="provider_key_required", param="provider_key")


def _unknown(what: str, *, param: str | None = None, code: str | None = None) -> NotFound:
    return NotFound(f"There is no such {what}.", code=code or f"{what}_not_found", param=param)


def _taken(param: str) -> Conflict:
    return Conflict(f"This {param} is taken.", code=f"{param}_taken", param=param)


def _invalid_amount(param: str | None) -> Unprocessable:
    return Unprocessable(
        "The amount must not be zero, nor beyond a billion USD, nor finer than the tenth decimal of a USD, "
        "and the balance stays below ten billion.",
        code="invalid_amount",
        param=param,
    )


def operations(process: Process) -> Sequence[Operation]:
    """Return the operator's routes."""
    customers, services = Customers(process), Services(process)
    catalogue, system = Catalogue(process), System(process)

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
            authorized(process.database, endpoint, ADMIN),
            summary,
            scope=ADMIN,
            request_model=body,
            status=status,
            tags=("admin",),
        )

    return (
        route("POST", "/customers", customers.create, "Add a customer", CreateCustomerRequest, status=201),
        route(
            "POST",
            "/admin/create_user",
            customers.create_user,
            "Add a customer with a key and credits",
            CreateUserRequest,
            status=201,
        ),
        route("POST", "/admin/add_credits", customers.add_credits, "Add credits", AddCreditsRequest),
        route("GET", "/admin/balance", customers.balances, "List balances"),
        route("POST", "/admin/limit", customers.limit, "Set limits", SetLimitsRequest),
        route("GET", "/admin/services", services.list, "List services"),
        route("POST", "/admin/services", services.create, "Add a service", CreateServiceRequest, status=201),
        route("GET", "/admin/services/{id}", services.read, "Read a service"),
        route("PATCH", "/admin/services/{id}", services.update, "Change a service", UpdateServiceRequest),
        route("DELETE", "/admin/services/{id}", services.delete, "Delete a service"),
        route("GET", "/admin/models", catalogue.list_models, "List the catalogue"),
        route("POST", "/admin/models", catalogue.create_model, "Add a model", CreateModelRequest, status=201),
        route("GET", "/admin/prices", catalogue.list_prices, "List versions of prices"),
        route("POST", "/admin/prices", catalogue.create_price, "Set a price", CreatePriceRequest, status=201),
        route("GET", "/admin/settings", system.read_settings, "Read the settings"),
        route("PATCH", "/admin/settings", system.change_settings, "Change settings", ChangeSettingsRequest),
        route("GET", "/admin/ledger/check", system.check_ledger, "Recompute the books"),
    )
