"""What is left when servers are killed in the midst of traffic: nothing held, nothing charged twice."""

from __future__ import annotations

import asyncio
import collections
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.callers import PATIENCE_SECONDS, call, open_client, question
from tests.e2e.world import charge_of, open_world
from tests.fixtures.gateway import PRICES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import httpx

    from gateway.maintenance import Sweep
    from infra.local.simulator import Call
    from tests.e2e.callers import Outcome
    from tests.e2e.world import GatewayProcess, World
    from tests.fixtures.gateway import Customer

pytestmark = pytest.mark.serial

AT_ONCE = 24
TEXT = "one two three four five six"
CHUNKS = 12
"""More than a stream of the answer to TEXT has: clients leave after each of them, and after none."""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A world of the test's own: its servers are killed."""
    with open_world(tmp_path) as opened:
        yield opened


@dataclass(slots=True)
class Traffic:
    """Requests that are made one after the other by so many clients, and what came of each of them.

    A request is known to the gateway's log by its Idempotency-Key and to the provider's by its text.
    """

    client: httpx.AsyncClient
    gateway: GatewayProcess
    customer: Customer
    plain: str
    streamed: str
    outcomes: dict[int, list[Outcome]] = field(default_factory=lambda: collections.defaultdict(list))
    answered: int = 0
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def body(self, number: int) -> dict[str, Any]:
        stream = number % 2 == 1
        return question(
            self.streamed if stream else self.plain,
            f"{key_of(number)} {TEXT}",
            stream=stream,
            max_tokens=60,
        )

    async def make(self, number: int, *, stay: bool = False) -> Outcome:
        """Make one request; every other stream is left after some chunk, unless its client is to stay.

        As with SDKs, a 503 is asked again under the same key; a connection that broke is not, for now.
        """
        leaves = number % 4 == 3 and not stay
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                outcome = await call(
                    self.client,
                    self.gateway.url,
                    self.customer.key,
                    self.body(number),
                    idempotency_key=key_of(number),
                    leave_after=number // 4 % CHUNKS if leaves else None,
                )
                if outcome.sent:
                    self.outcomes[number].append(outcome)
                if outcome.sent and outcome.status != 503:
                    break
                await asyncio.sleep(0.1)  # a killed server is on its way back
        async with self._changed:
            self.answered += 1
            self._changed.notify_all()
        return outcome

    async def run(self, numbers: range, *, stay: bool = False) -> None:
        waiting = iter(numbers)

        async def work() -> None:
            for number in waiting:
                await self.make(number, stay=stay)

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))

    async def until_answered(self, count: int) -> None:
        async with self._changed, asyncio.timeout(120):
            await self._changed.wait_for(lambda: self.answered >= count)


def key_of(number: int) -> str:
    return f"request-{number}"


def asked_in(made: Call) -> str:
    """The Idempotency-Key of the request under which a call of the provider was made."""
    text: str = made.body["messages"][0]["content"]
    return text.partition(" ")[0]


async def until_in_flight(world: World, count: int = 4) -> None:
    """Wait until the provider is at work on several calls, so that a kill meets them."""
    await asyncio.to_thread(
        world.calls.wait_for,
        lambda log: sum(not (made.finished or made.disconnected) for made in log.all()) >= count,
        30,
    )


def assert_log_is_true(world: World, traffic: Traffic) -> None:
    """Hold the gateway's log against what the clients saw and what the provider did."""
    rows = {row["id"]: row for row in world.requests(traffic.customer)}
    by_key: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for row in rows.values():
        by_key[row["idempotency_key"]].append(row)

    # No request is charged twice, however often its client asked.
    for key, found in by_key.items():
        charged = [row for row in found if row["charge_usd"] > 0]
        assert len(charged) <= 1, (key, charged)

    # Every call that the provider was given is in the log.
    calls = collections.Counter(asked_in(made) for made in world.calls.all())
    for key, count in calls.items():
        assert count <= len(by_key[key]), key

    # An answer that is whole is charged: settled before the client had the end of it, or kept on the disk.
    for outcomes in traffic.outcomes.values():
        for outcome in outcomes:
            assert not outcome.hung, outcome
            if outcome.status == 200 and outcome.done:
                assert outcome.request_id is not None
                row = rows[outcome.request_id]
                assert (row["state"], row["outcome"]) == ("settled", "succeeded")
                assert row["charge_usd"] > 0
            elif outcome.status == 200 and outcome.chunks:
                assert outcome.request_id is not None
                row = rows[outcome.request_id]
                # Served in part: charged, or lost with its process, and the log says so.
                lost = row["state"] == "expired" and (outcome.broken or outcome.left)
                assert lost or row["charge_usd"] > 0, (outcome, row)

    # And to the last digit, where the provider's own figures were at hand.
    told = {f"req_sim_{made.number}": made.usage for made in world.calls.all()}
    exact = 0
    for row in rows.values():
        assert row["uncollected_usd"] == 0
        if row["state"] == "settled" and row["charge_usd"] > 0 and not row["usage_estimated"]:
            usage = told[row["provider_request_id"]]
            assert row["charge_usd"] == charge_of(usage["prompt_tokens"], usage["completion_tokens"], PRICES)
            exact += 1
    assert exact > len(by_key) // 4


