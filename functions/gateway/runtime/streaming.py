"""Runs an ASGI application on Lambda with its responses streamed, which the managed Python runtime can't do.

    python -m gateway.runtime.streaming chat.handler:app

`chat/bootstrap` starts it, through AWS_LAMBDA_EXEC_WRAPPER. One event loop lives as long as the process; one
invocation runs at a time, and nothing that it started outlives it. An application's lifespan is not run: a
process is frozen, restored and killed without notice, so that there is no moment for it.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import importlib
import inspect
import json
import os
import random
import sys
from typing import TYPE_CHECKING, Any

from gateway.runtime.lambda_context import LambdaContext
from gateway.runtime.rest_event import RestEventError, request_body, request_scope, response_metadata
from gateway.runtime.runtime_api import FunctionError, ResponseGoneError, RuntimeApi, RuntimeApiError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence

    from starlette.types import ASGIApp, Message, Scope

    from gateway.observability import Logger
    from gateway.runtime.runtime_api import Invocation, ResponseStream

MAX_MARGIN_SECONDS = 10.0
"""How long before the deadline an application is stopped that has not seen to it: time to settle in."""

_MARGIN_SHARE = 0.1
"""The same as a share of the function's time, for functions that have little."""
_LEFTOVER_SECONDS = 10.0
"""How long a task may run on after its invocation's response."""
_CANCEL_SECONDS = 1.0
_TRACE_ID = "_X_AMZN_TRACE_ID"

# Exit statuses, as the managed runtime has them.
_EXIT_FAILED = 1
_EXIT_BEFORE_SNAPSHOT = 64
_EXIT_AFTER_RESTORE = 65


class ApplicationError(Exception):
    """The application broke the ASGI protocol."""


class DeadlineError(Exception):
    """The application ran into the function's deadline."""


class Exchange:
    """One request and its response, as the application sees them: its `receive` and `send`.

    Nothing is sent before the response has a body or is complete, so that an application that fails until
    then is reported as the failure that it is.
    """

    def __init__(self, api: RuntimeApi, invocation: Invocation, body: bytes) -> None:
        self._api = api
        self._invocation = invocation
        self._body: bytes | None = body
        self._metadata: bytes | None = None
        self._stream: ResponseStream | None = None
        self._closed = asyncio.Event()
        self.complete = False
        """Whether the application has sent all of its response."""

    @property
    def begun(self) -> bool:
        """Whether any of the response may have left."""
        return self._stream is not None

    @property
    def broken(self) -> str | None:
        """Why nobody takes the response any more, where it has begun and is not complete."""
        if self.complete or self._stream is None or not self._stream.gone.is_set():
            return None
        return self._stream.reason

    async def receive(self) -> Message:
        """Give the request once, and then the end of the connection, when it comes."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._closed.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Take the response. Raises ResponseGoneError (an OSError) where nobody takes it any more."""
        kind = message["type"]
        if kind == "http.response.start":
            if self._metadata is not None:
                raise ApplicationError("a response was started twice")
            self._metadata = response_metadata(message["status"], message.get("headers", ()))
        elif kind == "http.response.body":
            if self._metadata is None or self.complete:
                raise ApplicationError("a body was sent before its response's start or after its end")
            await self._send_body(message.get("body", b""), last=not message.get("more_body", False))
        else:
            raise ApplicationError(f"the message {kind!r} is not supported")

    async def _send_body(self, body: bytes, *, last: bool) -> None:
        assert self._metadata is not None
        if self._stream is None:
            if not body and not last:
                return
            self._stream = await self._api.open_response(self._invocation, self._closed)
            await self._stream.write(self._metadata, body)
        elif body or self._closed.is_set():
            await self._stream.write(body)
        if last:
            self.complete = True
            await self._stream.finish()

    async def fail(self, error: FunctionError) -> None:
        """Report that the application failed: as an error, or as the trailers of what it has begun.

        Raises OSError and RuntimeApiError where it can't be reported.
        """
        if self._stream is None:
            await self._api.report_error(self._invocation, error)
        elif not self.complete:
            await self._stream.finish(error)

    async def aclose(self) -> None:
        """Tell the application's leftovers that the connection has ended, and close it."""
        self._closed.set()
        if self._stream is not None:
            await self._stream.aclose()


