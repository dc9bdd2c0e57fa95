"""What callers learn of their own account: monitor, limits, the calling key, credits, what is to be paid."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import pytest

from gateway.auth import key_hash
from gateway.database.rpc import Refusal, Settlement
from gateway.http import new_request_id
from gateway.metering import refusal_error
from tests.fixtures.management import Customer, Management, assert_error, management
from tests.integration.test_usage import admit, served_model, settle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.database.rpc import Admission

__all__ = ["management"]

# What `settle` uses: 10 tokens at 2 and 5 at 8 USD per million, and 5 %
COST, CHARGE = Decimal("0.00006"), Decimal("0.000063")
SIX_NAMES = {f"{metric}_per_{per}" for metric in ("requests", "tokens") for per in ("minute", "hour", "day")}


@pytest.fixture
async def flat(management: Management) -> AsyncIterator[None]:
    await management.ok("PATCH", "/admin/settings", {"billing_mode": "flat"})
    yield
    await management.ok("PATCH", "/admin/settings", {"billing_mode": "markup"})


def into_a_fresh_minute(management: Management, seconds: float = 6) -> None:
    """Wait for the next minute if this one, and with it perhaps a day, ends within `seconds`."""
    management.query(
        "select pg_sleep(case when 60 - extract(second from clock_timestamp()) < %s"
        " then 60.05 - extract(second from clock_timestamp()) else 0 end)",
        seconds,
    )


def move(management: Management, admission: Admission, at: datetime) -> Admission:
    """Have a request admitted at another time, before it is settled: past the guards."""
    management.query("select set_config('session_replication_role', 'replica', false)")
    management.query(
        "update gateway.requests set admitted_at = %s where id = %s returning id", at, admission.request_id
    )
    management.query("select set_config('session_replication_role', 'origin', false)")
    return replace(admission, admitted_at=at.isoformat())


async def use(management: Management, key: str, model: str, at: datetime | None = None) -> None:
    admission = await admit(management, key, model)
    await settle(management, admission if at is None else move(management, admission, at))


# Monitor


async def test_monitor_is_exact(management: Management) -> None:
    customer = management.customer("1")
    model = await served_model(management)
    empty = (await management.ok("GET", "/user/monitor", key=customer.key))["usage_metrics"]
    assert empty == {
        "total_requests": 0,
        "total_tokens": 0,
        "total_cost": 0,
        "requests_today": 0,
        "tokens_today": 0,
        "cost_today": 0,
        "requests_this_month": 0,
        "tokens_this_month": 0,
        "cost_this_month": 0,
        "average_tokens_per_request": 0,
        "most_used_model": None,
        "last_request_time": None,
        "average_latency_ms": None,
    }
    into_a_fresh_minute(management)
    for _ in range(3):
        await use(management, customer.key, model["name"])
    told = await management.ok("GET", "/user/monitor", key=customer.key)
    assert (told["status"], told["user_id"]) == ("success", customer.id)
    assert customer.key.startswith(told["api_key"].rstrip("…"))
    assert told["current_credits"] == 49990.55
    assert Decimal(told["balance_usd"]) == 1 - 3 * CHARGE
    used = told["usage_metrics"]
    assert datetime.now(UTC) - datetime.fromisoformat(used.pop("last_request_time")) < timedelta(minutes=1)
    assert used == {
        "total_requests": 3,
        "total_tokens": 45,
        "total_cost": float(3 * CHARGE),
        "requests_today": 3,
        "tokens_today": 45,
        "cost_today": float(3 * CHARGE),
        "requests_this_month": 3,
        "tokens_this_month": 45,
        "cost_this_month": float(3 * CHARGE),
        "average_tokens_per_request": 15.0,
        "most_used_model": model["name"],
        "average_latency_ms": 120,
    }
    assert told["rate_limits"] == {**dict.fromkeys(SIX_NAMES), "requests_per_minute": 60}


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "Asia/Kathmandu", "America/New_York"])
async def test_today_and_this_month_begin_by_the_customers_clock(management: Management, zone: str) -> None:
    customer = management.customer("1")
    management.query(
        "update gateway.customers set time_zone = %s where id = %s returning id", zone, customer.id
    )
    model = await served_model(management)
    into_a_fresh_minute(management, 12)
    today = datetime.now(ZoneInfo(zone)).replace(hour=0, minute=0, second=0, microsecond=0)
    month = today.replace(day=1)
    moment = timedelta(microseconds=1)
    times = {today, today - moment, month, month - moment}
    for at in times:
        await use(management, customer.key, model["name"], at.astimezone(UTC))
    used = (await management.ok("GET", "/user/monitor", key=customer.key))["usage_metrics"]
    assert used["requests_today"] == sum(at >= today for at in times)
    assert used["requests_this_month"] == sum(at >= month for at in times)
    assert used["total_requests"] == len(times)


async def test_monitor_tells_each_caller_its_own(management: Management) -> None:
    customer, stranger = management.customer("1"), management.customer("1")
    chat_key, _ = management.key(customer.id, "chat")
    person = management.person(customer)
    model = await served_model(management)
    for key, times in ((chat_key, 1), (customer.key, 2), (stranger.key, 4)):
        for _ in range(times):
            await use(management, key, model["name"])
    for key, seen in (
        (chat_key, 1),
        (customer.key, 3),
        (stranger.key, 4),
        (person, 3),
    ):
        told = await management.ok("GET", "/user/monitor", key=key)
        assert told["usage_metrics"]["total_requests"] == seen
    told = await management.ok("GET", "/user/monitor", key=person)
    assert (told["user_id"], told["api_key"]) == (customer.id, None)


@pytest.mark.parametrize(
    "path", ["/user/balance", "/user/monitor", "/user/limit", "/v1/key", "/v1/credits", "/api/usage"]
)
async def test_a_key_of_nobody_has_none_of_this(management: Management, path: str) -> None:
    assert_error(await management.admin("GET", path), 403, "no_customer")


# Limits


async def refused(management: Management, customer: Customer, model: str) -> str:
    """The message that a chat of one token is refused with now."""
    told = await management.process.database.admit_request(
        key_hash=key_hash(customer.key),
        request_id=new_request_id(),
        models=[model],
        endpoint="chat.completions",
        lease_seconds=60,
        input_tokens_bound=1,
        max_output_tokens=0,
    )
    assert isinstance(told, Refusal)
    return refusal_error(told).message


def without_seconds(text: str) -> str:
    return re.sub(r"\d+ s\.", "some s.", text)


async def test_limits_are_told_as_the_document_has_them(management: Management) -> None:
    customer = management.customer("1")
    model = await served_model(management)
    limits = {
        "requests_per_minute": 50,
        "requests_per_hour": 1000,
        "tokens_per_day": 1_000_000,
        "spend_usd_per_month": "2.5",
    }
    await management.ok("POST", "/admin/limit", {"key_id": customer.key_id, "rate_limits": limits})
    into_a_fresh_minute(management)
    await use(management, customer.key, model["name"])
    told = await management.ok("GET", "/user/limit", key=customer.key)
    assert told["current_limits"] == {**dict.fromkeys(SIX_NAMES), **limits}
    assert told["current_usage"] == {
        "allowed": True,
        "reason": "Within limits",
        "requests_per_minute": 1,
        "requests_per_hour": 1,
        "tokens_per_day": 15,
        "spend_usd_per_month": "0.000063",
    }
    assert set(told["reset_times"]) == {"minute", "hour", "day", "month"}
    now = datetime.now(UTC)
    left = {name: datetime.fromisoformat(at) - now for name, at in told["reset_times"].items()}
    assert timedelta(0) < left["minute"] <= timedelta(minutes=1)
    assert left["minute"] <= left["hour"] <= timedelta(hours=1)
    assert left["hour"] <= left["day"] <= timedelta(days=1)
    assert left["day"] <= left["month"] <= timedelta(days=31)
    monitor = await management.ok("GET", "/user/monitor", key=customer.key)
    assert monitor["rate_limits"] == told["current_limits"]


async def test_a_limit_is_full_in_the_words_of_the_refusal(management: Management) -> None:
    customer = management.customer("1")
    model, other = await served_model(management), await served_model(management)
    body = {"key_id": customer.key_id, "model": model["name"], "rate_limits": {"requests_per_minute": 2}}
    await management.ok("POST", "/admin/limit", body)
    into_a_fresh_minute(management)
    path = f"/user/limit?model={model['name']}"
    for used in range(2):
        told = await management.ok("GET", path, key=customer.key)
        assert told["current_usage"] == {
            "allowed": True,
            "reason": "Within limits",
            "requests_per_minute": used,
        }
        await use(management, customer.key, model["name"])
    told = (await management.ok("GET", path, key=customer.key))["current_usage"]
    assert told["allowed"] is False
    message = await refused(management, customer, model["name"])
    assert without_seconds(told["reason"]) == without_seconds(message)
    general = (await management.ok("GET", "/user/limit", key=customer.key))["current_usage"]
    assert general["allowed"] is False
    assert general["reason"].startswith(message[:40])
    assert model["name"] in general["reason"]
    elsewhere = await management.ok("GET", f"/user/limit?model={other['name']}", key=customer.key)
    assert elsewhere["current_usage"] == {
        "allowed": True,
        "reason": "Within limits",
        "requests_per_minute": 0,
    }


async def test_no_money_is_told_as_the_refusal_tells_it(management: Management) -> None:
    customer = management.customer()
    model = await served_model(management)
    told = await management.ok("GET", f"/user/limit?model={model['name']}", key=customer.key)
    assert told["current_usage"]["allowed"] is False
    assert told["current_usage"]["reason"] == await refused(management, customer, model["name"])
    general = (await management.ok("GET", "/user/limit", key=customer.key))["current_usage"]
    assert general["allowed"] is False
    assert general["reason"] == "Not enough credits: $0 is available. Top up the balance."


async def test_limit_of_an_unknown_model_or_a_misspelt_parameter(management: Management) -> None:
    customer = management.customer("1")
    response = await management.call("GET", "/user/limit?model=none-such", customer.key)
    assert_error(response, 404, "model_not_found", "model")
    assert_error(await management.call("GET", "/user/limit?modle=x", customer.key), 422, param="modle")
    assert_error(await management.call("GET", "/user/limit?model=", customer.key), 422, param="model")


async def test_a_person_sees_the_customers_limits_and_no_keys(management: Management) -> None:
    customer = management.customer("1")
    body = {"user_id": customer.id, "rate_limits": {"requests_per_day": 7}}
    await management.ok("POST", "/admin/limit", body)
    told = await management.ok("GET", "/user/limit", key=management.person(customer))
    assert told["api_key"] is None
    assert told["current_limits"] == {**dict.fromkeys(SIX_NAMES), "requests_per_day": 7}
    assert told["current_usage"] == {"allowed": True, "reason": "Within limits", "requests_per_day": 0}


# OpenRouter's shapes


async def test_calling_key_in_openrouters_shape(management: Management) -> None:
    customer = management.customer("1")
    key, key_id = management.key(customer.id, "chat")
    model = await served_model(management)
    limits = {"spend_usd_per_day": "0.5", "spend_usd_per_month": "0.4"}
    await management.ok("POST", "/admin/limit", {"key_id": key_id, "rate_limits": limits})
    into_a_fresh_minute(management)
    now = datetime.now(UTC)
    monday = (now - timedelta(days=now.weekday())).replace(hour=0, minute=0, second=0, microsecond=0)
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    times = [now, monday, monday - timedelta(microseconds=1), today, now - timedelta(days=40)]
    for at in times:
        await use(management, key, model["name"], at)
    await use(management, customer.key, model["name"])
    told = await management.ok("GET", "/v1/key", key=key)
    assert list(told) == ["data"]
    data = told["data"]
    assert key.startswith(data.pop("label").rstrip("…"))
    assert data.pop("rate_limit") | {"note": ""} == {"requests": 60, "interval": "1m", "note": ""}
    charge = float(CHARGE)
    assert data.pop("limit_remaining") == pytest.approx(0.4 - len(times) * charge, abs=1e-12)
    for name, since in (
        ("usage_daily", today),
        ("usage_weekly", monday),
        ("usage_monthly", today.replace(day=1)),
        ("usage", datetime.min.replace(tzinfo=UTC)),
    ):
        expected = charge * sum(at >= since for at in times)
        assert data.pop(name) == pytest.approx(expected, abs=1e-12), name
    assert data == {
        "limit": 0.4,
        "limit_reset": "monthly",
        "include_byok_in_limit": False,
        "byok_usage": 0,
        "byok_usage_daily": 0,
        "byok_usage_weekly": 0,
        "byok_usage_monthly": 0,
        "is_free_tier": False,
        "is_management_key": False,
        "is_provisioning_key": False,
        "creator_user_id": None,
        "expires_at": None,
    }


async def test_key_without_limits_or_money(management: Management) -> None:
    customer = management.customer(scopes=("keys",))
    data = (await management.ok("GET", "/v1/key", key=customer.key))["data"]
    assert (data["limit"], data["limit_remaining"], data["limit_reset"]) == (None, None, None)
    assert (data["is_free_tier"], data["is_management_key"], data["usage"]) == (True, True, 0)
    await management.ok("PATCH", "/admin/settings", {"default_requests_per_minute": None})
    try:
        data = (await management.ok("GET", "/v1/key", key=customer.key))["data"]
    finally:
        await management.ok("PATCH", "/admin/settings", {"default_requests_per_minute": 60})
    assert data["rate_limit"]["requests"] == -1


async def test_a_person_is_no_key(management: Management) -> None:
    customer = management.customer("1")
    person = management.person(customer)
    assert_error(await management.call("GET", "/v1/key", person), 403, "key_required")
    told = await management.ok("GET", "/v1/credits", key=person)
    assert told == {"data": {"total_credits": 1.0, "total_usage": 0.0}}


async def test_credits_less_usage_are_the_balance(management: Management) -> None:
    customer = management.customer("1")
    model = await served_model(management)
    await use(management, customer.key, model["name"])
    await management.ok("POST", "/admin/add_credits", {"user_id": customer.id, "usd": "0.5"})
    await management.ok("POST", "/admin/add_credits", {"user_id": customer.id, "usd": "-0.25"})
    told = await management.ok("GET", "/v1/credits", key=customer.key)
    assert told == {"data": {"total_credits": 1.25, "total_usage": float(CHARGE)}}
    balance = await management.ok("GET", "/user/balance", key=customer.key)
    assert Decimal(balance["balance_usd"]) == Decimal("1.25") - CHARGE


# What is to be paid


async def test_price_to_pay_is_cost_commission_and_their_sum(management: Management) -> None:
    customer = management.customer("1")
    other, _ = management.key(customer.id, "chat")
    model = await served_model(management)
    for key in (customer.key, other):
        await use(management, key, model["name"])
    told = await management.ok("GET", "/api/usage", key=customer.key)
    assert told == {
        "priceToPay": {
            "username": customer.email,
            "total_input_tokens": 20,
            "total_output_tokens": 10,
            "total_tokens": 30,
            "base_price": float(2 * COST),
            "commission_5_percent": float(2 * (CHARGE - COST)),
            "final_price": float(2 * CHARGE),
        }
    }
    assert await management.ok("GET", "/api/usage", key=management.person(customer)) == told


async def test_price_to_pay_is_told_to_the_user_it_is_of(management: Management) -> None:
    customer, stranger = management.customer("1"), management.customer("1")
    own = await management.call("GET", "/api/usage", customer.key, headers={"user": customer.email})
    assert own.status_code == 200
    for user in (stranger.email, "", customer.email.upper(), "nobody"):
        response = await management.call("GET", "/api/usage", customer.key, headers={"user": user})
        # As for an unknown key: whether there is such a user is not told.
        assert_error(response, 401, "invalid_api_key")


@pytest.mark.usefixtures("flat")
async def test_at_a_flat_price_no_route_tells_a_customer_the_cost(management: Management) -> None:
    customer = management.customer("1")
    model = await served_model(management)
    await use(management, customer.key, model["name"])
    # 15 tokens at 0.02 USD per thousand
    paid = (await management.ok("GET", "/api/usage", key=customer.key))["priceToPay"]
    assert (paid["base_price"], paid["commission_5_percent"], paid["final_price"]) == (0.0003, 0, 0.0003)
    for key in (customer.key, management.person(customer)):
        [series] = [
            point for point in (await management.ok("GET", "/v1/usage", key=key))["data"] if point["requests"]
        ]
        assert (series["cost_usd"], series["charge_usd"]) == (None, "0.0003")
        [record] = (await management.ok("GET", "/v1/requests", key=key))["data"]
        assert (record["cost_usd"], record["charge_usd"]) == (None, "0.0003")
    for path in ("/v1/usage", "/v1/requests"):
        told = await management.ok("GET", f"{path}?customer_id={customer.id}")
        assert {row["cost_usd"] for row in told["data"]} <= {"0.00006", "0"}
        assert "0.00006" in {row["cost_usd"] for row in told["data"]}


async def test_a_failed_request_is_counted_and_free(management: Management) -> None:
    customer = management.customer("1")
    model = await served_model(management)
    admission = await admit(management, customer.key, model["name"])
    failed = Settlement(
        request_id=admission.request_id,
        admitted_at=admission.admitted_at,
        outcome="failed",
        status=502,
        latency_ms=30,
        error_code="provider_failed",
    )
    assert await management.process.database.settle_request(failed.as_json())
    used = (await management.ok("GET", "/user/monitor", key=customer.key))["usage_metrics"]
    assert (used["total_requests"], used["total_tokens"], used["total_cost"]) == (1, 0, 0)
    [record] = (await management.ok("GET", "/v1/requests?errors=true", key=customer.key))["data"]
    assert (record["outcome"], record["error_code"]) == ("failed", "provider_failed")
