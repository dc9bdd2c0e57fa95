"""The maintenance that a schedule starts on AWS: here a thread does it while the stack runs."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Self

from gateway.database.client import DatabaseError
from gateway.maintenance import run_once
from gateway.runtime.process import Process

if TYPE_CHECKING:
    from gateway.settings import Settings

INTERVAL_SECONDS = 15.0


class Sweeper:
    """Replays kept settlements, ends holds whose lease has run out, makes partitions: at once and regularly.

    On a loop of its own with clients of its own, so that it takes nothing from the requests'.
    """

    def __init__(self, settings: Settings, *, interval_seconds: float = INTERVAL_SECONDS) -> None:
        self._settings = settings
        self._interval = interval_seconds
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._sweep())

    async def _sweep(self) -> None:
        process = Process.start(self._settings)
        try:
            while not self._stopping.is_set():
                try:
                    await run_once(process)
                except DatabaseError:
                    # The next run does what this one could not; a lost hold costs nobody but waits.
                    process.logger.exception("The maintenance failed.")
                try:
                    await asyncio.wait_for(self._stopping.wait(), self._interval)
                except TimeoutError:
                    continue
        finally:
            await process.aclose()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(15)
