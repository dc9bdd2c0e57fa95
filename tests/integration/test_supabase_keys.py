"""Both of Supabase's key systems: the older service_role token, and the sb_secret_ key, which is no token.

Supabase's own gateway turns an sb_secret_ key into a role; here a function before each request does it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from psycopg import sql
from pydantic import SecretStr

from gateway.database.client import DatabaseError
from gateway.runtime.process import Process
from gateway.settings import Settings
from infra.local.postgrest import PostgRest
from tests.fixtures.database import JWT_SECRET

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.fixtures.database import Database

SECRET_KEY = "sb_secret_of_this_project_alone"


@pytest.fixture
def project(database: Database, tmp_path: Path) -> Iterator[PostgRest]:
    with database.connect() as connection:
        connection.execute(
            sql.SQL(
                "create function public.accept_secret_key() returns void language plpgsql as $$ begin"
                " if current_setting('request.headers', true)::json ->> 'apikey' = {key} then"
                " set local role service_role; end if; end $$"
            ).format(key=sql.Literal(SECRET_KEY))
        )
        connection.execute("grant usage on schema public to anon")
        connection.execute(
            sql.SQL(
                "alter role authenticator in database {}"
                " set pgrst.db_pre_request = 'public.accept_secret_key'"
            ).format(sql.Identifier(database.name))
        )
    log = tmp_path / "postgrest.log"
    with PostgRest(database.authenticator_url, jwt_secret=JWT_SECRET, log=log) as server:
        yield server


async def health(project: PostgRest, key: str, spool: Path) -> str:
    process = Process.start(Settings(rest_url=project.url, supabase_key=SecretStr(key), spool_dir=spool))
    try:
        return str((await process.database.check_health())["database"])
    finally:
        await process.aclose()


async def test_both_kinds_of_key_open_the_database(project: PostgRest, tmp_path: Path) -> None:
    assert await health(project, SECRET_KEY, tmp_path) == "ok"
    assert await health(project, project.token("service_role"), tmp_path) == "ok"


async def test_keys_of_nobody_and_of_browsers_open_nothing(project: PostgRest, tmp_path: Path) -> None:
    for key in (
        "sb_secret_of_another",
        "sb_publishable_x",
        project.token("anon"),
        project.token("authenticated"),
    ):
        with pytest.raises(DatabaseError) as refused:
            await health(project, key, tmp_path)
        assert refused.value.code == "42501"
