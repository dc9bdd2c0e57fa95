"""Cost is what the provider takes, charge what the customer pays; each exact, each rounded once, up.

Every expected figure is worked out here by hand, in Decimal, from the contract's words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.database.engine import PROVIDER, usd

if TYPE_CHECKING:
    from decimal import Decimal

    from tests.database.engine import Customer, Engine

FULL = {
    "input": "3",
    "cached_input": "0.3",
    "cache_write": "3.75",
    "audio_input": "10",
    "image_input": "5",
    "output": "15",
    "audio_output": "20",
    "image_output": "40",
}


def charged(engine: Engine, prices: dict[str, str], usage: dict[str, int]) -> tuple[Decimal, Decimal]:
    """(cost, charge) of one call of a model with these prices."""
    customer = engine.customer()
    name = f"priced-{customer.id}"
    engine.model(name, prices)
    engine.service([name])
    admission = engine.admitted(
        customer.key_hash, p_models=[name], p_input_tokens_bound=None, p_media_output=True
    )
    told = engine.settle(admission, usage=usage)
    engine.assert_books_agree()
    assert usd(told["uncollected_usd"]) == 0
    assert engine.account(customer.id) == (10 - usd(told["charge_usd"]), 0)
    return usd(told["cost_usd"]), usd(told["charge_usd"])


@pytest.mark.parametrize(
    ("prices", "usage", "cost", "charge"),
    [
        # 10 x 2.5 + 7 x 10 = 95 millionths
        ({"input": "2.5", "output": "10"}, {"input": 10, "output": 7}, "0.000095", "0.00009975"),
        # 10 x 2.5 + 3 x 1.25 + 7 x 10 = 98.75 millionths; x 1.05 = 103.6875
        (
            {"input": "2.5", "cached_input": "1.25", "output": "10"},
            {"input": 10, "cached_input": 3, "output": 7},
            "0.00009875",
            "0.0001036875",
        ),
        # each class by itself, at its own price
        (FULL, {"input": 1000}, "0.003", "0.00315"),
        (FULL, {"cached_input": 1000}, "0.0003", "0.000315"),
        (FULL, {"cache_write": 1000}, "0.00375", "0.0039375"),
        # what was written for an hour is a part of what was written: 600 x 3.75 + 400 x 6
        (
            {**FULL, "cache_write_1h": "6"},
            {"cache_write": 1000, "cache_write_1h": 400},
            "0.00465",
            "0.0048825",
        ),
        # ... which it can't exceed, and without a price of its own it costs what the rest costs
        ({**FULL, "cache_write_1h": "6"}, {"cache_write": 10, "cache_write_1h": 400}, "0.00006", "0.000063"),
        (FULL, {"cache_write": 1000, "cache_write_1h": 400}, "0.00375", "0.0039375"),
        ({"input": "3", "output": "15"}, {"cache_write": 10, "cache_write_1h": 5}, "0.00003", "0.0000315"),
        (FULL, {"audio_input": 1000}, "0.01", "0.0105"),
        (FULL, {"image_input": 1000}, "0.005", "0.00525"),
        (FULL, {"output": 1000}, "0.015", "0.01575"),
        (FULL, {"audio_output": 1000}, "0.02", "0.021"),
        (FULL, {"image_output": 1000}, "0.04", "0.042"),
        # all at once: 1x3 + 2x0.3 + 3x3.75 + 4x10 + 5x5 + 6x15 + 7x20 + 8x40 = 629.85 millionths; x 1.05
        # = 661.3425
        (
            FULL,
            {
                "input": 1,
                "cached_input": 2,
                "cache_write": 3,
                "audio_input": 4,
                "image_input": 5,
                "output": 6,
                "audio_output": 7,
                "image_output": 8,
            },
            "0.00062985",
            "0.0006613425",
        ),
        # a class without a price of its own costs what its base class costs: absent is not zero
        (
            {"input": "3", "output": "15"},
            {"cached_input": 1, "cache_write": 1, "audio_input": 1, "image_input": 1},
            "0.000012",
            "0.0000126",
        ),
        ({"input": "3", "output": "15"}, {"audio_output": 1, "image_output": 1}, "0.00003", "0.0000315"),
        # a price of zero is zero, and no absent one
        (
            {"input": "3", "cached_input": "0", "output": "15"},
            {"cached_input": 1_000, "output": 1},
            "0.000015",
            "0.00001575",
        ),
        ({"input": "0", "output": "0"}, {"input": 5, "output": 5}, "0", "0"),
        # reasoning is inside the output: told, never charged beside it
        ({"input": "3", "output": "15"}, {"output": 10, "reasoning": 8}, "0.00015", "0.0001575"),
        # what is no token: the request and its images
        (
            {"input": "1", "output": "2", "per_request": "0.005"},
            {"input": 1, "output": 1},
            "0.005003",
            "0.00525315",
        ),
        (
            {"input": "1", "output": "2", "per_image": "0.04"},
            {"input": 1, "images": 1},
            "0.040001",
            "0.04200105",
        ),
        # nothing used costs nothing but the request
        ({"input": "1", "output": "2", "per_request": "0.005"}, {}, "0.005", "0.00525"),
    ],
)
def test_charge_is_the_cost_of_each_class_with_the_commission(
    shared_engine: Engine,
    prices: dict[str, str],
    usage: dict[str, int],
    cost: str,
    charge: str,
) -> None:
    assert charged(shared_engine, prices, usage) == (usd(cost), usd(charge))


@pytest.mark.parametrize(
    ("prices", "usage", "cost", "charge"),
    [
        # 1 x 0.0001 millionths = 1e-10 exactly: the cost is no more; the charge 1.05e-10 goes up to
        # 2e-10 (half-up: 1e-10)
        ({"input": "0.0001", "output": "0"}, {"input": 1}, "0.0000000001", "0.0000000002"),
        # 1e-16 goes up to the least amount that there is, twice by itself, never compounded
        ({"input": "0.0000000001", "output": "0"}, {"input": 1}, "0.0000000001", "0.0000000001"),
        # 0.00012 millionths = 1.2e-10 → cost 2e-10; charge 1.26e-10 → 2e-10, though 2e-10 x 1.05 would
        # give 3e-10
        ({"input": "0.00012", "output": "0"}, {"input": 1}, "0.0000000002", "0.0000000002"),
        # three classes of 0.4e-10 each are 1.2e-10, not three times 1e-10
        (
            {"input": "0.00004", "cached_input": "0.00004", "output": "0.00004"},
            {"input": 1, "cached_input": 1, "output": 1},
            "0.0000000002",
            "0.0000000002",
        ),
        # an exact tenth decimal is left as it is: 20 x 0.0001 = 20e-10; x 1.05 = 21e-10
        ({"input": "0.0001", "output": "0"}, {"input": 20}, "0.000000002", "0.0000000021"),
    ],
)
def test_cost_and_charge_are_each_rounded_once_and_up_at_the_tenth_decimal(
    shared_engine: Engine,
    prices: dict[str, str],
    usage: dict[str, int],
    cost: str,
    charge: str,
) -> None:
    assert charged(shared_engine, prices, usage) == (usd(cost), usd(charge))


@pytest.mark.parametrize(
    ("flat", "usage", "cost", "charge"),
    [
        # the default: 1 token = 1 credit = 0.00002 USD, of any class
        ("0.02", {"input": 1}, "0.000003", "0.00002"),
        ("0.02", {"input": 100, "cached_input": 20, "output": 30}, "0.000756", "0.003"),
        # reasoning is inside the output
        ("0.02", {"output": 10, "reasoning": 9}, "0.00015", "0.0002"),
        # 3 tokens at 0.0000001 per 1,000 are 3e-10; one rounding, up
        ("0.0000001", {"input": 3}, "0.000009", "0.0000000003"),
        ("0.00000015", {"input": 1}, "0.000003", "0.0000000002"),
        ("0", {"input": 10, "output": 10}, "0.00018", "0"),
    ],
)
def test_flat_mode_charges_tokens_of_every_class_alike(
    shared_engine: Engine, flat: str, usage: dict[str, int], cost: str, charge: str
) -> None:
    shared_engine.settings(billing_mode="flat", flat_usd_per_1k_tokens=flat)
    assert charged(shared_engine, FULL, usage) == (usd(cost), usd(charge))


def test_flat_mode_marks_up_what_is_not_a_token(shared_engine: Engine) -> None:
    shared_engine.settings(billing_mode="flat")
    prices = {"input": "3", "output": "15", "per_request": "0.01", "per_image": "0.04"}
    # cost 10 x 3 millionths + 0.01 + 0.04; charge 10 x 0.00002 + 0.05 x 1.05
    assert charged(shared_engine, prices, {"input": 10, "images": 1}) == (usd("0.05003"), usd("0.0527"))


@pytest.mark.parametrize(
    ("percent", "charge"),
    [("0", "0.000095"), ("5", "0.00009975"), ("12.345678", "0.0001067284"), ("100", "0.00019")],
)
def test_commission_is_the_settings_percentage(shared_engine: Engine, percent: str, charge: str) -> None:
    # 95 millionths x 1.12345678 = 106.7283941 millionths, up
    shared_engine.settings(commission_percent=percent)
    assert charged(shared_engine, {"input": "2.5", "output": "10"}, {"input": 10, "output": 7}) == (
        usd("0.000095"),
        usd(charge),
    )


def test_settings_changed_in_mid_flight_do_not_touch_admitted_requests(
    engine: Engine, customer: Customer
) -> None:
    admission = engine.admitted(customer.key_hash)
    engine.settings(commission_percent="50", billing_mode="flat", flat_usd_per_1k_tokens="1")
    # (100 x 2 + 50 x 8) millionths = 0.0006; x 1.05
    assert engine.settle(admission)["charge_usd"] == "0.00063"
    later = engine.admitted(customer.key_hash)
    assert usd(engine.settle(later)["charge_usd"]) == usd("0.15")


def test_a_price_changed_in_mid_flight_does_not_touch_admitted_requests(
    engine: Engine, customer: Customer
) -> None:
    admission = engine.admitted(customer.key_hash)
    engine.call(
        "create_price", p_model="echo", p_provider=PROVIDER, p_prices={"input": "200", "output": "800"}
    )
    later = engine.admitted(customer.key_hash)
    assert engine.settle(admission)["charge_usd"] == "0.00063"
    assert engine.settle(later)["charge_usd"] == "0.063"


def test_a_price_is_in_force_from_its_date_on(engine: Engine, customer: Customer) -> None:
    ahead = engine.value("select clock_timestamp() + interval '1 hour'")
    engine.call(
        "create_price",
        p_model="echo",
        p_provider=PROVIDER,
        p_prices={"input": "20", "output": "80"},
        p_effective_from=ahead,
    )
    assert engine.settle(engine.admitted(customer.key_hash))["charge_usd"] == "0.00063"
    with engine.by_engine():  # an hour passes
        engine.run("update gateway.prices set effective_from = effective_from - interval '2 hours'")
    assert engine.settle(engine.admitted(customer.key_hash))["charge_usd"] == "0.0063"


def test_a_price_cannot_be_set_for_the_past(engine: Engine) -> None:
    told = engine.call(
        "create_price",
        p_model="echo",
        p_provider=PROVIDER,
        p_prices={"input": "1", "output": "1"},
        p_effective_from=engine.value("select clock_timestamp() - interval '1 minute'"),
    )
    assert told == {"error": "in_the_past"}


def test_a_service_with_a_price_of_its_own_goes_by_that(engine: Engine, customer: Customer) -> None:
    service = engine.service(["echo"], priority=1)
    engine.call(
        "create_price",
        p_model="echo",
        p_provider=PROVIDER,
        p_prices={"input": "20", "output": "80"},
        p_service_id=service,
    )
    # a later general price does not replace it
    engine.call("create_price", p_model="echo", p_provider=PROVIDER, p_prices={"input": "4", "output": "16"})
    admission = engine.admitted(customer.key_hash)
    first, second = admission["candidates"]
    assert first["service_id"] == service
    assert engine.settle(admission, route_id=first["route_id"])["charge_usd"] == "0.0063"
    admission = engine.admitted(customer.key_hash)
    assert engine.settle(admission, route_id=second["route_id"])["charge_usd"] == "0.00126"


def test_the_route_that_answered_sets_the_price(engine: Engine, customer: Customer) -> None:
    engine.model("dear", {"input": "10", "output": "40"})
    engine.service(["dear"])
    admission = engine.admitted(customer.key_hash, p_models=["echo", "dear"])
    told = engine.settle(admission, route_id=admission["candidates"][1]["route_id"])
    assert told["charge_usd"] == "0.00315"
    assert engine.request(admission["request_id"])["model_id"] == engine.value(
        "select id from gateway.models where name = 'dear'"
    )


def test_a_model_without_a_price_is_refused_not_free(engine: Engine, customer: Customer) -> None:
    engine.model("unpriced", {})
    engine.service(["unpriced"])
    assert engine.refused(customer.key_hash, p_models=["unpriced"])["refusal"] == "model_not_priced"


@pytest.mark.parametrize("outcome", ["succeeded", "cancelled", "cut"])
def test_what_was_streamed_is_charged_however_it_ended(
    engine: Engine, customer: Customer, outcome: str
) -> None:
    admission = engine.admitted(customer.key_hash, p_streamed=True)
    assert engine.settle(admission, outcome=outcome)["charge_usd"] == "0.00063"


def test_a_failed_request_is_not_charged(engine: Engine, customer: Customer) -> None:
    before = engine.dump()
    admission = engine.admitted(customer.key_hash)
    told = engine.fail(admission, failed_routes=[{"service_id": 1, "status": 502}])
    assert (told["charge_usd"], told["tokens_charged"]) == ("0", 0)
    assert engine.ledger(customer.id) == [("credit", usd(10))]
    assert engine.dump()["accounts"] == before["accounts"]
    assert engine.dump()["ledger_entries"] == before["ledger_entries"]


def test_a_settlement_tells_what_was_charged(engine: Engine, customer: Customer) -> None:
    told = engine.settle(engine.admitted(customer.key_hash))
    assert told == {
        "status": "settled",
        "already": False,
        "request_id": told["request_id"],
        "billing_mode": "markup",
        "tokens_charged": 150,
        "cost_usd": "0.0006",
        "charge_usd": "0.00063",
        "uncollected_usd": "0",
        "credits_charged": usd("31.5"),
        "balance_after_usd": "9.99937",
        "credits_after": usd("499968.5"),
    }


def test_usage_beyond_the_bound_is_collected_as_far_as_money_goes(engine: Engine) -> None:
    customer = engine.customer("0.01")
    admission = engine.admitted(customer.key_hash)  # holds 0.0063
    # 1,000 x 2 + 10,000 x 8 = 0.082 USD; x 1.05 = 0.0861, of which 0.01 is there
    told = engine.settle(admission, usage={"input": 1000, "output": 10_000})
    assert (told["charge_usd"], told["uncollected_usd"], told["balance_after_usd"]) == (
        "0.0861",
        "0.0761",
        "0",
    )
    assert engine.ledger(customer.id) == [("credit", usd("0.01")), ("charge", usd("-0.01"))]
    engine.assert_books_agree()


def test_usage_beyond_the_bound_leaves_the_holds_of_others_alone(engine: Engine) -> None:
    customer = engine.customer("0.01")
    first = engine.admitted(customer.key_hash)  # holds 0.0063
    second = engine.admitted(customer.key_hash, p_max_output_tokens=100)  # 0.00294
    told = engine.settle(first, usage={"input": 1000, "output": 10_000})
    assert told["uncollected_usd"] == str(usd("0.0861") - (usd("0.01") - usd("0.00294")))
    assert engine.account(customer.id) == (usd("0.00294"), usd("0.00294"))
    assert engine.settle(second, usage={"input": 1000, "output": 100})["uncollected_usd"] == "0"
    assert engine.account(customer.id) == (0, 0)
    engine.assert_books_agree()


@pytest.mark.parametrize(
    "usage",
    [
        {"input": 2**63 - 1, "output": 2**63 - 1},
        {"input": 10**30},
        {"input": -5, "output": 50},
        {"output": 10**15, "images": 10**15, "reasoning": 10**19},
    ],
)
def test_settlement_never_fails_for_what_a_provider_claims(
    engine: Engine, customer: Customer, usage: dict[str, int]
) -> None:
    admission = engine.admitted(customer.key_hash)
    told = engine.settle(admission, usage=usage, provider_cost_usd="1e400")
    assert told["status"] == "settled"
    balance, held = engine.account(customer.id)
    assert balance >= 0
    assert held == 0
    engine.assert_books_agree()
    second = engine.admitted(engine.customer().key_hash)
    assert engine.settle(second, usage=usage, provider_cost_usd="NaN")["status"] == "settled"
    engine.assert_books_agree()


def test_a_route_that_the_request_was_not_admitted_to_is_an_error_and_changes_nothing(
    engine: Engine, customer: Customer
) -> None:
    admission = engine.admitted(customer.key_hash)
    before = engine.dump()
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        engine.settle(admission, route_id=999_999)
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        engine.settle(admission, route_id=None)
    assert engine.dump() == before
    assert engine.settle(admission)["charge_usd"] == "0.00063"


def test_rollups_add_up_to_the_requests(engine: Engine, customer: Customer) -> None:
    for usage in (
        {"input": 10, "output": 5, "reasoning": 3},
        {"input": 1, "cached_input": 2, "cache_write": 3},
    ):
        engine.settle(engine.admitted(customer.key_hash), usage=usage)
    engine.fail(engine.admitted(customer.key_hash))
    assert engine.query(
        "select sum(requests)::int, sum(errors)::int, sum(input_tokens)::int, sum(cached_input_tokens)::int,"
        " sum(cache_write_tokens)::int, sum(output_tokens)::int, sum(reasoning_tokens)::int,"
        " sum(total_tokens)::int, sum(charge_usd) from gateway.usage_rollups"
    ) == [
        # 10x2 + 5x8 = 60 and 6x2 = 12 millionths, x 1.05 each
        (3, 1, 11, 2, 3, 5, 3, 21, usd("0.0000756"))
    ]
