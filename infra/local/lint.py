"""Supabase's own checks of the database: `supabase db push`, `db lint` and `db advisors` on a real server.

`python -m infra.local.lint` (`make lint-database`) builds a database from the migrations, as the Supabase
command line pushes them, and fails where anything is found. `db lint` needs the extension plpgsql_check,
which neither the wheel's PostgreSQL nor pip has: a PostgreSQL that has it is taken where one is installed,
else Debian's packages are unpacked below .venv. Nothing is installed, and nothing reaches another machine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from infra.local import paths
from infra.local.database import create_roles
from infra.local.postgres import EmbeddedPostgres
from infra.local.processes import StackError

SCHEMAS = ("api", "gateway", "legacy")
UNPACKED = paths.REPOSITORY / ".venv" / "plpgsql-check"
_SYSTEM = Path("/")
_CLI = paths.LINTERS / "node_modules" / "@supabase" / "cli-linux-x64" / "bin" / "supabase"
_PASSWORD = "lint"  # noqa: S105 - a server on 127.0.0.1 that lives as long as the check
# Tells of the traffic that a database has had, and this one has had none.
_NOT_FOR_A_NEW_DATABASE = frozenset({"unused_index"})
# What of a Supabase project the functions refer to, and a plain server lacks.
_OF_SUPABASE = """
create schema auth;
create table auth.users (
    id uuid primary key, email text, email_confirmed_at timestamptz, banned_until timestamptz,
    deleted_at timestamptz, is_sso_user boolean not null, is_anonymous boolean not null
);
"""
# `db lint` leaves trigger functions out, since they can be checked for a table at a time only.
_TRIGGERS = """
select p.oid::regprocedure::text, t.tgrelid::regclass::text, c.level, c.message, c.lineno
from pg_trigger as t
join pg_proc as p on p.oid = t.tgfoid
join pg_language as l on l.oid = p.prolang and l.lanname = 'plpgsql'
cross join lateral plpgsql_check_function_tb(p.oid, t.tgrelid) as c
where p.pronamespace = any (%s::regnamespace[]) and not t.tgisinternal
order by 1, 2, 5
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found: its name, the object that it is about, and what is wrong with it."""

    check: str
    subject: str
    message: str

    def __str__(self) -> str:
        return f"{self.check}: {self.subject}: {self.message}"


def find_cli() -> Path | None:
    """Return the Supabase command line: npm's, else one on the path."""
    if _CLI.exists():
        return _CLI
    found = shutil.which("supabase")
    return Path(found) if found else None


def find_postgres() -> tuple[int, Path] | None:
    """Return the version and the programs of the newest PostgreSQL here that has plpgsql_check."""
    found = [
        (int(control.parts[-3]), root / "usr" / "lib" / "postgresql" / control.parts[-3] / "bin")
        for root in (_SYSTEM, UNPACKED)
        for control in root.glob("usr/share/postgresql/*/extension/plpgsql_check.control")
    ]
    usable = [each for each in found if (each[1] / "initdb").exists()]
    return max(usable, default=None)


def fetch_postgres() -> None:
    """Unpack Debian's PostgreSQL with plpgsql_check; StackError says what to install where that fails."""
    needed = "the package postgresql-<version>-plpgsql-check"
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise StackError(f"`db lint` needs a PostgreSQL with the extension plpgsql_check: install {needed}")
    offered = _offered_versions()
    if not offered and os.geteuid() == 0:  # the lists of a new machine are empty
        _said(["apt-get", "update", "--quiet"])
        offered = _offered_versions()
    if not offered:
        raise StackError(f"this machine's package lists have no {needed}: run `apt-get update`")
    server = f"postgresql-{max(offered)}"
    with tempfile.TemporaryDirectory(prefix="sluice-lint-") as directory:
        _said(["apt-get", "download", "--quiet", server, f"{server}-plpgsql-check"], cwd=directory)
        building = UNPACKED.with_name(UNPACKED.name + ".new")
        shutil.rmtree(building, ignore_errors=True)
        for package in sorted(Path(directory).glob("*.deb")):
            _said(["dpkg", "--extract", str(package), str(building)])
    shutil.rmtree(UNPACKED, ignore_errors=True)
    building.rename(UNPACKED)


def _offered_versions() -> list[int]:
    names = _said(["apt-cache", "pkgnames", "postgresql-"]).split()
    return [
        int(name.split("-")[1])
        for name in names
        if name.endswith("-plpgsql-check") and name.split("-")[1].isdigit()
    ]


