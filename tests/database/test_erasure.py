"""A person is erased whole and for good, and the books stay. Nothing else can be changed that way."""

from __future__ import annotations

import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.database.conftest import empty
from tests.database.engine import Engine, call, digest, race, usd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from infra.local.postgres import EmbeddedPostgres
    from tests.database.engine import Customer
    from tests.fixtures.database import Connection, Database

PERSON = "canary-of-the-person"
AUTH_USER = str(uuid.UUID(int=0xC0FFEE))
USER = f"user {AUTH_USER}"


@pytest.fixture(params=["new_database", "new_owned_database"], ids=["superuser", "owner"], scope="module")
def operated_database(request: pytest.FixtureRequest) -> Iterator[Database]:
    make: Callable[[], AbstractContextManager[Database]] = request.getfixturevalue(request.param)
    with make() as database:
        yield database


@pytest.fixture
def studio(operated_database: Database, postgres: EmbeddedPostgres) -> Iterator[Engine]:
    """The engine on the connection of an operator: the local stack's superuser, or Supabase's postgres."""
    empty(postgres.url(operated_database.name))
    with operated_database.connect() as connection:
        engine = Engine(operated_database, connection)
        engine.model("echo")
        engine.service(["echo"])
        yield engine


def person(engine: Engine) -> Customer:
    """A customer whose name stands wherever a name can, and another who must stay as it is."""
    engine.customer()
    customer = engine.customer(None)
    for field in ("name", "username", "company"):
        engine.call("update_customer", p_id=customer.id, p_changes={field: f"{PERSON} {field}"}, p_actor=USER)
    engine.call("update_customer", p_id=customer.id, p_changes={"email": f"{PERSON}@example.org"})
    engine.run("update gateway.customers set auth_user_id = %s where id = %s", AUTH_USER, customer.id)
    engine.run("update gateway.api_keys set name = %s where id = %s", f"{PERSON}'s key", customer.key_id)
    engine.call(
        "add_credits",
        p_customer_id=customer.id,
        p_usd=usd(10),
        p_reference="payment 1",
        p_note=f"for {PERSON}",
    )
    engine.call("set_limits", p_key_id=customer.key_id, p_rate_limits={"requests_per_day": 9}, p_actor=USER)
    return customer


def everything(engine: Engine) -> str:
    tables = engine.query(
        "select oid::regclass::text from pg_class where relnamespace = 'gateway'::regnamespace"
        " and relkind in ('r', 'p') and not relispartition"
    )
    assert len(tables) > 15
    return "\n".join(
        engine.value(f"select coalesce(string_agg(t::text, chr(10)), '') from {table} as t")
        for (table,) in tables
    )


def test_nothing_is_left_of_the_person_and_all_of_the_books(studio: Engine) -> None:
    customer = person(studio)
    studio.settle(studio.admitted(customer.key_hash))
    before = everything(studio)
    assert PERSON in before
    assert AUTH_USER in before
    amounts = (
        "select id, customer_id, amount_usd, balance_after_usd, reference, request_id"
        " from gateway.ledger_entries order by id"
    )
    books = [
        studio.account(customer.id),
        studio.query(amounts),
        studio.query("select * from gateway.requests"),
    ]
    others = (
        "select a::text from gateway.audit_log as a"
        " where entity in ('services', 'models', 'prices', 'offers') order by id"
    )
    kept = studio.query(others)

    told = studio.call("erase_customer", p_id=customer.id, p_actor="key sk_admin")

    after = everything(studio)
    assert PERSON not in after
    assert AUTH_USER not in after
    assert [
        studio.account(customer.id), studio.query(amounts), studio.query("select * from gateway.requests"),
    ] == books  # fmt: skip
    assert studio.query(others) == kept
    nobody = f"erased-{customer.id}"
    assert (told["name"], told["username"], told["email"], told["company"]) == (nobody, nobody, None, None)
    assert (told["active"], told["signs_in"], told["active_keys"]) == (False, False, 0)
    assert told["erased_at"] is not None
    assert studio.value(
        "select bool_and(revoked_at is not null) from gateway.api_keys where customer_id = %s", customer.id
    )
    # who did it is known, and what was done before: but not to whom
    rows = studio.query(
        "select actor, action, before, after from gateway.audit_log"
        " where entity = 'customers' and entity_id = %s order by id",
        str(customer.id),
    )
    assert {row[0] for row in rows} >= {"key sk_admin", "user (erased)"}
    assert rows[0][3]["name"] == "(erased)"
    assert rows[0][3]["time_zone"] == "UTC"
    assert rows[-1][2]["email"] == rows[-1][3]["name"] == "(erased)"
    # and of the other customer
    assert "Customer 1" in after
    studio.assert_books_agree()


