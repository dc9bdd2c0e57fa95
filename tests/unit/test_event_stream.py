"""The event stream against hand-driven ASGI servers: whatever ends it, the generator's cleanup completes."""

from __future__ import annotations

import asyncio
import io
import json
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from gateway import http
from gateway.errors import ProviderTimeout
from gateway.http import EventStreamResponse, finish
from gateway.observability import make_logger

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

SPEC_VERSIONS = ["2.0", "2.3", "2.4", None]


class Server:
    """An ASGI server in the hands of a test."""

    def __init__(self, *, fail_at: int | None = None, block_at: int | None = None) -> None:
        self.sent: list[dict[str, Any]] = []
        self.gone = asyncio.Event()
        self.blocked = asyncio.Event()
        self.arrived = asyncio.Condition()
        self._fail_at = fail_at
        self._block_at = block_at

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        await asyncio.sleep(0)
        if len(self.sent) == self._fail_at:
            raise ConnectionResetError("broken pipe")
        if len(self.sent) == self._block_at:
            self.blocked.set()
            await asyncio.Event().wait()
        self.sent.append(message)
        async with self.arrived:
            self.arrived.notify_all()

    async def until_sent(self, count: int) -> None:
        async with self.arrived:
            await self.arrived.wait_for(lambda: len(self.sent) >= count)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    def scope(self, spec_version: str | None = "2.4") -> dict[str, Any]:
        asgi = {"version": "3.0"} | ({"spec_version": spec_version} if spec_version else {})
        return {"type": "http", "asgi": asgi, "method": "POST", "path": "/", "headers": []}


class Call:
    """A generator that stands for a metered call: its settlement takes several turns of the loop."""

    def __init__(
        self, items: int = 1000, *, error: Exception | None = None, hang_at: int | None = None
    ) -> None:
        self.items = items
        self.error = error
        self.hang_at = hang_at
        self.waiting = asyncio.Event()
        self.settling = asyncio.Event()
        self.may_settle = asyncio.Event()
        self.may_settle.set()
        self.settled = 0
        self.ended_by: BaseException | None = None

    async def stream(self) -> AsyncGenerator[bytes, None]:
        try:
            for number in range(self.items):
                if number == self.hang_at:
                    self.waiting.set()
                    await asyncio.Event().wait()
                yield b"data: %d\n\n" % number
            self._fail()
        except BaseException as error:
            self.ended_by = error
            raise
        finally:
            self.settling.set()
            await self.may_settle.wait()
            for _ in range(10):
                await asyncio.sleep(0)
            self.settled += 1

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error


def _start(server: Server, call: Call, spec_version: str | None = "2.4") -> asyncio.Task[None]:
    response = EventStreamResponse(call.stream(), headers={"x-a": "b"})
    return asyncio.create_task(response(server.scope(spec_version), server.receive, server.send))


async def _end(task: asyncio.Task[None]) -> None:
    async with asyncio.timeout(10):
        await task
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not others, "the response left a task behind"


@pytest.mark.parametrize("spec_version", SPEC_VERSIONS)
async def test_a_whole_stream(spec_version: str | None) -> None:
    server, call = Server(), Call(3)
    await _end(_start(server, call, spec_version))
    start, *bodies = server.sent
    assert start["type"] == "http.response.start"
    assert start["status"] == 200
    headers = dict(start["headers"])
    assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert headers[b"cache-control"] == b"no-store"
    assert headers[b"x-a"] == b"b"
    assert b"content-length" not in headers
    assert [body["more_body"] for body in bodies] == [True, True, True, False]
    assert server.body == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"
    assert call.settled == 1


async def test_nothing_goes_out_before_the_first_item() -> None:
    server, call = Server(), Call(hang_at=0)
    task = _start(server, call)
    await call.waiting.wait()
    assert server.sent == []
    server.gone.set()
    await _end(task)


async def test_an_empty_stream_is_an_empty_response() -> None:
    server, call = Server(), Call(0)
    await _end(_start(server, call))
    assert [message["type"] for message in server.sent] == ["http.response.start", "http.response.body"]
    assert call.settled == 1


@pytest.mark.parametrize("spec_version", SPEC_VERSIONS)
async def test_a_client_that_leaves_before_the_first_chunk(spec_version: str | None) -> None:
    server, call = Server(), Call(hang_at=0)
    task = _start(server, call, spec_version)
    await call.waiting.wait()
    server.gone.set()
    await _end(task)
    assert call.settled == 1
    assert isinstance(call.ended_by, asyncio.CancelledError)
    assert server.sent == []


