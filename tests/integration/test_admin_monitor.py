"""The operator's desk over the whole gateway: today's figures, and services tried out live."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from gateway.auth import key_prefix
from tests.fixtures import contract
from tests.fixtures.gateway import gateway, module_gateway

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fixtures.gateway import Customer, RunningGateway

__all__ = ["gateway", "module_gateway"]


@pytest.fixture
def admin(gateway: RunningGateway) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {gateway.admin_key()}"}
    with httpx.Client(
        base_url=gateway.url,
        headers=headers,
        timeout=30,
        trust_env=False,
        event_hooks={"response": [contract.check]},
    ) as client:
        yield client


def figures(admin: httpx.Client) -> dict[str, Any]:
    response = admin.get("/admin/monitor")
    assert response.status_code == 200, response.text
    body = response.json()
    assert body["status"] == "success"
    assert abs(datetime.now(UTC) - datetime.fromisoformat(body["timestamp"])) < timedelta(minutes=1)
    told: dict[str, Any] = body["data"]
    return told


def chat(
    gateway: RunningGateway, customer: Customer, model: str, words: str = "one two three"
) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": words}], "max_tokens": 50}
    return gateway.http(customer).post("/v1/chat/completions", json=body)


def test_the_figures_of_today_are_those_of_the_calls(gateway: RunningGateway, admin: httpx.Client) -> None:
    model, broken = gateway.model("echo"), gateway.model("status-500")
    before = figures(admin)
    busy, other = gateway.customer("5"), gateway.customer("5")
    answers = [chat(gateway, busy, model) for _ in range(3)] + [chat(gateway, other, model)]
    used = [answer.json()["gateway_usage"] for answer in answers]
    assert chat(gateway, other, broken).status_code == 502
    assert chat(gateway, gateway.customer(None), model).status_code == 402
    told = figures(admin)

    assert told["total_users"] == before["total_users"] + 3
    assert told["active_users_today"] == before["active_users_today"] + 2
    assert told["total_requests_today"] == before["total_requests_today"] + 5
    tokens = sum(usage["tokens_charged"] for usage in used)
    assert told["total_tokens_today"] == before["total_tokens_today"] + tokens
    charged = sum(float(usage["charge_usd"]) for usage in used)
    assert told["total_cost_today"] == pytest.approx(before["total_cost_today"] + charged, abs=1e-9)
    cost = sum(float(usage["cost_usd"]) for usage in used)
    assert float(told["cost_today_usd"]) == pytest.approx(float(before["cost_today_usd"]) + cost, abs=1e-9)
    margin = float(told["margin_today_usd"]) - float(before["margin_today_usd"])
    assert margin == pytest.approx(charged - cost, abs=1e-9)
    assert told["errors_today"] == before["errors_today"] + 1
    assert told["refusals_today"] == before["refusals_today"] + 1
    assert told["held"] == {"requests": 0, "usd": "0"}

    keys = {row["key_id"]: row for row in told["top_users_by_usage"]}
    assert keys[busy.key_id]["requests"] == 3
    assert keys[busy.key_id]["api_key"] == key_prefix(busy.key)
    assert keys[busy.key_id]["tokens_used"] == sum(usage["tokens_charged"] for usage in used[:3])
    assert keys[busy.key_id]["cost"] == pytest.approx(
        sum(float(usage["charge_usd"]) for usage in used[:3]), abs=1e-9
    )
    ranked = [row["tokens_used"] for row in told["top_users_by_usage"]]
    assert ranked == sorted(ranked, reverse=True)

    newest = told["recent_activity"][:5]
    assert [row["status"] for row in newest] == ["failed", *["succeeded"] * 4]
    assert [row["user_id"] for row in newest] == [other.id, other.id, busy.id, busy.id, busy.id]
    assert {row["model"] for row in newest[1:]} == {model}

    health = {row["service_id"]: row for row in told["providers"]}
    failing = [row for row in health.values() if row["errors"]]
    assert len(failing) == 1
    # It was tried twice.
    assert (failing[0]["requests"], failing[0]["error_rate"]) == (2, 1)
    assert failing[0]["last_error_at"] is not None
    for secret in (busy.key, other.key, gateway.simulator.key):
        assert secret not in json.dumps(told)


def test_an_erased_customer_is_nobody_there(gateway: RunningGateway, admin: httpx.Client) -> None:
    customer = gateway.customer("5")
    chat(gateway, customer, gateway.model("echo"), "many words " * 200)
    name = f"erased-{customer.id}"
    assert admin.delete(f"/admin/customers/{customer.id}").status_code == 200
    told = figures(admin)
    assert [row["name"] for row in told["top_users_by_usage"] if row["user_id"] == customer.id] == [name]
    assert customer.username not in json.dumps(told)


# Services, tried out


def tried(admin: httpx.Client, service_id: int) -> dict[str, Any]:
    response = admin.post(f"/admin/services/{service_id}/test")
    assert response.status_code == 200, response.text
    told: dict[str, Any] = response.json()
    return told


def test_a_good_service_is_ok_and_charges_nobody(gateway: RunningGateway, admin: httpx.Client) -> None:
    service = gateway.service(gateway.model("echo"))
    before = gateway.connection.execute("select count(*) from gateway.requests").fetchone()
    told = tried(admin, service)
    assert told == {
        "ok": True,
        "status": 200,
        "latency_ms": told["latency_ms"],
        "problem": None,
        "message": None,
        "provider_said": None,
        "models_missing": [],
    }
    # the list of this provider may be open to all: the key was tried by a chat of one token at most
    assert [call["body"]["max_tokens"] for call in gateway.simulator.calls.as_json()["log"]] == [1]
    assert gateway.connection.execute("select count(*) from gateway.requests").fetchone() == before


@pytest.mark.parametrize(
    ("changes", "problem", "status"),
    [
        ({"provider_key": "another-key-than-the-simulator-wants"}, "unauthorized", 401),
        ({"base_url": "{root}"}, "not_compatible", 404),
        ({"base_url": "http://127.0.0.1:1/v1"}, "connect", None),
        ({"base_url": "https://nobody.invalid/v1"}, "dns", None),
    ],
)
def test_what_is_wrong_is_told_with_how_to_mend_it(
    gateway: RunningGateway, admin: httpx.Client, changes: dict[str, str], problem: str, status: int | None
) -> None:
    service = gateway.service(gateway.model("echo"))
    root = gateway.simulator.base_url.removesuffix("/v1")
    body = {name: value.format(root=root) for name, value in changes.items()}
    body.setdefault("provider_key", gateway.simulator.key)
    assert admin.patch(f"/admin/services/{service}", json=body).status_code == 200
    told = tried(admin, service)
    assert (told["ok"], told["problem"], told["status"]) == (False, problem, status)
    assert told["message"]
    for secret in (body["provider_key"], gateway.simulator.key, gateway.simulator.base_url):
        assert secret not in json.dumps(told)


def test_an_enabled_model_that_the_provider_lacks_is_named(
    gateway: RunningGateway, admin: httpx.Client
) -> None:
    name = gateway.model("not-a-behaviour")
    told = tried(admin, gateway.service(name))
    assert (told["ok"], told["problem"], told["models_missing"]) == (False, "model_not_found", [name])


@pytest.mark.parametrize("service", ["999999", "x"])
def test_unknown_service_is_404(admin: httpx.Client, service: str) -> None:
    assert admin.post(f"/admin/services/{service}/test").status_code == 404
