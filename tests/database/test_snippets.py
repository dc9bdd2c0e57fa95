"""The saved queries for Studio's SQL editor: each runs as it stands; those that edit do what they say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from infra.local import paths
from infra.local.database import seed
from infra.local.statements import split_statements
from tests.database.conftest import empty
from tests.database.engine import Engine, usd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from infra.local.postgres import EmbeddedPostgres
    from tests.database.conftest import NewOwnedDatabase
    from tests.fixtures.database import Database

SNIPPETS = sorted((paths.REPOSITORY / "supabase" / "snippets").glob("*.sql"))
# Whom the examples are about, until the operator says.
ADDRESS = "ada@example.com"
PREFIX = "sk_a1B2c3D4"


@pytest.fixture(scope="module")
def owned_database(new_owned_database: NewOwnedDatabase) -> Iterator[Database]:
    with new_owned_database() as made:
        yield made


@pytest.fixture
def studio(owned_database: Database, postgres: EmbeddedPostgres) -> Iterator[Engine]:
    """A customer that has used and failed and runs, on the connection of an owner who is no superuser."""
    empty(postgres.url(owned_database.name))
    with owned_database.connect() as connection:
        made = Engine(owned_database, connection)
        made.model("echo")
        made.service(["echo"])
        customer = made.customer("10")
        made.settle(made.admitted(customer.key_hash))
        made.fail(made.admitted(customer.key_hash))
        made.admitted(customer.key_hash)
        yield made


def run(engine: Engine, name: str, **replaced: tuple[str, str]) -> list[list[tuple[Any, ...]]]:
    """Run a snippet, with texts of it replaced; the rows of each of its statements."""
    text = (paths.REPOSITORY / "supabase" / "snippets" / f"{name}.sql").read_text(encoding="utf-8")
    for old, new in replaced.values():
        assert old in text
        text = text.replace(old, new)
    return [engine.query(statement) for statement in split_statements(text)]


def test_there_is_a_snippet_for_every_question() -> None:
    assert len(SNIPPETS) > 12


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda path: path.stem)
def test_each_runs_as_it_stands_and_changes_nothing(studio: Engine, snippet: Path) -> None:
    before, audited = studio.dump(), studio.value("select count(*) from gateway.audit_log")
    assert snippet.read_text(encoding="utf-8").startswith("-- "), "says what it is for"
    run(studio, snippet.stem)
    assert studio.dump() == before
    assert studio.value("select count(*) from gateway.audit_log") == audited


def test_they_answer(studio: Engine) -> None:
    ((spender,),) = run(studio, "top_spenders")
    assert (spender[1], spender[4], spender[5]) == ("Customer 1", usd("0.00063"), usd("0.00063"))
    ((model,),) = run(studio, "margin_by_model")
    assert (model[0], model[1], model[7]) == ("echo", 2, usd("0.00003"))
    ((failed,),) = run(studio, "requests_that_failed")
    assert (failed[6], failed[7]) == ("failed", 502)
    summary, holds = run(studio, "holds_outstanding")
    assert (summary[0][:3], len(holds)) == ((False, 1, usd("0.0063")), 1)
    ((price,),) = run(studio, "prices_changed_lately")
    assert (price[2], price[5], price[6]) == ("echo", 2, None)
    ((ledger,),) = run(studio, "ledger_check")
    assert '"ok": true' in ledger[0]
    assert len(run(studio, "audit_of_the_last_day")[0]) > 5
    statement = run(studio, "customer_statement", address=(ADDRESS, "c1@example.org"))[0]
    assert [(row[1], row[2], row[3]) for row in statement] == [
        ("credit", 1, 10),
        ("charge", 1, usd("-0.00063")),
    ]
    assert statement[1][4] == usd("9.99937")


def test_those_that_edit_do_what_they_say_and_are_audited(studio: Engine) -> None:
    key_id, key_hash = studio.key(1)
    studio.run("update gateway.api_keys set prefix = 'sk_mine' where id = %s", key_id)

    def last_audited() -> tuple[Any, ...]:
        return studio.query("select entity, action, actor from gateway.audit_log order by id desc limit 1")[0]

    who = studio.value("select session_user::text")
    address = (ADDRESS, "c1@example.org")
    run(studio, "limit_customer", address=address)
    assert last_audited() == ("limits", "insert", who)
    run(studio, "limit_customer", address=address, amount=("5, 4 from", "7, 6 from"))
    assert studio.query("select per, spend_usd, warn_spend_usd from gateway.limits") == [("day", 7, 6)]
    run(studio, "give_credits", address=address)
    run(studio, "give_credits", address=address)  # the reference is credited once
    assert studio.account(1)[0] == usd("19.99937")
    run(studio, "change_price", model=("my-model", "echo"), provider=("openai", "openai-compatible"))
    assert studio.query("select input, output from gateway.prices order by id") == [
        (2, 8),
        (usd("0.15"), usd("0.6")),
    ]
    offer = {"model": ("my-model", "echo"), "provider": ("openai", "openai-compatible")}
    run(studio, "change_price_by_length", **offer)
    assert studio.value("select tiers from gateway.prices order by id desc limit 1") == [
        {"above_input_tokens": 200_000, "input": usd("2.5"), "output": 15}
    ]
    assert last_audited() == ("prices", "insert", who)
    run(studio, "suspend_customer", address=address)
    assert last_audited() == ("customers", "update", who)
    assert studio.refused(key_hash)["refusal"] == "customer_suspended"
    run(studio, "suspend_customer", address=address, active=("active = false", "active = true"))
    assert studio.admitted(key_hash)
    run(studio, "revoke_key", prefix=(PREFIX, "sk_mine"))
    assert last_audited() == ("api_keys", "update", who)
    assert studio.refused(key_hash)["refusal"] == "inactive_key"
    assert studio.value("select count(*) from gateway.api_keys where revoked_at is null") == 1
    studio.assert_books_agree()


def test_the_seed_of_a_local_project_is_a_customer_with_money_and_no_secret(database: Database) -> None:
    assert seed(database.url)
    with database.connect() as connection:
        engine = Engine(database, connection)
        assert engine.account(1) == (5, 0)
        assert engine.value("select count(*) from gateway.api_keys") == 0
        # and again by hand, as `supabase db reset` would on what is there
        connection.execute(paths.SEED.read_bytes())
        assert engine.query("select name, balance_usd from gateway.customer_spend") == [("Demo", 5)]
        engine.assert_books_agree()
