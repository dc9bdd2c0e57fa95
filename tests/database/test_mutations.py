"""The tests of the engine find faults: every one that mutations.py puts into the SQL."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.database.mutations import FAULTS, SOURCES, Fault, find

if TYPE_CHECKING:
    from pathlib import Path

each_fault = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)


@each_fault
def test_the_place_of_the_fault_is_still_there(fault: Fault, tmp_path: Path) -> None:
    shutil.copytree(SOURCES, tmp_path / "sql")
    fault.apply(tmp_path / "sql")


@pytest.mark.chaos
@each_fault
def test_a_test_finds_the_fault(fault: Fault) -> None:
    found = find(fault, programs=False).test or find(fault, programs=True).test
    assert found is not None, f"no test fails when {fault.name}"
