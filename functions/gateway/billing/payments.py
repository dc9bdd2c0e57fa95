"""What Stripe tells of payments: by its webhook, or fetched again."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from gateway import json_text
from gateway.billing import stripe_events
from gateway.billing.stripe_api import Stripe, not_configured
from gateway.database.client import DatabaseError
from gateway.errors import BadRequest
from gateway.http import JSONResponse, read_body, read_model
from gateway.paging import Page, query_id
from gateway.refusals import database_refused
from gateway.schemas.billing import ReplayRequest

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from gateway.principals import Principal
    from gateway.runtime.process import Process
    from gateway.schemas.billing import StripeEvent

MAX_EVENT_BYTES = 512 * 1024
"""Stripe's own events have a few kilobytes."""
REPLAY_SECONDS = 15.0
"""After this no more are fetched: API Gateway waits for 29, and one call of Stripe's may take 20."""

_ACTOR = "stripe"


class Payments:
    """What Stripe tells of payments: by its webhook, or fetched again."""

    def __init__(self, process: Process) -> None:
        self._database = process.database
        self._settings = process.settings
        self._logger = process.logger
        self._stripe = Stripe(process)

    async def webhook(self, request: Request) -> Response:
        """POST /stripe/webhook. Anything but a 200 makes Stripe send the event again, for three days."""
        settings = self._settings
        if settings.stripe_secret_key is None or not settings.stripe_webhook_secrets:
            raise not_configured()
        body = await read_body(request, most=MAX_EVENT_BYTES)
        stripe_events.verify(
            body,
            request.headers.get("stripe-signature"),
            settings.stripe_webhook_secrets,
            now=time.time(),
        )
        try:
            value = json_text.parse_provider(body)
        except ValueError:
            raise BadRequest("The body is not valid JSON.", code="invalid_json") from None
        try:
            outcome = await self._take_in(value, actor=_ACTOR)
        except DatabaseError as error:
            raise database_refused(error) from error
        return JSONResponse({"received": True, "outcome": outcome})

    async def replay(self, request: Request, principal: Principal) -> Response:
        """POST /admin/payments/replay: fetches events, and takes each in as the webhook would."""
        asked, _ = await read_model(request, ReplayRequest)
        if asked.event_id is not None:
            event = await self._stripe.fetch_event(asked.event_id)
            came_to = Counter([await self._take_in(event, actor=principal.actor)])
            return _replayed(came_to, None)
        came_to = Counter()
        until = time.monotonic() + REPLAY_SECONDS
        # Stripe takes no time before 1970
        since = 0 if asked.since is None else max(int(asked.since.timestamp()), 0)
        after = asked.after
        while True:
            page = await self._stripe.list_events(since=since, after=after)
            for event in page.data:
                came_to[await self._take_in(event, actor=principal.actor)] += 1
                after = str(event["id"])
                if time.monotonic() > until:
                    return _replayed(came_to, after)
            if not page.has_more or not page.data:
                return _replayed(came_to, None)

    async def list(self, request: Request, _principal: Principal) -> Response:
        """GET /admin/payments, the newest first."""
        page = Page.read(request)
        rows = await self._database.list_payments(
            limit=page.wanted, before=page.cursor, customer_id=query_id(request, "customer_id"), admin=True
        )
        return JSONResponse(page.listed(rows))

    async def _take_in(self, value: Any, *, actor: str) -> str:
        """Return recorded, duplicate, or ignored: nothing that we go by."""
        event = stripe_events.parse(value)
        self._of_our_mode(event)
        told = stripe_events.told(event)
        if told is None:
            self._logger.info(
                "An event of Stripe's is none of ours.", extra={"event": event.id, "type": event.type}
            )
            return "ignored"
        recorded = await self._database.record_payment_event(told, actor=actor)
        if recorded["unexpected"] is not None:
            self._logger.error(
                "A payment was not credited, or not as it was asked for.",
                extra={"event": event.id, "reason": recorded["unexpected"]},
            )
        return str(recorded["outcome"])

    def _of_our_mode(self, event: StripeEvent) -> None:
        """Raise BadRequest (400) for play money where real is taken, and the other way round.

        Refused and not ignored: Stripe then shows the failure to the operator, whose key and webhook do not
        belong together, and sends the event again when they do.
        """
        key = self._settings.stripe_secret_key
        if key is not None and event.livemode is not ("_live_" in key.get_secret_value()):
            raise BadRequest(
                "The event's livemode is not that of the gateway's key.", code="livemode_mismatch"
            )


def _replayed(came_to: Counter[str], after: str | None) -> Response:
    names = ("recorded", "duplicate", "ignored")
    return JSONResponse({**{name: came_to[name] for name in names}, "next": after})
