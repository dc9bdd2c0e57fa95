"""What anybody may ask: what this is, and whether it is well."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway.database.client import DatabaseError
from gateway.http import JSONResponse, Operation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from gateway.runtime.process import Process

HEALTH_SECONDS = 1.5
"""How long the database may take to answer. Load balancers give a health check about two seconds."""


class Web:
    """The public endpoints."""

    def __init__(self, process: Process) -> None:
        self._database = process.database
        self._logger = process.logger
        self._version = process.settings.version

    async def index(self, _request: Request) -> Response:
        """GET /."""
        return JSONResponse(
            {
                "name": "Sluice",
                "description": "One OpenAI-compatible endpoint over every provider, metered in credits.",
                "version": self._version,
                "links": {
                    "chat": "/v1/chat/completions",
                    "models": "/models/simple",
                    "health": "/health",
                },
            }
        )

    async def health(self, _request: Request) -> Response:
        """GET /health: 200 when the database answers in time, else 503."""
        try:
            async with asyncio.timeout(HEALTH_SECONDS):
                await self._database.check_health()
        except (DatabaseError, TimeoutError):
            self._logger.exception("The database is out.")
            status, database = 503, "unavailable"
        else:
            status, database = 200, "ok"
        return JSONResponse(
            {
                "status": "ok" if status == 200 else "degraded",  # noqa: PLR2004
                "database": database,
                "version": self._version,
            },
            status_code=status,
            headers={"cache-control": "no-store"},
        )


def operations(process: Process) -> Sequence[Operation]:
    """Return the public routes."""
    web = Web(process)
    return (
        Operation("GET", "/", web.index, "What this is", tags=("pages",)),
        Operation("GET", "/health", web.health, "Whether the gateway is well", tags=("pages",)),
    )
