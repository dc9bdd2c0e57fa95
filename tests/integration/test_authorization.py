"""Who may call which route: the whole table, for every kind of caller."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gateway import admin, keys, openapi, usage
from gateway.auth import new_key
from tests.fixtures.management import Management, assert_error, management

if TYPE_CHECKING:
    from gateway.runtime.process import Process

__all__ = ["management"]

ADMIN_ROUTES = [
    ("POST", "/customers"),
    ("POST", "/admin/create_user"),
    ("POST", "/admin/add_credits"),
    ("GET", "/admin/balance"),
    ("POST", "/admin/limit"),
    ("GET", "/admin/services"),
    ("POST", "/admin/services"),
    ("GET", "/admin/services/1"),
    ("PATCH", "/admin/services/1"),
    ("DELETE", "/admin/services/1"),
    ("GET", "/admin/models"),
    ("POST", "/admin/models"),
    ("GET", "/admin/prices"),
    ("POST", "/admin/prices"),
    ("GET", "/admin/settings"),
    ("PATCH", "/admin/settings"),
    ("GET", "/admin/ledger/check"),
]
KEY_ROUTES = [
    ("POST", "/v1/keys"),
    ("GET", "/v1/keys"),
    ("GET", "/v1/keys/1"),
    ("PATCH", "/v1/keys/1"),
    ("POST", "/v1/keys/1/rotate"),
    ("DELETE", "/v1/keys/1"),
    ("POST", "/v1/keys/1/toggle"),
    ("POST", "/api/keys"),
    ("GET", "/api/keys"),
    ("DELETE", "/api/keys"),
    ("POST", "/api/keys/1/toggle"),
]
USAGE_ROUTES = [
    ("GET", "/user/balance"),
    ("GET", "/user/monitor"),
    ("GET", "/user/limit"),
    ("GET", "/v1/usage"),
    ("GET", "/v1/requests"),
    ("GET", f"/v1/requests/req_{'0' * 32}"),
    ("GET", "/v1/key"),
    ("GET", "/v1/credits"),
    ("GET", "/api/usage"),
]
PUBLIC_ROUTES = [
    ("GET", "/"),
    ("GET", "/health"),
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
    ("GET", "/redoc"),
]
GUARDED_ROUTES = ADMIN_ROUTES + KEY_ROUTES + USAGE_ROUTES


def routes(process: Process) -> set[tuple[str, str]]:
    return {
        (operation.method, operation.path)
        for function in (admin, keys, usage, openapi)
        for operation in function.operations(process)
        if operation.in_schema
    }


async def test_the_table_names_every_route(management: Management) -> None:
    """A new route must be put into this file, too."""
    listed = {
        (method, path.replace("/1", "/{id}").replace(f"req_{'0' * 32}", "{id}"))
        for method, path in GUARDED_ROUTES + PUBLIC_ROUTES
    }
    assert listed == routes(management.process)


@pytest.mark.parametrize(("method", "path"), GUARDED_ROUTES)
async def test_caller_without_a_good_key_is_401(management: Management, method: str, path: str) -> None:
    assert_error(await management.call(method, path, None), 401, "missing_api_key")
    customer = management.customer(scopes=("chat", "usage", "keys", "billing"))
    revoked, revoked_id = management.key(customer.id, "keys", "usage")
    management.query("select api.set_key_state(%s, null, 'revoked')", revoked_id)
    inactive, inactive_id = management.key(customer.id, "keys", "usage")
    management.query("select api.set_key_state(%s, null, 'inactive')", inactive_id)
    expired, expired_id = management.key(customer.id, "keys", "usage")
    management.query(
        "update gateway.api_keys set expires_at = now() - interval '1 second' where id = %s returning id",
        expired_id,
    )
    messages = set()
    for key in (new_key(), "sk_mistyped", "sb_secret_not_ours", revoked, inactive, expired):
        response = await management.call(method, path, key)
        messages.add(assert_error(response, 401, "invalid_api_key"))
        assert response.headers["www-authenticate"] == "Bearer"
    # One answer for all of them: which of them it was is not told.
    assert len(messages) == 1


@pytest.mark.parametrize(("method", "path"), GUARDED_ROUTES)
async def test_suspended_customer_is_403(management: Management, method: str, path: str) -> None:
    customer = management.customer(scopes=("chat", "usage", "keys", "billing", "admin"))
    management.query("update gateway.customers set active = false where id = %s returning id", customer.id)
    assert_error(await management.call(method, path, customer.key), 403, "customer_suspended")


@pytest.mark.parametrize(("method", "path"), ADMIN_ROUTES)
async def test_customer_is_no_admin(management: Management, method: str, path: str) -> None:
    customer = management.customer(scopes=("chat", "usage", "keys", "billing"))
    # Refused before the body is read, which is not even JSON.
    response = await management.call(method, path, customer.key, content=b"{")
    assert_error(response, 403, "scope_missing")


@pytest.mark.parametrize(("method", "path"), KEY_ROUTES)
async def test_keys_need_the_scope_keys(management: Management, method: str, path: str) -> None:
    customer = management.customer(scopes=("chat", "usage", "billing"))
    response = await management.call(method, path, customer.key, content=b"{")
    message = assert_error(response, 403, "scope_missing")
    assert "'keys'" in message


@pytest.mark.parametrize(
    ("path", "scopes"),
    [
        ("/user/monitor", ("usage", "chat")),
        ("/v1/usage", ("usage", "chat")),
        ("/v1/requests", ("usage", "chat")),
        (f"/v1/requests/req_{'0' * 32}", ("usage", "chat")),
        ("/api/usage", ("usage",)),
        ("/user/balance", ("usage", "chat", "keys", "billing")),
        ("/user/limit", ("usage", "chat", "keys", "billing")),
        ("/v1/key", ("usage", "chat", "keys", "billing")),
        ("/v1/credits", ("usage", "chat", "keys", "billing")),
    ],
)
async def test_which_scopes_open_a_route_of_usage(
    management: Management, path: str, scopes: tuple[str, ...]
) -> None:
    for scope in ("usage", "chat", "keys", "billing"):
        customer = management.customer(scopes=(scope,))
        response = await management.call("GET", path, customer.key)
        if scope in scopes:
            assert response.status_code == (404 if "req_" in path else 200), response.text
        else:
            assert_error(response, 403, "scope_missing")


@pytest.mark.parametrize(("method", "path"), PUBLIC_ROUTES)
async def test_public_route_needs_no_key(management: Management, method: str, path: str) -> None:
    assert (await management.call(method, path, None)).status_code == 200
    assert (await management.call(method, path, "nonsense")).status_code == 200


@pytest.mark.parametrize("header", ["authorization", "x-api-key", "api-key"])
async def test_key_is_taken_from_each_header(management: Management, header: str) -> None:
    customer = management.customer()
    value = f"Bearer {customer.key}" if header == "authorization" else customer.key
    response = await management.call("GET", "/user/balance", None, headers={header: value})
    assert response.json()["user_id"] == customer.id


async def test_a_customers_admin_key_is_an_admins(management: Management) -> None:
    customer = management.customer("1", scopes=("chat", "admin"))
    await management.ok("GET", "/admin/settings", key=customer.key)
    assert (await management.ok("GET", "/user/balance", key=customer.key))["user_id"] == customer.id


async def test_unknown_route_and_method_have_the_contracts_error(management: Management) -> None:
    assert_error(await management.call("GET", "/admin/nothing", None), 404, "unknown_route")
    assert_error(await management.call("GET", "/", None, headers={"x": "y"}, params={"a": "\0"}), 400)
    refused = await management.call("PUT", "/v1/keys", None)
    assert_error(refused, 405, "method_not_allowed")
    assert refused.headers["allow"] == "GET, HEAD, POST"