def test_again_it_changes_nothing(studio: Engine) -> None:
    customer = person(studio)
    first = studio.call("erase_customer", p_id=customer.id)
    before = everything(studio)
    assert studio.call("erase_customer", p_id=customer.id) == first
    assert everything(studio) == before
    assert studio.call("erase_customer", p_id=customer.id + 1) == {"error": "unknown_customer"}


@pytest.mark.parametrize("policy", ["release", "charge"])
def test_running_requests_settle_and_expire_all_the_same(engine: Engine, policy: str) -> None:
    engine.settings(expired_hold_policy=policy)
    customer = engine.customer()
    settled, expired, late = (engine.admitted(customer.key_hash) for _ in range(3))
    engine.call("erase_customer", p_id=customer.id)
    assert engine.refused(customer.key_hash)["refusal"] in {"customer_suspended", "inactive_key"}
    assert engine.settle(settled)["charge_usd"] == "0.00063"
    engine.lapse(expired)
    engine.lapse(late)
    assert engine.call("expire_holds")["expired"] == 2
    assert engine.settle(late)["charge_usd"] == "0.00063"
    balance, held = engine.account(customer.id)
    assert (balance, held) == (10 - usd("0.00126") - (usd("0.0063") if policy == "charge" else 0), 0)
    engine.assert_books_agree()


def test_nothing_is_paid_in_but_what_is_left_is_paid_out(engine: Engine) -> None:
    customer = engine.customer()
    engine.call("erase_customer", p_id=customer.id)
    for named in ({"p_customer_id": customer.id}, {"p_key_hash": customer.key_hash}):
        assert engine.call("add_credits", **named, p_usd=usd(1)) == {"error": "erased_customer"}
    paid = engine.call("add_credits", p_customer_id=customer.id, p_usd=usd(-10), p_reference="refund 1")
    assert paid["balance_after_usd"] == "0"
    assert engine.call("update_customer", p_id=customer.id, p_changes={"active": True}) == {
        "error": "erased_customer"
    }
    key = {"p_name": "key", "p_prefix": "sk_test", "p_secret_hash": digest("new")}
    assert engine.call("create_key", p_customer_id=customer.id, **key) == {"error": "erased_customer"}
    with pytest.raises(psycopg.errors.RestrictViolation):
        engine.run(
            "insert into gateway.api_keys (customer_id, name, prefix, secret_hash)"
            " values (%s, 'key', 'sk_test', sha256('new'))",
            customer.id,
        )
    assert engine.call("set_key_state", p_key_id=customer.key_id, p_customer_id=None, p_state="active") == {
        "error": "revoked_key"
    }
    engine.assert_books_agree()


def test_a_name_that_somebody_took_does_not_keep_anybody_from_being_erased(engine: Engine) -> None:
    first, second = engine.customer(), engine.customer()
    engine.call("update_customer", p_id=second.id, p_changes={"username": f"erased-{first.id}"})
    told = engine.call("erase_customer", p_id=first.id)
    assert told["username"].startswith(f"erased-{first.id}-")
    assert engine.call("find_customer", p_username=f"erased-{first.id}") == second.id


