"""The commands of the document "OpenRouter AI Gateway with Supabase", as printed there, and its answers."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fixtures.documents import assert_has_shape, run_curl
from tests.fixtures.gateway import Customer, RunningGateway, gateway, module_gateway

__all__ = ["gateway", "module_gateway"]

MODEL = "deepseek/deepseek-r1-0528"

BALANCE = r"""
curl -H "Authorization: Bearer YOUR_API_KEY" \
     -H "Content-Type: application/json" \
     http://localhost:8000/user/balance
"""
SET_LIMITS = r"""
curl -X POST http://localhost:8000/admin/limit \
  -H "Content-Type: application/json" \
  -d '{
    "api_key": "mdlz_sk_user123",
    "rate_limits": {
      "requests_per_minute": 60,
      "requests_per_hour": 1000,
      "requests_per_day": 10000,
      "tokens_per_minute": 10000,
      "tokens_per_hour": 100000,
      "tokens_per_day": 1000000
    }
  }'
"""
CHECK_LIMITS = r"""
curl -H "Authorization: Bearer YOUR_API_KEY" \
     http://localhost:8000/user/limit
"""
CHAT = r"""
curl -X POST http://localhost:8000/v1/chat/completions \
  -H "Authorization: Bearer YOUR_API_KEY" \
  -H "Content-Type: application/json" \
  -d '{
    "model": "deepseek/deepseek-r1-0528",
    "messages": [
      {"role": "user", "content": "Hello, how are you?"}
    ],
    "max_tokens": 100,
    "temperature": 0.7
  }'
