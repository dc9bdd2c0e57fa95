"""A function of the gateway: one table of operations, as an ASGI application and as a Lambda handler."""

from __future__ import annotations

import contextlib
import functools
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from gateway.http import Application, create_app
from gateway.runtime.process import Process, current_process, warm_up

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from starlette.routing import Route
    from starlette.types import Receive, Scope, Send

    from gateway.http import Operation

    Operations = Callable[[Process], Sequence[Operation]]

with contextlib.suppress(ImportError):  # It is the managed runtime's alone.
    from snapshot_restore_py import register_before_snapshot

    register_before_snapshot(warm_up)


def _lifespan(process: Process) -> Callable[[Any], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await process.aclose()

    return lifespan


class Function:
    """Serves operations, which are made with the process's settings and clients at the first request.

    Importing a handler thus reads no environment and opens nothing.
    """

    def __init__(self, operations: Operations, *, process: Callable[[], Process] = current_process) -> None:
        self.operations = operations
        self._process = process

    @functools.cached_property
    def application(self) -> Application:
        """The ASGI application. Raises SettingsError where the environment is not in order."""
        process = self._process()
        return create_app(
            self.operations(process),
            allowed_origins=process.settings.allowed_origins,
            max_body_bytes=process.settings.max_body_bytes,
            logger=process.logger,
            lifespan=_lifespan(process),
            telemetry=process.telemetry,
        )

    @property
    def routes(self) -> Sequence[Route]:
        """What it serves, for whoever dispatches to several functions."""
        return self.application.routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answer(scope, receive, send)
        if scope["type"] == "http" and (telemetry := self._process().telemetry) is not None:
            # The client has its last byte; on Lambda the process is frozen from here on.
            await telemetry.flush()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.application(scope, receive, send)

    def handle(self, event: dict[str, Any], context: Any) -> dict[str, Any]:
        """Answer one Lambda event, buffered."""
        response: dict[str, Any] = self._mangum(event, context)
        if (telemetry := self._process().telemetry) is not None:
            telemetry.flush_before_answer()
        return response

    @functools.cached_property
    def _mangum(self) -> Any:
        from mangum import Mangum  # noqa: PLC0415 - not needed where the application is served as ASGI

        return Mangum(self._answer, lifespan="off")
