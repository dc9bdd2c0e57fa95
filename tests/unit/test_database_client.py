"""What an answer of PostgREST means: a result, a failure, or a database that is away."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from gateway.database import client as database_client
from gateway.database.client import (
    CALLS_AT_A_TIME,
    DatabaseAwayError,
    DatabaseClient,
    DatabaseError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


def _client(handler: Callable[[httpx.Request], Coroutine[None, None, httpx.Response]]) -> DatabaseClient:
    http = httpx.AsyncClient(transport=httpx.MockTransport(handler))
    return DatabaseClient("http://database.test", "sb_secret_x", http)


def _failing(status: int, code: str | None) -> tuple[DatabaseClient, list[httpx.Request]]:
    requests: list[httpx.Request] = []

    async def handle(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(status, json={"code": code, "message": "", "hint": None, "details": None})

    return _client(handle), requests


async def _failure_of(client: DatabaseClient) -> DatabaseError:
    with pytest.raises(DatabaseError) as failed:
        await client.call("check_health", {})
    return failed.value


@pytest.mark.parametrize(
    ("status", "code"),
    [
        # As PostgREST 12 answers where its connection broke under the statement.
        (500, ""),
        (500, None),
        (503, "PGRST000"),
        (503, "PGRST001"),
        (504, "PGRST003"),
        (500, "57014"),
        (503, "57P01"),
        (503, "53300"),
        (503, "08006"),
    ],
)
async def test_what_says_that_the_database_is_away(status: int, code: str | None) -> None:
    client, requests = _failing(status, code)
    assert isinstance(await _failure_of(client), DatabaseAwayError)
    assert len(requests) == 1


@pytest.mark.parametrize(
    ("status", "code"), [(400, "22023"), (404, "PGRST202"), (400, "23514"), (401, "42501")]
)
async def test_what_is_a_failure_of_the_call_itself(status: int, code: str) -> None:
    client, requests = _failing(status, code)
    assert not isinstance(await _failure_of(client), DatabaseAwayError)
    assert len(requests) == 1


@pytest.mark.parametrize("code", ["40P01", "40001"])
async def test_what_was_rolled_back_for_another_is_tried_three_times(code: str) -> None:
    client, requests = _failing(500, code)
    assert not isinstance(await _failure_of(client), DatabaseAwayError)
    assert len(requests) == 3


class _Held:
    """A PostgREST that answers nothing until it is told to."""

    def __init__(self) -> None:
        self.answer = asyncio.Event()
        self.now = 0
        self.most = 0

    async def handle(self, _request: httpx.Request) -> httpx.Response:
        self.now += 1
        self.most = max(self.most, self.now)
        await self.answer.wait()
        self.now -= 1
        return httpx.Response(200, json={})


async def test_calls_beyond_so_many_wait_and_are_then_answered() -> None:
    held = _Held()
    client = _client(held.handle)
    calls = [asyncio.create_task(client.call("check_health", {})) for _ in range(3 * CALLS_AT_A_TIME)]
    while held.now < CALLS_AT_A_TIME:  # noqa: ASYNC110 - each needs some turns of the loop
        await asyncio.sleep(0)
    held.answer.set()
    assert await asyncio.gather(*calls) == [{}] * len(calls)
    assert held.most == CALLS_AT_A_TIME


async def test_a_call_does_not_wait_for_ever_for_those_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_client, "READ_SECONDS", 0.05)
    held = _Held()
    client = _client(held.handle)
    calls: list[asyncio.Task[Any]] = [
        asyncio.create_task(client.call("check_health", {})) for _ in range(CALLS_AT_A_TIME)
    ]
    while held.now < CALLS_AT_A_TIME:  # noqa: ASYNC110 - each needs some turns of the loop
        await asyncio.sleep(0)
    late = await _failure_of(client)
    assert isinstance(late, DatabaseAwayError)
    assert held.most == CALLS_AT_A_TIME
    # The one that gave up has left its place to others.
    held.answer.set()
    await asyncio.gather(*calls)
    assert await client.call("check_health", {}) == {}
