"""Who may call which route: the whole table, for every kind of caller."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gateway.auth import new_key
from gateway.openapi.document import ROUTES, route_name, template_path
from tests.fixtures.contract import contract
from tests.fixtures.management import Management, assert_error, management

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.http import Operation

__all__ = ["management"]

REQUEST_ID = f"req_{'0' * 32}"
# From the document, so that a new route is in it. The chat routes ask for the key in their admission.
OPERATIONS = [
    route.operation
    for route in contract().routes
    if route.operation.in_schema and not ROUTES[route_name(route.operation)].metered
]


def _listed(operations: Iterable[Operation]) -> list[tuple[str, str]]:
    return [
        (
            operation.method,
            template_path(operation.path)
            .replace("/requests/{id}", f"/requests/{REQUEST_ID}")
            .replace("{id}", "1")
            .replace("{customer_id}", "1")
            .replace("{name}", "a-model"),
        )
        for operation in operations
    ]


ADMIN_ROUTES = _listed(each for each in OPERATIONS if each.scope == "admin")
KEY_ROUTES = _listed(each for each in OPERATIONS if each.scope == "keys")
GUARDED_ROUTES = _listed(each for each in OPERATIONS if not ROUTES[route_name(each)].public)
PUBLIC_ROUTES = _listed(each for each in OPERATIONS if ROUTES[route_name(each)].public)


def test_the_table_names_the_routes() -> None:
    assert ("PATCH", "/admin/settings") in ADMIN_ROUTES
    assert ("POST", "/v1/keys/1/toggle") in KEY_ROUTES
    assert {("GET", "/user/balance"), ("GET", f"/v1/requests/{REQUEST_ID}")} <= set(GUARDED_ROUTES)
    assert ("GET", "/health") in PUBLIC_ROUTES


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
    # Stripe's events are signed; this gateway sells nothing, and says so.
    status = 501 if path == "/stripe/webhook" else 200
    assert (await management.call(method, path, None)).status_code == status
    assert (await management.call(method, path, "nonsense")).status_code == status


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
