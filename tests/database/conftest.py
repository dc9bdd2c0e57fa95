"""Fixtures of the engine's tests."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Protocol

import psycopg
import pytest

from infra.local.database import create_database, drop_database, migrate
from tests.database.engine import Customer, Engine
from tests.fixtures.database import AUTHENTICATOR_PASSWORD, Database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from infra.local.postgres import EmbeddedPostgres
    from tests.fixtures.database import NewDatabase


# As a new database is, past the guards, which refuse nothing less. What has no pages is left alone: it takes
# three times as long to truncate every table.
EMPTY = """
set session_replication_role = replica;
set client_min_messages = warning;
do $$
begin
    execute (
        select 'truncate ' || string_agg(oid::regclass::text, ', ') || ' cascade'
        from pg_class
        where relnamespace = 'gateway'::regnamespace and relkind = 'r' and pg_relation_size(oid) > 0
    );
    perform setval(format('%I.%I', schemaname, sequencename), start_value, false)
    from pg_sequences
    where schemaname = 'gateway' and last_value is not null;
    insert into gateway.settings default values;
    insert into gateway.usage_closing default values;
    insert into gateway.maintenance_state default values on conflict do nothing;
end
$$;
"""


def empty(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(EMPTY)


@pytest.fixture(scope="session")
def engine_database(new_database: NewDatabase) -> Iterator[Database]:
    """The database that `engine` empties for each test."""
    with new_database() as made:
        yield made


@pytest.fixture
def engine(engine_database: Database) -> Iterator[Engine]:
    """The engine as a new database has it, with one model, `echo`, on one service."""
    empty(engine_database.url)
    with engine_database.connect() as connection:
        made = Engine(engine_database, connection)
        made.model("echo")
        made.service(["echo"])
        yield made


@pytest.fixture
def own_engine(database: Database) -> Iterator[Engine]:
    """The same on a database of the test's own, for tests that change its schema."""
    with database.connect() as connection:
        made = Engine(database, connection)
        made.model("echo")
        made.service(["echo"])
        yield made


@pytest.fixture
def customer(engine: Engine) -> Customer:
    """A customer with 10 USD and one key."""
    return engine.customer()


@pytest.fixture(scope="module")
def module_engine(module_database: Database) -> Iterator[Engine]:
    """One database for the tests of a module that only add to it: a table of cases costs no databases."""
    with module_database.connect() as connection:
        made = Engine(module_database, connection)
        made.model("echo")
        made.service(["echo"])
        yield made


@pytest.fixture
def shared_engine(module_engine: Engine) -> Engine:
    """The module's database with the settings as they are from the start."""
    module_engine.settings(
        commission_percent="5",
        billing_mode="markup",
        flat_usd_per_1k_tokens="0.02",
        default_max_output_tokens=8192,
        default_requests_per_minute=60,
        expired_hold_policy="release",
    )
    return module_engine


OWNER = "sluice_owner"
OWNER_PASSWORD = "owner-of-the-tests"


def create_owner(url: str) -> None:
    """Make a role as Supabase's postgres is: it owns its database and is no superuser."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            f"create role {OWNER} login createdb createrole bypassrls password '{OWNER_PASSWORD}'"
        )


class NewOwnedDatabase(Protocol):
    """Makes a database whose owner has applied the migrations; its `url` is that owner's."""

    def __call__(self) -> AbstractContextManager[Database]: ...


@pytest.fixture(scope="session")
def new_owned_database(postgres: EmbeddedPostgres) -> NewOwnedDatabase:
    """A factory of them, as `new_database` is of the superuser's."""
    template = "owned_template"
    numbers = itertools.count(1)
    create_owner(postgres.url())
    create_database(postgres.url(), template)
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(f"alter database {template} owner to {OWNER}")
    migrate(postgres.url(template, user=OWNER, password=OWNER_PASSWORD))

    @contextlib.contextmanager
    def make() -> Iterator[Database]:
        name = f"owned_{next(numbers)}"
        create_database(postgres.url(), name, template=template)
        try:
            yield Database(
                name=name,
                url=postgres.url(name, user=OWNER, password=OWNER_PASSWORD),
                authenticator_url=postgres.url(name, user="authenticator", password=AUTHENTICATOR_PASSWORD),
            )
        finally:
            drop_database(postgres.url(), name)

    return make
