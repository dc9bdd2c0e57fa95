"""The overview of an API management: services, keys of their own, soft warnings, hard blocks, tracking."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import openai
import pytest

from tests.fixtures.gateway import PRICES, PROVIDER, RunningGateway, gateway, module_gateway

if TYPE_CHECKING:
    import httpx

__all__ = ["gateway", "module_gateway"]


@pytest.fixture
def admin(gateway: RunningGateway) -> httpx.Client:
    client = gateway.http()
    client.headers["authorization"] = f"Bearer {gateway.admin_key()}"
    return client


def ok(response: httpx.Response) -> Any:
    assert response.is_success, response.text
    return response.json()


def test_its_quick_start(gateway: RunningGateway, admin: httpx.Client) -> None:
    # 1. Create a Service for your AI provider
    ok(
        admin.post(
            "/admin/models",
            json={
                "name": "quick/start",
                "context_length": 10_000,
                "offers": [{"provider": PROVIDER, "upstream_model": "echo", "prices": PRICES}],
            },
        )
    )
    service = ok(
        admin.post(
            "/admin/services",
            json={
                "name": "My provider",
                "provider": PROVIDER,
                "base_url": gateway.simulator.base_url,
                "provider_key": gateway.simulator.key,
                "enabled_models": ["quick/start"],
                "limits": {"requests_per_hour": 1000},
            },
        )
    )
    assert service["provider_key_set"] is True
    assert gateway.simulator.key not in str(service)
    # 2. Generate an API Key, with its service permissions and its own rate limits
    user = ok(admin.post("/admin/create_user", json={"name": "App", "credits": 50_000}))
    key = ok(
        admin.post(
            "/v1/keys",
            json={
                "name": "app",
                "customer_id": user["user_id"],
                "allowed_services": [service["id"]],
                "limits": {"requests_per_hour": 2, "requests_per_day": 100, "requests_per_month": 1000},
            },
        )
    )
    assert key["key"].startswith("sk_")
    # soft at one request an hour, hard at two
    ok(
        admin.post(
            "/admin/limit",
            json={"key_id": key["id"], "warn": {"requests_per_hour": 1}},
        )
    )
    # 3. Use the API Key in your Python code
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key["key"], max_retries=0)
    with client:
        messages: list[Any] = [{"role": "user", "content": "Hello"}]
        first = client.chat.completions.with_raw_response.create(model="quick/start", messages=messages)
        assert "x-ratelimit-warning" not in first.headers
        assert first.parse().choices[0].message.content
        second = client.chat.completions.with_raw_response.create(model="quick/start", messages=messages)
        assert second.headers["x-ratelimit-warning"] == "requests_per_hour"
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model="quick/start", messages=messages)

    # cost and tokens of each request, and the audit trail
    own = gateway.http()
    own.headers["authorization"] = f"Bearer {key['key']}"
    log = [row for row in ok(own.get("/v1/requests"))["data"] if row["state"] != "refused"]
    assert [row["status"] for row in log] == [200, 200]
    assert all(row["tokens"]["input"] > 0 and float(row["cost_usd"]) > 0 for row in log)
    audit = ok(admin.get("/admin/audit", params={"entity": "services"}))["data"]
    assert any(entry["entity_id"] == str(service["id"]) for entry in audit)
    assert gateway.simulator.key not in str(audit)


def test_a_key_reaches_only_the_services_that_it_is_for(gateway: RunningGateway, admin: httpx.Client) -> None:
    model = gateway.model("echo")
    customer = gateway.customer()
    key = ok(
        admin.post("/v1/keys", json={"name": "none", "customer_id": customer.id, "allowed_services": []})
    )
    refused = gateway.http().post(
        "/v1/chat/completions",
        headers={"authorization": f"Bearer {key['key']}"},
        json={"model": model, "messages": [{"role": "user", "content": "Hello"}]},
    )
    assert refused.status_code in {403, 404, 503}, refused.text
