"""The operator's test of the webhook."""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from gateway.errors import Conflict
from gateway.http import JSONResponse
from gateway.webhooks import WebhookSender

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from gateway.principals import Principal
    from gateway.runtime.process import Process


class Webhooks:
    """The operator's test of the webhook."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def test(self, _request: Request, _principal: Principal) -> Response:
        """POST /admin/webhook/test: a ping goes out now, signed as events are, and is not tried again."""
        webhook = await self._process.database.read_webhook()
        if webhook["url"] is None:
            raise Conflict("No webhook_url is set: PATCH /admin/settings sets one.", code="webhook_not_set")
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
