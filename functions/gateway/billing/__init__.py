"""What customers pay in, and the statements of what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.billing.payments import Payments
from gateway.billing.statements import Statements
from gateway.billing.top_ups import TopUps
from gateway.http import Operation
from gateway.principals import ADMIN, authorized
from gateway.schemas.billing import CheckoutRequest, ReplayRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import BaseModel

    from gateway.principals import AuthorizedEndpoint
    from gateway.runtime.process import Process

BILLING = "billing"


def operations(process: Process) -> Sequence[Operation]:
    """Return the routes of billing."""
    top_ups, payments, statements = TopUps(process), Payments(process), Statements(process)

    def route(
        method: str,
        path: str,
        endpoint: AuthorizedEndpoint,
        summary: str,
        body: type[BaseModel] | None = None,
        *,
        scope: str = BILLING,
    ) -> Operation:
        return Operation(
            method,
            path,
            authorized(process, endpoint, scope),
            summary,
            scope=scope,
            request_model=body,
            tags=("billing",),
        )

    return (
        route("GET", "/v1/billing", top_ups.read, "Read the account and its payments"),
        route("POST", "/v1/billing/checkout", top_ups.checkout, "Begin a top-up", CheckoutRequest),
        route("GET", "/v1/billing/statements", statements.list, "List the months with a statement"),
        route("GET", "/v1/billing/statements/{month}", statements.read, "Read a month's statement"),
        route("GET", "/admin/payments", payments.list, "List payments", scope=ADMIN),
        route(
            "POST",
            "/admin/payments/replay",
            payments.replay,
            "Take in what Stripe has told",
            ReplayRequest,
            scope=ADMIN,
        ),
        Operation(
            "POST", "/stripe/webhook", payments.webhook, "Take in an event of Stripe's", tags=("billing",)
        ),
    )