def _said(command: list[str], *, cwd: str | None = None, environment: dict[str, str] | None = None) -> str:
    """Run `command` and return its output; StackError with what it said if it fails."""
    ran = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        raise StackError(f"`{' '.join(command[:3])}` failed: {(ran.stderr or ran.stdout).strip()[-1500:]}")
    return ran.stdout


class SupabaseCli:
    """The Supabase command line on the database at `url`, in a project directory that has supabase/."""

    def __init__(self, program: Path, project: Path, url: str, *, home: Path) -> None:
        self._program = program
        self._project = project
        self._url = url
        # It would send what it was called for to its makers, and look for a newer one.
        self._environment = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(home),
            "PGSSLMODE": "disable",
            "SUPABASE_TELEMETRY_DISABLED": "1",
            "DO_NOT_TRACK": "1",
            "SUPABASE_NO_UPDATE_NOTIFIER": "1",
        }

    def _run(self, *arguments: str) -> str:
        command = [str(self._program), *arguments, f"--remote={self._url}", f"--workdir={self._project}"]
        return _said(command, environment=self._environment)

    def push(self) -> None:
        """Apply the migrations."""
        self._run("db", "push", "--yes")

    def lint(self) -> list[Finding]:
        """Return what plpgsql_check finds in the functions, warnings included."""
        told = json.loads(
            self._run(
                *("db", "lint", f"--schema={','.join(SCHEMAS)}", "--level=warning", "--fail-on=none"),
                "--output-format=json",
            )
        )
        return [
            Finding("lint", function["function"], _message(issue))
            for function in told["results"]
            for issue in function["issues"]
        ]

    def advisors(self) -> list[Finding]:
        """Return what the security and the performance advisor find, whatever its level."""
        told = json.loads(
            self._run(
                *("db", "advisors", "--type=all", "--level=info", "--fail-on=none", "--output-format=json")
            )
        )
        return [
            Finding(f"advisor ({result['level']})", result["name"], result["detail"])
            for result in told["results"]
            if result["name"] not in _NOT_FOR_A_NEW_DATABASE
        ]


def _message(issue: dict[str, Any]) -> str:
    where = issue.get("statement", {}).get("lineNumber")
    parts = [issue["level"], f"line {where}" if where else "", issue["message"]]
    parts += [issue.get(name, "") for name in ("detail", "context")]
    return ", ".join(part for part in parts if part)


def check_triggers(url: str) -> list[Finding]:
    """Return what plpgsql_check finds in the trigger functions, each for every table that it is on."""
    with psycopg.connect(url) as connection:
        connection.execute("create extension plpgsql_check")
        present = connection.execute(
            "select array_agg(nspname) from pg_namespace where nspname = any (%s)", [list(SCHEMAS)]
        ).fetchone()
        rows = connection.execute(_TRIGGERS, [present[0] if present else []]).fetchall()
        connection.rollback()
    return [
        Finding("trigger", f"{function} on {table}", f"{level}, line {line}, {message}")
        for function, table, level, message, line in rows
    ]


def check(project: Path = paths.REPOSITORY) -> list[Finding]:
    """Build the database that `project`'s migrations describe, and return all that is found."""
    cli = find_cli()
    if cli is None:
        raise StackError(f"the Supabase command line is not here: run `npm ci` in {paths.LINTERS}")
    postgres = find_postgres()
    if postgres is None:
        raise StackError("there is no PostgreSQL with plpgsql_check: `make lint-database` fetches one")
    version, programs = postgres
    with tempfile.TemporaryDirectory(prefix="sluice-lint-") as name:
        directory = Path(name)
        server = EmbeddedPostgres(
            directory / "data",
            password=_PASSWORD,
            version=version,
            programs=programs,
            settings={"fsync": "off", "jit": "off"},
        )
        with server:
            create_roles(server.url(), authenticator_password=_PASSWORD)
            with psycopg.connect(server.url()) as connection:
                connection.execute(_OF_SUPABASE)
            supabase = SupabaseCli(cli, project, server.url(), home=directory)
            supabase.push()
            return [*supabase.lint(), *check_triggers(server.url()), *supabase.advisors()]


def main() -> int:
    try:
        if find_postgres() is None:
            fetch_postgres()
        found = check()
    except StackError as error:
        print(f"sluice: {error}", file=sys.stderr)
        return 1
    for finding in found:
        print(finding)
    if found:
        print(f"\n{len(found)} found", file=sys.stderr)
        return 1
    print("supabase db push, db lint and db advisors: nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
