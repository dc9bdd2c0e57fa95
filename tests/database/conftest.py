"""Fixtures of the engine's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.database.engine import Customer, Engine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fixtures.database import Database


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    """A database of the test's own with one model, `echo`, on one service."""
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
