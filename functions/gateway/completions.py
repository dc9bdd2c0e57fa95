"""Calls of chat models: whole or streamed, in whatever shape the client takes the answer, settled once."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from gateway.calls import Measured, client_error
from gateway.errors import InternalError
from gateway.http import EventStreamResponse, finish
from gateway.providers.wire import Chunk, Fault, ProviderError, StreamDone, StreamFailed
from gateway.schemas.usage import TokenUsage
from gateway.tokens import DRAWN_IMAGE_TOKENS, count_request, count_text
from gateway.upstream import BROKEN, broken_connection, read_answer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    import httpx

    from gateway.calls import Call, Calls
    from gateway.database.rpc import Settled
    from gateway.observability import Logger
    from gateway.providers.wire import Answer, ChatWire, ProviderCall, StreamEvent

STALLED_CLIENT_SECONDS = 20.0
"""How long after the deadline a client may take what is left; well within the hold's lease."""

_QUEUED_EVENTS = 64
"""How far a provider may run ahead of a slow client."""
_CLIENT_CLOSED_REQUEST = 499
"""The status under which a call that the client has left is logged (nginx's)."""
_END_SECONDS = 0.05
"""How long a provider has to end its response after the end mark, so that its connection can be kept."""


class EventShape(Protocol):
    """The events of one stream as its client takes them."""

    keep_alive: bytes
    """What is sent in silence."""

    def begin(self, provider_call: ProviderCall) -> None:
        """Hear who answers. Another may, as long as nothing was encoded."""

    def encode(self, chunks: Sequence[Chunk]) -> bytes:
        """Return the chunks as events; nothing where they have to wait for what follows."""

    def end(self, call: Call, settled: Settled | None) -> bytes:
        """Return what ends a stream that is whole and settled."""


class Completions:
    """Makes calls of chat models."""

    def __init__(self, calls: Calls, *, keep_alive_seconds: float, logger: Logger) -> None:
        self._calls = calls
        self._keep_alive_seconds = keep_alive_seconds
        self._logger = logger

    async def whole(self, call: Call) -> tuple[Answer, TokenUsage, Settled | None]:
        """Return the whole answer, what it is charged for, and the settlement; see Calls.answer."""

        async def measure(answer: Answer) -> Measured:
            usage = answer.usage
            if usage is None:
                images = _images(answer.body.get("choices"), "message")
                usage = await asyncio.to_thread(_estimate, call, answer.generated, images)
            return Measured(
                usage,
                estimated=answer.usage is None,
                finish_reason=next(iter(answer.finish_reasons), None),
                provider_cost_usd=answer.reported_cost_usd,
            )

        return await self._calls.answer(call, _whole_answer, measure)

    def stream(self, call: Call, shape: EventShape) -> EventStreamResponse:
        """Return the response that streams the answer."""
        lifetime = call.deadline - call.started + STALLED_CLIENT_SECONDS
        return EventStreamResponse(
            self._stream(call, shape), late_headers=call.announce, lifetime=lifetime, logger=self._logger
        )

    async def _stream(self, call: Call, shape: EventShape) -> AsyncGenerator[bytes, None]:
        """Yield the answer's events as they come, and settle, however it ends.

        A task of its own reads the provider, so that waiting for it can be interrupted by a keep-alive.
        """
        events: asyncio.Queue[bytes | None] = asyncio.Queue(_QUEUED_EVENTS)
        reader = asyncio.create_task(self._read_stream(call, shape, events), name="provider-stream")
        try:
            while (event := await self._next_event(events, shape)) is not None:
                yield event
            await self._end_stream(call, reader)
            settled = await self._settle_stream(call, "succeeded", status=200)
            yield shape.end(call, settled)
        finally:
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await reader
            # Where it is not settled yet, the client has left, or the server is stopping.
            await self._settle_stream(call, "cancelled", status=_CLIENT_CLOSED_REQUEST)

    async def _next_event(self, events: asyncio.Queue[bytes | None], shape: EventShape) -> bytes | None:
        """Return the next event, None at the end, or a sign of life where there is none for too long."""
        if not events.empty():
            return events.get_nowait()
        silence = asyncio.get_running_loop().call_later(
            self._keep_alive_seconds, _break_silence, events, shape.keep_alive
        )
        try:
            return await events.get()
        finally:
            silence.cancel()

    async def _read_stream(self, call: Call, shape: EventShape, events: asyncio.Queue[bytes | None]) -> None:
        """Put the answer's events into the queue, and None at the end, unless nobody reads them any more."""

        async def relay(provider_call: ProviderCall, response: httpx.Response) -> None:
            try:
                await _relay(call, shape, provider_call, response, events)
            except ProviderError:
                if not call.exchange.forwarded:
                    # Another route may follow: what this one told is not what that one costs.
                    call.stream = None
                raise

        try:
            async with asyncio.timeout_at(call.deadline):
                await self._calls.upstream.exchange(call.exchange, relay)
        except Exception:
            await events.put(None)
            raise
        await events.put(None)

    async def _end_stream(self, call: Call, reader: asyncio.Task[None]) -> None:
        """Return if the provider ended the stream well; else settle what there was of it and raise."""
        try:
            await reader
        except Exception as failure:
            error = client_error(failure, call)
            if call.exchange.forwarded:
                await self._settle_stream(call, "cut", status=200, error_code=error.code)
            else:
                await self._settle_stream(call, "failed", status=error.status, error_code=error.code)
            if isinstance(error, InternalError):
                raise  # to be logged as what it is
            raise error from error.__cause__

    async def _settle_stream(
        self, call: Call, outcome: str, *, status: int, error_code: str | None = None
    ) -> Settled | None:
        """Settle a stream, once; a later call returns what the first came to."""
        if call.settlement is None:
            call.settlement = asyncio.create_task(
                self._settle_streamed(call, outcome, status, error_code), name="settlement"
            )
        return await finish(call.settlement)

    async def _settle_streamed(
        self, call: Call, outcome: str, status: int, error_code: str | None
    ) -> Settled | None:
        stream = call.stream
        told = stream.usage if stream is not None else None
        cost = stream.reported_cost_usd if stream is not None else None
        # A provider that has the call is paid for what it was sent, even if it said nothing yet.
        charged = call.exchange.candidate is not None and outcome != "failed"
        if charged:
            generated = stream.generated if stream is not None else ()
            sent = stream.input_usage if stream is not None else None
            call.usage = told or await asyncio.to_thread(_estimate, call, generated, call.images, sent)
        return await self._calls.settle(
            call,
            outcome,
            status=status,
            usage=call.usage,
            usage_estimated=charged and told is None,
            error_code=error_code,
            finish_reason=next(iter(stream.finish_reasons), None) if stream is not None else None,
            provider_cost_usd=str(cost) if charged and cost is not None else None,
        )


