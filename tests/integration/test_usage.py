"""The balance, and who may read the record of a request."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.auth import key_hash
from gateway.database.rpc import Admission, Settlement
from gateway.http import new_request_id
from tests.fixtures.management import Customer, Management, assert_error, management

__all__ = ["management"]


async def served_model(management: Management) -> dict[str, Any]:
    model = await management.model()
    number = management.value("select count(*) from gateway.services")
    await management.ok(
        "POST",
        "/admin/services",
        {
            "name": f"service {number}",
            "provider": "openai-compatible",
            "base_url": "https://8.8.8.8/v1",
            "enabled_models": [model["name"]],
        },
        status=201,
    )
    return model


async def admit(management: Management, key: str, model: str) -> Admission:
    admission = await management.process.database.admit_request(
        key_hash=key_hash(key),
        request_id=new_request_id(),
        models=[model],
        endpoint="chat.completions",
        lease_seconds=60,
        input_tokens_bound=1000,
        max_output_tokens=100,
    )
    assert isinstance(admission, Admission)
    return admission


async def settle(management: Management, admission: Admission) -> None:
    settlement = Settlement(
        request_id=admission.request_id,
        admitted_at=admission.admitted_at,
        outcome="succeeded",
        status=200,
        latency_ms=120,
        route_id=admission.candidates[0].route_id,
        usage={"input": 10, "output": 5},
        finish_reason="stop",
        time_to_first_token_ms=40,
    )
    assert await management.process.database.settle_request(settlement.as_json())


async def test_balance_tells_what_is_held(management: Management) -> None:
    customer = management.customer("1.00001")
    told = await management.ok("GET", "/user/balance", key=customer.key)
    assert told == {
        "status": "success",
        "user_id": customer.id,
        "credits": 50000.5,
        "balance_usd": "1.00001",
        "held_usd": "0",
    }
    model = await served_model(management)
    admission = await admit(management, customer.key, model["name"])
    told = await management.ok("GET", "/user/balance", key=customer.key)
    # 1000 tokens at 2 and 100 at 8 USD per million, and 5 %
    assert (told["balance_usd"], told["held_usd"]) == ("1.00001", "0.00294")
    await settle(management, admission)
    told = await management.ok("GET", "/user/balance", key=customer.key)
    # 10 tokens at 2 and 5 at 8 USD per million, and 5 %
    assert (told["balance_usd"], told["held_usd"]) == ("0.999947", "0")


async def test_key_of_nobody_has_no_balance(management: Management) -> None:
    assert_error(await management.admin("GET", "/user/balance"), 403, "no_customer")


async def test_record_of_a_request_is_complete_and_without_content(management: Management) -> None:
    customer = management.customer("1")
    model = await served_model(management)
    admission = await admit(management, customer.key, model["name"])
    path = f"/v1/requests/{admission.request_id}"
    running = await management.ok("GET", path, key=customer.key)
    assert (running["state"], running["hold_usd"], running["status"]) == ("held", "0.00294", None)
    await settle(management, admission)
    told = await management.ok("GET", path, key=customer.key)
    assert isinstance(told.pop("created_at"), str)
    assert told == {
        "id": admission.request_id,
        "endpoint": "chat.completions",
        "key_id": customer.key_id,
        "customer_id": customer.id,
        "model": model["name"],
        "requested_model": model["name"],
        "provider": "openai-compatible",
        "state": "settled",
        "outcome": "succeeded",
        "status": 200,
        "error_code": None,
        "finish_reason": "stop",
        "streamed": False,
        "usage_estimated": False,
        "tokens": {"input": 10, "output": 5},
        "cost_usd": "0.00006",
        "charge_usd": "0.000063",
        "uncollected_usd": "0",
        "hold_usd": None,
        "latency_ms": 120,
        "time_to_first_token_ms": 40,
    }


async def test_a_request_is_seen_by_its_customer_its_key_and_admins_alone(management: Management) -> None:
    owner, stranger = management.customer("1"), management.customer("1")
    chat_key, _ = management.key(owner.id, "chat")
    other_chat_key, _ = management.key(owner.id, "chat")
    usage_key, _ = management.key(owner.id, "usage")
    model = await served_model(management)
    admission = await admit(management, chat_key, model["name"])
    path = f"/v1/requests/{admission.request_id}"
    for key in (chat_key, usage_key, management.admin_key):
        assert (await management.ok("GET", path, key=key))["id"] == admission.request_id
    for key in (other_chat_key, stranger.key):
        assert_error(await management.call("GET", path, key), 404, "request_not_found")


@pytest.mark.parametrize(
    "request_id",
    ["x", "req_", "req_" + "g" * 32, "req_" + "0" * 32, "req_" + "f" * 32, "req_" + "0" * 31 + "\u0660"],
)
async def test_unknown_request_is_404(management: Management, request_id: str) -> None:
    customer: Customer = management.customer()
    response = await management.call("GET", f"/v1/requests/{request_id}", customer.key)
    assert_error(response, 404, "request_not_found")


async def test_in_flat_mode_the_providers_cost_is_the_operators_secret(management: Management) -> None:
    customer = management.customer("1")
    model = await served_model(management)
    await management.ok("PATCH", "/admin/settings", {"billing_mode": "flat"})
    try:
        admission = await admit(management, customer.key, model["name"])
    finally:
        await management.ok("PATCH", "/admin/settings", {"billing_mode": "markup"})
    await settle(management, admission)
    path = f"/v1/requests/{admission.request_id}"
    seen = await management.ok("GET", path, key=customer.key)
    # 15 tokens at 0.02 USD per thousand
    assert (seen["cost_usd"], seen["charge_usd"]) == (None, "0.0003")
    assert (await management.ok("GET", path))["cost_usd"] == "0.00006"
