"""What telemetry is told of a request: by whom it came, what was asked of the database and of providers.

Nothing here imports OpenTelemetry. Where no endpoint is set no request is followed, and what stands here
comes to one look at a context variable; gateway.runtime.otlp does the rest where one is.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from starlette.types import Scope

    from gateway.schemas.usage import TokenUsage


@dataclass(frozen=True, slots=True, kw_only=True)
class Inference:
    """One call of a model, as it is about to be sent."""

    provider: str
    """By the registry's name."""
    kind: str
    """What is called for: chat, embeddings or images."""
    model: str
    """As the provider names it."""
    url: str = field(repr=False)
    stream: bool
    body: Mapping[str, Any] = field(repr=False)
    """In OpenAI's terms: only numbers and words of a known list are taken from it."""
    output_bound: int | None
    """Tokens of output per choice."""
    own: bool
    """Whether it goes to a server that the operator runs."""


class Attempt:
    """One call of a provider; this one is not followed. Its methods raise nothing."""

    headers: Mapping[str, str] = {}
    """What the provider is sent of the trace."""

    def chunk(self, data: Mapping[str, Any]) -> None:
        """Hear of a chunk of the answer, in OpenAI's shape or in Anthropic's."""

    def answered(self, answer: Any) -> None:
        """Hear the whole answer: whatever it has of `body` and `finish_reasons` is looked at."""

    def failed(self, error_type: str) -> None:
        """Hear how it failed, as a word of few."""

    def stop(self) -> None:
        """Hear that the provider is done with. It is open until it is closed: its usage comes later."""

    def close(
        self,
        *,
        usage: TokenUsage | None = None,
        finish_reasons: Sequence[str] = (),
        error_type: str | None = None,
    ) -> None:
        """Hear what it was settled on. A second close is nothing."""


class Query:
    """One call of a SQL function."""

    def failed(self, error_type: str, code: str | None) -> None:
        """Hear how it failed; `code` is the database's own."""

    def end(self) -> None:
        """Hear that it is over."""


class RequestTrace(Protocol):
    """One request that is followed. Its methods raise nothing."""

    @property
    def trace_id(self) -> str:
        """Of the trace that it belongs to: 32 hexadecimal digits."""

    def begin_attempt(self, inference: Inference) -> Attempt:
        """Begin a call of a provider. One that is still open is closed."""

    def begin_query(self, function: str, url: str) -> Query:
        """Begin a call of a SQL function, at PostgREST's URL."""

    def note(self, **values: str | int | bool) -> None:
        """Note things of our own; each is named sluice.* in the span."""

    def respond(self, status: int) -> None:
        """Hear the response's status."""

    def end(self, route: str | None, error: BaseException | None) -> None:
        """Hear that the request is over. `route` is the template of its path."""


class Telemetry(Protocol):
    """Follows requests and exports what became of them. Neither fails a request nor delays it."""

    def begin(self, scope: Scope, request_id: str) -> RequestTrace:
        """Begin to follow a request, as a part of the client's trace where there is one."""

    async def flush(self) -> None:
        """Export what there is before the process is frozen; nothing where it never is. Bounded."""

    def flush_before_answer(self) -> None:
        """Export in much less time, where the answer is given only afterwards."""

    async def aclose(self) -> None:
        """Export what there is and stop. Bounded. A second call is nothing."""


_current: ContextVar[RequestTrace | None] = ContextVar("request_trace", default=None)
NOT_FOLLOWED = Attempt()


def current() -> RequestTrace | None:
    """Return the request that this task works for, if it is followed."""
    return _current.get()


@contextmanager
def following(trace: RequestTrace, scope: Scope, route_key: str) -> Iterator[None]:
    """Let the block's tasks find `trace`, which ends with it. `route_key`: where scope has the route."""
    token = _current.set(trace)
    error: BaseException | None = None
    try:
        yield
    except BaseException as raised:
        error = raised
        raise
    finally:
        _current.reset(token)
        trace.end(scope.get(route_key), error)
