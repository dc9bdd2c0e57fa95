"""A statement's total is the ledger's, to the last digit, whatever happened and wherever the month turns."""

from __future__ import annotations

import functools
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.types.json import set_json_loads

from tests.database.engine import call, race

if TYPE_CHECKING:
    from tests.database.engine import Customer, Engine, JSONObject
    from tests.fixtures.database import Connection

ZONES = ("UTC", "Asia/Kolkata", "America/New_York")
MONTH = "2025-03"
"""In which New York's clocks are put forward. Every test's entries are moved into months about it."""
KINDS = {"credit": "credits", "correction": "corrections", "debt_payment": "debt_payments"}


def statement(engine: Engine, customer: Customer, month: str) -> JSONObject:
    told: JSONObject = engine.call("read_statement", p_customer_id=customer.id, p_month=month)
    return told


def this_month(engine: Engine) -> str:
    month: str = engine.value("select to_char(now() at time zone 'UTC', 'YYYY-MM')")
    return month


def assert_adds_up(engine: Engine, customer: Customer, told: JSONObject) -> None:
    """Against the ledger itself, read anew by when its entries were written."""
    rows = engine.query(
        "select kind, amount_usd, coalesce(debt_change_usd, 0), created_at >= %s::timestamptz as within"
        " from gateway.ledger_entries where customer_id = %s and created_at < %s::timestamptz order by id",
        told["from"],
        customer.id,
        told["to"],
    )
    sums: dict[str, Decimal] = {}
    for kind, amount, _, within in rows:
        if within:
            name = KINDS.get(
                kind, "reversals" if kind in {"refund", "dispute", "reinstatement"} else "charges"
            )
            sums[name] = sums.get(name, Decimal(0)) + amount
    for name in ("credits", "corrections", "reversals", "debt_payments"):
        assert Decimal(told[f"{name}_usd"]) == sums.get(name, 0), name
    assert Decimal(told["charges_usd"]) == -sums.get("charges", Decimal(0))
    assert Decimal(told["charges_usd"]) == sum(
        (Decimal(line["charge_usd"]) for line in told["charges"]), Decimal(0)
    )
    opening = sum((amount for _, amount, _, within in rows if not within), Decimal(0))
    assert Decimal(told["opening_balance_usd"]) == opening
    assert Decimal(told["closing_balance_usd"]) == opening + sum(sums.values(), Decimal(0))
    assert Decimal(told["opening_debt_usd"]) == sum(
        (debt for _, _, debt, within in rows if not within), Decimal(0)
    )
    assert Decimal(told["closing_debt_usd"]) == sum((debt for _, _, debt, _ in rows), Decimal(0))
    assert told["check"]["balance_agrees"] is True


def assert_recomputed(told: JSONObject) -> None:
    check = told["check"]
    assert (check["source"], check["differing"], check["difference_usd"]) == ("request_log", 0, "0")
    assert all(line["recomputed_usd"] == line["charge_usd"] for line in told["charges"])


def move(engine: Engine, customer: Customer, moments: list[datetime]) -> None:
    """Let the customer's entries, with their requests, have been written at these moments, in their order."""
    ids = [row[0] for row in engine.query(
        "select id from gateway.ledger_entries where customer_id = %s order by id", customer.id)]  # fmt: skip
    assert len(ids) == len(moments)
    with engine.by_engine():
        for entry_id, moment in zip(ids, moments, strict=True):
            engine.run("update gateway.ledger_entries set created_at = %s where id = %s", moment, entry_id)


