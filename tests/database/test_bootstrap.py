"""How a database is built: each migration once, recorded as Supabase's command line does, and no drift."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

from infra.local import paths
from infra.local.database import build_from_sources, create_roles, migrate, migrations, seed
from infra.local.drift import find_drift
from infra.local.processes import StackError
from infra.local.statements import included_files, split_statements
from tests.fixtures.database import AUTHENTICATOR_PASSWORD, SETTINGS

if TYPE_CHECKING:
    from pathlib import Path

    from infra.local.postgres import EmbeddedPostgres
    from tests.fixtures.database import Database, NewDatabase

FIRST = "create schema gateway;\ncreate table gateway.things (id int); -- the first\n"
SECOND = """set search_path = '';
create function gateway.one() returns int language sql begin atomic select 1; end;
"""
BROKEN = "create table gateway.more (id int);\nselect no_such_thing;\n"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "migrations"
    made.mkdir()
    (made / "20260101000000_things.sql").write_text(FIRST, encoding="utf-8")
    (made / "20260102000000_one.sql").write_text(SECOND, encoding="utf-8")
    return made


def recorded(url: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        query = "select version, name, statements from supabase_migrations.schema_migrations order by 1"
        return connection.execute(query).fetchall()


def test_migrations_apply_once_and_are_recorded(new_database: NewDatabase, directory: Path) -> None:
    with new_database(migrated=False) as database:
        assert [done.name for done in migrate(database.url, directory=directory)] == ["things", "one"]
        assert migrate(database.url, directory=directory) == []
        assert recorded(database.url) == [
            (
                "20260101000000",
                "things",
                ["create schema gateway", "create table gateway.things (id int)"],
            ),
            (
                "20260102000000",
                "one",
                [
                    "set search_path = ''",
                    "create function gateway.one() returns int language sql begin atomic select 1; end",
                ],
            ),
        ]


def test_a_migration_that_fails_leaves_nothing_and_says_where(
    new_database: NewDatabase, directory: Path
) -> None:
    path = directory / "20260103000000_broken.sql"
    path.write_text(BROKEN, encoding="utf-8")
    with new_database(migrated=False) as database:
        with pytest.raises(StackError, match=r"20260103000000_broken\.sql:2: column \"no_such_thing\""):
            migrate(database.url, directory=directory)
        assert len(recorded(database.url)) == 2
        with database.connect() as connection:
            assert connection.execute("select to_regclass('gateway.more')").fetchone() == (None,)
        path.write_text("create table gateway.more (id int);", encoding="utf-8")
        assert [done.name for done in migrate(database.url, directory=directory)] == ["broken"]


def test_a_database_newer_than_the_checkout_is_refused(new_database: NewDatabase, directory: Path) -> None:
    with new_database(migrated=False) as database:
        migrate(database.url, directory=directory)
        (directory / "20260102000000_one.sql").unlink()
        with pytest.raises(StackError, match="20260102000000"):
            migrate(database.url, directory=directory)


@pytest.mark.parametrize("name", ["init.sql", "20260101000000_again.sql"])
def test_a_migration_without_a_version_of_its_own_is_refused(directory: Path, name: str) -> None:
    (directory / name).write_text("select 1;", encoding="utf-8")
    with pytest.raises(StackError):
        migrations(directory)


def test_the_seed_runs_once(new_database: NewDatabase, tmp_path: Path) -> None:
    path = tmp_path / "seed.sql"
    path.write_text("create table seeded (n int);", encoding="utf-8")
    with new_database(migrated=False) as database:
        assert seed(database.url, path) is True
        assert seed(database.url, path) is False
        assert seed(database.url, tmp_path / "none.sql") is False


def test_drift_is_found_and_shown(postgres: EmbeddedPostgres, tmp_path: Path, directory: Path) -> None:
    from infra.local.postgres import EmbeddedPostgres as Server

    schema = tmp_path / "schema.sql"
    (tmp_path / "tables.sql").write_text("create table gateway.things (id bigint);\n", encoding="utf-8")
    schema.write_text("create schema gateway;\n\\ir tables.sql\n" + SECOND, encoding="utf-8")
    with Server(tmp_path / "server", settings=SETTINGS) as server:
        create_roles(server.url(), authenticator_password=AUTHENTICATOR_PASSWORD)
        diff = find_drift(server, schema=schema, migrations=directory)
    assert "-    id integer" in diff
    assert "+    id bigint" in diff
    assert postgres.pid is not None


def test_the_migrations_build_what_the_sources_say(tmp_path: Path) -> None:
    from infra.local.postgres import EmbeddedPostgres as Server

    with Server(tmp_path / "server", settings=SETTINGS) as server:
        create_roles(server.url(), authenticator_password=AUTHENTICATOR_PASSWORD)
        assert find_drift(server) == ""


def test_the_sources_build_on_the_newest_postgres_too(tmp_path: Path) -> None:
    from infra.local.postgres import EmbeddedPostgres as Server

    with Server(tmp_path / "server", version=18, settings=SETTINGS) as server:
        create_roles(server.url(), authenticator_password=AUTHENTICATOR_PASSWORD)
        build_from_sources(server.url())
        with psycopg.connect(server.url()) as connection:
            assert connection.execute("select to_regclass('gateway.requests') is not null").fetchone() == (
                True,
            )


def test_an_error_in_the_sources_names_its_file_and_line(database: Database, tmp_path: Path) -> None:
    schema = tmp_path / "schema.sql"
    schema.write_text("-- one\nselect 1;\n\\ir broken.sql\n", encoding="utf-8")
    (tmp_path / "broken.sql").write_text("select 1;\n\nselect missing;\n", encoding="utf-8")
    with pytest.raises(StackError, match=r"broken\.sql:3: "):
        build_from_sources(database.url, schema)


def test_splitting_the_migrations_loses_no_word() -> None:
    for migration in migrations():
        parts = split_statements(migration.text)
        assert len(parts) > 1
        assert "".join("".join(parts).split()).replace(";", "") in "".join(migration.text.split()).replace(
            ";", ""
        )


@pytest.mark.parametrize(
    ("text", "statements"),
    [
        ("select 1; select 2;", ["select 1", "select 2"]),
        ("select ';' ; select 'it''s; here'", ["select ';'", "select 'it''s; here'"]),
        ("select e'a\\';b'; select 1", ["select e'a\\';b'", "select 1"]),
        ('select 1 as "a;""b"; select 2', ['select 1 as "a;""b"', "select 2"]),
        ("do $$ begin; $a$ end; $$; select 1", ["do $$ begin; $a$ end; $$", "select 1"]),
        ("do $body$ $$;$$ $body$; select 1", ["do $body$ $$;$$ $body$", "select 1"]),
        ("select $1; select 1", ["select $1", "select 1"]),
        ("-- not; one\nselect 1;", ["-- not; one\nselect 1"]),
        ("/* a; /* b; */ c; */ select 1;", ["/* a; /* b; */ c; */ select 1"]),
        ("begin; commit;", ["begin", "commit"]),
        (
            "create function f() begin atomic select case when true then 1 end; select 2; end; select 3",
            ["create function f() begin atomic select case when true then 1 end; select 2; end", "select 3"],
        ),
        (" ; ;; -- only a comment\n", []),
    ],
)
def test_statements_end_where_postgres_ends_them(text: str, statements: list[str]) -> None:
    assert split_statements(text) == statements


def test_files_are_read_in_psqls_order(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "schema.sql").write_text("one;\n\\ir tables/all.sql\n\nfour;\n", encoding="utf-8")
    (tmp_path / "tables" / "all.sql").write_text("\\ir two.sql\nthree;\n", encoding="utf-8")
    (tmp_path / "tables" / "two.sql").write_text("two;\n", encoding="utf-8")
    found = [(path.name, text.strip()) for path, text in included_files(tmp_path / "schema.sql")]
    assert found == [
        ("schema.sql", "one;"),
        ("two.sql", "two;"),
        ("all.sql", "three;"),
        ("schema.sql", "four;"),
    ]
    *_first, (_path, last) = included_files(tmp_path / "schema.sql")
    assert last.splitlines().index("four;") == 3
    (tmp_path / "schema.sql").write_text("\\i other.sql\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"only \\ir is understood"):
        list(included_files(tmp_path / "schema.sql"))


def test_no_file_of_the_sources_is_forgotten_in_the_schema() -> None:
    named = {path.resolve() for path, _text in included_files(paths.SCHEMA)}
    folders = [paths.SCHEMA.parent / folder for folder in ("tables", "functions", "views")]
    present = {path.resolve() for folder in folders for path in folder.rglob("*.sql")}
    assert present
    assert present <= named
