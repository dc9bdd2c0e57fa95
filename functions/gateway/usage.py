"""What customers ask about their own account: balance, limits, figures over time, and the log of requests.

A key with the scope chat alone sees its own requests, not its customer's. Admins see all customers, or the
one that they name.
"""

from __future__ import annotations

import asyncio
import base64
import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from gateway.auth import unknown_key
from gateway.database.rpc import RateLimits, Refusal
from gateway.errors import Forbidden, NotFound, Unprocessable
from gateway.http import JSONResponse, Operation, validate
from gateway.metering import refusal_error
from gateway.paging import page_size
from gateway.principals import authorized, require_key
from gateway.refusals import accept, found
from gateway.schemas.usage_queries import CustomerQuery, LimitQuery, RequestsQuery, UsageQuery

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from gateway.principals import AuthorizedEndpoint, Principal
    from gateway.runtime.process import Process

_REQUEST_ID = re.compile(r"req_[0-9a-f]{32}", re.ASCII)
_LOGGED_ID = re.compile(r"[0-9A-Za-z_-]{8,64}", re.ASCII)
_LIMIT_NAMES = tuple(
    f"{metric}_per_{per}" for metric in ("requests", "tokens") for per in ("minute", "hour", "day")
)
"""Those that are always shown, null where there is no such limit."""
_RESETS = {"day": "daily", "month": "monthly"}
_OF_CUSTOMER = ("id", "name", "email", "time_zone")
_OF_KEY = ("id", "name", "prefix", "expires_at")
_LIMITS_NOTE = "How much is used of it and when it starts anew: GET /user/limit."


