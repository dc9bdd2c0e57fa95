"""Price lists brought in whole: twice changes nothing, many at once agree, a fault leaves no trace."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.database.engine import PRICES, PROVIDER, call, race, usd

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from tests.database.engine import Engine, JSONObject
    from tests.fixtures.database import Connection

TABLES = ("models", "offers", "prices", "audit_log")


def line(model: str, provider: str = PROVIDER, **others: Any) -> JSONObject:
    return {"model": model, "provider": provider, "input": "2", "output": "8", **others}


def bring_in(engine: Engine, *lines: JSONObject, **parameters: Any) -> JSONObject:
    told: JSONObject = engine.call("import_prices", p_lines=list(lines), **parameters)
    return told


def rows(engine: Engine) -> dict[str, list[tuple[Any, ...]]]:
    return {table: engine.query(f"select t::text from gateway.{table} as t order by 1") for table in TABLES}


def in_force(engine: Engine, model: str, provider: str = PROVIDER) -> JSONObject:
    for found in engine.call("list_catalogue", p_limit=1000):
        if found["name"] == model:
            return next(offer["prices"] for offer in found["offers"] if offer["provider"] == provider)
    raise AssertionError(model)


def test_a_list_adds_models_offers_and_prices(engine: Engine) -> None:
    told = bring_in(
        engine,
        line("echo"),
        line("echo", "xai", upstream_model="echo-x", cached_input="0.5"),
        line(
            "new",
            context_length=1000,
            max_output_tokens=100,
            input_modalities=["text", "image"],
            output_modalities=["image"],
            per_image="0.04",
            per_request="0.0000000001",
            image_output="40",
            cache_write_1h="4",
            source="https://example.org",
            source_date="2026-11-21",
        ),
        line("new", "xai"),
        p_actor="the operator",
    )
    assert told == {
        "dry_run": False,
        "lines": 4,
        "models_added": ["new"],
        "offers_added": [
            {"model": "echo", "provider": "xai"},
            {"model": "new", "provider": PROVIDER},
            {"model": "new", "provider": "xai"},
        ],
        "prices_changed": [],
        "unchanged": 1,
    }
    new = next(found for found in engine.call("list_catalogue", p_limit=10) if found["name"] == "new")
    assert {name: new[name] for name in ("context_length", "max_output_tokens")} == {
        "context_length": 1000,
        "max_output_tokens": 100,
    }
    assert (new["input_modalities"], new["output_modalities"]) == (["text", "image"], ["image"])
    prices = in_force(engine, "new")
    assert {
        name: value for name, value in prices.items() if name not in {"id", "effective_from", "source"}
    } == {
        "input": "2",
        "output": "8",
        "image_output": "40",
        "per_image": "0.04",
        "per_request": "0.0000000001",
        "cache_write_1h": "4",
        "source_date": "2026-11-21",
    }
    assert in_force(engine, "echo", "xai")["cached_input"] == "0.5"
    assert engine.query(
        "select entity, count(*) from gateway.audit_log where actor = 'the operator' group by 1 order by 1"
    ) == [("models", 1), ("offers", 3), ("prices", 3)]


def test_importing_twice_changes_nothing(engine: Engine) -> None:
    lines = [
        line("echo"),
        line("a", cached_input="0.20", cache_write_1h="4"),
        line("b", "xai", per_image="0.04"),
    ]
    bring_in(engine, *lines)
    before = rows(engine)
    told = bring_in(engine, *[{**each, "source_date": "2026-12-01"} for each in lines])
    assert (told["lines"], told["unchanged"]) == (3, 3)
    assert (told["models_added"], told["offers_added"], told["prices_changed"]) == ([], [], [])
    assert rows(engine) == before


def test_a_changed_price_is_a_new_version_and_what_was_admitted_keeps_its_own(engine: Engine) -> None:
    customer = engine.customer()
    admission = engine.admitted(customer.key_hash)
    told = bring_in(engine, line("echo", output="9.5", cached_input="0.2"))
    assert told["prices_changed"] == [
        {
            "model": "echo",
            "provider": PROVIDER,
            "changes": {"cached_input": {"old": None, "new": "0.2"}, "output": {"old": "8", "new": "9.5"}},
        }
    ]
    assert engine.settle(admission)["cost_usd"] == "0.0006"
    later = engine.admitted(customer.key_hash)
    assert engine.settle(later)["cost_usd"] == "0.000675"
    assert bring_in(engine, line("echo"))["prices_changed"][0]["changes"] == {
        "cached_input": {"old": "0.2", "new": None},
        "output": {"old": "9.5", "new": "8"},
    }
    assert engine.value("select count(*) from gateway.prices") == 3


def test_a_class_of_zero_is_not_one_without_a_price(engine: Engine) -> None:
    told = bring_in(engine, line("echo", cached_input="0"))
    assert told["prices_changed"][0]["changes"] == {"cached_input": {"old": None, "new": "0"}}
    assert bring_in(engine, line("echo", cached_input="0.000"))["unchanged"] == 1


def test_a_dry_run_tells_the_same_and_writes_nothing(engine: Engine) -> None:
    lines = [line("echo", input="3"), line("echo", "xai"), line("new"), line("new", "xai")]
    before = rows(engine)
    shown = bring_in(engine, *lines, p_dry_run=True)
    assert rows(engine) == before
    done = bring_in(engine, *lines)
    assert {**shown, "dry_run": False} == done
    assert shown["dry_run"] is True
    assert len(shown["offers_added"]) == 3
    assert bring_in(engine, *lines, p_dry_run=True)["unchanged"] == 4


def test_what_the_list_lacks_and_what_an_admin_has_said_stays(engine: Engine) -> None:
    service = engine.service(["echo"], priority=1)
    engine.call(
        "create_price",
        p_model="echo",
        p_provider=PROVIDER,
        p_prices={"input": "1", "output": "1"},
        p_service_id=service,
    )
    assert bring_in(engine, line("echo"))["unchanged"] == 1
    engine.model("other")
    before = engine.query("select id, name, context_length, active from gateway.models order by id")
    bring_in(engine, line("echo", input="5", upstream_model="renamed", context_length=7))
    assert engine.query("select id, name, context_length, active from gateway.models order by id") == before
    assert engine.value("select count(*) from gateway.offers where upstream_model = 'renamed'") == 0
    assert in_force(engine, "other")["input"] == "2"
    admission = engine.admitted(engine.customer().key_hash)
    # the dearest candidate is the general price's, the first is the service's own
    assert engine.settle(admission)["cost_usd"] == "0.00015"


def test_a_fault_anywhere_leaves_no_trace(engine: Engine) -> None:
    before = rows(engine)
    for broken in (
        line("b", input="-1"),
        line("b", input=None),
        line("b", output="NaN"),
        line("b", cached_input="Infinity"),
        line("b", per_image="-0.1"),
        line("b", "No Provider"),
        line("a b"),
        line("b", context_length=0),
        line("b", source_date="never"),
        line("b", input="10000000000"),
    ):
        for p_dry_run in (False, True):
            if p_dry_run and broken.get("source_date") != "never":
                continue  # what a constraint refuses, only writing meets
            with pytest.raises((psycopg.DataError, psycopg.IntegrityError)):
                bring_in(engine, line("a"), line("echo", input="3"), broken, line("c"), p_dry_run=p_dry_run)
            assert rows(engine) == before, broken


def test_an_offer_that_is_named_twice_is_refused(engine: Engine) -> None:
    before = rows(engine)
    for p_dry_run in (False, True):
        told = bring_in(engine, line("a"), line("b"), line("a", input="3"), p_dry_run=p_dry_run)
        assert told == {"error": "duplicate_offer"}
    assert rows(engine) == before


def test_a_list_may_be_for_later(engine: Engine) -> None:
    later = datetime.now(UTC) + timedelta(days=1)
    told = bring_in(engine, line("echo", input="3"), line("new"), p_effective_from=later)
    assert told["prices_changed"][0]["changes"] == {"input": {"old": "2", "new": "3"}}
    assert in_force(engine, "echo")["input"] == "2"
    assert in_force(engine, "new") is None
    # the same list for then is there already; today it would still be a change
    same = bring_in(engine, line("echo", input="3"), line("new"), p_effective_from=later)
    assert (same["unchanged"], same["prices_changed"]) == (2, [])
    assert bring_in(engine, line("echo", input="3"), p_dry_run=True)["unchanged"] == 0
    # what is not in force yet can still be put right
    told = bring_in(engine, line("echo", input="4"), p_effective_from=later)
    assert told["prices_changed"][0]["changes"] == {"input": {"old": "3", "new": "4"}}
    found = engine.query(
        "select p.input, p.effective_from from gateway.prices as p"
        " join gateway.offers as o on o.id = p.offer_id"
        " join gateway.models as m on m.id = o.model_id where m.name = 'echo' order by p.effective_from"
    )
    assert [row[0] for row in found] == [2, 4]
    assert found[1][1] == later


def test_no_list_is_for_the_past(engine: Engine) -> None:
    before = rows(engine)
    past = datetime.now(UTC) - timedelta(seconds=1)
    for p_dry_run in (False, True):
        told = bring_in(engine, line("echo", input="3"), p_effective_from=past, p_dry_run=p_dry_run)
        assert told == {"error": "in_the_past"}
    assert rows(engine) == before


def test_an_empty_list_changes_nothing(engine: Engine) -> None:
    told = engine.value("select api.import_prices('[]')")
    assert (told["lines"], told["unchanged"], told["models_added"]) == (0, 0, [])


def test_one_list_imported_by_many_at_once_is_imported_once(engine: Engine) -> None:
    lines = [line(f"m{number}", provider) for number in range(40) for provider in (PROVIDER, "xai")]

    def work(connection: Connection, number: int) -> JSONObject:
        # each in another order: no two may wait for each other in a circle
        mixed = lines[number * 7 :] + lines[: number * 7]
        told: JSONObject = call(connection, "import_prices", p_lines=mixed)
        return told

    answers = race(engine.database, 8, work)
    assert Counter((len(told["offers_added"]), told["unchanged"]) for told in answers) == {
        (80, 0): 1,
        (0, 80): 7,
    }
    assert engine.value("select count(*) from gateway.prices") == 81


def while_open(engine: Engine, first: Callable[[Connection], object], then: JSONObject) -> JSONObject:
    """Import `then` while `first` is not committed; it has to wait for it. What the import told."""
    with engine.database.connect(autocommit=False) as holder, ThreadPoolExecutor(1) as pool:
        first(holder)
        with engine.database.connect() as other:
            pid = other.info.backend_pid
            told: Future[JSONObject] = pool.submit(call, other, "import_prices", **then)
            waiting = (
                "select coalesce(bool_or(wait_event_type = 'Lock'), false) from pg_stat_activity"
                " where pid = %s"
            )
            while not engine.value(waiting, pid):
                assert not told.done(), "it did not wait"
            holder.commit()
            return told.result(timeout=20)


def test_of_two_lists_with_offers_in_common_one_comes_after_the_other(engine: Engine) -> None:
    bring_in(engine, line("a"), line("b"))
    first = [line("a", input="3"), line("b")]
    told = while_open(
        engine,
        lambda holder: call(holder, "import_prices", p_lines=first),
        {"p_lines": [line("b", input="4"), line("a")]},
    )
    # neither took for unchanged what the other was changing
    assert [each["model"] for each in told["prices_changed"]] == ["a", "b"]
    assert (in_force(engine, "a")["input"], in_force(engine, "b")["input"]) == ("2", "4")


def test_a_list_waits_for_a_price_that_is_being_made(engine: Engine) -> None:
    prices = {"input": "7", "output": "8"}
    told = while_open(
        engine,
        lambda holder: call(holder, "create_price", p_model="echo", p_provider=PROVIDER, p_prices=prices),
        {"p_lines": [line("echo", input="7")]},
    )
    assert told["unchanged"] == 1


def test_lists_prices_and_models_made_at_once_do_not_meet_at_one_moment(engine: Engine) -> None:
    until = time.monotonic() + 1.5

    def work(connection: Connection, number: int) -> int:
        done = 0
        while time.monotonic() < until:
            price = str(number * 1000 + done)
            if number % 2:
                lines = [line("echo", input=price), line(f"shared-{done}", input=price)]
                assert "error" not in call(connection, "import_prices", p_lines=lines)
            elif number % 4:
                prices = {**PRICES, "input": price}
                call(connection, "create_price", p_model="echo", p_provider=PROVIDER, p_prices=prices)
            else:
                offers = [{"provider": PROVIDER, "upstream_model": "x", "prices": PRICES}]
                call(connection, "create_model", p_name=f"shared-{done}", p_offers=offers)
            done += 1
        return done

    done = race(engine.database, 6, work)
    assert min(done) > 3
    assert (
        engine.value(
            "select count(*) from gateway.models as m where not exists"
            " (select from gateway.offers as o where o.model_id = m.id)"
        )
        == 0
    )
    # each is another moment's, and the last one written is the one in force
    versions = engine.query(
        "select p.id, p.effective_from from gateway.prices as p join gateway.offers as o on o.id = p.offer_id"
        " join gateway.models as m on m.id = o.model_id where m.name = 'echo' order by p.effective_from"
    )
    assert len({row[1] for row in versions}) == len(versions)


@pytest.mark.slow
def test_ten_thousand_lines_take_seconds(engine: Engine) -> None:
    lines = [
        line(
            f"vendor/model-{number // 2}",
            ("xai", PROVIDER)[number % 2],
            cached_input="0.1",
            source="https://example.org",
        )
        for number in range(10_000)
    ]
    begin = time.monotonic()
    assert len(bring_in(engine, *lines)["offers_added"]) == 10_000
    assert len(bring_in(engine, *lines, p_dry_run=True)["offers_added"]) == 0
    changed = [{**each, "input": usd("2.5").to_eng_string()} for each in lines]
    assert len(bring_in(engine, *changed)["prices_changed"]) == 10_000
    # a bound that only a wrong plan reaches: about 3 s here
    assert time.monotonic() - begin < 30


TIERS = [
    {"above_input_tokens": 200_000, "input": "4", "output": "12"},
    {"above_input_tokens": 400_000, "input": "5", "output": "20"},
]


def test_tiers_come_with_their_offer_and_are_compared_one_by_one(engine: Engine) -> None:
    told = bring_in(engine, line("echo", tiers=TIERS), line("new", tiers=[*reversed(TIERS)]))
    assert told["prices_changed"] == [
        {
            "model": "echo",
            "provider": PROVIDER,
            "changes": {
                "input_above_200000": {"old": None, "new": "4"},
                "output_above_200000": {"old": None, "new": "12"},
                "input_above_400000": {"old": None, "new": "5"},
                "output_above_400000": {"old": None, "new": "20"},
            },
        }
    ]
    assert in_force(engine, "echo")["tiers"] == in_force(engine, "new")["tiers"] == TIERS
    before = rows(engine)
    told = bring_in(engine, line("echo", tiers=[*reversed(TIERS)]), line("new", tiers=TIERS))
    assert (told["unchanged"], told["prices_changed"]) == (2, [])
    assert rows(engine) == before


@pytest.mark.parametrize(
    ("tiers", "changes"),
    [
        (
            [TIERS[0]],
            {
                "input_above_400000": {"old": "5", "new": None},
                "output_above_400000": {"old": "20", "new": None},
            },
        ),
        ([{**TIERS[0], "input": "4.5"}, TIERS[1]], {"input_above_200000": {"old": "4", "new": "4.5"}}),
        (
            [TIERS[0], {**TIERS[1], "above_input_tokens": 500_000}],
            {
                "input_above_400000": {"old": "5", "new": None},
                "output_above_400000": {"old": "20", "new": None},
                "input_above_500000": {"old": None, "new": "5"},
                "output_above_500000": {"old": None, "new": "20"},
            },
        ),
    ],
)
def test_a_list_that_changes_a_tier_makes_a_new_version(
    engine: Engine, tiers: list[JSONObject], changes: JSONObject
) -> None:
    bring_in(engine, line("echo", tiers=TIERS))
    before = rows(engine)
    dry = bring_in(engine, line("echo", tiers=tiers), p_dry_run=True)
    assert dry["prices_changed"] == [{"model": "echo", "provider": PROVIDER, "changes": changes}]
    assert rows(engine) == before
    assert bring_in(engine, line("echo", tiers=tiers))["prices_changed"] == dry["prices_changed"]
    assert in_force(engine, "echo")["tiers"] == tiers


def test_a_list_without_tiers_takes_them_away(engine: Engine) -> None:
    bring_in(engine, line("echo", tiers=TIERS))
    (changed,) = bring_in(engine, line("echo"))["prices_changed"]
    assert {step["new"] for step in changed["changes"].values()} == {None}
    assert "tiers" not in in_force(engine, "echo")


def test_a_version_that_is_replaced_takes_the_tiers_of_the_new_list(engine: Engine) -> None:
    ahead = engine.value("select now() + interval '1 day'")
    bring_in(engine, line("echo", tiers=TIERS), p_effective_from=ahead)
    bring_in(engine, line("echo", tiers=[TIERS[0]]), p_effective_from=ahead)
    assert engine.query(
        "select tiers -> 0 ->> 'input', jsonb_array_length(tiers) from gateway.prices"
        " where effective_from > now()"
    ) == [("4", 1)]


def test_a_tier_that_lacks_a_class_is_refused_with_the_whole_list(engine: Engine) -> None:
    before = rows(engine)
    with pytest.raises(psycopg.errors.CheckViolation, match="prices_tiers_check"):
        bring_in(engine, line("new"), line("echo", cached_input="1", tiers=TIERS))
    assert rows(engine) == before
