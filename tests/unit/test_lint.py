"""Which PostgreSQL the linters take, and what is said where there is none."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from infra.local import lint
from infra.local.processes import StackError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A machine without PostgreSQL: its file system, and where packages are unpacked."""
    system, unpacked = tmp_path / "system", tmp_path / "unpacked"
    monkeypatch.setattr(lint, "_SYSTEM", system)
    monkeypatch.setattr(lint, "UNPACKED", unpacked)
    return system, unpacked


def install(root: Path, version: int, *, server: bool = True) -> Path:
    extensions = root / "usr" / "share" / "postgresql" / str(version) / "extension"
    extensions.mkdir(parents=True)
    (extensions / "plpgsql_check.control").touch()
    programs = root / "usr" / "lib" / "postgresql" / str(version) / "bin"
    programs.mkdir(parents=True)
    if server:
        (programs / "initdb").touch()
    return programs


def test_the_newest_with_the_extension_and_a_server_is_taken(roots: tuple[Path, Path]) -> None:
    system, unpacked = roots
    assert lint.find_postgres() is None
    install(system, 18, server=False)
    assert lint.find_postgres() is None
    old = install(system, 9)
    assert lint.find_postgres() == (9, old)
    new = install(unpacked, 15)
    assert lint.find_postgres() == (15, new)


def test_a_machine_without_apt_is_told_what_to_install(
    roots: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(_program: str) -> None:
        return None

    monkeypatch.setattr(shutil, "which", nowhere)
    with pytest.raises(StackError, match="plpgsql-check"):
        lint.fetch_postgres()
    assert not roots[1].exists()
