"""Services that fail under traffic: the request goes on elsewhere, the next begin there, the books add up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx
import pytest
from starlette.responses import JSONResponse, Response

from infra.local.serving import ThreadedServer
from tests.fixtures.gateway import RunningGateway, gateway, module_gateway
from tests.fixtures.wire import CHAT, HELLO, MARKUP, money, nothing_is_left_held, settled

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from starlette.types import Receive, Scope, Send

    from tests.fixtures.gateway import Customer

__all__ = ["gateway", "module_gateway", "nothing_is_left_held"]

REPOSITORY = Path(__file__).resolve().parents[2]
OPENAI, ANTHROPIC = "openai-compatible", "anthropic"
CHEAP = {"input": "1", "output": "2"}
DEAR = {"input": "30", "output": "70"}
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "model",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11},
}


@dataclass(slots=True)
class Scripted:
    """A provider that answers what it is told to, in turn, and then well."""

    script: list[Response] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        content = b""
        while True:
            message = await receive()
            content += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.bodies.append(json.loads(content))
        response = self.script.pop(0) if self.script else JSONResponse(ANSWER)
        await response(scope, receive, send)


@pytest.fixture
def scripted() -> Iterator[tuple[Scripted, str]]:
    """A scripted provider, and its base URL."""
    provider = Scripted()
    with ThreadedServer(provider) as server:
        yield provider, f"{server.url}/v1"


class SimulatorProcess:
    """A simulator of its own, which can be killed as a machine dies."""

    def __init__(self, key: str) -> None:
        program = (
            "import sys\n"
            "from infra.local.serving import ThreadedServer\n"
            "from infra.local.simulator import create_simulator\n"
            "with ThreadedServer(create_simulator(key=sys.argv[1])) as server:\n"
            "    print(server.url, flush=True)\n"
            "    sys.stdin.read()\n"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, key],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": f"{REPOSITORY / 'functions'}:{REPOSITORY}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url, "the simulator did not start"

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


def two_wires(
    gateway: RunningGateway,
    first: str,
    *,
    behaviour: str = "echo",
    prices: tuple[Mapping[str, str], Mapping[str, str]] = (CHEAP, DEAR),
) -> tuple[str, int, int]:
    """A model on an OpenAI-compatible service at `first`; behind it, on the simulator's Anthropic wire."""
    name = f"mixed/{time.monotonic_ns()}"
    gateway.call(
        "create_model",
        p_name=name,
        p_context_length=128_000,
        p_max_output_tokens=2048,
        p_offers=[
            {"provider": provider, "upstream_model": behaviour, "prices": dict(taken)}
            for provider, taken in zip((OPENAI, ANTHROPIC), prices, strict=True)
        ],
    )
    root = gateway.simulator.base_url.removesuffix("/v1")
    return (
        name,
        gateway.service(name, base_url=first, priority=1),
        gateway.service(name, base_url=f"{root}/anthropic/v1", priority=2, provider=ANTHROPIC),
    )


def post(gateway: RunningGateway, customer: Customer, model: str, **fields: Any) -> httpx.Response:
    return gateway.http(customer).post(CHAT, json={"model": model, "messages": HELLO, **fields})


def events(gateway: RunningGateway, service: int) -> list[tuple[str, dict[str, Any]]]:
    return [
        (row[0], row[1])
        for row in gateway.connection.execute(
            "select kind, data from gateway.events where subject = %s order by at", [f"service:{service}"]
        ).fetchall()
    ]


def set_aside(gateway: RunningGateway, service: int) -> bool:
    row = gateway.connection.execute(
        "select max(set_aside_until) > clock_timestamp() from gateway.service_health where service_id = %s",
        [service],
    ).fetchone()
    return bool(row and row[0])


