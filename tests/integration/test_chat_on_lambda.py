"""The chat function as Lambda starts it: its wrapper, its process, real requests through to the books."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import sys
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.fixtures.collector import SERVER, Collector
from tests.fixtures.emulator import FUNCTIONS, Emulator, NoEmulatorError, rest_event, runtime
from tests.fixtures.gateway import MASTER_KEYS, RunningGateway, gateway, module_gateway
from tests.fixtures.runtime_api import DELIMITER, FakeRuntimeApi, Report

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.fixtures.gateway import Customer

__all__ = ["gateway", "module_gateway"]

CHAT = "/v1/chat/completions"
TRACE = "Root=1-581cf771-a006649127e371903a2de979;Parent=70de5b6f19ff9a0a;Sampled=0"


def environment(gateway: RunningGateway, spool: Path) -> dict[str, str]:
    keys = {name: base64.b64encode(key).decode() for name, key in MASTER_KEYS.items()}
    return {
        "LAMBDA_TASK_ROOT": str(FUNCTIONS),
        "SLUICE_REST_URL": gateway.settings.rest_url,
        "SUPABASE_KEY": gateway.settings.supabase_key.get_secret_value(),
        "SLUICE_MASTER_KEYS": json.dumps(keys),
        "SLUICE_ALLOW_PRIVATE_URLS": "true",
        "SLUICE_SPOOL_DIR": str(spool),
        "POWERTOOLS_METRICS_NAMESPACE": "Sluice",
    }


class ChatFunction:
    """The process that the wrapper starts, and the Runtime API that it serves."""

    def __init__(self, api: FakeRuntimeApi, gateway: RunningGateway, spool: Path, **variables: str) -> None:
        self.api = api
        self.process = subprocess.Popen(
            # The arguments are those of the managed runtime, of which the wrapper takes the Python alone.
            [str(FUNCTIONS / "chat" / "bootstrap"), sys.executable, "/var/runtime/bootstrap.py"],
            env={
                "PATH": os.environ["PATH"],
                "AWS_LAMBDA_RUNTIME_API": api.address,
                **environment(gateway, spool),
                **variables,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def chat(
        self, customer: Customer, model: str, *, stream: bool = True, seconds: float = 60, **call: Any
    ) -> str:
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "stream": stream}
        headers = {"Lambda-Runtime-Trace-Id": TRACE}
        event = rest_event("POST", CHAT, body, customer.key)
        return self.api.invoke(event, seconds=seconds, headers=headers, **call)

    def stop(self) -> list[dict[str, Any]]:
        """Let the process end, and return the lines of its log."""
        self.api.stop()
        log, _ = self.process.communicate(timeout=20)
        assert "Traceback" not in log.replace('"exception":"Traceback', "")
        return [json.loads(line) for line in log.splitlines()]


@pytest.fixture
def chat(gateway: RunningGateway, tmp_path: Path) -> Iterator[ChatFunction]:
    with FakeRuntimeApi() as api:
        function = ChatFunction(api, gateway, tmp_path)
        yield function
        function.process.kill()
        function.process.communicate()


def events(report: Report) -> list[dict[str, Any]]:
    lines = report.body.decode().split("\n\n")
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def text(report: Report) -> str:
    chunks = [choice for event in events(report) for choice in event.get("choices", ())]
    return "".join(choice["delta"].get("content") or "" for choice in chunks)


def settled(gateway: RunningGateway, customer: Customer) -> list[dict[str, Any]]:
    rows = gateway.requests(customer)
    assert gateway.balance(customer)[1] == 0, "something is still held"
    assert gateway.books_add_up()
    return rows


def test_a_stream_arrives_as_it_is_generated_and_is_charged(
    chat: ChatFunction, gateway: RunningGateway
) -> None:
    customer = gateway.customer("1")
    chat.chat(customer, gateway.model("drip-100ms"))
    report = chat.api.report(30)
    assert report.kind == "response"
    assert report.metadata["statusCode"] == 200
    assert report.metadata["multiValueHeaders"]["content-type"] == ["text/event-stream; charset=utf-8"]
    [identity] = report.metadata["multiValueHeaders"]["x-request-id"]
    assert text(report) == "You said: Hello"
    assert report.body.endswith(b"data: [DONE]\n\n")
    assert not report.trailers
    data = [chunk for chunk in report.chunks if chunk.data.startswith(b"data: ")]
    assert len(data) >= 4
    assert data[-1].at - data[0].at > 0.1 * (len(data) - 3)
    [row] = settled(gateway, customer)
    assert (row["id"], row["state"], row["outcome"]) == (identity, "settled", "succeeded")
    assert gateway.balance(customer)[0] == 1 - Decimal(str(row["charge_usd"]))
    lines = chat.stop()
    [metrics] = [line for line in lines if "_aws" in line]
    assert (metrics["Requests"], metrics["OutputTokens"]) == ([1.0], [float(row["output_tokens"])])
    assert customer.key not in json.dumps(lines)


def test_what_is_generated_goes_out_though_the_rest_never_comes_and_the_deadline_ends_it(
    chat: ChatFunction, gateway: RunningGateway
) -> None:
    """15 s of a function's time are kept for the settlement; the provider hangs after three chunks."""
    customer = gateway.customer("1")
    chat.chat(customer, gateway.model("hang-3"), seconds=17)
    report = chat.api.report(30)
    assert text(report)
    assert not report.trailers
    [error] = [event["error"] for event in events(report) if "error" in event]
    assert error["type"] == "server_error"
    [row] = settled(gateway, customer)
    assert (row["outcome"], row["usage_estimated"]) == ("cut", True)
    assert Decimal(str(row["charge_usd"])) > 0


