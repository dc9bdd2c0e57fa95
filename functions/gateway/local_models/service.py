"""The service's routes: OpenAI's chat and legacy completions, its list of models, and whether all is well."""

from __future__ import annotations

import asyncio
import functools
import os
import time
import uuid
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gateway import json_text
from gateway.errors import NotFound, Unauthorized
from gateway.http import ClientGoneError, EventStreamResponse, JSONResponse, Operation, create_app, read_model
from gateway.local_models.model import Begun
from gateway.local_models.options import LocalModelsOptions
from gateway.local_models.request import CompletionRequest, ask_chat, ask_completion
from gateway.local_models.worker import Worker
from gateway.schemas.chat import ChatCompletionRequest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

    from gateway.http import Application
    from gateway.local_models.model import Asked, Piece
    from gateway.observability import Logger

_OWNER = "local"


@dataclass(frozen=True, slots=True)
class Shape:
    """How one of the two routes writes its answers."""

    prefix: str
    plain: str
    streamed: str

    def choice(self, index: int, text: str, reason: str) -> dict[str, Any]:
        """Return a whole choice."""
        said: dict[str, Any] = (
            {"message": {"role": "assistant", "content": text, "refusal": None}}
            if self.is_chat
            else {"text": text}
        )
        return {"index": index, **said, "logprobs": None, "finish_reason": reason}

    def piece(self, piece: Piece, *, first: bool) -> dict[str, Any]:
        """Return a choice of a chunk."""
        if self.is_chat:
            delta = {"role": "assistant", "content": piece.text} if first else {}
            if piece.text:
                delta["content"] = piece.text
            said: dict[str, Any] = {"delta": delta}
        else:
            said = {"text": piece.text}
        return {"index": piece.choice, **said, "logprobs": None, "finish_reason": piece.finish_reason}

    @property
    def is_chat(self) -> bool:
        return self is CHAT


CHAT = Shape("chatcmpl-", "chat.completion", "chat.completion.chunk")
TEXT = Shape("cmpl-", "text_completion", "text_completion")


