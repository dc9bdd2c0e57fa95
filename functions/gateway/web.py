"""What anybody may ask: what this is, whether it is well, the document of its routes, and the dashboard."""

from __future__ import annotations

import asyncio
import functools
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gateway import assets, json_text
from gateway.database.client import DatabaseError
from gateway.errors import NotFound
from gateway.http import JSONResponse, Operation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from gateway.runtime.process import Process

HEALTH_SECONDS = 1.5
"""How long the database may take to answer. Load balancers give a health check about two seconds."""

# Nothing from elsewhere, and nothing that stands in the page itself.
_POLICY = {
    "default-src": "'none'",
    "base-uri": "'none'",
    "connect-src": "'self'",
    "font-src": "'self'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "img-src": "'self' data:",
    "script-src": "'self'",
    "style-src": "'self'",
}

# Redoc makes style elements that are empty (the first hash), fills them by script, and searches in a worker.
_REDOC_NEEDS = {
    "style-src": "'self' 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=' "
    "'sha256-QMIg+bpjm3JdElJ388KYke01izlUW0UoNOeKjpMxdgc='",
    "worker-src": "blob:",
}


# No data: URL, no picture but its own; and no text becomes a script, whatever in the page would make it one.
_DASHBOARD_NEEDS = {
    "font-src": "'none'",
    "img-src": "'self'",
    "require-trusted-types-for": "'script'",
    "trusted-types": "'none'",
}
_CUSTOMER_ID = re.compile(r"[1-9][0-9]{0,18}", re.ASCII)


class Web:
    """The public endpoints. `document` makes the OpenAPI document of every function's routes."""

    def __init__(self, process: Process, document: Callable[[], dict[str, Any]]) -> None:
        self._database = process.database
        self._logger = process.logger
        self._settings = process.settings
        self._version = process.settings.version
        self._make_document = document

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
                    "docs": "/docs",
                    "redoc": "/redoc",
                    "openapi": "/openapi.json",
                    "dashboard": "/dashboard",
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

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json."""
        told = {**self._document, "servers": [{"url": _base_path(request)}]}
        return assets.tagged(request, json_text.dump(told), "application/json")

    async def docs(self, request: Request) -> Response:
        """GET /docs: Swagger UI."""
        return assets.page(request, "docs.html", _policy())

    async def redoc(self, request: Request) -> Response:
        """GET /redoc."""
        return assets.page(request, "redoc.html", _policy(**_REDOC_NEEDS))

    async def asset(self, request: Request) -> Response:
        """GET /docs/assets/{name}: what the two pages are made of."""
        return assets.asset(request, request.path_params["name"])

    async def dashboard(self, request: Request) -> Response:
        """GET /dashboard and GET /dashboard/{customer_id}: one page, which asks the API for what it shows."""
        customer_id = request.path_params.get("customer_id")
        if customer_id is not None and not _CUSTOMER_ID.fullmatch(customer_id):
            raise NotFound("There is no such page.", code="unknown_route")
        bundle = assets.dashboard()
        # Relative, as API Gateway's stage stands before the path, and it is not known in every set-up.
        root = "" if customer_id is None else "../"
        folder = f"{root}dashboard/assets/{bundle.digest}"
        modules = (name for name in bundle.files if name.endswith(".js") and "/admin/" not in name)
        return assets.page(
            request,
            f"{assets.DASHBOARD}/index.html",
            _policy(**_DASHBOARD_NEEDS, **self._connects_to()),
            folder=folder,
            version=self._version,
            by_mail="" if self._auth else "hidden",
            # All at once: else each would be asked for when another that names it has come.
            modules="".join(f'<link rel="modulepreload" href="{folder}/{name}">' for name in modules),
        )

    async def dashboard_config(self, request: Request) -> Response:
        """GET /dashboard/config.json."""
        told = {"version": self._version, "auth": self._auth, "billing": self._sells}
        return assets.tagged(request, json_text.dump(told), "application/json")

    async def dashboard_file(self, request: Request) -> Response:
        """GET /dashboard/assets/{digest}/{name}: what the dashboard is made of."""
        return assets.dashboard_file(request, request.path_params["digest"], request.path_params["name"])

    @property
    def _auth(self) -> dict[str, str] | None:
        """Where people sign in by mail, and the key for that; None where they can't."""
        issuer, key = self._settings.auth_issuer, self._settings.auth_publishable_key
        if issuer is None or key is None:
            return None
        return {"url": issuer, "publishable_key": key.get_secret_value()}

    @property
    def _sells(self) -> bool:
        return self._settings.sells_credits

    def _connects_to(self) -> dict[str, str]:
        if self._auth is None:
            return {}
        parts = urlsplit(self._auth["url"])
        return {"connect-src": f"'self' {parts.scheme}://{parts.netloc}"}

    @functools.cached_property
    def _document(self) -> dict[str, Any]:
        return self._make_document()


def _base_path(request: Request) -> str:
    """Return what stands before the routes: API Gateway's stage, or a custom domain's base path."""
    event = request.scope.get("aws.event") or {}
    path: str = event.get("requestContext", {}).get("path", "")
    return path.removesuffix(request.url.path) or "/"


def _policy(**others: str) -> str:
    return "; ".join(f"{name} {sources}" for name, sources in {**_POLICY, **others}.items())


def operations(process: Process, document: Callable[[], dict[str, Any]]) -> Sequence[Operation]:
    """Return the public routes; `document` makes what /openapi.json answers, once, when it is first asked."""
    web = Web(process, document)
    files = "/dashboard/assets/{digest}/{name:path}"
    return (
        Operation("GET", "/", web.index, "What this is", tags=("pages",)),
        Operation("GET", "/health", web.health, "Whether the gateway is well", tags=("pages",)),
        Operation("GET", "/openapi.json", web.openapi, "The document of the API", tags=("pages",)),
        Operation("GET", "/docs", web.docs, "The document, to try out", tags=("pages",)),
        Operation("GET", "/redoc", web.redoc, "The document, to read", tags=("pages",)),
        Operation("GET", "/docs/assets/{name}", web.asset, "A file of the pages", in_schema=False),
        Operation("GET", "/dashboard", web.dashboard, "The dashboard", tags=("pages",)),
        Operation("GET", files, web.dashboard_file, "A file of the dashboard", in_schema=False),
        Operation(
            "GET",
            "/dashboard/config.json",
            web.dashboard_config,
            "What the dashboard has to know",
            tags=("pages",),
        ),
        Operation(
            "GET", "/dashboard/{customer_id}", web.dashboard, "A customer's dashboard", tags=("pages",)
        ),
    )
