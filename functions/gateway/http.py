"""Requests in, responses out: what every function shares, on Starlette's requests and routes.

A function is a table of operations. `create_app` serves it, and is the one place where an exception becomes
a response, where a body is read and bounded, and where CORS is answered. There is no middleware: a
wrapper round a streaming response is where cancellations get lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route, Router
from starlette.websockets import WebSocketClose

from gateway import json_text
from gateway.errors import (
    BadRequest,
    GatewayError,
    InternalError,
    MethodNotAllowed,
    NotConfigured,
    NotFound,
    PayloadTooLarge,
    Unavailable,
    Unprocessable,
)
from gateway.observability import make_logger, request_log_keys
from gateway.settings import MAX_BODY_BYTES
from gateway.telemetry import following

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from starlette.types import Message, Receive, Scope, Send

    from gateway.observability import Logger
    from gateway.telemetry import RequestTrace, Telemetry

    Endpoint = Callable[[Request], Awaitable[Response]]

Result = TypeVar("Result")
Model = TypeVar("Model", bound=BaseModel)

_REQUEST_ID = "gateway.request_id"
_MAX_BODY = "gateway.max_body_bytes"
_DIALECT = "gateway.dialect"
_ROUTE = "gateway.route"

# What an honest client may still be sending when its body has been found too large. Closing on it would
# reset the connection, and the client would see the reset in place of the 413.
_DRAIN_BYTES = 64 * 1024 * 1024
_DRAIN_SECONDS = 5.0

# A client that takes nothing does not keep a server from stopping.
_LAST_WORD_SECONDS = 1.0

_HEADER_LIST = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~, -]{0,4096}")
_EXPOSED_HEADERS = ", ".join(
    [
        "x-request-id",
        "request-id",
        "retry-after",
        "x-should-retry",
        "x-ratelimit-warning",
        *(
            f"x-ratelimit-{part}-{what}"
            for what in ("requests", "tokens")
            for part in ("limit", "remaining", "reset")
        ),
    ]
)


@dataclass(frozen=True, slots=True)
class Dialect:
    """How the clients of a route take what the gateway itself says."""

    error: Callable[[GatewayError, str | None], tuple[int, dict[str, Any]]]
    """The status and the body of an error, for the request of this id."""
    error_event: bytes = b""
    """What stands before the data of an error inside a stream."""
    request_id_header: str | None = None
    """Where they look for the request's id, beside x-request-id."""


OPENAI = Dialect(lambda error, _identity: (error.status, error.body()))


@dataclass(frozen=True, slots=True)
class Operation:
    """One route of the contract: what serves it, and what tells it from others.

    Its answer, parameters and errors are documented in gateway.openapi, which no request imports.
    """

    method: str
    path: str
    endpoint: Endpoint
    summary: str
    description: str = ""
    scope: str | None = None
    """The key's scope that it takes; None where no key is needed."""
    request_model: type[BaseModel] | None = None
    load_request_model: Callable[[], type[BaseModel]] | None = None
    """Imports that model, where it takes long enough that no start should pay for it."""
    status: int = 200
    streams: bool = False
    """Whether the response may be server-sent events."""
    tags: tuple[str, ...] = ()
    in_schema: bool = True
    dialect: Dialect = OPENAI

    @property
    def body(self) -> type[BaseModel] | None:
        """The model of its JSON body; None where it takes none."""
        return self.request_model if self.load_request_model is None else self.load_request_model()


class ClientGoneError(Exception):
    """The client left before its request was read, or before the response had begun."""