class Usage:
    """The endpoints of usage."""

    def __init__(self, process: Process) -> None:
        self._database = process.database

    async def me(self, _request: Request, principal: Principal) -> Response:
        """GET /v1/me: who calls, and what it may do."""
        customer_id, key_id = principal.customer_id, principal.key_id
        customers = (
            [] if customer_id is None else await self._database.list_customers(customer_id=customer_id)
        )
        keys = [] if key_id is None else await self._database.list_keys(customer_id=None, key_id=key_id)
        return JSONResponse(
            {
                "customer": next((_parts(row, _OF_CUSTOMER) for row in customers), None),
                "key": next((_parts(row, _OF_KEY) for row in keys), None),
                "scopes": sorted(principal.scopes),
                "is_admin": principal.is_admin,
                "own_requests_only": principal.own_key_id is not None,
            }
        )

    async def balance(self, request: Request, principal: Principal) -> Response:
        """GET /user/balance."""
        query = validate(CustomerQuery, dict(request.query_params))
        customer_id = _named_customer(principal, query.customer_id)
        told = found(await self._database.read_balance(customer_id), _no_such_customer())
        return JSONResponse(
            {
                "status": "success",
                "user_id": told["customer_id"],
                "credits": told["credits"],
                "balance_usd": told["balance_usd"],
                "held_usd": told["held_usd"],
            }
        )

    async def monitor(self, request: Request, principal: Principal) -> Response:
        """GET /user/monitor. What it calls cost is the charge."""
        query = validate(CustomerQuery, dict(request.query_params))
        customer_id = _named_customer(principal, query.customer_id)
        key_id = principal.key_id if customer_id == principal.customer_id else None
        used, account, limits, crossings = await asyncio.gather(
            self._database.read_monitor(customer_id, key_id=principal.own_key_id),
            self._database.read_balance(customer_id),
            self._database.read_limits(customer_id, key_id=key_id),
            self._database.list_crossings(customer_id=customer_id, key_id=principal.own_key_id),
        )
        if used is None or account is None or limits is None:
            raise _no_such_customer()
        return JSONResponse(
            {
                "status": "success",
                "timestamp": _now(),
                "user_id": customer_id,
                "api_key": principal.prefix,
                "current_credits": account["credits"],
                "balance_usd": account["balance_usd"],
                "usage_metrics": {
                    "total_requests": used["total_requests"],
                    "total_tokens": used["total_tokens"],
                    "total_cost": _number(used["total_charge_usd"]),
                    "requests_today": used["requests_today"],
                    "tokens_today": used["tokens_today"],
                    "cost_today": _number(used["charge_today_usd"]),
                    "requests_this_month": used["requests_this_month"],
                    "tokens_this_month": used["tokens_this_month"],
                    "cost_this_month": _number(used["charge_this_month_usd"]),
                    "average_tokens_per_request": float(used["average_tokens_per_request"] or 0),
                    "most_used_model": used["most_used_model"],
                    "last_request_time": used["last_request_time"],
                    "average_latency_ms": used["average_latency_ms"],
                },
                "rate_limits": _shown(limits["limits"], "limit"),
                "soft_limits_crossed": crossings,
            }
        )

    async def limit(self, request: Request, principal: Principal) -> Response:
        """GET /user/limit. `reason` is in a chat's words, but for no credits where no model is named."""
        query = validate(LimitQuery, dict(request.query_params))
        customer_id = _named_customer(principal, query.customer_id)
        key_id = _asked_key(principal, query.key_id)
        if key_id is None and customer_id == principal.customer_id:
            key_id = principal.key_id
        told = found(
            await self._database.read_limits(customer_id, key_id=key_id, model=query.model),
            _no_such_customer() if query.key_id is None else _no_key(),
        )
        refusal = told["refusal"]
        reason = "Within limits"
        if refusal is not None:
            error = refusal_error(Refusal(refusal["refusal"], RateLimits(), refusal))
            if refusal["refusal"] == "model_not_found":
                raise error
            reason = error.message
            if refusal["refusal"] == "insufficient_credits" and query.model is None:
                # No call is meant: what one may cost would say nothing.
                reason = f"Not enough credits: ${refusal['available_usd']} is available. Top up the balance."
            if (model := refusal.get("of_model")) is not None:
                reason += f" This is the limit of {model} by itself; ?model= asks about another."
        return JSONResponse(
            {
                "status": "success",
                "api_key": principal.prefix,
                "current_limits": _shown(told["limits"], "limit"),
                "current_usage": {
                    "allowed": refusal is None,
                    "reason": reason,
                    **{name: window["used"] for name, window in told["limits"].items()},
                },
                "soft_limits": {
                    name: window["mark"]
                    for name, window in told["limits"].items()
                    if window["mark"] is not None
                },
                "reset_times": told["reset_times"],
                "time_zone": told["time_zone"],
            }
        )

    async def time_series(self, request: Request, principal: Principal) -> Response:
        """GET /v1/usage."""
        query = validate(UsageQuery, dict(request.query_params))
        told = await self._database.read_time_series(
            customer_id=_asked_customer(principal, query.customer_id),
            key_id=_asked_key(principal, query.key_id),
            start=query.from_,
            end=query.to,
            interval=query.interval,
            group_by=query.group_by,
            time_zone=query.time_zone,
            show_cost=principal.is_admin,
        )
        return JSONResponse(
            accept(
                told,
                unknown_customer=_no_customer(),
                unknown_key=_no_key(),
                unknown_time_zone=Unprocessable(
                    "time_zone must be a time zone such as Asia/Kolkata.", param="time_zone"
                ),
                customer_needed=Unprocessable(
                    "The keys of all customers would be too many: name a customer_id.", param="group_by"
                ),
                empty_range=Unprocessable("from must lie before to.", param="from"),
                range_too_long=Unprocessable(
                    "from lies too far before to: by the hour 31 days may be asked for, by the day 400, "
                    "by the month 10 years.",
                    param="from",
                ),
                too_many_points=Unprocessable(
                    "These groups have more than 10,000 points in this time: name a customer or a key, "
                    "or ask for a shorter time.",
                    param="group_by",
                ),
            )
        )

    async def requests(self, request: Request, principal: Principal) -> Response:
        """GET /v1/requests, the newest first."""
        query = validate(RequestsQuery, dict(request.query_params))
        before = _read_cursor(query.cursor)
        told = accept(
            await self._database.list_requests(
                limit=page_size(request),
                customer_id=_asked_customer(principal, query.customer_id),
                show_cost=principal.is_admin,
                before=before,
                start=query.from_,
                end=query.to,
                model=query.model,
                status=query.status,
                key_id=_asked_key(principal, query.key_id),
                provider=query.provider,
                errors=query.errors,
            ),
            unknown_customer=_no_customer(),
            unknown_key=_no_key(),
        )
        following = told["next"]
        return JSONResponse(
            {"data": told["data"], "next_cursor": None if following is None else _cursor(following)}
        )

    async def request(self, request: Request, principal: Principal) -> Response:
        """GET /v1/requests/{id}."""
        unknown = NotFound("There is no such request.", code="request_not_found")
        request_id = request.path_params["id"]
        if not _REQUEST_ID.fullmatch(request_id):
            raise unknown
        told = await self._database.read_request(
            request_id,
            customer_id=None if principal.is_admin else _customer(principal),
            key_id=principal.own_key_id,
        )
        return JSONResponse(found(told, unknown))

    async def key(self, _request: Request, principal: Principal) -> Response:
        """GET /v1/key, in OpenRouter's shape; amounts are USD of the charge."""
        key_id = require_key(principal)
        told = found(
            await self._database.read_key(_customer(principal), key_id), NotFound("There is no such key.")
        )
        spend, used = told["spend_limit"], told["usage"]
        manages = principal.is_admin or "keys" in principal.scopes
        return JSONResponse(
            {
                "data": {
                    "label": told["prefix"],
                    "limit": None if spend is None else _number(spend["limit_usd"]),
                    "limit_remaining": None if spend is None else _number(spend["remaining_usd"]),
                    "limit_reset": None if spend is None else _RESETS[spend["per"]],
                    "include_byok_in_limit": False,
                    "usage": _number(used["total_usd"]),
                    "usage_daily": _number(used["day_usd"]),
                    "usage_weekly": _number(used["week_usd"]),
                    "usage_monthly": _number(used["month_usd"]),
                    "byok_usage": 0,
                    "byok_usage_daily": 0,
                    "byok_usage_weekly": 0,
                    "byok_usage_monthly": 0,
                    "is_free_tier": told["is_free_tier"],
                    "is_management_key": manages,
                    "is_provisioning_key": manages,
                    "creator_user_id": None,
                    "expires_at": told["expires_at"],
                    "rate_limit": {
                        # OpenRouter's way of saying that there is none.
                        "requests": -1
                        if told["requests_per_minute"] is None
                        else told["requests_per_minute"],
                        "interval": "1m",
                        "note": _LIMITS_NOTE,
                    },
                }
            }
        )

    async def credits(self, _request: Request, principal: Principal) -> Response:
        """GET /v1/credits, in OpenRouter's shape: USD, and what is left is the difference."""
        told = found(await self._database.read_credits(_customer(principal)), _no_such_customer())
        return JSONResponse(
            {
                "data": {
                    "total_credits": _number(told["total_credits_usd"]),
                    "total_usage": _number(told["total_usage_usd"]),
                }
            }
        )

    async def price_to_pay(self, request: Request, principal: Principal) -> Response:
        """GET /api/usage. The commission is the charge less the cost, whatever its percentage.

        At a flat price the cost is the operator's affair: all of it is shown as the base price.
        """
        customer_id = _customer(principal)
        user = request.headers.get("user")
        if user is not None and user != principal.username:
            raise unknown_key()
        told = found(await self._database.read_totals(customer_id), _no_such_customer())
        charge = Decimal(told["charge_usd"])
        cost = charge if told["cost_usd"] is None else Decimal(told["cost_usd"])
        return JSONResponse(
            {
                "priceToPay": {
                    "username": principal.username,
                    "total_input_tokens": told["input_tokens"],
                    "total_output_tokens": told["output_tokens"],
                    "total_tokens": told["total_tokens"],
                    "base_price": float(cost),
                    "commission_5_percent": float(charge - cost),
                    "final_price": float(charge),
                }
            }
        )


