"""The streaming runtime against a Runtime API on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import json
import os
import queue
import random
import subprocess
import sys
import threading
import time
import tracemalloc
from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from gateway.http import EventStreamResponse, Operation, create_app
from gateway.runtime import streaming
from gateway.runtime.runtime_api import RuntimeApi, RuntimeApiError
from gateway.runtime.streaming import Runtime, restore
from tests.fixtures.runtime_api import DELIMITER, FakeRuntimeApi, Report

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

FUNCTIONS = Path(__file__).parents[2] / "functions"


def event(path: str = "/", body: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"httpMethod": "POST", "path": path, "body": body, "headers": {"host": "example.org"}, **fields}


@pytest.fixture
def api() -> Iterator[FakeRuntimeApi]:
    with FakeRuntimeApi() as api:
        yield api


async def run(app: ASGIApp, api: FakeRuntimeApi) -> list[Report]:
    """Serve what is queued, and return what was reported."""
    api.stop()
    with pytest.raises(RuntimeApiError, match="HTTP 410"):
        async with asyncio.timeout(60):
            await Runtime(app, RuntimeApi(api.address)).run()
    reports = []
    with contextlib.suppress(queue.Empty):
        while True:
            reports.append(api.reports.get_nowait())
    return reports


def start(status: int = 200, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": headers}


def part(body: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}


def in_loop(event: asyncio.Event) -> Callable[[], None]:
    """Return what sets the event from another thread."""
    loop = asyncio.get_running_loop()

    def tell() -> None:
        loop.call_soon_threadsafe(event.set)

    return tell


# What is sent, and when


async def test_each_chunk_arrives_before_the_next_is_made(api: FakeRuntimeApi) -> None:
    arrived = [asyncio.Event() for _ in range(5)]
    tell = [in_loop(event) for event in arrived]

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(start())
        await send(part(b"chunk 0"))
        for number in range(1, 5):
            # Chunk 0 follows the metadata: the other side has it as its second.
            await arrived[number].wait()
            await send(part(b"chunk %d" % number))
        await send(part(b"", more=False))

    api.invoke(event(), on_chunk=lambda count: tell[count - 1]() if count <= len(tell) else None)
    [report] = await run(app, api)
    assert [chunk.data for chunk in report.chunks[1:]] == [b"chunk %d" % number for number in range(5)]
    assert not report.trailers


async def test_the_head_is_what_the_platform_documents(api: FakeRuntimeApi) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        cookies = [(b"set-cookie", b"a=1; Path=/"), (b"Set-Cookie", b"b=2")]
        await send(start(201, (b"X-Many", b"1"), (b"x-many", b"2"), (b"connection", b"close"), *cookies))
        await send(part(b"body", more=False))

    api.invoke(event(), headers={"Lambda-Runtime-Invocation-Id": "inv-7"})
    [report] = await run(app, api)
    assert report.kind == "response"
    assert report.headers["lambda-runtime-function-response-mode"] == "streaming"
    assert report.headers["content-type"] == "application/vnd.awslambda.http-integration-response"
    assert report.headers["transfer-encoding"] == "chunked"
    assert report.headers["lambda-runtime-invocation-id"] == "inv-7"
    assert set(report.headers["trailer"].split(", ")) == {
        "Lambda-Runtime-Function-Error-Type",
        "Lambda-Runtime-Function-Error-Body",
    }
    first = report.chunks[0].data
    assert first.endswith(DELIMITER)
    assert first.count(b"\0") == len(DELIMITER)
    assert report.metadata == {
        "statusCode": 201,
        "multiValueHeaders": {"x-many": ["1", "2"]},
        "cookies": ["a=1; Path=/", "b=2"],
    }
    assert report.body == b"body"


async def test_a_response_without_a_body_is_complete(api: FakeRuntimeApi) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(start(204))
        await send(part(b"", more=False))

    api.invoke(event())
    [report] = await run(app, api)
    assert (report.metadata["statusCode"], report.body, report.trailers) == (204, b"", {})


async def test_twenty_megabytes_arrive_whole(api: FakeRuntimeApi) -> None:
    pieces = [random.Random(number).randbytes(256 * 1024) for number in range(80)]  # noqa: S311

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(start())
        for piece in pieces:
            await send(part(piece))
        await send(part(b"", more=False))

    api.invoke(event())
    [report] = await run(app, api)
    assert len(report.body) == 20 * 1024 * 1024
    assert hashlib.sha256(report.body).digest() == hashlib.sha256(b"".join(pieces)).digest()


async def test_a_slow_reader_slows_the_application(api: FakeRuntimeApi) -> None:
    """What can't go out is not heaped up in the process."""
    sent = 0
    stall = threading.Event()

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        nonlocal sent
        await send(start())
        for _ in range(1024):
            await send(part(b"x" * 65536))
            sent += 1
        await send(part(b"", more=False))

    api.invoke(event(), stall=stall)

    async def release() -> int:
        # As long as it moves, the sockets' buffers are filling.
        seen = -1
        while seen != sent or not sent:
            seen = sent
            await asyncio.sleep(0.2)
        stall.set()
        return seen

    stalled_at, [report] = await asyncio.gather(release(), run(app, api))
    assert stalled_at < 512
    assert len(report.body) == 1024 * 65536


