"""Metered calls of models: admitted, sent to a provider and settled, whatever they ask for."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from gateway import telemetry
from gateway.auth import key_hash
from gateway.database.rpc import Settlement
from gateway.errors import GatewayError, InternalError, ProviderTimeout, Unprocessable
from gateway.http import finish, request_id
from gateway.metering import rate_limit_headers
from gateway.providers.wire import ProviderError
from gateway.tokens import caches_for_an_hour

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from decimal import Decimal

    from starlette.requests import Request

    from gateway.database.rpc import Admission, Settled
    from gateway.metering import Meter
    from gateway.providers.wire import ChatStream
    from gateway.schemas.usage import TokenUsage
    from gateway.upstream import Exchange, Upstream, Use

Result = TypeVar("Result")

MAX_IDEMPOTENCY_KEY_CHARS = 255
DROPPED_HEADER = "x-gateway-dropped-parameters"
"""The parameters that the provider can't be told, and that a setting says to leave out."""

_LAMBDA_MARGIN_SECONDS = 15.0
"""What of a function's time is left for the settlement."""
_STOPPING = 503
"""The status under which a call is logged that the server's stop has ended."""
_MAX_STORED_CHARS = 200


@dataclass(slots=True)
class Call:
    """One admitted request, from its admission to its settlement."""

    admission: Admission
    exchange: Exchange
    started: float
    deadline: float
    """Both by the event loop's clock, in seconds."""
    first_token: float | None = None
    stream: ChatStream | None = None
    images: int = 0
    """How many images its stream has brought so far."""
    usage: TokenUsage | None = None
    """What it was settled on."""
    settlement: asyncio.Task[Settled | None] | None = field(default=None, repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """The headers that its answer carries: once a provider has the call, with what it was not told."""
        headers = rate_limit_headers(self.admission.rate_limits, self.admission.warnings)
        if self.exchange.dropped:
            headers[DROPPED_HEADER] = ", ".join(sorted(map(_header_safe, self.exchange.dropped)))
        return headers

    def announce(self) -> dict[str, str]:
        """Return the headers of an answer that begins now, before it is known which provider will end it."""
        self.exchange.announced = self.exchange.dropped
        return self.headers


@dataclass(frozen=True, slots=True)
class Measured:
    """What a whole answer is to be charged for."""

    usage: TokenUsage
    estimated: bool = False
    """Whether the gateway counted, as the provider told nothing."""
    finish_reason: str | None = None
    provider_cost_usd: Decimal | None = None


class Calls:
    """Makes the calls of one process, each of at most `seconds`."""

    def __init__(self, meter: Meter, upstream: Upstream, *, seconds: float) -> None:
        self.upstream = upstream
        self._meter = meter
        self._most_seconds = seconds

    async def admit(
        self,
        request: Request,
        key: str,
        raw: bytes,
        exchange: Exchange,
        *,
        endpoint: str,
        **admission: Any,
    ) -> Call:
        """Admit a request and return its call, with the routes of `exchange` filled in.

        `raw` is the body as it came, which an Idempotency-Key stands for; `admission` as Meter.admit takes
        it. Raises the contract's error where it is refused.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        seconds = self._seconds(request)
        held: list[Admission] = []

        async def admit() -> None:
            held.append(
                await self._meter.admit(
                    seconds=seconds,
                    key_hash=key_hash(key),
                    request_id=request_id(request),
                    endpoint=endpoint,
                    streamed=exchange.stream,
                    cache_write_1h=caches_for_an_hour([exchange.body, *exchange.files.values()]),
                    **_idempotency(request, endpoint, raw),
                    **admission,
                )
            )

        cancelled: asyncio.CancelledError | None = None
        try:
            await finish(admit())
        except asyncio.CancelledError as error:
            if not held:
                raise
            cancelled = error
        admitted = held[0]
        if (trace := telemetry.current()) is not None:
            trace.note(
                customer_id=admitted.customer_id, key_id=admitted.key_id, model=admitted.candidates[0].model
            )
        exchange.candidates = admitted.candidates
        exchange.drops = admitted.unsupported_parameters == "drop"
        exchange.started, exchange.deadline = started, started + seconds
        call = Call(admitted, exchange, started=started, deadline=started + seconds)
        if cancelled is not None:
            # The server stopped while the database was asked: what it has held is given back.
            await self.settle(call, "cancelled", status=_STOPPING)
            raise cancelled
        return call

    def _seconds(self, request: Request) -> float:
        """Return how long the call may take: the setting, or what is left of a Lambda function's time."""
        context = request.scope.get("aws.context")
        if context is None:
            return self._most_seconds
        left: float = context.get_remaining_time_in_millis() / 1000 - _LAMBDA_MARGIN_SECONDS
        return max(min(self._most_seconds, left), 1.0)

    async def answer(
        self, call: Call, use: Use[Result], measure: Callable[[Result], Awaitable[Measured]]
    ) -> tuple[Result, TokenUsage, Settled | None]:
        """Call a provider and settle. A client that leaves does not end it: the call is paid for.

        Only a server that stops does: the client then has no answer, and pays for none. `use` reads a
        provider's response, `measure` says what it is charged for, and must not raise.
        """
        try:
            async with asyncio.timeout_at(call.deadline):
                result = await self.upstream.exchange(call.exchange, use)
        except asyncio.CancelledError:
            await self.settle(call, "failed", status=_STOPPING, error_code="gateway_stopped")
            raise
        except Exception as failure:  # noqa: BLE001 - raised again as what the client is told
            error = client_error(failure, call)
            await self.settle(call, "failed", status=error.status, error_code=error.code)
            raise error from error.__cause__
        return await finish(self._settle_answer(call, result, measure))

    async def _settle_answer(
        self, call: Call, result: Result, measure: Callable[[Result], Awaitable[Measured]]
    ) -> tuple[Result, TokenUsage, Settled | None]:
        measured = await measure(result)
        cost = measured.provider_cost_usd
        settled = await self.settle(
            call,
            "succeeded",
            status=200,
            usage=measured.usage,
            usage_estimated=measured.estimated,
            finish_reason=measured.finish_reason,
            provider_cost_usd=None if cost is None else str(cost),
        )
        return result, measured.usage, settled

    async def settle(
        self,
        call: Call,
        outcome: str,
        *,
        usage: TokenUsage | None = None,
        error_code: str | None = None,
        finish_reason: str | None = None,
        **told: Any,
    ) -> Settled | None:
        """Settle a call; `told` are further fields of its Settlement. None where it is kept for a replay."""
        now = asyncio.get_running_loop().time()
        exchange = call.exchange
        exchange.attempt.close(
            usage=usage,
            finish_reasons=() if call.stream is None else call.stream.finish_reasons,
            # Of a call that the client has left there is no error to tell.
            error_type=None if outcome == "cancelled" else error_code,
        )
        settled = await self._meter.settle(
            Settlement(
                request_id=call.admission.request_id,
                admitted_at=call.admission.admitted_at,
                outcome=outcome,
                route_id=exchange.candidate.route_id if exchange.candidate else None,
                usage=None if usage is None else usage.as_dict(),
                error_code=_storable(error_code),
                finish_reason=_storable(finish_reason),
                latency_ms=_milliseconds(now - call.started),
                time_to_first_token_ms=(
                    None if call.first_token is None else _milliseconds(call.first_token - call.started)
                ),
                provider_request_id=_storable(exchange.provider_request_id),
                failed_routes=tuple(exchange.failed_routes),
                **told,
            )
        )
        if (trace := telemetry.current()) is not None:
            trace.note(outcome=outcome, usage_estimated=bool(told.get("usage_estimated")))
            if settled is not None:
                trace.note(charge_usd=settled.charge_usd)
        return settled


def gateway_usage(call: Call, settled: Settled | None) -> dict[str, Any]:
    """Return what a call has cost, as answers carry it."""
    known = {"request_id": call.admission.request_id, "user_api_key": call.admission.key_prefix}
    if settled is None:
        return {**known, "status": "pending"}
    return {
        **known,
        "tokens_charged": settled.tokens_charged,
        "credits_charged": settled.credits_charged,
        # At a flat price the provider's cost is the operator's own business.
        "cost_usd": settled.cost_usd if settled.billing_mode == "markup" else None,
        "charge_usd": settled.charge_usd,
        "user_balance_after": settled.credits_after,
        "balance_after_usd": settled.balance_after_usd,
    }


def client_error(failure: Exception, call: Call) -> GatewayError:
    """Return what the client is told of a call that failed, whatever it failed of."""
    if isinstance(failure, GatewayError):
        error = failure
    else:
        if isinstance(failure, ProviderError):
            error = failure.as_gateway_error()
        elif isinstance(failure, TimeoutError):
            error = ProviderTimeout("The provider took longer than a request may.")
        else:
            error = InternalError(detail=f"unforeseen: {type(failure).__name__}")
        error.__cause__ = failure
    error.headers.update(call.headers)
    return error


def _idempotency(request: Request, endpoint: str, raw: bytes) -> dict[str, str]:
    """Return the Idempotency-Key and what it stands for: this body at this endpoint."""
    given = request.headers.get("idempotency-key")
    if given is None:
        return {}
    if not 1 <= len(given) <= MAX_IDEMPOTENCY_KEY_CHARS or not given.isprintable():
        raise Unprocessable(
            f"An Idempotency-Key has 1 to {MAX_IDEMPOTENCY_KEY_CHARS} printable characters.",
            param="Idempotency-Key",
        )
    digest = hashlib.sha256(endpoint.encode() + b"\0" + raw).hexdigest()
    return {"idempotency_key": given, "body_hash": digest}


def _header_safe(name: str) -> str:
    """Return a client's own name as a header may carry it."""
    return "".join(char if "!" <= char <= "~" and char != "," else "?" for char in name)


def _storable(text: str | None) -> str | None:
    """Return a provider's word without what the database can't hold: a settlement must not fail for it."""
    if text is None:
        return None
    return "".join(
        char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text[:_MAX_STORED_CHARS]
    )


def _milliseconds(seconds: float) -> int:
    return max(round(seconds * 1000), 0)