def test_a_month_so_far_has_its_charges_by_model_and_price(engine: Engine, customer: Customer) -> None:
    engine.model("dear", {"input": "10", "output": "40"})
    engine.service(["dear"])
    for _ in range(3):
        engine.settle(engine.admitted(customer.key_hash), usage={"input": 100, "output": 50, "reasoning": 20})
    engine.settle(
        engine.admitted(customer.key_hash, p_models=["dear"]), usage={"input": 7, "cached_input": 3}
    )
    engine.fail(engine.admitted(customer.key_hash))
    engine.settings(commission_percent="10")
    engine.settle(engine.admitted(customer.key_hash))
    engine.settings(billing_mode="flat")
    engine.settle(engine.admitted(customer.key_hash))
    engine.admitted(customer.key_hash)

    told = statement(engine, customer, this_month(engine))

    assert told["closed"] is False
    fields = (
        "model", "requests", "billing_mode", "commission_percent", "input_tokens", "cached_input_tokens",
        "output_tokens", "reasoning_tokens", "charge_usd",
    )  # fmt: skip
    shown = [tuple(line[name] for name in fields) for line in told["charges"]]
    assert shown == [
        ("echo", 1, "flat", "10", 100, 0, 50, 0, "0.003"),
        ("echo", 3, "markup", "5", 300, 0, 150, 60, "0.00189"),
        ("echo", 1, "markup", "10", 100, 0, 50, 0, "0.00066"),
        ("dear", 1, "markup", "5", 7, 3, 0, 0, "0.000105"),
    ]
    # at a flat price what the provider takes is the operator's affair
    assert [line["prices"] is None for line in told["charges"]] == [True, False, False, False]
    assert told["check"]["requests"] == 6
    assert_recomputed(told)
    assert_adds_up(engine, customer, told)
    engine.assert_books_agree()


def test_a_charge_that_is_not_what_its_prices_make_is_told(engine: Engine, customer: Customer) -> None:
    engine.settle(engine.admitted(customer.key_hash))
    wrong = engine.admitted(customer.key_hash)
    engine.settle(wrong)
    with engine.by_engine():
        engine.run("update gateway.requests set output_tokens = 51 where id = %s", wrong["request_id"])
    told = statement(engine, customer, this_month(engine))
    # a token more at 8 USD per million and 5 percent would have been 0.0000084
    assert (told["check"]["differing"], told["check"]["difference_usd"]) == (1, "-0.0000084")
    assert_adds_up(engine, customer, told)


@pytest.mark.parametrize("policy", ["release", "charge"])
def test_an_expired_hold_and_its_late_settlement_are_told_apart(
    engine: Engine, customer: Customer, policy: str
) -> None:
    engine.settings(expired_hold_policy=policy)
    first, second = engine.admitted(customer.key_hash), engine.admitted(customer.key_hash)
    for admission in (first, second):
        engine.lapse(admission)
    engine.call("expire_holds")
    engine.settle(first)
    told = statement(engine, customer, this_month(engine))
    lines = [
        (line["expired_holds"], line["requests"], line["input_tokens"], line["charge_usd"])
        for line in told["charges"]
    ]
    expired = [(True, 1, 0, "0.0063")] if policy == "charge" else []
    assert lines == [*expired, (False, 1, 100, "0.00063")]
    assert_recomputed(told)
    assert_adds_up(engine, customer, told)


def test_what_could_not_be_collected_is_no_difference(engine: Engine) -> None:
    customer = engine.customer("0.0063")
    engine.settle(engine.admitted(customer.key_hash), usage={"input": 1000, "output": 5000})
    told = statement(engine, customer, this_month(engine))
    assert told["charges_usd"] == "0.0063"
    assert_recomputed(told)
    assert_adds_up(engine, customer, told)


@pytest.mark.parametrize("zone", ZONES)
def test_the_month_turns_where_the_customer_is(engine: Engine, customer: Customer, zone: str) -> None:
    engine.run("update gateway.customers set time_zone = %s where id = %s", zone, customer.id)
    engine.paid(customer.id, 1000)
    for _ in range(4):
        engine.settle(engine.admitted(customer.key_hash))
    begin, end = (
        engine.value("select %s::timestamp at time zone %s", day, zone)
        for day in ("2025-03-01", "2025-04-01")
    )
    tick = timedelta(microseconds=1)
    move(
        engine,
        customer,
        [begin - timedelta(days=9), begin - tick, begin, end - tick, end, end + timedelta(days=40)],
    )
    months = engine.call("list_statements", p_customer_id=customer.id, p_limit=200)
    assert [month["month"] for month in months][-4:] == ["2025-05", "2025-04", "2025-03", "2025-02"]
    counts = {}
    for month in ("2025-02", "2025-03", "2025-04", "2025-05"):
        told = statement(engine, customer, month)
        assert told["closed"] is True
        assert_adds_up(engine, customer, told)
        counts[month] = (len(told["entries"]), told["check"]["requests"])
    assert counts == {"2025-02": (2, 0), "2025-03": (0, 2), "2025-04": (0, 1), "2025-05": (0, 1)}
    told = statement(engine, customer, MONTH)
    assert [datetime.fromisoformat(told[name]) for name in ("from", "to")] == [begin, end]
    assert engine.call("read_statement", p_customer_id=customer.id, p_month="2025-01") == {
        "error": "no_statement"
    }
    assert engine.call("read_statement", p_customer_id=customer.id, p_month="2999-01") == {
        "error": "no_statement"
    }


