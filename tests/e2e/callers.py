"""Clients of the gateway that note all that they see, and that leave when they are told to."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from collections.abc import Mapping

PATIENCE_SECONDS = 45.0
"""No answer in this time is a hang: it is beyond every deadline of the gateway's in these tests."""


@dataclass(slots=True)
class Outcome:
    """What one call came to, as its client saw it."""

    sent: bool = True
    """False where nobody listened, so that nothing can have come of it."""
    status: int | None = None
    """None where the connection broke before the response."""
    request_id: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=dict)
    """The whole answer, or the error."""
    chunks: list[dict[str, Any]] = field(default_factory=list)
    error_event: dict[str, Any] | None = None
    done: bool = False
    """Whether the answer is whole: a plain body, or a stream up to its end mark."""
    left: bool = False
    """Whether the client went of its own will."""
    broken: str | None = None
    hung: bool = False
    seconds: float = 0.0

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.body["error"]
        return error

    @property
    def gateway_usage(self) -> dict[str, Any]:
        if self.body:
            told: dict[str, Any] = self.body["gateway_usage"]
        else:
            told = self.chunks[-1]["gateway_usage"]
        return told

    @property
    def text(self) -> str:
        choices = [choice for chunk in self.chunks for choice in chunk["choices"]]
        return "".join(choice["delta"].get("content") or "" for choice in choices)


def open_client(connections: int = 600) -> httpx.AsyncClient:
    """Return a client for callers that share one loop; no connection waits for another."""
    return httpx.AsyncClient(
        timeout=httpx.Timeout(PATIENCE_SECONDS),
        limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        trust_env=False,
    )


async def call(
    client: httpx.AsyncClient,
    url: str,
    key: str,
    body: Mapping[str, Any],
    *,
    idempotency_key: str | None = None,
    leave_after: int | None = None,
) -> Outcome:
    """Make one chat completion. A stream is left after so many of its chunks."""
    outcome = Outcome()
    headers = {"authorization": f"Bearer {key}"}
    if idempotency_key is not None:
        headers["idempotency-key"] = idempotency_key
    began = time.monotonic()
    try:
        async with client.stream(
            "POST", f"{url}/v1/chat/completions", json=dict(body), headers=headers
        ) as response:
            outcome.status = response.status_code
            outcome.headers = response.headers
            outcome.request_id = response.headers.get("x-request-id")
            if response.headers.get("content-type", "").startswith("text/event-stream"):
                await _read_stream(response, outcome, leave_after)
            else:
                outcome.body = json.loads(await response.aread())
                outcome.done = True
    except httpx.ConnectError:
        outcome.sent = False
    except httpx.TimeoutException:
        outcome.hung = True
    except httpx.TransportError as error:
        outcome.broken = repr(error)
    outcome.seconds = time.monotonic() - began
    return outcome


async def _read_stream(response: httpx.Response, outcome: Outcome, leave_after: int | None) -> None:
    if leave_after == 0:
        outcome.left = True
        return
    async for line in response.aiter_lines():
        if not line.startswith("data: "):
            continue
        data = line.removeprefix("data: ")
        if data == "[DONE]":
            outcome.done = True
            continue
        event = json.loads(data)
        if "error" in event:
            outcome.error_event = event["error"]
            continue
        outcome.chunks.append(event)
        if leave_after is not None and len(outcome.chunks) >= leave_after:
            outcome.left = True
            return


def question(model: str, text: str = "Hello", *, stream: bool = False, **more: Any) -> dict[str, Any]:
    """A request body; a stream asks for its usage."""
    streaming = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    return {"model": model, "messages": [{"role": "user", "content": text}], **streaming, **more}
