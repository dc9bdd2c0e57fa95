"""CPU time of processes and of all that they start, from /proc: ticks of 10 ms, so for runs of seconds."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
# Fields of /proc/<pid>/stat after the command's closing bracket.
_PARENT, _OWN, _OF_REAPED = 1, slice(11, 13), slice(13, 15)


@dataclass(frozen=True, slots=True)
class Watched:
    """A process to account for, with or without those that it has started."""

    pid: int
    with_children: bool = True


@dataclass(frozen=True, slots=True)
class _Process:
    name: str
    parent: int
    own: int
    of_reaped: int


def _processes() -> dict[int, _Process]:
    found: dict[int, _Process] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                text = Path(entry.path, "stat").read_text(encoding="utf-8", errors="replace")
                name = text[text.index("(") + 1 : text.rindex(")")]
                fields = text[text.rindex(")") + 2 :].split()
                found[int(entry.name)] = _Process(
                    name,
                    int(fields[_PARENT]),
                    sum(map(int, fields[_OWN])),
                    sum(map(int, fields[_OF_REAPED])),
                )
    return found


def children(pid: int) -> dict[str, int]:
    """Return the direct children of a process, name → process id."""
    return {process.name: child for child, process in _processes().items() if process.parent == pid}


def tree(pid: int) -> list[int]:
    """Return a process's id and those of all that it has started, as far as they run."""
    processes = _processes()
    return [each for each in _tree(pid, processes) if each in processes]


def _tree(root: int, processes: Mapping[int, _Process]) -> list[int]:
    members = [root]
    for member in members:
        members += [pid for pid, process in processes.items() if process.parent == member]
    return members


def seconds(watched: Mapping[str, Watched]) -> dict[str, float]:
    """Return the CPU seconds that each has used so far.

    What a child used that has ended is in its parent's account, so that a sum over a tree never falls.
    """
    processes = _processes()
    used: dict[str, float] = {}
    for name, each in watched.items():
        if each.with_children:
            members = [processes[pid] for pid in _tree(each.pid, processes) if pid in processes]
            ticks = sum(member.own + member.of_reaped for member in members)
        else:
            ticks = processes[each.pid].own if each.pid in processes else 0
        used[name] = ticks / _TICKS_PER_SECOND
    return used