@pytest.mark.parametrize("spec_version", SPEC_VERSIONS)
async def test_a_client_that_leaves_while_the_provider_thinks(spec_version: str | None) -> None:
    server, call = Server(), Call(hang_at=2)
    task = _start(server, call, spec_version)
    await call.waiting.wait()
    server.gone.set()
    await _end(task)
    assert call.settled == 1
    assert isinstance(call.ended_by, asyncio.CancelledError)
    assert server.body == b"data: 0\n\ndata: 1\n\n"


@pytest.mark.parametrize("spec_version", SPEC_VERSIONS)
async def test_a_client_that_leaves_while_a_chunk_is_being_sent(spec_version: str | None) -> None:
    server, call = Server(block_at=2), Call()
    task = _start(server, call, spec_version)
    await server.blocked.wait()
    server.gone.set()
    await _end(task)
    assert call.settled == 1
    assert isinstance(call.ended_by, GeneratorExit)


async def test_a_client_that_stays_and_takes_nothing_has_left_when_the_lifetime_ends() -> None:
    server, call = Server(block_at=2), Call()
    response = EventStreamResponse(call.stream(), lifetime=0.05)
    task = asyncio.create_task(response(server.scope(), server.receive, server.send))
    await server.blocked.wait()
    await _end(task)
    assert call.settled == 1
    assert isinstance(call.ended_by, GeneratorExit)


async def test_a_client_that_was_gone_at_the_start() -> None:
    server, call = Server(), Call(hang_at=0)
    server.gone.set()
    await _end(_start(server, call))
    assert call.settled == 1


@pytest.mark.parametrize("fail_at", [0, 1, 2, 4])
@pytest.mark.parametrize("spec_version", SPEC_VERSIONS)
async def test_a_send_that_fails(fail_at: int, spec_version: str | None) -> None:
    # 0 is the head, 4 the end of the body.
    server, call = Server(fail_at=fail_at), Call(3)
    await _end(_start(server, call, spec_version))
    assert call.settled == 1
    assert len(server.sent) == fail_at
    assert isinstance(call.ended_by, GeneratorExit) == (fail_at != 4)


async def test_an_error_before_the_first_item_keeps_its_status() -> None:
    server, call = Server(), Call(0, error=ProviderTimeout("Too slow."))
    with pytest.raises(ProviderTimeout):
        await _end(_start(server, call))
    assert server.sent == []
    assert call.settled == 1


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (ProviderTimeout("Too slow."), ("Too slow.", "provider_timeout")),
        (ValueError("hunter2"), (None, "internal_error")),
        (ConnectionResetError("the provider's, not the client's"), (None, "internal_error")),
    ],
)
async def test_an_error_in_mid_stream_is_an_event_and_the_end(
    error: Exception, shown: tuple[str | None, str]
) -> None:
    server, call, log = Server(), Call(2, error=error), io.StringIO()
    logger = make_logger(service=f"test-{uuid4()}", stream=log)
    response = EventStreamResponse(call.stream(), logger=logger)
    await _end(asyncio.create_task(response(server.scope(), server.receive, server.send)))
    events = server.body.decode().split("\n\n")
    assert events[:2] == ["data: 0", "data: 1"]
    told = json.loads(events[2].removeprefix("data: "))["error"]
    message, code = shown
    assert told["code"] == code
    assert message is None or told["message"] == message
    assert str(error) not in events[2] or message is not None
    assert server.sent[-1]["more_body"] is False
    assert call.settled == 1
    assert "hunter2" not in server.body.decode()
    (line,) = [json.loads(line) for line in log.getvalue().splitlines()]
    assert line["level"] == "ERROR"
    assert ("exception" in line) == (message is None)


@pytest.mark.parametrize("spec_version", SPEC_VERSIONS)
@pytest.mark.parametrize("hang_at", [0, 2])
async def test_a_server_that_cancels_the_task(hang_at: int, spec_version: str | None) -> None:
    server, call = Server(), Call(hang_at=hang_at)
    task = _start(server, call, spec_version)
    await call.waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await _end(task)
    assert call.settled == 1


async def test_a_server_that_stops_says_so_where_the_stream_has_begun() -> None:
    server, call = Server(), Call(hang_at=1)
    task = _start(server, call)
    await call.waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await _end(task)
    first, last = server.sent[1:]
    assert (first["body"], first["more_body"], last["more_body"]) == (b"data: 0\n\n", True, False)
    error = json.loads(last["body"].removeprefix(b"data: "))["error"]
    assert (error["type"], error["code"]) == ("server_error", "gateway_stopped")


