"""The maintenance function: run by a schedule and by the queue of settlements, it answers no HTTP."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

from gateway.maintenance import answer
from gateway.runtime.process import current_process


@functools.cache
def _runner() -> asyncio.Runner:
    # One loop for all invocations: the process's clients belong to it.
    return asyncio.Runner()


def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Do what the event asks for, and return what was done. Raises DatabaseError, for the alarm."""
    return _runner().run(answer(current_process(), event))