class JSONResponse(Response):
    """A JSON body; text that UTF-8 can't carry goes out escaped, NaN not at all."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json_text.dump(content)


class Application:
    """An ASGI application that serves a table of operations. Made by `create_app`."""

    def __init__(
        self,
        operations: Sequence[Operation],
        *,
        allowed_origins: Sequence[str],
        max_body_bytes: int,
        logger: Logger,
        lifespan: Callable[[Any], AbstractAsyncContextManager[None]] | None,
        telemetry: Telemetry | None = None,
    ) -> None:
        self.operations = tuple(operations)
        self.routes = [
            Route(operation.path, operation.endpoint, methods=[operation.method], name=_name(operation))
            for operation in operations
        ]
        self._served = [
            (route, operation.dialect) for route, operation in zip(self.routes, operations, strict=True)
        ]
        self._unnamed = self._paths_without_parameters()
        self._lifespan = Router(lifespan=lifespan)
        self._allowed_origins = frozenset(allowed_origins)
        self._max_body_bytes = max_body_bytes
        self._logger = logger
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan.lifespan(scope, receive, send)
        elif scope["type"] == "websocket":
            await WebSocketClose()(scope, receive, send)
        else:
            await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        identity = new_request_id()
        scope["app"] = self
        scope[_REQUEST_ID] = identity
        scope[_MAX_BODY] = self._max_body_bytes
        if self._telemetry is None:
            await self._answer(scope, receive, send, identity)
            return
        trace = self._telemetry.begin(scope, identity)
        with following(trace, scope, _ROUTE):
            await self._answer(scope, receive, send, identity, trace)

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, identity: str, trace: RequestTrace | None = None
    ) -> None:
        request = Request(scope, receive)
        head = _Head(scope, send, self._cors_headers(request), trace)
        with request_log_keys(request_id=identity, trace_id=None if trace is None else trace.trace_id):
            try:
                response = await self._respond(request)
                await response(scope, receive, head.send)
            except ClientGoneError:
                self._logger.info("The client left before its response had begun.")
            except asyncio.CancelledError:
                # The server stops. What is cancelled has settled by now, and its client may ask elsewhere.
                if not head.sent:
                    await error_response(stopped(), scope)(scope, receive, head.send)
                raise
            except Exception as error:
                # A response that has begun can't become another: the server cuts the connection.
                response = self._error_response(error, scope)
                if head.sent:
                    raise
                await response(scope, receive, head.send)

    async def _respond(self, request: Request) -> Response:
        path: str = request.scope["path"]
        if "\0" in path or b"%00" in request.scope["query_string"]:
            raise BadRequest("The URL holds a NUL character.")
        direct = self._unnamed.get((request.method, path))
        if direct is not None and not request.scope.get("root_path"):
            route, dialect = direct
            request.scope.update({_DIALECT: dialect, _ROUTE: route.path, "path_params": {}})
            answer: Response = await route.endpoint(request)
            return answer
        allowed: set[str] = set()
        for route, dialect in self._served:
            match, child_scope = route.matches(request.scope)
            if match is not Match.NONE:
                request.scope[_DIALECT] = dialect
                request.scope[_ROUTE] = route.path
            if match is Match.FULL:
                request.scope.update(child_scope)
                result: Response = await route.endpoint(request)
                return result
            if match is Match.PARTIAL:
                allowed |= route.methods or set()
        if not allowed:
            raise NotFound(f"No route {request.method} {path[:200]!r}.", code="unknown_route")
        if request.method == "OPTIONS":
            return _preflight(request, allowed)
        raise MethodNotAllowed(request.method[:20], tuple(allowed))

    def _paths_without_parameters(self) -> dict[tuple[str, str], tuple[Route, Dialect]]:
        """Return the routes of paths that hold no parameter, each as the first that matches its path."""
        found: dict[tuple[str, str], tuple[Route, Dialect]] = {}
        for operation in self.operations:
            if "{" not in operation.path:
                scope = {"type": "http", "method": operation.method, "path": operation.path}
                found[operation.method, operation.path] = next(
                    served for served in self._served if served[0].matches(scope)[0] is Match.FULL
                )
        return found

    def _cors_headers(self, request: Request) -> list[tuple[bytes, bytes]]:
        if not self._allowed_origins:
            return []
        if "*" in self._allowed_origins:
            allowed = b"*"
        else:
            origin = request.headers.get("origin", "")
            if origin not in self._allowed_origins:
                # Said all the same: a shared cache must not give this answer to an allowed origin.
                return [(b"vary", b"origin")]
            allowed = origin.encode("latin-1")
        return [
            (b"access-control-allow-origin", allowed),
            (b"access-control-expose-headers", _EXPOSED_HEADERS.encode()),
            (b"vary", b"origin"),
        ]

    def _error_response(self, error: Exception, scope: Scope) -> Response:
        if not isinstance(error, GatewayError):
            self._logger.error("A request ended in an unforeseen error.", exc_info=error)
            error = InternalError()
        elif error.status >= 500 and not isinstance(error, NotConfigured):  # noqa: PLR2004
            self._logger.error(
                "A request failed.",
                extra={"status": error.status, "code": error.code, "detail": error.detail},
                exc_info=error if isinstance(error, InternalError) else None,
            )
        elif error.detail:
            self._logger.info(
                "A request was refused.",
                extra={"status": error.status, "code": error.code, "detail": error.detail},
            )
        return error_response(error, scope)


class _Head:
    """The ASGI `send` of one request: adds what every response carries and remembers whether it has begun."""

    def __init__(
        self,
        scope: Scope,
        send: Send,
        cors_headers: list[tuple[bytes, bytes]],
        trace: RequestTrace | None = None,
    ) -> None:
        self._scope = scope
        self._send = send
        self._trace = trace
        self._cors_headers = cors_headers
        self._bodiless = scope["method"] == "HEAD"
        self.sent = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.sent = True
            if self._trace is not None:
                self._trace.respond(message["status"])
            message = {**message, "headers": [*message.get("headers", ()), *self._headers()]}
        elif self._bodiless:
            message = {**message, "body": b""}
        await self._send(message)

    def _headers(self) -> list[tuple[bytes, bytes]]:
        names = ("x-request-id", _dialect(self._scope).request_id_header)
        identity: str = self._scope[_REQUEST_ID]
        return [(name.encode(), identity.encode()) for name in names if name] + self._cors_headers


class EventStreamResponse(Response):
    """Server-sent events from an async generator of bytes, which is always run to its end.

    Status and headers go out with the generator's first item, so that an error raised before it still has
    its true status. One raised later goes out as an event `data: {"error": …}`, or as the route's dialect has
    it, after which the body ends.

    The generator is where a call is settled, so its cleanup is never skipped or cut short. When the client
    leaves (`http.disconnect`, or a send that fails) or the server cancels the task, the generator is told
    once: as CancelledError at the `await` where it waits, or as GeneratorExit at its `yield`. This response
    then waits for it to finish, whatever else is cancelled meanwhile, under every version of the ASGI
    specification. Work that must not be interrupted even by that one signal runs inside `finish`.

    `late_headers` are asked for when the headers go out, and only then known.

    `lifetime` in seconds bounds the whole of it: a client that stays but takes nothing has left by then.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        generator: AsyncGenerator[bytes, None],
        *,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        late_headers: Callable[[], Mapping[str, str]] | None = None,
        lifetime: float | None = None,
        logger: Logger | None = None,
    ) -> None:
        # Response.__init__ would render a body; a stream has none yet.
        self.status_code = status_code
        self.background = None
        self._generator = generator
        self._late_headers = late_headers
        self._lifetime = lifetime
        self._logger = logger
        self._started = False
        self._scope: Scope = {}
        # The buffering of proxies is the enemy of the first token.
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no", **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        # One task for the whole stream: a task for each item would cost more than the item.
        pump = asyncio.create_task(self._pump(send), name="event-stream")
        watch = asyncio.create_task(_disconnect(receive), name="event-stream-disconnect")
        stopping = False
        try:
            await asyncio.wait({pump, watch}, timeout=self._lifetime, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            stopping = True
            raise
        finally:
            # Cancelled once and never again, so that the generator's cleanup may await. The pump has begun by
            # now, as the loop runs tasks in the order in which they were made: a generator that was never
            # entered would have no cleanup to run, and its call would never be settled.
            pump.cancel()
            watch.cancel()
            await _outlast(pump, watch)
            if stopping and self._started and pump.cancelled():
                await self._say_stopped(send)
        if watch.done() and not watch.cancelled():
            watch.exception()
        if not pump.cancelled():
            pump.result()

    async def _pump(self, send: Send) -> None:
        try:
            async with aclosing(self._generator) as items:
                try:
                    async for item in items:
                        await self._start(send)
                        await _send(send, item, more=True)
                except _SendFailedError:
                    raise
                except Exception as error:
                    if not self._started:
                        raise
                    event = self._error_event(error)
                else:
                    event = b""
            await self._start(send)
            await _send(send, event, more=False)
        except _SendFailedError:
            # The client has gone, and the generator has been closed on the way here.
            return

    async def _say_stopped(self, send: Send) -> None:
        """End a stream that the server's stop has cut, so that its client does not take it for whole."""
        with contextlib.suppress(_SendFailedError, TimeoutError):
            async with asyncio.timeout(_LAST_WORD_SECONDS):
                await _send(send, self._event(stopped()), more=False)

    async def _start(self, send: Send) -> None:
        if not self._started:
            self._started = True
            if self._late_headers is not None:
                self.headers.update(self._late_headers())
            try:
                await send(
                    {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
                )
            except OSError as error:
                raise _SendFailedError from error

    def _error_event(self, error: Exception) -> bytes:
        logger = self._logger or make_logger()
        if not isinstance(error, GatewayError):
            logger.error("A stream ended in an unforeseen error.", exc_info=error)
            error = InternalError()
        elif error.status >= 500:  # noqa: PLR2004
            logger.error("A stream failed.", extra={"code": error.code, "detail": error.detail})
        return self._event(error)

    def _event(self, error: GatewayError) -> bytes:
        dialect = _dialect(self._scope)
        _, body = dialect.error(error, self._scope.get(_REQUEST_ID))
        return dialect.error_event + b"data: " + json_text.dump(body) + b"\n\n"


class _SendFailedError(Exception):
    """The connection took no more. Kept apart from an OSError that the generator raised itself."""


async def _send(send: Send, body: bytes, *, more: bool) -> None:
    try:
        await send({"type": "http.response.body", "body": body, "more_body": more})
    except OSError as error:
        raise _SendFailedError from error


async def _disconnect(receive: Receive) -> None:
    """Return when the client has gone."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return


async def _outlast(*tasks: asyncio.Task[Any]) -> None:
    """Wait until the tasks are done, however often the caller is cancelled; re-raise that at the end."""
    cancelled: asyncio.CancelledError | None = None
    while not all(task.done() for task in tasks):
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


async def finish(work: Awaitable[Result]) -> Result:
    """Await `work` to its end, even if the caller is cancelled meanwhile; the cancellation then follows.

    For what must happen whole or not at all from the caller's view, such as a settlement. If the work fails
    and the caller was cancelled, the work's error is raised: it is the one that somebody must see.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def wake(_task: object = None) -> None:
        if not done.done():
            done.set_result(None)

    async def run() -> Result:
        try:
            return await work
        finally:
            # The task ends in this very step, and its callback comes a turn of the loop later.
            wake()

    task = asyncio.create_task(run())
    # Of a task that is cancelled before its first step nothing is run.
    task.add_done_callback(wake)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await done
        except asyncio.CancelledError as error:
            cancelled = error
            # The cancellation has taken it.
            done = loop.create_future()
    if cancelled is None:
        return task.result()
    if not task.cancelled() and (failure := task.exception()) is not None:
        raise failure from None
    raise cancelled


def create_app(
    operations: Sequence[Operation],
    *,
    allowed_origins: Sequence[str] = (),
    max_body_bytes: int = MAX_BODY_BYTES,
    logger: Logger | None = None,
    lifespan: Callable[[Any], AbstractAsyncContextManager[None]] | None = None,
    telemetry: Telemetry | None = None,
) -> Application:
    """Return the ASGI application that serves these operations, in their order.

    `allowed_origins` are the origins that browsers may call from, `*` for any. `lifespan` is entered and left
    by servers that have a lifespan; Lambda has none. `telemetry` follows the requests.
    """
    return Application(
        operations,
        allowed_origins=allowed_origins,
        max_body_bytes=max_body_bytes,
        logger=logger or make_logger(),
        lifespan=lifespan,
        telemetry=telemetry,
    )


def new_request_id() -> str:
    """Return `req_` and the 32 hexadecimal digits of a UUIDv7 (RFC 9562, 5.7): ids sort by time."""
    milliseconds = time.time_ns() // 1_000_000
    noise = int.from_bytes(os.urandom(10))
    # 48 bits of time, the version, 12 bits of noise, the variant, 62 bits of noise.
    value = milliseconds << 80 | 0x7 << 76 | (noise >> 62 & 0xFFF) << 64 | 0b10 << 62 | noise & (1 << 62) - 1
    return f"req_{value:032x}"


def request_id(request: Request) -> str:
    """Return the id that the server gave to this request."""
    identity: str = request.scope[_REQUEST_ID]
    return identity


def error_response(error: GatewayError, scope: Scope) -> Response:
    """Return the response that the contract has for this error, on the route that the request came to."""
    status, body = _dialect(scope).error(error, scope.get(_REQUEST_ID))
    return JSONResponse(body, status_code=status, headers=error.headers)


def _dialect(scope: Scope) -> Dialect:
    found: Dialect = scope.get(_DIALECT, OPENAI)
    return found


def stopped() -> Unavailable:
    """Return the error for a request that the server's stop has ended before it was answered."""
    return Unavailable("The gateway is stopping. Try again.", code="gateway_stopped", retry_after=1)


async def read_body(request: Request, *, most: int | None = None) -> bytes:
    """Return the whole body. Raises PayloadTooLarge (413), and ClientGoneError where it ends too early.

    The limit holds for what arrives: a content-length may be missing, or a lie. `most`: a smaller one than
    the process has.
    """
    limit: int = min(request.scope[_MAX_BODY], most or request.scope[_MAX_BODY])
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in {"", "identity"}:
        raise BadRequest(f"The content-encoding {encoding[:40]!r} is not supported: send the body plain.")
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:19]) > limit:
        # A client that waits for "100 Continue" has sent nothing yet, and needn't.
        if "expect" not in request.headers:
            await _drain(request)
        raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    more = True
    while more:
        part, more = await _receive(request)
        size += len(part)
        if size > limit:
            parts.clear()
            if more:
                await _drain(request)
            raise _too_large(limit)
        parts.append(part)
    return b"".join(parts)


