"""What is in the package that Lambda runs, and what must not be."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from infra.local import paths
from infra.sam import local, package
from infra.sam.package import PackageError

if TYPE_CHECKING:
    from pathlib import Path

NEEDED = ("chat/bootstrap", "chat/handler.py", "maintenance/handler.py", "web/handler.py")


def elf(machine: int) -> bytes:
    """The head of a shared object for a machine, by ELF's number for it."""
    return b"\x7fELF\x02\x01\x01" + bytes(9) + (3).to_bytes(2, "little") + machine.to_bytes(2, "little")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A package without requirements: our own files alone."""
    target = tmp_path / "package"
    package._copy_functions(target)
    return target


def test_our_own_files_are_whole(small: Path) -> None:
    assert package.check(small, "arm64") == []
    assert all((small / name).is_file() for name in NEEDED)
    assert not (small / "local_models").exists()
    assert not [path for path in small.rglob("*") if path.name in {"__pycache__", "Makefile", ".made"}]


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("library/tests/test_it.py", b"", "is a test"),
        ("library/test_cases.py", b"", "is a test"),
        ("gateway/schema.sql", b"", "is SQL"),
        ("boto3/__init__.py", b"", "on the runtime already"),
        ("library/a.cpython-313-x86_64-linux-gnu.so", elf(0x3E), "not for arm64"),
        ("library/libunnamed.so.1", elf(0x3E), "not for arm64"),
        ("library/a.cpython-311-aarch64-linux-gnu.so", elf(0xB7), "another Python"),
        ("library/a.pyd", b"MZ", "another system"),
    ],
)
def test_what_must_not_be_in_it_is_found(small: Path, name: str, content: bytes, fault: str) -> None:
    path = small / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(content)
    [found] = package.check(small, "arm64")
    assert name in found
    assert fault in found


def test_what_is_missing_is_found(small: Path) -> None:
    shutil.rmtree(small / "gateway" / "tokenizers")
    (small / "chat" / "bootstrap").unlink()
    faults = package.check(small, "arm64")
    assert "chat/bootstrap is missing" in faults
    assert len([fault for fault in faults if "tokenizers" in fault]) == 2
    with pytest.raises(PackageError, match="no good package"):
        package.report(small, "arm64")


def test_wrapper_that_can_not_be_executed_is_found(small: Path) -> None:
    (small / "chat" / "bootstrap").chmod(0o644)
    assert package.check(small, "arm64") == ["chat/bootstrap can't be executed"]


def test_package_that_is_too_large_is_found(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "MAX_ZIPPED_BYTES", package.zipped_bytes(small) - 1)
    [fault] = package.check(small, "arm64")
    assert "bytes zipped" in fault


def test_unknown_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="ARCHITECTURE"):
        package.build("riscv64", tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)  # two dozen seconds of CPU, which others may want, too
@pytest.mark.parametrize("architecture", ["x86_64", "arm64"])
def test_sam_builds_a_good_package_for_every_function(tmp_path: Path, architecture: str) -> None:
    local.build(tmp_path, architecture=architecture)
    built = sorted(path for path in tmp_path.iterdir() if path.is_dir())
    # The image of the local models is built by Docker, for those who want it.
    handlers = {path.parent.name for path in paths.FUNCTIONS.glob("*/handler.py")} - {"local_models"}
    assert {path.name.removesuffix("Function").lower() for path in built} == handlers
    # Reading every one of six equal packages again would take longer than building them.
    assert package.check(built[0], architecture) == []
    other = {"x86_64": "arm64", "arm64": "x86_64"}[architecture]
    assert [fault for fault in package.check(built[0], other) if "is compiled for" in fault]
    listings = [sorted(str(path.relative_to(root)) for path in root.rglob("*")) for root in built]
    assert all(listing == listings[0] for listing in listings)
