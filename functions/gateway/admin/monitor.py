"""The whole system at a glance, as it is today."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from gateway.errors import Unprocessable
from gateway.http import JSONResponse, validate
from gateway.paging import page_size
from gateway.schemas.admin_queries import TopCustomersQuery

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from gateway.database.rpc import JSONObject
    from gateway.principals import Principal
    from gateway.runtime.process import Process

_MAX_DAYS = 92
_DEFAULT_DAYS = 30
_SHOWN = 20
"""How many crossings of soft limits and undelivered events are told at most, the newest."""


class Monitor:
    """The whole system at a glance."""

    def __init__(self, process: Process) -> None:
        self._database = process.database

    async def read(self, _request: Request, _principal: Principal) -> Response:
        """GET /admin/monitor. What is called cost without more is the charge."""
        told, health, crossings, deliveries = await asyncio.gather(
            self._database.read_admin_monitor(),
            self._database.read_service_health(),
            self._database.list_crossings(customer_id=None, limit=_SHOWN),
            self._database.read_deliveries(limit=_SHOWN),
        )
        same = (
            "total_users",
            "active_users_today",
            "total_requests_today",
            "total_tokens_today",
            "errors_today",
            "refusals_today",
            "cost_today_usd",
            "margin_today_usd",
            "uncollected_today_usd",
            "held",
        )
        return JSONResponse(
            {
                "status": "success",
                "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
                "data": {
                    **{name: told[name] for name in same},
                    "providers": [_provider(provider, health) for provider in told["providers"]],
                    "total_cost_today": float(told["total_charge_today_usd"]),
                    "top_users_by_usage": [_user(user) for user in told["top_users_by_usage"]],
                    "recent_activity": [_activity(request) for request in told["recent_activity"]],
                    "soft_limits_crossed": crossings,
                    "webhook": deliveries,
                },
            }
        )

    async def top_customers(self, request: Request, _principal: Principal) -> Response:
        """GET /admin/top_customers: who was charged the most, by default in the last 30 days."""
        query = validate(TopCustomersQuery, dict(request.query_params))
        end = query.to or datetime.now(UTC).date() + timedelta(days=1)
        start = query.from_ or end - timedelta(days=_DEFAULT_DAYS)
        if not timedelta(0) < end - start <= timedelta(days=_MAX_DAYS):
            raise Unprocessable(f"from must lie before to, by {_MAX_DAYS} days at most.", param="from")
        days = {"from": start.isoformat(), "to": end.isoformat()}
        rows = await self._database.list_top_customers(
            start=days["from"], end=days["to"], limit=page_size(request)
        )
        return JSONResponse({"data": rows, **days})


def _provider(told: JSONObject, health: list[JSONObject]) -> dict[str, Any]:
    # A service that came between the two readings is healthy, as far as anybody knows.
    found = next((each for each in health if each["service_id"] == told["service_id"]), {})
    return {
        **told,
        **{name: found.get(name) for name in ("failing_since", "set_aside_until", "cost_compared")},
    }


def _user(told: JSONObject) -> dict[str, Any]:
    return {
        "api_key": told["key_prefix"],
        "key_id": told["key_id"],
        "user_id": told["customer_id"],
        "name": told["name"],
        "tokens_used": told["tokens"],
        "cost": float(told["charge_usd"]),
        "requests": told["requests"],
    }


def _activity(told: JSONObject) -> dict[str, Any]:
    return {
        "request_id": told["request_id"],
        "api_key": told["key_prefix"],
        "user_id": told["customer_id"],
        "model": told["model"],
        "tokens_used": told["tokens"],
        "timestamp": told["at"],
        "status": told["status"],
    }
