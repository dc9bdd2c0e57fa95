"""The maintenance function: run by a schedule, it answers no HTTP."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

from gateway.maintenance import run_once
from gateway.runtime.process import current_process


@functools.cache
def _runner() -> asyncio.Runner:
    # One loop for all invocations: the process's clients belong to it.
    return asyncio.Runner()


def handler(_event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Do the maintenance once, and return what was done. Raises DatabaseError, for the schedule's alarm."""
    return _runner().run(run_once(current_process())).as_json()
