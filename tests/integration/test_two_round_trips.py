"""The chat path asks the database twice, once to admit and once to settle, and nothing else touches it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest

from gateway.database.client import open_http
from gateway.runtime import process
from tests.fixtures.gateway import RunningGateway, serve
from tests.fixtures.wire import CHAT, HELLO, RawClient, nothing_is_left_held, settled

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gateway.settings import Settings
    from infra.local.postgrest import PostgRest
    from tests.fixtures.database import Database
    from tests.fixtures.simulator import Simulator

__all__ = ["nothing_is_left_held"]

ADMIT_AND_SETTLE = ["/rpc/admit_request", "/rpc/settle_request"]


class CountingTransport(httpx.AsyncBaseTransport):
    """Passes requests on and remembers their paths."""

    def __init__(self, inner: httpx.AsyncBaseTransport, paths: list[str]) -> None:
        self._inner = inner
        self._paths = paths

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._paths.append(request.url.path)
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


@pytest.fixture(scope="module")
def asked() -> list[str]:
    """The paths that the gateway has asked PostgREST for, in order."""
    return []


@pytest.fixture(scope="module")
def gateway(
    module_database: Database,
    module_postgrest: PostgRest,
    *,
    simulator_server: Simulator,
    tmp_path_factory: pytest.TempPathFactory,
    asked: list[str],
) -> Iterator[RunningGateway]:
    def counting(settings: Settings, transport: httpx.AsyncBaseTransport) -> httpx.AsyncClient:
        return open_http(settings, CountingTransport(transport, asked))

    spool: Path = tmp_path_factory.mktemp("spool")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(process, "open_http", counting)
        with serve(module_database, module_postgrest, simulator_server, spool) as served:
            yield served


@pytest.fixture(autouse=True)
def counted_from_here(asked: list[str], simulator: Simulator) -> None:
    """Nothing has been asked yet, and the simulator has not been called."""
    assert simulator.calls.count() == 0
    asked.clear()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "behaviour",
    [
        "echo",
        "no-usage",
        "status-500",
        "malformed",
        "cut",
        "tools-parallel",
        "error-in-stream-0",
        "unbounded+long",
    ],
)
def test_call_asks_the_database_twice(
    gateway: RunningGateway, asked: list[str], behaviour: str, *, stream: bool
) -> None:
    customer = gateway.customer("1")
    body: dict[str, Any] = {"model": gateway.model(behaviour), "messages": HELLO, "stream": stream}
    body["stream_options"] = {"include_usage": True}
    gateway.http(customer).post(CHAT, json=body, headers={"idempotency-key": "one"})
    settled(gateway, customer)
    assert asked == ADMIT_AND_SETTLE


def test_fallback_asks_no_more(gateway: RunningGateway, asked: list[str]) -> None:
    customer = gateway.customer("1")
    models = [gateway.model("status-503"), gateway.model("status-429"), gateway.model("echo")]
    body = {"model": models[0], "models": models, "messages": HELLO}
    assert gateway.http(customer).post(CHAT, json=body).status_code == 200
    assert asked == ADMIT_AND_SETTLE


@pytest.mark.parametrize("path", ["/generate", "/api/layers/chat"])
def test_older_routes_ask_twice(gateway: RunningGateway, asked: list[str], path: str) -> None:
    customer = gateway.customer("1")
    model = gateway.model("echo")
    body = (
        {"text": "Hello", "model_id": model}
        if path == "/generate"
        else {"providerName": "openai-compatible", "model_name": model, "message": "Hello"}
    )
    headers = {"user": customer.username}
    assert gateway.http(customer).post(path, json=body, headers=headers).status_code == 200
    assert asked == ADMIT_AND_SETTLE


def test_client_that_leaves_costs_no_more_round_trips(gateway: RunningGateway, asked: list[str]) -> None:
    customer = gateway.customer("1")
    body = {"model": gateway.model("hang-3"), "messages": HELLO, "stream": True}
    client = RawClient(gateway.url).post(CHAT, body, key=customer.key)
    client.read_until(b"data: ", 3)
    client.leave()
    settled(gateway, customer)
    assert asked == ADMIT_AND_SETTLE


@pytest.mark.parametrize("key", ["none", "mistyped"])
def test_key_that_can_be_none_of_ours_asks_nothing(
    gateway: RunningGateway, asked: list[str], key: str
) -> None:
    headers = {} if key == "none" else {"x-api-key": "sk_" + "a" * 40}
    body = {"model": "x", "messages": HELLO}
    assert gateway.http().post(CHAT, json=body, headers=headers).status_code == 401
    assert asked == []


def test_refusal_asks_once(gateway: RunningGateway, asked: list[str]) -> None:
    customer = gateway.customer(None)
    body = {"model": gateway.model("echo"), "messages": HELLO}
    assert gateway.http(customer).post(CHAT, json=body).status_code == 402
    assert asked == ADMIT_AND_SETTLE[:1]
