"""Events on their way to whoever is to hear of them: claimed, sent, and what came of it written down.

Each channel has an outbox of its own in the database (sql/functions/deliver_events.sql, publish_events.sql):
where one fails the other goes on. What is claimed is sent at least once; receivers know an event by its id.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.observability import Logger

AT_A_TIME = 8
"""Events that are under way at once: one receiver has to take them all."""
MOST_IN_A_RUN = 200
"""A receiver that was away for a day gets what has waited by so many a minute."""
LEASE_SECONDS = 60
"""For how long what was claimed is ours. Far more than an attempt takes."""
RUN_SECONDS = 25.0
"""After this no more are claimed: the schedule comes again."""

MOST_ERROR_CHARS = 300


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of sending an event. `status` None: there was no answer; `error` None: it was taken."""

    status: int | None
    error: str | None

    @property
    def delivered(self) -> bool:
        return self.error is None


@dataclass(slots=True)
class Deliveries:
    """What one run has done."""

    delivered: int = 0
    failed: int = 0


class Channel(Protocol):
    """Where events go."""

    async def claim(self, limit: int) -> Sequence[Mapping[str, Any]]:
        """Return at most so many that are due, for LEASE_SECONDS nobody else's."""

    async def send(self, delivery: Mapping[str, Any]) -> Attempt:
        """Send one of them. Whatever may be wrong with the receiver is in the Attempt: nothing is raised."""

    async def finish(self, delivery: Mapping[str, Any], attempt: Attempt) -> str:
        """Write down what came of it, and return the state it is in now."""


class Outbox:
    """Empties the outbox of a channel."""

    def __init__(self, channel: Channel, logger: Logger) -> None:
        self._channel = channel
        self._logger = logger

    async def deliver(self) -> Deliveries:
        """Send what is due, for RUN_SECONDS at most. Safe to run in several places at the same time.

        A receiver that takes nothing of what it is offered is left alone until the next run. Raises
        DatabaseError and DatabaseAwayError; what was sent by then and not written down is sent again.
        """
        done = Deliveries()
        last = time.monotonic() + RUN_SECONDS
        while time.monotonic() < last and done.delivered + done.failed < MOST_IN_A_RUN:
            before = done.delivered
            work = [self._deliver(delivery, done) for delivery in await self._channel.claim(AT_A_TIME)]
            # Each is seen to its end before the failure of one is raised.
            for failure in await asyncio.gather(*work, return_exceptions=True):
                if failure is not None:
                    raise failure
            if done.delivered == before:
                break
        return done

    async def _deliver(self, delivery: Mapping[str, Any], done: Deliveries) -> None:
        attempt = await self._channel.send(delivery)
        state = await self._channel.finish(delivery, attempt)
        if attempt.delivered:
            done.delivered += 1
            return
        done.failed += 1
        level = self._logger.error if state == "given_up" else self._logger.warning
        level(
            "An event was given up." if state == "given_up" else "An event could not be delivered.",
            extra={
                "event_id": delivery["id"],
                "event_type": delivery["type"],
                "attempt": delivery["attempt"],
                "detail": attempt.error,
            },
        )