def _break_silence(events: asyncio.Queue[bytes | None], keep_alive: bytes) -> None:
    if events.empty():
        events.put_nowait(keep_alive)


async def _whole_answer(call: ProviderCall, response: httpx.Response) -> Answer:
    return _wire(call).parse_answer(call, await read_answer(call, response))


async def _relay(
    call: Call,
    shape: EventShape,
    provider_call: ProviderCall,
    response: httpx.Response,
    events: asyncio.Queue[bytes | None],
) -> None:
    """Put a provider's chunks into the queue. Raises ProviderError where the stream is not whole."""
    stream = call.stream = _wire(provider_call).open_stream(provider_call)
    call.images = 0
    shape.begin(provider_call)
    arriving = response.aiter_bytes()
    try:
        async for data in arriving:
            if await _forward(call, shape, stream.feed(data), events):
                await _read_out(arriving)
                return
        if await _forward(call, shape, stream.close(), events):
            return
    except BROKEN as error:
        if not stream.complete:
            raise broken_connection(provider_call, error) from error
    if not stream.complete:
        raise ProviderError(
            provider_call.provider.name,
            Fault.PROTOCOL,
            f"{provider_call.provider.subject} ended the stream before the answer was whole.",
        )


async def _forward(
    call: Call, shape: EventShape, arrived: Sequence[StreamEvent], events: asyncio.Queue[bytes | None]
) -> bool:
    """Put chunks into the queue; return whether the provider said that the stream is whole."""
    chunks = [event for event in arrived if isinstance(event, Chunk)]
    for chunk in chunks:
        call.exchange.attempt.chunk(chunk.data)
        call.images += _images(chunk.data.get("choices"), "delta")
    out = shape.encode(chunks)
    if out:
        if call.first_token is None:
            call.first_token = asyncio.get_running_loop().time()
        call.exchange.forwarded = True
        await events.put(out)
    for event in arrived:
        if isinstance(event, StreamFailed):
            raise event.error
    return any(isinstance(event, StreamDone) for event in arrived)


async def _read_out(arriving: AsyncIterator[bytes]) -> None:
    """Read what follows the end mark: a connection whose response was left unread can't be used again."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_END_SECONDS):
            async for _ in arriving:
                pass


def _wire(call: ProviderCall) -> ChatWire:
    """Return the wire that carries the call: of the kinds of calls, those of chat alone come here."""
    wire: ChatWire | None = call.wire  # type: ignore[assignment]
    assert wire is not None
    return wire


def _images(choices: Any, holder: str) -> int:
    """Return how many images a body's choices bring, in the shape in which every wire has them."""
    count = 0
    for choice in choices if isinstance(choices, list) else ():
        said = choice.get(holder) if isinstance(choice, dict) else None
        images = said.get("images") if isinstance(said, dict) else None
        count += len(images) if isinstance(images, list) else 0
    return count


def _estimate(
    call: Call, generated: Sequence[str], images: int, sent: TokenUsage | None = None
) -> TokenUsage:
    """Count what was generated, and what was sent unless that is known, for a provider that did not tell."""
    candidate = call.exchange.candidate
    model = candidate.model if candidate else ""
    output = sum(count_text(text, model) for text in generated)
    usage = replace(sent or TokenUsage(input=count_request(call.exchange.body, model)), output=output)
    return replace(usage, image_output=images * DRAWN_IMAGE_TOKENS, images=images) if images else usage