def test_a_client_that_has_gone_is_charged_before_the_next_invocation(
    chat: ChatFunction, gateway: RunningGateway
) -> None:
    customer = gateway.customer("1")
    chat.chat(customer, gateway.model("hang-3"), cut_after=3)
    chat.chat(customer, gateway.model("echo"), stream=False)
    left, answered = chat.api.report(30), chat.api.report(30)
    assert left.cut
    assert json.loads(answered.body)["choices"][0]["message"]["content"] == "You said: Hello"
    first, second = settled(gateway, customer)
    assert (first["outcome"], second["outcome"]) == ("cancelled", "succeeded")
    assert first["settled_at"] < second["admitted_at"]


def test_refusals_have_their_true_status(chat: ChatFunction, gateway: RunningGateway) -> None:
    poor = gateway.customer(None)
    chat.chat(poor, gateway.model("echo"))
    chat.api.invoke(rest_event("POST", CHAT, {}))
    chat.api.invoke(rest_event("GET", "/nowhere"))
    statuses = [chat.api.report(30).metadata["statusCode"] for _ in range(3)]
    assert statuses == [402, 401, 404]


def test_two_tenants_in_turn_on_one_warm_process(chat: ChatFunction, gateway: RunningGateway) -> None:
    tenants = [gateway.customer("1"), gateway.customer("2")]
    model = gateway.model("echo")
    for _ in range(3):
        for tenant in tenants:
            chat.chat(tenant, model, stream=False)
    told = [json.loads(chat.api.report(30).body)["gateway_usage"] for _ in range(6)]
    assert [usage["user_api_key"][:9] for usage in told] == [tenant.key[:9] for tenant in tenants] * 3
    assert [len(settled(gateway, tenant)) for tenant in tenants] == [3, 3]
    lines = [line for line in chat.stop() if "_aws" not in line]
    assert not any(tenant.key in json.dumps(lines) for tenant in tenants)


def test_it_serves_from_a_restored_snapshot(gateway: RunningGateway, tmp_path: Path) -> None:
    customer = gateway.customer("1")
    with FakeRuntimeApi() as api:
        chat = ChatFunction(api, gateway, tmp_path, AWS_LAMBDA_INITIALIZATION_TYPE="snap-start")
        chat.chat(customer, gateway.model("echo"))
        report = api.report(30)
        chat.stop()
    assert api.restores == 1
    assert text(report) == "You said: Hello"