"""
LIMITS = {
    "requests_per_minute": 60,
    "requests_per_hour": 1000,
    "requests_per_day": 10000,
    "tokens_per_minute": 10000,
    "tokens_per_hour": 100000,
    "tokens_per_day": 1000000,
}
USER_MONITOR = {
    "status": "success",
    "timestamp": "2024-01-15T10:30:00Z",
    "user_id": 123,
    "api_key": "mdlz_sk_abc...",
    "current_credits": 850,
    "usage_metrics": {
        "total_requests": 150,
        "total_tokens": 15000,
        "total_cost": 0.30,
        "requests_today": 5,
        "tokens_today": 500,
        "cost_today": 0.01,
        "requests_this_month": 45,
        "tokens_this_month": 4500,
        "cost_this_month": 0.09,
        "average_tokens_per_request": 100.0,
        "most_used_model": "deepseek/deepseek-r1-0528",
        "last_request_time": "2024-01-15T10:25:00Z",
    },
    "rate_limits": LIMITS,
}
USER_LIMIT = {
    "status": "success",
    "api_key": "mdlz_sk_abc...",
    "current_limits": LIMITS,
    "current_usage": {"allowed": True, "reason": "Within limits"},
    "reset_times": {
        "minute": "2024-01-15T10:31:00Z",
        "hour": "2024-01-15T11:00:00Z",
        "day": "2024-01-16T00:00:00Z",
    },
}
ADMIN_MONITOR = {
    "status": "success",
    "timestamp": "2024-01-15T10:30:00Z",
    "data": {
        "total_users": 50,
        "active_users_today": 12,
        "total_requests_today": 150,
        "total_tokens_today": 15000,
        "total_cost_today": 0.30,
        "top_users_by_usage": [
            {"api_key": "mdlz_sk_abc...", "tokens_used": 5000, "cost": 0.10, "requests": 25}
        ],
        "recent_activity": [
            {
                "api_key": "mdlz_sk_xyz...",
                "model": "deepseek/deepseek-r1-0528",
                "tokens_used": 150,
                "timestamp": "2024-01-15T10:25:00Z",
            }
        ],
    },
}
CHAT_ANSWER = {
    "choices": [{"message": {"content": "Hello! I'm doing well, thank you for asking."}}],
    "usage": {"total_tokens": 25, "prompt_tokens": 8, "completion_tokens": 17},
    "model": MODEL,
    "gateway_usage": {"tokens_charged": 25, "user_balance_after": 975, "user_api_key": "mdlz_sk_abc..."},
}


@pytest.fixture(scope="module")
def customer(module_gateway: RunningGateway) -> Customer:
    module_gateway.model("echo", name=MODEL)
    return module_gateway.customer()


@pytest.fixture(scope="module")
def admin(module_gateway: RunningGateway) -> dict[str, str]:
    return {"authorization": f"Bearer {module_gateway.admin_key()}"}


def as_printed(command: str, customer: Customer) -> str:
    return command.replace("YOUR_API_KEY", customer.key).replace("mdlz_sk_user123", customer.key)


def test_its_commands(gateway: RunningGateway, customer: Customer, admin: dict[str, str]) -> None:
    balance = run_curl(as_printed(BALANCE, customer), gateway.url)
    assert balance.status == 200
    assert_has_shape(balance.json, {"status": "success", "user_id": 123, "credits": 850})

    limited = run_curl(as_printed(SET_LIMITS, customer), gateway.url, **admin)
    assert limited.status == 200
    assert limited.json["status"] == "success"

    limits = run_curl(as_printed(CHECK_LIMITS, customer), gateway.url)
    assert limits.status == 200
    assert_has_shape(limits.json, USER_LIMIT)
    assert {name: limits.json["current_limits"][name] for name in LIMITS} == LIMITS
    assert limits.json["current_usage"]["allowed"] is True
    assert limits.json["current_usage"]["reason"] == "Within limits"

    answered = run_curl(as_printed(CHAT, customer), gateway.url)
    assert answered.status == 200, answered.json
    assert_has_shape(answered.json, CHAT_ANSWER)
    assert answered.json["gateway_usage"]["tokens_charged"] == answered.json["usage"]["total_tokens"]

    monitor = run_curl(
        f'curl -H "Authorization: Bearer {customer.key}" http://localhost:8000/user/monitor', gateway.url
    )
    assert monitor.status == 200
    assert_has_shape(monitor.json, USER_MONITOR)
    used: dict[str, Any] = monitor.json["usage_metrics"]
    assert used["total_requests"] == used["requests_today"] == used["requests_this_month"] == 1
    assert used["total_tokens"] == answered.json["usage"]["total_tokens"]
    assert used["most_used_model"] == MODEL
    assert used["total_cost"] == pytest.approx(float(answered.json["gateway_usage"]["charge_usd"]), abs=1e-12)
    assert {name: monitor.json["rate_limits"][name] for name in LIMITS} == LIMITS

    overview = run_curl("curl http://localhost:8000/admin/monitor", gateway.url, **admin)
    assert overview.status == 200
    assert_has_shape(overview.json, ADMIN_MONITOR)
    told = overview.json["data"]
    assert told["active_users_today"] == told["total_requests_today"] == 1
    assert told["total_tokens_today"] == used["total_tokens"]
    assert [row["requests"] for row in told["top_users_by_usage"]] == [1]
    assert [row["model"] for row in told["recent_activity"]] == [MODEL]
    assert customer.key not in str(overview.json)


def test_its_other_endpoints(gateway: RunningGateway, customer: Customer, admin: dict[str, str]) -> None:
    health = run_curl("curl http://localhost:8000/health", gateway.url)
    assert (health.status, health.json["status"]) == (200, "ok")
    models = run_curl("curl http://localhost:8000/models/simple", gateway.url)
    assert MODEL in models.json["models"]
    assert run_curl("curl http://localhost:8000/", gateway.url).status == 200

    user = run_curl(
        "curl -X POST http://localhost:8000/admin/create_user -H 'Content-Type: application/json' "
        """-d '{"name": "New user", "email": "new@example.org", "credits": 1000}'""",
        gateway.url,
        **admin,
    )
    assert user.status == 201
    assert_has_shape(user.json, {"status": "success", "user_id": 1, "api_key": "sk_", "credits": 1000})
    paid = run_curl(
        "curl -X POST http://localhost:8000/admin/add_credits -H 'Content-Type: application/json' "
        f"""-d '{{"api_key": "{user.json["api_key"]}", "credits": 500}}'""",
        gateway.url,
        **admin,
    )
    assert paid.status == 200
    assert paid.json["balance_after"] == 1500
    balances = run_curl("curl http://localhost:8000/admin/balance", gateway.url, **admin)
    assert_has_shape(
        balances.json,
        {
            "status": "success",
            "users": [
                {"user_id": 1, "name": "New user", "credits": 1, "api_keys": [{"id": 1, "active": True}]}
            ],
        },
    )
    assert {customer.id, user.json["user_id"]} <= {row["user_id"] for row in balances.json["users"]}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/admin/create_user"),
        ("POST", "/admin/add_credits"),
        ("GET", "/admin/balance"),
        ("GET", "/admin/monitor"),
        ("POST", "/admin/limit"),
    ],
)
def test_what_it_leaves_open_is_not(
    gateway: RunningGateway, customer: Customer, method: str, path: str
) -> None:
    command = f"curl -X {method} http://localhost:8000{path} -d '{{}}'"
    assert run_curl(command, gateway.url).status == 401
    assert run_curl(command, gateway.url, authorization=f"Bearer {customer.key}").status == 403