async def read_json(request: Request, *, exact: bool = False) -> Any:
    """Return the value in the body; `exact` as in `json_text.parse_request`.

    Raises BadRequest (400) where it is not JSON that can be stored.
    """
    return json_text.parse_request(await read_body(request), exact=exact)


async def read_model(
    request: Request, model: type[Model], *, exact: bool = False
) -> tuple[Model, dict[str, Any]]:
    """Return the body checked against `model`, and the JSON object itself as the client sent it.

    Raises what `read_json` and `validate` raise.
    """
    value = await read_json(request, exact=exact)
    return validate(model, value), value


def validate(model: type[Model], value: Any) -> Model:
    """Return `value` as a model. Raises Unprocessable (422) with `param` as the dotted path of the field."""
    if not isinstance(value, dict):
        raise Unprocessable("The request body must be a JSON object.")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _unprocessable(error, value) from None


def _unprocessable(error: ValidationError, value: Any) -> Unprocessable:
    # Of a union's errors the deepest is of the branch that the client meant.
    faults = error.errors(include_url=False, include_input=False)
    located = [(_path(fault["loc"], value, missing=fault["type"] == "missing"), fault) for fault in faults]
    path, fault = max(located, key=lambda entry: len(entry[0]))
    others = len({entry[0] for entry in located}) - 1
    message = fault["msg"].removeprefix("Value error, ")
    where = json_text.dotted(path)
    more = f" ({others} more)" if others else ""
    return Unprocessable(f"{where}: {message}{more}" if where else f"{message}{more}", param=where or None)


