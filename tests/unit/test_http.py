from __future__ import annotations

import asyncio
import io
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import uuid4

import httpx
import pytest
from pydantic import BaseModel, ConfigDict, Field

from gateway.errors import InsufficientCredits, RateLimited
from gateway.http import (
    Application,
    EventStreamResponse,
    JSONResponse,
    Operation,
    create_app,
    new_request_id,
    read_model,
    request_id,
)
from gateway.observability import Logger, make_logger

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from starlette.requests import Request
    from starlette.responses import Response

LIMIT = 1000


class Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    name: str
    count: Annotated[int, Field(ge=0)] = 0


async def _echo(request: Request) -> Response:
    _, body = await read_model(request, Body)
    return JSONResponse(body)


async def _hello(request: Request) -> Response:
    return JSONResponse({"hello": request.path_params.get("name"), "id": request_id(request)})


async def _broken(_request: Request) -> Response:
    raise ValueError("hunter2 in /srv/secret.py")


async def _refused(_request: Request) -> Response:
    raise InsufficientCredits("Not enough credits.")


async def _limited(_request: Request) -> Response:
    raise RateLimited("Slow down.", retry_after=2.5)


async def _streamed(_request: Request) -> Response:
    async def events() -> AsyncGenerator[bytes, None]:
        yield b"data: 1\n\n"
        yield b"data: [DONE]\n\n"

    return EventStreamResponse(events())


async def _stream_refused(_request: Request) -> Response:
    async def events() -> AsyncGenerator[bytes, None]:
        if _request.method:
            raise InsufficientCredits("Not enough credits.")
        yield b""

    return EventStreamResponse(events())


OPERATIONS = [
    Operation("POST", "/echo", _echo, "Echo", request_model=Body, scope="chat"),
    Operation("GET", "/hello", _hello, "Hello"),
    Operation("GET", "/hello/{name:path}", _hello, "Hello, you"),
    Operation("DELETE", "/hello", _hello, "No hello"),
    Operation("GET", "/broken", _broken, "Broken"),
    Operation("GET", "/refused", _refused, "Refused"),
    Operation("GET", "/limited", _limited, "Limited"),
    Operation("POST", "/streamed", _streamed, "Streamed", streams=True),
    Operation("POST", "/stream-refused", _stream_refused, "Refused before the first chunk", streams=True),
]


def _app(**changes: Any) -> Application:
    return create_app(OPERATIONS, max_body_bytes=LIMIT, **changes)


@pytest.fixture
def log() -> io.StringIO:
    return io.StringIO()


def _logger(log: io.StringIO) -> Logger:
    # A name of its own: loggers live as long as the process.
    return make_logger(service=f"test-{uuid4()}", stream=log)


@pytest.fixture
def app() -> Application:
    return _app()


@pytest.fixture
async def client(app: Application) -> AsyncIterator[httpx.AsyncClient]:
    async with _client(app) as client:
        yield client


def _client(app: Application) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway.test")


def _error(response: httpx.Response, status: int) -> dict[str, Any]:
    """Return the error, after checking that it has the contract's shape."""
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert re.fullmatch("req_[0-9a-f]{32}", response.headers["x-request-id"])
    body = response.json()
    assert list(body) == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    assert isinstance(error["message"], str)
    assert isinstance(error["type"], str)
    return error


# Responses.


async def test_a_body_goes_in_and_comes_out_whole(client: httpx.AsyncClient) -> None:
    body = {"name": "é😀", "extra": [1, {"x": None}]}
    response = await client.post("/echo", json=body)
    assert response.status_code == 200
    assert response.json() == body
    assert response.headers["content-type"] == "application/json"


async def test_every_response_has_an_id_that_the_server_made(client: httpx.AsyncClient) -> None:
    responses = [
        await client.get("/hello", headers={"x-request-id": "mine"}),
        await client.get("/nowhere"),
        await client.get("/broken"),
        await client.post("/streamed"),
        await client.options("/hello"),
    ]
    ids = [response.headers.get_list("x-request-id") for response in responses]
    assert all(len(each) == 1 and re.fullmatch("req_[0-9a-f]{32}", each[0]) for each in ids)
    assert len({each[0] for each in ids}) == len(responses)
    assert responses[0].json()["id"] == ids[0][0]


