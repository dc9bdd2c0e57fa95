"""The database goes away in the midst of traffic and comes back: no hang, no free call, exact books."""

from __future__ import annotations

import asyncio
import collections
import contextlib
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from tests.e2e.callers import call, open_client, question
from tests.e2e.world import charge_of, open_world, until
from tests.fixtures.gateway import PRICES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path

    from tests.e2e.callers import Outcome
    from tests.e2e.world import World
    from tests.fixtures.gateway import Customer

pytestmark = pytest.mark.serial

CLIENTS = 16
PAID_USD = Decimal(100)
LONGEST_SECONDS = 25.0
"""Ten for an admission that PostgREST does not answer, or the call and eight for its settlement, and some."""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A world of the test's own: its database is stopped."""
    with open_world(tmp_path) as opened:
        yield opened


@contextlib.asynccontextmanager
async def stopped(world: World) -> AsyncIterator[None]:
    """The database's server has crashed: whoever asks is told at once."""
    world.crash_postgres()
    yield
    world.start_postgres()


@contextlib.asynccontextmanager
async def frozen(world: World) -> AsyncIterator[None]:
    """The database answers nothing: whoever asks has to give up by himself."""
    with world.frozen_postgres():
        yield


def served(outcomes: Sequence[Outcome]) -> int:
    return sum(outcome.status == 200 for outcome in outcomes)


def assert_answered(outcomes: Sequence[Outcome]) -> None:
    """Every caller was answered in time: served, or told in the contract's shape that it can't be."""
    statuses = collections.Counter(outcome.status for outcome in outcomes)
    odd = [outcome for outcome in outcomes if outcome.status not in {200, 503}]
    assert set(statuses) == {200, 503}, (statuses, odd)
    for outcome in outcomes:
        assert outcome.done
        assert outcome.error_event is None
        assert outcome.request_id is not None
        assert outcome.seconds < LONGEST_SECONDS
        if outcome.status == 503:
            error = outcome.error
            assert set(error) == {"message", "type", "param", "code"}
            assert (error["type"], error["code"]) == ("server_error", "database_unavailable")
            assert int(outcome.headers["retry-after"]) >= 1
        elif "status" in outcome.gateway_usage:
            assert outcome.gateway_usage["status"] == "pending"
    print(f"\n{statuses}, longest {max(outcome.seconds for outcome in outcomes):.1f} s")


def assert_paid_once(world: World, customer: Customer, outcomes: Sequence[Outcome]) -> None:
    """Every answer is paid for exactly; who was told 503 pays nothing and has cost nothing."""
    world.assert_books_are_exact(customer)
    usage = world.calls.last().usage
    each = charge_of(usage["prompt_tokens"], usage["completion_tokens"], PRICES)
    served = {outcome.request_id for outcome in outcomes if outcome.status == 200}
    charged = {row["id"]: row["charge_usd"] for row in world.requests(customer) if row["charge_usd"]}
    assert charged == dict.fromkeys(served, each)
    assert world.operator.balance(customer)[0] == PAID_USD - each * len(served)
    assert world.calls.count() == len(served)


@pytest.mark.parametrize(
    ("away", "away_seconds", "processes"),
    [
        (stopped, 3, 1),
        pytest.param(stopped, 10, 1, marks=pytest.mark.chaos),
        pytest.param(stopped, 10, 4, marks=pytest.mark.chaos),
        # Longer than the gateway's own patience, so that it shows.
        pytest.param(frozen, 15, 1, marks=pytest.mark.chaos),
        pytest.param(frozen, 15, 4, marks=pytest.mark.chaos),
    ],
)
async def test_a_database_that_is_away_costs_nobody_an_answer_or_a_cent(
    world: World,
    away: Callable[[World], contextlib.AbstractAsyncContextManager[None]],
    away_seconds: int,
    processes: int,
) -> None:
    customer = world.operator.customer(f"{PAID_USD}")
    model = world.operator.model("echo+slow-200ms")
    outcomes: list[Outcome] = []
    finished = asyncio.Event()
    with world.gateways(processes) as gateways:
        async with open_client() as client:

            async def work(number: int) -> None:
                while not finished.is_set():
                    body = question(model, "one two three", stream=number % 2 == 1, max_tokens=60)
                    url = gateways[number % processes].url
                    outcomes.append(await call(client, url, customer.key, body))
                    if outcomes[-1].status == 503:
                        await asyncio.sleep(0.05)

            async with asyncio.TaskGroup() as group:
                for number in range(CLIENTS):
                    group.create_task(work(number))
                await asyncio.to_thread(
                    world.calls.wait_for, lambda log: sum(not made.finished for made in log.all()) >= 8, 30
                )
                async with away(world):
                    before = len(outcomes)
                    await asyncio.sleep(away_seconds)
                    seen_away = len(outcomes) - before
                await world.until_database_serves()
                served_before = served(outcomes)
                await until(lambda: served(outcomes) >= served_before + CLIENTS, 60)
                finished.set()

    assert seen_away > 0
    assert_answered(outcomes)
    pending = {
        outcome.request_id
        for outcome in outcomes
        if outcome.status == 200 and "status" in outcome.gateway_usage
    }
    assert pending

    # What is pending is on the disk, and with its replay the books add up.
    kept = world.kept_settlements()
    assert {settlement["request_id"] for settlement in kept} >= pending
    world.lapse_leases()
    swept = await world.maintain()
    print(f"pending {len(pending)}, kept {len(kept)}, {swept.as_json()}")
    assert swept.settlements_replayed == len(kept)
    assert world.kept_settlements() == []
    assert_paid_once(world, customer, outcomes)
    await world.replay_again(kept)
    assert_paid_once(world, customer, outcomes)
