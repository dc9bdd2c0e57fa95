"""Server-sent events, decoded from bytes as they arrive.

Follows the WHATWG HTML standard, "9.2.6 Interpreting an event stream", with two departures. An event that is
pending when the bytes end is given out by `close` (the standard drops it), because providers end streams
without the last blank line; whether it is whole is for its reader to judge. And an event has a size limit.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_EVENT_BYTES = 16 * 1024 * 1024
"""A chunk may hold an image in base64; nothing honest is larger."""

_BOM = b"\xef\xbb\xbf"


class EventTooLargeError(ValueError):
    """An event exceeds the size limit. The decoder takes nothing more."""


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event; `event` is the standard's default "message" where the stream names none."""

    data: str
    event: str = "message"
    id: str = ""


class SSEDecoder:
    """Bytes in, events out, however the bytes are split."""

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._line: list[bytes] = []
        self._line_bytes = 0
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._event = b""
        self._id = b""
        self._at_start = True
        self._after_cr = False

    def feed(self, data: bytes) -> list[ServerSentEvent]:
        """Return the events that these bytes complete. Raises EventTooLargeError."""
        if not data:
            return []
        plain = self._read_plain(data)
        if plain is not None:
            return plain
        events: list[ServerSentEvent] = []
        if self._after_cr:
            self._after_cr = False
            if data.startswith(b"\n"):
                data = data[1:]
        # splitlines() on bytes breaks at CR, LF and CRLF and at nothing else, which is the standard's rule.
        lines = data.splitlines(keepends=True)
        for line in lines:
            content = line.rstrip(b"\r\n")
            self._line.append(content)
            self._line_bytes += len(content)
            self._check_size()
            if len(content) != len(line):
                event = self._end_line()
                if event is not None:
                    events.append(event)
        self._after_cr = data.endswith(b"\r")
        return events

    def close(self) -> list[ServerSentEvent]:
        """Return the event that was pending when the bytes ended, if there is one."""
        events = [self._end_line()] if self._line_bytes else []
        events.append(self._dispatch())
        return [event for event in events if event is not None]

    def _read_plain(self, data: bytes) -> list[ServerSentEvent] | None:
        """Return the events of bytes that are nothing but whole events of one line of data; else None.

        Streams of models are, mostly: line by line they take five times as long.
        """
        if (
            self._line
            or self._data
            or self._event
            or self._after_cr
            or len(data) > self._max_event_bytes
            or not data.endswith(b"\n\n")
            or b"\r" in data
        ):
            return None
        events: list[ServerSentEvent] = []
        last = self._id.decode("utf-8", "replace")
        for line in data[:-2].split(b"\n\n"):
            if not line.startswith(b"data:") or b"\n" in line:
                return None
            value = line[5:].removeprefix(b" ").decode("utf-8", "replace")
            events.append(ServerSentEvent(value, id=last))
        self._at_start = False
        return events

    def _end_line(self) -> ServerSentEvent | None:
        line = self._line[0] if len(self._line) == 1 else b"".join(self._line)
        self._line.clear()
        self._line_bytes = 0
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(_BOM)
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
            # One more for the line feed that joins it to the next.
            self._data_bytes += len(value) + 1
        elif name == b"event":
            self._event = value
        elif name == b"id" and b"\0" not in value:
            self._id = value
        # A comment has an empty name. "retry" is for browsers; unknown fields are ignored, by the standard.
        return None

    def _dispatch(self) -> ServerSentEvent | None:
        data, event = self._data, self._event
        self._data, self._data_bytes, self._event = [], 0, b""
        if not data:
            return None
        return ServerSentEvent(
            data=b"\n".join(data).decode("utf-8", "replace"),
            event=event.decode("utf-8", "replace") or "message",
            id=self._id.decode("utf-8", "replace"),
        )

    def _check_size(self) -> None:
        size = self._line_bytes + self._data_bytes
        if size > self._max_event_bytes:
            raise EventTooLargeError(f"an event exceeds {self._max_event_bytes} bytes")