def test_request_ids_are_uuids_of_version_7_and_sort_by_time() -> None:
    before = time.time_ns() // 1_000_000
    identity = new_request_id()
    after = time.time_ns() // 1_000_000
    digits = identity.removeprefix("req_")
    assert before <= int(digits[:12], 16) <= after
    assert digits[12] == "7"
    assert digits[16] in "89ab"
    assert len({new_request_id() for _ in range(10_000)}) == 10_000
    while time.time_ns() // 1_000_000 == after:
        pass
    assert new_request_id() > identity


async def test_a_stream_goes_through(client: httpx.AsyncClient) -> None:
    response = await client.post("/streamed")
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.content == b"data: 1\n\ndata: [DONE]\n\n"


async def test_head_has_the_headers_of_get_and_no_body(client: httpx.AsyncClient) -> None:
    response = await client.head("/hello")
    assert response.status_code == 200
    assert response.content == b""
    assert int(response.headers["content-length"]) > 0


# Errors.


async def test_unknown_route_is_404(client: httpx.AsyncClient) -> None:
    for path in ("/nowhere", "/", "/echo/", "/ECHO", "/echo%2fx"):
        error = _error(await client.post(path), 404)
        assert (error["type"], error["code"]) == ("not_found_error", "unknown_route")


async def test_unknown_method_is_405_and_names_the_others(client: httpx.AsyncClient) -> None:
    response = await client.put("/hello")
    _error(response, 405)
    assert response.headers["allow"] == "DELETE, GET, HEAD"


async def test_an_unforeseen_error_is_500_without_internals(log: io.StringIO) -> None:
    async with _client(_app(logger=_logger(log))) as client:
        response = await client.get("/broken")
    error = _error(response, 500)
    assert "hunter2" not in response.text
    assert "secret.py" not in response.text
    assert error["code"] == "internal_error"
    (line,) = [json.loads(line) for line in log.getvalue().splitlines()]
    assert line["request_id"] == response.headers["x-request-id"]
    assert "ValueError: hunter2" in line["exception"]


async def test_an_error_of_the_contract_keeps_its_headers(client: httpx.AsyncClient) -> None:
    refused = await client.get("/refused")
    assert _error(refused, 402)["code"] == "insufficient_credits"
    assert refused.headers["x-should-retry"] == "false"
    limited = await client.get("/limited")
    assert _error(limited, 429)["code"] == "rate_limit_exceeded"
    assert limited.headers["retry-after"] == "3"


async def test_an_error_before_the_first_chunk_has_its_true_status(client: httpx.AsyncClient) -> None:
    assert _error(await client.post("/stream-refused"), 402)["code"] == "insufficient_credits"


@pytest.mark.parametrize(
    ("content", "status", "param"),
    [
        (b"", 400, None),
        (b'{"name":', 400, None),
        (b"\xff", 400, None),
        (b'{"name":"\\u0000"}', 400, "name"),
        (b'{"name":"\\ud800"}', 400, "name"),
        (b'{"name":"x","count":NaN}', 400, None),
        (b'{"name":"x","name":"y"}', 400, "name"),
        (b"[" * LIMIT, 400, None),
        (b"[]", 422, None),
        (b'"x"', 422, None),
        (b"{}", 422, "name"),
        (b'{"name":7}', 422, "name"),
        (b'{"name":"x","count":false}', 422, "count"),
        (b'{"name":"x","count":-1}', 422, "count"),
    ],
)
async def test_bad_bodies(client: httpx.AsyncClient, content: bytes, status: int, param: str | None) -> None:
    error = _error(await client.post("/echo", content=content), status)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", ["/hello/a%00b", "/hello?x=%00"])
async def test_nul_in_the_url_is_400(client: httpx.AsyncClient, path: str) -> None:
    _error(await client.get(path), 400)


