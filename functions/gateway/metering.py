"""Admission before a call and settlement after it: the two round trips that every paid request makes."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Any

from gateway.auth import unknown_key
from gateway.database.client import DatabaseAwayError, DatabaseError
from gateway.database.rpc import Refusal
from gateway.errors import (
    Conflict,
    Forbidden,
    GatewayError,
    InsufficientCredits,
    InternalError,
    NotFound,
    RateLimited,
    Unavailable,
    Unprocessable,
)
from gateway.observability import append_log_keys
from gateway.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.database.rpc import Admission, Database, RateLimits, Settled, Settlement
    from gateway.observability import Logger, Metrics
    from gateway.spool import Spool

LEASE_MARGIN_SECONDS = 60
"""How long a hold outlives the deadline of its call: time enough to settle in."""

_SETTLE_TRIES = 4
_SETTLE_PAUSE_SECONDS = 0.1
_SETTLE_SECONDS = 8.0
"""How long a client waits for a database that is away, before its answer goes out as pending."""
_DRAIN_SECONDS = _SETTLE_SECONDS + 2


class Meter:
    """Admits requests and settles them."""

    def __init__(
        self, database: Database, spool: Spool, logger: Logger, metrics: Metrics | None = None
    ) -> None:
        self._database = database
        self._spool = spool
        self._logger = logger
        self._metrics = metrics
        self._open: dict[str, Admission | None] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    async def admit(
        self, *, request_id: str, seconds: float, models: Sequence[str], **request: Any
    ) -> Admission:
        """Return the admission of a request that may run for `seconds`; see Database.admit_request.

        Raises the contract's error for a refusal, and Unavailable (503) where the database is away.
        """
        self._open[request_id] = None
        self._idle.clear()
        try:
            admission = await self._admit(
                request_id=request_id,
                lease_seconds=int(seconds) + LEASE_MARGIN_SECONDS,
                models=models,
                **request,
            )
        except BaseException:
            self._close(request_id)
            raise
        self._open[request_id] = admission
        return admission

    async def _admit(self, **request: Any) -> Admission:
        try:
            answer = await self._database.admit_request(**request)
        except DatabaseError as error:
            raise database_failed(error) from error
        if isinstance(answer, Refusal):
            append_log_keys(key_prefix=answer.details.get("key_prefix"))
            raise refusal_error(answer)
        append_log_keys(
            key_prefix=answer.key_prefix, customer_id=answer.customer_id, model=answer.candidates[0].model
        )
        return answer

    async def settle(self, settlement: Settlement) -> Settled | None:
        """Settle; or keep the settlement for a replay and return None, as the answer is given either way.

        Raises nothing but CancelledError, and that when the settlement is safe.
        """
        document = settlement.as_json()
        settled = None
        try:
            async with asyncio.timeout(_SETTLE_SECONDS):
                settled = await self._settle(document)
                return settled
        except asyncio.CancelledError as stopped:
            await self._keep(document, stopped)
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the settlement must not be lost with it
            await self._keep(document, error)
            return None
        finally:
            self._measure(settlement, settled)
            self._close(settlement.request_id)

    async def drain(self, seconds: float = _DRAIN_SECONDS) -> None:
        """Wait, at most so long, until no request is between admission and settlement: the process stops."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()

    def _close(self, request_id: str) -> None:
        self._open.pop(request_id, None)
        if not self._open:
            self._idle.set()

    def _measure(self, settlement: Settlement, settled: Settled | None) -> None:
        """Write the request's metrics, once, whatever became of it."""
        if self._metrics is None or (settled is not None and settled.already):
            return
        admission = self._open.get(settlement.request_id)
        routes = admission.candidates if admission is not None else ()
        route = next((route for route in routes if route.route_id == settlement.route_id), None)
        route = route or next(iter(routes), None)
        try:
            self._metrics.record(
                _measurements(settlement, settled),
                model=route.model if route is not None else "unknown",
                provider=route.provider if route is not None else "unknown",
            )
        except Exception:
            self._logger.exception("The metrics of a request could not be written.")

    async def _keep(self, document: dict[str, Any], cause: BaseException) -> None:
        # The log has the whole of it, should the disk fail too.
        self._logger.error(
            "A settlement could not be made and is kept for a replay.",
            extra={"settlement": document},
            exc_info=cause,
        )
        try:
            await self._spool.keep(document)
        except OSError as error:
            self._logger.critical("A settlement could not be kept.", exc_info=error)

    async def _settle(self, document: dict[str, Any]) -> Settled | None:
        for attempt in range(_SETTLE_TRIES):
            try:
                settled = await self._database.settle_request(document)
            except DatabaseAwayError:
                if attempt == _SETTLE_TRIES - 1:
                    raise
                # Jittered, so that a database that comes back is not met by everybody at once.
                await asyncio.sleep(_SETTLE_PAUSE_SECONDS * 2**attempt * (0.5 + random.random()))  # noqa: S311
                continue
            if settled is None:
                raise DatabaseError("settle_request", None, "the database knows no such request")
            if settled.uncollected_usd != "0" and not settled.already:
                self._logger.warning(
                    "A provider billed beyond the bound; the rest could not be collected.",
                    extra={"uncollected_usd": settled.uncollected_usd},
                )
            return settled
        raise AssertionError("unreachable: the last try returns or raises")


