"""The cap is hard: the whole upper bound of a call is held before it begins, or the call is refused.

`echo` costs 2 USD per million tokens in and 8 out, and the commission is 5 %: 2.1 and 8.4 millionths a token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.database.engine import usd

if TYPE_CHECKING:
    from tests.database.engine import Customer, Engine


def affordable(balance: str, input_tokens: int = 1000, choices: int = 1) -> int:
    """Output tokens of each choice that a balance carries beside its input."""
    return int((usd(balance) - input_tokens * usd("0.0000021")) / (usd("0.0000084") * choices))


@pytest.mark.parametrize(
    ("parameters", "hold"),
    [
        # 1,000 x 2.1 + 500 x 8.4 = 6,300 millionths
        ({}, "0.0063"),
        # each choice may be as long
        ({"p_choices": 3}, "0.0147"),
        ({"p_input_tokens_bound": 0, "p_max_output_tokens": 1}, "0.0000084"),
        ({"p_input_tokens_bound": 1, "p_max_output_tokens": 0}, "0.0000021"),
        # no input is longer than the model's context, and an unbounded one may be as long
        ({"p_input_tokens_bound": 10**9}, "0.273"),
        ({"p_input_tokens_bound": None}, "0.273"),
    ],
)
def test_hold_is_the_upper_bound_to_the_last_digit(
    shared_engine: Engine, parameters: dict[str, Any], hold: str
) -> None:
    customer = shared_engine.customer()
    admission = shared_engine.admitted(customer.key_hash, **parameters)
    assert admission["hold_usd"] == hold
    assert shared_engine.account(customer.id) == (10, usd(hold))
    shared_engine.assert_books_agree()
    shared_engine.settle(admission)
    assert shared_engine.account(customer.id)[1] == 0


@pytest.mark.parametrize(
    ("prices", "parameters", "hold"),
    [
        # any input token may turn out to be the dearest class of text
        ({"input": "2", "cached_input": "0.2", "cache_write": "2.5", "output": "8"}, {}, "0.006825"),
        ({"input": "2", "cached_input": "3", "output": "8"}, {}, "0.00735"),
        # an hour of a cache counts where it may be asked for
        ({"input": "2", "cache_write_1h": "4", "output": "8"}, {}, "0.0063"),
        ({"input": "2", "cache_write_1h": "4", "output": "8"}, {"p_cache_write_1h": True}, "0.0084"),
        # media classes count where there may be media
        ({"input": "2", "audio_input": "40", "output": "8", "audio_output": "80"}, {}, "0.0063"),
        (
            {"input": "2", "image_input": "40", "output": "8"},
            {"p_input_tokens_bound": None, "p_max_output_tokens": 0},
            "5.376",
        ),
        (
            {"input": "2", "output": "8", "audio_output": "80"},
            {"p_media_output": True, "p_input_tokens_bound": 0},
            "0.042",
        ),
        # what is fixed is held too: 0.01 x 1.05 beside the tokens
        ({"input": "2", "output": "8", "per_request": "0.01"}, {}, "0.0168"),
        # and an image for each choice, where images may come: (0.0063 + 0.0042) + 2 x 0.04 x 1.05
        (
            {"input": "2", "output": "8", "per_image": "0.04"},
            {"p_media_output": True, "p_choices": 2},
            "0.0945",
        ),
        # rounded up once: 3 x 0.0001 millionths x 1.05 = 3.15e-10
        (
            {"input": "0.0001", "output": "0"},
            {"p_input_tokens_bound": 3, "p_max_output_tokens": 5},
            "0.0000000004",
        ),
        ({"input": "0", "output": "0"}, {}, "0"),
    ],
)
def test_hold_counts_the_dearest_class_that_can_occur(
    shared_engine: Engine, prices: dict[str, str], parameters: dict[str, Any], hold: str
) -> None:
    customer = shared_engine.customer()
    name = f"dearest-{customer.id}"
    shared_engine.model(name, prices)
    shared_engine.service([name])
    assert shared_engine.admitted(customer.key_hash, p_models=[name], **parameters)["hold_usd"] == hold


def test_an_hour_of_a_cache_needs_a_price(shared_engine: Engine) -> None:
    customer = shared_engine.customer()
    without, priced = f"without-{customer.id}", f"priced-{customer.id}"
    shared_engine.model(without, {"input": "2", "cache_write": "2.5", "output": "8"})
    shared_engine.model(priced, {"input": "2", "cache_write_1h": "4", "output": "8"})
    shared_engine.service([without, priced])
    asked: dict[str, Any] = {"p_cache_write_1h": True}
    told = shared_engine.refused(customer.key_hash, p_models=[without], **asked)
    assert (told["refusal"], told["model"]) == ("cache_write_1h_not_priced", without)
    # A route that has one stands in.
    admission = shared_engine.admitted(customer.key_hash, p_models=[without, priced], **asked)
    assert [candidate["model"] for candidate in admission["candidates"]] == [priced]
    told = shared_engine.settle(admission, usage={"cache_write": 1000, "cache_write_1h": 1000})
    assert told["cost_usd"] == "0.004"
    request = shared_engine.call("read_request", p_request_id=admission["request_id"])
    assert request["tokens"] == {"cache_write": 1000, "cache_write_1h": 1000}
    shared_engine.assert_books_agree()


def test_flat_hold_counts_tokens_alike(shared_engine: Engine) -> None:
    shared_engine.settings(billing_mode="flat")
    customer = shared_engine.customer()
    assert shared_engine.admitted(customer.key_hash)["hold_usd"] == "0.03"


def test_hold_is_that_of_the_dearest_candidate(engine: Engine, customer: Customer) -> None:
    engine.model("dear", {"input": "10", "output": "40"})
    engine.service(["dear"])
    admission = engine.admitted(customer.key_hash, p_models=["echo", "dear"])
    assert [candidate["model"] for candidate in admission["candidates"]] == ["echo", "dear"]
    assert admission["hold_usd"] == "0.0315"
    # and what the cheap one leaves of it is free again
    engine.settle(admission)
    assert engine.account(customer.id) == (10 - usd("0.00063"), 0)


def test_a_dear_fallback_is_dropped_where_it_cannot_be_paid(engine: Engine) -> None:
    engine.model("dear", {"input": "10", "output": "40"})
    engine.service(["dear"])
    customer = engine.customer("0.01")
    admission = engine.admitted(customer.key_hash, p_models=["echo", "dear"])
    assert [candidate["model"] for candidate in admission["candidates"]] == ["echo"]
    assert admission["hold_usd"] == "0.0063"


def test_a_cheap_fallback_stands_in_for_a_model_that_cannot_be_paid(engine: Engine) -> None:
    engine.model("dear", {"input": "10", "output": "40"})
    engine.service(["dear"])
    customer = engine.customer("0.01")
    admission = engine.admitted(customer.key_hash, p_models=["dear", "echo"])
    assert [candidate["model"] for candidate in admission["candidates"]] == ["echo"]


@pytest.mark.parametrize(("choices", "most"), [(1, 2130), (2, 1065), (7, 304)])
def test_a_named_bound_beyond_the_balance_is_refused_with_what_it_could(
    shared_engine: Engine, choices: int, most: int
) -> None:
    # (0.02 - 0.0021) / 0.0000084 = 2,130.9…
    customer = shared_engine.customer("0.02")
    assert affordable("0.02", choices=choices) == most
    told = shared_engine.refused(customer.key_hash, p_choices=choices, p_max_output_tokens=most + 1)
    assert told["refusal"] == "insufficient_credits"
    assert told["affordable_output_tokens"] == most
    assert told["available_usd"] == "0.02"
    assert usd(told["needed_usd"]) == usd("0.0021") + (most + 1) * choices * usd("0.0000084")
    # what it said is true, to the token
    shared_engine.admitted(customer.key_hash, p_choices=choices, p_max_output_tokens=most)


def test_input_alone_beyond_the_balance_affords_no_output(shared_engine: Engine) -> None:
    told = shared_engine.refused(shared_engine.customer("0.002").key_hash)
    assert (told["refusal"], told["affordable_output_tokens"]) == ("insufficient_credits", 0)


def test_what_is_held_cannot_be_held_again(shared_engine: Engine) -> None:
    customer = shared_engine.customer("0.0126")
    first = shared_engine.admitted(customer.key_hash)
    shared_engine.admitted(customer.key_hash)
    told = shared_engine.refused(customer.key_hash)
    assert (told["refusal"], told["available_usd"]) == ("insufficient_credits", "0")
    shared_engine.fail(first)
    shared_engine.admitted(customer.key_hash)


@pytest.mark.parametrize(
    ("model_most", "default", "balance", "expected"),
    [
        (4096, 8192, "10", 4096),
        (None, 8192, "10", 8192),
        (200_000, 8192, "10", 8192),
        (4096, 100, "10", 100),
        (4096, 8192, "0.02", affordable("0.02")),
        # a model that answers with less than 16 tokens may
        (4, 8192, "10", 4),
    ],
)
def test_an_unnamed_bound_is_the_least_of_what_applies(
    shared_engine: Engine, model_most: int | None, default: int, balance: str, expected: int
) -> None:
    customer = shared_engine.customer(balance)
    name = f"unnamed-{customer.id}"
    shared_engine.model(name, max_output_tokens=model_most)
    shared_engine.service([name])
    shared_engine.settings(default_max_output_tokens=default)
    admission = shared_engine.admitted(customer.key_hash, p_models=[name], p_max_output_tokens=None)
    assert admission["max_output_tokens"] == expected
    assert admission["candidates"][0]["max_output_tokens"] == expected
    assert usd(admission["hold_usd"]) == usd("0.0021") + expected * usd("0.0000084")


def test_an_unnamed_bound_is_divided_among_the_choices(shared_engine: Engine) -> None:
    customer = shared_engine.customer("0.02")
    admission = shared_engine.admitted(customer.key_hash, p_max_output_tokens=None, p_choices=3)
    assert admission["max_output_tokens"] == affordable("0.02", choices=3) == 710


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"tokens_per_day": 1500}, 500),
        ({"tokens_per_day": 100_000, "tokens_per_hour": 1100}, 100),
        # 0.01 USD: (0.01 - 0.0021) / 0.0000084
        ({"spend_usd_per_month": "0.01"}, 940),
    ],
)
def test_an_unnamed_bound_fits_into_the_limits(
    shared_engine: Engine, limits: dict[str, Any], expected: int
) -> None:
    customer = shared_engine.customer()
    shared_engine.call("set_limits", p_customer_id=customer.id, p_rate_limits=limits)
    admission = shared_engine.admitted(customer.key_hash, p_max_output_tokens=None)
    assert admission["max_output_tokens"] == expected


# 1,000 tokens in and 16 out are 0.0022344 USD.
def test_a_balance_for_less_than_sixteen_tokens_is_refused(shared_engine: Engine) -> None:
    told = shared_engine.refused(shared_engine.customer("0.0022343").key_hash, p_max_output_tokens=None)
    assert (told["refusal"], told["needed_usd"]) == ("insufficient_credits", "0.0022344")
    enough = shared_engine.customer("0.0022344")
    assert shared_engine.admitted(enough.key_hash, p_max_output_tokens=None)["max_output_tokens"] == 16


@pytest.mark.parametrize(
    ("limits", "metric"),
    [({"tokens_per_day": 1015}, "tokens"), ({"spend_usd_per_day": "0.0022343"}, "spend_usd")],
)
def test_a_limit_that_leaves_less_than_sixteen_tokens_is_refused(
    shared_engine: Engine, limits: dict[str, Any], metric: str
) -> None:
    customer = shared_engine.customer()
    shared_engine.call("set_limits", p_key_id=customer.key_id, p_rate_limits=limits)
    told = shared_engine.refused(customer.key_hash, p_max_output_tokens=None)
    assert (told["refusal"], told["metric"], told["never"]) == ("rate_limit_exceeded", metric, True)


def test_a_named_bound_may_be_less_than_sixteen(shared_engine: Engine) -> None:
    customer = shared_engine.customer()
    assert shared_engine.admitted(customer.key_hash, p_max_output_tokens=1)["max_output_tokens"] == 1


def test_input_that_nothing_bounds_is_refused(shared_engine: Engine) -> None:
    customer = shared_engine.customer()
    name = f"unbounded-{customer.id}"
    shared_engine.model(name, context_length=None)
    shared_engine.service([name])
    told = shared_engine.refused(customer.key_hash, p_models=[name], p_input_tokens_bound=None)
    assert (told["refusal"], told["model"]) == ("input_unbounded", name)
    shared_engine.admitted(customer.key_hash, p_models=[name])


def test_a_bounded_fallback_serves_input_that_its_predecessor_cannot_bound(shared_engine: Engine) -> None:
    customer = shared_engine.customer()
    name = f"unbounded-first-{customer.id}"
    shared_engine.model(name, context_length=None)
    shared_engine.service([name])
    admission = shared_engine.admitted(customer.key_hash, p_models=[name, "echo"], p_input_tokens_bound=None)
    assert [candidate["model"] for candidate in admission["candidates"]] == ["echo"]
    # and where that one can't be paid, that is the reason
    poor = shared_engine.customer("0.01")
    told = shared_engine.refused(poor.key_hash, p_models=[name, "echo"], p_input_tokens_bound=None)
    assert told["refusal"] == "insufficient_credits"


@pytest.mark.parametrize(
    "parameters",
    [
        {"p_choices": 0},
        {"p_choices": -1},
        {"p_choices": None},
        {"p_max_output_tokens": -1},
        {"p_input_tokens_bound": -1},
        {"p_max_output_tokens": -100, "p_choices": -1},
        {"p_lease_seconds": None},
    ],
)
def test_a_bound_that_is_none_is_an_error_and_holds_nothing(
    shared_engine: Engine, parameters: dict[str, Any]
) -> None:
    customer = shared_engine.customer()
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        shared_engine.admit(customer.key_hash, **parameters)
    assert shared_engine.account(customer.id) == (10, 0)


@pytest.mark.parametrize(
    "parameters",
    [
        {"p_max_output_tokens": 2**63 - 1},
        {"p_max_output_tokens": 2**62, "p_choices": 2**31 - 1},
    ],
)
def test_a_bound_beyond_all_measure_is_refused_for_money(
    shared_engine: Engine, parameters: dict[str, Any]
) -> None:
    customer = shared_engine.customer()
    assert shared_engine.refused(customer.key_hash, **parameters)["refusal"] == "insufficient_credits"


def test_next_to_free_tokens_do_not_overflow(shared_engine: Engine) -> None:
    customer = shared_engine.customer("900000000")
    name = f"cheap-{customer.id}"
    shared_engine.model(name, {"input": "0", "output": "0.0000000001"})
    shared_engine.service([name])
    admission = shared_engine.admitted(customer.key_hash, p_models=[name], p_max_output_tokens=None)
    assert admission["max_output_tokens"] == 4096
