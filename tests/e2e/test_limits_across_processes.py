"""A limit is one limit, however many server processes there are."""

from __future__ import annotations

import asyncio
import collections
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from tests.e2e.callers import call, open_client, question
from tests.e2e.world import until

if TYPE_CHECKING:
    from tests.e2e.callers import Outcome
    from tests.e2e.world import GatewayProcess, World
    from tests.fixtures.gateway import Customer

pytestmark = pytest.mark.serial

REQUESTS_PER_MINUTE = 60
IN_FLIGHT = 5
STORM_SECONDS = 15


async def into_a_window(world: World, seconds: int = STORM_SECONDS) -> None:
    """Wait for the next minute of the database's clock if this one ends within `seconds`."""
    left = Decimal(world.rows("select 60 - extract(second from clock_timestamp())")[0][0])
    if left < seconds:
        await asyncio.sleep(float(left) + 0.1)


def windows_of(world: World, customer: Customer) -> collections.Counter[str]:
    """How many of the customer's requests were admitted in each minute."""
    found = world.rows(
        "select to_char(date_trunc('minute', admitted_at), 'HH24:MI'), count(*) from gateway.requests"
        " where customer_id = %s and state <> 'refused' group by 1",
        customer.id,
    )
    return collections.Counter(dict(found))


async def test_sixty_a_minute_are_sixty_under_eight_processes(
    world: World, fleet: list[GatewayProcess]
) -> None:
    assert len(fleet) == 8
    model = world.operator.model("echo")
    customer = world.operator.customer("10", requests_per_minute=REQUESTS_PER_MINUTE)
    await into_a_window(world)
    async with open_client() as client:

        async def run(number: int) -> list[Outcome]:
            gateway = fleet[number % len(fleet)]
            body = question(model, stream=number % 2 == 1, max_tokens=20)
            return [await call(client, gateway.url, customer.key, body) for _ in range(3)]

        outcomes = [outcome for some in await asyncio.gather(*map(run, range(40))) for outcome in some]
    # Were the machine so slow that the storm ran into the next minute, this would say so.
    assert list(windows_of(world, customer).values()) == [REQUESTS_PER_MINUTE]
    statuses = collections.Counter(outcome.status for outcome in outcomes)
    assert statuses == {200: REQUESTS_PER_MINUTE, 429: len(outcomes) - REQUESTS_PER_MINUTE}
    for outcome in outcomes:
        assert outcome.headers["x-ratelimit-limit-requests"] == str(REQUESTS_PER_MINUTE)
        if outcome.status == 429:
            assert outcome.error["code"] == "rate_limit_exceeded"
            assert 1 <= int(outcome.headers["retry-after"]) <= 60
    remaining = sorted(
        int(outcome.headers["x-ratelimit-remaining-requests"])
        for outcome in outcomes
        if outcome.status == 200
    )
    # Each of the sixty was told another place in the window: nobody was counted beside another.
    assert remaining == list(range(REQUESTS_PER_MINUTE))
    world.assert_books_are_exact(customer)


async def test_tokens_in_flight_in_other_processes_count(world: World, fleet: list[GatewayProcess]) -> None:
    # The provider says two chunks and no more: each call is in flight until its client leaves.
    held = world.operator.model("hang-2")
    quick = world.operator.model("echo")
    probe = world.operator.customer("1")
    async with open_client() as client:
        await call(client, fleet[0].url, probe.key, question(quick, max_tokens=100))
        (row,) = world.requests(probe)
        each = row["input_tokens_bound"] + row["output_tokens_bound"]
        customer = world.operator.customer("10")
        world.operator.call(
            "set_limits",
            p_customer_id=customer.id,
            # Room for five and all but a token of a sixth.
            p_rate_limits={"tokens_per_minute": each * (IN_FLIGHT + 1) - 1},
        )
        await into_a_window(world)
        release = asyncio.Event()
        answered = asyncio.Semaphore(0)
        statuses: list[int | None] = []

        async def hold(number: int) -> None:
            gateway = fleet[number % len(fleet)]
            body = question(held, stream=True, max_tokens=100)
            headers = {"authorization": f"Bearer {customer.key}"}
            async with client.stream(
                "POST", f"{gateway.url}/v1/chat/completions", json=body, headers=headers
            ) as response:
                statuses.append(response.status_code)
                answered.release()
                if response.status_code == 200:
                    await release.wait()

        async with asyncio.TaskGroup() as group:
            for number in range(3 * len(fleet)):
                group.create_task(hold(number))
            for _ in range(3 * len(fleet)):
                await answered.acquire()
            in_flight = collections.Counter(statuses)
            late = await call(client, fleet[-1].url, customer.key, question(quick, max_tokens=100))
            release.set()
        assert in_flight == {200: IN_FLIGHT, 429: 3 * len(fleet) - IN_FLIGHT}
        assert late.status == 429
        assert "tokens per minute" in late.error["message"]

        await until(lambda: world.operator.balance(customer)[1] == 0)
        # What was not used of the bounds is there again, and what was used is not.
        used = sum(request["input_tokens"] + request["output_tokens"] for request in world.requests(customer))
        counted = world.rows(
            "select tokens from gateway.limit_counters where subject = 'customer' and subject_id = %s"
            " and window_start = date_trunc('minute', clock_timestamp())",
            customer.id,
        )
        assert counted == [(used,)]
        assert 0 < used < each
        again = await call(client, fleet[0].url, customer.key, question(quick, max_tokens=100))
        assert again.status == 200
    world.assert_books_are_exact(customer)
