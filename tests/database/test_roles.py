"""What each role may do, found from the catalogue, so that what is new is covered."""

from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from tests.database.engine import new_request_id

if TYPE_CHECKING:
    from infra.local.postgrest import PostgRest
    from tests.database.engine import Engine
    from tests.fixtures.database import Database

ROLES = ("anon", "authenticated", "service_role")
# None is meant for a browser yet. One that is gets its name here, and a test of its own.
EXECUTABLE: dict[str, frozenset[str]] = {"anon": frozenset(), "authenticated": frozenset()}

RELATIONS = """
    select n.nspname, c.relname from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
    where n.nspname in ('gateway', 'api', 'legacy') and c.relkind in ('r', 'p', 'v', 'm', 'f') order by 1, 2
"""
FUNCTIONS = """
    select p.oid, n.nspname, p.proname, p.prosecdef, p.proconfig, l.lanname, p.oid::regprocedure::text
    from pg_proc as p join pg_namespace as n on n.oid = p.pronamespace
    join pg_language as l on l.oid = p.prolang
    where n.nspname in ('gateway', 'api', 'legacy') order by 2, 3
"""


def relations(engine: Engine) -> list[tuple[str, str]]:
    found = [(row[0], row[1]) for row in engine.query(RELATIONS)]
    assert len(found) > 15
    return found


