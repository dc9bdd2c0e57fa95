"""Keys: what they may do lies within what their maker may."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.auth import is_key, key_hash, new_key
from tests.fixtures.management import Management, assert_error, management

__all__ = ["management"]

SHOWN = {
    "id",
    "customer_id",
    "name",
    "prefix",
    "active",
    "scopes",
    "allowed_models",
    "allowed_services",
    "created_at",
    "last_used_at",
    "expires_at",
    "revoked_at",
    "rate_limit",
    "limits",
    "model_limits",
    "warn",
    "made_by_key_id",
}
LATER = "2999-01-01T00:00:00Z"


async def test_new_key_is_shown_once_and_works(management: Management) -> None:
    customer = management.customer("1")
    response = await management.call("POST", "/v1/keys", customer.key, {"name": "  laptop "})
    assert response.status_code == 201
    assert response.headers["cache-control"] == "no-store"
    made = response.json()
    assert set(made) == {*SHOWN, "key"}
    assert is_key(made["key"])
    assert made["name"] == "laptop"
    assert made["prefix"] == f"{made['key'][:9]}…"
    assert made["active"] is True
    assert made["scopes"] == ["chat", "usage"]
    assert made["customer_id"] == customer.id
    assert made["allowed_models"] is None
    assert made["last_used_at"] is None
    assert made["rate_limit"] == 60

    read = await management.ok("GET", f"/v1/keys/{made['id']}", key=customer.key)
    assert set(read) == SHOWN
    assert read == {name: made[name] for name in SHOWN}
    # It authenticates, and nothing but its hash is kept.
    assert (await management.ok("GET", "/user/balance", key=made["key"]))["user_id"] == customer.id
    rows = management.value("select string_agg(k::text, '') from gateway.api_keys as k")
    audit = management.value("select string_agg(a::text, '') from gateway.audit_log as a")
    assert made["key"] not in rows + audit
    assert key_hash(made["key"]) in rows
    assert key_hash(made["key"]) not in audit
    assert made["key"] not in management.log.text
    actor = management.value(
        "select actor from gateway.audit_log where entity = 'api_keys' and entity_id = %s", str(made["id"])
    )
    assert actor == f"key {customer.key[:9]}…"


async def test_keys_are_listed_by_the_page(management: Management) -> None:
    customer = management.customer()
    others = [management.key(customer.id, "chat")[1] for _ in range(4)]
    first = await management.ok("GET", "/v1/keys?limit=3", key=customer.key)
    assert [row["id"] for row in first["data"]] == [customer.key_id, *others[:2]]
    second = await management.ok("GET", f"/v1/keys?limit=3&cursor={first['next_cursor']}", key=customer.key)
    assert [row["id"] for row in second["data"]] == others[2:]
    assert second["next_cursor"] is None
    assert all(set(row) == SHOWN for row in second["data"])
    assert await management.ok("GET", "/api/keys?limit=3", key=customer.key) == first


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=ten", "limit"),
        ("limit=٣", "limit"),
        ("cursor=-1", "cursor"),
        ("cursor=9223372036854775808", "cursor"),
        ("cursor='", "cursor"),
    ],
)
async def test_bad_page_is_422(management: Management, query: str, param: str) -> None:
    assert_error(await management.admin("GET", f"/v1/keys?{query}"), 422, param=param)


async def test_keys_of_another_customer_do_not_exist(management: Management) -> None:
    mine, other = management.customer(), management.customer()
    for method, path in (
        ("GET", f"/v1/keys/{other.key_id}"),
        ("DELETE", f"/v1/keys/{other.key_id}"),
        ("POST", f"/v1/keys/{other.key_id}/toggle"),
        ("POST", f"/api/keys/{other.key_id}/toggle"),
    ):
        assert_error(await management.call(method, path, mine.key), 404, "key_not_found")
    refused = await management.call("DELETE", "/api/keys", mine.key, {"key": other.key})
    assert_error(refused, 404, "key_not_found")
    listed = await management.ok("GET", "/v1/keys?limit=200", key=mine.key)
    assert {row["customer_id"] for row in listed["data"]} == {mine.id}
    assert management.value("select active from gateway.api_keys where id = %s", other.key_id)
    assert (await management.ok("GET", f"/v1/keys/{other.key_id}"))["customer_id"] == other.id


@pytest.mark.parametrize(
    "path", ["/v1/keys/x", "/v1/keys/-1", "/v1/keys/9223372036854775808", "/v1/keys/1e3"]
)
async def test_id_that_is_none_is_404(management: Management, path: str) -> None:
    assert_error(await management.admin("GET", path), 404)


@pytest.mark.parametrize("path", ["/v1/keys/{}/toggle", "/api/keys/{}/toggle"])
async def test_toggled_key_is_refused_until_toggled_again(management: Management, path: str) -> None:
    customer = management.customer()
    key, key_id = management.key(customer.id, "chat")
    url = path.format(key_id)
    assert await management.ok("POST", url, key=customer.key) == {"id": key_id, "active": False}
    assert_error(await management.call("GET", "/user/balance", key), 401, "invalid_api_key")
    assert await management.ok("POST", url, key=customer.key) == {"id": key_id, "active": True}
    await management.ok("GET", "/user/balance", key=key)


async def test_revoked_key_is_refused_for_good(management: Management) -> None:
    customer = management.customer()
    key, key_id = management.key(customer.id, "chat")
    told = await management.ok("DELETE", f"/v1/keys/{key_id}", key=customer.key)
    assert told == {"id": key_id, "active": False, "deleted": True}
    assert_error(await management.call("GET", "/user/balance", key), 401, "invalid_api_key")
    refused = await management.call("POST", f"/v1/keys/{key_id}/toggle", customer.key)
    assert_error(refused, 409, "key_revoked")
    await management.ok("DELETE", f"/v1/keys/{key_id}", key=customer.key)


async def test_older_delete_names_the_key_itself(management: Management) -> None:
    customer = management.customer()
    key, key_id = management.key(customer.id, "chat")
    told = await management.ok("DELETE", "/api/keys", {"key": key}, key=customer.key)
    assert told == {"id": key_id, "active": False, "deleted": True}
    assert_error(await management.call("GET", "/user/balance", key), 401)
    for unknown in (new_key(), "sk_nonsense", key[:-1]):
        refused = await management.call("DELETE", "/api/keys", customer.key, {"key": unknown})
        assert_error(refused, 404, "key_not_found")


async def test_older_create_answers_in_its_own_shape(management: Management) -> None:
    customer = management.customer()
    model = await management.model()
    made = await management.ok(
        "POST",
        "/api/keys",
        {"name": "Production Key", "allowed_models": [model["id"]], "customer_email": customer.email.upper()},
    )
    assert set(made) == {"id", "key", "name", "rate_limit", "allowed_models"}
    assert made["name"] == "Production Key"
    assert made["allowed_models"] == [model["id"]]
    assert made["rate_limit"] == 60
    assert (await management.ok("GET", "/user/balance", key=made["key"]))["user_id"] == customer.id
    own = await management.ok("POST", "/api/keys", {"rate_limit": 7}, key=customer.key)
    assert own["rate_limit"] == 7
    rows = management.query(
        "select per, requests from gateway.limits where key_id = %s and each_model", own["id"]
    )
    assert rows == [("minute", 7)]


async def test_older_create_takes_the_customer_from_the_user_header(management: Management) -> None:
    customer = management.customer()
    response = await management.admin("POST", "/api/keys", {}, headers={"user": customer.email})
    assert response.status_code == 200
    owner = management.value("select customer_id from gateway.api_keys where id = %s", response.json()["id"])
    assert owner == customer.id
    unknown = await management.admin("POST", "/api/keys", {}, headers={"user": "nobody"})
    assert_error(unknown, 404, "customer_not_found", "user")
    assert_error(await management.admin("POST", "/api/keys", {}), 422, param="customer_email")


async def test_customer_can_not_name_another_and_learns_nothing_of_it(management: Management) -> None:
    mine, other = management.customer(), management.customer()
    answers = [
        await management.call("POST", "/api/keys", mine.key, {"customer_email": email})
        for email in (other.email, "nobody@example.org")
    ]
    assert {assert_error(answer, 403, "scope_missing", "customer_email") for answer in answers} == {
        "Only an admin may make keys of another customer."
    }
    by_header = await management.call("POST", "/api/keys", mine.key, {}, headers={"user": other.email})
    assert_error(by_header, 403, "scope_missing", "user")
    by_id = await management.call("POST", "/v1/keys", mine.key, {"name": "x", "customer_id": other.id})
    assert_error(by_id, 403, "scope_missing", "customer_id")
    await management.ok("POST", "/v1/keys", {"name": "x", "customer_id": mine.id}, key=mine.key, status=201)


async def test_scopes_lie_within_the_makers(management: Management) -> None:
    customer = management.customer(scopes=("usage", "keys"))
    made = await management.ok("POST", "/v1/keys", {"name": "x"}, key=customer.key, status=201)
    assert made["scopes"] == ["usage"]
    for scope in ("chat", "billing", "admin"):
        body = {"name": "x", "scopes": ["usage", scope]}
        refused = await management.call("POST", "/v1/keys", customer.key, body)
        assert_error(refused, 403, "exceeds_maker", "scopes")
    bare = management.customer(scopes=("keys",))
    assert_error(await management.call("POST", "/v1/keys", bare.key, {"name": "x"}), 422, param="scopes")


async def test_only_an_admin_makes_an_admin_key(management: Management) -> None:
    body = {"name": "second operator", "scopes": ["admin"]}
    made = await management.ok("POST", "/v1/keys", body, status=201)
    assert made["customer_id"] is None
    await management.ok("GET", "/admin/balance", key=made["key"])
    # A key of nobody is for administration alone: there is nobody to pay for its calls.
    refused = await management.admin("POST", "/v1/keys", {"name": "x", "scopes": ["admin", "chat"]})
    assert_error(refused, 422, param="customer_id")
    assert_error(await management.admin("POST", "/v1/keys", {"name": "x"}), 422, param="customer_id")


async def test_customer_can_not_switch_on_an_admin_key(management: Management) -> None:
    customer = management.customer()
    _, key_id = management.key(customer.id, "admin", "chat")
    await management.ok("POST", f"/v1/keys/{key_id}/toggle")
    for method, path in (("POST", f"/v1/keys/{key_id}/toggle"), ("DELETE", f"/v1/keys/{key_id}")):
        assert_error(await management.call(method, path, customer.key), 403, "scope_missing")
    assert not management.value("select active from gateway.api_keys where id = %s", key_id)


async def test_models_and_services_lie_within_the_makers(management: Management) -> None:
    customer = management.customer()
    first, second = [(await management.model())["id"] for _ in range(2)]
    service = await management.ok(
        "POST",
        "/admin/services",
        {"name": "of keys", "provider": "openai-compatible", "base_url": "https://8.8.8.8/v1"},
        status=201,
    )
    body = {
        "name": "maker",
        "customer_id": customer.id,
        "scopes": ["chat", "keys"],
        "allowed_models": [first],
        "allowed_services": [service["id"]],
    }
    maker = await management.ok("POST", "/v1/keys", body, status=201)
    heir = await management.ok("POST", "/v1/keys", {"name": "heir"}, key=maker["key"], status=201)
    assert (heir["allowed_models"], heir["allowed_services"]) == ([first], [service["id"]])
    none = await management.ok(
        "POST", "/v1/keys", {"name": "none", "allowed_models": []}, key=maker["key"], status=201
    )
    assert none["allowed_models"] == []
    for field, ids in (("allowed_models", [first, second]), ("allowed_services", [service["id"] + 1])):
        refused = await management.call("POST", "/v1/keys", maker["key"], {"name": "x", field: ids})
        assert_error(refused, 403, "exceeds_maker", field)
        unknown = {"name": "x", "customer_id": customer.id, field: [2**62]}
        assert_error(await management.admin("POST", "/v1/keys", unknown), 422, param=field)


def limits_of(management: Management, key_id: int) -> dict[str, Any]:
    rows = management.query(
        "select coalesce(m.name, case when l.each_model then '*' end), l.per, l.requests, l.tokens,"
        " l.spend_usd::text from gateway.limits as l left join gateway.models as m on m.id = l.model_id"
        " where key_id = %s",
        key_id,
    )
    return {f"{name or ''}/{per}": tuple(figures) for name, per, *figures in rows}


async def test_limits_of_a_key_bind_the_keys_that_it_makes(management: Management) -> None:
    customer = management.customer()
    await management.ok(
        "POST",
        "/admin/limit",
        {
            "key_id": customer.key_id,
            "rate_limits": {"requests_per_minute": 30, "spend_usd_per_day": "1.5", "tokens_per_hour": 1000},
        },
    )
    heir = await management.ok("POST", "/v1/keys", {"name": "x"}, key=customer.key, status=201)
    assert limits_of(management, heir["id"]) == limits_of(management, customer.key_id)
    limits: dict[str, Any] = {
        "requests_per_minute": 10,
        "spend_usd_per_day": "1.4999999999",
        "tokens_per_day": 5,
    }
    tighter = await management.ok(
        "POST", "/v1/keys", {"name": "x", "limits": limits}, key=customer.key, status=201
    )
    assert limits_of(management, tighter["id"]) == {
        "/minute": (10, None, None),
        "/hour": (None, 1000, None),
        "/day": (None, 5, "1.4999999999"),
    }
    before = management.value("select count(*) from gateway.api_keys")
    for looser in ({"requests_per_minute": 31}, {"spend_usd_per_day": "1.5000000001"}):
        body = {"name": "x", "limits": looser}
        refused = await management.call("POST", "/v1/keys", customer.key, body)
        assert_error(refused, 403, "exceeds_maker", "limits")
    assert management.value("select count(*) from gateway.api_keys") == before


async def test_the_default_limit_can_not_be_escaped_by_a_limit_of_ones_own(management: Management) -> None:
    """A key's own row takes the place of the default of 60 a minute: so it must not be looser."""
    customer = management.customer()
    body = {"name": "x", "limits": {"requests_per_minute": 61}}
    assert_error(await management.call("POST", "/v1/keys", customer.key, body), 403, "exceeds_maker")
    refused = await management.call("POST", "/api/keys", customer.key, {"rate_limit": 61})
    assert_error(refused, 403, "exceeds_maker")
    made = await management.ok("POST", "/api/keys", {"rate_limit": 60}, key=customer.key)
    assert made["rate_limit"] == 60
    free = await management.ok("POST", "/v1/keys", {**body, "customer_id": customer.id}, status=201)
    assert limits_of(management, free["id"]) == {"/minute": (61, None, None)}