async def test_an_event_may_come_in_chunks() -> None:
    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        await send(start())
        await send(part(message["body"], more=False))

    with FakeRuntimeApi(chunked_events=True) as api:
        api.invoke(event(body="ünicode" * 1000))
        [report] = await run(app, api)
    assert report.body.decode() == "ünicode" * 1000


async def test_a_body_is_given_once_and_then_the_end(api: FakeRuntimeApi) -> None:
    messages = []

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        messages.append(await receive())
        await send(start())
        await send(part(b"", more=False))
        messages.append(await receive())

    api.invoke(event(body="aGk=", isBase64Encoded=True))
    await run(app, api)
    assert messages == [
        {"type": "http.request", "body": b"hi", "more_body": False},
        {"type": "http.disconnect"},
    ]


# What the application knows


async def test_context_and_trace_are_of_the_invocation(
    api: FakeRuntimeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "chat")
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "1024")
    monkeypatch.setenv("_X_AMZN_TRACE_ID", "stale")
    seen: list[Any] = []

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        context = scope["aws.context"]
        seen.append((context, context.get_remaining_time_in_millis(), os.environ.get("_X_AMZN_TRACE_ID")))
        await send(start())
        await send(part(b"", more=False))

    identity = json.dumps({"cognitoIdentityId": "id", "cognitoIdentityPoolId": "pool"})
    client = json.dumps({"custom": {"a": "b"}, "env": {}, "client": {"app_title": "t"}})
    api.invoke(
        event(),
        seconds=7,
        headers={
            "Lambda-Runtime-Trace-Id": "Root=1-a;Parent=b;Sampled=1",
            "Lambda-Runtime-Cognito-Identity": identity,
            "Lambda-Runtime-Client-Context": client,
        },
    )
    api.invoke(event())
    await run(app, api)
    (first, left, trace), (second, _, no_trace) = seen
    assert first.aws_request_id == "request-1"
    assert second.aws_request_id == "request-2"
    assert (first.function_name, first.memory_limit_in_mb) == ("chat", "1024")
    assert first.invoked_function_arn.endswith(":function:chat")
    assert 5000 < left <= 7000
    assert first.identity.cognito_identity_pool_id == "pool"
    assert first.client_context.client.app_title == "t"
    assert second.client_context is None
    assert second.identity.cognito_identity_id is None
    assert (trace, no_trace) == ("Root=1-a;Parent=b;Sampled=1", None)


# Failures


async def test_a_crash_before_the_body_is_an_error_and_no_response(api: FakeRuntimeApi) -> None:
    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        if scope["path"] == "/bad":
            await send(start())
            raise LookupError("no such thing as sk_0123456789abcdefghij")
        await send(start())
        await send(part(b"good", more=False))

    api.invoke(event("/bad"))
    api.invoke(event("/good"))
    bad, good = await run(app, api)
    assert bad.kind == "error"
    assert bad.headers["lambda-runtime-function-error-type"] == "LookupError"
    assert bad.error["errorType"] == "LookupError"
    assert bad.error["requestId"] == "request-1"
    assert any("raise LookupError" in line for line in bad.error["stackTrace"])
    assert b"0123456789abcdefghij" not in bad.whole
    assert (good.kind, good.body) == ("response", b"good")