@pytest.mark.parametrize("role", ROLES)
def test_every_table_is_closed(module_engine: Engine, module_database: Database, role: str) -> None:
    with module_database.as_role(role, sub="00000000-0000-0000-0000-000000000000") as connection:
        for schema, table in relations(module_engine):
            name = sql.Identifier(schema, table)
            column = module_engine.value(
                "select attname from pg_attribute where attrelid = %s::regclass and attnum = 1",
                f'{schema}."{table}"',
            )
            for statement in (
                sql.SQL("select from {}").format(name),
                sql.SQL("insert into {} default values").format(name),
                sql.SQL("update {} set {} = default").format(name, sql.Identifier(column)),
                sql.SQL("delete from {}").format(name),
                sql.SQL("truncate {}").format(name),
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(statement)


@pytest.mark.parametrize("role", [*ROLES, "public"])
def test_no_grant_reaches_a_table_a_column_or_a_sequence(module_engine: Engine, role: str) -> None:
    # beside the refusals above: a grant that a missing usage of the schema hides would open with it
    grantee = 0 if role == "public" else module_engine.value("select %s::regrole::oid", role)
    grants = module_engine.query(
        "with ours as (select * from pg_class"
        " where relnamespace in ('gateway'::regnamespace, 'api'::regnamespace, 'legacy'::regnamespace))"
        " select c.relname from ours as c cross join lateral aclexplode(c.relacl) as a where a.grantee = %s"
        " union all"
        " select t.attname from pg_attribute as t join ours as c on c.oid = t.attrelid"
        " cross join lateral aclexplode(t.attacl) as a where a.grantee = %s",
        grantee,
        grantee,
    )
    assert grants == []


def test_row_security_is_on_for_every_table(module_engine: Engine) -> None:
    assert (
        module_engine.query(
            "select c.relname from pg_class as c join pg_namespace as n on n.oid = c.relnamespace"
            " where n.nspname = 'gateway' and c.relkind in ('r', 'p') and not c.relrowsecurity"
        )
        == []
    )


def test_no_policy_but_the_one_that_refuses_all(module_engine: Engine) -> None:
    policies = module_engine.query(
        "select c.oid::regclass::text, p.polname, p.polpermissive, p.polroles = '{0}', p.polcmd = '*',"
        " pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid)"
        " from pg_class as c join pg_namespace as n on n.oid = c.relnamespace"
        " left join pg_policy as p on p.polrelid = c.oid"
        " where n.nspname = 'gateway' and c.relkind in ('r', 'p')"
    )
    assert len(policies) > 20
    for table, *policy in policies:
        assert policy == ["nobody", False, True, True, "false", None], table


def test_schema_api_holds_functions_and_nothing_else(module_engine: Engine) -> None:
    assert [row for row in relations(module_engine) if row[0] == "api"] == []
    assert module_engine.query("select typname from pg_type where typnamespace = 'api'::regnamespace") == []


@pytest.mark.parametrize("role", ROLES)
def test_each_role_executes_its_own_functions_and_no_other(module_engine: Engine, role: str) -> None:
    for oid, schema, name, *_, signature in module_engine.query(FUNCTIONS):
        usable = module_engine.value(
            f"select has_schema_privilege('{role}', '{schema}', 'usage')"
            f" and has_function_privilege('{role}', {oid}::oid, 'execute')"
        )
        expected = schema == "api" and (role == "service_role" or name in EXECUTABLE[role])
        assert usable is expected, signature
        # and the grant by itself says the same, whatever the schema's says
        assert (
            module_engine.value(f"select has_function_privilege('{role}', {oid}::oid, 'execute')") is expected
        ), signature


def test_no_function_is_executable_by_public(module_engine: Engine) -> None:
    for oid, *_, signature in module_engine.query(FUNCTIONS):
        # an empty list of grants is the default one, in which PUBLIC may execute
        grantees = module_engine.value(
            f"select array_agg(a.grantee) from pg_proc as p cross join lateral aclexplode(p.proacl)"
            f" as a where p.oid = {oid}"
        )
        assert grantees, signature
        assert 0 not in grantees, signature


def test_every_function_pins_its_search_path(module_engine: Engine) -> None:
    found = module_engine.query(FUNCTIONS)
    assert len([1 for row in found if row[1] == "api"]) > 25
    for _, schema, _, definer, config, language, signature in found:
        # an aggregate can have none: what it runs is a function of the list
        assert language == "internal" or 'search_path=""' in (config or []), signature
        if schema == "api":
            assert definer, signature


def test_the_authenticator_itself_may_do_nothing(module_database: Database) -> None:
    with psycopg.connect(module_database.authenticator_url, autocommit=True) as connection:
        for statement in ("select from gateway.accounts", "select api.check_health()"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())


@pytest.mark.parametrize("role", ["anon", "authenticated"])
def test_a_browser_cannot_make_tables_in_our_schemas(module_database: Database, role: str) -> None:
    with module_database.as_role(role) as connection:
        for schema in ("gateway", "api", "legacy"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(f"create table {schema}.mine (id int)".encode())


# Through the real PostgREST


def over_http(
    server: PostgRest, method: str, path: str, role: str | None, body: Any = None, **headers: str
) -> tuple[int, Any]:
    url = urlsplit(server.url)
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=20)
    try:
        authorization = {"Authorization": f"Bearer {server.token(role)}"} if role else {}
        connection.request(
            method,
            path,
            body=None if body is None else json.dumps(body),
            headers={"Content-Type": "application/json", **authorization, **headers},
        )
        answer = connection.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if text else None
    finally:
        connection.close()


@pytest.mark.parametrize("role", [None, "anon", "authenticated"])
def test_postgrest_executes_nothing_for_a_browser(
    module_engine: Engine, module_postgrest: PostgRest, role: str | None
) -> None:
    status, told = over_http(module_postgrest, "POST", "/rpc/check_health", role, {})
    assert status == (401 if role in {None, "anon"} else 403)
    assert told["code"] == "42501"
    before = module_engine.dump()
    for _, schema, name, *_ in module_engine.query(FUNCTIONS):
        if schema == "api":
            status, told = over_http(module_postgrest, "POST", f"/rpc/{name}", role, {})
            # refused, or no call at all where it has parameters that are missing
            assert status in {401, 403, 404}, (name, told)
            assert told["code"] in {"42501", "PGRST202"}, (name, told)
    assert module_engine.dump() == before


@pytest.mark.parametrize("role", ROLES)
def test_postgrest_shows_no_table(module_engine: Engine, module_postgrest: PostgRest, role: str) -> None:
    for _, table in relations(module_engine):
        for headers in ({}, {"Accept-Profile": "gateway"}):
            status, told = over_http(module_postgrest, "GET", f"/{table}", role, **headers)
            assert status in {401, 403, 404, 406}, (table, told)
    status, _ = over_http(
        module_postgrest, "POST", "/rpc/record_audit", role, {}, **{"Content-Profile": "gateway"}
    )
    assert status in {401, 403, 404, 406}


def test_the_gateways_own_key_admits_and_settles_through_postgrest(
    module_engine: Engine, module_postgrest: PostgRest
) -> None:
    customer = module_engine.customer("1")
    status, admission = over_http(module_postgrest, "POST", "/rpc/admit_request", "service_role", {
        "p_key_hash": customer.key_hash, "p_request_id": new_request_id(), "p_models": ["echo"],
        "p_endpoint": "chat.completions", "p_lease_seconds": 60, "p_input_tokens_bound": 1000,
        "p_max_output_tokens": 500})  # fmt: skip
    assert (status, admission["admitted"], admission["hold_usd"]) == (200, True, "0.0063")
    settlement = {
        "request_id": admission["request_id"],
        "admitted_at": admission["admitted_at"],
        "outcome": "succeeded",
        "route_id": admission["candidates"][0]["route_id"],
        "usage": {"input": 100, "output": 50},
        "status": 200,
        "latency_ms": 3,
    }
    status, told = over_http(
        module_postgrest, "POST", "/rpc/settle_request", "service_role", {"p_settlement": settlement}
    )
    assert (status, told["charge_usd"], told["balance_after_usd"]) == (200, "0.00063", "0.99937")
    status, told = over_http(
        module_postgrest,
        "POST",
        "/rpc/read_request",
        "service_role",
        {"p_request_id": admission["request_id"]},
    )
    assert (status, told["charge_usd"]) == (200, "0.00063")


def test_a_token_of_another_secret_is_refused(module_postgrest: PostgRest) -> None:
    from infra.local.postgrest import sign_token

    forged = sign_token("another-secret-with-more-than-32-characters", "service_role")
    status, _ = over_http(
        module_postgrest, "POST", "/rpc/check_health", None, {}, Authorization=f"Bearer {forged}"
    )
    assert status == 401
