"""What holds for one connection holds for many at once. Every worker here is a real connection of its own."""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import psycopg

from tests.database.engine import call, digest, new_request_id, race, usd, watched

if TYPE_CHECKING:
    from tests.database.engine import Customer, Engine, JSONObject
    from tests.fixtures.database import Connection


def admit_on(engine: Engine, customer: Customer, **parameters: Any) -> Any:
    def work(connection: Connection, _: int) -> JSONObject:
        return engine.admit(customer.key_hash, connection=connection, **parameters)

    return work


def admit_each_by_its_key(engine: Engine, customer: Customer, workers: int, **parameters: Any) -> Any:
    """A key for each worker: one key's counter would put them in a row before they reach the account."""
    keys = [engine.key(customer.id)[1] for _ in range(workers)]

    def work(connection: Connection, number: int) -> JSONObject:
        return engine.admit(keys[number], connection=connection, **parameters)

    return work


def test_a_balance_that_affords_k_calls_admits_k(engine: Engine) -> None:
    customer = engine.customer("0.03")  # 0.0063 each: four, and 0.0048 left
    with watched(engine.database):
        answers = race(engine.database, 16, admit_each_by_its_key(engine, customer, 16))
    assert Counter(answer.get("refusal") for answer in answers) == {None: 4, "insufficient_credits": 12}
    assert engine.account(customer.id) == (usd("0.03"), usd("0.0252"))
    for answer in answers:
        if answer["admitted"]:
            engine.settle(answer)
    assert engine.account(customer.id) == (usd("0.03") - 4 * usd("0.00063"), 0)
    engine.assert_books_agree()


def test_unnamed_bounds_together_hold_no_more_than_there_is(engine: Engine) -> None:
    customer = engine.customer("0.02")
    with watched(engine.database):
        answers = race(
            engine.database, 12, admit_each_by_its_key(engine, customer, 12, p_max_output_tokens=None)
        )
    held = sum(usd(answer["hold_usd"]) for answer in answers if answer["admitted"])
    assert held == engine.account(customer.id)[1] <= usd("0.02")


def test_sixty_a_minute_are_sixty_under_sixteen_connections(engine: Engine) -> None:
    engine.into_a_fresh_minute(15)
    customer = engine.customer("100")

    def work(connection: Connection, _: int) -> int:
        return sum(bool(engine.admit(customer.key_hash, connection=connection)["admitted"]) for _ in range(6))

    assert sum(race(engine.database, 16, work)) == 60
    assert engine.counter("key", customer.key_id, "minute", 1)[0] == 60


def test_a_token_limit_counts_what_is_in_flight_under_many_connections(engine: Engine) -> None:
    customer = engine.customer("100")
    engine.call("set_limits", p_customer_id=customer.id, p_rate_limits={"tokens_per_month": 1500 * 5 + 1499})
    answers = race(engine.database, 16, admit_on(engine, customer))
    assert sum(answer["admitted"] for answer in answers) == 5


def test_one_idempotency_key_admits_one(engine: Engine, customer: Customer) -> None:
    keyed = {"p_idempotency_key": "order 7", "p_body_hash": digest("body")}
    answers = race(engine.database, 16, admit_on(engine, customer, **keyed))
    assert Counter(answer.get("refusal") for answer in answers) == {None: 1, "idempotency_running": 15}
    # freed by a failure, it admits one again
    engine.fail(next(answer for answer in answers if answer["admitted"]))
    answers = race(engine.database, 16, admit_on(engine, customer, **keyed))
    assert Counter(answer.get("refusal") for answer in answers) == {None: 1, "idempotency_running": 15}


def test_an_idempotency_key_freed_and_taken_in_a_circle_never_errs(engine: Engine) -> None:
    customer = engine.customer("1000", requests_per_minute=1_000_000)
    keyed = {"p_idempotency_key": "order 7", "p_body_hash": digest("body")}
    until = time.monotonic() + 1.5

    def work(connection: Connection, number: int) -> Counter[str]:
        chance = random.Random(number)  # noqa: S311 - to mix, not to hide
        seen: Counter[str] = Counter()
        while time.monotonic() < until:
            too_much = chance.random() < 0.3
            answer = engine.admit(
                customer.key_hash,
                connection=connection,
                **keyed,
                **({"p_max_output_tokens": 10**9} if too_much else {}),
            )
            seen[answer.get("refusal", "admitted")] += 1
            if answer["admitted"]:
                engine.fail(answer, connection=connection)
        return seen

    seen = sum(race(engine.database, 8, work), Counter())
    assert seen.keys() <= {"admitted", "idempotency_running", "insufficient_credits"}
    assert seen["admitted"] > 10
    assert engine.account(customer.id) == (1000, 0)


def test_concurrent_settlements_of_one_request_charge_once(engine: Engine, customer: Customer) -> None:
    admission = engine.admitted(customer.key_hash)

    def work(connection: Connection, number: int) -> JSONObject:
        return engine.settle(admission, connection=connection, usage={"input": number, "output": 1})

    with watched(engine.database):
        answers = race(engine.database, 12, work)
    assert Counter(answer["already"] for answer in answers) == {False: 1, True: 11}
    assert len({answer["charge_usd"] for answer in answers}) == 1
    assert [kind for kind, _ in engine.ledger(customer.id)] == ["credit", "charge"]
    engine.assert_books_agree()


