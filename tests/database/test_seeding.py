"""The local stack's seeds: there once, however often it starts, and its secrets hashed or sealed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from gateway import auth, service_keys
from infra.local.seeding import (
    ApiError,
    Seeds,
    call,
    create_admin_key,
    provider_keys,
    seed_stack,
)

if TYPE_CHECKING:
    from tests.fixtures.database import Database

MASTER_KEYS = {"k1": b"1" * 32}
SEEDS = Seeds(
    admin_key=auth.new_key(),
    demo_key=auth.new_key(),
    simulator_url="http://127.0.0.1:5001",
    simulator_key="sk-simulator-0001",
    master_keys=MASTER_KEYS,
    provider_keys={"groq": "gsk_first_key"},
)

SERVICES = ["simulator", "simulator-anthropic", "simulator-gemini", "groq"]


def service(database: Database, name: str) -> dict[str, Any]:
    with database.connect() as connection:
        row = connection.execute(
            "select to_jsonb(s) from gateway.services as s where name = %s", [name]
        ).fetchone()
    assert row is not None
    found: dict[str, Any] = row[0]
    return found


def opened(found: dict[str, Any], base_url: str) -> str:
    return service_keys.open_sealed(
        found["provider_key"],
        master_keys=MASTER_KEYS,
        service_id=found["id"],
        provider=found["provider"],
        base_url=base_url,
    )


def snapshot(database: Database) -> list[Any]:
    tables = (
        "customers",
        "accounts",
        "api_keys",
        "models",
        "offers",
        "prices",
        "services",
        "routes",
        "ledger_entries",
    )
    with database.connect() as connection:
        return [
            connection.execute(f"select to_jsonb(t) from gateway.{table} as t order by 1").fetchall()
            for table in tables
        ]


def test_seeding_again_changes_nothing(database: Database) -> None:
    assert seed_stack(database.url, SEEDS) == SERVICES
    first = snapshot(database)
    assert seed_stack(database.url, SEEDS) == SERVICES
    assert snapshot(database) == first


def test_the_demo_customer_can_pay_and_the_admin_key_is_an_admins(database: Database) -> None:
    seed_stack(database.url, SEEDS)
    with database.connect() as connection:
        demo = call(connection, "authenticate_key", p_key_hash=auth.key_hash(SEEDS.demo_key))
        assert demo["scopes"] == ["chat", "usage", "keys", "billing"]
        admin = call(connection, "authenticate_key", p_key_hash=auth.key_hash(SEEDS.admin_key))
        assert admin["scopes"] == ["admin"]
        balance = connection.execute(
            "select balance_usd from gateway.accounts where customer_id = %s", [demo["customer_id"]]
        ).fetchone()
        assert balance is not None
        assert balance[0] == 5
        names = {model["name"] for model in call(connection, "list_models")["models"]}
    assert {"sim/echo", "sim/status-429"} <= names


def test_no_secret_is_stored_in_clear(database: Database) -> None:
    seed_stack(database.url, SEEDS)
    stored = str(snapshot(database))
    for secret in (SEEDS.admin_key, SEEDS.demo_key, SEEDS.simulator_key, SEEDS.provider_keys["groq"]):
        assert secret not in stored
    assert opened(service(database, "groq"), "https://api.groq.com/openai/v1") == "gsk_first_key"


def test_the_simulators_service_follows_its_port_and_keys_follow_the_environment(database: Database) -> None:
    seed_stack(database.url, SEEDS)
    moved = replace(SEEDS, simulator_url="http://127.0.0.1:5002", provider_keys={"groq": "gsk_second_key"})
    seed_stack(database.url, moved)
    simulator = service(database, "simulator")
    assert simulator["base_url"] == "http://127.0.0.1:5002/v1"
    assert opened(simulator, "http://127.0.0.1:5002/v1") == SEEDS.simulator_key
    groq = service(database, "groq")
    assert opened(groq, "https://api.groq.com/openai/v1") == "gsk_second_key"
    assert groq["provider_key_last4"] == "_key"


def test_what_an_admin_changed_stays(database: Database) -> None:
    seed_stack(database.url, SEEDS)
    with database.connect() as connection:
        connection.execute(
            "update gateway.services set active = false, priority = 7 where name = 'simulator'"
        )
    seed_stack(database.url, SEEDS)
    simulator = service(database, "simulator")
    assert (simulator["active"], simulator["priority"]) == (False, 7)


def test_an_admin_key_is_made_once(database: Database) -> None:
    key = auth.new_key()
    assert create_admin_key(database.url, key, "operator") is True
    assert create_admin_key(database.url, key, "operator") is False


def test_a_refusal_names_its_function_and_code(database: Database) -> None:
    with (
        database.connect() as connection,
        pytest.raises(ApiError, match=r"api\.authenticate_key.*unknown_key"),
    ):
        call(connection, "authenticate_key", p_key_hash="00" * 32)


def test_only_keys_of_providers_that_the_gateway_knows_are_taken() -> None:
    environment = {"OPENAI_API_KEY": "sk-a", "XAI_API_KEY": " ", "HF_TOKEN": "hf_b", "PATH": "/bin"}
    assert provider_keys(environment) == {"openai": "sk-a", "huggingface": "hf_b"}