def _customer(principal: Principal) -> int:
    """Return the customer that the caller belongs to. Raises Forbidden (403)."""
    if principal.customer_id is None:
        raise Forbidden("This key belongs to no customer, so it has no balance.", code="no_customer")
    return principal.customer_id


def _named_customer(principal: Principal, asked: int | None) -> int:
    """Return the one customer whose figures are asked for: an admin may name any. Raises NotFound (404)."""
    return _customer(principal) if asked is None else _asked_customer(principal, asked) or asked


def _parts(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: row[name] for name in names}


def _asked_customer(principal: Principal, asked: int | None) -> int | None:
    """Return whose figures are asked for; None is all, and is for admins. Raises NotFound (404)."""
    if principal.is_admin:
        return asked
    own = _customer(principal)
    if asked not in {None, own}:
        raise _no_customer()
    return own


def _asked_key(principal: Principal, asked: int | None) -> int | None:
    """Return which key's figures are asked for; None is all that the caller sees. Raises NotFound (404)."""
    own = principal.own_key_id
    if own is not None and asked not in {None, own}:
        raise _no_key()
    return own if asked is None else asked


def _shown(windows: Mapping[str, Mapping[str, Any]], part: str) -> dict[str, Any]:
    return {**dict.fromkeys(_LIMIT_NAMES), **{name: window[part] for name, window in windows.items()}}


