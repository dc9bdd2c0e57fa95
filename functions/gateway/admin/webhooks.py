"""What the operator is told of: the events, their sending to the webhook, and a test of it."""

from __future__ import annotations

import re
import time
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from gateway.admin.refusals import unknown
from gateway.errors import Conflict, Unprocessable
from gateway.http import JSONResponse, validate
from gateway.paging import page_size
from gateway.refusals import accept
from gateway.schemas.admin_queries import EventsQuery
from gateway.webhooks import WebhookSender

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from gateway.principals import Principal
    from gateway.runtime.process import Process


_EVENT_ID = re.compile(r"evt_([0-9a-f]{32})", re.ASCII)


class Webhooks:
    """Events, their sending, and a test of it."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def test(self, _request: Request, _principal: Principal) -> Response:
        """POST /admin/webhook/test: a ping goes out now, signed as events are, and is not tried again."""
        webhook = await self._process.database.read_webhook()
        if webhook["url"] is None:
            raise _not_set()
        message = {
            "id": f"evt_{uuid.uuid4().hex}",
            "type": "webhook.test",
            "created_at": datetime.now(UTC).isoformat(),
            "data": {},
        }
        start = time.monotonic()
        async with self._process.open_webhooks_http() as http:
            sender = WebhookSender(self._process.settings, http)
            attempt = await sender.send(webhook["url"], webhook["secret"], message)
        return JSONResponse(
            {
                "delivered": attempt.delivered,
                "id": message["id"],
                "status": attempt.status,
                "error": attempt.error,
                "duration_ms": round((time.monotonic() - start) * 1000),
            }
        )

    async def list(self, request: Request, _principal: Principal) -> Response:
        """GET /admin/events, the newest first. The cursor is the id of the last one."""
        query = validate(EventsQuery, dict(request.query_params))
        size = page_size(request)
        before = None if query.cursor is None else _event_id(query.cursor)
        if query.cursor is not None and before is None:
            raise Unprocessable("cursor must be the next_cursor of another page.", param="cursor")
        rows = await self._process.database.list_events(
            limit=size + 1, before=before, state=query.state, kind=query.type
        )
        shown = rows[:size]
        return JSONResponse({"data": shown, "next_cursor": shown[-1]["id"] if len(rows) > size else None})

    async def resend(self, request: Request, _principal: Principal) -> Response:
        """POST /admin/events/{id}/resend: it is in line again, whatever became of it."""
        event_id = _event_id(request.path_params["id"])
        if event_id is None:
            raise unknown("event")
        told = accept(
            await self._process.database.resend_event(event_id),
            unknown_event=unknown("event"),
            webhook_not_set=_not_set(),
        )
        return JSONResponse(told)


def _event_id(text: str) -> str | None:
    """Return the UUID of an event that is called so outside; None: none is."""
    parts = _EVENT_ID.fullmatch(text)
    return parts and parts[1]


def _not_set() -> Conflict:
    return Conflict("No webhook_url is set: PATCH /admin/settings sets one.", code="webhook_not_set")
