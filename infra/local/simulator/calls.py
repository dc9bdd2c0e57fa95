"""What was asked of the simulator, for the tests to read."""

from __future__ import annotations

import collections
import json
import threading
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

CALLS_KEPT = 256


@dataclass(slots=True)
class Call:
    """One request for a model, as it came; `chunks_sent` counts server-sent events."""

    number: int
    wire: str
    model: str
    headers: dict[str, str]
    body: dict[str, Any]
    streamed: bool
    url: str = ""
    status: int | None = None
    chunks_sent: int = 0
    finished: bool = False
    disconnected: bool = False
    usage: dict[str, Any] = field(default_factory=dict)


class CallLog:
    """The number of calls by model and the last `kept` calls whole. Safe to read from another thread."""

    def __init__(self, *, kept: int = CALLS_KEPT) -> None:
        # Re-entrant, since what is waited for reads the log.
        self._changed = threading.Condition(threading.RLock())
        self._counts: collections.Counter[str] = collections.Counter()
        self._calls: collections.deque[Call] = collections.deque(maxlen=kept)

    def begin(
        self,
        wire: str,
        model: str,
        headers: dict[str, str],
        body: dict[str, Any],
        *,
        url: str,
        streamed: bool,
    ) -> Call:
        with self._changed:
            self._counts[model] += 1
            number = self._counts.total()
            call = Call(number, wire, model, headers, body, streamed=streamed, url=url)
            self._calls.append(call)
            self._changed.notify_all()
        return call

    def changed(self) -> None:
        """Wake those who wait: a call that was begun has got further."""
        with self._changed:
            self._changed.notify_all()

    def count(self, model: str | None = None) -> int:
        """Return how often `model` was called, or any."""
        with self._changed:
            return self._counts.total() if model is None else self._counts[model]

    def all(self) -> list[Call]:
        with self._changed:
            return list(self._calls)

    def last(self) -> Call:
        """Return the latest call; LookupError when there was none."""
        with self._changed:
            if not self._calls:
                raise LookupError("the simulator was not called")
            return self._calls[-1]

    def clear(self) -> None:
        with self._changed:
            self._counts.clear()
            self._calls.clear()
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[CallLog], bool], timeout: float = 10.0) -> None:
        """Block until `condition` holds; TimeoutError after `timeout` seconds. Never on its own loop."""
        with self._changed:
            if not self._changed.wait_for(lambda: condition(self), timeout):
                raise TimeoutError(f"not so after {timeout} s: {list(self._calls)}")

    def as_json(self) -> dict[str, Any]:
        """Return all of it; of a form's files, how long they were."""
        with self._changed:
            told = {"calls": dict(self._counts), "log": [asdict(call) for call in self._calls]}
        shown: dict[str, Any] = json.loads(json.dumps(told, default=lambda content: f"{len(content)} bytes"))
        return shown
