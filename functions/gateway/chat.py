"""The chat routes: a metered call of a model, whole or streamed, in each of the shapes that clients know."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import datetime
from typing import TYPE_CHECKING, Any

from gateway import json_text
from gateway.auth import api_key, key_hash
from gateway.calls import Call, Calls, Measured, client_error, gateway_usage
from gateway.database.client import DatabaseError
from gateway.database.rpc import RateLimits, Refusal
from gateway.errors import InternalError, NotFound, Unprocessable
from gateway.http import (
    EventStreamResponse,
    JSONResponse,
    Operation,
    finish,
    read_body,
    validate,
)
from gateway.metering import database_failed, refusal_error
from gateway.providers.openai_compatible import openai_usage
from gateway.providers.registry import find_provider
from gateway.providers.wire import Chunk, Fault, ProviderError, StreamDone, StreamFailed
from gateway.redaction import redact
from gateway.schemas.chat import ChatCompletionRequest, GenerateRequest, LayersChatRequest
from gateway.schemas.usage import TokenUsage
from gateway.tokens import count_request, count_text, input_bound
from gateway.upstream import BROKEN, Exchange, Upstream, broken_connection, read_answer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    import httpx
    from starlette.requests import Request
    from starlette.responses import Response

    from gateway.database.rpc import Settled
    from gateway.providers.wire import Answer, ProviderCall, StreamEvent
    from gateway.runtime.process import Process

STALLED_CLIENT_SECONDS = 20.0
"""How long after the deadline a client may take what is left; well within the hold's lease."""

_KEEP_ALIVE = b": keep-alive\n\n"
_DONE = b"data: [DONE]\n\n"
_QUEUED_EVENTS = 64
"""How far a provider may run ahead of a slow client."""
_CLIENT_CLOSED_REQUEST = 499
"""The status under which a call that the client has left is logged (nginx's)."""
_END_SECONDS = 0.05
"""How long a provider has to end its response after the end mark, so that its connection can be kept."""


