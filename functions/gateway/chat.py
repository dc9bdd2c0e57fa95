"""The chat routes: a metered call of a model, whole or streamed, in each of the shapes that clients know."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import httpx

from gateway import json_text
from gateway.auth import api_key, key_hash
from gateway.database.client import DatabaseError
from gateway.database.rpc import RateLimits, Refusal, Settlement
from gateway.errors import GatewayError, NotFound, ProviderTimeout, Unprocessable
from gateway.http import (
    EventStreamResponse,
    JSONResponse,
    Operation,
    finish,
    read_body,
    request_id,
    validate,
)
from gateway.metering import database_failed, rate_limit_headers, refusal_error
from gateway.providers.openai_compatible import openai_usage
from gateway.providers.registry import find_provider
from gateway.providers.wire import Chunk, Fault, ProviderError, StreamDone, StreamFailed
from gateway.schemas.chat import ChatCompletionRequest, GenerateRequest, LayersChatRequest
from gateway.schemas.usage import TokenUsage
from gateway.tokens import count_request, count_text, input_bound
from gateway.upstream import Exchange, Upstream, broken_connection, read_answer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from gateway.database.rpc import Admission, Settled
    from gateway.providers.wire import Answer, ChatStream, ProviderCall, StreamEvent
    from gateway.runtime.process import Process

MAX_IDEMPOTENCY_KEY_CHARS = 255

STALLED_CLIENT_SECONDS = 20.0
"""How long after the deadline a client may take what is left; well within the hold's lease."""

_KEEP_ALIVE = b": keep-alive\n\n"
_DONE = b"data: [DONE]\n\n"
_QUEUED_EVENTS = 64
"""How far a provider may run ahead of a slow client."""
_LAMBDA_MARGIN_SECONDS = 15.0
"""What of a function's time is left for the settlement."""
_CLIENT_CLOSED_REQUEST = 499
"""The status under which a call that the client has left is logged (nginx's)."""


@dataclass(slots=True)
class _Call:
    """One admitted request, from its admission to its settlement."""

    admission: Admission
    exchange: Exchange
    started: float
    deadline: float
    """Both by the event loop's clock, in seconds."""
    first_token: float | None = None
    stream: ChatStream | None = None
    settlement: asyncio.Task[Settled | None] | None = field(default=None, repr=False)


