"""What processes hold: memory, open files and sockets, from /proc."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks import cpu

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Holding:
    """What one process holds, or several together. Memory is in bytes."""

    resident: int = 0
    proportional: int = 0
    """As resident, where a page that several processes share counts for each by its part."""
    files: int = 0
    """Open descriptors, sockets among them."""
    sockets: int = 0
    processes: int = 0

    def __add__(self, other: Holding) -> Holding:
        return Holding(
            self.resident + other.resident,
            self.proportional + other.proportional,
            self.files + other.files,
            self.sockets + other.sockets,
            self.processes + other.processes,
        )


def of(pid: int) -> Holding:
    """Return what a process holds; nothing where it has ended."""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
        kilobytes = {
            line.split(":")[0]: int(line.split()[1]) for line in rollup.splitlines() if " kB" in line
        }
        targets = list(_targets(pid))
        return Holding(
            kilobytes["Rss"] * 1024,
            kilobytes["Pss"] * 1024,
            len(targets),
            sum(target.startswith("socket:") for target in targets),
            1,
        )
    return Holding()


def of_tree(pid: int) -> Holding:
    """Return what a process and all that it has started hold together."""
    return total(of(each) for each in cpu.tree(pid))


def total(holdings: Iterable[Holding]) -> Holding:
    """Return the sum."""
    return sum(holdings, Holding())


def _targets(pid: int) -> Iterable[str]:
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        # A file may be closed while the folder is read.
        with contextlib.suppress(OSError):
            yield str(entry.readlink())