@dataclass(slots=True)
class Traffic:
    """Clients that call, plain and streamed by turns, until ten calls of each have begun after `turn`."""

    gateway: RunningGateway
    model: str
    customers: list[Customer]
    ended: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    turn: threading.Event = field(default_factory=threading.Event)

    def work(self, number: int) -> list[tuple[bool, int, str]]:
        """(whether it began after the turn, status, body) of each call."""
        told: list[tuple[bool, int, str]] = []
        left = 10
        with httpx.Client(base_url=self.gateway.url, timeout=30, trust_env=False) as client:
            client.headers["authorization"] = f"Bearer {self.customers[number % len(self.customers)].key}"
            while left:
                turned = self.turn.is_set()
                left -= turned
                body = {
                    "model": self.model,
                    "messages": HELLO,
                    "stream": len(told) % 2 == 0,
                    "max_tokens": 50,
                }
                response = client.post(CHAT, json=body)
                told.append((turned, response.status_code, response.text))
                self.ended.release()
        return told


def test_a_provider_killed_in_mid_run_moves_its_traffic_and_the_books_add_up(gateway: RunningGateway) -> None:
    customers = [gateway.customer("1") for _ in range(6)]
    with SimulatorProcess(gateway.simulator.key) as dying, ThreadPoolExecutor(8) as pool:
        model, first, second = two_wires(gateway, f"{dying.url}/v1", behaviour="drip-5ms")
        traffic = Traffic(gateway, model, customers)
        workers = [pool.submit(traffic.work, number) for number in range(8)]
        for _ in range(40):
            assert traffic.ended.acquire(timeout=30)
        dying.kill()
        traffic.turn.set()
        told = [answer for worker in workers for answer in worker.result(timeout=60)]

    for was_killed, status, text in told:
        if was_killed:
            # within the request, each of them
            assert status == 200, text
            assert '"error"' not in text
        else:
            # Who was in the middle has lost an answer that the provider may have made: nobody makes it twice.
            assert status in {200, 502}, text
    rows = [row for customer in customers for row in settled(gateway, customer)]
    assert len(rows) == len(told)
    answered = [row["service_id"] for row in rows if row["outcome"] == "succeeded"]
    assert answered.count(second) >= 80
    assert answered.count(first) >= 40 - 8
    for row in rows:
        prices = CHEAP if row["service_id"] == first else DEAR
        if row["outcome"] == "succeeded":
            assert money(row["charge_usd"]) == charge(row, prices)
        elif row["outcome"] == "failed":
            assert money(row["charge_usd"]) == 0
    assert gateway.books_add_up()
    for customer in customers:
        assert gateway.balance(customer)[1] == 0
    # and soon nobody tries it any more
    assert set_aside(gateway, first)
    assert not set_aside(gateway, second)
    tried = sum(row["failed_routes"] is not None for row in rows)
    assert tried < 40
    assert [kind for kind, _ in events(gateway, first)] == ["provider.failing"]
    last = post(gateway, customers[0], model)
    assert last.status_code == 200
    assert gateway.request(last.headers["x-request-id"])["failed_routes"] is None


def charge(row: dict[str, Any], prices: Mapping[str, str]) -> Decimal:
    read, made = Decimal(row["input_tokens"]), Decimal(row["output_tokens"])
    return (read * Decimal(prices["input"]) + made * Decimal(prices["output"])) / 1_000_000 * MARKUP


@pytest.mark.parametrize("prices", [(CHEAP, DEAR), (DEAR, CHEAP)])
@pytest.mark.parametrize("stream", [False, True])
def test_the_hold_is_for_the_dearest_and_the_charge_for_the_one_that_answered(
    gateway: RunningGateway,
    scripted: tuple[Scripted, str],
    prices: tuple[Mapping[str, str], Mapping[str, str]],
    *,
    stream: bool,
) -> None:
    provider, base_url = scripted
    provider.script.append(JSONResponse({"error": {"message": "down"}}, 500))
    model, _, second = two_wires(gateway, base_url, prices=prices)
    customer = gateway.customer("1")
    assert post(gateway, customer, model, max_tokens=100, stream=stream).status_code == 200
    [row] = settled(gateway, customer)
    assert row["service_id"] == second
    dearest = Decimal(row["input_tokens_bound"]) * 30 + 100 * 70
    assert money(row["hold_usd"]) == dearest / 1_000_000 * MARKUP
    assert money(row["charge_usd"]) == charge(row, prices[1])
    assert gateway.balance(customer) == (1 - money(row["charge_usd"]), 0)