def test_the_address_and_the_name_are_free_again(engine: Engine) -> None:
    first = engine.customer()
    email = engine.value("select email from gateway.customers where id = %s", first.id)
    engine.call("erase_customer", p_id=first.id)
    again = engine.call("create_customer", p_name="Again", p_email=email)
    assert again["id"] > first.id


FLAGS = "select set_config('gateway.engine', 'on', false), set_config('gateway.erased_user', %s, false)"


@pytest.mark.parametrize(
    "statement",
    [
        # the audit log, of whoever is not erased
        "update gateway.audit_log set before = null",
        "update gateway.audit_log set after = gateway.without_person(after, entity) where entity_id = '1'",
        "update gateway.audit_log set actor = 'user (erased)' where actor <> 'user (erased)'",
        "update gateway.audit_log set at = now()",
        # and of who is: nothing but what erasing does
        "update gateway.audit_log set before = null where entity = 'customers' and entity_id = '2'",
        "update gateway.audit_log set after = after || '{\"name\": \"x\"}' where entity_id = '2'",
        "update gateway.audit_log set after = after || '{\"active\": true}' where entity_id = '2'",
        "update gateway.audit_log set entity_id = '1' where entity = 'customers' and entity_id = '2'",
        "update gateway.audit_log set action = 'insert' where entity_id = '2'",
        "delete from gateway.audit_log where entity_id = '2'",
        "truncate gateway.audit_log",
        # the ledger
        "update gateway.ledger_entries set note = null where customer_id = 1",
        "update gateway.ledger_entries set note = 'x' where customer_id = 2",
        "update gateway.ledger_entries set reference = null where customer_id = 2",
        "update gateway.ledger_entries set amount_usd = 1 where customer_id = 2",
        "update gateway.ledger_entries set actor = 'x' where customer_id = 2",
        "delete from gateway.ledger_entries where customer_id = 2",
    ],
)
@pytest.mark.parametrize("flags", ["none", "all"])
def test_erasing_opens_nothing_else(studio: Engine, statement: str, flags: str) -> None:
    customer = person(studio)
    assert customer.id == 2
    studio.call("add_credits", p_customer_id=1, p_usd=usd(1), p_note="a note", p_reference="r")
    studio.call("erase_customer", p_id=customer.id)
    before = everything(studio)
    if flags == "all":
        studio.query(FLAGS, str(uuid.uuid4()))
    with pytest.raises((psycopg.errors.RestrictViolation, psycopg.errors.InsufficientPrivilege)):
        studio.run(statement)
    studio.query(
        "select set_config('gateway.engine', '', false), set_config('gateway.erased_user', '', false)"
    )
    assert everything(studio) == before


@pytest.mark.parametrize(
    "statement",
    [
        "update gateway.customers set erased_at = now() where id = 1",
        "update gateway.customers set erased_at = now(), active = false, email = null where id = 1",
        "update gateway.customers set erased_at = null where id = 2",
        "update gateway.customers set erased_at = null, name = 'Back', active = true where id = 2",
        "update gateway.customers set name = 'Back' where id = 2",
        "insert into gateway.customers (name, username, active, erased_at) values ('x', 'x', false, now())",
        "update gateway.api_keys set customer_id = 2 where customer_id = 1",
        (
            "insert into gateway.api_keys (customer_id, name, prefix, secret_hash)"
            " values (2, 'k', 'sk_x', sha256('x'))"
        ),
    ],
)
def test_nobody_is_erased_or_brought_back_by_hand(studio: Engine, statement: str) -> None:
    studio.call("erase_customer", p_id=person(studio).id)
    before = everything(studio)
    with pytest.raises(psycopg.errors.RestrictViolation):
        studio.run(statement)
    assert everything(studio) == before