class Runtime:
    """Takes invocations one after the other, and runs the application on each."""

    def __init__(self, app: ASGIApp, api: RuntimeApi, logger: Callable[[], Logger] | None = None) -> None:
        self._app = app
        self._api = api
        self._logger = logger or _logger

    async def run(self) -> None:
        """Serve until the Runtime API is lost. Raises RuntimeApiError and OSError."""
        while True:
            await self.handle(await self._api.next_invocation())

    async def handle(self, invocation: Invocation) -> None:
        """Run the application on one invocation; return when nothing of it is left."""
        _trace(invocation.trace_id)
        before = asyncio.all_tasks()
        try:
            context = LambdaContext.of(invocation)
            event = json.loads(invocation.event)
            scope = request_scope(event, context)
            exchange = Exchange(self._api, invocation, request_body(event))
        except (ValueError, RecursionError) as error:
            kind = "Runtime.UnknownEvent" if isinstance(error, RestEventError) else "Runtime.UnmarshalError"
            self._log_failure("The invocation can't be read.", error, invocation.request_id)
            await self._tell(self._api.report_error(invocation, FunctionError.of(error, kind=kind)))
            return
        margin = _margin(context)
        try:
            ended_well = await self._run_app(scope, exchange, context, margin)
        finally:
            await exchange.aclose()
        await self._end_leftovers(before, context, margin, collect=not ended_well)

    async def _run_app(self, scope: Scope, exchange: Exchange, context: LambdaContext, margin: float) -> bool:
        """Run the application to its end; report it and return False where it failed or was left."""

        async def application() -> None:
            await self._app(scope, exchange.receive, exchange.send)

        task = asyncio.create_task(application(), name="application")
        await asyncio.wait([task], timeout=max(_seconds_left(context) - margin, 0))
        late = not task.done()
        if late:
            # Once and no more: what it has to settle is given the time that is left.
            task.cancel()
            await asyncio.wait([task])
        error = _outcome(task, exchange, late=late)
        if error is None:
            return True
        reason = str(error) if isinstance(error, ResponseGoneError) else exchange.broken
        if reason is not None:
            self._logger().info(
                "The client left before its response was complete.",
                extra={"function_request_id": context.aws_request_id, "reason": reason},
            )
            return False
        self._log_failure("The application failed.", error, context.aws_request_id)
        kind = "Runtime.DeadlineReached" if isinstance(error, DeadlineError) else None
        # A reader that takes nothing must not keep the process from ending the response.
        await self._tell(exchange.fail(FunctionError.of(error, kind=kind)), seconds=_seconds_left(context))
        return False

    async def _tell(self, report: Coroutine[Any, Any, None], seconds: float | None = None) -> None:
        try:
            async with asyncio.timeout(seconds):
                await report
        except (OSError, RuntimeApiError):
            # TimeoutError is an OSError.
            self._logger().exception("The failure could not be reported.")

    def _log_failure(self, message: str, error: BaseException, request_id: str) -> None:
        self._logger().error(message, exc_info=error, extra={"function_request_id": request_id})

    async def _end_leftovers(
        self, before: set[asyncio.Task[Any]], context: LambdaContext, margin: float, *, collect: bool
    ) -> None:
        """Wait for what the application has left running; end what does not end."""
        if collect:
            # A failure's traceback and frames hold each other, and with them generators that were left
            # suspended: their cleanup is to run now, not in somebody else's invocation.
            gc.collect()
        await asyncio.sleep(0)
        patience = min(_LEFTOVER_SECONDS, max(_seconds_left(context) - margin / 2, 0))
        until = asyncio.get_running_loop().time() + patience
        while left := _left(before):
            now = asyncio.get_running_loop().time()
            done, running = await asyncio.wait(left, timeout=max(until - now, 0))
            self._report_failures(done)
            if running:
                break
        if running := _left(before):
            names = sorted(task.get_name() for task in running)
            self._logger().error("Tasks outlived their invocation and are ended.", extra={"tasks": names})
            for task in running:
                task.cancel()
            done, _ = await asyncio.wait(running, timeout=_CANCEL_SECONDS)
            self._report_failures(done)

    def _report_failures(self, tasks: Iterable[asyncio.Task[Any]]) -> None:
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                self._logger().error(
                    "A task of the application failed.", exc_info=error, extra={"task": task.get_name()}
                )


def _left(before: set[asyncio.Task[Any]]) -> set[asyncio.Task[Any]]:
    return asyncio.all_tasks() - before