class LocalModels:
    """Every model that is served, by its name."""

    def __init__(self, options: LocalModelsOptions, workers: Iterable[Worker] | None = None) -> None:
        self._options = options
        made = workers or [
            Worker(name, source, queue=options.queue, threads=options.threads)
            for name, source in options.models.items()
        ]
        self.workers = {worker.name: worker for worker in made}
        self._created = int(time.time())

    def preload(self) -> None:
        """Load every model; blocks. Raises LocalModelsError."""
        for worker in self.workers.values():
            worker.preload()

    def operations(self) -> Sequence[Operation]:
        """Return the routes. All but /health ask for the key, where there is one."""
        chat, text = self._guarded(self.chat), self._guarded(self.complete)
        return (
            Operation(
                "POST",
                "/v1/chat/completions",
                chat,
                "Answer a chat",
                request_model=ChatCompletionRequest,
                streams=True,
            ),
            Operation(
                "POST",
                "/v1/completions",
                text,
                "Go on with a text",
                request_model=CompletionRequest,
                streams=True,
            ),
            Operation("GET", "/v1/models", self._guarded(self.list_models), "List the models"),
            Operation("GET", "/health", self.health, "Tell whether the service is well"),
        )

    async def chat(self, request: Request) -> Response:
        """Answer POST /v1/chat/completions."""
        read, body = await read_model(request, ChatCompletionRequest)
        asked = ask_chat(read, body)
        return await self._answer(
            request, read.model, asked, CHAT, streams=bool(read.stream), usage=read.wants_usage
        )

    async def complete(self, request: Request) -> Response:
        """Answer POST /v1/completions."""
        read, body = await read_model(request, CompletionRequest)
        asked = ask_completion(read, body)
        return await self._answer(
            request, read.model, asked, TEXT, streams=bool(read.stream), usage=read.wants_usage
        )

    async def list_models(self, _request: Request) -> Response:
        """Answer GET /v1/models. The context length is known of those that are loaded."""
        listed = [
            {"id": name, "object": "model", "created": self._created, "owned_by": _OWNER}
            | ({} if worker.model is None else {"context_length": worker.model.context_length})
            for name, worker in self.workers.items()
        ]
        return JSONResponse({"object": "list", "data": listed})

    async def health(self, _request: Request) -> Response:
        """Answer GET /health."""
        loaded = [name for name, worker in self.workers.items() if worker.model is not None]
        return JSONResponse({"status": "ok", "models": list(self.workers), "loaded": loaded})

    def close(self) -> None:
        """End the models' threads."""
        for worker in self.workers.values():
            worker.close()

    def _guarded(self, endpoint: Callable[[Request], Awaitable[Response]]) -> Any:
        async def guarded(request: Request) -> Response:
            scheme, _, key = request.headers.get("authorization", "").partition(" ")
            if not self._options.admits(key.strip() if scheme.lower() == "bearer" else ""):
                raise Unauthorized("The key is missing or wrong.")
            return await endpoint(request)

        return guarded

    async def _answer(
        self, request: Request, name: str, asked: Asked, shape: Shape, *, streams: bool, usage: bool
    ) -> Response:
        worker = self.workers.get(name)
        if worker is None:
            raise NotFound(
                f"The model {name[:64]!r} is not served here.", code="model_not_found", param="model"
            )
        if streams:
            return EventStreamResponse(self._events(worker, asked, shape, usage=usage))
        answer = await _unless_gone(request, self._whole(worker, asked, shape))
        return JSONResponse(answer)

    async def _whole(self, worker: Worker, asked: Asked, shape: Shape) -> dict[str, Any]:
        texts = [""] * asked.choices
        reasons = [""] * asked.choices
        counted = _Usage()
        with worker.turn():
            async with aclosing(worker.run(asked)) as items:
                async for item in items:
                    counted.take(item)
                    if not isinstance(item, Begun):
                        texts[item.choice] += item.text
                        reasons[item.choice] = item.finish_reason or ""
        choices = [
            shape.choice(index, text, reason)
            for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))
        ]
        return {**_head(shape, shape.plain, worker.name), "choices": choices, "usage": counted.told()}

    async def _events(
        self, worker: Worker, asked: Asked, shape: Shape, *, usage: bool
    ) -> AsyncGenerator[bytes, None]:
        head = _head(shape, shape.streamed, worker.name)
        # As OpenAI has it, every chunk of a stream that ends with the usage says that it is none yet.
        none_yet = {"usage": None} if usage else {}
        begun: set[int] = set()
        counted = _Usage()
        with worker.turn():
            async with aclosing(worker.run(asked)) as items:
                async for item in items:
                    counted.take(item)
                    if isinstance(item, Begun):
                        continue
                    choice = shape.piece(item, first=item.choice not in begun)
                    begun.add(item.choice)
                    yield _event({**head, "choices": [choice], **none_yet})
        if usage:
            yield _event({**head, "choices": [], "usage": counted.told()})
        yield b"data: [DONE]\n\n"


class _Usage:
    """The tokens of one request: the prompt's once, and those of every choice."""

    def __init__(self) -> None:
        self._prompt = 0
        self._completion = 0

    def take(self, item: Begun | Piece) -> None:
        if isinstance(item, Begun):
            self._prompt = item.prompt_tokens
        else:
            self._completion += item.completion_tokens

    def told(self) -> dict[str, int]:
        return {
            "prompt_tokens": self._prompt,
            "completion_tokens": self._completion,
            "total_tokens": self._prompt + self._completion,
        }


def create_service(models: LocalModels, logger: Logger | None = None) -> Application:
    """Return the ASGI application."""

    @asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[None]:
        yield
        models.close()

    return create_app(models.operations(), logger=logger, lifespan=lifespan)


class MountedService:
    """The application below a path, made from the environment at the first request."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    @functools.cached_property
    def application(self) -> Application:
        """The ASGI application. Raises LocalModelsError where the environment is not in order."""
        options = LocalModelsOptions.from_environment(os.environ, exposed=True)
        models = LocalModels(options)
        if options.preload:
            models.preload()
        return create_service(models)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        below = {**scope, "root_path": f"{scope.get('root_path', '')}{self._prefix}"}
        await self.application(below, receive, send)


def _head(shape: Shape, kind: str, model: str) -> dict[str, Any]:
    identity = f"{shape.prefix}{uuid.uuid4().hex}"
    return {"id": identity, "object": kind, "created": int(time.time()), "model": model}


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json_text.dump(chunk) + b"\n\n"


async def _unless_gone(request: Request, work: Any) -> dict[str, Any]:
    """Await the work, or cancel it when the client leaves: then raises ClientGoneError."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task: asyncio.Task[dict[str, Any]] = asyncio.create_task(work, name="local-model-answer")
    gone = asyncio.create_task(watch(), name="local-model-disconnect")
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        # One that is done is left as it is.
        task.cancel()
        gone.cancel()
        await asyncio.wait({task, gone})
