"""Build Sluice's database: Supabase's roles on a plain server, the migrations and the seed, or sql/ itself.

What was applied is recorded in the tables that Supabase's own command line keeps, so that `supabase db push`
and this agree on what is left to do.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from infra.local import paths
from infra.local.processes import StackError
from infra.local.statements import included_files, split_statements

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Any constant; it keeps two bootstraps of one server from interleaving.
_ADVISORY_LOCK = 7_305_228_117
_FILE_NAME = re.compile(r"(?P<version>\d+)_(?P<name>.+)\.sql")
_HISTORY = """
create schema if not exists supabase_migrations;
create table if not exists supabase_migrations.schema_migrations (version text not null primary key);
alter table supabase_migrations.schema_migrations add column if not exists statements text[];
alter table supabase_migrations.schema_migrations add column if not exists name text;
create table if not exists supabase_migrations.seed_files (
    path text not null primary key,
    hash text not null
);
"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of supabase/migrations: `<version>_<name>.sql`."""

    version: str
    name: str
    path: Path

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")


def migrations(directory: Path = paths.MIGRATIONS) -> list[Migration]:
    """Return the migrations in the order in which they apply; StackError for a name that has no version."""
    found: list[Migration] = []
    for path in sorted(directory.glob("*.sql")):
        match = _FILE_NAME.fullmatch(path.name)
        if match is None:
            raise StackError(f"{path} is not named <version>_<name>.sql")
        found.append(Migration(match["version"], match["name"], path))
    versions = [migration.version for migration in found]
    if len(set(versions)) != len(versions):
        raise StackError(f"two migrations in {directory} have the same version")
    return found


def _run(connection: psycopg.Connection[tuple[object, ...]], path: Path, text: str) -> None:
    """Run a file's statements; an error names the file and the line."""
    if not text.strip():
        return
    try:
        connection.execute(text.encode())
    except psycopg.Error as error:
        position = error.diag.statement_position
        line = text.count("\n", 0, int(position)) + 1 if position else None
        where = str(path) + (f":{line}" if line else "")
        context = f"\n{error.diag.context}" if error.diag.context else ""
        hint = f"\n{error.diag.message_hint}" if error.diag.message_hint else ""
        raise StackError(f"{where}: {error.diag.message_primary or error}{hint}{context}") from error


def create_roles(url: str, *, authenticator_password: str) -> None:
    """Give a plain server the roles of a Supabase project. `url` is a superuser's. Safe to run again."""
    with psycopg.connect(url) as connection:
        connection.execute("select pg_advisory_xact_lock(%s)", [_ADVISORY_LOCK])
        _run(connection, paths.ROLES, paths.ROLES.read_text(encoding="utf-8"))
        connection.execute(
            sql.SQL("alter role authenticator with password {}").format(sql.Literal(authenticator_password))
        )


def migrate(
    url: str, *, directory: Path = paths.MIGRATIONS, applying: Callable[[Migration], object] | None = None
) -> list[Migration]:
    """Apply the migrations that the database does not have yet, each in one transaction; return them.

    `applying` is called before each. A migration that fails leaves the ones before it applied. StackError
    when the database has a migration that this directory does not: it is then newer than this checkout.
    """
    available = migrations(directory)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("select pg_advisory_lock(%s)", [_ADVISORY_LOCK])
        with connection.transaction():
            connection.execute(_HISTORY)
        rows = connection.execute("select version from supabase_migrations.schema_migrations").fetchall()
        recorded = {row[0] for row in rows}
        if unknown := sorted(recorded - {migration.version for migration in available}):
            raise StackError(
                f"the database has migrations that {directory} lacks: {', '.join(unknown)}; "
                "update the checkout, or start on another database"
            )
        pending = [migration for migration in available if migration.version not in recorded]
        for migration in pending:
            if applying is not None:
                applying(migration)
            with connection.transaction():
                _run(connection, migration.path, migration.text)
                connection.execute("reset all")
                connection.execute(
                    "insert into supabase_migrations.schema_migrations (version, name, statements)"
                    " values (%s, %s, %s)",
                    [migration.version, migration.name, split_statements(migration.text)],
                )
        if pending:
            connection.execute("notify pgrst, 'reload schema'")
    return pending


def seed(url: str, path: Path = paths.SEED) -> bool:
    """Run the seed in one transaction unless this database has had it; whether it ran.

    As with Supabase's command line a seed runs once, whatever it says later: what must reach an existing
    database is a migration.
    """
    if not path.exists():
        return False
    text = path.read_text(encoding="utf-8")
    name = (
        path.relative_to(paths.REPOSITORY).as_posix() if path.is_relative_to(paths.REPOSITORY) else path.name
    )
    with psycopg.connect(url) as connection:
        connection.execute("select pg_advisory_xact_lock(%s)", [_ADVISORY_LOCK])
        connection.execute(_HISTORY)
        claimed = connection.execute(
            "insert into supabase_migrations.seed_files (path, hash) values (%s, %s)"
            " on conflict (path) do nothing returning path",
            [name, hashlib.sha256(text.encode()).hexdigest()],
        ).fetchone()
        if claimed is None:
            return False
        _run(connection, path, text)
    return True


def build_from_sources(url: str, schema: Path = paths.SCHEMA) -> None:
    r"""Build an empty database from sql/ in one transaction, in the order of schema.sql's `\ir` lines."""
    with psycopg.connect(url) as connection:
        for path, text in included_files(schema):
            _run(connection, path, text)


def create_database(url: str, name: str, *, template: str | None = None) -> None:
    """Create an empty database, or a copy of `template` (about 30 ms; nobody may be connected to it)."""
    with psycopg.connect(url, autocommit=True) as connection:
        # template0 carries nothing that someone may have left in template1.
        source = sql.Identifier(template or "template0")
        command = sql.SQL("create database {} template {}").format(sql.Identifier(name), source)
        if template is not None:
            # Half the work of writing each page to the log, where its checkpoint has little to do.
            command += sql.SQL(" strategy file_copy")
        connection.execute(command)


def drop_database(url: str, name: str) -> None:
    """Drop a database if it exists, whoever is connected to it."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))