async def test_a_crash_in_mid_stream_is_told_in_the_trailers(api: FakeRuntimeApi) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(start())
        await send(part(b"the beginning"))
        raise LookupError("lost\r\nLambda-Runtime-Injected: yes")

    api.invoke(event())
    [report] = await run(app, api)
    assert report.kind == "response"
    assert report.body == b"the beginning"
    assert report.trailers.keys() == {
        "lambda-runtime-function-error-type",
        "lambda-runtime-function-error-body",
    }
    assert report.trailers["lambda-runtime-function-error-type"] == "LookupError"
    assert report.error["errorMessage"].startswith("lost")


@pytest.mark.parametrize("messages", [[], [start()], [start(), part(b"")]])
async def test_an_application_that_ends_without_a_response_has_failed(
    api: FakeRuntimeApi, messages: list[dict[str, Any]]
) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    api.invoke(event())
    [report] = await run(app, api)
    assert (report.kind, report.error["errorType"]) == ("error", "ApplicationError")


async def test_an_application_that_ends_in_mid_stream_has_failed(api: FakeRuntimeApi) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(start())
        await send(part(b"some"))

    api.invoke(event())
    [report] = await run(app, api)
    assert (report.kind, report.error["errorType"]) == ("response", "ApplicationError")


async def test_a_crash_after_the_response_leaves_it_as_it_is(api: FakeRuntimeApi) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(start())
        await send(part(b"all", more=False))
        raise LookupError

    api.invoke(event())
    api.invoke(event())
    reports = await run(app, api)
    assert [(report.kind, report.body, report.trailers) for report in reports] == [
        ("response", b"all", {})
    ] * 2


async def test_headers_beyond_the_platforms_bound_are_an_error(api: FakeRuntimeApi) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(start(200, (b"x-large", b"x" * 16384)))
        await send(part(b"", more=False))

    api.invoke(event())
    [report] = await run(app, api)
    assert (report.kind, report.error["errorType"]) == ("error", "ValueError")


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"{}", "Runtime.UnknownEvent"),
        (b"[]", "Runtime.UnknownEvent"),
        (b'{"Records": []}', "Runtime.UnknownEvent"),
        (b'{"httpMethod": "POST", "body": "?", "isBase64Encoded": true}', "Runtime.UnknownEvent"),
        (b"{", "Runtime.UnmarshalError"),
        (b"\xff", "Runtime.UnmarshalError"),
        (b"[" * 100_000, "Runtime.UnmarshalError"),
    ],
)
async def test_an_event_that_is_no_request_is_an_error(api: FakeRuntimeApi, body: bytes, kind: str) -> None:
    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise AssertionError("unreachable: there is no request")

    api.invoke(body)
    [report] = await run(app, api)
    assert (report.kind, report.error["errorType"]) == ("error", kind)


async def test_a_refused_response_ends_it_and_the_next_is_served(api: FakeRuntimeApi) -> None:
    seen: list[BaseException] = []

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(start())
        await send(part(b"first"))
        assert (await receive())["type"] == "http.disconnect"
        try:
            await send(part(b"second"))
        except OSError as error:
            seen.append(error)
            raise
        finally:
            api.refuse_response = None

    api.refuse_response = 413
    api.invoke(event())
    await run(app, api)
    assert "413" in str(seen[0])


# The other side leaves


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
async def test_a_waiting_application_learns_at_once_that_the_reader_has_gone(
    api: FakeRuntimeApi, reset: bool
) -> None:
    """It sends nothing meanwhile: only a pending read can tell."""
    learnt: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(start())
        if scope["path"] == "/second":
            await send(part(b"", more=False))
            return
        await send(part(b"a"))
        async with asyncio.timeout(5):
            learnt.append((await receive())["type"])
        with pytest.raises(OSError, match=r"clos|reset|broke"):
            await send(part(b"b"))

    api.invoke(event("/first"), cut_after=2, reset=reset)
    api.invoke(event("/second"))
    first, second = await run(app, api)
    assert learnt == ["http.disconnect"]
    assert first.cut
    assert second.metadata["statusCode"] == 200


