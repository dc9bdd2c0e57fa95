"""The sweep that a schedule does on AWS: here a thread does it while the stack runs."""

from __future__ import annotations

import logging
import threading
from typing import Self

import psycopg

_logger = logging.getLogger(__name__)


class Sweeper:
    """Ends holds whose lease has run out and makes partitions ahead, at once and then every minute."""

    def __init__(self, url: str, *, interval_seconds: float = 60.0) -> None:
        self._url = url
        self._interval = interval_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def sweep(self) -> int:
        """Sweep once; return how many holds had run out."""
        expired = 0
        with psycopg.connect(self._url, autocommit=True, connect_timeout=5) as connection:
            connection.execute("select api.create_request_partitions()")
            while True:
                row = connection.execute("select (api.expire_holds() ->> 'expired')::int").fetchone()
                batch = 0 if row is None else int(row[0])
                expired += batch
                if batch == 0:
                    return expired

    def _run(self) -> None:
        while True:
            try:
                self.sweep()
            except psycopg.Error:
                # The next sweep does what this one could not; a lost hold costs nobody but waits.
                _logger.exception("the sweep of expired holds failed")
            if self._stopping.wait(self._interval):
                return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stopping.set()
        self._thread.join(10)
