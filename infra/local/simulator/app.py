"""The simulator's routes: each provider's wire, and what the tests ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from infra.local.simulator import (
    anthropic_wire,
    gemini_wire,
    openai_media,
    openai_wire,
    text_completions,
)
from infra.local.simulator.calls import CallLog
from infra.local.simulator.endpoint import Asked, Endpoint, Refusal

if TYPE_CHECKING:
    from starlette.requests import Request


def create_simulator(*, key: str | None = None, log: CallLog | None = None) -> Starlette:
    """Make the simulator. It demands `key` as its provider key (None takes any); `log` keeps its calls."""
    calls = CallLog() if log is None else log

    async def list_models(request: Request) -> Response:
        try:
            openai_wire.check_key(dict(request.headers), key)
        except Refusal as refusal:
            return JSONResponse(refusal.body, refusal.status)
        return JSONResponse(openai_wire.model_list())

    async def list_anthropic_models(request: Request) -> Response:
        headers = dict(request.headers)
        asked = Asked(
            request.url.path, request.url.query, headers, {}, key=anthropic_wire.header_key(headers)
        )
        try:
            anthropic_wire.check_headers(asked, key)
        except Refusal as refusal:
            return JSONResponse(refusal.body, refusal.status)
        return JSONResponse(anthropic_wire.model_list())

    async def list_gemini_models(request: Request) -> Response:
        headers = dict(request.headers)
        asked = Asked(request.url.path, request.url.query, headers, {}, key=headers.get("x-goog-api-key", ""))
        try:
            gemini_wire.check_key(asked, key)
        except Refusal as refusal:
            return JSONResponse(refusal.body, refusal.status)
        return JSONResponse(gemini_wire.model_list())

    async def read_calls(_request: Request) -> Response:
        return JSONResponse(calls.as_json())

    async def forget_calls(_request: Request) -> Response:
        calls.clear()
        return Response(status_code=204)

    return Starlette(
        routes=[
            Route(
                "/v1/chat/completions", Endpoint(openai_wire.ChatCompletions(), calls, key), methods=["POST"]
            ),
            Route("/v1/completions", Endpoint(text_completions.Completions(), calls, key), methods=["POST"]),
            Route(
                "/v1/images/generations",
                Endpoint(openai_media.ImageGenerations(), calls, key),
                methods=["POST"],
            ),
            Route("/v1/images/edits", Endpoint(openai_media.ImageEdits(), calls, key), methods=["POST"]),
            Route("/v1/embeddings", Endpoint(openai_media.Embeddings(), calls, key), methods=["POST"]),
            Route("/v1/models", list_models, methods=["GET"]),
            Route(
                "/anthropic/v1/messages", Endpoint(anthropic_wire.Messages(), calls, key), methods=["POST"]
            ),
            Route(
                "/anthropic/v1/messages/count_tokens",
                Endpoint(anthropic_wire.CountTokens(), calls, key),
                methods=["POST"],
            ),
            Route("/anthropic/v1/models", list_anthropic_models, methods=["GET"]),
            *(
                Route(
                    f"/gemini/{version}/models/{{model:path}}:{method}",
                    Endpoint(wire, calls, key),
                    methods=["POST"],
                )
                for version in gemini_wire.VERSIONS
                for method, wire in gemini_wire.METHODS.items()
            ),
            *(
                Route(f"/gemini/{version}/models", list_gemini_models, methods=["GET"])
                for version in gemini_wire.VERSIONS
            ),
            Route("/sim/calls", read_calls, methods=["GET"]),
            Route("/sim/calls", forget_calls, methods=["DELETE"]),
        ]
    )
