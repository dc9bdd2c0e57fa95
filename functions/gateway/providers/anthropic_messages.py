"""Anthropic's Messages API for clients that speak it themselves.

What they say goes on as it is, and so does the answer: only what the gateway has to know is read from it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gateway import json_text
from gateway.providers.anthropic import AnthropicStream, AnthropicWire
from gateway.providers.headers import request_headers
from gateway.providers.wire import ChatWire, Chunk, MessagesCall, StreamDone, UpstreamRequest

if TYPE_CHECKING:
    from gateway.providers.sse import ServerSentEvent
    from gateway.providers.wire import Answer, ProviderCall, StreamEvent


class AnthropicMessagesWire(AnthropicWire):
    """The Messages API, plain and streamed, in its own terms."""

    name = "anthropic-messages"

    def build_request(self, call: ProviderCall) -> UpstreamRequest:
        """Return the client's own object with the model, the bound and `stream` put right.

        Raises ProviderError (operator) where the key is missing or unusable.
        """
        assert isinstance(call, MessagesCall)
        body = {**call.native, "model": call.model, "stream": call.stream}
        if call.output_bound is not None:
            body["max_tokens"] = min(call.output_bound, body.get("max_tokens", call.output_bound))
        return UpstreamRequest(
            method="POST",
            url=f"{call.base_url.rstrip('/')}/messages",
            headers={**request_headers(call), **call.native_headers},
            content=json_text.dump(body),
        )

    def parse_answer(self, call: ProviderCall, content: bytes) -> Answer:
        """Return the message as it came, and what can be read from it."""
        return replace(super().parse_answer(call, content), body=json_text.parse_provider(content))

    def open_stream(self, call: ProviderCall) -> MessagesStream:
        return MessagesStream(call)


class MessagesStream(AnthropicStream):
    """One streamed answer, whose chunks are Anthropic's own events.

    They too wait for the first content. Pings are the gateway's own, and `message_stop` is StreamDone.
    """

    def __init__(self, call: ProviderCall) -> None:
        super().__init__(call)
        self._waiting: list[StreamEvent] | None = []

    def _read(self, said: dict[str, Any], event: ServerSentEvent) -> list[StreamEvent]:
        read = super()._read(said, event)
        if any(not isinstance(each, Chunk) for each in read):
            done = any(isinstance(each, StreamDone) for each in read)
            # A message of no content is whole, too.
            return [*self._flush(), *read] if done else read
        if said.get("type", event.event) == "ping":
            return []
        own = Chunk(said, event.data)
        if self._waiting is None:
            return [own]
        self._waiting.append(own)
        return self._flush() if read else []

    def _flush(self) -> list[StreamEvent]:
        waiting, self._waiting = self._waiting, None
        return waiting or []


ANTHROPIC_MESSAGES: ChatWire = AnthropicMessagesWire()
