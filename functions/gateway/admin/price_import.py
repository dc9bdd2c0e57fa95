"""Price lists, brought in whole."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from gateway.errors import BadRequest, Unprocessable
from gateway.http import JSONResponse, read_body
from gateway.price_list import PriceListError, read_price_list
from gateway.refusals import accept
from gateway.schemas.values import Time, as_sent

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from gateway.price_list import PriceList
    from gateway.principals import Principal
    from gateway.runtime.process import Process

_TIME: TypeAdapter[Time] = TypeAdapter(Time)
_SWITCH = {"true": True, "false": False}


class PriceImport:
    """Price lists, brought in whole."""

    def __init__(self, process: Process) -> None:
        self._database = process.database

    async def import_prices(self, request: Request, principal: Principal) -> Response:
        """POST /admin/prices/import: CSV; `?dry_run=true` only tells the difference."""
        dry_run = _SWITCH.get(request.query_params.get("dry_run", "false"))
        if dry_run is None:
            raise Unprocessable("dry_run must be true or false.", param="dry_run")
        effective_from = _effective_from(request)
        # In a thread: a long list takes a second, and other calls may be waiting in this process.
        prices = await asyncio.to_thread(_read, await read_body(request))
        told = accept(
            await self._database.import_prices(
                prices.as_json(), dry_run=dry_run, effective_from=effective_from, actor=principal.actor
            ),
            in_the_past=Unprocessable(
                "effective_from must not lie in the past: what was admitted is not priced again.",
                param="effective_from",
            ),
        )
        return JSONResponse({**told, "warnings": list(prices.warnings)})


def _effective_from(request: Request) -> str | None:
    text = request.query_params.get("effective_from")
    if text is None:
        return None
    try:
        moment: str = as_sent(_TIME.validate_python(text))
    except ValidationError:
        raise Unprocessable(
            "effective_from must be a time such as 2026-12-31T23:59:59Z.", param="effective_from"
        ) from None
    return moment


def _read(body: bytes) -> PriceList:
    try:
        # Spreadsheets begin their files with a byte order mark.
        return read_price_list(body.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadRequest("A price list must be UTF-8.") from error
    except PriceListError as error:
        param = f"lines.{error.line}.{error.column}" if error.column else f"lines.{error.line}"
        raise Unprocessable(f"{error}.", param=param, code="malformed_price_list") from error
