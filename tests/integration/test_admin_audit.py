"""Who changed what when, by the API or by hand: found by what, by whom and by when."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pytest

from tests.fixtures.management import Management, assert_error, management

__all__ = ["management"]


async def test_a_change_is_told_with_what_was_and_what_is(management: Management) -> None:
    customer = management.customer()
    await management.ok("PATCH", f"/admin/customers/{customer.id}", {"company": "Engines"})
    page = await management.ok("GET", f"/admin/audit?entity=customers&entity_id={customer.id}")
    newest, oldest = page["data"]
    assert set(newest) == {"id", "at", "actor", "action", "entity", "entity_id", "before", "after"}
    assert (newest["action"], newest["entity"], newest["entity_id"]) == (
        "update",
        "customers",
        str(customer.id),
    )
    assert (newest["before"], newest["after"]) == ({"company": None}, {"company": "Engines"})
    assert newest["actor"] == f"key {management.admin_key[:9]}…"
    assert (oldest["action"], oldest["before"]) == ("insert", None)
    assert oldest["after"]["email"] == customer.email
    assert abs(datetime.now(UTC) - datetime.fromisoformat(newest["at"])) < timedelta(minutes=1)


async def test_an_edit_by_hand_is_told_as_one(management: Management) -> None:
    customer = management.customer()
    management.connection.execute(
        "update gateway.customers set company = 'By hand' where id = %s", [customer.id]
    )
    page = await management.ok("GET", "/admin/audit?actor=postgres&limit=1")
    assert (page["data"][0]["entity_id"], page["data"][0]["after"]) == (
        str(customer.id),
        {"company": "By hand"},
    )


async def test_pages_follow_each_other_the_newest_first(management: Management) -> None:
    customer = management.customer()
    for number in range(5):
        await management.ok("PATCH", f"/admin/customers/{customer.id}", {"company": f"n{number}"})
    seen: list[str] = []
    path = f"/admin/audit?entity=customers&entity_id={customer.id}&limit=2"
    cursor: str | None = ""
    while cursor is not None:
        page = await management.ok("GET", f"{path}&cursor={cursor}" if cursor else path)
        seen += [str(row["after"].get("company")) for row in page["data"]]
        cursor = page["next_cursor"]
        # what comes in meanwhile moves nothing
        management.customer()
    assert seen == ["n4", "n3", "n2", "n1", "n0", "None"]


async def test_from_is_inside_and_to_is_not(management: Management) -> None:
    customer = management.customer()
    await management.ok("PATCH", f"/admin/customers/{customer.id}", {"company": "x"})
    here = f"/admin/audit?entity=customers&entity_id={customer.id}"
    second, first = (await management.ok("GET", here))["data"]

    async def told(**times: str) -> list[int]:
        response = await management.admin("GET", here, params={**times, "entity": "customers"})
        assert response.status_code == 200, response.text
        return [row["id"] for row in response.json()["data"] if row["entity_id"] == str(customer.id)]

    assert await told(**{"from": second["at"]}) == [second["id"]]
    assert await told(to=second["at"]) == [first["id"]]
    assert await told(**{"from": first["at"], "to": second["at"]}) == [first["id"]]
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).date().isoformat()
    assert await told(**{"from": tomorrow}) == []


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("entity=accounts", "entity"),
        ("entity_id=x", "entity_id"),
        ("actor=", "actor"),
        ("from=yesterday", "from"),
        ("to=2026-13-01", "to"),
        ("cursor=-1", "cursor"),
        ("by=me", "by"),
    ],
)
async def test_bad_query_is_422_and_named(management: Management, query: str, param: str) -> None:
    assert_error(await management.admin("GET", f"/admin/audit?{query}"), 422, param=param)


async def test_no_secret_is_told(management: Management) -> None:
    secret = f"provider-secret-{uuid.uuid4().hex}"
    service = {
        "name": f"audited {uuid.uuid4().hex[:8]}",
        "provider": "openai-compatible",
        "base_url": "https://8.8.8.8/v1",
        "provider_key": secret,
    }
    made = await management.ok("POST", "/admin/services", service, status=201)
    sealed = management.value("select provider_key from gateway.services where id = %s", made["id"])
    customer = management.customer()
    hashed = management.value(
        "select encode(secret_hash, 'hex') from gateway.api_keys where id = %s", customer.key_id
    )
    text = (await management.admin("GET", "/admin/audit?limit=200")).text
    assert service["name"] in text
    for word in (secret, sealed, hashed, customer.key):
        assert word not in text
