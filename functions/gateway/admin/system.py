"""The settings of the whole, who changed what, and the proof that the books add up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway import webhook_endpoint
from gateway.errors import Unprocessable
from gateway.http import JSONResponse, read_model, validate
from gateway.paging import Page
from gateway.refusals import accept
from gateway.schemas.admin import ChangeSettingsRequest
from gateway.schemas.admin_queries import AuditQuery, LedgerQuery
from gateway.schemas.values import as_sent

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from gateway.principals import Principal
    from gateway.runtime.process import Process


class System:
    """The settings of the whole, who changed what, and the proof that the books add up."""

    def __init__(self, process: Process) -> None:
        self._database = process.database
        self._master_keys = process.settings.master_keys
        self._allow_private = process.settings.allow_private_urls

    async def read_settings(self, _request: Request, principal: Principal) -> Response:
        """GET /admin/settings."""
        return JSONResponse(await self._database.change_settings({}, actor=principal.actor))

    async def change_settings(self, request: Request, principal: Principal) -> Response:
        """PATCH /admin/settings."""
        asked, _ = await read_model(request, ChangeSettingsRequest, exact=True)
        changes = {name: as_sent(getattr(asked, name)) for name in asked.model_fields_set}
        if asked.webhook_url is not None:
            await webhook_endpoint.check_webhook_url(asked.webhook_url, allow_private=self._allow_private)
        if asked.webhook_secret is not None:
            changes["webhook_secret"] = self._sealed(asked.webhook_secret)
        told = accept(
            await self._database.change_settings(changes, actor=principal.actor),
            webhook_secret_needed=Unprocessable(
                "A webhook_url needs a webhook_secret: what is sent there is signed.",
                code="webhook_secret_required",
                param="webhook_secret",
            ),
            top_ups_do_not_fit=Unprocessable(
                "top_up_minimum_usd must not be beyond top_up_maximum_usd, and top_up_amounts_usd must lie "
                "between the two.",
                code="invalid_top_ups",
                param="top_up_amounts_usd",
            ),
        )
        return JSONResponse(told)

    async def list_audit(self, request: Request, _principal: Principal) -> Response:
        """GET /admin/audit, the newest first."""
        query = validate(AuditQuery, dict(request.query_params))
        page = Page.read(request)
        rows = await self._database.list_audit(
            limit=page.wanted,
            before=page.cursor,
            entity=query.entity,
            entity_id=query.entity_id,
            by=query.actor,
            start=query.from_,
            end=query.to,
        )
        return JSONResponse(page.listed(rows))

    async def check_ledger(self, request: Request, _principal: Principal) -> Response:
        """GET /admin/ledger/check: from the last checkpoints on; `?full=true` from the first entry."""
        query = validate(LedgerQuery, dict(request.query_params))
        return JSONResponse(await self._database.check_ledger(full=query.full))

    def _sealed(self, secret: str) -> str:
        try:
            webhook_endpoint.signing_key(secret)
        except ValueError as error:
            raise Unprocessable(
                f"webhook_secret {error}.", code="invalid_webhook_secret", param="webhook_secret"
            ) from None
        return webhook_endpoint.seal_secret(secret, master_keys=self._master_keys)
