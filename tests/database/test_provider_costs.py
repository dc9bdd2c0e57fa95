"""What providers tell of their costs, held against ours once a day."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from tests.database.engine import usd

if TYPE_CHECKING:
    from tests.database.engine import Customer, Engine


@pytest.fixture
def customer(engine: Engine) -> Customer:
    return engine.customer("1000", requests_per_minute=100_000)


def used(engine: Engine, customer: Customer, told: str | None, *, days_ago: int = 1) -> None:
    """A request of 0.25 USD by our prices, and of so much by the provider's own word."""
    admission = engine.admitted(customer.key_hash, p_input_tokens_bound=125_000)
    engine.settle(admission, usage={"input": 125_000}, provider_cost_usd=told)
    with engine.by_engine():
        engine.run(
            "update gateway.requests set admitted_at = date_trunc('day', now(), 'UTC') + interval '3 hours'"
            " - %s * interval '1 day' where id = %s",
            days_ago,
            admission["request_id"],
        )


def past_midnight(engine: Engine) -> bool:
    """Whether yesterday is still being waited for."""
    return bool(engine.value("select now() - date_trunc('day', now(), 'UTC') < interval '31 minutes'"))


@pytest.fixture(autouse=True)
def _not_just_after_midnight(engine: Engine) -> None:
    if past_midnight(engine):
        pytest.skip("yesterday is not compared in the first half hour of a day (UTC)")


@pytest.mark.parametrize(
    ("told", "is_told"),
    [("0.25", False), ("0.275", False), ("0.226", False), ("0.2751", True), ("0.2", True), ("0", True)],
)
def test_a_difference_of_more_than_a_tenth_is_told(
    engine: Engine, customer: Customer, told: str, *, is_told: bool
) -> None:
    used(engine, customer, told)
    used(engine, customer, told)
    assert engine.call("compare_provider_costs") == 1
    rows = engine.query("select kind, subject, data from gateway.events")
    assert [(row[0], row[1]) for row in rows] == [("provider.cost_differs", "service:1")] * is_told
    if is_told:
        assert rows[0][2]["cost_usd"] == "0.5"
        assert Decimal(rows[0][2]["provider_cost_usd"]) == 2 * usd(told)
    # once: a second look finds the day done
    assert engine.call("compare_provider_costs") == 0
    assert len(engine.query("select from gateway.events")) == len(rows)


def test_only_what_was_told_is_compared_and_only_of_yesterday(engine: Engine, customer: Customer) -> None:
    used(engine, customer, None)
    used(engine, customer, "9", days_ago=0)
    used(engine, customer, "9", days_ago=2)
    assert engine.call("compare_provider_costs") == 0
    used(engine, customer, "0.3")
    assert engine.call("compare_provider_costs") == 1
    found = engine.query(
        "select service, requests, cost_usd, provider_cost_usd, difference_usd, difference_percent"
        " from gateway.provider_cost_differences"
    )
    assert found == [("service 1", 1, usd("0.25"), usd("0.3"), usd("0.05"), usd("20.00"))]


def test_a_few_cents_fractions_are_no_matter(engine: Engine, customer: Customer) -> None:
    admission = engine.admitted(customer.key_hash)
    engine.settle(admission, usage={"input": 100}, provider_cost_usd="0.009")
    with engine.by_engine():
        engine.run("update gateway.requests set admitted_at = admitted_at - interval '1 day'")
    assert engine.call("compare_provider_costs") == 1
    assert engine.query("select from gateway.events") == []


def test_absurd_claims_of_providers_stop_nothing(engine: Engine, customer: Customer) -> None:
    for told in ("9999999999", "9999999999", "-9999999999"):
        used(engine, customer, told)
    assert engine.call("compare_provider_costs") == 1


def test_the_admin_is_shown_the_last_day(engine: Engine, customer: Customer) -> None:
    assert engine.call("read_service_health")[0]["cost_compared"] is None
    used(engine, customer, "0.3")
    engine.call("compare_provider_costs")
    shown = engine.call("read_service_health")[0]["cost_compared"]
    assert (shown["requests"], shown["cost_usd"], shown["provider_cost_usd"]) == (1, "0.25", "0.3")