def test_a_settlement_and_an_expiry_at_once_charge_once(engine: Engine) -> None:
    customer = engine.customer(requests_per_minute=1000)
    for policy in ("release", "charge"):
        engine.settings(expired_hold_policy=policy)
        for _ in range(8):
            admission = engine.admitted(
                customer.key_hash, p_idempotency_key=new_request_id(), p_body_hash=digest("body")
            )
            engine.lapse(admission)
            before = engine.account(customer.id)[0]

            def work(connection: Connection, number: int, admission: JSONObject = admission) -> Any:
                if number % 2:
                    return call(connection, "expire_holds")
                return engine.settle(admission, connection=connection)

            with watched(engine.database):
                race(engine.database, 4, work)
            assert engine.account(customer.id) == (before - usd("0.00063"), 0)
            assert engine.request(admission["request_id"])["state"] == "settled"
    engine.assert_books_agree()


def test_two_sweepers_end_each_hold_once(engine: Engine) -> None:
    customers = [engine.customer(requests_per_minute=1000) for _ in range(5)]
    for customer in customers:
        for _ in range(8):
            engine.lapse(engine.admitted(customer.key_hash))
    told = race(engine.database, 6, lambda connection, _: call(connection, "expire_holds", p_limit=15))
    rest = engine.call("expire_holds")["expired"]
    assert sum(answer["expired"] for answer in told) + rest == 40
    assert all(engine.account(customer.id) == (10, 0) for customer in customers)
    engine.assert_books_agree()


def test_two_sweepers_over_the_same_customers_do_not_wait_in_a_circle(engine: Engine) -> None:
    engine.settings(default_requests_per_minute=None)  # no counter that puts them in a row
    customers = [engine.customer("1000") for _ in range(40)]
    for _ in range(3):
        # what one of them takes is of the customers in this order, what the other takes in the opposite one
        for customer in [*customers, *reversed(customers)]:
            engine.lapse(engine.admitted(customer.key_hash))
        told = race(engine.database, 2, lambda connection, _: call(connection, "expire_holds", p_limit=40))
        assert [answer["expired"] for answer in told] == [40, 40]
    assert all(engine.account(customer.id) == (1000, 0) for customer in customers)
    engine.assert_books_agree()


def test_one_reference_is_credited_once(engine: Engine) -> None:
    customer = engine.customer(None)

    def work(connection: Connection, number: int) -> JSONObject:
        told: JSONObject = call(
            connection,
            "add_credits",
            p_customer_id=customer.id,
            p_usd=usd(5),
            p_reference=f"payment {number % 2}",
        )
        return told

    answers = race(engine.database, 16, work)
    assert Counter(answer["duplicate"] for answer in answers) == {False: 2, True: 14}
    assert engine.account(customer.id) == (10, 0)
    engine.assert_books_agree()


def test_corrections_take_no_more_than_is_free(engine: Engine) -> None:
    customer = engine.customer("1")

    def work(connection: Connection, number: int) -> JSONObject:
        if number % 2:
            return engine.admit(customer.key_hash, connection=connection, p_max_output_tokens=20_000)
        told: JSONObject = call(connection, "add_credits", p_customer_id=customer.id, p_usd=usd("-0.3"))
        return told

    with watched(engine.database):
        race(engine.database, 12, work)
    engine.assert_books_agree()


def test_one_email_makes_one_customer(engine: Engine) -> None:
    def work(connection: Connection, number: int) -> JSONObject:
        told: JSONObject = call(
            connection, "create_customer", p_name="A", p_email=("a@x.org", "A@X.org")[number % 2]
        )
        return told

    answers = race(engine.database, 8, work)
    assert Counter(answer.get("error") for answer in answers) == {None: 1, "email_taken": 7}


def test_first_requests_of_a_key_do_not_wait_in_a_circle(engine: Engine) -> None:
    names = [f"m{number}" for number in range(6)]
    for name in names:
        engine.model(name)
    engine.service(names)
    for _ in range(5):
        customer = engine.customer("1000")
        engine.call("set_limits", p_key_id=customer.key_id, p_each_model=True, p_rate_limits={
            "requests_per_minute": 1000, "tokens_per_day": 10**9, "spend_usd_per_month": 900})  # fmt: skip

        def work(connection: Connection, number: int, customer: Customer = customer) -> JSONObject:
            order = random.Random(number).sample(names, len(names))  # noqa: S311 - to mix, not to hide
            return engine.admit(customer.key_hash, connection=connection, p_models=order)

        answers = race(engine.database, 12, work)
        assert all(answer["admitted"] for answer in answers)
        assert engine.counter("key", customer.key_id, "minute", engine.value(
            "select id from gateway.models where name = 'm0'"))[0] == 12  # fmt: skip