def test_a_refused_key_is_502_to_the_client_and_an_alert_to_the_operator(
    gateway: RunningGateway, scripted: tuple[Scripted, str]
) -> None:
    provider, base_url = scripted
    told = {"error": {"message": f"Incorrect API key provided: {gateway.simulator.key}", "type": "x"}}
    provider.script.append(JSONResponse(told, 401))
    model, first, second = two_wires(gateway, base_url)
    customer = gateway.customer("1")
    refused = post(gateway, customer, model)
    assert (refused.status_code, refused.json()["error"]["code"]) == (502, "provider_failed")
    assert gateway.simulator.key not in refused.text
    ((kind, data),) = events(gateway, first)
    assert kind == "provider.failing"
    assert (data["service_id"], data["status"], data["fault"]) == (first, 401, "operator")
    assert gateway.simulator.key not in json.dumps(data)
    # nobody else meets it
    answered = post(gateway, customer, model)
    assert gateway.request(answered.headers["x-request-id"])["service_id"] == second
    assert len(provider.bodies) == 1


def test_a_provider_that_says_when_to_come_back_is_left_alone_until_then(
    gateway: RunningGateway, scripted: tuple[Scripted, str]
) -> None:
    provider, base_url = scripted
    provider.script.append(JSONResponse({"error": {"message": "slow down"}}, 429, {"retry-after": "30"}))
    model, first, second = two_wires(gateway, base_url)
    customer = gateway.customer("1")
    for _ in range(3):
        assert post(gateway, customer, model).status_code == 200
    assert len(provider.bodies) == 1
    rows = settled(gateway, customer, 3)
    assert [row["service_id"] for row in rows] == [second] * 3
    assert rows[0]["failed_routes"][0]["retry_after"] == 30
    gateway.connection.execute(
        "update gateway.service_health set set_aside_until = clock_timestamp() where service_id = %s", [first]
    )
    assert post(gateway, customer, model).status_code == 200
    assert len(provider.bodies) == 2
    assert events(gateway, first) == []


def test_a_provider_that_is_back_is_found_by_one_request_and_used_by_all(
    gateway: RunningGateway, scripted: tuple[Scripted, str]
) -> None:
    provider, base_url = scripted
    provider.script += [JSONResponse({"error": {"message": "down"}}, 500) for _ in range(3)]
    model, first, _ = two_wires(gateway, base_url)
    customer = gateway.customer("1")
    for _ in range(5):
        assert post(gateway, customer, model).status_code == 200
    assert len(provider.bodies) == 3
    gateway.connection.execute(
        "update gateway.service_health set set_aside_until = clock_timestamp() where service_id = %s", [first]
    )
    for _ in range(3):
        assert post(gateway, customer, model).status_code == 200
    assert len(provider.bodies) == 6
    assert [kind for kind, _ in events(gateway, first)] == ["provider.failing", "provider.recovered"]


def test_admins_see_what_is_set_aside(gateway: RunningGateway, scripted: tuple[Scripted, str]) -> None:
    provider, base_url = scripted
    provider.script.append(JSONResponse({"error": {"message": "no"}}, 403))
    model, first, second = two_wires(gateway, base_url)
    post(gateway, gateway.customer("1"), model)
    admin = gateway.http()
    admin.headers["authorization"] = f"Bearer {gateway.admin_key()}"
    (failing,) = admin.get(f"/admin/services/{first}").json()["health"]
    assert (failing["last_status"], failing["last_fault"], failing["failures"]) == (403, "operator", 1)
    assert admin.get(f"/admin/services/{second}").json()["health"] == []
    monitor = admin.get("/admin/monitor").json()["data"]["providers"]
    shown = {each["service_id"]: each for each in monitor}
    assert shown[first]["set_aside_until"] == failing["set_aside_until"]
    assert shown[first]["failing_since"] == failing["failing_since"]
    assert shown[second]["set_aside_until"] is None


# Parameters that a provider lacks


