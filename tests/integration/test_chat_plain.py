"""Plain answers in each shape that clients know: charged when they come, and not when they don't."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from gateway import upstream
from tests.fixtures.gateway import RunningGateway, gateway, module_gateway, serve
from tests.fixtures.wire import (
    CHAT,
    HELLO,
    RawClient,
    RawProvider,
    charge,
    money,
    nothing_is_left_held,
    settled,
)

if TYPE_CHECKING:
    from pathlib import Path

    from infra.local.postgrest import PostgRest
    from tests.fixtures.database import Database
    from tests.fixtures.gateway import Customer

__all__ = ["gateway", "module_gateway", "nothing_is_left_held"]

ECHO = "You said: Hello"


def post(gateway: RunningGateway, customer: Customer, model: str, **fields: Any) -> httpx.Response:
    return gateway.http(customer).post(CHAT, json={"model": model, "messages": HELLO, **fields})


def assert_refused(response: httpx.Response, status: int, code: str) -> None:
    assert response.status_code == status
    assert set(response.json()) == {"error"}
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert response.json()["error"]["code"] == code


def assert_failed_uncharged(gateway: RunningGateway, customer: Customer, status: int) -> None:
    [row] = settled(gateway, customer)
    assert (row["outcome"], row["status"]) == ("failed", status)
    assert money(row["charge_usd"]) == 0
    assert gateway.balance(customer) == (1, 0)


@pytest.mark.parametrize("abruptly", [False, True])
def test_call_whose_client_has_gone_is_finished_and_settled(
    gateway: RunningGateway, *, abruptly: bool
) -> None:
    model = gateway.model("slow-300ms")
    customer = gateway.customer("1")
    client = RawClient(gateway.url).post(CHAT, {"model": model, "messages": HELLO}, key=customer.key)
    gateway.simulator.calls.wait_for(lambda log: log.count() == 1)
    client.leave(abruptly=abruptly)
    [row] = settled(gateway, customer)
    assert row["outcome"] == "succeeded"
    assert gateway.simulator.calls.last().finished
    assert not gateway.simulator.calls.last().disconnected
    assert gateway.balance(customer) == (1 - charge(row["input_tokens"], row["output_tokens"]), 0)


def test_hang_is_504_at_the_deadline_and_costs_nothing(
    gateway: RunningGateway, module_database: Database, module_postgrest: PostgRest, tmp_path: Path
) -> None:
    customer = gateway.customer("1")
    model = gateway.model("hang")
    with serve(
        module_database, module_postgrest, gateway.simulator, tmp_path, request_timeout_seconds=0.4
    ) as hasty:
        response = post(hasty, customer, model)
        assert_refused(response, 504, "provider_timeout")
        assert 0.4 <= response.elapsed.total_seconds() < 3
        gateway.simulator.calls.wait_for(lambda log: log.last().disconnected)
    assert_failed_uncharged(gateway, customer, 504)


@pytest.mark.parametrize(
    ("behaviour", "status", "code"),
    [
        ("malformed", 502, "provider_failed"),
        ("cut", 502, "provider_failed"),
        ("error-in-stream", 502, "provider_failed"),
        ("status-302", 502, "provider_failed"),
        ("status-400", 400, "simulated_400"),
        ("status-403", 502, "provider_failed"),
        ("status-408", 504, "provider_timeout"),
        ("status-413", 413, "simulated_413"),
        ("status-422", 422, "simulated_422"),
        ("status-429", 503, "provider_rate_limited"),
        ("status-500", 502, "provider_failed"),
        ("status-502", 502, "provider_failed"),
        ("status-503", 503, "provider_unavailable"),
        ("status-504", 504, "provider_timeout"),
        ("status-529", 503, "provider_unavailable"),
    ],
)
def test_providers_failure_has_its_status_costs_nothing_and_shows_nothing_of_ours(
    gateway: RunningGateway, behaviour: str, status: int, code: str
) -> None:
    customer = gateway.customer("1")
    # The simulator's messages repeat the provider key.
    response = post(gateway, customer, gateway.model(behaviour))
    assert_refused(response, status, code)
    assert gateway.simulator.key not in response.text
    assert gateway.simulator.base_url not in response.text
    assert_failed_uncharged(gateway, customer, status)


def test_redirect_of_a_provider_is_not_followed(gateway: RunningGateway) -> None:
    with RawProvider.of(b"{}") as elsewhere:
        moved = {"location": f"{elsewhere.base_url}/chat/completions"}
        with RawProvider.of(b"", status="307 Temporary Redirect", headers=moved) as provider:
            customer = gateway.customer("1")
            response = post(gateway, customer, gateway.model("echo", base_url=provider.base_url))
        assert elsewhere.connections == 0
    assert_refused(response, 502, "provider_failed")
    assert elsewhere.base_url not in response.text


def test_provider_that_refuses_the_connection_is_503(gateway: RunningGateway) -> None:
    customer = gateway.customer("1")
    response = post(gateway, customer, gateway.model("echo", base_url="http://127.0.0.1:9/v1"))
    assert_refused(response, 503, "provider_unavailable")
    assert "127.0.0.1" not in response.text
    assert_failed_uncharged(gateway, customer, 503)


def test_answer_beyond_the_limit_is_refused_and_not_charged(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = gateway.model("long-400")
    within, beyond = gateway.customer("1"), gateway.customer("1")
    assert post(gateway, within, model).status_code == 200
    size = len(post(gateway, within, model).json()["choices"][0]["message"]["content"])
    monkeypatch.setattr(upstream, "_MAX_ANSWER_BYTES", size)
    assert_refused(post(gateway, beyond, model), 502, "provider_failed")
    assert_failed_uncharged(gateway, beyond, 502)


@pytest.mark.parametrize("stream", [False, True])
def test_error_whose_text_never_ends_gives_way_to_the_next_route(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch, *, stream: bool
) -> None:
    monkeypatch.setattr(upstream, "_ERROR_SECONDS", 0.2)
    head = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 100\r\n\r\n{"
    with RawProvider(head, keeps=True) as provider:
        customer = gateway.customer("1")
        broken = gateway.model("echo", base_url=provider.base_url)
        response = post(gateway, customer, broken, models=[gateway.model("echo")], stream=stream)
    assert response.status_code == 200
    [row] = settled(gateway, customer)
    assert row["failed_routes"][0]["status"] == 500


@pytest.mark.parametrize("stream", [False, True])
def test_bill_beyond_the_bound_takes_what_is_free_and_books_the_rest(
    gateway: RunningGateway, caplog: pytest.LogCaptureFixture, *, stream: bool
) -> None:
    model = gateway.model("unbounded+long-2000")
    customer = gateway.customer("0.0005")
    response = post(gateway, customer, model, max_tokens=20, stream=stream)
    assert response.status_code == 200
    [row] = settled(gateway, customer)
    assert row["outcome"] == "succeeded"
    assert row["output_tokens"] == 2000
    due = charge(row["input_tokens"], 2000)
    assert money(row["charge_usd"]) == due
    assert money(row["uncollected_usd"]) == due - Decimal("0.0005")
    assert gateway.balance(customer) == (0, 0)
    if not stream:
        assert Decimal(response.json()["gateway_usage"]["balance_after_usd"]) == 0
    assert "could not be collected" in caplog.text


def test_ten_thousand_messages_are_served(gateway: RunningGateway) -> None:
    customer = gateway.customer("1")
    many = [{"role": "user", "content": "word " * 40}] * 10_000
    response = gateway.http(customer).post(
        CHAT, json={"model": gateway.model("echo"), "messages": many, "max_tokens": 20}
    )
    assert response.status_code == 200
    assert len(gateway.simulator.calls.last().body["messages"]) == 10_000


# The shapes, exactly


def test_chat_completion_is_the_providers_object_with_gateway_usage(gateway: RunningGateway) -> None:
    customer = gateway.customer("1")
    response = post(gateway, customer, gateway.model("echo"))
    body = response.json()
    told = body.pop("gateway_usage")
    assert list(body) == ["id", "object", "created", "model", "system_fingerprint", "choices", "usage"]
    assert set(told) == {
        "request_id",
        "tokens_charged",
        "credits_charged",
        "cost_usd",
        "charge_usd",
        "user_balance_after",
        "balance_after_usd",
        "user_api_key",
    }
    due = charge(body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"])
    assert told["request_id"] == response.headers["x-request-id"]
    assert told["tokens_charged"] == body["usage"]["total_tokens"]
    assert Decimal(told["charge_usd"]) == due
    assert Decimal(told["cost_usd"]) * Decimal("1.05") == due
    # A credit is 0.00002 USD.
    assert Decimal(str(told["credits_charged"])) == due / Decimal("0.00002")
    assert Decimal(str(told["user_balance_after"])) == (1 - due) / Decimal("0.00002")
    assert Decimal(told["balance_after_usd"]) == 1 - due
    assert told["user_api_key"] == f"{customer.key[:9]}…"


@pytest.mark.parametrize("by_id", [False, True])
def test_generate(gateway: RunningGateway, *, by_id: bool) -> None:
    name = gateway.model("echo")
    found = gateway.connection.execute("select id from gateway.models where name = %s", [name]).fetchone()
    assert found is not None
    customer = gateway.customer("1")
    asked = {"text": "Hello", "model_id": found[0] if by_id else name, "max_length": 50}
    response = gateway.http(customer).post("/generate", json=asked)
    assert response.status_code == 200
    told = json.loads(response.text, parse_float=Decimal)
    assert set(told) == {"response", "tokens_used", "cost"}
    assert told["response"] == ECHO
    [row] = settled(gateway, customer)
    assert told["tokens_used"] == row["input_tokens"] + row["output_tokens"]
    assert told["cost"] == charge(row["input_tokens"], row["output_tokens"])
    assert row["endpoint"] == "generate"
    [call] = gateway.simulator.calls.all()
    assert call.body == {"model": "echo", "messages": HELLO, "max_tokens": 50}


@pytest.mark.parametrize(
    ("asked", "status", "param"),
    [
        ({"text": "Hello", "model_id": 2**31 - 1}, 404, "model"),
        ({"text": "Hello", "model_id": "no/such-model"}, 404, "model"),
        ({"text": "Hello"}, 422, "model_id"),
        ({"text": "", "model_id": 1}, 422, "text"),
        ({"text": "Hello", "model_id": True}, 422, "model_id"),
        ({"text": "Hello", "model_id": 1, "max_length": 0}, 422, "max_length"),
    ],
)
def test_generate_refuses(gateway: RunningGateway, asked: dict[str, Any], status: int, param: str) -> None:
    customer = gateway.customer("1")
    response = gateway.http(customer).post("/generate", json=asked)
    assert response.status_code == status
    assert response.json()["error"]["param"] == param
    assert gateway.balance(customer) == (1, 0)


LAYERS = "/api/layers/chat"


@pytest.mark.parametrize("name", ["openai-compatible", "OpenAI-Compatible"])
def test_layers_chat(gateway: RunningGateway, name: str) -> None:
    customer = gateway.customer("1")
    model = gateway.model("echo")
    response = httpx.post(
        gateway.url + LAYERS,
        headers={"user": customer.username, "api-key": customer.key},
        json={"providerName": name, "model_name": model, "message": "Hello"},
    )
    assert response.status_code == 200
    [row] = settled(gateway, customer)
    assert response.json() == {
        "content": ECHO,
        "usage": {
            "inputTokens": row["input_tokens"],
            "outputTokens": row["output_tokens"],
            "totalTokens": row["input_tokens"] + row["output_tokens"],
        },
    }
    assert gateway.balance(customer) == (1 - charge(row["input_tokens"], row["output_tokens"]), 0)


def test_layers_chat_takes_a_model_by_its_providers_own_name(gateway: RunningGateway) -> None:
    customer = gateway.customer("1")
    gateway.model("echo+cached-1")
    response = gateway.http(customer).post(
        LAYERS,
        json={"providerName": "openai-compatible", "model_name": "echo+cached-1", "message": "Hello"},
    )
    assert response.json()["content"] == ECHO


def test_layers_chat_without_a_user_is_the_keys_owners(gateway: RunningGateway) -> None:
    asked = {"providerName": "openai-compatible", "model_name": gateway.model("echo"), "message": "Hello"}
    assert gateway.http(gateway.customer("1")).post(LAYERS, json=asked).json()["content"] == ECHO


@pytest.mark.parametrize("user", ["nobody", "", "another"])
def test_layers_chat_of_a_user_that_is_not_the_keys_owner_is_401(gateway: RunningGateway, user: str) -> None:
    customer, another = gateway.customer("1"), gateway.customer("1")
    asked = {"providerName": "openai-compatible", "model_name": gateway.model("echo"), "message": "Hello"}
    response = gateway.http(customer).post(
        LAYERS, json=asked, headers={"user": another.username if user == "another" else user}
    )
    assert_refused(response, 401, "invalid_api_key")
    assert gateway.simulator.calls.count() == 0
    assert gateway.balance(customer) == gateway.balance(another) == (1, 0)


def test_layers_chat_of_an_unknown_provider_is_422(gateway: RunningGateway) -> None:
    asked = {"providerName": "nowhere", "model_name": gateway.model("echo"), "message": "Hello"}
    response = gateway.http(gateway.customer("1")).post(LAYERS, json=asked)
    assert_refused(response, 422, "unknown_provider")
    assert response.json()["error"]["param"] == "providerName"


def test_layers_chat_of_a_provider_that_does_not_offer_the_model_is_404(gateway: RunningGateway) -> None:
    asked = {"providerName": "openai", "model_name": gateway.model("echo"), "message": "Hello"}
    assert_refused(gateway.http(gateway.customer("1")).post(LAYERS, json=asked), 404, "model_not_found")
    assert gateway.simulator.calls.count() == 0
