"""OpenTelemetry's spans and metrics, over OTLP/HTTP. Imported where an endpoint is set, and nowhere else.

What is told, and by which conventions, stands in gateway.runtime.conventions. Here is how it gets away: a
process that lives long sends in batches from threads of the SDK's; on Lambda, where a process is frozen
between requests, what there is goes out after each answer. No request fails or waits for it: a collector that
is away is left alone for a while, and what it would have got is dropped and counted.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
import time
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from typing import TYPE_CHECKING, Any

import requests
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased

from gateway.runtime.conventions import SCHEMA_URL, Instruments, Request, parent_context
from gateway.settings import otlp_headers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.metrics.export import MetricsData
    from pydantic import SecretStr
    from starlette.types import Scope

    from gateway.observability import Logger
    from gateway.settings import Settings

MOST_SECONDS_AFTER_ANSWER = 2.0
"""How long a frozen process's export holds it at most, whatever the setting: Lambda charges for it."""
MOST_SECONDS_BEFORE_ANSWER = 0.25
"""The same where Lambda takes the answer only from a function that has returned."""

_MOST_SPANS = 2048
"""Kept for the next export; any more are dropped."""
_REST_SECONDS = 5.0
"""How long a collector that failed is left alone; twice as long each time."""
_LONGEST_REST_SECONDS = 60.0
_CLOSE_SECONDS = 3.0


class OpenTelemetry:
    """Follows requests, and exports what became of them."""

    def __init__(self, settings: Settings, logger: Logger) -> None:
        # The SDK logs each failure, some with what was to be sent. Ours are counted and told below.
        quiet = logging.getLogger("opentelemetry")
        quiet.propagate = False
        if not quiet.handlers:
            quiet.addHandler(logging.NullHandler())
        self._frozen = settings.function_name is not None
        self._seconds = settings.otlp_timeout_milliseconds / 1000
        if self._frozen:
            self._seconds = min(self._seconds, MOST_SECONDS_AFTER_ANSWER)
        self._traceparent_to = settings.traceparent_to
        self._spans = _SpanBuffer()
        self._span_collector = Collector("spans", logger)
        self._metric_collector = Collector("metrics", logger)
        resource = _resource(settings)
        self._span_exporter = self._open_span_exporter(settings)
        self._tracers = TracerProvider(
            # Whoever sends no spans leaves it to the client whether the trace is sampled further on.
            sampler=None if self._span_exporter else ParentBased(ALWAYS_OFF),
            resource=resource,
            shutdown_on_exit=False,
        )
        if self._span_exporter is not None:
            self._tracers.add_span_processor(
                self._spans if self._frozen else BatchSpanProcessor(self._span_exporter)
            )
        self._metric_reader = self._open_metric_reader(settings)
        self._meters = MeterProvider(
            metric_readers=[self._metric_reader] if self._metric_reader else [],
            resource=resource,
            shutdown_on_exit=False,
            exemplar_filter=AlwaysOffExemplarFilter(),
        )
        self._tracer = self._tracers.get_tracer("sluice", settings.version, SCHEMA_URL)
        self._instruments = Instruments(self._meters.get_meter("sluice", settings.version, SCHEMA_URL))
        self._workers = ThreadPoolExecutor(2, "otlp")
        self._exports: list[Future[None]] = []
        self._closed = False

    def begin(self, scope: Scope, request_id: str) -> Request:
        """Begin to follow a request, as a part of the client's trace where there is one."""
        return Request(
            self._tracer,
            self._instruments,
            scope,
            request_id,
            parent=parent_context(scope["headers"]),
            traceparent_to=self._traceparent_to,
        )

    async def flush(self) -> None:
        """Export what there is, where the process is frozen afterwards."""
        if self._frozen:
            exports = [asyncio.wrap_future(export) for export in self._start_exports()]
            if exports:
                await asyncio.wait(exports, timeout=self._seconds)

    def flush_before_answer(self) -> None:
        """Export in less time, as a client waits for it."""
        if self._frozen:
            wait_for(self._start_exports(), timeout=min(self._seconds, MOST_SECONDS_BEFORE_ANSWER))

    async def aclose(self) -> None:
        """Export what there is and stop, within seconds."""
        if self._closed:
            return
        self._closed = True
        # A daemon: a collector that hangs must not keep the process.
        closing = threading.Thread(target=self._close, name="otlp-close", daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, _CLOSE_SECONDS)

    def _close(self) -> None:
        if self._frozen:
            self._export_spans()
        self._tracers.shutdown()
        self._meters.shutdown(timeout_millis=_CLOSE_SECONDS * 1000)
        self._workers.shutdown(wait=False, cancel_futures=True)

    def _start_exports(self) -> list[Future[None]]:
        """Begin to export what there is. Where the last export still hangs, that is waited for no more."""
        if self._closed or any(not export.done() for export in self._exports):
            return []
        self._exports = []
        if self._span_exporter is not None:
            self._exports.append(self._workers.submit(self._export_spans))
        if self._metric_reader is not None:
            self._exports.append(self._workers.submit(self._export_metrics, self._metric_reader))
        return self._exports

    def _export_spans(self) -> None:
        spans, dropped = self._spans.take()
        if dropped:
            self._span_collector.dropped(dropped)
        if spans and self._span_exporter is not None:
            self._span_exporter.export(spans)

    def _export_metrics(self, reader: PeriodicExportingMetricReader) -> None:
        reader.collect(timeout_millis=self._seconds * 1000)

    def _open_span_exporter(self, settings: Settings) -> GuardedSpanExporter | None:
        if settings.otlp_traces_endpoint is None:
            return None
        exporter = OTLPSpanExporter(
            settings.otlp_traces_endpoint,
            headers=_headers(settings.otlp_traces_headers),
            timeout=self._seconds,
            session=_session(),
        )
        return GuardedSpanExporter(exporter, self._span_collector)

    def _open_metric_reader(self, settings: Settings) -> PeriodicExportingMetricReader | None:
        if settings.otlp_metrics_endpoint is None:
            return None
        exporter = OTLPMetricExporter(
            settings.otlp_metrics_endpoint,
            headers=_headers(settings.otlp_metrics_headers),
            timeout=self._seconds,
            session=_session(),
        )
        return PeriodicExportingMetricReader(
            GuardedMetricExporter(exporter, self._metric_collector),
            # Never by itself, or as OTEL_METRIC_EXPORT_INTERVAL says.
            export_interval_millis=math.inf if self._frozen else None,
        )


