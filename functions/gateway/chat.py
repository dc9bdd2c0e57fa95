"""The chat routes: a metered call of a model, whole or streamed, in each of the shapes that clients know."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from gateway import json_text
from gateway.auth import api_key, key_hash
from gateway.calls import Calls, gateway_usage
from gateway.completions import Completions
from gateway.database.client import DatabaseError
from gateway.database.rpc import RateLimits, Refusal
from gateway.errors import NotFound, Unprocessable
from gateway.http import JSONResponse, Operation, read_body, validate
from gateway.metering import database_failed, refusal_error
from gateway.providers.openai_compatible import openai_usage
from gateway.providers.registry import find_provider
from gateway.redaction import redact
from gateway.schemas.chat import ChatCompletionRequest, GenerateRequest, LayersChatRequest
from gateway.tokens import input_bound
from gateway.upstream import Exchange, Upstream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from gateway.calls import Call
    from gateway.database.rpc import Settled
    from gateway.providers.wire import Answer, Chunk, ProviderCall
    from gateway.runtime.process import Process

_DONE = b"data: [DONE]\n\n"
# For the provider's own eyes: clients name them unasked, to any model, and no answer depends on them.
_ASIDES = frozenset({"user", "safety_identifier", "metadata", "prompt_cache_key"})


class Chat:
    """The chat routes' endpoints."""

    def __init__(self, process: Process) -> None:
        self._database = process.database
        self._calls = Calls(
            process.meter,
            Upstream(process.settings, process.providers_http, process.logger),
            seconds=process.settings.request_timeout_seconds,
        )
        self._completions = Completions(
            self._calls, keep_alive_seconds=process.settings.keep_alive_seconds, logger=process.logger
        )

    async def complete(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        key = api_key(request.headers)
        raw = await read_body(request)
        body = json_text.parse_request(raw)
        asked = validate(ChatCompletionRequest, body)
        exchange = Exchange(body, stream=asked.wants_stream, wants_usage=asked.wants_usage, droppable=_ASIDES)
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
            return self._completions.stream(call, _ChunkEvents())
        answer, counted, settled = await self._completions.whole(call)
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
        answer, usage, settled = await self._completions.whole(call)
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
        answer, usage, _ = await self._completions.whole(call)
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


class _ChunkEvents:
    """OpenAI's chunks as they are, and `[DONE]`."""

    keep_alive = b": keep-alive\n\n"

    def begin(self, provider_call: ProviderCall) -> None:
        pass

    def encode(self, chunks: Sequence[Chunk]) -> bytes:
        return b"".join(chunk.sse for chunk in chunks)

    def end(self, call: Call, settled: Settled | None) -> bytes:
        if call.exchange.wants_usage and call.stream is not None:
            last = call.stream.usage_chunk(call.usage, gateway_usage=gateway_usage(call, settled))
            return last.sse + _DONE
        return _DONE


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
