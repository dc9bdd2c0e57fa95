"""Stripe's API: what is asked of it, over one pinned version (https://docs.stripe.com/api)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx

from gateway import json_text
from gateway.billing.stripe_events import ASKED_USD, CUSTOMER_ID, TYPES
from gateway.errors import NotConfigured, NotFound, ProviderFailed, ProviderTimeout, Unavailable
from gateway.schemas.billing import StripeEventList

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.runtime.process import Process

VERSION = "2026-10-28.endive"
"""What our calls are written for, whatever the account's own version is."""
PAGE = 100
_TRIES = 2
_MOST_ANSWER = 4 * 1024 * 1024


def not_configured() -> NotConfigured:
    """Return the error of the routes that need Stripe where the operator has not set it up."""
    return NotConfigured(
        "Top-ups are not set up here. Ask the operator for credits.", code="billing_not_configured"
    )


class Stripe:
    """Calls of Stripe's API.

    Each raises NotConfigured (501), ProviderFailed (502), Unavailable (503) and ProviderTimeout (504).
    """

    def __init__(self, process: Process) -> None:
        self._settings = process.settings
        self._open = process.open_stripe_http

    async def create_checkout(
        self, *, customer_id: int, email: str | None, usd: str, cents: int, idempotency_key: str
    ) -> str:
        """Return the URL of a page on which the customer pays. Raises NotConfigured (501)."""
        settings = self._settings
        if not settings.sells_credits or settings.public_url is None:
            raise not_configured()
        ours = {CUSTOMER_ID: str(customer_id), ASKED_USD: usd}
        form = {
            "mode": "payment",
            "submit_type": "pay",
            "client_reference_id": str(customer_id),
            # The person is not asked for what we know; and it is told where the receipt goes.
            **({} if email is None else {"customer_email": email}),
            "success_url": f"{settings.public_url}/dashboard?top_up=paid",
            "cancel_url": f"{settings.public_url}/dashboard?top_up=cancelled",
            "line_items[0][quantity]": "1",
            "line_items[0][price_data][currency]": "usd",
            "line_items[0][price_data][unit_amount]": str(cents),
            "line_items[0][price_data][product_data][name]": "Credits",
            # Only what is paid in US dollars is credited.
            "adaptive_pricing[enabled]": "false",
            **{f"metadata[{name}]": value for name, value in ours.items()},
            **{f"payment_intent_data[metadata][{name}]": value for name, value in ours.items()},
        }
        made = await self._call("POST", "/v1/checkout/sessions", form=form, idempotency_key=idempotency_key)
        url = made.get("url")
        if not isinstance(url, str):
            raise ProviderFailed("Stripe gave no page to pay on.", code="stripe_failed")
        return url

    async def fetch_event(self, event_id: str) -> dict[str, Any]:
        """Return an event of the last 30 days. Raises NotFound (404)."""
        return await self._call("GET", f"/v1/events/{event_id}", missing="event_id")

    async def list_events(self, *, since: int, after: str | None) -> StripeEventList:
        """Return the next page of the events since some second, the newest first, of the types we go by.

        Raises NotFound (404) where there is no event `after`.
        """
        query = {
            "created[gte]": str(since),
            "limit": str(PAGE),
            **{f"types[{number}]": name for number, name in enumerate(TYPES)},
            **({} if after is None else {"starting_after": after}),
        }
        try:
            page = await self._call("GET", "/v1/events", query=query, missing="after")
            return StripeEventList.model_validate(page)
        except ValueError as error:
            raise _failed("an unreadable list of events") from error

    async def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        form: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        missing: str | None = None,
    ) -> dict[str, Any]:
        settings = self._settings
        if settings.stripe_secret_key is None:
            raise not_configured()
        headers = {
            "authorization": f"Bearer {settings.stripe_secret_key.get_secret_value()}",
            "stripe-version": VERSION,
            "user-agent": f"Sluice/{settings.version}",
            **({} if idempotency_key is None else {"idempotency-key": idempotency_key}),
        }
        async with self._open() as http:
            for attempt in range(_TRIES):
                try:
                    response = await http.request(
                        method, f"{settings.stripe_url}{path}", params=query, data=form, headers=headers
                    )
                except httpx.TimeoutException as error:
                    refusal: Exception = ProviderTimeout(
                        "Stripe did not answer in time.", code="stripe_timeout", detail=type(error).__name__
                    )
                except httpx.TransportError as error:
                    refusal = Unavailable(
                        "Stripe can't be reached. Try again shortly.",
                        code="stripe_unavailable",
                        retry_after=5,
                        detail=type(error).__name__,
                    )
                else:
                    # Under its Idempotency-Key a call that is made again is the same call.
                    if response.status_code < httpx.codes.INTERNAL_SERVER_ERROR or attempt == _TRIES - 1:
                        return _answer(response, missing)
                    continue
                if attempt == _TRIES - 1:
                    raise refusal
        raise AssertionError("unreachable: the last try returns or raises")


def _answer(response: httpx.Response, missing: str | None) -> dict[str, Any]:
    try:
        value = json_text.parse_provider(response.content) if len(response.content) <= _MOST_ANSWER else None
    except ValueError:
        value = None
    if response.is_success and isinstance(value, dict):
        return value
    fault = value.get("error") if isinstance(value, dict) else None
    fault = fault if isinstance(fault, dict) else {}
    if missing is not None and fault.get("code") == "resource_missing":
        raise NotFound("Stripe has no such event.", code="event_not_found", param=missing)
    # Of Stripe's error only what is a name: its message may quote the key.
    named = " ".join(str(fault.get(name)) for name in ("type", "code", "param") if fault.get(name))[:200]
    raise _failed(f"HTTP {response.status_code} {named}")


def _failed(detail: str) -> ProviderFailed:
    return ProviderFailed(
        "Stripe refused the call, or its answer is no answer.", code="stripe_failed", detail=detail
    )
