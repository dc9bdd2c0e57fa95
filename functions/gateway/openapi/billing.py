"""The documentation of the billing function's routes."""

from __future__ import annotations

from gateway.billing.stripe_events import TOLERANCE_SECONDS, TYPES
from gateway.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    NotConfigured,
    NotFound,
    PayloadTooLarge,
    ProviderFailed,
    ProviderTimeout,
    Unavailable,
    Unprocessable,
)
from gateway.openapi.routes import ID, PAGE, Content, Parameter, Route, Routes, unknown
from gateway.schemas.answers import billing as answers

_CUSTOMER_ID = Parameter("customer_id", "query", "For admins, who have to name a customer.", ID, 42)
_UNKNOWN_CUSTOMER = unknown("customer", param="customer_id")
_CUSTOMER_REFUSALS = (
    _UNKNOWN_CUSTOMER,
    Unprocessable("customer_id: name the customer.", param="customer_id"),
    Forbidden("This key belongs to no customer, so it has no balance.", code="no_customer"),
)
_NOT_CONFIGURED = NotConfigured(
    "Top-ups are not set up here. Ask the operator for credits.", code="billing_not_configured"
)
_STRIPE_REFUSALS = (
    _NOT_CONFIGURED,
    ProviderFailed("Stripe refused the call, or its answer is no answer.", code="stripe_failed"),
    ProviderTimeout("Stripe did not answer in time.", code="stripe_timeout"),
    Unavailable("Stripe can't be reached. Try again shortly.", code="stripe_unavailable", retry_after=5),
)
_EVENT_REFUSALS = (
    BadRequest("This is no event of Stripe's.", code="invalid_event"),
    BadRequest("The event's livemode is not that of the gateway's key.", code="livemode_mismatch"),
)

ROUTES: Routes = {
    "GET /v1/billing": Route(
        answer=answers.Billing,
        tokens=True,
        description="What a refund or dispute took beyond what was free is a debt: while there is one, no "
        "request is admitted, and whatever becomes free pays it first.",
        parameters=(*PAGE, _CUSTOMER_ID),
        refusals=_CUSTOMER_REFUSALS,
    ),
    "POST /v1/billing/checkout": Route(
        answer=answers.Checkout,
        tokens=True,
        description="Answers with a page of Stripe's on which to pay. It is credited when Stripe has told "
        "that it was paid. The same `Idempotency-Key` gives the same page, for a day.",
        request={"usd": "25"},
        parameters=(
            Parameter(
                "Idempotency-Key",
                "header",
                "Up to 255 characters of your own.",
                {"type": "string", "minLength": 1, "maxLength": 255},
            ),
        ),
        refusals=(
            *_CUSTOMER_REFUSALS,
            *_STRIPE_REFUSALS,
            Conflict("This customer is erased.", code="customer_erased", param="customer_id"),
            Unprocessable("usd: must be from 5 to 1000", param="usd", code="amount_out_of_range"),
        ),
    ),
    "GET /v1/billing/statements": Route(
        answer=answers.StatementMonthList,
        tokens=True,
        description="From the month of the first entry to the current one, in the customer's time zone.",
        parameters=(*PAGE, _CUSTOMER_ID),
        refusals=_CUSTOMER_REFUSALS,
    ),
    "GET /v1/billing/statements/{month}": Route(
        answer=answers.Statement,
        tokens=True,
        description="A month that is over by an hour is closed, and its statement stays as it is; the "
        "current one is so far. Every charge is computed anew from the prices that its request was admitted "
        "under.",
        parameters=(
            Parameter(
                "month",
                "path",
                "The month.",
                {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}$"},
                "2026-11",
            ),
            Parameter(
                "format",
                "query",
                "How it is written.",
                {"type": "string", "enum": ["json", "csv", "html"], "default": "json"},
            ),
            _CUSTOMER_ID,
        ),
        forms=(
            Content("text/csv", "One table (RFC 4180): `amount_usd` of its rows comes to that of the last."),
            Content("text/html", "A page to print."),
        ),
        refusals=(
            *_CUSTOMER_REFUSALS,
            NotFound("There is no statement of this month.", code="statement_not_found"),
            Unprocessable("format: Input should be 'json', 'csv' or 'html'", param="format"),
        ),
    ),
    "GET /admin/payments": Route(
        answer=answers.AdminPaymentList,
        tokens=True,
        parameters=(*PAGE, Parameter("customer_id", "query", "Of this customer alone.", ID, 42)),
        refusals=(Unprocessable("customer_id must be an id.", param="customer_id"),),
    ),
    "POST /admin/payments/replay": Route(
        answer=answers.Replayed,
        tokens=True,
        description="Fetches an event, or all since a time, from Stripe, which keeps them for 30 days, and "
        "takes each in as the webhook would: what is known already changes nothing.",
        request={"since": "2026-11-21T00:00:00Z"},
        refusals=(
            *_STRIPE_REFUSALS,
            *_EVENT_REFUSALS,
            NotFound("Stripe has no such event.", code="event_not_found", param="event_id"),
        ),
    ),
    "POST /stripe/webhook": Route(
        answer=answers.WebhookReceipt,
        public=True,
        description="For Stripe alone: the body has to be signed by one of the webhook's secrets, within "
        f"{TOLERANCE_SECONDS} s. Each event counts once, whatever the order. To be sent: "
        f"{', '.join(f'`{name}`' for name in TYPES)}.",
        upload=Content("application/json", "An event of Stripe's.", schema={"type": "object"}),
        parameters=(
            Parameter("Stripe-Signature", "header", "`t=…,v1=…`, as Stripe makes it.", {"type": "string"}),
        ),
        refusals=(
            _NOT_CONFIGURED,
            BadRequest("There is no Stripe-Signature header.", code="invalid_signature"),
            BadRequest("The body is not valid JSON.", code="invalid_json"),
            PayloadTooLarge("The request body exceeds 524288 bytes."),
            *_EVENT_REFUSALS,
        ),
    ),
}
