"""What spans and metrics say, and by which of OpenTelemetry's semantic conventions.

GenAI: version 1.41 (status: Development), the last release that holds them. They go on in a repository of
their own, open-telemetry/semantic-conventions-genai, whose metrics are being renamed and which has had no
release yet (November 2026). OTEL_SEMCONV_STABILITY_OPT_IN is for instrumentations that once followed
older ones; this one never did, and heeds no value of it. HTTP and databases: the stable conventions of the
same version.

    {method} {route}            server span: one request
    ├─ api.admit_request        client span: a call of a SQL function
    ├─ chat {model}             client span: one call of a provider; where it fails, the next stands beside it
    └─ api.settle_request

A call of a provider ends when its answer has been read, and is told with what it was settled on, which comes
later. `error.type` is a status, the name of httpx's exception, whose fault it was (client, transient,
operator, protocol) or the code of the gateway's own error. What is our own is named sluice.*.

Nothing of what was asked or answered is in them, nor of headers, queries and exceptions' messages: attributes
are numbers, words of lists known here, and identifiers that look like identifiers.
"""

from __future__ import annotations

import functools
import re
import time
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gateway.redaction import redact
from gateway.telemetry import Attempt, Inference, Query

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from opentelemetry.metrics import Meter
    from opentelemetry.trace import Span, Tracer
    from starlette.types import Scope

    from gateway.schemas.usage import TokenUsage

SCHEMA_URL = "https://opentelemetry.io/schemas/1.41.0"

# The boundaries that the conventions name, in tokens and in seconds.
TOKEN_BUCKETS = tuple(float(4**power) for power in range(14))
SECONDS_BUCKETS = tuple(round(0.01 * 2**power, 2) for power in range(14))
HTTP_SECONDS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)

# The conventions' names of providers, where they have one of their own. The others keep ours.
_PROVIDERS = {"gemini": "gcp.gemini", "mistral": "mistral_ai", "xai": "x_ai"}
_OPERATIONS = {"gemini": "generate_content", "completions": "text_completion"}
_METHODS = frozenset(
    {"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"}
)
_NUMBERS = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
}
_OUTPUT_TYPES = {"json_object": "json", "json_schema": "json", "text": "text"}
_ENCODINGS = frozenset({"float", "base64"})
_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}", re.ASCII)
_REASON = re.compile(r"[A-Za-z_]{1,40}", re.ASCII)
_MOST_REASONS = 128
_MAX_PATH_CHARS = 200
_MAX_TRACESTATE_BYTES = 4096
_SERVER_ERROR = 500
_INT64 = 2**63
_PORTS = {"http": 80, "https": 443}
_PROPAGATOR = TraceContextTextMapPropagator()
# With a context of its own no call looks for the thread's.
_NOWHERE = Context()


class Instruments:
    """The process's metrics. Their attributes are few: no customer, key or path is among them."""

    def __init__(self, meter: Meter) -> None:
        self.operation_seconds = meter.create_histogram(
            "gen_ai.client.operation.duration",
            "s",
            "GenAI operation duration.",
            explicit_bucket_boundaries_advisory=SECONDS_BUCKETS,
        )
        self.first_chunk_seconds = meter.create_histogram(
            "gen_ai.client.operation.time_to_first_chunk",
            "s",
            "Time to receive the first chunk, measured from when the client issues the generation request.",
            explicit_bucket_boundaries_advisory=SECONDS_BUCKETS,
        )
        self.tokens = meter.create_histogram(
            "gen_ai.client.token.usage",
            "{token}",
            "Number of input and output tokens used.",
            explicit_bucket_boundaries_advisory=TOKEN_BUCKETS,
        )
        self.http_seconds = meter.create_histogram(
            "http.server.request.duration",
            "s",
            "Duration of HTTP server requests.",
            explicit_bucket_boundaries_advisory=HTTP_SECONDS_BUCKETS,
        )


