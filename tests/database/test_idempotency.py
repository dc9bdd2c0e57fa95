"""Idempotency-Key: what was charged under it is never charged again; what was not frees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.database.engine import digest

if TYPE_CHECKING:
    from tests.database.engine import Customer, Engine, JSONObject


def keyed(engine: Engine, customer: Customer, *, body: str = "body", **parameters: Any) -> JSONObject:
    return engine.admit(
        customer.key_hash, p_idempotency_key="order 7", p_body_hash=digest(body), **parameters
    )


def rows(engine: Engine) -> int:
    count: int = engine.value("select count(*) from gateway.idempotency_keys")
    return count


def test_while_the_first_runs_the_second_is_refused(engine: Engine, customer: Customer) -> None:
    first = keyed(engine, customer)
    told = keyed(engine, customer)
    assert (told["refusal"], told["first_request_id"]) == ("idempotency_running", first["request_id"])


def test_after_the_first_was_charged_the_second_is_refused(engine: Engine, customer: Customer) -> None:
    first = keyed(engine, customer)
    engine.settle(first)
    told = keyed(engine, customer)
    assert (told["refusal"], told["first_request_id"]) == ("idempotency_reused", first["request_id"])


@pytest.mark.parametrize("settled", [False, True])
def test_another_body_under_the_key_is_a_mismatch(
    engine: Engine, customer: Customer, *, settled: bool
) -> None:
    first = keyed(engine, customer)
    if settled:
        engine.settle(first)
    assert keyed(engine, customer, body="another")["refusal"] == "idempotency_mismatch"


@pytest.mark.parametrize("body", ["body", "another"])
def test_a_request_that_was_not_charged_frees_its_key(engine: Engine, customer: Customer, body: str) -> None:
    first = keyed(engine, customer)
    engine.fail(first)
    second = keyed(engine, customer, body=body)
    assert second["admitted"]
    engine.settle(second)
    told = keyed(engine, customer, body=body)
    assert (told["refusal"], told["first_request_id"]) == ("idempotency_reused", second["request_id"])
    assert rows(engine) == 1


def test_a_refused_request_does_not_take_its_key(engine: Engine, customer: Customer) -> None:
    told = keyed(engine, customer, p_max_output_tokens=10_000_000)
    assert told["refusal"] == "insufficient_credits"
    assert rows(engine) == 0
    assert keyed(engine, customer, body="another")["admitted"]


def test_a_key_is_kept_for_a_day(engine: Engine, customer: Customer) -> None:
    engine.settle(keyed(engine, customer))
    with engine.by_engine():
        engine.run("update gateway.idempotency_keys set created_at = now() - interval '23 hours 59 minutes'")
    assert keyed(engine, customer)["refusal"] == "idempotency_reused"
    with engine.by_engine():
        engine.run("update gateway.idempotency_keys set created_at = now() - interval '24 hours 1 second'")
    second = keyed(engine, customer, body="another")
    assert second["admitted"]
    assert keyed(engine, customer, body="another")["refusal"] == "idempotency_running"


def test_keys_of_different_api_keys_do_not_meet(engine: Engine, customer: Customer) -> None:
    keyed(engine, customer)
    assert keyed(engine, engine.customer())["admitted"]
    _, second = engine.key(customer.id)
    assert engine.admit(second, p_idempotency_key="order 7", p_body_hash=digest("body"))["admitted"]


def test_old_keys_are_forgotten_by_maintenance(engine: Engine, customer: Customer) -> None:
    engine.settle(keyed(engine, customer))
    assert engine.call("forget_idempotency_keys") == 0
    with engine.by_engine():
        engine.run("update gateway.idempotency_keys set created_at = now() - interval '25 hours'")
    assert engine.call("forget_idempotency_keys") == 1
    assert rows(engine) == 0


@pytest.mark.parametrize("key", ["", "k" * 256])
def test_a_key_of_another_length_is_an_error(engine: Engine, customer: Customer, key: str) -> None:
    before = engine.dump()
    with pytest.raises(psycopg.errors.CheckViolation):
        engine.admit(customer.key_hash, p_idempotency_key=key, p_body_hash=digest("body"))
    assert engine.dump() == before
