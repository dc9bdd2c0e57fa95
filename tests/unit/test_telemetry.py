"""Telemetry's settings, names and limits; and that it is not there where nobody has asked for it."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics
from opentelemetry.semconv.attributes import (
    db_attributes,
    error_attributes,
    http_attributes,
    server_attributes,
    url_attributes,
)
from opentelemetry.semconv.metrics import http_metrics
from pydantic import SecretStr
from starlette.responses import Response

from gateway import telemetry
from gateway.http import Operation
from gateway.observability import make_logger
from gateway.runtime import conventions, otlp
from gateway.runtime.function import Function
from gateway.runtime.otlp import Collector as KnownCollector
from gateway.runtime.otlp import GuardedSpanExporter, OpenTelemetry
from gateway.runtime.process import Process
from gateway.settings import Settings, SettingsError
from tests.fixtures.collector import Collector
from tests.fixtures.emulator import rest_event

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from starlette.requests import Request

FUNCTIONS = Path(__file__).parents[2] / "functions"
ENVIRON = {"SUPABASE_URL": "https://abc.supabase.co", "SUPABASE_KEY": "sb_secret_0123456789abcdef"}
OTLP = "OTEL_EXPORTER_OTLP_"


def settings(**given: Any) -> Settings:
    return Settings(rest_url="http://127.0.0.1:1", supabase_key=SecretStr("none"), **given)


# Where it is not asked for


@pytest.mark.parametrize("asked", [False, True])
def test_nothing_of_it_is_imported_where_no_endpoint_is_set(*, asked: bool) -> None:
    program = (
        "import asyncio, sys\n"
        "import chat.handler\n"
        "from gateway.runtime.process import current_process\n"
        "chat.handler.app.application\n"
        "heavy = {'opentelemetry', 'requests', 'urllib3', 'google'}\n"
        "print(sorted(heavy & {name.partition('.')[0] for name in sys.modules}))\n"
    )
    variables = {f"{OTLP}ENDPOINT": "http://127.0.0.1:9"} if asked else {}
    told = subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(FUNCTIONS), **ENVIRON, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ("opentelemetry" in told.stdout) is asked
    assert (told.stdout.strip() == "[]") is not asked


def test_no_request_is_followed_where_nobody_asked() -> None:
    assert telemetry.current() is None
    assert telemetry.NOT_FOLLOWED.headers == {}


# Settings


def test_one_endpoint_for_all_gets_a_path_for_each() -> None:
    read = Settings.from_environment(ENVIRON | {f"{OTLP}ENDPOINT": "http://collector:4318/"})
    assert read.otlp_traces_endpoint == "http://collector:4318/v1/traces"
    assert read.otlp_metrics_endpoint == "http://collector:4318/v1/metrics"
    assert read.otlp_timeout_milliseconds == 1500


def test_an_endpoint_of_its_own_is_taken_as_it_is() -> None:
    read = Settings.from_environment(
        ENVIRON
        | {
            f"{OTLP}ENDPOINT": "https://all.example",
            f"{OTLP}TRACES_ENDPOINT": "https://traces.example/in",
            f"{OTLP}HEADERS": "a=1",
            f"{OTLP}TRACES_HEADERS": "b=2",
            f"{OTLP}TIMEOUT": "700",
            "OTEL_METRICS_EXPORTER": "none",
        }
    )
    assert read.otlp_traces_endpoint == "https://traces.example/in"
    assert read.otlp_metrics_endpoint is None
    assert read.otlp_traces_headers.get_secret_value() == "b=2"
    assert read.otlp_timeout_milliseconds == 700


def test_it_can_be_switched_off_and_headers_alone_switch_nothing_on() -> None:
    for variables in (
        {},
        {f"{OTLP}HEADERS": "a=1"},
        {f"{OTLP}ENDPOINT": "http://c:1", "OTEL_SDK_DISABLED": "TRUE"},
        {f"{OTLP}ENDPOINT": " "},
    ):
        read = Settings.from_environment(ENVIRON | variables)
        assert (read.otlp_traces_endpoint, read.otlp_metrics_endpoint) == (None, None)
        assert Process.start(read).telemetry is None


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({f"{OTLP}ENDPOINT": "collector:4318"}, f"{OTLP}ENDPOINT"),
        ({f"{OTLP}ENDPOINT": "http://user:hidden-secret@c"}, f"{OTLP}ENDPOINT"),
        ({f"{OTLP}ENDPOINT": "http://c", f"{OTLP}HEADERS": "hidden-secret"}, f"{OTLP}HEADERS"),
        ({f"{OTLP}ENDPOINT": "http://c", f"{OTLP}HEADERS": "a b=hidden-secret"}, f"{OTLP}HEADERS"),
        ({f"{OTLP}ENDPOINT": "http://c", f"{OTLP}HEADERS": "a=hidden-secret%0d%0ab: c"}, f"{OTLP}HEADERS"),
        ({f"{OTLP}ENDPOINT": "http://c", f"{OTLP}PROTOCOL": "grpc"}, f"{OTLP}PROTOCOL"),
        ({f"{OTLP}ENDPOINT": "http://c", f"{OTLP}TIMEOUT": "0"}, f"{OTLP}TIMEOUT"),
        ({"SLUICE_TRACEPARENT_TO": "some"}, "SLUICE_TRACEPARENT_TO"),
    ],
)
def test_what_is_bad_is_named_and_not_shown(variables: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment(ENVIRON | variables)
    assert named in str(caught.value)
    assert "hidden-secret" not in str(caught.value)


def test_headers_are_shown_nowhere() -> None:
    read = Settings.from_environment(
        ENVIRON | {f"{OTLP}ENDPOINT": "http://c", f"{OTLP}HEADERS": "authorization=Basic%20hidden-secret"}
    )
    assert "hidden-secret" not in repr(read)


@pytest.mark.parametrize("variable", ["OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_METRIC_EXPORT_INTERVAL"])
def test_a_bad_variable_of_the_sdks_keeps_no_process_from_starting(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "-1")
    endpoint = {"otlp_traces_endpoint": "http://127.0.0.1:9", "otlp_metrics_endpoint": "http://127.0.0.1:9"}
    assert Process.start(settings(**endpoint)).telemetry is None


# Names


def test_every_name_is_one_of_the_conventions() -> None:
    """Against OpenTelemetry's own list of them."""
    known = {
        value
        for module in (
            gen_ai_attributes,
            db_attributes,
            error_attributes,
            http_attributes,
            server_attributes,
            url_attributes,
            gen_ai_metrics,
            http_metrics,
        )
        for value in vars(module).values()
        if isinstance(value, str)
    }
    source = Path(conventions.__file__).read_text()
    used = {
        word.strip('",:')
        for word in source.split('"')
        if word.startswith(("gen_ai.", "db.", "http.", "server.", "url.", "error.")) and " " not in word
    }
    assert {"gen_ai.client.token.usage", "db.system.name", "gen_ai.usage.input_tokens"} <= used
    # Made of two parts in the code.
    assert used - known == {"gen_ai.response.{name}"}
    assert {"gen_ai.response.id", "gen_ai.response.model"} <= known


