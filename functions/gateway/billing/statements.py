"""Monthly statements: as JSON, for a spreadsheet, or as a page to print."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from starlette.responses import Response

from gateway.billing import statement_forms
from gateway.billing.reach import reached_customer, unknown_customer
from gateway.errors import NotFound
from gateway.http import JSONResponse, validate
from gateway.paging import Page, query_id
from gateway.refusals import accept, found
from gateway.schemas.billing import StatementQuery

if TYPE_CHECKING:
    from starlette.requests import Request

    from gateway.principals import Principal
    from gateway.runtime.process import Process

_MONTH = re.compile(r"[12][0-9]{3}-(0[1-9]|1[0-2])", re.ASCII)


class Statements:
    """Monthly statements."""

    def __init__(self, process: Process) -> None:
        self._database = process.database

    async def list(self, request: Request, principal: Principal) -> Response:
        """GET /v1/billing/statements, the newest first."""
        customer_id = reached_customer(principal, query_id(request, "customer_id"))
        page = Page.read(request)
        before = None if page.cursor is None else min(page.cursor, 999_912)
        rows = found(
            await self._database.list_statements(customer_id, limit=page.wanted, before=before),
            unknown_customer(),
        )
        numbered = [{**row, "number": int(row["month"].replace("-", ""))} for row in rows]
        shown, cursor = page.cut(numbered, by="number")
        data = [{name: row[name] for name in ("month", "closed")} for row in shown]
        return JSONResponse({"data": data, "next_cursor": cursor})

    async def read(self, request: Request, principal: Principal) -> Response:
        """GET /v1/billing/statements/{month}, `?format=` json, csv or html."""
        query = validate(StatementQuery, dict(request.query_params))
        customer_id = reached_customer(principal, query.customer_id)
        month = request.path_params["month"]
        unknown = NotFound("There is no statement of this month.", code="statement_not_found")
        if not _MONTH.fullmatch(month):
            raise unknown
        told = accept(
            await self._database.read_statement(customer_id, month),
            unknown_customer=unknown_customer(),
            no_statement=unknown,
        )
        if query.format == "json":
            return JSONResponse(told, headers=_PRIVATE)
        name = f"statement-{customer_id}-{month}"
        if query.format == "csv":
            return Response(
                statement_forms.as_csv(told),
                media_type="text/csv",
                headers={**_PRIVATE, "content-disposition": f'attachment; filename="{name}.csv"'},
            )
        return Response(
            statement_forms.as_page(told),
            media_type="text/html",
            headers={**_PRIVATE, "content-security-policy": statement_forms.POLICY},
        )


_PRIVATE = {"cache-control": "private, no-store", "x-content-type-options": "nosniff"}
