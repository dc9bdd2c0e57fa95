"""Whether supabase/migrations/ builds the database that sql/ describes, told by pg_dump."""

from __future__ import annotations

import difflib
import re
import subprocess
import tempfile
from pathlib import Path

from infra.local import paths
from infra.local.database import build_from_sources, create_database, create_roles, migrate
from infra.local.postgres import EmbeddedPostgres, binaries
from infra.local.processes import StackError

SCHEMAS = ("gateway", "api", "legacy")
# pg_dump brackets its output with a random word against injection; it differs at every run.
_RANDOM_LINE = re.compile(r"^\\(un)?restrict .*\n", re.MULTILINE)


def dump_schema(server: EmbeddedPostgres, database: str) -> str:
    """Return the definition of our schemas: tables, functions, comments, owners and grants, no data."""
    command = [str(binaries(server.version) / "pg_dump"), "--schema-only", f"--dbname={server.url(database)}"]
    command += [f"--schema={schema}" for schema in SCHEMAS]
    dumped = subprocess.run(command, capture_output=True, text=True, check=False)
    if dumped.returncode != 0:
        raise StackError(f"pg_dump failed: {dumped.stderr.strip()}")
    return _RANDOM_LINE.sub("", dumped.stdout)


def find_drift(
    server: EmbeddedPostgres, *, schema: Path = paths.SCHEMA, migrations: Path = paths.MIGRATIONS
) -> str:
    """Return the unified diff from what `migrations` build to what `schema` builds; empty when the same.

    Two databases are made on `server`, which must have the roles and neither of them.
    """
    create_database(server.url(), "from_sources")
    build_from_sources(server.url("from_sources"), schema)
    create_database(server.url(), "from_migrations")
    migrate(server.url("from_migrations"), directory=migrations)
    lines = difflib.unified_diff(
        dump_schema(server, "from_migrations").splitlines(),
        dump_schema(server, "from_sources").splitlines(),
        fromfile="supabase/migrations",
        tofile="sql",
        lineterm="",
        n=5,
    )
    return "\n".join(lines)


def check() -> str:
    """Look for drift on a server of its own, which is gone afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="sluice-drift-") as directory,
        EmbeddedPostgres(Path(directory) / "data", settings={"fsync": "off"}) as server,
    ):
        create_roles(server.url(), authenticator_password="not-used")  # noqa: S106
        return find_drift(server)