async def kill_in_the_midst(world: World, traffic: Traffic, requests: int) -> None:
    """Kill the server, crash the database, and both, with calls in flight, in every 200 requests."""
    gateway = traffic.gateway
    for first in range(0, requests, 200):
        await traffic.until_answered(first + 40)
        await until_in_flight(world)
        gateway.kill()
        await gateway.start()

        await traffic.until_answered(first + 90)
        await until_in_flight(world)
        world.crash_postgres()
        await asyncio.sleep(0.3)
        world.start_postgres()

        # The server when it can't settle: what it has kept on the disk is all that there is.
        await traffic.until_answered(first + 140)
        await until_in_flight(world)
        world.crash_postgres()
        await asyncio.sleep(0.2)
        gateway.kill()
        world.start_postgres()
        await gateway.start()


async def end_what_is_left(world: World, traffic: Traffic) -> Sweep:
    """Let the leases run out and do what the schedule does; then all of it adds up."""
    kept = world.kept_settlements()
    world.lapse_leases()
    swept = await world.maintain()
    assert swept.settlements_replayed == len(kept)
    assert world.kept_settlements() == []
    await world.replay_again(kept)
    world.assert_books_are_exact(traffic.customer)
    assert_log_is_true(world, traffic)
    return swept


@pytest.mark.parametrize(
    "requests", [200, pytest.param(2000, marks=pytest.mark.chaos)], ids=lambda count: f"{count}-requests"
)
async def test_kills_in_the_midst_of_traffic_leave_no_hold_and_charge_nothing_twice(
    world: World, requests: int
) -> None:
    customer = world.operator.customer("100")
    plain = world.operator.model("echo+slow-60ms")
    streamed = world.operator.model("echo+drip-10ms")
    async with open_client() as client:
        with world.gateways() as (gateway,):
            traffic = Traffic(client, gateway, customer, plain, streamed)
            async with asyncio.TaskGroup() as group:
                group.create_task(traffic.run(range(requests)))
                await kill_in_the_midst(world, traffic, requests)
        swept = await end_what_is_left(world, traffic)

        # The kills met something, or this had shown nothing; and nobody was told that it was our fault.
        assert swept.holds_expired > 0
        outcomes = [outcome for some in traffic.outcomes.values() for outcome in some]
        broken = sum(bool(outcome.broken) for outcome in outcomes)
        assert broken > 0
        statuses = collections.Counter(outcome.status for outcome in outcomes)
        assert set(statuses) <= {200, 409, 503, None}, statuses
        print(f"\n{statuses}, broken {broken}, {swept.as_json()}")

        # Each client asks again with its key, as SDKs do: it is served once, and pays once.
        await world.until_database_serves()
        with world.gateways() as (traffic.gateway,):
            await traffic.run(range(requests), stay=True)
        for number in range(requests):
            again = traffic.outcomes[number][-1]
            assert again.done
            assert again.status in {200, 409}
            if again.status == 409:
                assert again.error["code"] == "idempotency_key_reused"
        await end_what_is_left(world, traffic)
        charged = collections.Counter(
            row["idempotency_key"] for row in world.requests(customer) if row["charge_usd"] > 0
        )
        assert charged == {key_of(number): 1 for number in range(requests)}


async def test_a_server_that_is_told_to_stop_settles_what_it_runs(world: World) -> None:
    customer = world.operator.customer("100")
    # Neither ends before the five seconds that a server gives its calls.
    streamed = world.operator.model("long-200+drip-100ms")
    plain = world.operator.model("echo+slow-20s")
    async with open_client() as client:
        with world.gateways() as (gateway,):
            async with asyncio.TaskGroup() as group:
                calls = [
                    group.create_task(
                        call(
                            client,
                            gateway.url,
                            customer.key,
                            question(streamed if number % 2 else plain, stream=number % 2 == 1),
                        )
                    )
                    for number in range(AT_ONCE)
                ]
                await until_in_flight(world, AT_ONCE)
                await asyncio.to_thread(gateway.stop)
    assert gateway.process is not None
    assert gateway.process.returncode == 0
    assert world.lapse_leases() == len(world.kept_settlements()) == 0
    rows = {row["id"]: row for row in world.requests(customer)}
    assert len(rows) == AT_ONCE
    for number, task in enumerate(calls):
        outcome = task.result()
        assert not outcome.hung
        assert outcome.request_id is not None
        row = rows[outcome.request_id]
        if number % 2:
            # What was streamed is paid for, and its end is not taken for the answer's.
            assert outcome.error_event is not None
            assert outcome.error_event["code"] == "gateway_stopped"
            assert not outcome.done
            assert (row["state"], row["outcome"]) == ("settled", "cancelled")
            assert row["output_tokens"] >= len(outcome.text.split())
            assert row["charge_usd"] > 0
        else:
            assert (outcome.status, outcome.error["code"]) == (503, "gateway_stopped")
            assert (row["state"], row["outcome"], row["charge_usd"]) == ("settled", "failed", 0)
    world.assert_books_are_exact(customer)