async def test_a_compressed_body_is_400(client: httpx.AsyncClient) -> None:
    response = await client.post("/echo", content=b'{"name":"x"}', headers={"content-encoding": "gzip"})
    assert "gzip" in _error(response, 400)["message"]


# Sizes.


def _body_of(size: int) -> bytes:
    body = json.dumps({"name": ""}).encode()
    return body.replace(b'""', b'"' + b"x" * (size - len(body)) + b'"')


async def test_a_body_of_the_limit_is_taken_and_one_byte_more_is_413(client: httpx.AsyncClient) -> None:
    assert (await client.post("/echo", content=_body_of(LIMIT))).status_code == 200
    assert str(LIMIT) in _error(await client.post("/echo", content=_body_of(LIMIT + 1)), 413)["message"]


class Asgi:
    """One request in the hands of a test, message by message."""

    def __init__(self, *messages: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        self._messages = list(messages)
        self.asked = 0
        self.received = 0
        self.sent: list[Any] = []
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": "/echo",
            "query_string": b"",
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in (headers or {}).items()],
        }

    async def receive(self) -> dict[str, Any]:
        self.asked += 1
        if self.received == len(self._messages):
            await asyncio.Event().wait()
        self.received += 1
        return self._messages[self.received - 1]

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        status: int = self.sent[0]["status"]
        return status


