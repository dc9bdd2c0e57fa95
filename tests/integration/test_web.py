"""What anybody may ask, and what each function's handler serves."""

from __future__ import annotations

import asyncio
import importlib
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from gateway import openapi
from gateway.http import create_app
from gateway.runtime.function import Function
from gateway.runtime.process import Process
from gateway.settings import SettingsError
from tests.fixtures.management import URL, Management, assert_error, management, settings

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["management"]


async def health_without_database(rest_url: str, directory: Path) -> tuple[httpx.Response, float]:
    process = Process.start(settings(rest_url, "key", directory))
    transport = httpx.ASGITransport(create_app(openapi.operations(process)))
    async with httpx.AsyncClient(transport=transport, base_url=URL) as client:
        started = time.monotonic()
        response = await client.get("/health")
        seconds = time.monotonic() - started
    await process.aclose()
    return response, seconds


async def test_index_says_what_this_is(management: Management) -> None:
    response = await management.call("GET", "/", None)
    assert response.status_code == 200
    body = response.json()
    assert body["name"] == "Sluice"
    assert body["version"] == management.process.settings.version
    assert {"chat", "health", "models"} <= set(body["links"])
    assert (await management.call("GET", body["links"]["health"], None)).status_code == 200


async def test_health_is_ok_with_the_database(management: Management) -> None:
    response = await management.call("GET", "/health", None)
    assert response.status_code == 200
    assert response.json() == {
        "status": "ok",
        "database": "ok",
        "version": management.process.settings.version,
    }
    assert response.headers["cache-control"] == "no-store"


async def test_health_is_503_when_nobody_listens(tmp_path: Path, unused_tcp_port: int) -> None:
    response, _ = await health_without_database(f"http://127.0.0.1:{unused_tcp_port}", tmp_path)
    assert response.status_code == 503
    body = response.json()
    assert set(body) == {"status", "database", "version"}
    assert (body["status"], body["database"]) == ("degraded", "unavailable")


async def test_health_is_503_within_two_seconds_when_the_database_hangs(tmp_path: Path) -> None:
    async def hang(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await released.wait()
        writer.close()

    released = asyncio.Event()
    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        response, seconds = await health_without_database(f"http://127.0.0.1:{port}", tmp_path)
        released.set()
    assert response.status_code == 503
    assert response.json()["status"] == "degraded"
    assert seconds < 2


async def test_database_that_is_out_is_503_on_every_guarded_route(
    management: Management, tmp_path: Path, unused_tcp_port: int
) -> None:
    process = Process.start(settings(f"http://127.0.0.1:{unused_tcp_port}", "key", tmp_path))
    keys = importlib.import_module("gateway.keys")
    transport = httpx.ASGITransport(create_app(keys.operations(process)))
    async with httpx.AsyncClient(transport=transport, base_url=URL) as client:
        response = await client.get("/v1/keys", headers={"x-api-key": management.admin_key})
    await process.aclose()
    assert_error(response, 503, "database_unavailable")
    assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("name", "path"),
    [("keys", "/v1/keys"), ("usage", "/user/balance"), ("admin", "/admin/balance"), ("web", "/")],
)
async def test_handler_serves_its_routes(management: Management, name: str, path: str) -> None:
    module = importlib.import_module(f"{name}.handler")
    assert isinstance(module.app, Function)
    assert callable(module.handler)
    function = Function(module.app.operations, process=lambda: management.process)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(function), base_url=URL) as client:
        response = await client.get(path, headers={"x-api-key": management.customer().key})
        assert response.status_code == (403 if name == "admin" else 200)
        assert_error(await client.get("/no/such/path"), 404, "unknown_route")


def test_handlers_read_no_environment_before_their_first_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUPABASE_URL", raising=False)
    monkeypatch.delenv("SLUICE_REST_URL", raising=False)
    event: dict[str, Any] = {}
    for name in ("keys", "usage", "admin", "web"):
        module = importlib.import_module(f"{name}.handler")
        with pytest.raises(SettingsError, match="SUPABASE_URL"):
            _ = module.app.application
    maintenance = importlib.import_module("maintenance.handler")
    with pytest.raises(SettingsError, match="SUPABASE_URL"):
        maintenance.handler(event, None)