class Request:
    """One request: a server span, and those that stand under it."""

    def __init__(
        self,
        tracer: Tracer,
        instruments: Instruments,
        scope: Scope,
        request_id: str,
        *,
        parent: Context,
        traceparent_to: Literal["all", "own", "none"],
    ) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        self._tracer = tracer
        self._instruments = instruments
        self._traceparent_to = traceparent_to
        self._began = time.perf_counter()
        self._method = "HTTP" if method == "_OTHER" else method
        self._of_metrics: dict[str, str | int] = {
            "http.request.method": method,
            "url.scheme": "https" if scope.get("scheme") == "https" else "http",
        }
        self._span = tracer.start_span(
            self._method,
            context=parent,
            kind=SpanKind.SERVER,
            attributes={
                **self._of_metrics,
                "url.path": redact(scope["path"])[:_MAX_PATH_CHARS],
                "sluice.request.id": request_id,
            },
        )
        self._context = set_span_in_context(self._span, _NOWHERE)
        self._attempt: _Attempt | None = None

    @property
    def trace_id(self) -> str:
        return f"{self._span.get_span_context().trace_id:032x}"

    def begin_attempt(self, inference: Inference) -> Attempt:
        if self._attempt is not None:
            self._attempt.close()
        told = self._traceparent_to == "all" or (self._traceparent_to == "own" and inference.own)
        self._attempt = _Attempt(self._tracer, self._instruments, self._context, inference, told=told)
        return self._attempt

    def begin_query(self, function: str, url: str) -> Query:
        return _Query(self._tracer, self._context, function, url)

    def note(self, **values: str | int | bool) -> None:
        self._span.set_attributes({_OURS[name]: value for name, value in values.items()})

    def respond(self, status: int) -> None:
        self._of_metrics["http.response.status_code"] = status

    def end(self, route: str | None, error: BaseException | None) -> None:
        if self._attempt is not None:
            self._attempt.close()
        told = self._of_metrics
        status = told.get("http.response.status_code")
        if error is not None:
            told["error.type"] = type(error).__name__
        elif isinstance(status, int) and status >= _SERVER_ERROR:
            told["error.type"] = str(status)
        if route is not None:
            told["http.route"] = route
            self._span.update_name(f"{self._method} {route}")
        if "error.type" in told:
            self._span.set_status(_FAILED)
        self._span.set_attributes(told)
        self._span.end()
        self._instruments.http_seconds.record(time.perf_counter() - self._began, told, _NOWHERE)


class _Attempt(Attempt):
    def __init__(
        self, tracer: Tracer, instruments: Instruments, context: Context, inference: Inference, *, told: bool
    ) -> None:
        self._instruments = instruments
        self._stream = inference.stream
        operation = _operation(inference)
        address, port = _server(inference.url)
        # What matters for sampling is there from the beginning, as the conventions ask.
        self._of_metrics: dict[str, str | int] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": _PROVIDERS.get(inference.provider, inference.provider),
            "gen_ai.request.model": inference.model,
            "server.address": address,
            "server.port": port,
        }
        self._span = tracer.start_span(
            f"{operation} {inference.model}",
            context=context,
            kind=SpanKind.CLIENT,
            attributes={**self._of_metrics, **_asked(inference)},
        )
        self.headers = _trace_headers(self._span, own=inference.own) if told else {}
        self._began = time.perf_counter()
        self._first: float | None = None
        self._answer: dict[str, Any] = {}
        self._ended: tuple[float, int] | None = None
        self._error: str | None = None
        self._closed = False

    def chunk(self, data: Mapping[str, Any]) -> None:
        if self._first is None:
            self._first = time.perf_counter() - self._began
            # Anthropic's own first event holds the message that it begins.
            message = data.get("message")
            self._read(message if isinstance(message, dict) else data)

    def answered(self, answer: Any) -> None:
        body = getattr(answer, "body", None)
        if body is not None:
            self._read(body)
        self._reasons(getattr(answer, "finish_reasons", ()))

    def failed(self, error_type: str) -> None:
        self._error = error_type

    def stop(self) -> None:
        if self._ended is None:
            self._ended = (time.perf_counter(), time.time_ns())

    def close(
        self,
        *,
        usage: TokenUsage | None = None,
        finish_reasons: Sequence[str] = (),
        error_type: str | None = None,
    ) -> None:
        if self._closed:
            return
        self._closed = True
        self.stop()
        assert self._ended is not None
        self._reasons(finish_reasons)
        told = self._of_metrics
        error = self._error or error_type
        if error is not None:
            told = {**told, "error.type": error}
            self._span.set_status(_FAILED)
            self._span.set_attribute("error.type", error)
        if usage is not None:
            self._answer |= _used(usage)
        if self._stream and self._first is not None:
            self._answer["gen_ai.response.time_to_first_chunk"] = self._first
            self._instruments.first_chunk_seconds.record(self._first, self._of_metrics, _NOWHERE)
        self._span.set_attributes(self._answer)
        stopped, at = self._ended
        self._span.end(at)
        self._instruments.operation_seconds.record(stopped - self._began, told, _NOWHERE)
        if usage is not None:
            counts = {"input": usage.total_input, "output": usage.total_output}
            for kind, count in counts.items():
                if kind == "input" or count > 0 or told["gen_ai.operation.name"] != "embeddings":
                    of_kind = {**self._of_metrics, "gen_ai.token.type": kind}
                    self._instruments.tokens.record(count, of_kind, _NOWHERE)

    def _read(self, body: Mapping[str, Any]) -> None:
        for name in ("id", "model"):
            value = body.get(name)
            # A provider may say anything here; only what is no sentence and no key is passed on.
            if isinstance(value, str) and _IDENTIFIER.fullmatch(value) and redact(value) == value:
                self._answer[f"gen_ai.response.{name}"] = value

    def _reasons(self, reasons: Iterable[str]) -> None:
        known = [reason for reason in reasons if _REASON.fullmatch(reason)][:_MOST_REASONS]
        if known:
            self._answer["gen_ai.response.finish_reasons"] = known