def _number(usd: str | None) -> float:
    """Return an amount as the older routes show it: a JSON number."""
    return float(usd or 0)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _cursor(after: Mapping[str, str]) -> str:
    text = f"{after['at']} {after['id']}"
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _read_cursor(cursor: str | None) -> tuple[str, str] | None:
    """Return the time and the id of the last row of the page before. Raises Unprocessable (422)."""
    if cursor is None:
        return None
    at = identity = ""
    try:
        text = base64.b64decode(f"{cursor}{'=' * (-len(cursor) % 4)}", b"-_", validate=True).decode("ascii")
        at, _, identity = text.partition(" ")
        told = datetime.fromisoformat(at).tzinfo is not None and _LOGGED_ID.fullmatch(identity) is not None
    except ValueError:  # binascii's own error is one
        told = False
    if not told:
        raise Unprocessable("cursor must be the next_cursor of another page.", param="cursor")
    return at, identity


def _no_such_customer() -> NotFound:
    return NotFound("There is no such customer.")


def _no_customer() -> NotFound:
    return NotFound("There is no such customer.", code="customer_not_found", param="customer_id")


def _no_key() -> NotFound:
    return NotFound("There is no such key.", code="key_not_found", param="key_id")


def operations(process: Process) -> Sequence[Operation]:
    """Return the routes of usage."""
    usage = Usage(process)

    def route(path: str, endpoint: AuthorizedEndpoint, summary: str, *scopes: str) -> Operation:
        return Operation(
            "GET",
            path,
            authorized(process, endpoint, *scopes),
            summary,
            scope=scopes[0] if scopes else None,
            tags=("usage",),
        )

    return (
        route("/v1/me", usage.me, "Read who calls"),
        route("/user/balance", usage.balance, "Read the balance"),
        route("/user/monitor", usage.monitor, "Read what was used", "usage", "chat"),
        route("/user/limit", usage.limit, "Read the limits and what is left of them"),
        route("/v1/usage", usage.time_series, "Read usage over time", "usage", "chat"),
        route("/v1/requests", usage.requests, "List requests", "usage", "chat"),
        route("/v1/requests/{id}", usage.request, "Read the record of a request", "usage", "chat"),
        route("/v1/key", usage.key, "Read the calling key (OpenRouter's shape)"),
        route("/v1/credits", usage.credits, "Read credits in USD (OpenRouter's shape)"),
        route("/api/usage", usage.price_to_pay, "Read what is to be paid (older route)", "usage"),
    )