class Chat:
    """The chat routes' endpoints."""

    def __init__(self, process: Process) -> None:
        self._settings = process.settings
        self._database = process.database
        self._logger = process.logger
        self._calls = Calls(
            process.meter,
            Upstream(process.settings, process.providers_http, process.logger),
            seconds=process.settings.request_timeout_seconds,
        )

    async def complete(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        key = api_key(request.headers)
        raw = await read_body(request)
        body = json_text.parse_request(raw)
        asked = validate(ChatCompletionRequest, body)
        exchange = Exchange(body, stream=asked.wants_stream, wants_usage=asked.wants_usage)
        call = await self._calls.admit(
            request,
            key,
            raw,
            exchange,
            endpoint="chat.completions",
            input_tokens_bound=input_bound(body),
            models=asked.candidates,
            max_output_tokens=asked.output_bound,
            choices=asked.choices,
            media_output=_asks_for_media(body),
        )
        if asked.wants_stream:
            lifetime = call.deadline - call.started + STALLED_CLIENT_SECONDS
            return EventStreamResponse(
                self._stream(call), headers=call.headers, lifetime=lifetime, logger=self._logger
            )
        answer, counted, settled = await self._answer(call)
        # Whoever reads `usage` is to find it, told by the provider or not.
        usage = {} if answer.usage else {"usage": openai_usage(counted)}
        return JSONResponse(
            {**answer.body, **usage, "gateway_usage": gateway_usage(call, settled)}, headers=call.headers
        )

    async def generate(self, request: Request) -> Response:
        """POST /generate: one text in, one text out."""
        key = api_key(request.headers)
        raw = await read_body(request)
        asked = validate(GenerateRequest, json_text.parse_request(raw))
        by_id = isinstance(asked.model_id, int)
        body = {"messages": [{"role": "user", "content": asked.text}]}
        call = await self._calls.admit(
            request,
            key,
            raw,
            Exchange(body),
            endpoint="generate",
            input_tokens_bound=input_bound(body),
            models=() if by_id else (str(asked.model_id),),
            model_id=asked.model_id if by_id else None,
            max_output_tokens=asked.max_length,
        )
        answer, usage, settled = await self._answer(call)
        return JSONResponse(
            {
                "response": _text(answer),
                "tokens_used": usage.total,
                "cost": float(settled.charge_usd) if settled else None,
            },
            headers=call.headers,
        )

    async def layers_chat(self, request: Request) -> Response:
        """POST /api/layers/chat: one message to a model of a named provider."""
        key = api_key(request.headers)
        raw = await read_body(request)
        asked = validate(LayersChatRequest, json_text.parse_request(raw))
        body = {"messages": [{"role": "user", "content": asked.message}]}
        call = await self._calls.admit(
            request,
            key,
            raw,
            Exchange(body),
            endpoint="layers.chat",
            input_tokens_bound=input_bound(body),
            models=(asked.model_name,),
            provider=_provider_name(asked.providerName),
            username=request.headers.get("user"),
        )
        answer, usage, _ = await self._answer(call)
        return JSONResponse(
            {
                "content": _text(answer),
                "usage": {
                    "inputTokens": usage.total_input,
                    "outputTokens": usage.total_output,
                    "totalTokens": usage.total,
                },
            },
            headers=call.headers,
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
                f"The model {redact(name)[:200]!r} does not exist here.",
                code="model_not_found",
                param="model",
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

    async def _answer(self, call: Call) -> tuple[Answer, TokenUsage, Settled | None]:
        async def measure(answer: Answer) -> Measured:
            usage = answer.usage
            if usage is None:
                usage = await asyncio.to_thread(_estimate, call, answer.generated)
            return Measured(
                usage,
                estimated=answer.usage is None,
                finish_reason=next(iter(answer.finish_reasons), None),
                provider_cost_usd=answer.reported_cost_usd,
            )

        return await self._calls.answer(call, _whole_answer, measure)

    # A stream

    async def _stream(self, call: Call) -> AsyncGenerator[bytes, None]:
        """Yield the answer's events as they come, and settle, however it ends.

        A task of its own reads the provider, so that waiting for it can be interrupted by a keep-alive.
        """
        events: asyncio.Queue[bytes | None] = asyncio.Queue(_QUEUED_EVENTS)
        reader = asyncio.create_task(self._read_stream(call, events), name="provider-stream")
        try:
            while (event := await _next_event(events, self._settings.keep_alive_seconds)) is not None:
                yield event
            await self._end_stream(call, reader)
            settled = await self._settle_stream(call, "succeeded", status=200)
            if call.exchange.wants_usage and call.stream is not None:
                yield call.stream.usage_chunk(call.usage, gateway_usage=gateway_usage(call, settled)).sse
            yield _DONE
        finally:
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await reader
            # Where it is not settled yet, the client has left, or the server is stopping.
            await self._settle_stream(call, "cancelled", status=_CLIENT_CLOSED_REQUEST)

    async def _read_stream(self, call: Call, events: asyncio.Queue[bytes | None]) -> None:
        """Put the answer's events into the queue, and None at the end, unless nobody reads them any more."""

        async def relay(provider_call: ProviderCall, response: httpx.Response) -> None:
            await _relay(call, provider_call, response, events)

        try:
            async with asyncio.timeout_at(call.deadline):
                await self._calls.upstream.exchange(call.exchange, relay)
        except Exception:
            await events.put(None)
            raise
        await events.put(None)

    async def _end_stream(self, call: Call, reader: asyncio.Task[None]) -> None:
        """Return if the provider ended the stream well; else settle what there was of it and raise."""
        try:
            await reader
        except Exception as failure:
            error = client_error(failure, call)
            if call.exchange.forwarded:
                await self._settle_stream(call, "cut", status=200, error_code=error.code)
            else:
                await self._settle_stream(call, "failed", status=error.status, error_code=error.code)
            if isinstance(error, InternalError):
                raise  # to be logged as what it is
            raise error from error.__cause__

    async def _settle_stream(
        self, call: Call, outcome: str, *, status: int, error_code: str | None = None
    ) -> Settled | None:
        """Settle a stream, once; a later call returns what the first came to."""
        if call.settlement is None:
            call.settlement = asyncio.create_task(
                self._settle_streamed(call, outcome, status, error_code), name="settlement"
            )
        return await finish(call.settlement)

    async def _settle_streamed(
        self, call: Call, outcome: str, status: int, error_code: str | None
    ) -> Settled | None:
        stream = call.stream
        told = stream.usage if stream is not None else None
        cost = stream.reported_cost_usd if stream is not None else None
        # A provider that has the call is paid for what it was sent, even if it said nothing yet.
        charged = call.exchange.candidate is not None and outcome != "failed"
        if charged:
            generated = stream.generated if stream is not None else ()
            call.usage = told or await asyncio.to_thread(_estimate, call, generated)
        return await self._calls.settle(
            call,
            outcome,
            status=status,
            usage=call.usage,
            usage_estimated=charged and told is None,
            error_code=error_code,
            finish_reason=next(iter(stream.finish_reasons), None) if stream is not None else None,
            provider_cost_usd=str(cost) if charged and cost is not None else None,
        )


async def _whole_answer(call: ProviderCall, response: httpx.Response) -> Answer:
    return call.provider.wire.parse_answer(call, await read_answer(call, response))


async def _relay(
    call: Call, provider_call: ProviderCall, response: httpx.Response, events: asyncio.Queue[bytes | None]
) -> None:
    """Put a provider's chunks into the queue. Raises ProviderError where the stream is not whole."""
    stream = call.stream = provider_call.provider.wire.open_stream(provider_call)
    arriving = response.aiter_bytes()
    try:
        async for data in arriving:
            if await _forward(call, stream.feed(data), events):
                await _read_out(arriving)
                return
        if await _forward(call, stream.close(), events):
            return
    except BROKEN as error:
        if not stream.complete:
            raise broken_connection(provider_call, error) from error
    if not stream.complete:
        raise ProviderError(
            provider_call.provider.name,
            Fault.PROTOCOL,
            f"{provider_call.provider.subject} ended the stream before the answer was whole.",
        )


async def _forward(call: Call, arrived: Sequence[StreamEvent], events: asyncio.Queue[bytes | None]) -> bool:
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


async def _read_out(arriving: AsyncIterator[bytes]) -> None:
    """Read what follows the end mark: a connection whose response was left unread can't be used again."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_END_SECONDS):
            async for _ in arriving:
                pass


async def _next_event(events: asyncio.Queue[bytes | None], seconds: float) -> bytes | None:
    """Return the next event, None at the end, or a comment after so many seconds of silence."""
    try:
        async with asyncio.timeout(seconds):
            return await events.get()
    except TimeoutError:
        return _KEEP_ALIVE


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


def _estimate(call: Call, generated: Sequence[str]) -> TokenUsage:
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