class _Query(Query):
    def __init__(self, tracer: Tracer, context: Context, function: str, url: str) -> None:
        address, port = _server(url)
        procedure = f"api.{function}"
        self._span = tracer.start_span(
            procedure,
            context=context,
            kind=SpanKind.CLIENT,
            attributes={
                "db.system.name": "postgresql",
                "db.stored_procedure.name": procedure,
                "server.address": address,
                "server.port": port,
            },
        )

    def failed(self, error_type: str, code: str | None) -> None:
        self._span.set_status(_FAILED)
        self._span.set_attribute("error.type", error_type)
        if code is not None:
            self._span.set_attribute("db.response.status_code", code)

    def end(self) -> None:
        self._span.end()


# Without a description: that would be somebody's message.
_FAILED = Status(StatusCode.ERROR)
_OURS = {
    "customer_id": "sluice.customer.id",
    "key_id": "sluice.key.id",
    "model": "sluice.model",
    "outcome": "sluice.outcome",
    "usage_estimated": "sluice.usage.estimated",
    "charge_usd": "sluice.charge.usd",
}


def parent_context(headers: Iterable[tuple[bytes, bytes]]) -> Context:
    """Return the context of the client's trace; an empty one where it told none, or told nonsense.

    https://www.w3.org/TR/trace-context/
    """
    given: dict[str, list[str]] = {"traceparent": [], "tracestate": []}
    for name, value in headers:
        known = given.get(name.decode("latin-1").lower())
        if known is not None:
            known.append(value.decode("latin-1"))
    if len(given["traceparent"]) != 1:
        return _NOWHERE
    carrier = {"traceparent": given["traceparent"]}
    states = ",".join(given["tracestate"])
    if states and states.isascii() and len(states) <= _MAX_TRACESTATE_BYTES:
        carrier["tracestate"] = [states]
    return _PROPAGATOR.extract(carrier, context=_NOWHERE)


def _trace_headers(span: Span, *, own: bool) -> dict[str, str]:
    """Return what a provider is sent of the trace; the vendors' part of it leaves the house to nobody."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, context=set_span_in_context(span, _NOWHERE))
    if not own:
        carrier.pop("tracestate", None)
    return carrier


def _operation(inference: Inference) -> str:
    if inference.kind == "embeddings":
        return "embeddings"
    if inference.kind == "images":
        return "generate_content"
    return _OPERATIONS.get(inference.provider, "chat")


@functools.lru_cache(maxsize=256)
def _server(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 443)


def _asked(inference: Inference) -> dict[str, Any]:
    """Return what the request says of how to answer: no text of it."""
    body = inference.body
    told: dict[str, Any] = {}
    if inference.stream:
        told["gen_ai.request.stream"] = True
    choices = body.get("n")
    if _is_whole(choices) and choices != 1:
        told["gen_ai.request.choice.count"] = choices
    if inference.kind == "images":
        return {**told, "gen_ai.output.type": "image"}
    return told | (_asked_to_embed(body) if inference.kind == "embeddings" else _asked_to_chat(inference))


def _asked_to_embed(body: Mapping[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    if _is_whole(dimensions := body.get("dimensions")):
        told["gen_ai.embeddings.dimension.count"] = dimensions
    if body.get("encoding_format") in _ENCODINGS:
        told["gen_ai.request.encoding_formats"] = [body["encoding_format"]]
    return told


def _asked_to_chat(inference: Inference) -> dict[str, Any]:
    body = inference.body
    told: dict[str, Any] = {}
    for name, attribute in _NUMBERS.items():
        value = body.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _INT64:
            told[attribute] = float(value)
    if _is_whole(seed := body.get("seed")):
        told["gen_ai.request.seed"] = seed
    if inference.output_bound is not None:
        told["gen_ai.request.max_tokens"] = inference.output_bound
    form = body.get("response_format")
    kind = form.get("type") if isinstance(form, dict) else None
    if isinstance(kind, str) and kind in _OUTPUT_TYPES:
        told["gen_ai.output.type"] = _OUTPUT_TYPES[kind]
    return told


def _used(usage: TokenUsage) -> dict[str, int]:
    """Return the tokens of a call. The parts are within their totals, as the conventions have them."""
    parts = {
        "gen_ai.usage.cache_read.input_tokens": usage.cached_input,
        "gen_ai.usage.cache_creation.input_tokens": usage.cache_write,
        "gen_ai.usage.reasoning.output_tokens": usage.reasoning,
    }
    return {
        "gen_ai.usage.input_tokens": usage.total_input,
        "gen_ai.usage.output_tokens": usage.total_output,
        **{name: count for name, count in parts.items() if count is not None},
    }


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _INT64
