"""Prices by the length of the prompt: one above a threshold costs the tier's rates, from its first token on.

Every expected figure is worked out here by hand. The tests of the boundary are small numbers, so that a token
more or less can be seen in the head: TIERED costs 2 and 8 USD per million up to 1,000 input tokens, 4 and 12
up to 2,000, and 5 and 20 beyond.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from tests.database.engine import PROVIDER, usd
from tests.database.model import INPUT_CLASSES, OUTPUT_CLASSES, Terms, read_prices, round_up

if TYPE_CHECKING:
    from tests.database.engine import Customer, Engine

JSONObject = dict[str, Any]

LONG = {"above_input_tokens": 1000, "input": "4", "cached_input": "0.4", "output": "12"}
LONGER = {"above_input_tokens": 2000, "input": "5", "cached_input": "0.5", "output": "20"}
TIERED: JSONObject = {"input": "2", "cached_input": "0.2", "output": "8", "tiers": [LONG, LONGER]}


@pytest.fixture
def tiered(engine: Engine) -> Customer:
    """A customer with 10 USD, and the model `tiered`. No commission: what is charged is what it costs."""
    engine.model("tiered", TIERED)
    engine.service(["tiered"])
    engine.settings(commission_percent="0")
    return engine.customer()


def admitted(engine: Engine, customer: Customer, bound: int | None, **parameters: Any) -> JSONObject:
    return engine.admitted(
        customer.key_hash,
        p_models=["tiered"],
        p_input_tokens_bound=bound,
        **{"p_max_output_tokens": 10} | parameters,
    )


# What is charged


@pytest.mark.parametrize(
    ("usage", "charge"),
    [
        ({"input": 999, "output": 1}, "0.002006"),  # 999 x 2 + 1 x 8
        ({"input": 1000, "output": 1}, "0.002008"),
        # one token more, and every one of them costs the tier's rate: 1,001 x 4 + 12
        ({"input": 1001, "output": 1}, "0.004016"),
        ({"input": 2000, "output": 1}, "0.008012"),
        ({"input": 2001, "output": 1}, "0.010025"),
        # what was cached counts for the length, at its own rate: 1 x 4 + 1,000 x 0.4
        ({"input": 1, "cached_input": 1000}, "0.000404"),
        ({"input": 0, "cached_input": 1000}, "0.0002"),
        ({"cached_input": 2001}, "0.0010005"),
        # so do what was written, and media: at the price of their base class here
        ({"input": 500, "cache_write": 501}, "0.004004"),
        ({"input": 500, "cache_write": 501, "cache_write_1h": 501}, "0.004004"),
        ({"input": 500, "audio_input": 300, "image_input": 201}, "0.004004"),
        ({"input": 500, "audio_input": 300, "image_input": 200}, "0.002"),
        # a written one that is also told as one of an hour is one token
        ({"input": 500, "cache_write": 500, "cache_write_1h": 500}, "0.002"),
        # output does not count: long answers to short prompts are cheap
        ({"input": 1000, "output": 5000, "reasoning": 4000}, "0.042"),
        ({"output": 5000}, "0.04"),
        ({"input": 1001, "output": 5000}, "0.064004"),
    ],
)
def test_the_whole_request_costs_the_rates_of_the_tier_that_its_input_is_above(
    engine: Engine, tiered: Customer, usage: dict[str, int], charge: str
) -> None:
    told = engine.settle(admitted(engine, tiered, None), usage=usage)
    assert (told["cost_usd"], told["charge_usd"], told["uncollected_usd"]) == (charge, charge, "0")
    engine.assert_books_agree()


def test_commission_is_upon_the_tier_and_what_is_no_token_stays_at_the_base(engine: Engine) -> None:
    engine.model("fees", {**TIERED, "per_request": "0.01", "per_image": "0.04"})
    engine.service(["fees"])
    admission = engine.admitted(
        engine.customer().key_hash, p_models=["fees"], p_input_tokens_bound=None, p_media_output=True
    )
    # (1,001 x 4 + 10 x 12) millionths + 0.01 + 2 x 0.04 = 0.094124; x 1.05
    told = engine.settle(admission, usage={"input": 1001, "output": 10, "images": 2})
    assert (told["cost_usd"], told["charge_usd"]) == ("0.094124", "0.0988302")


def test_at_a_flat_price_the_length_is_the_operators_affair(engine: Engine, tiered: Customer) -> None:
    engine.settings(billing_mode="flat")
    admission = admitted(engine, tiered, 1001)
    assert admission["hold_usd"] == "0.02022"  # 1,011 tokens at 0.00002
    told = engine.settle(admission, usage={"input": 1001, "output": 10})
    assert (told["cost_usd"], told["charge_usd"]) == ("0.004124", "0.02022")


def test_a_tier_may_be_cheaper_and_is_charged_so(engine: Engine) -> None:
    engine.model(
        "cheaper",
        {"input": "2", "output": "8", "tiers": [{"above_input_tokens": 1000, "input": "1", "output": "9"}]},
    )
    engine.service(["cheaper"])
    engine.settings(commission_percent="0")
    admission = engine.admitted(engine.customer().key_hash, p_models=["cheaper"], p_input_tokens_bound=1001)
    # 1,000 tokens at 2 cost more than 1,001 at 1: the dearest of each that the bound can reach
    assert admission["hold_usd"] == "0.006502"  # 1,001 x 2 + 500 x 9
    assert engine.settle(admission, usage={"input": 1001, "output": 500})["charge_usd"] == "0.005501"


# What is held


@pytest.mark.parametrize(
    ("bound", "hold"),
    [
        (1, "0.000082"),  # 1 x 2 + 10 x 8
        (1000, "0.00208"),  # a prompt that can't be longer is held for at the base, to the last token
        (1001, "0.004124"),  # 1,001 x 4 + 10 x 12
        (2000, "0.00812"),
        (2001, "0.010205"),  # 2,001 x 5 + 10 x 20
        (None, "0.6402"),  # the context: 128,000 x 5 + 10 x 20
    ],
)
def test_the_hold_is_at_the_dearest_rates_that_the_bound_can_reach(
    engine: Engine, tiered: Customer, bound: int | None, hold: str
) -> None:
    admission = admitted(engine, tiered, bound)
    assert admission["hold_usd"] == hold
    # what the settlement may charge for no more than the bounds: never more than the hold
    used = {"input": 128_000 if bound is None else bound, "output": 10}
    assert engine.settle(admission, usage=used)["charge_usd"] == hold


def test_a_short_context_bounds_the_tier_as_well(engine: Engine) -> None:
    engine.model("short", TIERED, context_length=1000)
    engine.service(["short"])
    engine.settings(commission_percent="0")
    admission = engine.admitted(
        engine.customer().key_hash, p_models=["short"], p_input_tokens_bound=5000, p_max_output_tokens=10
    )
    assert admission["hold_usd"] == "0.00208"


@pytest.mark.parametrize("cache_write_1h", [False, True])
def test_each_class_is_held_for_at_its_dearest_in_any_tier(engine: Engine, cache_write_1h: bool) -> None:
    base = {
        "input": "2", "cache_write": "2.5", "cache_write_1h": "4", "audio_input": "6", "image_input": "3",
        "output": "8", "audio_output": "16", "image_output": "10",
    }  # fmt: skip
    tier = {
        "above_input_tokens": 1000, "input": "3", "cache_write": "3.5", "cache_write_1h": "7",
        "audio_input": "5", "image_input": "9", "output": "11", "audio_output": "12", "image_output": "30",
    }  # fmt: skip
    engine.model("classes", {**base, "tiers": [tier]})
    engine.service(["classes"])
    engine.settings(commission_percent="0")
    customer = engine.customer()

    def hold(bound: int, **parameters: Any) -> str:
        asked = {"p_models": ["classes"], "p_input_tokens_bound": bound, "p_max_output_tokens": 10}
        told = engine.admitted(customer.key_hash, p_cache_write_1h=cache_write_1h, **asked, **parameters)
        return str(told["hold_usd"])

    # 1,000 x 2.5 (an hour's: 4) + 10 x 8; 1,001 x 3.5 (7) + 10 x 11
    assert hold(1000) == ("0.00408" if cache_write_1h else "0.00258")
    assert hold(1001) == ("0.007117" if cache_write_1h else "0.0036135")
    # media: 1,000 x 6 + 10 x 16; 1,001 x 9 + 10 x 30
    assert hold(1000, p_media_input=True, p_media_output=True) == "0.00616"
    assert hold(1001, p_media_input=True, p_media_output=True) == "0.009309"


def test_a_prompt_whose_bound_reaches_the_tier_and_whose_usage_does_not_pays_the_base(
    engine: Engine, tiered: Customer
) -> None:
    admission = admitted(engine, tiered, 4000)
    assert admission["hold_usd"] == "0.0202"
    assert engine.settle(admission, usage={"input": 1000, "output": 10})["charge_usd"] == "0.00208"
    assert engine.account(tiered.id) == (usd("9.99792"), 0)


def test_usage_above_the_bound_pays_its_tier_and_takes_no_more_than_is_free(
    engine: Engine, tiered: Customer
) -> None:
    poor = engine.customer("0.003")
    first = admitted(engine, poor, 1000, p_max_output_tokens=1)  # holds 0.002008
    second = admitted(engine, poor, 100, p_max_output_tokens=1)  # holds 0.000208
    told = engine.settle(first, usage={"input": 1001, "output": 1})  # 0.004016
    # 0.003 less what the other holds
    assert (told["charge_usd"], told["uncollected_usd"]) == ("0.004016", "0.001224")
    assert engine.account(poor.id) == (usd("0.000208"), usd("0.000208"))
    assert engine.settle(second, usage={"input": 100, "output": 1})["uncollected_usd"] == "0"
    rich = admitted(engine, tiered, 1000)
    assert engine.settle(rich, usage={"input": 2001, "output": 10})["uncollected_usd"] == "0"
    engine.assert_books_agree()


def test_what_can_be_afforded_is_told_at_the_tiers_rate(engine: Engine, tiered: Customer) -> None:
    poor = engine.customer("0.0042")
    told = engine.refused(
        poor.key_hash, p_models=["tiered"], p_input_tokens_bound=1001, p_max_output_tokens=500
    )
    # 1,001 x 4 + 500 x 12; and (0.0042 - 0.004004) / 0.000012 = 16.3
    assert (told["refusal"], told["needed_usd"], told["affordable_output_tokens"]) == (
        "insufficient_credits",
        "0.010004",
        16,
    )
    # without a bound of the client's it is cut short to that
    cut = admitted(engine, poor, 1001, p_max_output_tokens=None)
    assert (cut["max_output_tokens"], cut["hold_usd"]) == (16, "0.004196")
    assert tiered.id != poor.id


def test_a_services_spending_limit_is_on_the_tiers_cost(engine: Engine, tiered: Customer) -> None:
    service_id = engine.value(
        "select s.id from gateway.services as s join gateway.routes as r on r.service_id = s.id"
        " join gateway.offers as o on o.id = r.offer_id where o.upstream_model = 'tiered'"
    )
    engine.run(
        "insert into gateway.limits (service_id, per, spend_usd) values (%s, 'day', 0.004)", service_id
    )
    assert (
        engine.refused(tiered.key_hash, p_models=["tiered"], p_input_tokens_bound=1001)["refusal"]
        == "rate_limit_exceeded"
    )
    assert admitted(engine, tiered, 1000)["hold_usd"] == "0.00208"


# What is pinned


def test_tiers_are_pinned_at_admission(engine: Engine, tiered: Customer) -> None:
    before = admitted(engine, tiered, 1001)
    dearer = [{**LONG, "above_input_tokens": 500, "input": "400"}]
    engine.call("create_price", p_model="tiered", p_provider=PROVIDER, p_prices={**TIERED, "tiers": dearer})
    between = admitted(engine, tiered, 1001)
    engine.call("create_price", p_model="tiered", p_provider=PROVIDER, p_prices={"input": "2", "output": "8"})
    after = admitted(engine, tiered, 1001)
    usage = {"input": 1001, "output": 10}
    assert [engine.settle(each, usage=usage)["charge_usd"] for each in (before, between, after)] == [
        "0.004124",
        "0.40052",
        "0.002082",
    ]


def test_a_late_settlement_goes_by_the_pinned_tier(engine: Engine, tiered: Customer) -> None:
    admission = admitted(engine, tiered, 1001)
    engine.call("create_price", p_model="tiered", p_provider=PROVIDER, p_prices={"input": "1", "output": "1"})
    engine.lapse(admission)
    engine.call("expire_holds")
    told = engine.settle(admission, usage={"input": 1001, "output": 10})
    assert told["charge_usd"] == "0.004124"
    assert engine.ledger(tiered.id)[1:] == [("late_settlement", usd("-0.004124"))]
    again = engine.settle(admission, usage={"input": 1001, "output": 10})
    assert (again["already"], again["charge_usd"]) == (True, "0.004124")
    engine.assert_books_agree()


def test_a_hold_that_lapses_and_is_charged_is_charged_at_the_tier(engine: Engine, tiered: Customer) -> None:
    engine.settings(expired_hold_policy="charge")
    admission = admitted(engine, tiered, 1001)
    engine.lapse(admission)
    engine.call("expire_holds")
    assert engine.request(admission["request_id"])["charge"] == "0.0041240000"
    # told late after all that the prompt was a short one: what was too much comes back
    assert engine.settle(admission, usage={"input": 1000, "output": 10})["charge_usd"] == "0.00208"
    assert engine.account(tiered.id) == (usd("9.99792"), 0)
    engine.assert_books_agree()


def test_the_route_that_answers_sets_the_tiers(engine: Engine, tiered: Customer) -> None:
    service = engine.service(["tiered"], priority=1)
    own = {"input": "1", "output": "1", "tiers": [{"above_input_tokens": 5000, "input": "9", "output": "9"}]}
    engine.call("create_price", p_model="tiered", p_provider=PROVIDER, p_prices=own, p_service_id=service)
    admission = admitted(engine, tiered, 3000)
    assert admission["hold_usd"] == "0.0152"  # the other's: 3,000 x 5 + 10 x 20
    first, second = admission["candidates"]
    assert first["service_id"] == service
    usage = {"input": 3000, "output": 10}
    assert engine.settle(admission, usage=usage)["charge_usd"] == "0.00301"
    other = admitted(engine, tiered, 3000)
    assert engine.settle(other, usage=usage, route_id=second["route_id"])["charge_usd"] == "0.0152"


def test_settlement_never_fails_for_a_length_beyond_all_measure(engine: Engine, tiered: Customer) -> None:
    told = engine.settle(
        admitted(engine, tiered, 10), usage={"input": 10**30, "cached_input": -5, "audio_input": 2**63}
    )
    assert told["status"] == "settled"
    engine.assert_books_agree()


# What is kept


def _edited(**changes: Any) -> list[JSONObject]:
    tier: JSONObject = {"above_input_tokens": 1000, "input": 4, "cached_input": 0.4, "output": 12}
    tier |= changes
    return [{name: value for name, value in tier.items() if value is not ...}]


@pytest.mark.parametrize(
    "tiers",
    [
        [],
        {},
        "long",
        7,
        [7],
        [None],
        [{}],
        _edited(above_input_tokens=...),
        _edited(above_input_tokens=0),
        _edited(above_input_tokens=-1),
        _edited(above_input_tokens=1.5),
        _edited(above_input_tokens=1000.0),  # which no bigint is read from, and every admission reads one
        _edited(above_input_tokens=10**13),
        _edited(above_input_tokens="1000"),
        _edited(above_input_tokens=None),
        # a class that the tier has forgotten, or that the price has not
        _edited(input=...),
        _edited(output=...),
        _edited(cached_input=...),
        _edited(cache_write=5),
        _edited(per_request=1),
        _edited(above=1),
        _edited(input=-1),
        _edited(input="4"),
        _edited(input="NaN"),
        _edited(input=None),
        _edited(input=0.00000000001),
        _edited(input=10**10),
        # two of a length, or in no order
        [*_edited(), *_edited()],
        [*_edited(above_input_tokens=2000), *_edited()],
        [tier for number in range(17) for tier in _edited(above_input_tokens=1 + number)],
    ],
)
def test_tiers_that_make_no_sense_are_refused_from_any_hand(
    engine: Engine, tiered: Customer, tiers: Any
) -> None:
    added = (
        "insert into gateway.prices (offer_id, effective_from, input, cached_input, output, tiers)"
        " select id, now() + interval '1 day', 2, 0.2, 8, %s from gateway.offers"
        " where upstream_model = 'tiered'"
    )
    for statement in ("update gateway.prices set tiers = %s where tiers is not null", added):
        with pytest.raises(psycopg.errors.CheckViolation, match="prices_tiers_check"):
            engine.run(statement, Jsonb(tiers))
    assert engine.settle(admitted(engine, tiered, 1001), usage={"input": 1001})["charge_usd"] == "0.004004"


def test_a_class_is_not_added_to_a_price_over_the_head_of_its_tiers(engine: Engine, tiered: Customer) -> None:
    with pytest.raises(psycopg.errors.CheckViolation, match="prices_tiers_check"):
        engine.run("update gateway.prices set cache_write = 3 where tiers is not null")
    assert tiered.id


def test_an_edit_of_a_tier_makes_a_new_version_and_is_audited(engine: Engine, tiered: Customer) -> None:
    before = admitted(engine, tiered, 1001)
    engine.run("update gateway.prices set tiers = %s where tiers is not null", Jsonb(_edited(input=40)))
    # an edit of the base takes the tiers along
    engine.run(
        "update gateway.prices set output = 9"
        " where tiers is not null and id = (select max(id) from gateway.prices)"
    )
    versions = engine.query(
        "select p.output, p.tiers from gateway.prices as p join gateway.offers as o on o.id = p.offer_id"
        " where o.upstream_model = 'tiered' order by p.id"
    )
    as_numbers = [
        {"above_input_tokens": 1000, "input": 4, "cached_input": 0.4, "output": 12},
        {"above_input_tokens": 2000, "input": 5, "cached_input": 0.5, "output": 20},
    ]
    assert versions == [(8, as_numbers), (8, _edited(input=40)), (9, _edited(input=40))]
    usage = {"input": 1001, "output": 10}
    assert engine.settle(before, usage=usage)["charge_usd"] == "0.004124"
    assert engine.settle(admitted(engine, tiered, 1001), usage=usage)["charge_usd"] == "0.04016"
    assert engine.value(
        "select after -> 'tiers' from gateway.audit_log where entity = 'prices' order by id desc limit 1"
    ) == _edited(input=40)


def test_tiers_go_in_in_any_order_and_are_told_as_text(engine: Engine, tiered: Customer) -> None:
    told = engine.call(
        "create_price", p_model="tiered", p_provider=PROVIDER, p_prices={**TIERED, "tiers": [LONGER, LONG]}
    )
    assert told["tiers"] == [LONG, LONGER]
    assert engine.call("list_prices", p_limit=1)[0]["tiers"] == [LONG, LONGER]
    (model,) = engine.call("list_catalogue", p_limit=1, p_query="tiered")
    assert model["offers"][0]["prices"]["tiers"] == [LONG, LONGER]
    plain = engine.call(
        "create_price", p_model="tiered", p_provider=PROVIDER, p_prices={**TIERED, "tiers": []}
    )
    assert "tiers" not in plain
    assert engine.settle(admitted(engine, tiered, 1001), usage={"input": 1001})["charge_usd"] == "0.002002"


# Of any prices

AMOUNTS = st.decimals(0, 999, places=10).map(str)
LENGTHS = st.one_of(st.integers(1, 12), st.integers(1, 100_000))
AT_COST = Terms("markup", Decimal(0), Decimal(0))
HOUR = "cache_write_1h"


@st.composite
def tiered_prices(draw: st.DrawFn) -> JSONObject:
    """Prices with up to four tiers that have nothing to do with each other, cheaper ones among them."""
    optional = sorted({*INPUT_CLASSES, *OUTPUT_CLASSES, HOUR} - {"input", "output"})
    classes = ["input", "output", *draw(st.lists(st.sampled_from(optional), unique=True))]
    lengths = sorted(draw(st.sets(LENGTHS, min_size=1, max_size=4)))
    rates = st.fixed_dictionaries(dict.fromkeys(classes, AMOUNTS))
    tiers = [{"above_input_tokens": length, **draw(rates)} for length in lengths]
    return {**draw(rates), "tiers": tiers}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prices=tiered_prices(),
    usage=st.dictionaries(
        st.sampled_from([*INPUT_CLASSES, *OUTPUT_CLASSES, HOUR, "reasoning"]),
        st.one_of(st.integers(0, 5), st.integers(0, 60_000)),
    ),
    near=st.sampled_from([-1, 0, 1]),
    which=st.integers(0, 3),
    spare=st.sampled_from([0, 0, 1, 5000]),
)
def test_what_is_charged_is_the_plain_models_and_never_beyond_the_bound(
    *,
    shared_engine: Engine,
    prices: JSONObject,
    usage: dict[str, int],
    near: int,
    which: int,
    spare: int,
) -> None:
    # half of the trouble is at an edge: the input comes to a threshold, or to one token beside it
    length = prices["tiers"][which % len(prices["tiers"])]["above_input_tokens"] + near
    rest = sum(usage.get(name, 0) for name in INPUT_CLASSES if name != "input")
    if length >= rest:
        usage = {**usage, "input": length - rest}
    exact = read_prices(prices)
    total = sum(usage.get(name, 0) for name in INPUT_CLASSES)
    answered = sum(usage.get(name, 0) for name in OUTPUT_CLASSES)
    ((cost, input_rate, output_rate),) = shared_engine.query(
        # the prices as admission pins them: through the form that the table has
        "with pinned as ("
        " select %s::jsonb || jsonb_build_object('tiers', gateway.read_price_tiers(%s)) as prices"
        " ) select gateway.tokens_cost_usd(p.prices, %s), r.input_rate, r.output_rate"
        " from pinned as p cross join gateway.reach_tiers(jsonb_populate_record(null::gateway.candidate,"
        " jsonb_build_object('prices', p.prices, 'input_bound', %s::bigint, 'input_rate', %s::numeric,"
        " 'output_rate', %s::numeric)), true, true, true) as r",
        Jsonb({name: price for name, price in prices.items() if name != "tiers"}),
        Jsonb(prices["tiers"]),
        Jsonb(usage),
        total + spare,
        max(exact.rates[name] for name in (*INPUT_CLASSES, HOUR) if name in exact.rates) / 1_000_000,
        max(exact.rates[name] for name in OUTPUT_CLASSES if name in exact.rates) / 1_000_000,
    )
    assert round_up(cost) == AT_COST.bill(exact, usage)[0]
    assert cost <= total * input_rate + answered * output_rate
