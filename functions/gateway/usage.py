"""What customers ask about their own account: the balance, and the record of a request."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gateway.errors import Forbidden, NotFound
from gateway.http import JSONResponse, Operation
from gateway.principals import authorized
from gateway.refusals import found

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from gateway.principals import Principal
    from gateway.runtime.process import Process

_REQUEST_ID = re.compile(r"req_[0-9a-f]{32}", re.ASCII)


class Usage:
    """The endpoints of usage."""

    def __init__(self, process: Process) -> None:
        self._database = process.database

    async def balance(self, _request: Request, principal: Principal) -> Response:
        """GET /user/balance."""
        if principal.customer_id is None:
            raise Forbidden("This key belongs to no customer, so it has no balance.", code="no_customer")
        told = found(
            await self._database.read_balance(principal.customer_id), NotFound("There is no such customer.")
        )
        return JSONResponse(
            {
                "status": "success",
                "user_id": told["customer_id"],
                "credits": told["credits"],
                "balance_usd": told["balance_usd"],
                "held_usd": told["held_usd"],
            }
        )

    async def request(self, request: Request, principal: Principal) -> Response:
        """GET /v1/requests/{id}. A key with chat alone sees its own requests, not its customer's."""
        unknown = NotFound("There is no such request.", code="request_not_found")
        request_id = request.path_params["id"]
        if not _REQUEST_ID.fullmatch(request_id):
            raise unknown
        sees_all_of_customer = principal.is_admin or "usage" in principal.scopes
        told = await self._database.read_request(
            request_id,
            customer_id=principal.reach,
            key_id=None if sees_all_of_customer else principal.key_id,
        )
        return JSONResponse(found(told, unknown))


def operations(process: Process) -> Sequence[Operation]:
    """Return the routes of usage."""
    usage = Usage(process)
    return (
        Operation(
            "GET",
            "/user/balance",
            authorized(process.database, usage.balance),
            "Read the balance",
            tags=("usage",),
        ),
        Operation(
            "GET",
            "/v1/requests/{id}",
            authorized(process.database, usage.request, "usage", "chat"),
            "Read the record of a request",
            scope="usage",
            tags=("usage",),
        ),
    )
