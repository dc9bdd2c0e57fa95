"""The commands of the document "AI API Service", as they are printed there, with our authentication."""

from __future__ import annotations

import re

import pytest

from tests.fixtures.documents import assert_has_shape, run_curl
from tests.fixtures.gateway import RunningGateway, gateway, module_gateway

__all__ = ["gateway", "module_gateway"]

CREATE_CUSTOMER = r"""
curl -X POST "http://localhost:8000/customers" \
  -H "Content-Type: application/json" \
  -d '{
    "name": "Your Company",
    "email": "contact@company.com",
    "company": "Your Company Inc"
  }'
"""
CREATE_KEY = r"""
curl -X POST "http://localhost:8000/api/keys" \
  -H "Content-Type: application/json" \
  -d '{
    "customer_email": "contact@company.com",
    "name": "Production Key",
    "allowed_models": [1, 2]  # 1 for GPT-2, 2 for lawgent-thinking
  }'
"""
GENERATE_LOCAL = r"""
curl -X POST "http://localhost:8000/generate" \
  -H "Content-Type: application/json" \
  -H "X-API-Key: YOUR_API_KEY" \
  -d '{
    "text": "Your prompt here",
    "model_id": 1,
    "max_length": 100
  }'
"""
GENERATE_EXTERNAL = r"""
curl -X POST "http://localhost:8000/generate" \
  -H "Content-Type: application/json" \
  -H "X-API-Key: YOUR_API_KEY" \
  -d '{
    "text": "What legal considerations should I keep in mind for my business?",
    "model_id": 2,
    "max_length": 100
  }'
"""
CUSTOMER = {
    "id": 1,
    "name": "Your Company",
    "email": "contact@company.com",
    "company": "Your Company Inc",
    "created_at": "2024-01-01T00:00:00",
}
KEY = {
    "id": 1,
    "key": "generated_api_key",
    "name": "Production Key",
    "rate_limit": 60,
    "allowed_models": [1, 2],
}
GENERATED = {"response": "AI-generated text", "tokens_used": 100, "cost": 0.001}


@pytest.fixture
def models(gateway: RunningGateway) -> list[int]:
    """Two models in a database that has none of its own; the document's are 1 and 2."""
    names = [gateway.model("echo"), gateway.model("echo")]
    rows = gateway.connection.execute(
        "select id from gateway.models where name = any (%s) order by id", [names]
    ).fetchall()
    return [row[0] for row in rows]


def test_its_commands(gateway: RunningGateway, models: list[int]) -> None:
    admin = {"authorization": f"Bearer {gateway.admin_key()}"}
    made = run_curl(CREATE_CUSTOMER, gateway.url, **admin)
    assert made.status == 201
    assert_has_shape(made.json, CUSTOMER)
    assert {name: made.json[name] for name in ("name", "email", "company")} == {
        name: CUSTOMER[name] for name in ("name", "email", "company")
    }
    gateway.call("add_credits", p_customer_id=made.json["id"], p_usd=1)

    # What stands behind # explains the command and is no part of its JSON. The ids are this database's.
    command = re.sub(r" # .*", "", CREATE_KEY).replace("[1, 2]", str(models))
    key = run_curl(command, gateway.url, **admin)
    assert key.status in {200, 201}
    assert_has_shape(key.json, KEY)
    assert key.json["rate_limit"] == 60
    assert key.json["allowed_models"] == models

    for command, number, model_id in ((GENERATE_LOCAL, 1, models[0]), (GENERATE_EXTERNAL, 2, models[1])):
        printed = command.replace(f'"model_id": {number}', f'"model_id": {model_id}')
        generated = run_curl(printed.replace("YOUR_API_KEY", key.json["key"]), gateway.url)
        assert generated.status == 200, generated.json
        assert_has_shape(generated.json, GENERATED)
        assert generated.json["tokens_used"] > 0
        assert generated.json["cost"] > 0

    for active in (False, True):
        toggled = run_curl(
            f"curl -X POST http://localhost:8000/api/keys/{key.json['id']}/toggle", gateway.url, **admin
        )
        assert toggled.status == 200
        assert toggled.json == {"id": key.json["id"], "active": active}


def test_its_dashboard(gateway: RunningGateway) -> None:
    """At the printed address is the page; the figures in it are asked for with a key."""
    customer = gateway.customer()
    page = gateway.http().get(f"/dashboard/{customer.id}")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    [script] = re.findall(r'<script type="module" src="\.\./([^"]+)">', page.text)
    assert gateway.http().get(f"/{script}").headers["content-type"] == "text/javascript; charset=utf-8"
    # The page is everybody's, and holds nothing of anybody: what there is to see, the API tells its owner.
    other = gateway.http().get(f"/dashboard/{gateway.customer().id}")
    assert other.text == page.text
    figures = gateway.http(customer).get("/user/monitor", params={"customer_id": customer.id})
    assert figures.json()["user_id"] == customer.id


def test_each_model_has_a_rate_limit_of_its_own(gateway: RunningGateway, models: list[int]) -> None:
    customer = gateway.customer(requests_per_minute=2)
    client = gateway.http(customer)

    def generate(model_id: int) -> int:
        body = {"text": "Hello", "model_id": model_id, "max_length": 20}
        return client.post("/generate", json=body).status_code

    assert [generate(models[0]) for _ in range(3)] == [200, 200, 429]
    assert generate(models[1]) == 200