async def test_a_stream_whose_reader_leaves_is_settled_before_the_next_invocation(
    api: FakeRuntimeApi,
) -> None:
    order: list[str] = []

    async def chunks(path: str) -> AsyncGenerator[bytes, None]:
        order.append(f"{path} begins")
        try:
            if path == "/leaves":
                while True:
                    yield b"data: {}\n\n"
                    await asyncio.sleep(0.001)
            yield b"data: [DONE]\n\n"
        finally:
            await asyncio.sleep(0.05)  # a settlement
            order.append(f"{path} is settled")

    async def endpoint(request: Request) -> Response:
        return EventStreamResponse(chunks(request.url.path))

    app = create_app([Operation("POST", path, endpoint, "") for path in ("/leaves", "/stays")])
    api.invoke(event("/leaves"), cut_after=3)
    api.invoke(event("/stays"))
    await run(app, api)
    assert order == ["/leaves begins", "/leaves is settled", "/stays begins", "/stays is settled"]


# The deadline


async def test_a_deadline_before_the_body_is_an_error_after_the_cleanup(api: FakeRuntimeApi) -> None:
    cleaned: list[float] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            cleaned.append(scope["aws.context"].get_remaining_time_in_millis())

    api.invoke(event(), seconds=2)
    [report] = await run(app, api)
    assert (report.kind, report.error["errorType"]) == ("error", "Runtime.DeadlineReached")
    assert cleaned[0] > 0


async def test_a_deadline_in_mid_stream_is_told_in_the_trailers_in_time(api: FakeRuntimeApi) -> None:
    ends = time.monotonic() + 2

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(start())
        while True:
            await send(part(b"tick"))
            await asyncio.sleep(0.01)

    api.invoke(event(), seconds=2)
    [report] = await run(app, api)
    assert report.error["errorType"] == "Runtime.DeadlineReached"
    assert report.at < ends


async def test_a_reader_that_takes_nothing_does_not_hold_the_process(api: FakeRuntimeApi) -> None:
    stall = threading.Event()

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        await send(start())
        while scope["path"] == "/flood":
            await send(part(b"x" * 65536))
        await send(part(b"ok", more=False))

    api.invoke(event("/flood"), seconds=0.5, stall=stall)
    api.invoke(event("/next"))
    try:
        reports = await run(app, api)
    finally:
        stall.set()
    assert [report.body for report in reports] == [b"ok"]


# Nothing survives


async def test_a_task_that_goes_on_is_awaited(api: FakeRuntimeApi) -> None:
    order: list[str] = []
    tasks: set[asyncio.Task[None]] = set()

    async def background() -> None:
        await asyncio.sleep(0.05)
        order.append("background")

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        order.append("application")
        tasks.add(asyncio.create_task(background()))
        await send(start())
        await send(part(b"", more=False))

    api.invoke(event())
    api.invoke(event())
    await run(app, api)
    assert order == ["application", "background"] * 2


