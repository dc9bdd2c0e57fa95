"""Customers as the operator looks after them: found, changed, suspended at once, erased; the books stay."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from gateway.auth import key_hash
from tests.fixtures.management import Management, assert_error, management

if TYPE_CHECKING:
    from tests.fixtures.management import Customer

__all__ = ["management"]

SHOWN = {
    "id",
    "name",
    "username",
    "email",
    "company",
    "time_zone",
    "active",
    "created_at",
    "erased_at",
    "signs_in",
    "credits",
    "balance_usd",
    "held_usd",
    "debt_usd",
    "low_balance_usd",
    "active_keys",
}


async def test_a_customer_is_shown_with_its_account(management: Management) -> None:
    customer = management.customer("2.5")
    told = await management.ok("GET", f"/admin/customers/{customer.id}")
    assert set(told) == SHOWN
    assert (told["id"], told["email"], told["username"]) == (customer.id, customer.email, customer.email)
    assert (told["balance_usd"], told["held_usd"], told["credits"]) == ("2.5", "0", 125000)
    assert (told["active"], told["erased_at"], told["signs_in"], told["active_keys"]) == (
        True,
        None,
        False,
        1,
    )


async def test_the_list_pages_to_its_end(management: Management) -> None:
    made = [management.customer().id for _ in range(5)]
    seen: list[int] = []
    path = "/admin/customers?limit=2"
    while True:
        page = await management.ok("GET", path)
        assert len(page["data"]) <= 2
        seen += [row["id"] for row in page["data"]]
        if page["next_cursor"] is None:
            break
        path = f"/admin/customers?limit=2&cursor={page['next_cursor']}"
    assert seen == sorted(set(seen))
    assert set(made) <= set(seen)


@pytest.mark.parametrize("field", ["name", "username", "email", "company"])
async def test_a_search_finds_by_any_part_in_any_case(management: Management, field: str) -> None:
    word = f"Zz{uuid.uuid4().hex[:10]}"
    body = {
        "name": "Ada",
        "email": f"{uuid.uuid4().hex}@example.org",
        "company": "Engines",
        "username": word[::-1],
    }
    body[field] = f"x{word}@y.example" if field == "email" else f"before {word} after"
    made = await management.ok("POST", "/customers", body, status=201)
    found = await management.ok("GET", f"/admin/customers?q={word.upper()}")
    assert [row["id"] for row in found["data"]] == [made["id"]]
    nobody = await management.ok("GET", f"/admin/customers?q={word.upper()}%25")
    assert nobody == {"data": [], "next_cursor": None}


async def test_active_tells_the_suspended_from_the_others(management: Management) -> None:
    word = uuid.uuid4().hex
    suspended, other = management.customer(), management.customer()
    for customer in (suspended, other):
        await management.ok("PATCH", f"/admin/customers/{customer.id}", {"company": word})
    await management.ok("PATCH", f"/admin/customers/{suspended.id}", {"active": False})
    found = {
        flag: [
            row["id"]
            for row in (await management.ok("GET", f"/admin/customers?q={word}&active={flag}"))["data"]
        ]
        for flag in ("true", "false")
    }
    assert found == {"true": [other.id], "false": [suspended.id]}


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("active=1", "active"),
        ("q=", "q"),
        ("limit=0", "limit"),
        ("cursor=x", "cursor"),
        ("name=Ada", "name"),
    ],
)
async def test_bad_query_is_422_and_named(management: Management, query: str, param: str) -> None:
    assert_error(await management.admin("GET", f"/admin/customers?{query}"), 422, param=param)


async def test_a_patch_changes_what_it_names_and_says_who_did(management: Management) -> None:
    customer = management.customer()
    changes = {
        "name": "Ada Lovelace",
        "username": f"ada-{customer.id}",
        "email": f"ada-{customer.id}@example.org",
        "company": "Engines",
        "time_zone": "Asia/Kolkata",
    }
    told = await management.ok("PATCH", f"/admin/customers/{customer.id}", changes)
    assert {name: told[name] for name in changes} == changes
    one = await management.ok("PATCH", f"/admin/customers/{customer.id}", {"company": None})
    assert one == {**told, "company": None}
    assert await management.ok("PATCH", f"/admin/customers/{customer.id}", {}) == one
    actor = management.value(
        "select actor from gateway.audit_log where entity = 'customers' order by id desc limit 1"
    )
    assert actor == f"key {management.admin_key[:9]}…"


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"name": ""}, "name"),
        ({"name": None}, "name"),
        ({"username": None}, "username"),
        ({"email": "nobody"}, "email"),
        ({"active": None}, "active"),
        ({"active": "false"}, "active"),
        ({"time_zone": "Mars/Olympus"}, "time_zone"),
        ({"time_zone": "UTC+00:07"}, "time_zone"),
        ({"time_zone": None}, "time_zone"),
        ({"balance_usd": "5"}, "balance_usd"),
        ({"erased_at": None}, "erased_at"),
        ({"id": 1}, "id"),
    ],
)
async def test_bad_change_is_422_and_changes_nothing(
    management: Management, changes: dict[str, Any], param: str
) -> None:
    customer = management.customer()
    before = await management.ok("GET", f"/admin/customers/{customer.id}")
    body = {"company": "Changed", **changes}
    assert_error(await management.admin("PATCH", f"/admin/customers/{customer.id}", body), 422, param=param)
    assert await management.ok("GET", f"/admin/customers/{customer.id}") == before


async def test_taken_address_and_name_are_409(management: Management) -> None:
    first, second = management.customer(), management.customer()
    path = f"/admin/customers/{second.id}"
    taken = await management.admin("PATCH", path, {"email": first.email.upper()})
    assert_error(taken, 409, "email_taken", "email")
    taken = await management.admin("PATCH", path, {"username": first.email})
    assert_error(taken, 409, "username_taken", "username")


async def test_of_two_who_want_one_name_one_gets_it(management: Management) -> None:
    customers = [management.customer() for _ in range(4)]
    name = f"wanted-{uuid.uuid4().hex}"
    answers = await asyncio.gather(
        *(management.admin("PATCH", f"/admin/customers/{one.id}", {"username": name}) for one in customers)
    )
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409]


def admit(management: Management, customer: Customer) -> dict[str, Any]:
    told: dict[str, Any] = management.value(
        "select api.admit_request(p_key_hash => %s, p_request_id => %s, p_models => '{none}',"
        " p_endpoint => 'chat.completions', p_lease_seconds => 60, p_input_tokens_bound => 1)",
        key_hash(customer.key),
        f"req_{uuid.uuid4().hex}",
    )
    return told


async def test_a_suspended_customer_is_refused_from_the_next_call_on(management: Management) -> None:
    customer = management.customer("1")
    path = f"/admin/customers/{customer.id}"
    await management.ok("GET", "/user/balance", key=customer.key)
    await management.ok("PATCH", path, {"active": False})
    assert_error(await management.call("GET", "/user/balance", customer.key), 403, "customer_suspended")
    assert admit(management, customer)["refusal"] == "customer_suspended"
    await management.ok("PATCH", path, {"active": True})
    await management.ok("GET", "/user/balance", key=customer.key)
    assert admit(management, customer)["refusal"] == "model_not_found"


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
@pytest.mark.parametrize("customer", ["999999999", "0", "x", "9223372036854775808"])
async def test_unknown_customer_is_404(management: Management, method: str, customer: str) -> None:
    body = {"active": False} if method == "PATCH" else None
    assert_error(await management.admin(method, f"/admin/customers/{customer}", body), 404)


async def test_an_erased_customer_is_nobody_with_books(management: Management) -> None:
    customer = management.customer("3")
    await management.ok(
        "PATCH", f"/admin/customers/{customer.id}", {"name": "Grace Canary", "company": "Canary Inc"}
    )
    told = await management.ok("DELETE", f"/admin/customers/{customer.id}")
    assert set(told) == SHOWN
    nobody = f"erased-{customer.id}"
    assert (told["name"], told["username"], told["email"], told["company"]) == (nobody, nobody, None, None)
    assert (told["active"], told["balance_usd"], told["active_keys"]) == (False, "3", 0)
    assert told["erased_at"] is not None
    assert await management.ok("DELETE", f"/admin/customers/{customer.id}") == told
    assert await management.ok("GET", f"/admin/customers/{customer.id}") == told

    assert_error(await management.call("GET", "/user/balance", customer.key), 401)
    for word in ("Canary", customer.email):
        assert (await management.ok("GET", f"/admin/customers?q={word}"))["data"] == []
    audit = await management.admin("GET", "/admin/audit?limit=200")
    assert "Canary" not in audit.text
    assert customer.email not in audit.text
    assert (await management.ok("GET", "/admin/ledger/check"))["ok"] is True


async def test_an_erased_customer_gets_neither_credits_nor_keys_nor_a_name(management: Management) -> None:
    customer = management.customer("3")
    await management.ok("DELETE", f"/admin/customers/{customer.id}")
    change = await management.admin("PATCH", f"/admin/customers/{customer.id}", {"active": True})
    assert_error(change, 409, "customer_erased")
    for named in ({"user_id": customer.id}, {"api_key": customer.key}):
        paid = await management.admin("POST", "/admin/add_credits", {**named, "usd": "1"})
        assert_error(paid, 409, "customer_erased", next(iter(named)))
    key = await management.admin("POST", "/v1/keys", {"name": "k", "customer_id": customer.id})
    assert_error(key, 409)
    rest = {"user_id": customer.id, "usd": "-3", "reference": "paid out"}
    assert (await management.ok("POST", "/admin/add_credits", rest))["balance_after_usd"] == "0"
    # the address is free for somebody new
    again = {"name": "Anew", "email": customer.email}
    assert (await management.ok("POST", "/customers", again, status=201))["id"] != customer.id