async def test_a_server_that_stops_leaves_the_status_to_whoever_answers_where_it_has_not() -> None:
    server, call = Server(), Call(hang_at=0)
    task = _start(server, call)
    await call.waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await _end(task)
    assert server.sent == []


async def test_a_client_that_takes_nothing_does_not_keep_a_server_from_stopping(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "_LAST_WORD_SECONDS", 0.01)
    server, call = Server(block_at=2), Call(hang_at=1)
    task = _start(server, call)
    await call.waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await _end(task)
    assert server.blocked.is_set()
    assert call.settled == 1


async def test_a_server_that_cancels_over_and_over() -> None:
    server, call = Server(), Call(hang_at=1)
    call.may_settle.clear()
    task = _start(server, call)
    await call.waiting.wait()
    for _ in range(20):
        task.cancel()
        await asyncio.sleep(0)
    assert call.settling.is_set()
    assert not task.done()
    assert call.settled == 0
    call.may_settle.set()
    with pytest.raises(asyncio.CancelledError):
        await _end(task)
    assert call.settled == 1


async def test_a_cancellation_before_the_generator_began_still_lets_it_settle() -> None:
    """The call is held by then: a generator that is never entered would leave the hold to the sweeper."""
    server, call = Server(), Call(hang_at=0)

    async def endpoint() -> None:
        asyncio.current_task().cancel()  # type: ignore[union-attr]
        await EventStreamResponse(call.stream())(server.scope(), server.receive, server.send)

    with pytest.raises(asyncio.CancelledError):
        await _end(asyncio.create_task(endpoint()))
    assert call.settled == 1


async def test_a_client_that_leaves_during_the_settlement_does_not_disturb_it() -> None:
    server, call = Server(), Call(2)
    call.may_settle.clear()

    async def settle_whole() -> AsyncGenerator[bytes, None]:
        yield b"data: x\n\n"
        await finish(_settlement(call))
        yield b"data: [DONE]\n\n"

    response = EventStreamResponse(settle_whole())
    task = asyncio.create_task(response(server.scope(), server.receive, server.send))
    await call.settling.wait()
    server.gone.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert call.settled == 0
    call.may_settle.set()
    await _end(task)
    assert call.settled == 1


async def _settlement(call: Call) -> int:
    call.settling.set()
    await call.may_settle.wait()
    call.settled += 1
    return call.settled


async def test_finish_gives_the_result() -> None:
    assert await finish(_settlement(Call())) == 1


async def test_finish_ends_the_work_and_then_lets_the_cancellation_follow() -> None:
    call = Call()
    call.may_settle.clear()
    task = asyncio.create_task(finish(_settlement(call)))
    await call.settling.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    call.may_settle.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert call.settled == 1


@pytest.mark.parametrize("cancel", [False, True])
async def test_finish_never_hides_that_the_work_failed(cancel: bool) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        await go.wait()
        raise ValueError("not settled")

    task = asyncio.create_task(finish(work()))
    await begun.wait()
    if cancel:
        task.cancel()
        await asyncio.sleep(0)
    go.set()
    with pytest.raises(ValueError, match="not settled"):
        await task


async def test_a_settlement_that_fails_after_the_client_left_is_seen() -> None:
    server = Server()
    waiting = asyncio.Event()

    async def stream() -> AsyncGenerator[bytes, None]:
        try:
            yield b"data: x\n\n"
            waiting.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            raise RuntimeError("not settled")

    task = asyncio.create_task(EventStreamResponse(stream())(server.scope(), server.receive, server.send))
    await waiting.wait()
    server.gone.set()
    await _end(task)
    # It reached the log: the stream's own error event is the last thing sent.
    assert b"internal_error" in server.body


async def test_what_is_left_of_the_request_is_no_disconnect() -> None:
    server, call = Server(), Call(hang_at=1)
    messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    messages.put_nowait({"type": "http.request", "body": b"", "more_body": False})
    response = EventStreamResponse(call.stream())
    task = asyncio.create_task(response(server.scope(), messages.get, server.send))
    await call.waiting.wait()
    assert not task.done()
    messages.put_nowait({"type": "http.disconnect"})
    await _end(task)
    assert call.settled == 1


async def test_work_that_is_cancelled_before_its_first_step_ends_its_caller_too() -> None:
    waiting = asyncio.create_task(finish(asyncio.get_running_loop().create_future()))
    await asyncio.sleep(0)
    (work,) = asyncio.all_tasks() - {waiting, asyncio.current_task()}
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(2):
            await waiting