@pytest.fixture
def dropping(gateway: RunningGateway) -> Iterator[None]:
    gateway.call("change_settings", p_changes={"unsupported_parameters": "drop"})
    yield
    gateway.call("change_settings", p_changes={"unsupported_parameters": "refuse"})


def anthropic_model(gateway: RunningGateway, behaviour: str = "echo") -> str:
    root = gateway.simulator.base_url.removesuffix("/v1")
    return gateway.model(
        behaviour, provider=ANTHROPIC, base_url=f"{root}/anthropic/v1", max_output_tokens=2048
    )


@pytest.mark.parametrize("stream", [False, True])
def test_a_parameter_that_the_provider_lacks_is_refused(gateway: RunningGateway, *, stream: bool) -> None:
    customer = gateway.customer("1")
    refused = post(gateway, customer, anthropic_model(gateway), seed=1, stream=stream)
    assert refused.status_code == 422
    error = refused.json()["error"]
    assert (error["param"], error["code"]) == ("seed", "unsupported_parameter")
    [row] = settled(gateway, customer)
    assert (row["outcome"], row["failed_routes"]) == ("failed", None)
    assert gateway.balance(customer) == (1, 0)


@pytest.mark.parametrize("stream", [False, True])
def test_what_only_says_who_calls_is_left_out_and_that_is_said(
    gateway: RunningGateway, *, stream: bool
) -> None:
    base_url = gateway.simulator.base_url.removesuffix("/v1") + "/gemini/v1beta"
    told = {"user": "u", "safety_identifier": "s", "metadata": {"a": "b"}, "prompt_cache_key": "k"}
    model = gateway.model("echo", provider="gemini", base_url=base_url)
    answered = post(gateway, gateway.customer("5"), model, **told, stream=stream)
    assert answered.status_code == 200, answered.text
    assert answered.headers["x-gateway-dropped-parameters"] == ", ".join(sorted(told))


@pytest.mark.usefixtures("dropping")
@pytest.mark.parametrize("stream", [False, True])
def test_it_is_left_out_by_a_setting_and_the_answer_says_so(gateway: RunningGateway, *, stream: bool) -> None:
    customer = gateway.customer("1")
    model = anthropic_model(gateway)
    answered = post(gateway, customer, model, seed=1, logit_bias={"5": 1}, stream=stream)
    assert answered.status_code == 200
    assert answered.headers["x-gateway-dropped-parameters"] == "logit_bias, seed"
    assert "seed" not in gateway.simulator.calls.last().body
    plain = post(gateway, customer, model, stream=stream)
    assert "x-gateway-dropped-parameters" not in plain.headers


@pytest.mark.usefixtures("dropping")
def test_what_the_one_that_answered_was_told_is_not_called_left_out(
    gateway: RunningGateway, scripted: tuple[Scripted, str]
) -> None:
    provider, base_url = scripted
    good = gateway.model("echo", base_url=base_url)
    customer = gateway.customer("1")
    answered = post(gateway, customer, anthropic_model(gateway, "status-500"), models=[good], seed=7)
    assert answered.status_code == 200
    assert "x-gateway-dropped-parameters" not in answered.headers
    assert provider.bodies[0]["seed"] == 7


def test_a_route_that_can_say_it_answers_for_one_that_cannot(
    gateway: RunningGateway, scripted: tuple[Scripted, str]
) -> None:
    provider, base_url = scripted
    good = gateway.model("echo", base_url=base_url)
    customer = gateway.customer("1")
    assert post(gateway, customer, anthropic_model(gateway), models=[good], seed=7).status_code == 200
    assert provider.bodies[0]["seed"] == 7
    [row] = settled(gateway, customer)
    assert row["failed_routes"] is None


@pytest.mark.usefixtures("dropping")
def test_a_name_that_no_header_can_carry_breaks_nothing(gateway: RunningGateway) -> None:
    customer = gateway.customer("1")
    answered = post(gateway, customer, anthropic_model(gateway), **{"sé\r\nx: y,": 1})
    assert answered.status_code == 200
    assert answered.headers["x-gateway-dropped-parameters"] == "s???x:?y?"