def test_boundaries_are_the_conventions() -> None:
    assert (
        *(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64),
        *(1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
    ) == conventions.SECONDS_BUCKETS
    assert (
        *(1, 4, 16, 64, 256, 1024, 4096, 16384, 65536),
        *(262144, 1048576, 4194304, 16777216, 67108864),
    ) == conventions.TOKEN_BUCKETS


# Collectors that are ill


class Exporter(SpanExporter):
    def __init__(self, *results: SpanExportResult | Exception) -> None:
        self.results = list(results)
        self.calls = 0

    def export(self, spans: Sequence[Any]) -> SpanExportResult:  # noqa: ARG002
        self.calls += 1
        result = self.results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result


def test_a_collector_that_fails_is_left_alone_and_what_it_misses_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    known = KnownCollector("spans", make_logger())
    failure, success = SpanExportResult.FAILURE, SpanExportResult.SUCCESS
    inner = Exporter(failure, OSError(), success, failure)
    exporter = GuardedSpanExporter(inner, known)
    span: Any = object()
    exporter.export([span, span])
    assert (inner.calls, known.lost, known.resting) == (1, 2, True)
    exporter.export([span])
    assert (inner.calls, known.lost) == (1, 3)
    now[0] += 5.1
    exporter.export([span])
    assert (inner.calls, known.lost) == (2, 4)
    # Twice as long now.
    now[0] += 5.1
    exporter.export([span])
    assert (inner.calls, known.lost) == (2, 5)
    now[0] += 5.1
    assert exporter.export([span]) is success
    assert (inner.calls, known.lost, known.resting) == (3, 5, False)
    # And from the beginning after it was well.
    exporter.export([span])
    now[0] += 5.1
    assert not known.resting


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


def frozen(collector: Collector, **given: Any) -> Settings:
    return settings(
        function_name="f",
        otlp_traces_endpoint=f"{collector.url}/v1/traces",
        otlp_metrics_endpoint=f"{collector.url}/v1/metrics",
        **given,
    )


def scope(path: str = "/x") -> dict[str, Any]:
    return {"type": "http", "method": "GET", "path": path, "scheme": "https", "headers": []}


async def test_a_flush_is_bounded_and_the_next_waits_for_none_that_hangs(collector: Collector) -> None:
    collector.gate.clear()
    followed = OpenTelemetry(frozen(collector, otlp_timeout_milliseconds=10_000), make_logger())
    followed.begin(scope(), "req_1").end(None, None)
    began = time.monotonic()
    await followed.flush()
    assert 1.5 < time.monotonic() - began < 3
    began = time.monotonic()
    for _ in range(20):
        followed.begin(scope(), "req_2").end(None, None)
        await followed.flush()
    assert time.monotonic() - began < 1
    began = time.monotonic()
    collector.gate.set()
    await followed.aclose()
    assert time.monotonic() - began < 5


async def test_only_so_many_spans_are_kept_for_a_collector(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otlp, "_MOST_SPANS", 10)
    followed = OpenTelemetry(frozen(collector), make_logger())
    for _ in range(25):
        followed.begin(scope(), "req_1").end(None, None)
    await followed.flush()
    assert len(collector.spans()) == 10
    assert followed._span_collector.lost == 15
    await followed.aclose()
    await followed.aclose()


async def test_an_unforeseen_error_ends_the_request_with_its_kind_and_not_its_words(
    collector: Collector,
) -> None:
    followed = OpenTelemetry(frozen(collector), make_logger())
    trace = followed.begin(scope(), "req_1")

    def request() -> None:
        with telemetry.following(trace, scope(), "gateway.route"):
            assert telemetry.current() is trace
            raise ZeroDivisionError("canary")

    with pytest.raises(ZeroDivisionError):
        request()
    assert telemetry.current() is None
    await followed.flush()
    [span] = collector.spans()
    assert (span.attributes["error.type"], span.status, span.events) == ("ZeroDivisionError", 2, 0)
    assert not any(b"canary" in body for body in collector.bodies)
    await followed.aclose()


async def test_two_requests_at_once_keep_their_own_spans(collector: Collector) -> None:
    followed = OpenTelemetry(frozen(collector), make_logger())
    met = asyncio.Barrier(2)

    async def one(number: int) -> str:
        trace = followed.begin(scope(), f"req_{number}")
        with telemetry.following(trace, scope(), "gateway.route"):
            await met.wait()
            found = telemetry.current()
            assert found is trace
            query = found.begin_query(f"function_{number}", "http://127.0.0.1:3000")
            await met.wait()
            query.end()
        return trace.trace_id

    ids = await asyncio.gather(one(1), one(2))
    await followed.flush()
    for number, trace_id in enumerate(ids, 1):
        names = {span.name for span in collector.spans(trace_id)}
        assert names == {"GET", f"api.function_{number}"}
    await followed.aclose()


# Functions whose answer Lambda takes only when they return


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The thread's event loop, which Mangum takes and leaves."""
    with asyncio.Runner() as runner:
        asyncio.set_event_loop(runner.get_loop())
        yield runner.get_loop()
        asyncio.set_event_loop(None)


def function(process: Process) -> Function:
    async def hello(_request: Request) -> Response:
        return Response("hello", media_type="text/plain")

    return Function(lambda _: [Operation("GET", "/hello", hello, "Say hello")], process=lambda: process)


def test_a_buffered_function_sends_before_it_returns(
    collector: Collector, loop: asyncio.AbstractEventLoop
) -> None:
    process = Process.start(frozen(collector))
    answer = function(process).handle(rest_event("GET", "/hello"), None)
    assert answer["body"] == "hello"
    [span] = collector.spans()
    assert span.name == "GET /hello"
    assert {path for path, _ in collector.arrivals} == {"/v1/traces", "/v1/metrics"}
    loop.run_until_complete(process.aclose())


def test_a_buffered_function_hardly_waits_for_a_collector_that_hangs(
    collector: Collector, loop: asyncio.AbstractEventLoop
) -> None:
    collector.gate.clear()
    process = Process.start(frozen(collector, otlp_timeout_milliseconds=1000))
    serving = function(process)
    took = []
    for _ in range(3):
        began = time.monotonic()
        assert serving.handle(rest_event("GET", "/hello"), None)["body"] == "hello"
        took.append(time.monotonic() - began)
    assert took[0] < 1
    # While that export hangs nothing is waited for.
    assert max(took[1:]) < 0.2
    collector.gate.set()
    loop.run_until_complete(process.aclose())
    assert not [thread for thread in threading.enumerate() if thread.name == "otlp-close"]


async def test_what_is_logged_of_a_failure_is_ours_alone(
    collector: Collector, capfd: pytest.CaptureFixture[str]
) -> None:
    collector.status = 400
    headers = SecretStr("authorization=Bearer%20hidden-secret")
    log = io.StringIO()
    logger = make_logger(service="telemetry-test", stream=log)
    followed = OpenTelemetry(frozen(collector, otlp_traces_headers=headers), logger)
    followed.begin(scope(), "req_1").end(None, None)
    await followed.flush()
    await followed.aclose()
    assert capfd.readouterr() == ("", "")
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [line["message"] for line in lines] == ["Telemetry could not be exported."] * 2
    assert "hidden-secret" not in log.getvalue()
    assert [known.get("authorization") for known in collector.headers].count("Bearer hidden-secret") == 1