def _part(body: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


@pytest.mark.parametrize("declared", ["5", "0", "-1", "x", "", "\xb2", None])
async def test_a_content_length_that_lies_does_not_lift_the_limit(
    app: Application, declared: str | None
) -> None:
    headers = {"content-length": declared} if declared is not None else {}
    asgi = Asgi(*[_part(b"x" * 300)] * 4, _part(b"", more=False), headers=headers)
    await app(asgi.scope, asgi.receive, asgi.send)
    assert asgi.status == 413
    # What the client was still sending is read and dropped, so that it can read the answer.
    assert asgi.received == 5


async def test_a_declared_excess_is_413_and_drained(app: Application) -> None:
    for declared in (str(LIMIT + 1), "9" * 30):
        asgi = Asgi(_part(b"x" * 5000), _part(b"", more=False), headers={"content-length": declared})
        await app(asgi.scope, asgi.receive, asgi.send)
        assert (asgi.status, asgi.received) == (413, 2)


async def test_a_client_that_waits_for_100_continue_need_not_send(app: Application) -> None:
    headers = {"content-length": str(LIMIT + 1), "expect": "100-continue"}
    asgi = Asgi(headers=headers)
    await app(asgi.scope, asgi.receive, asgi.send)
    assert (asgi.status, asgi.asked) == (413, 0)


async def test_a_client_that_sends_no_end_is_not_waited_for(
    app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.http._DRAIN_SECONDS", 0.01)
    asgi = Asgi(_part(b"x" * (LIMIT + 1)))
    await app(asgi.scope, asgi.receive, asgi.send)
    assert asgi.status == 413


async def test_a_body_in_many_parts_is_one(app: Application) -> None:
    parts = [_part(bytes([byte])) for byte in b'{"name":"x"}']
    asgi = Asgi(*parts, _part(b"", more=False))
    await app(asgi.scope, asgi.receive, asgi.send)
    assert asgi.status == 200
    assert json.loads(asgi.sent[1]["body"]) == {"name": "x"}


async def test_a_client_that_leaves_while_sending_gets_no_response(app: Application) -> None:
    asgi = Asgi(_part(b'{"na'), {"type": "http.disconnect"})
    await app(asgi.scope, asgi.receive, asgi.send)
    assert asgi.sent == []


# CORS.

ORIGIN = "https://app.example"


async def test_without_a_setting_no_origin_is_allowed(client: httpx.AsyncClient) -> None:
    response = await client.get("/hello", headers={"origin": ORIGIN})
    assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize(("allowed", "told"), [([ORIGIN], ORIGIN), (["*"], "*")])
async def test_an_allowed_origin_may_read_answers_and_errors(allowed: list[str], told: str) -> None:
    async with _client(_app(allowed_origins=allowed)) as client:
        for path in ("/hello", "/nowhere", "/broken", "/refused"):
            response = await client.get(path, headers={"origin": ORIGIN})
            assert response.headers["access-control-allow-origin"] == told
            assert "x-request-id" in response.headers["access-control-expose-headers"]
            assert "x-ratelimit-remaining-tokens" in response.headers["access-control-expose-headers"]
            assert response.headers["vary"] == "origin"


@pytest.mark.parametrize("origin", ["https://evil.example", f"{ORIGIN}.evil.example", "null", ""])
async def test_another_origin_may_not(origin: str) -> None:
    async with _client(_app(allowed_origins=[ORIGIN])) as client:
        response = await client.get("/hello", headers={"origin": origin})
        assert "access-control-allow-origin" not in response.headers
        assert response.headers["vary"] == "origin"


async def test_a_preflight_is_answered_without_a_key() -> None:
    async with _client(_app(allowed_origins=[ORIGIN])) as client:
        response = await client.options(
            "/echo",
            headers={
                "origin": ORIGIN,
                "access-control-request-method": "POST",
                "access-control-request-headers": "authorization, content-type, x-stainless-os",
            },
        )
        assert response.status_code == 204
        assert response.content == b""
        assert response.headers["access-control-allow-origin"] == ORIGIN
        assert response.headers["access-control-allow-methods"] == "OPTIONS, POST"
        assert "x-stainless-os" in response.headers["access-control-allow-headers"]
        assert int(response.headers["access-control-max-age"]) > 0
        assert (await client.options("/nowhere", headers={"origin": ORIGIN})).status_code == 404


# The application.


async def test_log_keys_do_not_cross_requests(log: io.StringIO) -> None:
    async with _client(_app(logger=_logger(log))) as client:
        responses = await asyncio.gather(*(client.get("/broken") for _ in range(10)))
    logged = [json.loads(line)["request_id"] for line in log.getvalue().splitlines()]
    assert sorted(logged) == sorted(response.headers["x-request-id"] for response in responses)


async def test_the_lifespan_is_entered_and_left() -> None:
    from contextlib import asynccontextmanager

    seen: list[str] = []

    @asynccontextmanager
    async def lifespan(_app: object) -> AsyncIterator[None]:
        seen.append("in")
        yield
        seen.append("out")

    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent: list[str] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await _app(lifespan=lifespan)({"type": "lifespan"}, receive, send)
    assert seen == ["in", "out"]
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_operations_are_kept_for_whoever_documents_them(app: Application) -> None:
    assert app.operations == tuple(OPERATIONS)
    assert [route.path for route in app.routes] == [operation.path for operation in OPERATIONS]


def test_the_import_pulls_in_nothing_that_a_cold_start_should_not_pay() -> None:
    code = "import sys, gateway.http; print(*sys.modules)"
    environ = {"PYTHONPATH": str(Path(__file__).parents[2] / "functions")}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environ, check=True, capture_output=True, text=True
    )
    loaded = {name.split(".")[0] for name in run.stdout.split()}
    unwanted = {
        "httpx",
        "jinja2",
        "python_multipart",
        "multipart",
        "cryptography",
        "tiktoken",
        "boto3",
        "requests",
    }
    assert not loaded & unwanted
    assert not {"starlette.testclient", "starlette.templating", "pydantic.v1"} & set(run.stdout.split())


async def test_a_server_that_stops_answers_in_the_contracts_shape_what_it_cancels() -> None:
    entered = asyncio.Event()
    sent: list[dict[str, Any]] = []

    async def endpoint(_request: Request) -> Response:
        entered.set()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def receive() -> dict[str, Any]:
        return await asyncio.Future()

    async def send(message: Any) -> None:
        sent.append(message)

    app = create_app([Operation("GET", "/", endpoint, "Hangs")])
    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
    task = asyncio.create_task(app(scope, receive, send))
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    start, body = sent
    headers = dict(start["headers"])
    assert (start["status"], headers[b"retry-after"]) == (503, b"1")
    assert headers[b"x-request-id"].startswith(b"req_")
    assert json.loads(body["body"])["error"]["code"] == "gateway_stopped"
