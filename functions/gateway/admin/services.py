"""Connections to providers. A provider key comes in, and never goes out again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway import service_keys
from gateway.admin.refusals import taken, unknown
from gateway.errors import Unprocessable
from gateway.http import JSONResponse, read_model
from gateway.paging import Page, path_id
from gateway.providers.registry import PROVIDERS, provider_named
from gateway.refusals import accept, found
from gateway.schemas.admin import CreateServiceRequest, UpdateServiceRequest
from gateway.service_check import ServiceCheck
from gateway.service_urls import check_base_url, check_resolved, origin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from gateway.principals import Principal
    from gateway.providers.wire import Provider
    from gateway.runtime.process import Process
    from gateway.schemas.admin import RouteRequest

_LAST_SHOWN = 4
_LEAST_CHARS_TO_SHOW = 12
"""Of a shorter key, four characters would be too much to show."""


class Services:
    """Connections to providers. A provider key comes in, and never goes out again."""

    def __init__(self, process: Process) -> None:
        self._database = process.database
        self._settings = process.settings
        self._http = process.providers_http
        self._master_keys = process.settings.master_keys
        self._allow_private = process.settings.allow_private_urls

    async def providers(self, _request: Request, _principal: Principal) -> Response:
        """GET /admin/providers: what a service can be a connection to."""
        told = [
            {
                "name": known.name,
                "title": known.title,
                "base_url": known.base_url,
                "key_needed": known.key_needed,
            }
            for known in PROVIDERS
        ]
        return JSONResponse({"data": told})

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
                routes=_routes(asked.enabled_models),
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
        changes = asked.model_dump(
            exclude_unset=True, exclude={"base_url", "provider_key", "limits", "enabled_models"}
        )
        if asked.enabled_models is not None:
            changes["enabled_models"] = _routes(asked.enabled_models)
        if asked.limits is not None:
            changes["limits"] = asked.limits.changes()
        if asked.model_fields_set & {"base_url", "provider_key"}:
            changes |= await self._connection(asked, current)
        told = accept(
            await self._database.update_service(service_id, changes, actor=principal.actor),
            unknown_service=unknown("service"),
            **_service_refusals(current["provider"]),
        )
        return JSONResponse(told)

    async def delete(self, request: Request, principal: Principal) -> Response:
        """DELETE /admin/services/{id}."""
        service_id = path_id(request, "service")
        if not await self._database.delete_service(service_id, actor=principal.actor):
            raise unknown("service")
        return JSONResponse({"id": service_id, "deleted": True})

    async def test(self, request: Request, _principal: Principal) -> Response:
        """POST /admin/services/{id}/test: a real call, now. What is wrong is the answer, not an error."""
        connection = found(
            await self._database.read_connection(path_id(request, "service")), unknown("service")
        )
        finding = await ServiceCheck(connection, self._settings, self._http).run()
        return JSONResponse(finding.as_json())

    async def _find(self, service_id: int) -> dict[str, Any]:
        rows = await self._database.list_services(service_id=service_id)
        return found(next(iter(rows), None), unknown("service"))

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


def _routes(models: Sequence[str | RouteRequest]) -> list[str | dict[str, Any]]:
    """Return the models as the database takes them: of a route only what was said."""
    return [
        model if isinstance(model, str) else model.model_dump(mode="json", exclude_unset=True)
        for model in models
    ]


def _service_refusals(provider: str) -> dict[str, Any]:
    return {
        "name_taken": taken("name"),
        "unknown_model": Unprocessable(
            f"enabled_models names a model that the catalogue does not have from {provider}.",
            code="model_not_found",
            param="enabled_models",
        ),
    }


def _key_demanded(message: str) -> Unprocessable:
    return Unprocessable(message, code="provider_key_required", param="provider_key")
