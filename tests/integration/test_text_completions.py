"""A service with nothing but legacy text completions: sold, asked and paid for as any other."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from openai import UnprocessableEntityError

from tests.fixtures.documents import run_curl
from tests.fixtures.gateway import Customer, RunningGateway, gateway, module_gateway
from tests.fixtures.wire import MARKUP, money, nothing_is_left_held, settled

__all__ = ["gateway", "module_gateway", "nothing_is_left_held"]

# As the document "AI API Service" prints it.
GENERATE = r"""
curl -X POST "http://localhost:8000/generate" \
  -H "Content-Type: application/json" \
  -H "X-API-Key: YOUR_API_KEY" \
  -d '{
    "text": "What legal considerations should I keep in mind for my business?",
    "model_id": 2,
    "max_length": 100
  }'
"""
TEXT = "What legal considerations should I keep in mind for my business?"
MODEL = {
    "context_length": 8192,
    "max_output_tokens": 2048,
    "offers": [
        {
            "provider": "completions",
            "upstream_model": "echo",
            "prices": {"input": "1", "output": "3"},
        }
    ],
}


@pytest.fixture(params=["/completions", ""], ids=["whole-address", "where-it-begins"])
def model_id(gateway: RunningGateway, request: pytest.FixtureRequest) -> int:
    """The model of the document, added by an admin over HTTP; its id."""
    name = f"lawgent-thinking{request.param.replace('/', '-')}"
    known = gateway.connection.execute("select id from gateway.models where name = %s", [name]).fetchone()
    if known is not None:
        return int(known[0])
    admin = gateway.http()
    admin.headers["authorization"] = f"Bearer {gateway.admin_key()}"
    made = admin.post("/admin/models", json={"name": name, **MODEL})
    assert made.status_code == 201, made.text
    service = {
        "name": name,
        "provider": "completions",
        "base_url": f"{gateway.simulator.base_url}{request.param}",
        "provider_key": gateway.simulator.key,
        "enabled_models": [name],
    }
    added = admin.post("/admin/services", json=service)
    assert added.status_code == 201, added.text
    checked = admin.post(f"/admin/services/{added.json()['id']}/test").json()
    assert checked["ok"], checked
    gateway.simulator.calls.clear()
    return int(made.json()["id"])


@pytest.fixture
def customer(gateway: RunningGateway) -> Customer:
    return gateway.customer()


def name_of(gateway: RunningGateway, model_id: int) -> str:
    row = gateway.connection.execute("select name from gateway.models where id = %s", [model_id]).fetchone()
    assert row is not None
    return str(row[0])


def test_documents_command_is_answered_and_charged(
    gateway: RunningGateway, customer: Customer, model_id: int
) -> None:
    printed = GENERATE.replace("YOUR_API_KEY", customer.key).replace("2,", f"{model_id},", 1)
    told = run_curl(printed, gateway.url)
    assert told.status == 200, told.json
    # The text is the prompt, with nothing around it.
    call = gateway.simulator.calls.last()
    assert call.wire == "completions"
    assert call.body == {"model": "echo", "prompt": TEXT, "max_tokens": 100}
    assert told.json["response"] == f"You said: {TEXT}"
    usage = call.usage
    assert told.json["tokens_used"] == usage["total_tokens"]
    cost = usage["prompt_tokens"] + 3 * usage["completion_tokens"]
    [row] = settled(gateway, customer, 1)
    assert money(row["charge_usd"]) == Decimal(cost) / 1_000_000 * MARKUP
    assert told.json["cost"] == pytest.approx(float(row["charge_usd"]))


def test_conversation_is_streamed_as_a_chat(
    gateway: RunningGateway, customer: Customer, model_id: int
) -> None:
    client = gateway.openai(customer)
    stream = client.chat.completions.create(
        model=name_of(gateway, model_id),
        messages=[
            {"role": "system", "content": "You know the law."},
            {"role": "user", "content": "May I?"},
            {"role": "assistant", "content": "You may."},
            {"role": "user", "content": "Thanks"},
        ],
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "You said: Thanks"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.usage is not None
    assert last.usage.completion_tokens == gateway.simulator.calls.last().usage["completion_tokens"]
    body = gateway.simulator.calls.last().body
    assert body["prompt"] == (
        "You know the law.\n\nUser: May I?\n\nAssistant: You may.\n\nUser: Thanks\n\nAssistant:"
    )
    assert body["stop"] == ["\nUser:"]


def test_tools_are_refused_by_name_and_cost_nothing(
    gateway: RunningGateway, customer: Customer, model_id: int
) -> None:
    with pytest.raises(UnprocessableEntityError) as raised:
        gateway.openai(customer).chat.completions.create(
            model=name_of(gateway, model_id),
            messages=[{"role": "user", "content": "Hello"}],
            tools=[{"type": "function", "function": {"name": "search", "parameters": {}}}],
        )
    assert raised.value.param == "tools"
    assert gateway.simulator.calls.count() == 0
    assert gateway.balance(customer) == (1, 0)
    assert gateway.simulator.key not in json.dumps(raised.value.body)
