"""What Supabase's linters would find they do find, and in our migrations nothing.

They need the Supabase command line and a PostgreSQL with plpgsql_check: `make lint-database` fetches both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from infra.local import lint, paths

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    lint.find_cli() is None or lint.find_postgres() is None,
    reason="`make lint-database` fetches what this needs",
)

FAULTS = """
create schema gateway;
create table gateway.parents (id int primary key);
create table gateway.children (id int primary key, parent_id int references gateway.parents);
alter table gateway.children enable row level security;
create function gateway.misspelt() returns bigint language plpgsql set search_path = ''
as $$ begin return (select count(*) from gateway.childern); end $$;
create function gateway.unused() returns int language plpgsql set search_path = ''
as $$ declare v_unused int; begin return 1; end $$;
create function gateway.open() returns int language plpgsql as $$ begin return 1; end $$;
create function gateway.stamp() returns trigger language plpgsql set search_path = ''
as $$ begin new.stamped_at := now(); return new; end $$;
create trigger stamp before insert on gateway.children for each row execute function gateway.stamp();
"""


def test_nothing_is_found_in_our_migrations() -> None:
    assert [str(finding) for finding in lint.check()] == []


def test_each_kind_of_fault_is_found(tmp_path: Path) -> None:
    project = tmp_path / "project"
    migrations = project / "supabase" / "migrations"
    migrations.mkdir(parents=True)
    config = (paths.REPOSITORY / "supabase" / "config.toml").read_text(encoding="utf-8")
    (project / "supabase" / "config.toml").write_text(config, encoding="utf-8")
    (migrations / "20260101000000_faults.sql").write_text(FAULTS, encoding="utf-8")
    found = [str(finding) for finding in lint.check(project)]
    for check, subject, message in (
        ("lint", "gateway.misspelt", 'relation "gateway.childern" does not exist'),
        ("lint", "gateway.unused", 'unused variable "v_unused"'),
        ("trigger", "gateway.stamp() on gateway.children", 'record "new" has no field "stamped_at"'),
        ("advisor (WARN)", "function_search_path_mutable", "gateway.open"),
        ("advisor (INFO)", "rls_enabled_no_policy", "gateway.children"),
        ("advisor (INFO)", "unindexed_foreign_keys", "gateway.children"),
    ):
        assert [line for line in found if line.startswith(f"{check}: {subject}: ") and message in line], found
    assert len(found) == 6, found
