"""How the simulator sends: it notices a client that leaves, and it can drop a connection or never answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Mapping

    from starlette.types import Receive, Send

    from infra.local.simulator.behaviour import Behaviour
    from infra.local.simulator.calls import Call, CallLog


class ConnectionCut(Exception):  # noqa: N818 - not an error: what was asked for
    """Raised through the ASGI server, which then drops the connection in the middle of a response."""


def _is_no_cut(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], ConnectionCut))


# uvicorn logs a traceback for what goes through it; a cut that was asked for is no news.
logging.getLogger("uvicorn.error").addFilter(_is_no_cut)


class Transport:
    """One call's way back to the client."""

    def __init__(
        self,
        call: Call,
        behaviour: Behaviour,
        log: CallLog,
        receive: Receive,
        send: Send,
        *,
        request_id_header: str = "x-request-id",
    ) -> None:
        self._request_id_header = request_id_header.encode()
        self._call = call
        self._behaviour = behaviour
        self._log = log
        self._receive = receive
        self._send = send

    async def run(self, sending: Coroutine[Any, Any, None]) -> None:
        """Await `sending` until it ends or the client has gone, and note which."""
        sender = asyncio.ensure_future(sending)
        watcher = asyncio.ensure_future(self._client_gone())
        try:
            await asyncio.wait({sender, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if not sender.done() and not self._call.finished:
                self._call.disconnected = True
                sender.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sender
        finally:
            for task in (sender, watcher):
                task.cancel()
            self._log.changed()

    async def send_json(self, status: int, content: Any, headers: Mapping[str, str] | None = None) -> None:
        """Send a whole JSON body, as the behaviour would have it."""
        body = json.dumps(content, ensure_ascii=False).encode()
        await asyncio.sleep(self._behaviour.first_byte_delay)
        if self._behaviour.hang_after is not None:
            await asyncio.Event().wait()
        if self._behaviour.malformed:
            body = body[: len(body) // 2]
        await self._start(status, {"content-length": str(len(body)), **(headers or {})}, "application/json")
        if self._behaviour.cut_after is not None:
            await self._send(
                {"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True}
            )
            raise ConnectionCut
        self._call.finished = True
        await self._send({"type": "http.response.body", "body": body})

    async def send_events(self, events: Iterable[bytes]) -> None:
        """Send server-sent events, as the behaviour would have them."""
        await asyncio.sleep(self._behaviour.first_byte_delay)
        if self._behaviour.hang_after == 0:
            await asyncio.Event().wait()
        await self._start(200, {"cache-control": "no-cache"}, "text/event-stream; charset=utf-8")
        for event in events:
            await self._obey()
            await self._send({"type": "http.response.body", "body": event, "more_body": True})
            self._call.chunks_sent += 1
            self._log.changed()
        self._call.finished = True
        await self._send({"type": "http.response.body", "body": b""})

    async def _obey(self) -> None:
        """Wait, hang or cut before the next event."""
        sent = self._call.chunks_sent
        if sent and self._behaviour.chunk_delay:
            await asyncio.sleep(self._behaviour.chunk_delay)
        if self._behaviour.cut_after is not None and sent >= self._behaviour.cut_after:
            raise ConnectionCut
        if self._behaviour.hang_after is not None and sent >= self._behaviour.hang_after:
            await asyncio.Event().wait()

    async def _start(self, status: int, headers: Mapping[str, str], media_type: str) -> None:
        self._call.status = status
        raw = [(b"content-type", media_type.encode())]
        raw += [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        raw.append((self._request_id_header, f"req_sim_{self._call.number}".encode()))
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def _client_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
