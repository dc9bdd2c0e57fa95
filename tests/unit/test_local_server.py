"""The local server sends each request to the function that API Gateway would send it to."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

import anthropic
import httpx
import openai
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from gateway.http import JSONResponse, Operation, create_app
from infra.local.processes import StackError
from infra.local.server import Gateway, serve
from infra.local.serving import ThreadedServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request


def function(name: str, *routes: tuple[str, str]) -> Starlette:
    async def answer(request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"{name} {request.path_params}")

    return Starlette(routes=[Route(path, answer, methods=[method]) for method, path in routes])


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    gateway = Gateway(
        [
            function("chat", ("POST", "/v1/chat/completions"), ("GET", "/v1/models")),
            function("keys", ("GET", "/v1/keys/{id}"), ("DELETE", "/v1/keys/{id}")),
            function("admin", ("PATCH", "/v1/keys/{id}")),
            function("web", ("GET", "/")),
        ]
    )
    transport = httpx.ASGITransport(gateway)
    async with httpx.AsyncClient(transport=transport, base_url="http://sluice.test") as made:
        yield made


async def test_a_request_goes_to_the_function_whose_route_it_matches(client: httpx.AsyncClient) -> None:
    assert (await client.post("/v1/chat/completions")).text == "chat {}"
    assert (await client.get("/v1/keys/7")).text == "keys {'id': '7'}"
    assert (await client.get("/")).text == "web {}"


async def test_a_later_function_gets_the_method_that_an_earlier_one_lacks(client: httpx.AsyncClient) -> None:
    assert (await client.patch("/v1/keys/7")).text == "admin {'id': '7'}"


async def test_a_method_that_nobody_has_is_refused_by_the_function_of_the_path(
    client: httpx.AsyncClient,
) -> None:
    refused = await client.put("/v1/models")
    assert refused.status_code == 405
    assert "GET" in refused.headers["allow"]


async def test_what_nobody_has_is_the_last_functions_404(client: httpx.AsyncClient) -> None:
    assert (await client.get("/nowhere")).status_code == 404


async def test_the_contracts_404_comes_through() -> None:
    async def health(_request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    gateway = Gateway([create_app([Operation("GET", "/health", health, "Health")])])
    transport = httpx.ASGITransport(gateway)
    async with httpx.AsyncClient(transport=transport, base_url="http://sluice.test") as client:
        missing = await client.get("/nowhere")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "unknown_route"


def test_there_must_be_something_to_serve() -> None:
    with pytest.raises(ValueError, match="no function"):
        Gateway([])


async def run_lifespan(gateway: Gateway, events: list[str]) -> list[str]:
    asked = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    said: list[str] = []

    async def receive() -> dict[str, str]:
        message = next(asked)
        events.append(message["type"])
        return message

    async def send(message: object) -> None:
        assert isinstance(message, dict)
        said.append(message["type"])

    await gateway({"type": "lifespan"}, receive, send)
    return said


async def test_every_functions_lifespan_runs_around_the_whole() -> None:
    events: list[str] = []

    def living(name: str) -> Starlette:
        @contextlib.asynccontextmanager
        async def lifespan(_app: Starlette) -> AsyncIterator[None]:
            events.append(f"{name} up")
            yield
            events.append(f"{name} down")

        return Starlette(lifespan=lifespan)

    said = await run_lifespan(Gateway([living("chat"), living("web")]), events)
    assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert events == ["lifespan.startup", "chat up", "web up", "lifespan.shutdown", "web down", "chat down"]


async def test_a_function_that_can_not_start_stops_the_whole() -> None:
    events: list[str] = []

    @contextlib.asynccontextmanager
    async def failing(_app: Starlette) -> AsyncIterator[None]:
        await asyncio.sleep(0)
        if not events[1:]:
            raise OSError("no database")
        yield

    with pytest.raises(RuntimeError, match="no database"):
        await run_lifespan(Gateway([Starlette(lifespan=failing)]), events)
    assert events == ["lifespan.startup"]


def test_a_server_in_a_thread_frees_its_port_when_it_stops() -> None:
    with ThreadedServer(function("web", ("GET", "/"))) as server:
        assert httpx.get(server.url).text == "web {}"
        port = server.port
    with ThreadedServer(function("web", ("GET", "/")), port=port) as again:
        assert again.port == port
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}")


def test_clients_are_the_first_to_close_an_idle_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent while the server closes gets no answer: one of 897 calls, on a busy machine."""
    patience: list[int] = []

    def note(server: uvicorn.Server, sockets: list[socket.socket] | None = None) -> None:
        patience.append(server.config.timeout_keep_alive)
        for each in sockets or ():
            each.close()

    with monkeypatch.context() as patched, socket.socket() as listener:
        patched.setattr(uvicorn.Server, "run", note)
        serve(function("web", ("GET", "/")), listener, ready=lambda: None)
        with pytest.raises(StackError, match="did not start"):
            ThreadedServer(function("web", ("GET", "/"))).start(patience=0)
    sdks = openai.DEFAULT_CONNECTION_LIMITS, anthropic.DEFAULT_CONNECTION_LIMITS
    longest = max(limits.keepalive_expiry or 0 for limits in sdks)
    assert longest > 0
    assert [seconds > 2 * longest for seconds in patience] == [True, True]
