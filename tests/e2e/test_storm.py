"""The cap is hard, however many clients and server processes there are."""

from __future__ import annotations

import asyncio
import collections
import itertools
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from tests.e2e.books import watched
from tests.e2e.callers import call, open_client, question
from tests.e2e.world import charge_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.e2e.callers import Outcome
    from tests.e2e.world import GatewayProcess, World
    from tests.fixtures.gateway import Customer

pytestmark = pytest.mark.serial

CLIENTS = 64
AFFORDABLE = 10
OUTPUT_TOKENS = 40
# Only output is priced and the answer fills its bound: what is charged is what was held, to the last digit.
EXACT_PRICES = {"input": "0", "output": "1.5"}
CALL_USD = charge_of(0, OUTPUT_TOKENS, EXACT_PRICES)


@pytest.fixture(scope="module")
def exact_model(world: World) -> str:
    """A model whose calls last a while, so that they overlap."""
    return world.operator.model("long-1000+slow-100ms", prices=EXACT_PRICES)


async def storm(
    world: World, gateways: Sequence[GatewayProcess], customer: Customer, model: str, *, calls_each: int = 1
) -> list[Outcome]:
    """64 clients at once, spread over the processes, every other one streaming.

    Each has a key of its own, whose counters nobody else locks: what they meet at is the account.
    """
    keys = world.more_keys(customer, CLIENTS)
    async with open_client() as client:

        async def run(number: int) -> list[Outcome]:
            url = gateways[number % len(gateways)].url
            body = question(model, stream=number // len(gateways) % 2 == 1, max_tokens=OUTPUT_TOKENS)
            return [await call(client, url, keys[number], body) for _ in range(calls_each)]

        found = await asyncio.gather(*(run(number) for number in range(CLIENTS)))
    return list(itertools.chain.from_iterable(found))


def assert_contract(outcomes: Sequence[Outcome]) -> None:
    """Every call was served whole or refused for money alone."""
    statuses = collections.Counter(outcome.status for outcome in outcomes)
    assert set(statuses) <= {200, 402}, statuses
    assert all(outcome.done for outcome in outcomes)
    for outcome in outcomes:
        if outcome.status == 402:
            assert outcome.error["code"] == "insufficient_credits"
            assert outcome.headers["x-should-retry"] == "false"
        else:
            assert "status" not in outcome.gateway_usage


@pytest.mark.parametrize("processes", [1, 4])
async def test_64_clients_on_a_balance_for_ten_calls_get_ten(
    world: World, fleet: list[GatewayProcess], exact_model: str, processes: int
) -> None:
    customer = world.operator.customer(f"{AFFORDABLE * CALL_USD}")
    with watched(world.database) as watch:
        outcomes = await storm(world, fleet[:processes], customer, exact_model)
    assert_contract(outcomes)
    served = [outcome for outcome in outcomes if outcome.status == 200]
    assert len(served) == AFFORDABLE
    assert {Decimal(outcome.gateway_usage["charge_usd"]) for outcome in served} == {CALL_USD}
    assert world.operator.balance(customer) == (0, 0)
    world.assert_books_are_exact(customer)
    assert watch.looks > 300
    assert (watch.least_free_usd >= 0, watch.disagreements) == (True, 0)


@pytest.mark.parametrize("processes", [1, 4])
async def test_what_is_given_back_is_lent_again_and_never_twice(
    world: World, fleet: list[GatewayProcess], processes: int
) -> None:
    # The charge is far below what is held, so that more are served than the balance first affords.
    model = world.operator.model("echo")
    prices = {"input": "0.50", "output": "1.50"}
    probe = world.operator.customer("1")
    async with open_client() as client:
        body = question(model, max_tokens=OUTPUT_TOKENS)
        first = await call(client, fleet[0].url, probe.key, body)
    assert first.status == 200
    customer = world.operator.customer(f"{AFFORDABLE * world.requests(probe)[0]['hold_usd']}")
    with watched(world.database) as watch:
        outcomes = await storm(world, fleet[:processes], customer, model, calls_each=4)
    assert_contract(outcomes)
    served = [outcome for outcome in outcomes if outcome.status == 200]
    assert len(served) > AFFORDABLE
    usage = first.body["usage"]
    each = charge_of(usage["prompt_tokens"], usage["completion_tokens"], prices)
    assert {Decimal(outcome.gateway_usage["charge_usd"]) for outcome in served} == {each}
    assert world.operator.balance(customer)[0] == world.paid_in(customer) - each * len(served)
    world.assert_books_are_exact(customer)
    assert watch.looks > 300
    assert (watch.least_free_usd >= 0, watch.disagreements) == (True, 0)


async def test_money_that_comes_in_mid_storm_is_spent_once(
    world: World, fleet: list[GatewayProcess], exact_model: str
) -> None:
    customer = world.operator.customer(f"{AFFORDABLE * CALL_USD}")

    async def top_up() -> None:
        for _ in range(AFFORDABLE):
            await asyncio.to_thread(
                world.operator.call, "add_credits", p_customer_id=customer.id, p_usd=CALL_USD
            )

    with watched(world.database) as watch:
        outcomes, _ = await asyncio.gather(
            storm(world, fleet[:4], customer, exact_model, calls_each=2), top_up()
        )
    # What came in after the last client had asked is still there.
    async with open_client() as client:
        while outcomes[-1].status == 200 or world.operator.balance(customer)[0]:
            body = question(exact_model, max_tokens=OUTPUT_TOKENS)
            outcomes.append(await call(client, fleet[0].url, customer.key, body))
            assert len(outcomes) < 200
    assert_contract(outcomes)
    assert sum(outcome.status == 200 for outcome in outcomes) == 2 * AFFORDABLE
    assert world.operator.balance(customer) == (0, 0)
    world.assert_books_are_exact(customer)
    assert (watch.least_free_usd >= 0, watch.disagreements) == (True, 0)
