"""Every function behind one address, as on API Gateway: a request goes to the app whose route it matches."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import importlib.util
import os
import signal
from typing import TYPE_CHECKING, Any, Protocol

import uvicorn
from starlette.routing import Match, Route

from infra.local.serving import KEEP_ALIVE_SECONDS

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from types import FrameType

    from starlette.routing import BaseRoute
    from starlette.types import Message, Receive, Scope, Send

FUNCTIONS = ("chat", "keys", "usage", "admin", "billing", "web")
"""The functions that answer HTTP, in the order in which they are asked for a path."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_GRACE_SECONDS = 5


class FunctionApp(Protocol):
    """What a function's handler module exposes as `app`."""

    @property
    def routes(self) -> Sequence[BaseRoute]: ...

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


def load_functions(names: Sequence[str] = FUNCTIONS) -> list[FunctionApp]:
    """Import the handlers that exist; their settings must be in the environment by then."""
    return [
        importlib.import_module(f"{name}.handler").app
        for name in names
        # The first find guards the second, which fails where the folder itself is missing.
        if importlib.util.find_spec(name) and importlib.util.find_spec(f"{name}.handler")
    ]


def _without_parameters(app: FunctionApp) -> set[tuple[str, str | None, str]]:
    return {
        ("http", method, route.path)
        for route in app.routes
        if isinstance(route, Route)
        for method in route.methods or ()
        if not route.param_convertors
    }


class Gateway:
    """One ASGI app over many. What no app has a route for goes to the last, whose 404 is the contract's."""

    def __init__(self, apps: Sequence[FunctionApp]) -> None:
        if not apps:
            raise ValueError("there is no function to serve")
        self._apps = tuple(apps)
        self._known: dict[tuple[str, str | None, str], FunctionApp] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await self._app_for(scope)(scope, receive, send)

    def _app_for(self, scope: Scope) -> FunctionApp:
        """Return the app for a request. Where a path holds no parameter, it is looked for once."""
        known = scope["type"], scope.get("method"), scope["path"]
        app = self._known.get(known)
        if app is None:
            app = self._find_app(scope)
            if known in _without_parameters(app):
                self._known[known] = app
        return app

    def _find_app(self, scope: Scope) -> FunctionApp:
        partial: FunctionApp | None = None
        if scope["type"] == "http":
            for app in self._apps:
                matches = {route.matches(scope)[0] for route in app.routes}
                if Match.FULL in matches:
                    return app
                if Match.PARTIAL in matches and partial is None:
                    partial = app
        return partial or self._apps[-1]

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            async with contextlib.AsyncExitStack() as stack:
                for app in self._apps:
                    await stack.enter_async_context(_lifespan(app))
                await send({"type": "lifespan.startup.complete"})
                await receive()
        except Exception as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            raise
        await send({"type": "lifespan.shutdown.complete"})


@contextlib.asynccontextmanager
async def _lifespan(app: FunctionApp) -> AsyncIterator[None]:
    """Run one app's lifespan around the block, in a task of its own, as the specification has it."""
    to_app: asyncio.Queue[Message] = asyncio.Queue()
    from_app: asyncio.Queue[Message] = asyncio.Queue()
    scope: dict[str, Any] = {
        "type": "lifespan",
        "asgi": {"version": "3.0", "spec_version": "2.0"},
        "state": {},
    }
    task = asyncio.ensure_future(app(scope, to_app.get, from_app.put))

    async def exchange(phase: str) -> None:
        await to_app.put({"type": f"lifespan.{phase}"})
        answer = asyncio.ensure_future(from_app.get())
        await asyncio.wait({answer, task}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            answer.cancel()
            await task
        elif answer.result()["type"] != f"lifespan.{phase}.complete":
            raise RuntimeError(answer.result().get("message") or f"an app failed in its {phase}")

    await exchange("startup")
    try:
        yield
        await exchange("shutdown")
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


class _StackServer(uvicorn.Server):
    """uvicorn that says when it listens, and stops on a hang-up and when `make` has gone."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], object]) -> None:
        super().__init__(config)
        self._ready = ready
        self._parent = os.getppid() if "MAKELEVEL" in os.environ else None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the stack's signals while serving; unlike uvicorn, raise none of them again afterwards."""
        before = {each: signal.signal(each, self._stop) for each in STOP_SIGNALS}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        # A second Ctrl-C hurries nothing: open calls have their seconds to settle.
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            # As on Lambda: gateway.runtime.streaming.
            gc.freeze()
            self._ready()

    async def on_tick(self, counter: int) -> bool:
        orphaned = self._parent is not None and os.getppid() != self._parent
        return orphaned or await super().on_tick(counter)


def serve(app: Any, listener: socket.socket, *, ready: Callable[[], object]) -> None:
    """Serve `app` on `listener` in the main thread until a signal; `ready` is called once it listens."""
    config = uvicorn.Config(
        app,
        http="httptools",
        lifespan="on",
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    _StackServer(config, ready).run(sockets=[listener])
