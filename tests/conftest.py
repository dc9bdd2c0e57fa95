"""Fixtures that every suite may use: a real database, a real PostgREST and the provider simulator."""

from __future__ import annotations

from tests.fixtures.auth_server import auth_server, auth_server_process
from tests.fixtures.database import (
    database,
    database_template,
    module_database,
    module_postgrest,
    new_database,
    postgres,
    postgrest,
)
from tests.fixtures.simulator import simulator, simulator_server

__all__ = [
    "auth_server",
    "auth_server_process",
    "database",
    "database_template",
    "module_database",
    "module_postgrest",
    "new_database",
    "postgres",
    "postgrest",
    "simulator",
    "simulator_server",
]
