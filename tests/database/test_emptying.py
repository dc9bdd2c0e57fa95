"""What the tests of the engine share is as a new database is, whatever the test before has left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.database.conftest import empty

if TYPE_CHECKING:
    from tests.database.engine import Engine
    from tests.fixtures.database import Connection, Database

TABLES = """
    select oid::regclass::text from pg_class
    where relnamespace = 'gateway'::regnamespace and relkind in ('r', 'p') and not relispartition
    order by 1
"""
SEQUENCES = "select sequencename, last_value from pg_sequences where schemaname = 'gateway' order by 1"
# When each was made, which differs.
TIMES = ("created_at", "updated_at", "closed_until")


def held(connection: Connection) -> dict[str, Any]:
    """Every table's rows without their times, and where every sequence stands."""
    tables = [name for (name,) in connection.execute(TABLES).fetchall()]
    rows = {
        name: connection.execute(
            f"select (to_jsonb(t) - %s::text[])::text from {name} as t order by 1", [list(TIMES)]
        ).fetchall()
        for name in tables
    }
    return {**rows, "sequences": connection.execute(SEQUENCES).fetchall()}


def test_nothing_is_left_and_numbers_start_again(
    engine: Engine, engine_database: Database, database: Database
) -> None:
    customer = engine.customer()
    engine.settle(engine.admitted(customer.key_hash))
    engine.connection.execute("select api.reserve_service_id()")
    with database.connect() as new, engine_database.connect() as used:
        as_new = held(new)
        assert held(used) != as_new
        empty(engine_database.url)
        assert held(used) == as_new
