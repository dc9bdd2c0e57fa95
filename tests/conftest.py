"""Fixtures that every suite may use: a real database, a real PostgREST and the provider simulator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.__main__ import SERIAL
from tests.fixtures.auth_server import auth_server, auth_server_process
from tests.fixtures.collection import longest_first, name_each
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

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

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


@pytest.fixture
def more_settings() -> dict[str, Any]:
    """What `management` sets beside its own: a module that needs more has a fixture of this name."""
    return {}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave unread what has no serial test, where these alone are to run: collecting all takes 15 s."""
    if config.option.markexpr != SERIAL or not collection_path.match("test_*.py"):
        return None
    return "mark.serial" not in collection_path.read_text(encoding="utf-8") or None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    name_each(items)
    if hasattr(config, "workerinput"):  # pytest-xdist's
        items[:] = longest_first(items)