class Chat:
    """The chat routes' endpoints."""

    def __init__(self, process: Process) -> None:
        self._settings = process.settings
        self._database = process.database
        self._meter = process.meter
        self._upstream = Upstream(process.settings, process.providers_http, process.logger)

    async def complete(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        key = api_key(request.headers)
        raw = await read_body(request)
        body = json_text.parse_request(raw)
        asked = validate(ChatCompletionRequest, body)
        call = await self._admit(
            request,
            key,
            body,
            raw,
            endpoint="chat.completions",
            models=asked.candidates,
            max_output_tokens=asked.output_bound,
            choices=asked.choices,
            streamed=asked.wants_stream,
            media_output=_asks_for_media(body),
        )
        call.exchange.wants_usage = asked.wants_usage
        headers = rate_limit_headers(call.admission.rate_limits, call.admission.warnings)
        if asked.wants_stream:
            lifetime = call.deadline - call.started + STALLED_CLIENT_SECONDS
            return EventStreamResponse(self._stream(call), headers=headers, lifetime=lifetime)
        answer, settled = await self._answer(call)
        # Whoever reads `usage` is to find it, told by the provider or not.
        usage = {} if answer.usage else {"usage": openai_usage(_usage(call, answer))}
        return JSONResponse(
            {**answer.body, **usage, "gateway_usage": _gateway_usage(call, settled)}, headers=headers
        )

    async def generate(self, request: Request) -> Response:
        """POST /generate: one text in, one text out."""
        key = api_key(request.headers)
        raw = await read_body(request)
        asked = validate(GenerateRequest, json_text.parse_request(raw))
        by_id = isinstance(asked.model_id, int)
        call = await self._admit(
            request,
            key,
            {"messages": [{"role": "user", "content": asked.text}]},
            raw,
            endpoint="generate",
            models=() if by_id else (str(asked.model_id),),
            model_id=asked.model_id if by_id else None,
            max_output_tokens=asked.max_length,
        )
        answer, settled = await self._answer(call)
        return JSONResponse(
            {
                "response": _text(answer),
                "tokens_used": _usage(call, answer).total,
                "cost": float(settled.charge_usd) if settled else None,
            },
            headers=rate_limit_headers(call.admission.rate_limits, call.admission.warnings),
        )

    async def layers_chat(self, request: Request) -> Response:
        """POST /api/layers/chat: one message to a model of a named provider."""
        key = api_key(request.headers)
        raw = await read_body(request)
        asked = validate(LayersChatRequest, json_text.parse_request(raw))
        call = await self._admit(
            request,
            key,
            {"messages": [{"role": "user", "content": asked.message}]},
            raw,
            endpoint="layers.chat",
            models=(asked.model_name,),
            provider=_provider_name(asked.providerName),
            username=request.headers.get("user"),
        )
        answer, _ = await self._answer(call)
        usage = _usage(call, answer)
        return JSONResponse(
            {
                "content": _text(answer),
                "usage": {
                    "inputTokens": usage.total_input,
                    "outputTokens": usage.total_output,
                    "totalTokens": usage.total,
                },
            },
            headers=rate_limit_headers(call.admission.rate_limits, call.admission.warnings),
        )

    async def list_models(self, request: Request) -> Response:
        """GET /v1/models: what the key may use."""
        return JSONResponse({"object": "list", "data": await self._models(request)})

    async def read_model(self, request: Request) -> Response:
        """GET /v1/models/{id}. A model's name may hold slashes."""
        name = request.path_params["name"]
        found = await self._models(request, name=name)
        if not found:
            raise NotFound(
                f"The model {name[:200]!r} does not exist here.", code="model_not_found", param="model"
            )
        return JSONResponse(found[0])

    async def list_names(self, request: Request) -> Response:  # noqa: ARG002
        """GET /models/simple: what there is, for everybody."""
        try:
            told = await self._database.list_models()
        except DatabaseError as error:
            raise database_failed(error) from error
        return JSONResponse({"models": [model["name"] for model in told["models"]]})

    async def _models(self, request: Request, *, name: str | None = None) -> list[dict[str, Any]]:
        try:
            told = await self._database.list_models(key_hash=key_hash(api_key(request.headers)), name=name)
        except DatabaseError as error:
            raise database_failed(error) from error
        if "error" in told:
            raise refusal_error(Refusal(told["error"], RateLimits(), told))
        return [_model(model) for model in told["models"]]

    async def _admit(
        self, request: Request, key: str, body: dict[str, Any], raw: bytes, **admission: Any
    ) -> _Call:
        loop = asyncio.get_running_loop()
        started = loop.time()
        seconds = self._seconds(request)
        admitted = await finish(
            self._meter.admit(
                seconds=seconds,
                key_hash=key_hash(key),
                request_id=request_id(request),
                input_tokens_bound=input_bound(body),
                **_idempotency(request, raw),
                **admission,
            )
        )
        exchange = Exchange(admitted.candidates, body, stream=admission.get("streamed", False))
        return _Call(admitted, exchange, started=started, deadline=started + seconds)

    def _seconds(self, request: Request) -> float:
        """Return how long the call may take: the setting, or what is left of a Lambda function's time."""
        context = request.scope.get("aws.context")
        if context is None:
            return self._settings.request_timeout_seconds
        left: float = context.get_remaining_time_in_millis() / 1000 - _LAMBDA_MARGIN_SECONDS
        return max(min(self._settings.request_timeout_seconds, left), 1.0)

    # A whole answer

    async def _answer(self, call: _Call) -> tuple[Answer, Settled | None]:
        """Call a provider and settle; to the end even if the client leaves, as the call is paid for."""
        return await finish(self._answer_and_settle(call))

    async def _answer_and_settle(self, call: _Call) -> tuple[Answer, Settled | None]:
        error: GatewayError
        try:
            async with asyncio.timeout_at(call.deadline):
                answer = await self._upstream.exchange(call.exchange, _whole_answer)
        except ProviderError as failure:
            error = failure.as_gateway_error()
            error.__cause__ = failure
        except GatewayError as refused:
            error = refused
        except TimeoutError:
            error = _too_slow()
        except BaseException:
            await self._settle(call, "failed", status=500, error_code="internal_error")
            raise
        else:
            usage = await asyncio.to_thread(_usage, call, answer) if answer.usage is None else answer.usage
            settled = await self._settle(
                call,
                "succeeded",
                status=200,
                usage=usage,
                usage_estimated=answer.usage is None,
                finish_reason=next(iter(answer.finish_reasons), None),
                provider_cost_usd=None if answer.reported_cost_usd is None else str(answer.reported_cost_usd),
            )
            return answer, settled
        await self._settle(call, "failed", status=error.status, error_code=error.code)
        error.headers.update(rate_limit_headers(call.admission.rate_limits, call.admission.warnings))
        raise error

    # A stream

    async def _stream(self, call: _Call) -> AsyncGenerator[bytes, None]:
        """Yield the answer's events as they come, and settle, however it ends.

        A task of its own reads the provider, so that waiting for it can be interrupted by a keep-alive.
        """
        events: asyncio.Queue[bytes | None] = asyncio.Queue(_QUEUED_EVENTS)
        reader = asyncio.create_task(self._read_stream(call, events), name="provider-stream")
        try:
            async for event in _with_keep_alive(events, self._settings.keep_alive_seconds):
                yield event
            await self._end_stream(call, reader)
            settled = await self._settle_stream(call, "succeeded", status=200)
            if call.exchange.wants_usage and call.stream is not None:
                usage = call.stream.usage or await self._estimate_stream(call)
                yield call.stream.usage_chunk(usage, gateway_usage=_gateway_usage(call, settled)).sse
            yield _DONE
        finally:
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await reader
            # Where it is not settled yet, the client has left, or the server is stopping.
            await self._settle_stream(call, "cancelled", status=_CLIENT_CLOSED_REQUEST)

    async def _read_stream(self, call: _Call, events: asyncio.Queue[bytes | None]) -> None:
        """Put the answer's events into the queue, and None at the end, unless nobody reads them any more."""

        async def relay(provider_call: ProviderCall, response: httpx.Response) -> None:
            await _relay(call, provider_call, response, events)

        try:
            async with asyncio.timeout_at(call.deadline):
                await self._upstream.exchange(call.exchange, relay)
        except Exception:
            await events.put(None)
            raise
        await events.put(None)

    async def _end_stream(self, call: _Call, reader: asyncio.Task[None]) -> None:
        """Return if the provider ended the stream well; else settle what there was of it and raise."""
        error: GatewayError
        try:
            await reader
        except ProviderError as failure:
            error = failure.as_gateway_error()
            error.__cause__ = failure
        except GatewayError as refused:
            error = refused
        except TimeoutError:
            error = _too_slow()
        except Exception:
            outcome = "cut" if call.exchange.forwarded else "failed"
            await self._settle_stream(call, outcome, status=500, error_code="internal_error")
            raise
        else:
            return
        if call.exchange.forwarded:
            await self._settle_stream(call, "cut", status=200, error_code=error.code)
        else:
            await self._settle_stream(call, "failed", status=error.status, error_code=error.code)
        error.headers.update(rate_limit_headers(call.admission.rate_limits, call.admission.warnings))
        raise error

    async def _settle_stream(
        self, call: _Call, outcome: str, *, status: int, error_code: str | None = None
    ) -> Settled | None:
        """Settle a stream, once; a later call returns what the first came to."""
        if call.settlement is None:
            call.settlement = asyncio.create_task(
                self._settle_streamed(call, outcome, status, error_code), name="settlement"
            )
        return await finish(call.settlement)

    async def _settle_streamed(
        self, call: _Call, outcome: str, status: int, error_code: str | None
    ) -> Settled | None:
        stream = call.stream
        # A provider that has accepted the call is paid for what it was sent, even if it said nothing yet.
        charged = stream is not None and call.exchange.candidate is not None and outcome != "failed"
        usage = None
        if charged and stream is not None:
            usage = stream.usage or await self._estimate_stream(call)
        cost = stream.reported_cost_usd if charged and stream is not None else None
        return await self._settle(
            call,
            outcome,
            status=status,
            usage=usage,
            usage_estimated=usage is not None and stream is not None and stream.usage is None,
            error_code=error_code,
            finish_reason=next(iter(stream.finish_reasons), None) if stream is not None else None,
            provider_cost_usd=None if cost is None else str(cost),
        )

    async def _estimate_stream(self, call: _Call) -> TokenUsage:
        generated = call.stream.generated if call.stream is not None else ()
        return await asyncio.to_thread(_estimate, call, generated)

    async def _settle(
        self, call: _Call, outcome: str, *, usage: TokenUsage | None = None, **told: Any
    ) -> Settled | None:
        now = asyncio.get_running_loop().time()
        exchange = call.exchange
        return await self._meter.settle(
            Settlement(
                request_id=call.admission.request_id,
                admitted_at=call.admission.admitted_at,
                outcome=outcome,
                route_id=exchange.candidate.route_id if exchange.candidate else None,
                usage=None if usage is None else usage.as_dict(),
                latency_ms=_milliseconds(now - call.started),
                time_to_first_token_ms=(
                    None if call.first_token is None else _milliseconds(call.first_token - call.started)
                ),
                provider_request_id=exchange.provider_request_id,
                failed_routes=tuple(exchange.failed_routes),
                **told,
            )
        )


async def _whole_answer(call: ProviderCall, response: httpx.Response) -> Answer:
    return call.provider.wire.parse_answer(call, await read_answer(call, response))


async def _relay(
    call: _Call, provider_call: ProviderCall, response: httpx.Response, events: asyncio.Queue[bytes | None]
) -> None:
    """Put a provider's chunks into the queue. Raises ProviderError where the stream is not whole."""
    stream = call.stream = provider_call.provider.wire.open_stream(provider_call)
    try:
        async for data in response.aiter_bytes():
            if await _forward(call, stream.feed(data), events):
                return
        if await _forward(call, stream.close(), events):
            return
    except httpx.TransportError as error:
        if not stream.complete:
            raise broken_connection(provider_call, error) from error
    if not stream.complete:
        raise ProviderError(
            provider_call.provider.name,
            Fault.PROTOCOL,
            f"{provider_call.provider.title} ended the stream before the answer was whole.",
        )


async def _forward(call: _Call, arrived: Sequence[StreamEvent], events: asyncio.Queue[bytes | None]) -> bool:
    """Put chunks into the queue; return whether the provider said that the stream is whole."""
    out = b"".join(event.sse for event in arrived if isinstance(event, Chunk))
    if out:
        if call.first_token is None:
            call.first_token = asyncio.get_running_loop().time()
        call.exchange.forwarded = True
        await events.put(out)
    for event in arrived:
        if isinstance(event, StreamFailed):
            raise event.error
    return any(isinstance(event, StreamDone) for event in arrived)


async def _with_keep_alive(
    events: asyncio.Queue[bytes | None], seconds: float
) -> AsyncGenerator[bytes, None]:
    """Yield what comes through the queue until its end, and a comment after so many seconds of silence."""
    while True:
        try:
            async with asyncio.timeout(seconds):
                event = await events.get()
        except TimeoutError:
            yield _KEEP_ALIVE
            continue
        if event is None:
            return
        yield event


def _provider_name(name: str) -> str:
    provider = find_provider(name)
    if provider is None:
        raise Unprocessable(
            f"{name!r} is not a provider that the gateway knows.",
            param="providerName",
            code="unknown_provider",
        )
    return provider.name


def _asks_for_media(body: dict[str, Any]) -> bool:
    modalities = body.get("modalities")
    return isinstance(modalities, list) and any(name != "text" for name in modalities)


def _idempotency(request: Request, raw: bytes) -> dict[str, str]:
    """Return the Idempotency-Key and what it stands for: this body on this path."""
    given = request.headers.get("idempotency-key")
    if given is None:
        return {}
    if not 1 <= len(given) <= MAX_IDEMPOTENCY_KEY_CHARS or not given.isprintable():
        raise Unprocessable(
            f"An Idempotency-Key has 1 to {MAX_IDEMPOTENCY_KEY_CHARS} printable characters.",
            param="Idempotency-Key",
        )
    digest = hashlib.sha256(request.url.path.encode() + b"\0" + raw).hexdigest()
    return {"idempotency_key": given, "body_hash": digest}


def _usage(call: _Call, answer: Answer) -> TokenUsage:
    return answer.usage or _estimate(call, answer.generated)


def _estimate(call: _Call, generated: Sequence[str]) -> TokenUsage:
    """Count what was sent and what was generated, for a provider that did not tell."""
    candidate = call.exchange.candidate
    model = candidate.model if candidate else ""
    return TokenUsage(
        input=count_request(call.exchange.body, model),
        output=sum(count_text(text, model) for text in generated),
    )


def _text(answer: Answer) -> str:
    message = answer.body["choices"][0].get("message") or {}
    content = message.get("content")
    return content if isinstance(content, str) else "".join(answer.generated[:1])


def _gateway_usage(call: _Call, settled: Settled | None) -> dict[str, Any]:
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


def _model(model: dict[str, Any]) -> dict[str, Any]:
    """Return a model in OpenAI's shape, with what OpenRouter's has beside it."""
    return {
        "id": model["name"],
        "object": "model",
        "created": int(datetime.fromisoformat(model["created_at"]).timestamp()),
        "owned_by": model["provider"],
        "name": model["display_name"] or model["name"],
        "pricing": model["pricing"],
        "context_length": model["context_length"],
        "max_output_tokens": model["max_output_tokens"],
        "input_modalities": model["input_modalities"],
        "output_modalities": model["output_modalities"],
    }


def _too_slow() -> ProviderTimeout:
    return ProviderTimeout("The provider took longer than a request may.")


def _milliseconds(seconds: float) -> int:
    return max(round(seconds * 1000), 0)


def operations(process: Process) -> list[Operation]:
    """Return the chat function's operations."""
    chat = Chat(process)
    return [
        Operation(
            "POST",
            "/v1/chat/completions",
            chat.complete,
            "Create a chat completion",
            scope="chat",
            request_model=ChatCompletionRequest,
            streams=True,
            tags=("chat",),
        ),
        Operation(
            "POST",
            "/generate",
            chat.generate,
            "Generate text",
            scope="chat",
            request_model=GenerateRequest,
            tags=("chat",),
        ),
        Operation(
            "POST",
            "/api/layers/chat",
            chat.layers_chat,
            "Chat with a model of a named provider",
            scope="chat",
            request_model=LayersChatRequest,
            tags=("chat",),
        ),
        Operation(
            "GET", "/v1/models", chat.list_models, "List the models that the key may use", tags=("models",)
        ),
        Operation("GET", "/v1/models/{name:path}", chat.read_model, "Read a model", tags=("models",)),
        Operation("GET", "/models/simple", chat.list_names, "List the models' names", tags=("models",)),
    ]
