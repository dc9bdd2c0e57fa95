"""Models, who sells them, and for how much."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.admin.refusals import taken, unknown
from gateway.errors import NotFound, Unprocessable
from gateway.http import JSONResponse, read_model, validate
from gateway.paging import Page, path_id
from gateway.providers.registry import provider_named
from gateway.refusals import accept, found
from gateway.schemas.admin import (
    CreateModelRequest,
    CreatePriceRequest,
    Prices,
    PriceTier,
    UpdateModelRequest,
)
from gateway.schemas.admin_queries import SearchQuery
from gateway.schemas.values import as_sent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from gateway.principals import Principal
    from gateway.runtime.process import Process
    from gateway.schemas.admin import Offer
    from gateway.schemas.values import Body

TEXT = ("text",)


class Catalogue:
    """Models, who sells them, and for how much."""

    def __init__(self, process: Process) -> None:
        self._database = process.database

    async def list_models(self, request: Request, _principal: Principal) -> Response:
        """GET /admin/models: `?q=` searches names, `?active=` is true or false."""
        query = validate(SearchQuery, dict(request.query_params))
        page = Page.read(request)
        rows = await self._database.list_catalogue(
            limit=page.wanted, after=page.cursor or 0, query=query.q, active=query.active
        )
        return JSONResponse(page.listed(rows))

    async def read_model(self, request: Request, _principal: Principal) -> Response:
        """GET /admin/models/{id}."""
        rows = await self._database.list_catalogue(limit=1, model_id=path_id(request, "model"))
        return JSONResponse(found(next(iter(rows), None), unknown("model")))

    async def update_model(self, request: Request, principal: Principal) -> Response:
        """PATCH /admin/models/{id}. `active` false hides it; `offers` are added, or changed."""
        model_id = path_id(request, "model")
        asked, _ = await read_model(request, UpdateModelRequest, exact=True)
        changes = asked.model_dump(exclude_unset=True, exclude={"offers"})
        if asked.offers is not None:
            changes["offers"] = _offers(asked.offers)
        told = accept(
            await self._database.update_model(model_id, changes, actor=principal.actor),
            unknown_model=unknown("model"),
        )
        return JSONResponse(told)

    async def create_model(self, request: Request, principal: Principal) -> Response:
        """POST /admin/models."""
        asked, _ = await read_model(request, CreateModelRequest, exact=True)
        offers = [
            {**offer, "upstream_model": offer["upstream_model"] or asked.name}
            for offer in _offers(asked.offers)
        ]
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


def _offers(asked: Sequence[Offer]) -> list[dict[str, Any]]:
    offers = [
        {
            "provider": _provider_name(offer.provider, f"offers.{position}.provider"),
            "upstream_model": offer.upstream_model,
            "prices": offer.prices and _prices(offer.prices),
        }
        for position, offer in enumerate(asked)
    ]
    if len({offer["provider"] for offer in offers}) < len(offers):
        raise Unprocessable("offers names a provider twice.", param="offers")
    return offers


def _prices(prices: Prices) -> dict[str, Any]:
    said = _said(prices, Prices)
    if prices.tiers:
        said["tiers"] = [_said(tier, PriceTier) for tier in prices.tiers]
    return said


def _said(body: Body, kind: type[Body]) -> dict[str, Any]:
    """Return what is given of the fields of `kind`; tiers are lists of such."""
    return {
        name: as_sent(value)
        for name in kind.model_fields
        if name != "tiers" and (value := getattr(body, name)) is not None
    }


def _provider_name(name: str, param: str) -> str:
    try:
        return provider_named(name).name
    except Unprocessable as error:
        error.param = param
        raise