def _measurements(settlement: Settlement, settled: Settled | None) -> dict[str, tuple[str, float]]:
    values: dict[str, tuple[str, float]] = {
        "Requests": ("Count", 1),
        "Errors": ("Count", settlement.outcome in {"failed", "cut"}),
        "PendingSettlements": ("Count", settled is None),
        "Latency": ("Milliseconds", settlement.latency_ms),
    }
    if settlement.time_to_first_token_ms is not None:
        values["TimeToFirstToken"] = ("Milliseconds", settlement.time_to_first_token_ms)
    for name, count in (settlement.usage or {}).items():
        what = "Images" if name == "images" else f"{name.title().replace('_', '')}Tokens"
        values[what] = ("Count", count)
    if settled is not None:
        values["CostUsd"] = ("None", float(settled.cost_usd))
        values["ChargeUsd"] = ("None", float(settled.charge_usd))
        values["UncollectedUsd"] = ("None", float(settled.uncollected_usd))
    return values


def database_failed(error: DatabaseError) -> GatewayError:
    """Return what the client is told when the database fails."""
    if isinstance(error, DatabaseAwayError):
        return Unavailable(
            "The gateway's database can't be reached. Try again shortly.",
            code="database_unavailable",
            retry_after=1,
            detail=str(error),
        )
    return InternalError(detail=str(error))


