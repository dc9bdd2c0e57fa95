"""No key makes, changes or takes over one that may do more than itself: each way, then many at random."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.fixtures.management import Management, assert_error, management

__all__ = ["management"]


def days(number: float) -> str:
    return (datetime.now(UTC) + timedelta(days=number)).isoformat()


@dataclass(frozen=True, slots=True)
class Family:
    """A customer with a narrow key that may make keys, and with broader ones that it must not get at."""

    customer_id: int
    models: tuple[dict[str, Any], dict[str, Any]]
    services: tuple[int, int]
    narrow: dict[str, Any]
    child: dict[str, Any]
    """Made by the narrow one."""
    broad: dict[str, Any]
    unlimited: dict[str, Any]
    """As narrow, but for its limits."""


async def service(management: Management, name: str) -> int:
    body = {"name": name, "provider": "openai-compatible", "base_url": "https://8.8.8.8/v1"}
    made = await management.ok("POST", "/admin/services", body, status=201)
    return int(made["id"])


@pytest.fixture
async def family(management: Management) -> Family:
    customer = management.customer()
    first, second = await management.model(), await management.model()
    number = management.value("select count(*) from gateway.services")
    services = (
        await service(management, f"allowed {number}"),
        await service(management, f"other {number}"),
    )

    async def key(name: str, **fields: Any) -> dict[str, Any]:
        body = {"name": name, "customer_id": customer.id, **fields}
        made: dict[str, Any] = await management.ok("POST", "/v1/keys", body, status=201)
        return made

    bounds = {
        "scopes": ["chat", "keys"],
        "allowed_models": [first["name"]],
        "allowed_services": [services[0]],
        "expires_at": days(2),
    }
    limits = {
        "limits": {"requests_per_minute": 30, "spend_usd_per_day": "1.5"},
        "model_limits": {first["name"]: {"tokens_per_day": 1000}, "*": {"requests_per_hour": 100}},
    }
    narrow = await key("narrow", **bounds, **limits)
    return Family(
        customer.id,
        (first, second),
        services,
        narrow,
        await management.ok("POST", "/v1/keys", {"name": "child"}, key=narrow["key"], status=201),
        await key("broad", scopes=["chat", "usage", "keys", "billing"]),
        await key("unlimited", **bounds),
    )


def wider(family: Family) -> dict[str, tuple[dict[str, Any], str]]:
    """What the narrow key must not hand out: body, and the field that it is refused for."""
    first, second = family.models
    return {
        "a scope": ({"scopes": ["chat", "usage"]}, "scopes"),
        "all scopes": ({"scopes": ["chat", "usage", "keys", "billing"]}, "scopes"),
        "admin": ({"scopes": ["admin"]}, "scopes"),
        "a model by id": ({"allowed_models": [first["id"], second["id"]]}, "allowed_models"),
        "a model by name": ({"allowed_models": [second["name"]]}, "allowed_models"),
        "a service": ({"allowed_services": [family.services[1]]}, "allowed_services"),
        "a later end": ({"expires_at": days(3)}, "expires_at"),
        "more requests": ({"limits": {"requests_per_minute": 31}}, "limits"),
        "more money": ({"limits": {"spend_usd_per_day": "1.5000000001"}}, "limits"),
        "more of the default": ({"limits": {"tokens_per_minute": 1, "requests_per_minute": 61}}, "limits"),
        "more for a model": ({"model_limits": {first["name"]: {"tokens_per_day": 1001}}}, "model_limits"),
        "more for each model": ({"model_limits": {"*": {"requests_per_hour": 101}}}, "model_limits"),
        "more for another model": (
            {"model_limits": {second["name"]: {"requests_per_hour": 101}}},
            "model_limits",
        ),
    }


def rows(management: Management, customer_id: int) -> list[tuple[Any, ...]]:
    """Every key of a customer, with its limits."""
    return management.query(
        "select to_jsonb(k) - 'name', (select jsonb_agg(l order by l.id) from gateway.limits as l"
        " where l.key_id = k.id) from gateway.api_keys as k where customer_id = %s order by id",
        customer_id,
    )


async def test_narrow_key_hands_out_no_more_than_it_has(management: Management, family: Family) -> None:
    before = rows(management, family.customer_id)
    narrow = family.narrow["key"]
    for name, (body, field) in wider(family).items():
        made = await management.call("POST", "/v1/keys", narrow, {"name": name, **body})
        assert assert_error(made, 403, "exceeds_maker", field), name
        for target in (family.narrow, family.child, family.broad, family.unlimited):
            changed = await management.call("PATCH", f"/v1/keys/{target['id']}", narrow, body)
            assert assert_error(changed, 403, "exceeds_maker", field), (name, target["name"])
    older = await management.call("POST", "/api/keys", narrow, {"allowed_models": [family.models[1]["id"]]})
    assert_error(older, 403, "exceeds_maker", "allowed_models")
    assert_error(
        await management.call("POST", "/api/keys", narrow, {"rate_limit": 31}),
        403,
        "exceeds_maker",
        "rate_limit",
    )
    assert rows(management, family.customer_id) == before


async def test_removing_a_limit_is_raising_it(management: Management, family: Family) -> None:
    first = family.models[0]["name"]
    for target in (family.narrow, family.child):
        for body, field in (
            ({"limits": {"requests_per_minute": None}}, "limits"),
            ({"limits": {"spend_usd_per_day": None}}, "limits"),
            ({"model_limits": {first: {"tokens_per_day": None}}}, "model_limits"),
            ({"model_limits": {"*": {"requests_per_hour": None}}}, "model_limits"),
        ):
            refused = await management.call("PATCH", f"/v1/keys/{target['id']}", family.narrow["key"], body)
            assert_error(refused, 403, "exceeds_maker", field)
    # What it was not given may be set, and taken away again.
    for limit in (5, None):
        path = f"/v1/keys/{family.child['id']}"
        changed = await management.ok(
            "PATCH", path, {"limits": {"requests_per_day": limit}}, key=family.narrow["key"]
        )
        assert changed["limits"].get("requests_per_day") == limit


async def test_all_and_never_are_no_more_than_the_makers(management: Management, family: Family) -> None:
    made = await management.ok("POST", "/v1/keys", {"name": "x"}, key=family.narrow["key"], status=201)
    for field in ("scopes", "allowed_models", "allowed_services", "expires_at"):
        expected = ["chat"] if field == "scopes" else family.narrow[field]
        assert made[field] == expected, field
    body = {"allowed_models": None, "allowed_services": None, "expires_at": None}
    for target in (made, family.narrow):
        path = f"/v1/keys/{target['id']}"
        changed = await management.ok("PATCH", path, body, key=family.narrow["key"])
        for field in body:
            assert changed[field] == family.narrow[field], field
    freed = await management.ok("PATCH", f"/v1/keys/{made['id']}", body)
    assert [freed[field] for field in body] == [None, None, None]


async def test_key_is_rotated_by_none_that_may_do_less(management: Management, family: Family) -> None:
    async def rotated(target: dict[str, Any], key: str) -> Any:
        return await management.call("POST", f"/v1/keys/{target['id']}/rotate", key, {})

    narrow = family.narrow["key"]
    assert_error(await rotated(family.broad, narrow), 403, "exceeds_maker", "scopes")
    # It may do what narrow may, but what it does would not count under narrow's limits.
    assert_error(await rotated(family.unlimited, narrow), 403, "exceeds_maker", "limits")
    _, admin_id = management.key(family.customer_id, "admin", "chat")
    assert_error(await rotated({"id": admin_id}, family.broad["key"]), 403, "scope_missing")
    for old in (family.broad["key"], family.unlimited["key"]):
        await management.ok("GET", "/user/balance", key=old)

    child = await rotated(family.child, narrow)
    assert child.status_code == 200
    itself = await rotated(family.narrow, narrow)
    assert itself.status_code == 200
    assert_error(await management.call("GET", "/user/balance", narrow), 401, "invalid_api_key")
    for new in (child.json()["key"], itself.json()["key"]):
        await management.ok("GET", "/user/balance", key=new)
    assert (await rotated(family.narrow, family.broad["key"])).status_code == 200


async def test_key_is_switched_on_by_none_that_may_do_less(management: Management, family: Family) -> None:
    """What was switched off because its secret leaked stays off, whatever lesser key leaked with it."""
    narrow = family.narrow["key"]
    for route in ("/v1/keys", "/api/keys"):
        for target, field in ((family.broad, "scopes"), (family.unlimited, "limits"), (family.child, None)):
            path = f"{route}/{target['id']}/toggle"
            # To switch off is to take away.
            assert (await management.ok("POST", path, {}, key=narrow))["active"] is False
            again = await management.call("POST", path, narrow, {})
            if field is None:
                assert again.json()["active"] is True
                continue
            assert_error(again, 403, "exceeds_maker", field)
            assert_error(await management.call("GET", "/user/balance", target["key"]), 401, "invalid_api_key")
            assert (await management.ok("POST", path, {}))["active"] is True


async def test_child_does_not_loosen_the_key_that_made_it(management: Management, family: Family) -> None:
    """An operator tightens a key; a key that it made before still has the older limit in its own row."""
    child, _ = family.child["key"], family.narrow["key"]
    management.query(
        "update gateway.api_keys set scopes = '{chat,keys}' where id = %s returning 1", family.child["id"]
    )
    await management.ok(
        "POST", "/admin/limit", {"key_id": family.narrow["id"], "rate_limits": {"requests_per_minute": 5}}
    )
    for target in (family.narrow, family.child):
        body = {"limits": {"requests_per_minute": 6}}
        refused = await management.call("PATCH", f"/v1/keys/{target['id']}", child, body)
        assert_error(refused, 403, "exceeds_maker", "limits")


@pytest.mark.parametrize("seed", range(4))
async def test_however_many_steps_it_takes_nothing_is_gained(
    management: Management, family: Family, seed: int
) -> None:
    """Whoever holds the narrow key does whatever comes to mind with every secret that it is handed."""
    chance = random.Random(seed)  # noqa: S311 - to be repeated
    held = {family.narrow["id"]: family.narrow["key"], family.child["id"]: family.child["key"]}
    first, second = family.models
    bodies = [body for body, _ in wider(family).values()]
    bodies += [
        {"scopes": ["chat", "keys"]},
        {"scopes": ["keys"]},
        {"allowed_models": [first["id"]]},
        {"allowed_models": []},
        {"allowed_models": None, "allowed_services": None, "expires_at": None},
        {"expires_at": days(1)},
        {"limits": {"requests_per_minute": 30, "spend_usd_per_day": None}},
        {"limits": {"requests_per_minute": 3}},
        {"model_limits": {"*": {"requests_per_hour": 100}, second["name"]: {"requests_per_minute": 60}}},
    ]
    targets = [family.narrow["id"], family.child["id"], family.broad["id"], family.unlimited["id"]]
    done = 0
    for step in range(120):
        key = chance.choice(list(held.values()))
        body, target = chance.choice(bodies), chance.choice(targets)
        match chance.choice(["make", "make older", "change", "change", "rotate", "toggle"]):
            case "make":
                response = await management.call("POST", "/v1/keys", key, {"name": f"{step}", **body})
            case "make older":
                older = {"allowed_models": body["allowed_models"]} if "allowed_models" in body else {}
                response = await management.call("POST", "/api/keys", key, older)
            case "change":
                response = await management.call("PATCH", f"/v1/keys/{target}", key, body)
            case "rotate":
                grace = {"grace_seconds": chance.choice([0, 60])}
                response = await management.call("POST", f"/v1/keys/{target}/rotate", key, grace)
            case _:
                response = await management.call("POST", f"/v1/keys/{target}/toggle", key)
        assert response.status_code in {200, 201, 403, 422}, response.text
        done += response.is_success
        told = response.json()
        if "key" in told:
            held[told["id"]] = told["key"]
            targets.append(told["id"])
        # What was switched off or narrowed on the way is as it was: the walk is not to end in a dead key.
        management.query(
            "update gateway.api_keys set active = true where id = any(%s) returning 1", list(held)
        )
        management.query(
            "update gateway.api_keys set scopes = '{chat,keys}', allowed_models = %s, allowed_services = %s,"
            " expires_at = %s where id = any(%s) returning 1",
            [first["id"]],
            [family.services[0]],
            family.narrow["expires_at"],
            [family.narrow["id"], family.child["id"]],
        )
    assert done > 15
    assert len(held) > 4
    beyond = management.query(
        "select k.id, k.scopes, k.allowed_models, k.allowed_services, k.expires_at, k.maker_key_ids"
        " from gateway.api_keys as k where k.id = any(%s) and not ("
        " k.scopes <@ '{chat,keys}' and k.allowed_models is not null and k.allowed_models <@ %s::bigint[]"
        " and k.allowed_services is not null and k.allowed_services <@ %s::bigint[]"
        " and k.expires_at is not null and k.expires_at <= %s::timestamptz"
        # Its requests count under the narrow key's limits, whatever its own are.
        " and %s = any(k.id || k.maker_key_ids))",
        list(held),
        [first["id"]],
        [family.services[0]],
        family.narrow["expires_at"],
        family.narrow["id"],
    )
    assert beyond == []
    kept = management.query(
        "select per, each_model, model_id is not null, requests, tokens, spend_usd from gateway.limits"
        " where key_id = %s",
        family.narrow["id"],
    )
    least = {(row[0], row[1], row[2]): row[3:] for row in kept}
    assert least["minute", False, False][0] <= 30
    assert least["day", False, False][2] <= 1.5
    assert least["day", False, True][1] <= 1000
    assert least["hour", True, False][0] <= 100
