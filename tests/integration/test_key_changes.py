"""Keys changed and rotated, as their owners and admins do it."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.auth import is_key
from tests.fixtures.management import Management, assert_error, management

__all__ = ["management"]

DAY = 86_400


async def test_rotated_key_is_shown_once_and_the_old_one_stops(management: Management) -> None:
    customer = management.customer()
    response = await management.call("POST", f"/v1/keys/{customer.key_id}/rotate", customer.key)
    assert response.status_code == 200
    assert response.headers["cache-control"] == "no-store"
    told = response.json()
    assert is_key(told["key"])
    assert (told["id"], told["prefix"]) == (customer.key_id, f"{told['key'][:9]}…")
    assert (told["previous_prefix"], told["previous_expires_at"]) == (f"{customer.key[:9]}…", None)
    assert_error(await management.call("GET", "/user/balance", customer.key), 401, "invalid_api_key")
    await management.ok("GET", "/user/balance", key=told["key"])
    audit = management.value("select string_agg(a::text, '') from gateway.audit_log as a")
    assert told["key"] not in audit + management.log.text
    action, before, after = management.query(
        "select action, before, after from gateway.audit_log where entity = 'api_keys' and entity_id = %s"
        " order by id desc limit 1",
        str(customer.key_id),
    )[0]
    assert action == "update"
    assert before == {"prefix": f"{customer.key[:9]}…", "secret_hash": "(not shown)"}
    assert after == {"prefix": told["prefix"], "secret_hash": "(not shown)"}


async def test_grace_is_kept_for_old_and_ends(management: Management) -> None:
    customer = management.customer()
    path = f"/v1/keys/{customer.key_id}/rotate"
    first = await management.ok("POST", path, {"grace_seconds": 30 * DAY}, key=customer.key)
    assert first["previous_expires_at"] is not None
    # The old one may even rotate again.
    second = await management.ok("POST", path, {"grace_seconds": 60}, key=customer.key)
    for key in (customer.key, first["key"], second["key"]):
        assert (await management.ok("GET", "/user/balance", key=key))["user_id"] == customer.id
    management.connection.execute("set session_replication_role = replica")
    management.query(
        "update gateway.retired_secrets set expires_at = now() where key_id = %s returning 1", customer.key_id
    )
    management.connection.execute("set session_replication_role = origin")
    for key in (customer.key, first["key"]):
        assert_error(await management.call("GET", "/user/balance", key), 401, "invalid_api_key")
    await management.ok("GET", "/user/balance", key=second["key"])


@pytest.mark.parametrize("grace", [-1, 30 * DAY + 1, "60", 1.5, True, None])
async def test_grace_that_is_none_is_422(management: Management, grace: Any) -> None:
    customer = management.customer()
    path = f"/v1/keys/{customer.key_id}/rotate"
    refused = await management.call("POST", path, customer.key, {"grace_seconds": grace})
    assert_error(refused, 422, param="grace_seconds")
    await management.ok("GET", "/user/balance", key=customer.key)


async def test_revoked_key_is_neither_rotated_nor_changed(management: Management) -> None:
    customer = management.customer()
    _, key_id = management.key(customer.id, "chat")
    await management.ok("DELETE", f"/v1/keys/{key_id}", key=customer.key)
    for method, path in (("POST", f"/v1/keys/{key_id}/rotate"), ("PATCH", f"/v1/keys/{key_id}")):
        assert_error(await management.call(method, path, customer.key, {}), 409, "key_revoked")


async def test_admins_key_is_changed_by_an_admin_alone(management: Management) -> None:
    customer = management.customer()
    _, key_id = management.key(customer.id, "admin", "chat", "usage", "keys")
    for method, path in (("POST", f"/v1/keys/{key_id}/rotate"), ("PATCH", f"/v1/keys/{key_id}")):
        assert_error(await management.call(method, path, customer.key, {}), 403, "scope_missing")
        await management.ok(method, path, {})
    _, operator = management.key(None, "admin")
    await management.ok("POST", f"/v1/keys/{operator}/rotate")
    refused = await management.admin("PATCH", f"/v1/keys/{operator}", {"scopes": ["admin", "chat"]})
    assert_error(refused, 422, param="scopes")


async def test_each_field_is_changed_by_itself(management: Management) -> None:
    customer = management.customer()
    models = [await management.model() for _ in range(2)]
    path = f"/v1/keys/{customer.key_id}"
    was = await management.ok("GET", path)
    ids = sorted(model["id"] for model in models)
    changes: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {}),
        ({"name": "  laptop "}, {"name": "laptop"}),
        ({"scopes": ["chat", "keys", "chat"]}, {"scopes": ["chat", "keys"]}),
        ({"allowed_models": [models[0]["id"], models[1]["name"]]}, {"allowed_models": ids}),
        ({"allowed_models": []}, {"allowed_models": []}),
        ({"allowed_models": None}, {"allowed_models": None}),
        ({"expires_at": "2999-01-01T02:00:00+02:00"}, {"expires_at": "2999-01-01T00:00:00+00:00"}),
        ({"expires_at": None}, {"expires_at": None}),
        (
            {"limits": {"requests_per_day": 9, "spend_usd_per_month": "2.50"}},
            {
                "limits": {"requests_per_day": 9, "spend_usd_per_month": "2.5"},
                "warn": {"requests_per_day": 7, "spend_usd_per_month": "2"},
            },
        ),
        (
            {"limits": {"spend_usd_per_month": None}, "warn": {"requests_per_day": 3}},
            {"limits": {"requests_per_day": 9}, "warn": {"requests_per_day": 3}},
        ),
        (
            {"model_limits": {"*": {"requests_per_minute": 7}, models[0]["name"]: {"tokens_per_hour": 5}}},
            {
                "model_limits": {
                    "*": {"requests_per_minute": 7},
                    models[0]["name"]: {"tokens_per_hour": 5},
                },
                "rate_limit": 7,
            },
        ),
        (
            {"model_limits": {models[0]["name"]: {"tokens_per_hour": None}}, "warn_percent": 50},
            {"model_limits": {"*": {"requests_per_minute": 7}}},
        ),
    ]
    expected = was
    for body, changed in changes:
        expected = {**expected, **changed}
        told = await management.ok("PATCH", path, body)
        assert {**told, "scopes": sorted(told["scopes"])} == {
            **expected,
            "scopes": sorted(expected["scopes"]),
        }
        assert await management.ok("GET", path) == told


async def test_changed_models_bind_at_once(management: Management) -> None:
    customer = management.customer("5")
    model = await management.model()
    await management.ok("PATCH", f"/v1/keys/{customer.key_id}", {"allowed_models": []}, key=customer.key)
    body = {"model": model["name"], "messages": [{"role": "user", "content": "x"}]}
    refused = await management.call("POST", "/v1/chat/completions", customer.key, body)
    assert refused.status_code in {403, 404}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"name": None}, "name"),
        ({"name": ""}, "name"),
        ({"scopes": []}, "scopes"),
        ({"scopes": None}, "scopes"),
        ({"limits": None}, "limits"),
        ({"limits": {"requests_per_year": 1}}, "limits"),
        ({"limits": {"requests_per_minute": "1"}}, "limits.requests_per_minute"),
        ({"model_limits": {"no such model": {"requests_per_minute": 1}}}, "model_limits"),
        ({"model_limits": {"*": None}}, "model_limits.*"),
        ({"model_limits": {"": {}}}, None),
        ({"allowed_models": ["no such model"]}, "allowed_models"),
        ({"allowed_models": [2**62]}, "allowed_models"),
        ({"allowed_models": [True]}, "allowed_models.0"),
        ({"allowed_services": [2**62]}, "allowed_services"),
        ({"allowed_services": ["1"]}, "allowed_services.0"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"expires_at": "tomorrow"}, "expires_at"),
        ({"warn_percent": 101}, "warn_percent"),
        ({"active": False}, "active"),
        ({"customer_id": 1}, "customer_id"),
        ({"key": "sk_mine"}, "key"),
    ],
)
async def test_bad_change_is_422_and_changes_nothing(
    management: Management, body: dict[str, Any], param: str | None
) -> None:
    customer = management.customer()
    path = f"/v1/keys/{customer.key_id}"
    before = await management.ok("GET", path)
    assert_error(await management.admin("PATCH", path, body), 422, param=param)
    assert await management.ok("GET", path) == before


async def test_models_are_named_by_id_or_by_name(management: Management) -> None:
    customer = management.customer()
    models = [await management.model() for _ in range(2)]
    both = sorted(model["id"] for model in models)
    body = {"name": "x", "allowed_models": [models[0]["name"], models[1]["id"], models[1]["name"]]}
    made = await management.ok("POST", "/v1/keys", body, key=customer.key, status=201)
    assert made["allowed_models"] == both
    older = {"allowed_models": [models[0]["name"]]}
    assert (await management.ok("POST", "/api/keys", older, key=customer.key))["allowed_models"] == [
        models[0]["id"]
    ]
    refused = await management.call(
        "POST", "/v1/keys", customer.key, {"name": "x", "allowed_models": ["none"]}
    )
    assert_error(refused, 422, param="allowed_models")


async def test_limits_by_model_are_given_to_a_new_key(management: Management) -> None:
    customer = management.customer()
    model = await management.model()
    body = {
        "name": "x",
        "limits": {"requests_per_day": 10},
        "model_limits": {"*": {"requests_per_minute": 6}, model["name"]: {"tokens_per_day": 100}},
        "warn": {"requests_per_day": 2},
        "warn_percent": 50,
    }
    made = await management.ok("POST", "/v1/keys", body, key=customer.key, status=201)
    assert made["limits"] == body["limits"]
    assert made["model_limits"] == body["model_limits"]
    assert made["warn"] == {"requests_per_day": 2}
    assert (made["made_by_key_id"], made["rate_limit"]) == (customer.key_id, 6)
    marks = management.query(
        "select warn_requests, warn_tokens from gateway.limits where key_id = %s and per <> 'month'"
        " and (each_model or model_id is not null) order by each_model",
        made["id"],
    )
    assert marks == [(None, 50), (3, None)]
    unknown = {"name": "x", "model_limits": {"none": {"requests_per_minute": 1}}}
    assert_error(await management.call("POST", "/v1/keys", customer.key, unknown), 422, param="model_limits")


async def test_lists_are_narrowed(management: Management) -> None:
    mine, other = management.customer(), management.customer()
    _, off = management.key(mine.id, "chat")
    management.query("select api.set_key_state(%s, null, 'inactive')", off)

    async def ids(query: str, key: str | None = None) -> set[int]:
        listed = await management.ok("GET", f"/v1/keys?limit=200{query}", key=key)
        return {row["id"] for row in listed["data"]}

    assert await ids(f"&customer_id={mine.id}") == {mine.key_id, off}
    assert await ids(f"&customer_id={mine.id}&active=true") == {mine.key_id}
    assert await ids("&active=false", mine.key) == {off}
    assert await ids(f"&customer_id={mine.id}", mine.key) == {mine.key_id, off}
    assert await ids(f"&customer_id={2**62}") == set()
    foreign = await management.call("GET", f"/v1/keys?customer_id={other.id}", mine.key)
    assert_error(foreign, 404, "customer_not_found", "customer_id")
    for query, param in (("active=1", "active"), ("customer_id=x", "customer_id")):
        assert_error(await management.admin("GET", f"/v1/keys?{query}"), 422, param=param)


async def test_erased_customer_gets_no_key(management: Management) -> None:
    customer = management.customer()
    await management.ok("DELETE", f"/admin/customers/{customer.id}")
    refused = await management.admin("POST", "/v1/keys", {"name": "x", "customer_id": customer.id})
    assert_error(refused, 409, "customer_erased")
    older = await management.admin("POST", "/api/keys", {}, headers={"user": f"erased-{customer.id}"})
    assert_error(older, 409, "customer_erased")