def rate_limit_headers(limits: RateLimits, warnings: Sequence[str] = ()) -> dict[str, str]:
    """Return the x-ratelimit headers of the tightest windows, and the soft limits that are crossed."""
    headers = {}
    for name, limit in (("requests", limits.requests), ("tokens", limits.tokens)):
        if limit is not None:
            headers[f"x-ratelimit-limit-{name}"] = str(limit.limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(limit.remaining)
            headers[f"x-ratelimit-reset-{name}"] = f"{limit.reset_seconds}s"
    if warnings:
        headers["x-ratelimit-warning"] = ", ".join(warnings)
    return headers


_ENDPOINTS = {
    "text": " Call it at /v1/chat/completions.",
    "image": " Call it at /v1/images/generations.",
    "embedding": " Call it at /v1/embeddings.",
}


def refusal_error(refusal: Refusal) -> GatewayError:
    """Return the contract's error for a refusal of api.admit_request."""
    error = _refusal_error(refusal)
    error.headers.update(rate_limit_headers(refusal.rate_limits))
    return error


def _refusal_error(refusal: Refusal) -> GatewayError:  # noqa: C901, PLR0911, PLR0912 - a table
    details = refusal.details
    model = redact(str(details.get("model", "")))[:200]
    match refusal.code:
        case "unknown_key" | "inactive_key" | "expired_key" | "wrong_user":
            # One message for all: a guess learns nothing.
            return unknown_key()
        case "scope_missing":
            return Forbidden("This key may not call models: it lacks the scope 'chat'.", code="scope_missing")
        case "customer_suspended":
            return Forbidden("This account is suspended.", code="customer_suspended")
        case "customer_in_debt":
            return Forbidden(
                f"This account is suspended: it owes ${details['debt_usd']} of refunds or disputes. "
                "A top-up pays that first.",
                code="customer_in_debt",
            )
        case "model_not_found" | "model_not_served":
            return NotFound(
                f"The model {model!r} does not exist here. GET /v1/models lists those that do.",
                code="model_not_found",
                param="model",
            )
        case "model_not_priced":
            return NotFound(
                f"The model {model!r} has no price yet, so it can't be called.",
                code="model_not_priced",
                param="model",
            )
        case "model_not_allowed":
            return Forbidden(
                f"This key may not use the model {model!r}.", code="model_not_allowed", param="model"
            )
        case "model_wrong_output":
            gives = " and ".join(details["output_modalities"])
            return Unprocessable(
                f"The model {model!r} answers with {gives}, not with {details['output']}."
                + _ENDPOINTS.get(details["output_modalities"][-1], ""),
                code="model_not_suitable",
                param="model",
            )
        case "cache_write_1h_not_priced":
            return Unprocessable(
                f"A cache of an hour has no price for {model!r} here. Leave out the ttl of cache_control.",
                code="cache_write_1h_not_priced",
                param="cache_control",
            )
        case "input_unbounded":
            return Unprocessable(
                f"The cost of this input can't be bounded: the context length of {model!r} is not known.",
                code="input_unbounded",
                param="messages",
            )
        case "idempotency_running":
            return Conflict(
                "A request with this Idempotency-Key is still running.", code="idempotency_key_in_use"
            )
        case "idempotency_reused":
            first = details["first_request_id"]
            return Conflict(
                f"A request with this Idempotency-Key has been charged: {first}. "
                f"Its record is at /v1/requests/{first}.",
                code="idempotency_key_reused",
            )
        case "idempotency_mismatch":
            return Unprocessable(
                "This Idempotency-Key was used with another request body.",
                code="idempotency_key_mismatch",
                param="Idempotency-Key",
            )
        case "insufficient_credits":
            return _insufficient(details)
        case "rate_limit_exceeded":
            return _limited(details)
        case other:
            return InternalError(detail=f"api.admit_request refused with {other!r}, which is not known")


def _insufficient(details: Any) -> InsufficientCredits:
    affordable = details["affordable_output_tokens"]
    hint = (
        f" With max_tokens of at most {affordable} it could be served."
        if affordable > 0
        else " Top up the balance."
    )
    return InsufficientCredits(
        f"Not enough credits: this request may cost up to ${details['needed_usd']}, "
        f"and ${details['available_usd']} is available.{hint}"
    )


_METRICS = {"requests": "requests", "tokens": "tokens", "spend_usd": "US dollars"}
_SUBJECTS = {"key": "key", "customer": "account", "service": "provider connection"}


def _limited(details: Any) -> RateLimited:
    metric, per = details["metric"], details["per"]
    message = (
        f"Rate limit reached for this {_SUBJECTS[details['subject']]}: "
        f"{details['limit']} {_METRICS[metric]} per {per}."
    )
    if details["never"]:
        message += " This request alone is beyond it, and no window will admit it."
        return RateLimited(message, retry_after=None)
    seconds = details["retry_after_seconds"]
    return RateLimited(f"{message} Try again in {seconds} s.", retry_after=seconds)
