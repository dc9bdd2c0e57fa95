"""The endpoints of the document of the multi-provider backend: it shows bodies and headers."""

from __future__ import annotations

import json

from tests.fixtures.documents import assert_has_shape, run_curl
from tests.fixtures.gateway import Customer, RunningGateway, gateway, module_gateway

__all__ = ["gateway", "module_gateway"]

USAGE = {
    "priceToPay": {
        "username": "john_doe",
        "total_input_tokens": 15240,
        "total_output_tokens": 8320,
        "total_tokens": 23560,
        "base_price": 0.029450,
        "commission_5_percent": 0.001473,
        "final_price": 0.030923,
    }
}
CHAT_ANSWER = {
    "content": "I'm doing great! How can I help you today?",
    "usage": {"inputTokens": 12, "outputTokens": 15, "totalTokens": 27},
}


def chat(model: str) -> str:
    body = {"providerName": "openai", "model_name": model, "message": "Hello, how are you?"}
    return (
        "curl -X POST http://localhost:3000/api/layers/chat -H 'Content-Type: application/json' "
        f"-d '{json.dumps(body)}'"
    )


def with_openai_model(gateway: RunningGateway) -> str:
    """The document's provider is openai: a service of it whose base URL is the simulator's."""
    name = "gpt-of-the-document"
    gateway.call(
        "create_model",
        p_name=name,
        p_context_length=10_000,
        p_max_output_tokens=1000,
        p_offers=[
            {"provider": "openai", "upstream_model": "echo", "prices": {"input": "2.5", "output": "10"}}
        ],
    )
    gateway.service(name, provider="openai")
    return name


def test_chat_then_usage(gateway: RunningGateway) -> None:
    model = with_openai_model(gateway)
    customer = gateway.customer()
    own = {"user": customer.username, "api_key": customer.key}
    answered = run_curl(chat(model), gateway.url, **own)
    assert answered.status == 200, answered.json
    assert_has_shape(answered.json, CHAT_ANSWER)
    tokens = answered.json["usage"]
    assert tokens["totalTokens"] == tokens["inputTokens"] + tokens["outputTokens"]

    used = run_curl("curl http://localhost:3000/api/usage", gateway.url, **own)
    assert used.status == 200
    assert_has_shape(used.json, USAGE)
    told = used.json["priceToPay"]
    assert told["username"] == customer.username
    assert told["total_input_tokens"] == tokens["inputTokens"]
    assert told["total_output_tokens"] == tokens["outputTokens"]
    assert told["total_tokens"] == tokens["totalTokens"]
    exact = (tokens["inputTokens"] * 2.5 + tokens["outputTokens"] * 10) / 1e6
    assert abs(told["base_price"] - exact) < 1e-9
    assert abs(told["commission_5_percent"] - exact * 0.05) < 1e-9
    assert abs(told["final_price"] - told["base_price"] - told["commission_5_percent"]) < 1e-9

    stranger = gateway.customer()
    for path in ("/api/usage", "/api/layers/chat"):
        command = chat(model) if path.endswith("chat") else f"curl http://localhost:3000{path}"
        foreign = run_curl(command, gateway.url, user=stranger.username, api_key=customer.key)
        assert foreign.status == 401


def test_its_keys_are_listed_made_and_revoked(gateway: RunningGateway) -> None:
    customer: Customer = gateway.customer(p_scopes=["chat", "usage", "keys"])
    own = {"user": customer.username, "api_key": customer.key}
    made = run_curl(
        "curl -X POST http://localhost:3000/api/keys -H 'Content-Type: application/json' -d '{}'",
        gateway.url,
        **own,
    )
    assert made.status in {200, 201}, made.json
    key = made.json["key"]
    assert key.startswith("sk_")
    listed = run_curl("curl http://localhost:3000/api/keys", gateway.url, **own)
    assert made.json["id"] in {row["id"] for row in listed.json["data"]}
    assert key not in str(listed.json)
    deleted = run_curl(
        "curl -X DELETE http://localhost:3000/api/keys -H 'Content-Type: application/json' "
        f"""-d '{{"key": "{key}"}}'""",
        gateway.url,
        **own,
    )
    assert deleted.status == 200
    gone = run_curl("curl http://localhost:3000/user/balance", gateway.url, api_key=key)
    assert gone.status == 401
