"""The documentation of the public pages."""

from __future__ import annotations

from gateway.errors import NotFound
from gateway.openapi.routes import ID, Content, Parameter, Route, Routes
from gateway.schemas.answers import web as answers

_UNCHANGED = {304: None}
_DASHBOARD = Content("text/html", "The dashboard of customers and admins.")

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
    "GET /dashboard": Route(
        answer=_DASHBOARD,
        others=_UNCHANGED,
        public=True,
        description="The page asks for an API key, and calls this API with it.",
    ),
    "GET /dashboard/{customer_id}": Route(
        answer=_DASHBOARD,
        others=_UNCHANGED,
        public=True,
        description="The same page, for one customer's figures: the caller's own or, for admins, anybody's.",
        parameters=(Parameter("customer_id", "path", "The customer's id.", ID, 42),),
        refusals=(NotFound("There is no such page.", code="unknown_route"),),
    ),
    "GET /dashboard/config.json": Route(
        answer=answers.DashboardConfig,
        others=_UNCHANGED,
        public=True,
        description="Nothing in it is secret.",
    ),
}
