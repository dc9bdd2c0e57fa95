"""The servers that the storms share. What is killed has a world of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.world import GatewayProcess, World, open_world

if TYPE_CHECKING:
    from collections.abc import Iterator

FLEET = 8


@pytest.fixture(scope="package")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One set of servers that nobody stops."""
    with open_world(tmp_path_factory.mktemp("world")) as opened:
        yield opened


@pytest.fixture(scope="package")
def fleet(world: World) -> Iterator[list[GatewayProcess]]:
    """Eight server processes on one database."""
    with world.gateways(FLEET) as gateways:
        yield gateways
