"""Anthropic's Messages API over any model: metered as chat is.

Where Anthropic itself answers, what the client said goes on as it is, and so does the answer. For all others
both are translated. Each route is asked in its own way, so that one can stand in for another.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway import json_text
from gateway.auth import api_key, key_hash
from gateway.calls import Calls
from gateway.completions import Completions
from gateway.database.client import DatabaseError
from gateway.database.rpc import RateLimits, Refusal
from gateway.errors import Unprocessable
from gateway.http import JSONResponse, Operation, read_body, validate
from gateway.messages.dialect import MESSAGES_DIALECT
from gateway.metering import database_failed, refusal_error
from gateway.providers.wire import MessagesCall
from gateway.tokens import count_request
from gateway.upstream import Exchange, Upstream

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from pydantic import BaseModel
    from starlette.datastructures import Headers
    from starlette.requests import Request
    from starlette.responses import Response

    from gateway.runtime.process import Process

_SCOPES = frozenset({"chat", "admin"})
# Betas that change neither what a call costs nor what it may reach. Any other has no effect: what it would
# let a client say is refused.
_BETAS = frozenset(
    {
        "claude-code-20250219",
        "computer-use-2024-10-22",
        "computer-use-2025-01-24",
        "computer-use-2025-11-24",
        "context-management-2025-06-27",
        "dev-full-thinking-2025-05-14",
        "effort-2025-11-24",
        "extended-cache-ttl-2025-04-11",
        "fine-grained-tool-streaming-2025-05-14",
        "interleaved-thinking-2025-05-14",
        "model-context-window-exceeded-2025-08-26",
        "output-128k-2025-02-19",
        "output-300k-2026-03-24",
        "pdfs-2024-09-25",
        "prompt-caching-2024-07-31",
        "structured-outputs-2025-11-13",
        "task-budgets-2026-03-13",
        "thinking-display-updates-2026-08-18",
        "thinking-token-count-2026-05-13",
        "token-efficient-tools-2025-02-19",
    }
)


class Messages:
    """The endpoints of the Messages API."""

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

    async def create(self, request: Request) -> Response:
        """POST /v1/messages."""
        # 7 ms that no start should pay.
        from gateway.messages.answer import MessageEvents, message  # noqa: PLC0415
        from gateway.messages.request import translate  # noqa: PLC0415
        from gateway.schemas.messages import MessagesRequest  # noqa: PLC0415

        key = api_key(request.headers)
        raw = await read_body(request)
        given = _without_nulls(json_text.parse_request(raw))
        _refuse_thread(given)
        asked = validate(MessagesRequest, given)
        translated = translate(given)
        exchange = Exchange(
            translated.body,
            kind=MessagesCall,
            files={
                "native": translated.native,
                "native_headers": _native_headers(request.headers),
                "native_only": translated.native_only,
            },
            stream=asked.wants_stream,
            wants_usage=True,
            # Tools made for Anthropic always name their user, for its own eyes.
            droppable=frozenset({"user"}),
        )
        call = await self._calls.admit(
            request,
            key,
            raw,
            exchange,
            endpoint="messages",
            input_tokens_bound=translated.input_bound,
            models=(asked.model,),
            max_output_tokens=asked.max_tokens,
        )
        if asked.wants_stream:
            return self._completions.stream(call, MessageEvents(call))
        answer, usage, settled = await self._completions.whole(call)
        return JSONResponse(message(call, answer, usage, settled), headers=call.headers)

    async def count_tokens(self, request: Request) -> Response:
        """POST /v1/messages/count_tokens: an estimate, for any model. It costs nothing, and calls nobody."""
        from gateway.messages.request import translate  # noqa: PLC0415
        from gateway.schemas.messages import CountTokensRequest  # noqa: PLC0415

        hashed = key_hash(api_key(request.headers))
        try:
            known = await self._database.authenticate_key(hashed)
            _refuse(known.get("error"))
            if _SCOPES.isdisjoint(known["scopes"]):
                _refuse("scope_missing")
            given = _without_nulls(json_text.parse_request(await read_body(request)))
            asked = validate(CountTokensRequest, given)
            told = await self._database.list_models(key_hash=hashed, name=asked.model)
        except DatabaseError as error:
            raise database_failed(error) from error
        _refuse(told.get("error") or (None if told["models"] else "model_not_found"), model=asked.model)
        body = translate(given).body
        return JSONResponse({"input_tokens": await asyncio.to_thread(count_request, body, asked.model)})


def _refuse(code: str | None, **details: str) -> None:
    """Raise the contract's error for what the database refused; None is no refusal."""
    if code is not None:
        raise refusal_error(Refusal(code, RateLimits(), details))


def _refuse_thread(given: Any) -> None:
    """Refuse to go on with a conversation that the server keeps, in words at which SDKs send the whole of it.

    Its price could not be bounded; and what Anthropic keeps under the gateway's key, any customer could go on
    with: https://platform.claude.com/docs/en/build-with-claude/message-threads (November 2026).
    """
    if isinstance(given, dict) and "thread" in given:
        raise Unprocessable(
            "The gateway keeps no threads: send the whole conversation, without 'thread'.",
            code="thread_unsupported_request",
            param="thread",
        )


def _without_nulls(value: Any) -> Any:
    """Return a request without the fields that are null: they say what their absence says."""
    if not isinstance(value, dict):
        return value
    return {name: item for name, item in value.items() if item is not None}


def _native_headers(headers: Headers) -> dict[str, str]:
    """Return what goes on to Anthropic of the client's headers."""
    native = {}
    version = headers.get("anthropic-version", "")
    if len(version) == len("2023-06-01") and version.replace("-", "").isdecimal():
        native["anthropic-version"] = version
    named = (name.strip() for value in headers.getlist("anthropic-beta") for name in value.split(","))
    betas = [name for name in dict.fromkeys(named) if name in _BETAS]
    if betas:
        native["anthropic-beta"] = ",".join(betas)
    return native


def _messages_request() -> type[BaseModel]:
    from gateway.schemas.messages import MessagesRequest  # noqa: PLC0415

    return MessagesRequest


def _count_tokens_request() -> type[BaseModel]:
    from gateway.schemas.messages import CountTokensRequest  # noqa: PLC0415

    return CountTokensRequest


def operations(process: Process) -> Sequence[Operation]:
    """Return the operations of the Messages API, which the chat function serves."""
    messages = Messages(process)
    return [
        Operation(
            "POST",
            "/v1/messages",
            messages.create,
            "Create a message",
            scope="chat",
            load_request_model=_messages_request,
            streams=True,
            tags=("messages",),
            dialect=MESSAGES_DIALECT,
        ),
        Operation(
            "POST",
            "/v1/messages/count_tokens",
            messages.count_tokens,
            "Estimate the tokens of a message",
            scope="chat",
            load_request_model=_count_tokens_request,
            tags=("messages",),
            dialect=MESSAGES_DIALECT,
        ),
    ]
