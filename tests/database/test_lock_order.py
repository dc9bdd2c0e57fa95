"""Those who wait stand in a row, never in a circle. Here they are made to wait, so that others catch up."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.database.engine import call, usd, wait_until_all_wait

if TYPE_CHECKING:
    from tests.database.engine import Engine


def test_two_sweepers_take_their_accounts_in_one_order(engine: Engine) -> None:
    engine.settings(default_requests_per_minute=None)  # no counter that would put them in a row before
    customers = [engine.customer("1000") for _ in range(12)]
    with (
        engine.database.connect(autocommit=False) as payment,
        engine.database.connect() as first,
        engine.database.connect() as second,
        ThreadPoolExecutor(2) as pool,
    ):
        for _ in range(10):
            for customer in [*customers, *reversed(customers)]:
                engine.lapse(engine.admitted(customer.key_hash))
            # an account in their midst is taken: whoever comes has locked some, and waits here with them
            call(payment, "add_credits", p_customer_id=customers[6].id, p_usd=1)
            sweepers = [pool.submit(call, each, "expire_holds", p_limit=12) for each in (first, second)]
            wait_until_all_wait(engine, sweepers)
            payment.commit()
            assert [sweeper.result()["expired"] for sweeper in sweepers] == [12, 12]
    engine.assert_books_agree()


def test_counters_are_locked_in_key_order_those_of_a_maker_among_them(engine: Engine) -> None:
    maker = engine.customer("100", requests_per_minute=1000)
    _, made = engine.key(maker.id, p_maker_key_id=maker.key_id)
    engine.call("set_limits", p_key_id=maker.key_id, p_rate_limits={"requests_per_day": 1000})
    engine.call("set_limits", p_customer_id=maker.id, p_rate_limits={"requests_per_day": 1000})
    admission = engine.admitted(made)
    with (
        engine.database.connect(autocommit=False) as holder,
        engine.database.connect() as first,
        engine.database.connect() as second,
        ThreadPoolExecutor(2) as pool,
    ):
        # the least of them is taken: whoever wants the others has none of them yet
        holder.execute("select from gateway.limit_counters where subject = 'customer' for update")
        waiting = [
            pool.submit(engine.admit, made, connection=first),
            pool.submit(
                call,
                second,
                "settle_request",
                p_settlement={
                    "request_id": admission["request_id"],
                    "admitted_at": admission["admitted_at"],
                    "outcome": "failed",
                },
            ),
        ]
        wait_until_all_wait(engine, waiting)
        free = engine.value(
            "select count(*) from (select from gateway.limit_counters for update skip locked) as free"
        )
        counters = engine.value("select count(*) from gateway.limit_counters")
        holder.commit()
        admitted, settled = (each.result() for each in waiting)
    assert (admitted["admitted"], settled["status"], free) == (True, "settled", counters - 1)
    assert counters > 3
    engine.assert_books_agree()


@pytest.mark.parametrize(
    ("done", "used", "collected", "debt"),
    [
        # enough when the settlement began, and 1 USD when its turn came
        pytest.param({"refunded_minor": 400}, 1_000_000, "1", "0", id="a refund"),
        # the same, and a debt of the hold's 0.0063 USD, which gets what the charge leaves of it
        pytest.param({"refunded_minor": 500}, 300, "0.00063", "0.00063", id="a debt"),
        # 5 USD when it began, and 9 when its turn came
        pytest.param({"paid_minor": 900}, 3_000_000, "6.3", "0", id="a payment"),
    ],
)
def test_a_settlement_charges_what_the_account_has_when_its_turn_comes(
    engine: Engine, done: dict[str, int], used: int, collected: str, debt: str
) -> None:
    engine.settings(default_requests_per_minute=None)  # no counter at which it would wait
    customer = engine.customer(None)
    engine.paid(customer.id, 500)
    admission = engine.admitted(customer.key_hash)
    told = {"customer_id": customer.id, "currency": "usd", "paid_minor": 500, **done}
    with (
        engine.database.connect(autocommit=False) as payment,
        engine.database.connect() as settling,
        ThreadPoolExecutor(1) as pool,
    ):
        engine.payment_event("pi_1" if "refunded_minor" in done else "pi_2", told, connection=payment)
        settled = pool.submit(engine.settle, admission, connection=settling, usage={"input": used})
        wait_until_all_wait(engine, [settled])
        payment.commit()
        answer = settled.result()
    assert usd(answer["charge_usd"]) - usd(answer["uncollected_usd"]) == usd(collected)
    assert engine.debt(customer.id) == usd(debt)
    assert engine.account(customer.id)[1] == 0
    engine.assert_books_agree()


def test_one_customers_requests_queue_and_nobody_elses(engine: Engine) -> None:
    engine.settings(default_requests_per_minute=None)
    customer, other = engine.customer("100"), engine.customer("100")
    running = engine.admitted(customer.key_hash)
    with (
        engine.database.connect(autocommit=False) as first,
        engine.database.connect() as second,
        engine.database.connect() as third,
        ThreadPoolExecutor(2) as pool,
    ):
        engine.admitted(customer.key_hash, connection=first)
        waiting = [pool.submit(engine.settle, running, connection=second)]
        wait_until_all_wait(engine, waiting)
        waiting.append(pool.submit(engine.admitted, customer.key_hash, connection=third))
        wait_until_all_wait(engine, waiting)
        # one lock for all of them, which PostgreSQL gives in the order of their coming
        queue = engine.query(
            "select l.pid from pg_locks as l join pg_database as d on d.oid = l.database"
            " where d.datname = current_database() and l.locktype = 'advisory' and not l.granted"
        )
        processes = {each.info.backend_pid for each in (second, third)}
        engine.settle(engine.admitted(other.key_hash))
        first.commit()
        for each in waiting:
            each.result()
    assert {row[0] for row in queue} == processes
    engine.assert_books_agree()