@pytest.mark.parametrize(
    "changes",
    ["active = true", "email = 'back@example.org'", "company = 'Back'", "active = true, name = 'Back'"],
)
def test_even_the_engine_can_not_give_an_erased_customer_a_person(engine: Engine, changes: str) -> None:
    customer = engine.customer()
    engine.call("erase_customer", p_id=customer.id)
    engine.query("select set_config('gateway.engine', 'on', false)")
    with pytest.raises(psycopg.errors.CheckViolation):
        engine.run(f"update gateway.customers set {changes} where id = %s", customer.id)


def test_of_an_erasure_and_what_comes_with_it_one_is_first(engine: Engine) -> None:
    for number in range(8):
        customer = engine.customer()

        def work(
            connection: Connection, worker: int, number: int = number, customer: Customer = customer
        ) -> Any:
            if worker in {0, 3}:
                return call(connection, "erase_customer", p_id=customer.id)
            if worker == 1:
                return call(connection, "add_credits", p_customer_id=customer.id, p_usd=usd(1))
            try:
                return call(
                    connection, "create_key", p_customer_id=customer.id, p_name="raced", p_prefix="sk_raced",
                    p_secret_hash=digest(f"raced {number}"),
                )  # fmt: skip
            except psycopg.errors.RestrictViolation:
                return {"error": "erased"}

        erased, paid, made, again = race(engine.database, 4, work)
        assert erased["erased_at"] == again["erased_at"]
        after = 10 if "error" in paid else 11
        assert engine.account(customer.id) == (after, 0)
        keys = engine.query("select name, active from gateway.api_keys where customer_id = %s", customer.id)
        assert set(keys) == {("erased", False)}
        assert len(keys) == (1 if "error" in made else 2)
    engine.assert_books_agree()


def test_a_payment_that_is_under_way_leaves_no_note(engine: Engine) -> None:
    customer = engine.customer()
    with engine.database.connect(autocommit=False) as paying, engine.database.connect() as erasing:
        call(paying, "add_credits", p_customer_id=customer.id, p_usd=usd(1), p_note=f"for {PERSON}")
        with ThreadPoolExecutor(1) as pool:
            erased = pool.submit(call, erasing, "erase_customer", p_id=customer.id)
            waiting = (
                "select count(*) from pg_stat_activity where datname = current_database()"
                " and wait_event_type = 'Lock'"
            )
            while not erased.done() and not engine.value(waiting):
                time.sleep(0.01)
            paying.commit()
            assert erased.result(20)["balance_usd"] == "11"
    assert PERSON not in everything(engine)
    assert engine.account(customer.id) == (11, 0)


def test_an_erasure_takes_the_keys_in_the_order_that_everybody_does(engine: Engine) -> None:
    customer = engine.customer()
    other, _ = engine.key(customer.id)
    # Behind the other one now, in the table and in its index.
    engine.call(
        "rotate_key",
        p_key_id=customer.key_id,
        p_customer_id=None,
        p_prefix="sk_new",
        p_secret_hash=digest("new"),
    )
    with engine.database.connect(autocommit=False) as changing, engine.database.connect() as erasing:
        changing.execute("select from gateway.lock_keys(array[%s]::bigint[])", (customer.key_id,))
        with ThreadPoolExecutor(1) as pool:
            erased = pool.submit(call, erasing, "erase_customer", p_id=customer.id)
            while not engine.value("select count(*) from pg_locks where not granted"):
                assert not erased.done()
            changing.execute("select from gateway.lock_keys(array[%s]::bigint[])", (other,))
            changing.commit()
            assert erased.result(20)["erased_at"]


def test_a_customer_is_suspended_at_once(engine: Engine) -> None:
    customer = engine.customer()
    running = engine.admitted(customer.key_hash)
    told = engine.call("update_customer", p_id=customer.id, p_changes={"active": False})
    assert told["active"] is False
    assert engine.refused(customer.key_hash)["refusal"] == "customer_suspended"
    assert engine.settle(running)["charge_usd"] == "0.00063"
    engine.call("update_customer", p_id=customer.id, p_changes={"active": True})
    engine.admitted(customer.key_hash)