async def test_a_task_that_never_ends_is_ended_and_reported(
    api: FakeRuntimeApi, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(streaming, "_LEFTOVER_SECONDS", 0.05)
    tasks: list[asyncio.Task[Any]] = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        assert all(task.done() for task in tasks)
        tasks.append(asyncio.create_task(asyncio.Event().wait(), name="the-immortal"))
        await send(start())
        await send(part(b"", more=False))

    api.invoke(event())
    api.invoke(event())
    reports = await run(app, api)
    assert [task.cancelled() for task in tasks] == [True, True]
    assert all(report.metadata["statusCode"] == 200 for report in reports)
    told = [getattr(record, "tasks", None) for record in caplog.records]
    assert told == [["the-immortal"]] * 2


async def test_a_generator_left_suspended_is_closed_before_the_next_invocation(api: FakeRuntimeApi) -> None:
    """As Starlette's StreamingResponse leaves one whose send has failed."""
    order: list[str] = []

    async def chunks() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b"x"
        finally:
            await asyncio.sleep(0.01)
            order.append("closed")

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        await send(start())
        if scope["path"] == "/next":
            order.append("next")
            await send(part(b"", more=False))
            return
        generator = chunks()
        async for chunk in generator:
            cycle = [generator]
            cycle.append(cycle)  # type: ignore[arg-type]
            await send(part(chunk))
            await asyncio.sleep(0)

    api.invoke(event("/leaves"), cut_after=2)
    api.invoke(event("/next"))
    await run(app, api)
    assert order == ["closed", "next"]


async def test_two_tenants_on_one_process_share_nothing(api: FakeRuntimeApi) -> None:
    tenant: ContextVar[str | None] = ContextVar("tenant", default=None)
    found: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        found.append((tenant.get(), dict(scope["state"]), os.environ["_X_AMZN_TRACE_ID"]))
        tenant.set(headers[b"authorization"].decode())
        scope["state"]["key"] = headers[b"authorization"]
        body = (await receive())["body"]
        await send(start(200, (b"set-cookie", headers[b"authorization"])))
        await send(part(headers[b"authorization"] + b" said "))
        await asyncio.sleep(0)
        await send(part(body, more=False))

    names = ["alice", "bob"] * 10
    for number, name in enumerate(names):
        headers = {"authorization": name}
        trace = {"Lambda-Runtime-Trace-Id": f"Root={number}"}
        api.invoke(event(body=f"I am {name}", headers=headers), headers=trace)
    reports = await run(app, api)
    assert found == [(None, {}, f"Root={number}") for number in range(20)]
    assert [report.body.decode() for report in reports] == [f"{name} said I am {name}" for name in names]
    assert [report.metadata["cookies"] for report in reports] == [[name] for name in names]


async def test_a_thousand_invocations_leave_nothing_behind(api: FakeRuntimeApi) -> None:
    """Neither tasks, sockets nor memory: each brings and takes 16 KB, so a leak of either would be 16 MB."""
    count = 0
    marks: list[tuple[int, int, int]] = []
    open_files = Path("/proc/self/fd") if sys.platform == "linux" else Path("/dev/fd")

    async def chunks(body: bytes) -> AsyncGenerator[bytes, None]:
        for start in range(0, len(body), 4096):
            yield body[start : start + 4096]

    async def endpoint(request: Request) -> Response:
        nonlocal count
        count += 1
        with contextlib.suppress(queue.Empty):
            while True:
                api.reports.get_nowait()
        if count in {100, 1100}:
            gc.collect()
            files = len(list(open_files.iterdir()))
            marks.append((tracemalloc.get_traced_memory()[0], len(asyncio.all_tasks()), files))
        return EventStreamResponse(chunks(await request.body()))

    app = create_app([Operation("POST", "/", endpoint, "")])
    # Queued one at a time, so that the queue itself weighs the same at both marks.
    api.invoke(event(body="x" * 16384))

    async def next_please(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)
        if count < 1100:
            api.invoke(event(body="x" * 16384))
        else:
            api.stop()

    tracemalloc.start()
    try:
        with pytest.raises(RuntimeApiError, match="HTTP 410"):
            await Runtime(next_please, RuntimeApi(api.address)).run()
    finally:
        tracemalloc.stop()
    assert count == 1100
    (memory_before, tasks_before, files_before), (memory, tasks, files) = marks
    assert memory - memory_before < 1_000_000
    assert tasks == tasks_before
    assert files <= files_before + 2


# The start of a process


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The managed runtime's registry of hooks."""
    registry = SimpleNamespace(before=[], after=[])
    module = SimpleNamespace(
        get_before_snapshot=lambda: registry.before, get_after_restore=lambda: registry.after
    )
    monkeypatch.setitem(sys.modules, "snapshot_restore_py", module)
    return registry


async def test_hooks_run_round_the_snapshot_in_their_order(
    api: FakeRuntimeApi, hooks: SimpleNamespace
) -> None:
    order: list[Any] = []

    async def later(name: str) -> None:
        await asyncio.sleep(0)
        order.append((name, api.restores))

    def at_once(name: str, *, suffix: str) -> None:
        order.append((name + suffix, api.restores))

    hooks.before += [(at_once, ("first",), {"suffix": "!"}), (later, ("second",), {})]
    hooks.after += [(later, ("third",), {}), (at_once, ("fourth",), {"suffix": "!"})]
    random.seed(1)
    same = random.Random(1).random()  # noqa: S311
    assert await restore(RuntimeApi(api.address)) == 0
    assert order == [("second", 0), ("first!", 0), ("third", 1), ("fourth!", 1)]
    assert random.random() != same  # noqa: S311


async def test_a_hook_that_fails_before_the_snapshot_is_an_init_error(
    api: FakeRuntimeApi, hooks: SimpleNamespace
) -> None:
    def fail() -> None:
        raise LookupError("before")

    hooks.before.append((fail, (), {}))
    assert await restore(RuntimeApi(api.address)) == 64
    report = api.report()
    assert (report.kind, report.error["errorType"]) == ("init/error", "Runtime.BeforeSnapshotError")
    assert api.restores == 0


async def test_a_hook_that_fails_after_the_restore_is_a_restore_error(
    api: FakeRuntimeApi, hooks: SimpleNamespace
) -> None:
    def fail() -> None:
        raise LookupError("after")

    hooks.after.append((fail, (), {}))
    assert await restore(RuntimeApi(api.address)) == 65
    report = api.report()
    assert (report.kind, report.error["errorType"]) == ("restore/error", "Runtime.AfterRestoreError")
    assert report.error["errorMessage"] == "after"


def _process(
    api: FakeRuntimeApi, target: str, path: Path | str = "", **environment: str
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "gateway.runtime.streaming", target],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{FUNCTIONS}:{path}",
            "AWS_LAMBDA_RUNTIME_API": api.address,
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("no_such_module:app", "Runtime.ImportModuleError"),
        ("json:no_such_app", "Runtime.ImportModuleError"),
        ("json", "Runtime.ImportModuleError"),
        ("broken:app", "ZeroDivisionError"),
        ("leaving:app", "SystemExit"),
    ],
)
def test_a_function_that_cannot_start_says_why(
    api: FakeRuntimeApi, tmp_path: Path, target: str, kind: str
) -> None:
    (tmp_path / "broken.py").write_text("app = 1 / 0\n")
    (tmp_path / "leaving.py").write_text("raise SystemExit(3)\n")
    with _process(api, target, tmp_path) as process:
        report = api.report()
        _, log = process.communicate(timeout=10)
    assert (report.kind, report.error["errorType"]) == ("init/error", kind)
    assert process.returncode == 1
    assert json.loads(log)["errorType"] == kind


def test_a_process_serves_after_its_restore_and_writes_each_line_at_once(
    api: FakeRuntimeApi, tmp_path: Path
) -> None:
    (tmp_path / "snapshot_restore_py.py").write_text(
        "before, after = [], []\nget_before_snapshot = lambda: before\nget_after_restore = lambda: after\n"
    )
    (tmp_path / "app.py").write_text(
        "import snapshot_restore_py as hooks\n"
        "state = []\n"
        "hooks.after.append((state.append, ('restored',), {}))\n"
        "async def app(scope, receive, send):\n"
        "    print('served', *state)\n"
        "    await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n"
        "    await send({'type': 'http.response.body', 'body': ' '.join(state).encode()})\n"
    )
    environment = {"AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start"}
    with _process(api, "app:app", tmp_path, **environment) as process:
        api.invoke(event())
        report = api.report()
        assert report.body == b"restored"
        assert api.restores == 1
        # It waits for its next invocation now, and may be frozen: the line is out nevertheless.
        assert process.stdout is not None
        too_late = threading.Timer(10, process.kill)
        too_late.start()
        assert process.stdout.readline() == "served restored\n"
        too_late.cancel()
        api.stop()
        process.communicate(timeout=10)
    assert process.returncode == 1