async def test_expiry_lies_in_the_future(management: Management) -> None:
    customer = management.customer()
    made = await management.ok(
        "POST",
        "/v1/keys",
        {"name": "x", "expires_at": "2999-01-01T02:00:00+02:00"},
        key=customer.key,
        status=201,
    )
    assert made["expires_at"] == "2999-01-01T00:00:00+00:00"
    past = await management.call(
        "POST", "/v1/keys", customer.key, {"name": "x", "expires_at": "2020-01-01T00:00:00Z"}
    )
    assert_error(past, 422, param="expires_at")


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 422, "name"),
        ({"name": ""}, 422, "name"),
        ({"name": "   "}, 422, "name"),
        ({"name": "x" * 201}, 422, "name"),
        ({"name": 1}, 422, "name"),
        ({"name": "a\nb"}, 422, "name"),
        ({"name": "x", "nmae": "y"}, 422, "nmae"),
        ({"name": "x", "scopes": []}, 422, "scopes"),
        ({"name": "x", "scopes": ["root"]}, 422, "scopes.0"),
        ({"name": "x", "scopes": "chat"}, 422, "scopes"),
        ({"name": "x", "allowed_models": [True]}, 422, "allowed_models.0"),
        ({"name": "x", "allowed_models": ["1"]}, 422, "allowed_models"),
        ({"name": "x", "allowed_models": [""]}, 422, "allowed_models.0"),
        ({"name": "x", "allowed_models": [2**63]}, 422, "allowed_models.0"),
        ({"name": "x", "allowed_models": [1.5]}, 422, "allowed_models.0"),
        ({"name": "x", "expires_at": "tomorrow"}, 422, "expires_at"),
        ({"name": "x", "expires_at": "2999-01-01T00:00:00"}, 422, "expires_at"),
        ({"name": "x", "expires_at": "0001-01-01T00:00:00+14:00"}, 422, "expires_at"),
        ({"name": "x", "expires_at": 32503680000}, 422, "expires_at"),
        ({"name": "x", "limits": {"requests_per_year": 1}}, 422, "limits"),
        ({"name": "x", "limits": {"requests_per_minute": -1}}, 422, "limits.requests_per_minute"),
        ({"name": "x", "limits": {"requests_per_minute": 2.0}}, 422, "limits.requests_per_minute"),
        ([], 422, None),
        ("text", 422, None),
    ],
)
async def test_bad_key_request_is_refused(
    management: Management, body: Any, status: int, param: str | None
) -> None:
    customer = management.customer()
    assert_error(await management.call("POST", "/v1/keys", customer.key, body), status, param=param)


@pytest.mark.parametrize(
    "raw", [b"", b"{", b'{"name": "\\u0000"}', b'{"name": "a\xff"}', b'{"name": NaN}', b"[" * 500]
)
async def test_body_that_is_no_json_is_400(management: Management, raw: bytes) -> None:
    customer = management.customer()
    assert_error(await management.call("POST", "/v1/keys", customer.key, content=raw), 400, "invalid_json")


async def test_unknown_customer_is_404(management: Management) -> None:
    refused = await management.admin("POST", "/v1/keys", {"name": "x", "customer_id": 2**62})
    assert_error(refused, 404, "customer_not_found", "customer_id")