def test_what_needs_no_setting_is_done_before_the_snapshot_and_nothing_else() -> None:
    """With the managed runtime's own registry, and without any setting in the environment."""
    try:
        _, packages = runtime()
    except NoEmulatorError as error:
        pytest.skip(str(error))
    program = (
        "import sys, chat.handler, snapshot_restore_py\n"
        "from gateway.runtime.process import current_process, tls_context\n"
        "told = [tls_context.cache_info().currsize]\n"
        "for hook, arguments, named in snapshot_restore_py.get_before_snapshot():\n"
        "    hook(*arguments, **named)\n"
        "told += [tls_context.cache_info().currsize, current_process.cache_info().currsize]\n"
        "print(told, 'gateway.http_transport' in sys.modules)"
    )
    told = subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{FUNCTIONS}:{packages}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == "[0, 1, 0] True"


# Under the Runtime Interface Emulator


@contextlib.contextmanager
def emulated(gateway: RunningGateway, tmp_path: Path, **variables: str) -> Iterator[Emulator]:
    """The chat function under the emulator, started by its wrapper as in the managed runtime."""
    try:
        binary, packages = runtime()
    except NoEmulatorError as error:
        pytest.skip(str(error))
    command = [
        str(FUNCTIONS / "chat" / "bootstrap"),
        sys.executable,
        "-m",
        "awslambdaric",
        "chat.handler.handler",
    ]
    variables = {**environment(gateway, tmp_path), "PYTHONPATH": f"{FUNCTIONS}:{packages}", **variables}
    with Emulator(command, variables, binary) as emulator:
        yield emulator


def ask(gateway: RunningGateway, *, stream: bool) -> tuple[Customer, dict[str, Any]]:
    customer = gateway.customer("1")
    body = {"messages": [{"role": "user", "content": "Hello"}], "stream": stream}
    return customer, rest_event("POST", CHAT, {"model": gateway.model("echo"), **body}, customer.key)


@pytest.mark.parametrize("stream", [False, True])
def test_sam_local_gets_a_buffered_answer(gateway: RunningGateway, tmp_path: Path, *, stream: bool) -> None:
    customer, event = ask(gateway, stream=stream)
    with emulated(gateway, tmp_path, AWS_SAM_LOCAL="true") as emulator:
        answer = json.loads(emulator.invoke(event))
    assert answer["statusCode"] == 200, answer
    assert ("[DONE]" in answer["body"]) is stream
    assert "Hello" in answer["body"]
    [row] = settled(gateway, customer)
    assert row["outcome"] == "succeeded"


def test_the_emulators_own_runtime_api_takes_the_stream(gateway: RunningGateway, tmp_path: Path) -> None:
    """It hands it on whole; that its server is Lambda's own code is what this is about."""
    customer, event = ask(gateway, stream=True)
    with emulated(gateway, tmp_path) as emulator:
        for _ in range(2):
            metadata, delimiter, body = emulator.invoke(event).partition(DELIMITER)
            assert json.loads(metadata)["statusCode"] == 200
            assert delimiter
            assert body.endswith(b"data: [DONE]\n\n")
    assert [row["outcome"] for row in settled(gateway, customer)] == ["succeeded"] * 2


def test_a_form_with_an_image_arrives_whole(chat: ChatFunction, gateway: RunningGateway) -> None:
    """API Gateway hands over in base64 what the template calls binary."""
    customer = gateway.customer("5")
    prices = {"input": "5", "image_input": "8", "output": "10", "image_output": "32"}
    model = gateway.model("echo", prices=prices, max_output_tokens=None, output=("image",))
    image = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
    fields = {"model": model, "prompt": "Make it night", "size": "1024x1024", "quality": "low"}
    form = httpx.Request("POST", "https://api.example.org", data=fields, files={"image": ("a.png", image)})
    event = rest_event("POST", "/v1/images/edits", key=customer.key)
    event["multiValueHeaders"]["Content-Type"] = [form.headers["content-type"]]
    event |= {"body": base64.b64encode(form.read()).decode(), "isBase64Encoded": True}
    chat.api.invoke(event, seconds=60, headers={"Lambda-Runtime-Trace-Id": TRACE})
    report = chat.api.report(30)
    assert report.metadata["statusCode"] == 200, report.body
    assert json.loads(report.body)["gateway_usage"]["tokens_charged"] > 272
    [row] = settled(gateway, customer)
    assert (row["endpoint"], row["image_output_tokens"]) == ("images.edits", 272)
    assert gateway.simulator.calls.all()[-1].body["image"].content == image


