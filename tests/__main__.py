"""`make test`'s tests: first those that may share the machine, on every core, then those that may not.

    python -m tests [pytest's arguments]

A test is marked `serial` if it measures time that other tests would take from it, or needs every core for
itself: crowds of callers, servers that are killed. Both parts run whatever the first one says, and the exit
status is the worse one. A `-m` among the arguments takes the place of both selections and so runs once.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

MOST_WORKERS = 8
"""Each has a PostgreSQL of its own; beyond that the longest file decides."""
WORKERS = min(2 * (os.cpu_count() or 1), MOST_WORKERS)
"""Two for a core: tests wait for browsers, servers and clocks for half of their time."""
# A worker runs whole files, so that what a module's tests share is made once; `longest_first` orders them.
PARALLEL = ["-n", str(WORKERS), "--dist", "loadfile", "--no-loadscope-reorder"]
SERIAL = "serial and not chaos"
NO_TESTS = pytest.ExitCode.NO_TESTS_COLLECTED


def run(*arguments: str) -> int:
    """One run of pytest in a process of its own; its exit status, negative for a signal."""
    return subprocess.run([sys.executable, "-m", "pytest", *arguments], check=False).returncode


def main(arguments: list[str]) -> int:
    """Run both parts; the exit status is 0 if one has passed and the other has passed or selects no test."""
    if any(argument.startswith("-m") for argument in arguments):
        return run(*arguments)
    told = [
        run(*PARALLEL, "-m", "not chaos and not serial", *arguments),
        run("-m", SERIAL, *arguments),
    ]
    failed = [status for status in told if status not in {pytest.ExitCode.OK, NO_TESTS}]
    if failed:
        return failed[0] if failed[0] > 0 else 1
    return NO_TESTS if set(told) == {NO_TESTS} else pytest.ExitCode.OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