def _path(location: tuple[int | str, ...], value: Any, *, missing: bool) -> tuple[int | str, ...]:
    """Return the part of pydantic's location that is a path into the value, without the labels of unions."""
    path: list[int | str] = []
    for depth, part in enumerate(location):
        last = depth == len(location) - 1
        if isinstance(value, dict) and isinstance(part, str) and (part in value or (missing and last)):
            value = value.get(part)
            path.append(part[:64])
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
            path.append(part)
    return tuple(path)


async def _receive(request: Request) -> tuple[bytes, bool]:
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientGoneError
    return message.get("body", b""), message.get("more_body", False)


async def _drain(request: Request) -> None:
    left = _DRAIN_BYTES
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            more = True
            while more and left > 0:
                part, more = await _receive(request)
                left -= len(part)
    except TimeoutError:
        return


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The request body exceeds {limit} bytes.")


def _preflight(request: Request, allowed: set[str]) -> Response:
    methods = ", ".join(sorted({*allowed, "OPTIONS"}))
    headers = {"allow": methods}
    if "access-control-request-method" in request.headers:
        headers["access-control-allow-methods"] = methods
        headers["access-control-max-age"] = "7200"
        wanted = request.headers.get("access-control-request-headers", "")
        if wanted and _HEADER_LIST.fullmatch(wanted):
            # SDKs send a dozen headers of their own, and more with each release; keys guard, not headers.
            headers["access-control-allow-headers"] = wanted
    return Response(status_code=204, headers=headers)


def _name(operation: Operation) -> str:
    return f"{operation.method} {operation.path}"
