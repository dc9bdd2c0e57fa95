"""A refusal is an answer, not an exception: it consumes nothing, and it is counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.database.engine import PRICES, digest, new_request_id, usd

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.database.engine import Customer, Engine

KEY = {"p_idempotency_key": "order 7", "p_body_hash": digest("body")}
CASES: dict[str, tuple[Callable[[Engine, Customer], Any], dict[str, Any]]] = {
    "inactive_key": (
        lambda engine, customer: engine.call(
            "set_key_state", p_key_id=customer.key_id, p_customer_id=None, p_state="inactive"
        ),
        {},
    ),
    "expired_key": (
        lambda engine, customer: engine.run(
            "update gateway.api_keys set expires_at = now() where id = %s", customer.key_id
        ),
        {},
    ),
    "scope_missing": (
        lambda engine, customer: engine.run(
            "update gateway.api_keys set scopes = '{usage}' where id = %s", customer.key_id
        ),
        {},
    ),
    "wrong_user": (lambda *_: None, {"p_username": "somebody else"}),
    "customer_suspended": (
        lambda engine, customer: engine.run(
            "update gateway.customers set active = false where id = %s", customer.id
        ),
        {},
    ),
    "customer_in_debt": (
        # paid, spent elsewhere, and refunded: nothing is free, and a cent is owed
        lambda engine, customer: (
            engine.paid(customer.id, 1),
            engine.call("add_credits", p_customer_id=customer.id, p_usd=usd("-10.01")),
            engine.refunded(1),
        ),
        {},
    ),
    "model_not_found": (lambda *_: None, {"p_models": ["no such model"]}),
    "model_not_allowed": (
        lambda engine, customer: engine.run(
            "update gateway.api_keys set allowed_models = '{}' where id = %s", customer.key_id
        ),
        {},
    ),
    "model_not_served": (lambda engine, _: engine.run("update gateway.services set active = false"), {}),
    "model_not_priced": (
        lambda engine, _: (engine.model("unpriced", {}), engine.service(["unpriced"])),
        {"p_models": ["unpriced"]},
    ),
    "model_wrong_output": (lambda *_: None, {"p_output": "embedding"}),
    "input_unbounded": (
        lambda engine, _: engine.run("update gateway.models set context_length = null"),
        {"p_input_tokens_bound": None},
    ),
    "insufficient_credits": (lambda *_: None, {"p_max_output_tokens": 10_000_000}),
    "rate_limit_exceeded": (
        lambda engine, customer: engine.call(
            "set_limits", p_key_id=customer.key_id, p_rate_limits={"requests_per_day": 0}
        ),
        {},
    ),
    "idempotency_running": (lambda engine, customer: engine.admitted(customer.key_hash, **KEY), {}),
    "idempotency_reused": (
        lambda engine, customer: engine.settle(engine.admitted(customer.key_hash, **KEY)),
        {},
    ),
    "idempotency_mismatch": (
        lambda engine, customer: engine.admitted(customer.key_hash, **{**KEY, "p_body_hash": digest("x")}),
        {},
    ),
}


@pytest.mark.parametrize("code", CASES)
def test_refusal_consumes_nothing_and_is_counted(engine: Engine, customer: Customer, code: str) -> None:
    arrange, parameters = CASES[code]
    engine.admitted(engine.customer().key_hash)  # another's running request, not to be touched
    arrange(engine, customer)
    before = engine.dump()
    for _ in range(2):
        told = engine.refused(customer.key_hash, **{**KEY, **parameters})
        assert told["refusal"] == code
        assert told["key_prefix"] == "sk_test"
    assert engine.dump() == before
    counted = engine.query(
        "select customer_id, key_id, code, sum(refusals)::int from gateway.refusal_rollups group by 1, 2, 3"
    )
    assert counted == [(customer.id, customer.key_id, code, 2)]
    logged = engine.query(
        "select distinct error_code, hold_usd, charge_usd, lease_until <= now() from gateway.requests"
        " where state = 'refused'"
    )
    assert logged == [(code, 0, 0, True)]
    engine.assert_books_agree()


def test_every_refusal_of_the_function_is_tried_here() -> None:
    import re

    from infra.local import paths

    text = "".join(
        (paths.SCHEMA.parent / "functions" / name).read_text(encoding="utf-8")
        for name in ("admit_request.sql",)
    )
    named = set(re.findall(r"'refusal', '([a-z_]+)'", text)) | set(
        re.findall(r"'(idempotency_[a-z]+)'\n", text)
    )
    assert "rate_limit_exceeded" in named
    assert named <= {*CASES, "unknown_key"}


def test_an_unknown_key_is_told_nothing_and_counted_nowhere(engine: Engine) -> None:
    before = engine.dump()
    assert engine.admit(digest("a guess")) == {"admitted": False, "refusal": "unknown_key"}
    assert engine.dump() == before
    assert engine.query("select * from gateway.refusal_rollups") == []


def test_an_operators_key_calls_no_model(engine: Engine) -> None:
    _, admin = engine.key(None, p_scopes=["admin"])
    assert engine.refused(admin)["refusal"] == "scope_missing"
    assert engine.query("select * from gateway.refusal_rollups") == []


def test_refusals_are_logged_by_a_sample(engine: Engine, customer: Customer) -> None:
    for _ in range(201):
        engine.refused(customer.key_hash, p_models=["none"])
    counts = engine.query("select refusals from gateway.refusal_rollups")
    logged = engine.value("select count(*) from gateway.requests where state = 'refused'")
    assert sum(row[0] for row in counts) == 201
    # one in a hundred, and the first of each quarter of an hour: the test may see one turn
    assert logged in {3, 4}


def test_a_long_model_name_does_not_fill_the_log(engine: Engine, customer: Customer) -> None:
    request_id = new_request_id()
    engine.refused(customer.key_hash, p_models=["m" * 100_000], p_request_id=request_id)
    assert len(engine.request(request_id)["requested_model"]) == 300


def test_a_request_without_any_model_is_refused(engine: Engine, customer: Customer) -> None:
    assert engine.refused(customer.key_hash, p_models=[])["refusal"] == "model_not_found"
    assert engine.refused(customer.key_hash, p_models=None)["refusal"] == "model_not_found"


def test_models_are_found_by_name_by_id_and_by_provider(engine: Engine, customer: Customer) -> None:
    model_id = engine.model("org/model", upstream_model="model-2026")
    engine.service(["org/model"])
    for wanted in (
        {"p_models": ["org/model"]},
        {"p_models": [], "p_model_id": model_id},
        {"p_models": ["openai-compatible/org/model"]},
        {"p_models": ["openai-compatible/model-2026"]},
        {"p_models": ["model-2026"], "p_provider": "openai-compatible"},
        {"p_models": ["org/model"], "p_provider": "openai-compatible"},
    ):
        told = engine.admitted(customer.key_hash, **wanted)
        assert [candidate["model"] for candidate in told["candidates"]] == ["org/model"], wanted
    for wanted in ({"p_models": ["model-2026"]}, {"p_models": ["org/model"], "p_provider": "openai"}):
        assert not engine.admit(customer.key_hash, **wanted)["admitted"]


def test_the_whole_name_is_looked_up_before_a_prefix_is_a_provider(
    engine: Engine, customer: Customer
) -> None:
    engine.model("openai/four", provider="openrouter")
    engine.service(["openai/four"], provider="openrouter")
    engine.model("four", provider="openai")
    engine.service(["four"], provider="openai")
    told = engine.admitted(customer.key_hash, p_models=["openai/four"])
    assert [candidate["provider"] for candidate in told["candidates"]] == ["openrouter"]
    engine.run("update gateway.models set active = false where name = 'openai/four'")
    told = engine.admitted(customer.key_hash, p_models=["openai/four"])
    assert [candidate["provider"] for candidate in told["candidates"]] == ["openai"]


def test_a_whole_name_that_nobody_serves_hides_no_provider(engine: Engine, customer: Customer) -> None:
    engine.model("openai/four", provider="openrouter")
    engine.model("four", provider="openai")
    own = engine.service(["four"], provider="openai")
    wanted = {"p_models": ["openai/four"]}

    def served(key_hash: str) -> list[str]:
        return [each["provider"] for each in engine.admitted(key_hash, **wanted)["candidates"]]

    assert served(customer.key_hash) == ["openai"]
    there = engine.service(["openai/four"], provider="openrouter")
    assert served(customer.key_hash) == ["openrouter"]
    # for a key that may not go there, it is as if nobody served it
    _, bounded = engine.key(customer.id, p_allowed_services=[own])
    assert served(bounded) == ["openai"]
    engine.call("update_service", p_id=there, p_changes={"active": False})
    assert served(customer.key_hash) == ["openai"]
    engine.call("update_service", p_id=own, p_changes={"active": False})
    assert engine.refused(customer.key_hash, **wanted)["refusal"] == "model_not_served"


def test_our_name_of_a_model_goes_before_a_providers(engine: Engine, customer: Customer) -> None:
    engine.model("four", {"input": "1", "output": "1"})
    engine.model("alias", PRICES, upstream_model="four")
    engine.service(["alias", "four"])
    told = engine.admitted(customer.key_hash, p_models=["openai-compatible/four"])
    assert [candidate["model"] for candidate in told["candidates"]] == ["four"]


def test_a_key_is_routed_to_its_services_alone(engine: Engine, customer: Customer) -> None:
    second = engine.service(["echo"], priority=900)
    _, key_hash = engine.key(customer.id, p_allowed_services=[second])
    assert [c["service_id"] for c in engine.admitted(key_hash)["candidates"]] == [second]
    engine.call("delete_service", p_id=second)
    assert engine.refused(key_hash)["refusal"] == "model_not_served"


def test_routes_are_tried_by_priority_and_models_by_the_clients_order(
    engine: Engine, customer: Customer
) -> None:
    engine.model("other")
    late, early = (
        engine.service(["echo", "other"], priority=200),
        engine.service(["echo", "other"], priority=1),
    )
    first = engine.value("select min(id) from gateway.services")
    told = engine.admitted(customer.key_hash, p_models=["other", "echo"])
    assert [(c["model"], c["service_id"]) for c in told["candidates"]] == [
        ("other", early),
        ("other", late),
        ("echo", early),
        ("echo", first),
        ("echo", late),
    ]


def test_traffic_is_shared_by_weight(engine: Engine) -> None:
    customer = engine.customer("1000", requests_per_minute=100_000)
    second = engine.service(["echo"])
    engine.run("update gateway.routes set weight = 3 where service_id = %s", second)
    first = [engine.admitted(customer.key_hash)["candidates"][0]["service_id"] == second for _ in range(400)]
    # of 400 draws at 3 : 1 it is 300 ± 8.7; six standard deviations are one run in a thousand million
    assert 248 <= sum(first) <= 352


def test_only_what_is_refused_is_answered_before_it_is_on_the_disk(
    engine: Engine, customer: Customer
) -> None:
    with engine.database.connect(autocommit=False) as connection:

        def waits() -> str:
            row = connection.execute("show synchronous_commit").fetchone()
            assert row is not None
            return str(row[0])

        connection.execute("set synchronous_commit = on")
        admission = engine.admit(customer.key_hash, connection=connection)
        assert (admission["admitted"], waits()) == (True, "on")
        connection.commit()
        assert engine.settle(admission, connection=connection)["status"] == "settled"
        assert waits() == "on"
        connection.commit()
        assert not engine.admit(customer.key_hash, connection=connection, p_models=["nothing"])["admitted"]
        assert waits() == "off"
        connection.commit()
        assert waits() == "on"
