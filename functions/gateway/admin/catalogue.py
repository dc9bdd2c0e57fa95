"""Models, who sells them, and for how much."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.admin.refusals import taken, unknown
from gateway.errors import NotFound, Unprocessable
from gateway.http import JSONResponse, read_model
from gateway.paging import Page
from gateway.providers.registry import provider_named
from gateway.refusals import accept
from gateway.schemas.admin import CreateModelRequest, CreatePriceRequest, Prices
from gateway.schemas.values import as_sent

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from gateway.principals import Principal
    from gateway.runtime.process import Process

TEXT = ("text",)


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
            name_taken=taken("name"),
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
            unknown_model=unknown("model", param="model"),
            unknown_offer=NotFound(
                "This provider does not offer this model yet: name its upstream_model.",
                code="offer_not_found",
                param="provider",
            ),
            unknown_service=unknown("service of this provider", param="service_id", code="service_not_found"),
            in_the_past=Unprocessable(
                "effective_from must not lie in the past: what was admitted is not priced again.",
                param="effective_from",
            ),
        )
        return JSONResponse(told, status_code=201)


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