# Telemetry: what a frozen process has not sent is lost


@contextlib.contextmanager
def followed(
    gateway: RunningGateway, tmp_path: Path, endpoint: str, **variables: str
) -> Iterator[ChatFunction]:
    """The chat function with telemetry, as Lambda names it."""
    with FakeRuntimeApi() as api:
        function = ChatFunction(
            api,
            gateway,
            tmp_path,
            AWS_LAMBDA_FUNCTION_NAME="sluice-chat",
            AWS_REGION="eu-north-1",
            OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
            OTEL_EXPORTER_OTLP_HEADERS="x-token=collector-secret",
            **variables,
        )
        yield function
        function.process.kill()
        function.process.communicate()


def test_telemetry_goes_out_after_the_last_byte_and_before_the_next_invocation(
    gateway: RunningGateway, tmp_path: Path
) -> None:
    customer = gateway.customer("1")
    with Collector() as collector:
        variables = {"OTEL_SERVICE_NAME": "mine", "OTEL_RESOURCE_ATTRIBUTES": "team=a,service.version=9"}
        with followed(gateway, tmp_path, collector.url, **variables) as chat:
            for number in (1, 2):
                chat.chat(customer, gateway.model("drip-20ms"))
                report = chat.api.report(30)
                assert text(report) == "You said: Hello"
                collector.wait_for(lambda number=number: len(collector.arrivals) >= 2 * number)  # type: ignore[misc]
                assert all(at > report.chunks[-1].at for _, at in collector.arrivals[2 * number - 2 :])
            log = chat.stop()
        assert [path for path, _ in sorted(collector.arrivals)] == ["/v1/metrics"] * 2 + ["/v1/traces"] * 2
        assert {headers["x-token"] for headers in collector.headers} == {"collector-secret"}
        roots = [span for span in collector.spans() if span.kind == SERVER]
        assert len(roots) == 2
        assert len(collector.spans()) == 8
        assert (
            roots[0].resource.items()
            >= {
                "service.name": "mine",
                "service.version": "9",
                "team": "a",
                "cloud.platform": "aws_lambda",
                "cloud.region": "eu-north-1",
                "faas.name": "sluice-chat",
            }.items()
        )
        [tokens] = collector.points("gen_ai.client.token.usage", gen_ai__token__type="output")
        assert tokens.count == 2
        traced = {line["trace_id"] for line in log if "trace_id" in line}
        assert traced <= {root.trace_id for root in roots}
        assert "collector-secret" not in json.dumps(log)


@pytest.mark.parametrize("ill", ["away", "hangs", "fails"])
def test_an_ill_collector_holds_no_answer_and_hardly_the_function(
    gateway: RunningGateway, tmp_path: Path, ill: str
) -> None:
    customer = gateway.customer("1")
    model = gateway.model("echo")
    with Collector() as collector:
        url = "http://127.0.0.1:9" if ill == "away" else collector.url
        collector.status = 500
        if ill == "hangs":
            collector.gate.clear()
        with followed(gateway, tmp_path, url, OTEL_EXPORTER_OTLP_TIMEOUT="1000") as chat:
            chat.chat(customer, model)
            first = chat.api.report(30)
            assert text(first) == "You said: Hello"
            # The next is begun within the time that one export may take; those after it at once.
            for _ in range(3):
                chat.chat(customer, model)
            later = [chat.api.report(30) for _ in range(3)]
            assert [text(report) for report in later] == ["You said: Hello"] * 3
            assert later[0].at - first.at < 4
            assert later[2].at - later[1].at < 1
            log = chat.stop()
        collector.gate.set()
    warned = [line for line in log if line.get("message") == "Telemetry could not be exported."]
    assert {line["signal"] for line in warned} == {"spans", "metrics"}
    assert all(line["lost_so_far"] > 0 for line in warned)
    assert len(warned) == 2
    assert [row["outcome"] for row in settled(gateway, customer)] == ["succeeded"] * 4
