"""The schema itself: commented, indexed, and at home on every PostgreSQL that it may meet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

from infra.local.database import create_database, create_roles, migrate
from infra.local.postgres import EmbeddedPostgres
from tests.database.conftest import OWNER, OWNER_PASSWORD, create_owner
from tests.database.engine import Engine, usd
from tests.fixtures.database import AUTHENTICATOR_PASSWORD, SETTINGS, Database

if TYPE_CHECKING:
    from pathlib import Path


def test_every_table_and_column_says_what_it_is(module_engine: Engine) -> None:
    # a partition's columns are its parent's
    assert (
        module_engine.query(
            "select c.relname, a.attname from pg_class as c left join pg_attribute as a"
            " on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped"
            " where c.relnamespace in ('gateway'::regnamespace, 'legacy'::regnamespace)"
            " and c.relkind in ('r', 'p', 'v', 'm')"
            " and (obj_description(c.oid, 'pg_class') is null"
            " or not c.relispartition and col_description(c.oid, a.attnum) is null)"
        )
        == []
    )
    assert (
        module_engine.value(
            "select count(*) from pg_description as d join pg_class as c on c.oid = d.objoid and"
            " d.objsubid > 0"
            " where c.relnamespace = 'gateway'::regnamespace"
        )
        > 100
    )


def test_every_function_says_what_it_does(module_engine: Engine) -> None:
    assert (
        module_engine.query(
            "select p.oid::regprocedure::text from pg_proc as p"
            " where p.pronamespace in ('gateway'::regnamespace, 'api'::regnamespace) and"
            " obj_description(p.oid, 'pg_proc') is null"
        )
        == []
    )


def test_every_schema_and_type_says_what_it_is(module_engine: Engine) -> None:
    assert (
        module_engine.query(
            "select n.nspname from pg_namespace as n where n.nspname in ('api', 'gateway', 'legacy')"
            " and obj_description(n.oid, 'pg_namespace') is null"
            # of the types, those that are made for themselves: every table has one, too
            " union all select t.typname from pg_type as t join pg_class as c on c.oid = t.typrelid"
            " where t.typnamespace = 'gateway'::regnamespace and c.relkind = 'c'"
            " and obj_description(t.oid, 'pg_type') is null"
        )
        == []
    )


def test_every_foreign_key_has_an_index(module_engine: Engine) -> None:
    # one whose first columns are the key's
    assert (
        module_engine.query(
            "select k.conrelid::regclass::text, k.conname from pg_constraint as k"
            " where k.contype = 'f' and k.connamespace = 'gateway'::regnamespace and not exists ("
            " select from pg_index as i where i.indrelid = k.conrelid and"
            " (i.indkey::int2[])[0:cardinality(k.conkey) - 1] @> k.conkey)"
        )
        == []
    )
    assert (
        module_engine.value(
            "select count(*) from pg_constraint where contype = 'f' and connamespace ="
            " 'gateway'::regnamespace"
        )
        > 8
    )


def test_money_is_exact_everywhere(module_engine: Engine) -> None:
    rows = module_engine.query(
        "select c.relkind, c.relname, a.attname, format_type(a.atttypid, a.atttypmod)"
        " from pg_attribute as a join pg_class as c on c.oid = a.attrelid"
        " where c.relnamespace in ('gateway'::regnamespace, 'legacy'::regnamespace)"
        " and c.relkind in ('r', 'p', 'v', 'm') and a.attnum > 0 and not a.attisdropped"
        " and (a.attname ~ 'usd|cost|price(_|$)'"
        " or a.atttypid in ('real'::regtype, 'double precision'::regtype, 'money'::regtype))"
        " and a.atttypid not in ('timestamptz'::regtype, 'timestamp'::regtype)"
    )
    assert len(rows) > 15
    money = [row for row in rows if not row[2].endswith("_id")]
    assert [row for row in money if not row[3].startswith("numeric")] == []
    # a view's sum is as exact as what it sums, and has no scale of its own
    tables = [row for row in money if row[0] not in ("v", "m")]
    assert [row for row in tables if not row[3].removesuffix("[]").endswith(",10)")] == []


def test_no_moment_is_without_its_zone(module_engine: Engine) -> None:
    assert (
        module_engine.query(
            "select table_name, column_name from information_schema.columns"
            " where table_schema in ('gateway', 'legacy') and data_type = 'timestamp without time zone'"
        )
        # days and months as a customer's own calendar has them
        == [("usage_periods", "period")]
    )


def test_no_extension_is_needed(module_engine: Engine) -> None:
    assert module_engine.query("select extname from pg_extension") == [("plpgsql",)]


@pytest.mark.parametrize("version", [16, 18])
def test_an_owner_who_is_no_superuser_applies_the_migrations_and_the_engine_runs(
    tmp_path: Path, version: int
) -> None:
    with EmbeddedPostgres(tmp_path / "server", version=version, settings=SETTINGS) as server:
        create_roles(server.url(), authenticator_password=AUTHENTICATOR_PASSWORD)
        create_owner(server.url())
        create_database(server.url(), "owned")
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute(f"alter database owned owner to {OWNER}".encode())
        url = server.url("owned", user=OWNER, password=OWNER_PASSWORD)
        migrate(url)
        database = Database(
            "owned", url, server.url("owned", user="authenticator", password=AUTHENTICATOR_PASSWORD)
        )
        with database.connect() as connection, database.as_role("service_role") as gateway:
            engine = Engine(database, connection)
            engine.model("echo")
            engine.service(["echo"])
            customer = engine.customer()
            engine.call("set_limits", p_customer_id=customer.id, p_rate_limits={"tokens_per_day": 10_000})
            engine.connection = gateway
            admission = engine.admitted(
                customer.key_hash, p_idempotency_key="k", p_body_hash="00" * 32, p_max_output_tokens=None
            )
            assert engine.settle(admission)["charge_usd"] == "0.00063"
            running = engine.admitted(customer.key_hash, p_lease_seconds=-1)
            assert engine.call("expire_holds")["expired"] == 1
            assert engine.settle(running)["charge_usd"] == "0.00063"
            assert (
                engine.refused(customer.key_hash, p_max_output_tokens=10**7)["refusal"]
                == "rate_limit_exceeded"
            )
            assert engine.call("create_request_partitions", p_months=5) != []
            assert engine.call("check_ledger")["ok"] is True
            told = engine.call("read_balance", p_customer_id=customer.id)
            assert usd(told["balance_usd"]) == 10 - 2 * usd("0.00063")