def test_what_was_given_out_stays(engine: Engine, customer: Customer) -> None:
    admission = engine.admitted(customer.key_hash)
    engine.settle(admission)
    engine.paid(customer.id, 1000)
    moments = [
        datetime(2025, 3, 5, tzinfo=UTC),
        datetime(2025, 3, 31, 23, tzinfo=UTC),
        datetime(2025, 4, 1, 1, tzinfo=UTC),
    ]
    move(engine, customer, moments)
    before = statement(engine, customer, MONTH)
    # by the new zone the charge of March's last hour would be April's
    engine.run("update gateway.customers set time_zone = 'Asia/Kolkata' where id = %s", customer.id)
    with engine.by_engine():
        engine.run("delete from gateway.requests where id = %s", admission["request_id"])
    assert statement(engine, customer, MONTH) == before
    april = statement(engine, customer, "2025-04")
    # and none is missing or in two
    assert (april["time_zone"], april["opening_balance_usd"]) == (
        "Asia/Kolkata",
        before["closing_balance_usd"],
    )
    assert [entry["kind"] for entry in april["entries"]] == ["credit"]
    assert april["charges"] == []


def test_without_the_log_the_sums_stand_in_and_say_so(engine: Engine, customer: Customer) -> None:
    engine.model("dear", {"input": "10", "output": "40"})
    engine.service(["dear"])
    gone = engine.admitted(customer.key_hash)
    engine.settle(gone)
    engine.settle(engine.admitted(customer.key_hash, p_models=["dear"]))
    month = this_month(engine)
    with engine.by_engine():
        # as api.close_usage would have it by now
        engine.run(
            "insert into gateway.usage_periods (customer_id, per, grouped_by, period, model_id, requests,"
            " input_tokens, output_tokens, charge_usd, last_request_at) select customer_id, 'month', 'model',"
            " date_trunc('month', now() at time zone 'UTC'), model_id, sum(requests), sum(input_tokens),"
            " sum(output_tokens), sum(charge_usd), now()"
            " from gateway.usage_rollups group by customer_id, model_id"
        )
        engine.run("delete from gateway.requests where id = %s", gone["request_id"])
    told = statement(engine, customer, month)
    assert (told["check"]["source"], told["check"]["differing"]) == ("sums", None)
    assert [(line["model"], line["requests"], line["recomputed_usd"]) for line in told["charges"]] == [
        ("dear", 1, None), ("echo", 1, None),
    ]  # fmt: skip
    assert_adds_up(engine, customer, told)
    # what the sums do not come to is a line of its own
    with engine.by_engine():
        engine.run("update gateway.usage_periods set charge_usd = charge_usd - 0.0001 where model_id = 1")
    told = statement(engine, customer, month)
    assert (told["charges"][-1]["model"], told["charges"][-1]["charge_usd"]) == (None, "0.0001")
    assert_adds_up(engine, customer, told)


def test_two_who_ask_at_once_close_a_month_once(engine: Engine, customer: Customer) -> None:
    engine.settle(engine.admitted(customer.key_hash))
    move(engine, customer, [datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 3, 5, tzinfo=UTC)])

    def read(connection: Connection, number: int) -> Any:
        month = ("2025-03", "2025-05")[number % 2]
        return call(connection, "read_statement", p_customer_id=customer.id, p_month=month)

    told = race(engine.database, 8, read)
    assert all(entry == told[number % 2] for number, entry in enumerate(told))
    assert engine.value("select count(*) from gateway.statements") == 5