def _outcome(task: asyncio.Future[None], exchange: Exchange, *, late: bool) -> BaseException | None:
    """Return how the application failed, or None."""
    error = None if task.cancelled() else task.exception()
    if error is None and exchange.complete:
        return None
    if late:
        return DeadlineError("the function's time was over before its response was complete")
    if error is not None:
        return error
    if task.cancelled():
        return ApplicationError("the application cancelled itself")
    return ApplicationError("the application ended before its response was complete")


def _seconds_left(context: LambdaContext) -> float:
    return context.get_remaining_time_in_millis() / 1000


def _margin(context: LambdaContext) -> float:
    return min(MAX_MARGIN_SECONDS, _seconds_left(context) * _MARGIN_SHARE)


def _trace(trace_id: str | None) -> None:
    """Set the X-Ray header where the platform's SDKs look for it, for this invocation alone."""
    if trace_id:
        os.environ[_TRACE_ID] = trace_id
    else:
        os.environ.pop(_TRACE_ID, None)


@functools.cache
def _logger() -> Logger:
    from gateway.observability import make_logger  # noqa: PLC0415 - the loop itself needs no more than asyncio

    return make_logger(service="sluice-runtime")


# The start


def load(target: str) -> ASGIApp:
    """Import the application that `module:attribute` names. Raises ImportError, or what the import raises."""
    module, _, attribute = target.partition(":")
    if not module or not attribute:
        raise ImportError(f"{target!r} is not of the form module:attribute")
    app = getattr(importlib.import_module(module), attribute, None)
    if not callable(app):
        raise ImportError(f"{module!r} has no application {attribute!r}")  # noqa: TRY004 - of the import
    return app  # type: ignore[no-any-return]


async def restore(api: RuntimeApi) -> int:
    """Let a snapshot be taken between the hooks of snapshot_restore_py; return 0, or the status to end with.

    Hooks run as the managed runtime runs them: before the snapshot in the reverse order of registration,
    after the restore in it. They may be coroutine functions.
    """
    try:
        for hook, arguments, named in reversed(_hooks("get_before_snapshot")):
            await _call(hook, *arguments, **named)
        await api.restore_next()
    except BaseException as error:  # noqa: BLE001 - whatever a hook raises, the platform is to know
        _logger().error("The snapshot could not be taken.", exc_info=error)
        await api.report_init_error(FunctionError.of(error, kind="Runtime.BeforeSnapshotError"))
        return _EXIT_BEFORE_SNAPSHOT
    try:
        # Every copy of the snapshot would else draw the same numbers, such as the pauses between retries.
        random.seed()
        for hook, arguments, named in _hooks("get_after_restore"):
            await _call(hook, *arguments, **named)
    except BaseException as error:  # noqa: BLE001 - as above
        _logger().error("The snapshot could not be restored.", exc_info=error)
        await api.report_restore_error(FunctionError.of(error, kind="Runtime.AfterRestoreError"))
        return _EXIT_AFTER_RESTORE
    return 0


def _hooks(registry: str) -> list[tuple[Callable[..., Any], Sequence[Any], dict[str, Any]]]:
    # A module of the managed runtime's; whoever has no hooks may have no module.
    module = sys.modules.get("snapshot_restore_py")
    return list(getattr(module, registry)()) if module is not None else []


async def _call(hook: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    told = hook(*arguments, **named)
    if inspect.isawaitable(told):
        await told


def main(arguments: Sequence[str]) -> int:
    """Run the application that the only argument names; return the process's exit status."""
    # A frozen process writes nothing: what is logged has to be out by the end of its line.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True)
    api = RuntimeApi(os.environ["AWS_LAMBDA_RUNTIME_API"])
    with asyncio.Runner() as runner:
        try:
            app = load(arguments[0] if arguments else "")
        except BaseException as error:  # noqa: BLE001 - an import may even exit
            kind = "Runtime.ImportModuleError" if isinstance(error, ImportError) else None
            fault = FunctionError.of(error, kind=kind)
            sys.stderr.write(f"{fault.as_json().decode()}\n")
            runner.run(api.report_init_error(fault))
            return _EXIT_FAILED
        # What is loaded stays to the end. Looking through it all for garbage takes tens of milliseconds, and
        # came to a tenth of the CPU of requests.
        gc.freeze()
        if os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") == "snap-start":
            status = runner.run(restore(api))
            if status:
                return status
        try:
            runner.run(Runtime(app, api).run())
        except (RuntimeApiError, OSError) as error:
            _logger().critical("The Runtime API is lost.", exc_info=error)
        return _EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