class Collector:
    """What is known of one endpoint: whether it is to be left alone, and what it did not get."""

    def __init__(self, what: str, logger: Logger) -> None:
        self._what = what
        self._logger = logger
        self._lock = threading.Lock()
        self._rest = 0.0
        self._resting_until = -math.inf
        self.lost = 0
        """How many spans, or exports of metrics, never got there."""

    @property
    def resting(self) -> bool:
        """Whether it failed a moment ago."""
        return time.monotonic() < self._resting_until

    def took(self) -> None:
        """Note that an export has arrived."""
        with self._lock:
            self._rest, self._resting_until = 0.0, -math.inf

    def dropped(self, count: int) -> None:
        """Count what was not even sent."""
        with self._lock:
            self.lost += count

    def failed(self, count: int) -> None:
        """Count what did not arrive, tell the log, and leave it alone for a while."""
        with self._lock:
            self.lost += count
            self._rest = min(max(self._rest * 2, _REST_SECONDS), _LONGEST_REST_SECONDS)
            self._resting_until = time.monotonic() + self._rest
            told = {"signal": self._what, "lost_so_far": self.lost, "next_try_seconds": self._rest}
        self._logger.warning("Telemetry could not be exported.", extra=told)


class GuardedSpanExporter(SpanExporter):
    """Exports spans unless the collector is to be left alone. Raises nothing."""

    def __init__(self, inner: SpanExporter, collector: Collector) -> None:
        self._inner = inner
        self._collector = collector

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self._collector.resting:
            self._collector.dropped(len(spans))
            return SpanExportResult.FAILURE
        try:
            result = self._inner.export(spans)
        except Exception:  # noqa: BLE001 - whatever it is, it is no request's business
            result = SpanExportResult.FAILURE
        if result is SpanExportResult.SUCCESS:
            self._collector.took()
        else:
            self._collector.failed(len(spans))
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()


class GuardedMetricExporter(MetricExporter):
    """The same of metrics."""

    def __init__(self, inner: MetricExporter, collector: Collector) -> None:
        super().__init__(
            preferred_temporality=inner._preferred_temporality,  # noqa: SLF001 - the SDK's own way, too
            preferred_aggregation=inner._preferred_aggregation,  # noqa: SLF001
        )
        self._inner = inner
        self._collector = collector

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> MetricExportResult:
        if self._collector.resting:
            self._collector.dropped(1)
            return MetricExportResult.FAILURE
        try:
            result = self._inner.export(metrics_data, timeout_millis=timeout_millis, **kwargs)
        except Exception:  # noqa: BLE001 - as above
            result = MetricExportResult.FAILURE
        if result is MetricExportResult.SUCCESS:
            self._collector.took()
        else:
            self._collector.failed(1)
        return result

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return self._inner.force_flush(timeout_millis=timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        self._inner.shutdown(timeout_millis=timeout_millis, **kwargs)


class _SpanBuffer(SpanProcessor):
    """Keeps the spans of a request until its answer is given."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[ReadableSpan] = []
        self._dropped = 0

    def on_end(self, span: ReadableSpan) -> None:
        with self._lock:
            if len(self._spans) < _MOST_SPANS:
                self._spans.append(span)
            else:
                self._dropped += 1

    def take(self) -> tuple[list[ReadableSpan], int]:
        """Return what there is, and how many there was no room for."""
        with self._lock:
            spans, self._spans = self._spans, []
            dropped, self._dropped = self._dropped, 0
        return spans, dropped


def _headers(secret: SecretStr) -> dict[str, str]:
    return otlp_headers(secret.get_secret_value())


def _session() -> requests.Session:
    session = requests.Session()
    # Neither a proxy nor a .netrc of the machine's.
    session.trust_env = False
    return session


def _resource(settings: Settings) -> Resource:
    """Return what sends this. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES go before our own."""
    ours = {
        "service.name": "sluice",
        "service.version": settings.version,
        "service.instance.id": str(uuid.uuid4()),
        "telemetry.sdk.language": "python",
        "telemetry.sdk.name": "opentelemetry",
    }
    if settings.function_name is not None:
        ours |= {
            "cloud.provider": "aws",
            "cloud.platform": "aws_lambda",
            "faas.name": settings.function_name,
        }
        variables = {
            "cloud.region": "AWS_REGION",
            "faas.version": "AWS_LAMBDA_FUNCTION_VERSION",
            "faas.instance": "AWS_LAMBDA_LOG_STREAM_NAME",
        }
        ours |= {name: os.environ[variable] for name, variable in variables.items() if variable in os.environ}
    return Resource(dict(ours)).merge(OTELResourceDetector().detect())
