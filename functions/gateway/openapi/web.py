"""The documentation of the public pages."""

from __future__ import annotations

from gateway.openapi.routes import Content, Route, Routes
from gateway.schemas.answers import web as answers

_UNCHANGED = {304: None}

ROUTES: Routes = {
    "GET /": Route(answer=answers.Index, public=True),
    "GET /health": Route(
        answer=answers.Health,
        others={503: answers.Health},
        public=True,
        description="200 when the database answers in time, else 503.",
    ),
    "GET /openapi.json": Route(
        answer=Content("application/json", "This document: OpenAPI 3.1.", schema={"type": "object"}),
        others=_UNCHANGED,
        public=True,
        description="Every route of every function.",
    ),
    "GET /docs": Route(
        answer=Content("text/html", "Swagger UI over /openapi.json."),
        others=_UNCHANGED,
        public=True,
        description="To read, and to try out with a key.",
    ),
    "GET /redoc": Route(
        answer=Content("text/html", "Redoc over /openapi.json."),
        others=_UNCHANGED,
        public=True,
        description="To read.",
    ),
}
