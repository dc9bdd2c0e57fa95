"""Five hundred slow streams at once on one process leave nothing behind in it."""

from __future__ import annotations

import asyncio
import resource
from typing import TYPE_CHECKING

import pytest

from tests.e2e.callers import call, open_client, question
from tests.e2e.world import charge_of, open_world, until
from tests.fixtures.gateway import PRICES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.callers import Outcome
    from tests.e2e.world import GatewayProcess, World
    from tests.fixtures.gateway import Customer

STREAMS = 500
LEAVING = 5
"""One in so many clients leaves in the middle."""
TEXT = "one two three four five six seven eight"
MOST_GROWTH_BYTES = 8 * 1024 * 1024
KEPT_CONNECTIONS = 132
"""To providers and to the database, between requests: 100 and 32."""

pytestmark = pytest.mark.chaos


@pytest.fixture(autouse=True)
def open_files() -> Iterator[None]:
    """The clients and the provider are in this process, two sockets a stream; the gateway inherits it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with open_world(tmp_path) as opened:
        yield opened


async def wave(world: World, gateway: GatewayProcess, customer: Customer, model: str) -> list[Outcome]:
    """Run 500 streams at once; all of them are seen to be in flight together."""
    world.calls.clear()
    async with open_client() as client:

        async def stream(number: int) -> Outcome:
            leave_after = 10 if number % LEAVING == 0 else None
            body = question(model, TEXT, stream=True, max_tokens=60)
            return await call(client, gateway.url, customer.key, body, leave_after=leave_after)

        async with asyncio.TaskGroup() as group:
            running = [group.create_task(stream(number)) for number in range(STREAMS)]
            await until(lambda: world.calls.count() >= STREAMS or any(task.done() for task in running), 60)
            at_once = sum(not task.done() for task in running)
    outcomes = [task.result() for task in running]
    assert [outcome for outcome in outcomes if outcome.status != 200] == []
    assert at_once == world.calls.count() == STREAMS
    return outcomes


async def test_500_streams_at_once_leave_no_memory_no_task_and_no_connection(world: World) -> None:
    customer = world.operator.customer("100")
    model = world.operator.model("echo+drip-1s")
    figures = []
    with world.gateways() as (gateway,):
        async with open_client() as client:
            first = await call(client, gateway.url, customer.key, question(model, "x", max_tokens=20))
            assert first.status == 200
        idle_tasks = await gateway.tasks()
        idle_files = gateway.open_files()
        waves = []
        kept = 0
        for _ in range(3):
            waves.append(await wave(world, gateway, customer, model))
            # The calls of the clients that left are settled in the gateway's own time. On a machine that is
            # too slow for 500 ends at once a settlement may have been kept for a replay, as it should.
            async with asyncio.timeout(30):
                while world.operator.balance(customer)[1] > 0:
                    kept += (await world.maintain()).settlements_replayed
            async with asyncio.timeout(10):  # a request's tasks end a moment after its settlement
                while len(await gateway.tasks()) > len(idle_tasks):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            # And so do the connections of clients that have closed theirs.
            await until(lambda: gateway.open_files() <= idle_files + KEPT_CONNECTIONS)
            figures.append((gateway.resident_bytes(), gateway.open_files()))
        print(f"\nkept {kept}, idle files {idle_files}, after each wave (bytes, open files): {figures}")
        # The first wave fills the allocator's arenas and loads the tokenizer; after it nothing grows.
        assert figures[2][0] - figures[0][0] < MOST_GROWTH_BYTES
        backends = world.rows("select count(*) from pg_stat_activity where usename = 'authenticator'")[0][0]
        assert backends <= 21  # PostgREST's pool and its listener

    usage = world.calls.last().usage
    each = charge_of(usage["prompt_tokens"], usage["completion_tokens"], PRICES)
    rows = {row["id"]: row for row in world.requests(customer)}
    for outcome in (outcome for outcomes in waves for outcome in outcomes):
        assert outcome.request_id is not None
        row = rows[outcome.request_id]
        assert row["state"] == "settled"
        if outcome.left:
            assert row["outcome"] == "cancelled"
            assert 0 < row["charge_usd"] < each
        else:
            assert (outcome.status, outcome.done, outcome.error_event) == (200, True, None)
            assert row["charge_usd"] == each
            assert outcome.gateway_usage.get("charge_usd") in {str(each.normalize()), None}
    assert sum(outcome.left for outcomes in waves for outcome in outcomes) == 3 * STREAMS // LEAVING
    world.assert_books_are_exact(customer)