def test_under_load_a_statement_is_of_one_moment(engine: Engine, customer: Customer) -> None:
    month = this_month(engine)

    def work(connection: Connection, number: int) -> None:
        set_json_loads(functools.partial(json.loads, parse_float=Decimal), connection)
        for turn in range(12):
            if number < 3:
                admission = engine.admit(customer.key_hash, connection=connection)
                if turn % 4 == 1:
                    engine.payment_event(
                        f"pi_{number}_{turn}",
                        {"customer_id": customer.id, "currency": "usd", "paid_minor": 100},
                        connection=connection,
                    )
                    engine.payment_event(f"pi_{number}_{turn}", {"refunded_minor": 90}, connection=connection)
                if admission["admitted"]:
                    engine.settle(admission, connection=connection)
            else:
                told = call(connection, "read_statement", p_customer_id=customer.id, p_month=month)
                amounts = [Decimal(told[f"{name}_usd"]) for name in (
                    "opening_balance", "credits", "corrections", "reversals", "debt_payments")]  # fmt: skip
                assert sum(amounts) - Decimal(told["charges_usd"]) == Decimal(told["closing_balance_usd"])
                lines = sum((Decimal(line["charge_usd"]) for line in told["charges"]), Decimal(0))
                assert lines == Decimal(told["charges_usd"])
                assert_recomputed(told)

    race(engine.database, 5, work)
    assert_adds_up(engine, customer, statement(engine, customer, month))
    engine.assert_books_agree()


steps = st.lists(
    st.one_of(
        st.tuples(st.just("call"), st.integers(0, 3000), st.integers(0, 900)),
        st.tuples(st.just("pay"), st.integers(1, 5), st.just(0)),
        st.tuples(st.just("refund"), st.integers(0, 4), st.integers(1, 500)),
        st.tuples(st.just("correct"), st.integers(1, 40), st.just(0)),
        st.tuples(st.just("lapse"), st.integers(0, 1), st.just(0)),
        st.tuples(st.just("commission"), st.integers(0, 30), st.just(0)),
    ),
    min_size=3,
    max_size=14,
)
offsets = st.lists(st.integers(0, 150 * 24 * 60), min_size=60, max_size=60)


@settings(
    deadline=None, derandomize=True, database=None, max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(program=steps, minutes=offsets, zone=st.sampled_from(ZONES))
def test_any_history_in_any_zone_adds_up(  # noqa: C901 - a table
    shared_engine: Engine, program: list[tuple[str, int, int]], minutes: list[int], zone: str
) -> None:
    engine = shared_engine
    customer = engine.customer("0.05")
    engine.run("update gateway.customers set time_zone = %s where id = %s", zone, customer.id)
    paid = 0
    for what, first, second in program:
        match what:
            case "call":
                admission = engine.admit(customer.key_hash)
                if admission["admitted"]:
                    engine.settle(admission, usage={"input": first, "output": second})
            case "pay":
                paid += 1
                engine.paid(customer.id, first, f"pi_{customer.id}_{paid}")
            case "refund" if paid:
                engine.refunded(second, f"pi_{customer.id}_{1 + first % paid}")
            case "correct":
                engine.call("add_credits", p_customer_id=customer.id, p_usd=-Decimal(first) / 1000)
            case "lapse":
                engine.settings(expired_hold_policy=("release", "charge")[first])
                admission = engine.admit(customer.key_hash)
                if admission["admitted"]:
                    engine.lapse(admission)
                    engine.call("expire_holds")
                    if second == 0:
                        engine.settle(admission)
            case "commission":
                engine.settings(commission_percent=str(first))
    count = engine.value("select count(*) from gateway.ledger_entries where customer_id = %s", customer.id)
    start = datetime(2025, 1, 31, 12, tzinfo=UTC)
    move(engine, customer, sorted(start + timedelta(minutes=offset) for offset in minutes[:count]))
    closing = "0"
    for row in reversed(engine.call("list_statements", p_customer_id=customer.id, p_limit=200)):
        told = statement(engine, customer, row["month"])
        assert told["opening_balance_usd"] == closing
        assert_adds_up(engine, customer, told)
        assert_recomputed(told)
        assert statement(engine, customer, row["month"]) == told
        closing = told["closing_balance_usd"]
    assert Decimal(closing) == engine.account(customer.id)[0]
