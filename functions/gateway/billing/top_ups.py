"""The account as its customer sees it, and the page on which it is topped up."""

from __future__ import annotations

import hashlib
import uuid
from decimal import Decimal
from typing import TYPE_CHECKING

from gateway.billing.reach import reached_customer, unknown_customer
from gateway.billing.stripe_api import Stripe, not_configured
from gateway.errors import Conflict, Unprocessable
from gateway.http import JSONResponse, read_model
from gateway.paging import Page, query_id
from gateway.refusals import found
from gateway.schemas.billing import CheckoutRequest
from gateway.schemas.values import exact_text

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from gateway.principals import Principal
    from gateway.runtime.process import Process

_MAX_IDEMPOTENCY_KEY = 255


class TopUps:
    """The account as its customer sees it, and the page on which it is topped up."""

    def __init__(self, process: Process) -> None:
        self._database = process.database
        self._settings = process.settings
        self._stripe = Stripe(process)

    async def read(self, request: Request, principal: Principal) -> Response:
        """GET /v1/billing, with the payments by the page, the newest first."""
        customer_id = reached_customer(principal, query_id(request, "customer_id"))
        page = Page.read(request)
        account = found(await self._database.read_billing(customer_id), unknown_customer())
        rows = await self._database.list_payments(
            limit=page.wanted, before=page.cursor, customer_id=customer_id, admin=False
        )
        return JSONResponse(
            {
                "customer_id": customer_id,
                "configured": self._settings.sells_credits,
                "suspended": account["debt_usd"] != "0",
                **{name: account[name] for name in ("balance_usd", "held_usd", "debt_usd")},
                **{name: account[name] for name in ("amounts_usd", "minimum_usd", "maximum_usd")},
                **page.listed(rows),
            }
        )

    async def checkout(self, request: Request, principal: Principal) -> Response:
        """POST /v1/billing/checkout."""
        asked, _ = await read_model(request, CheckoutRequest, exact=True)
        customer_id = reached_customer(principal, asked.customer_id)
        if not self._settings.sells_credits:
            raise not_configured()
        account = found(await self._database.read_billing(customer_id), unknown_customer())
        if account["erased"]:
            raise Conflict("This customer is erased.", code="customer_erased", param="customer_id")
        least, most = account["minimum_usd"], account["maximum_usd"]
        if not Decimal(least) <= asked.usd <= Decimal(most):
            raise Unprocessable(
                f"usd: must be from {least} to {most}", param="usd", code="amount_out_of_range"
            )
        usd = exact_text(asked.usd)
        url = await self._stripe.create_checkout(
            customer_id=customer_id,
            email=account["email"],
            usd=usd,
            cents=int(asked.usd * 100),
            idempotency_key=_idempotency_key(request, customer_id, usd),
        )
        return JSONResponse({"url": url}, headers={"cache-control": "no-store"})


def _idempotency_key(request: Request, customer_id: int, usd: str) -> str:
    """Return the key for Stripe. What a client sends is that customer's and amount's alone."""
    given = request.headers.get("idempotency-key")
    if given is None:
        return f"sluice-{uuid.uuid4()}"
    if not 0 < len(given) <= _MAX_IDEMPOTENCY_KEY:
        raise Unprocessable(
            f"Idempotency-Key must have from 1 to {_MAX_IDEMPOTENCY_KEY} characters.", param="Idempotency-Key"
        )
    # Stripe keeps its own for a day, too, and would refuse one that comes with another amount.
    return f"sluice-{hashlib.sha256(f'{customer_id} {usd} {given}'.encode()).hexdigest()}"