def test_everything_at_once_neither_deadlocks_nor_loses_a_cent(engine: Engine) -> None:  # noqa: C901
    """Fallbacks over shared services in opposite orders, settlements, expiries, top-ups, retries."""
    engine.model("other")
    services = [engine.service(["echo", "other"], priority=priority) for priority in (10, 20, 30)]
    for service in services:
        engine.call("set_limits", p_service_id=service, p_rate_limits={
            "requests_per_minute": 10**6, "tokens_per_day": 10**12, "spend_usd_per_month": 9999})  # fmt: skip
    customers = [engine.customer("0.2", requests_per_minute=10**6) for _ in range(3)]
    for customer in customers:
        engine.call("set_limits", p_customer_id=customer.id, p_rate_limits={"tokens_per_hour": 10**9})
    until = time.monotonic() + 4
    done: Counter[str] = Counter()

    def work(connection: Connection, number: int) -> None:
        choose = random.Random(number)  # noqa: S311 - to mix, not to hide
        running: list[JSONObject] = []
        while time.monotonic() < until:
            customer = choose.choice(customers)
            what = choose.random()
            if what < 0.5:
                keyed = {"p_idempotency_key": f"k{choose.randrange(4)}", "p_body_hash": digest("body")}
                answer = engine.admit(
                    customer.key_hash,
                    connection=connection,
                    p_models=choose.sample(["echo", "other"], 2),
                    p_lease_seconds=choose.choice([-1, 900]),
                    **(keyed if choose.random() < 0.5 else {}),
                )
                done[answer.get("refusal", "admitted")] += 1
                if answer["admitted"]:
                    running.append(answer)
            elif what < 0.85 and running:
                admission = running.pop(choose.randrange(len(running)))
                if choose.random() < 0.3:
                    engine.fail(admission, connection=connection)
                else:
                    route = choose.choice(admission["candidates"])["route_id"]
                    usage = {"input": choose.randrange(1500), "output": choose.randrange(800)}
                    engine.settle(admission, connection=connection, route_id=route, usage=usage)
                done["settled"] += 1
            elif what < 0.93:
                done["expired"] += call(connection, "expire_holds", p_limit=5)["expired"]
            else:
                call(connection, "add_credits", p_customer_id=customer.id, p_usd=usd("0.01"))
        for admission in running:
            engine.settle(admission, connection=connection)

    with watched(engine.database):
        race(engine.database, 10, work)  # an error of any worker, a deadlock above all, is raised here
    assert min(done["admitted"], done["settled"], done["expired"]) > 10, done
    engine.call("expire_holds")
    assert engine.check() == {
        "ok": True,
        "full": False,
        "accounts": 3,
        "closed_through": None,
        "mismatches": [],
        "misbooked_requests": 0,
        "misbooked_payments": 0,
        "wrong_checkpoints": None,
        "orphan_holds": 0,
    }
    assert (
        engine.query("select tokens, spend_usd from gateway.limit_counters where tokens < 0 or spend_usd < 0")
        == []
    )
    booked = engine.value("select sum(charge_usd - uncollected_usd) from gateway.usage_rollups")
    assert booked == -engine.value(
        "select sum(amount_usd) from gateway.ledger_entries where kind in ('charge', 'late_settlement')"
    )


def test_a_partition_is_made_while_requests_run(own_engine: Engine) -> None:
    engine = own_engine
    customer = engine.customer("100", requests_per_minute=10**6)
    until = time.monotonic() + 1

    def work(connection: Connection, number: int) -> int:
        count = 0
        if number < 2:
            return len(call(connection, "create_request_partitions", p_months=8))
        while time.monotonic() < until:
            engine.settle(engine.admit(customer.key_hash, connection=connection), connection=connection)
            count += 1
        return count

    made = race(engine.database, 6, work)
    assert sorted(made[:2]) == [0, 5]
    assert min(made[2:]) > 0
    engine.assert_books_agree()


def test_a_retry_and_a_late_settlement_do_not_wait_in_a_circle(engine: Engine) -> None:
    customer = engine.customer("100", requests_per_minute=10**6)
    for _ in range(10):
        key = {"p_idempotency_key": new_request_id(), "p_body_hash": digest("body")}
        first = engine.admitted(customer.key_hash, **key)
        engine.lapse(first)
        engine.call("expire_holds")

        def work(
            connection: Connection, number: int, first: JSONObject = first, key: dict[str, str] = key
        ) -> JSONObject:
            if number:
                return engine.admit(customer.key_hash, connection=connection, **key)
            return engine.settle(first, connection=connection)

        try:
            settled, *retries = race(engine.database, 3, work)
        except psycopg.errors.DeadlockDetected as error:
            raise AssertionError("a retry and a late settlement waited for each other") from error
        admitted = [retry for retry in retries if retry["admitted"]]
        assert len(admitted) <= 1
        for retry in admitted:
            engine.settle(retry)
        # one of them has paid: the late one, or the one who asked again
        assert (usd(settled["uncollected_usd"]) == 0) is (not admitted)
    engine.assert_books_agree()
