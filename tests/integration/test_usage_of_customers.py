"""What the dashboard asks: who calls, and a customer's figures as an admin sees them, and nobody else."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from tests.fixtures.management import Customer, Management, assert_error, management
from tests.integration.test_usage import served_model
from tests.integration.test_usage_monitor import CHARGE, use

if TYPE_CHECKING:
    import httpx

__all__ = ["management"]

OF_A_CUSTOMER = ["/user/balance", "/user/monitor", "/user/limit"]


async def get(management: Management, path: str, key: str, **query: Any) -> httpx.Response:
    return await management.call("GET", path, key, params=query)


async def test_a_key_is_told_what_it_is(management: Management) -> None:
    customer = management.customer(scopes=("usage", "keys"))
    told = await management.ok("GET", "/v1/me", key=customer.key)
    assert told == {
        "customer": {"id": customer.id, "name": "A customer", "email": customer.email, "time_zone": "UTC"},
        "key": {
            "id": customer.key_id,
            "name": "key",
            "prefix": told["key"]["prefix"],
            "expires_at": None,
        },
        "scopes": ["keys", "usage"],
        "is_admin": False,
        "own_requests_only": False,
    }
    assert customer.key.startswith(told["key"]["prefix"].rstrip("…"))
    key, _ = management.key(customer.id, "chat")
    assert (await management.ok("GET", "/v1/me", key=key))["own_requests_only"] is True


async def test_an_operator_and_a_person_are_told_what_they_are(management: Management) -> None:
    told = await management.ok("GET", "/v1/me")
    assert (told["customer"], told["is_admin"], told["scopes"]) == (None, True, ["admin"])
    assert told["key"]["name"] == "key"
    customer = management.customer()
    told = await management.ok("GET", "/v1/me", key=management.person(customer))
    assert (told["customer"]["id"], told["key"]) == (customer.id, None)
    assert (told["scopes"], told["own_requests_only"]) == (["billing", "keys", "usage"], False)


async def test_nobody_is_told_nothing(management: Management) -> None:
    assert_error(await management.call("GET", "/v1/me", None), 401)


async def test_an_admin_sees_the_figures_of_the_customer_that_it_names(management: Management) -> None:
    customer = management.customer("1")
    model = await served_model(management)
    await use(management, customer.key, model["name"])
    query = f"?customer_id={customer.id}"
    balance = await management.ok("GET", f"/user/balance{query}")
    assert (balance["user_id"], Decimal(balance["balance_usd"])) == (customer.id, 1 - CHARGE)
    monitor = await management.ok("GET", f"/user/monitor{query}")
    assert (monitor["user_id"], monitor["usage_metrics"]["total_requests"]) == (customer.id, 1)
    await management.ok(
        "POST", "/admin/limit", {"user_id": customer.id, "rate_limits": {"requests_per_day": 7}}
    )
    limits = await management.ok("GET", f"/user/limit{query}")
    assert limits["current_limits"]["requests_per_day"] == 7
    of_key = await management.ok("GET", f"/user/limit{query}&key_id={customer.key_id}")
    assert of_key["current_limits"]["requests_per_minute"] == 60


@pytest.mark.parametrize("path", OF_A_CUSTOMER)
async def test_a_customer_that_is_not_there_is_not_found(management: Management, path: str) -> None:
    assert_error(await get(management, path, management.admin_key, customer_id=10**12), 404)


@pytest.mark.parametrize("path", OF_A_CUSTOMER)
async def test_an_operator_has_to_name_one(management: Management, path: str) -> None:
    assert_error(await get(management, path, management.admin_key), 403, "no_customer")


@pytest.mark.parametrize("path", OF_A_CUSTOMER)
@pytest.mark.parametrize("person", [False, True])
async def test_another_customer_is_not_found_whether_there_is_one_or_not(
    management: Management, path: str, person: bool
) -> None:
    customer, other = management.customer("1"), management.customer("2")
    caller = management.person(customer) if person else customer.key
    told = [await get(management, path, caller, customer_id=named) for named in (other.id, 10**12)]
    for response in told:
        assert_error(response, 404, "customer_not_found", "customer_id")
    assert told[0].json() == told[1].json()
    own = await get(management, path, caller, customer_id=customer.id)
    assert own.status_code == 200


async def limits_of_key(management: Management, caller: str, key_id: int) -> httpx.Response:
    return await get(management, "/user/limit", caller, key_id=key_id)


async def test_limits_of_another_key_are_for_those_who_oversee_it(management: Management) -> None:
    customer, other = management.customer("1"), management.customer("1")
    chat, chat_id = management.key(customer.id, "chat")
    await management.ok("POST", "/admin/limit", {"key_id": chat_id, "rate_limits": {"tokens_per_day": 99}})
    person = management.person(customer)
    for caller in (customer.key, person, chat):
        told = await limits_of_key(management, caller, chat_id)
        assert told.json()["current_limits"]["tokens_per_day"] == 99
    for caller, asked in (
        (chat, customer.key_id),
        (customer.key, other.key_id),
        (person, other.key_id),
        (other.key, chat_id),
    ):
        assert_error(await limits_of_key(management, caller, asked), 404, "key_not_found")


@pytest.fixture
async def limited(management: Management) -> Customer:
    customer = management.customer("1")
    limits = {"requests_per_hour": 10, "spend_usd_per_month": "2", "tokens_per_day": 1000}
    told = {"key_id": customer.key_id, "rate_limits": limits, "warn": {"requests_per_hour": 3}}
    await management.ok("POST", "/admin/limit", told)
    return customer


async def test_soft_marks_are_told_beside_their_limits(management: Management, limited: Customer) -> None:
    told = await management.ok("GET", "/user/limit", key=limited.key)
    assert told["soft_limits"] == {
        "requests_per_hour": 3,
        "spend_usd_per_month": "1.6",
        "tokens_per_day": 800,
    }


async def test_the_mark_is_that_of_the_window_that_is_shown(
    management: Management, limited: Customer
) -> None:
    """The customer's own limit leaves less than the key's: its mark is shown, and not the key's."""
    told = {"user_id": limited.id, "rate_limits": {"requests_per_hour": 4}, "warn_percent": 50}
    await management.ok("POST", "/admin/limit", told)
    told = await management.ok("GET", "/user/limit", key=limited.key)
    assert told["current_limits"]["requests_per_hour"] == 4
    assert told["soft_limits"]["requests_per_hour"] == 2
