"""Nothing of one customer reaches another, on any route of the document: a new one is covered unnamed.

Customer B is full of canaries: names, addresses, ids, prefixes, figures that occur nowhere else. Customer A
calls every route with each of its keys and as a person, and names B wherever a path, a query, a header or a
body takes anything. No answer may hold a canary that A did not send, and nothing of B may change.
"""

from __future__ import annotations

import itertools
import json
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pytest

from gateway.auth import key_hash, key_prefix, new_key
from gateway.database.rpc import Admission, Settlement
from gateway.http import new_request_id
from gateway.openapi.document import ROUTES, route_name, template_path
from tests.fixtures.contract import contract
from tests.fixtures.management import Management, management
from tests.fixtures.stripe_server import StripeServer, stripe_server, stripe_server_process

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import httpx

    from gateway.http import Operation

__all__ = ["management", "stripe_server", "stripe_server_process"]

OPERATIONS = [route.operation for route in contract().routes if route.operation.in_schema]
GUARDED = [operation for operation in OPERATIONS if not ROUTES[route_name(operation)].public]
ADMINS = [operation for operation in GUARDED if operation.scope == "admin"]
MODEL = "gpt-4o-mini"
"""The one of the document's examples."""
IDENTITY = {"customer_id", "user_id", "email", "customer_email", "key_id", "api_key", "key", "user"}
"""Whoever names somebody else by one of these, where the route knows it, is refused."""
ALWAYS_TRIED = ("customer_id", "user_id", "email", "customer", "key_id", "api_key", "username", "user")
SCOPES = ("chat", "usage", "keys", "billing")
WIDEST = ("a key with every scope", "a person")
"""The callers that may do most: what they can't reach, the others can't."""
_worlds = itertools.count(1)


@pytest.fixture
def more_settings(stripe_server: StripeServer) -> dict[str, Any]:
    """Credits are sold here, so that no route refuses everybody alike."""
    return stripe_server.settings


@dataclass(frozen=True, slots=True)
class Other:
    """Customer B: what identifies it, and all that must not be seen."""

    id: int
    email: str
    username: str
    key: str
    key_id: int
    request_id: str
    canaries: Mapping[str, str]

    @property
    def names(self) -> tuple[int | str, ...]:
        return (self.id, self.key_id, self.request_id, self.email, self.username, self.key)


@dataclass(slots=True)
class World:
    management: Management
    other: Other
    callers: dict[str, str]
    """A's credentials by what they are."""
    before: str = field(init=False)

    def __post_init__(self) -> None:
        self.before = self.state()

    def state(self) -> str:
        """Everything that the database has of B, but when its key was last used."""
        return str(
            self.management.value(
                "select jsonb_build_object("
                "'customer', (select to_jsonb(c) from gateway.customers c where id = %(id)s),"
                "'account', (select to_jsonb(a) from gateway.accounts a where customer_id = %(id)s),"
                "'keys', (select jsonb_agg(to_jsonb(k) order by id) from gateway.api_keys k"
                "    where customer_id = %(id)s),"
                "'entries', (select jsonb_agg(to_jsonb(e) order by id) from gateway.ledger_entries e"
                "    where customer_id = %(id)s),"
                "'limits', (select jsonb_agg(to_jsonb(l) order by id) from gateway.limits l"
                "    where customer_id = %(id)s or key_id in"
                "        (select id from gateway.api_keys where customer_id = %(id)s)),"
                "'requests', (select jsonb_agg(to_jsonb(r) order by id) from gateway.requests r"
                "    where customer_id = %(id)s))::text".replace("%(id)s", str(self.other.id))
            )
        )

    async def call(
        self,
        credential: str | None,
        operation: Operation,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
    ) -> httpx.Response:
        options: dict[str, Any] = {"params": query} if query else {}
        return await self.management.call(
            operation.method, path, credential, body, headers=dict(headers or {}), **options
        )

    def leaks(self, response: httpx.Response) -> set[str]:
        """The canaries in an answer, but those that its request held."""
        request = response.request
        sent = f"{unquote(str(request.url))} {list(request.headers.items())} {request.content.decode()}"
        told = f"{response.text} {list(response.headers.items())}"
        return {name for name, canary in self.other.canaries.items() if canary in told and canary not in sent}


def text(value: Any) -> str:
    return str(value)


async def make_request(
    management: Management, key: str, *, tokens: int, idempotency_key: str | None = None
) -> str:
    """A settled call of so many tokens; its id."""
    admission = await management.process.database.admit_request(
        key_hash=key_hash(key),
        request_id=new_request_id(),
        models=[MODEL],
        endpoint="chat.completions",
        lease_seconds=60,
        input_tokens_bound=tokens,
        max_output_tokens=100,
        idempotency_key=idempotency_key,
        body_hash="0" * 64 if idempotency_key else None,
    )
    assert isinstance(admission, Admission), admission
    settlement = Settlement(
        request_id=admission.request_id,
        admitted_at=admission.admitted_at,
        outcome="succeeded",
        status=200,
        latency_ms=120,
        route_id=admission.candidates[0].route_id,
        usage={"input": tokens, "output": 5},
        finish_reason="stop",
    )
    assert await management.process.database.settle_request(settlement.as_json())
    return admission.request_id


async def served_model(management: Management) -> None:
    known = management.query("select 1 from gateway.models where name = %s", MODEL)
    if not known:
        await management.model(MODEL)
        service = {
            "name": "service",
            "provider": "openai-compatible",
            "base_url": "https://8.8.8.8/v1",
            "enabled_models": [MODEL],
        }
        await management.ok("POST", "/admin/services", service, status=201)


async def make_other(management: Management, number: int) -> Other:
    mark = f"canary{uuid.uuid4().hex[:10]}"
    # Ids that stand for nothing else, so that they are canaries themselves.
    for table in ("customers", "api_keys", "ledger_entries", "limits"):
        management.query(
            "select setval(pg_get_serial_sequence(%s, 'id'), %s)",
            f"gateway.{table}",
            910_000_000 + number * 1000,
        )
    email, username = f"{mark}mail@example.org", f"{mark}user"
    made = management.value(
        "select api.create_customer(%s, %s, %s, %s)", f"{mark}name", email, f"{mark}company", username
    )
    customer_id = made["id"]
    management.query(
        "select api.add_credits(p_customer_id => %s, p_usd => 7391.24681, p_reference => %s, p_note => %s)",
        customer_id,
        f"{mark}reference",
        f"{mark}note",
    )
    key = new_key()
    key_id = management.value(
        "select api.create_key(%s, %s, %s, %s, %s)",
        customer_id,
        f"{mark}key",
        key_prefix(key),
        key_hash(key),
        list(SCOPES),
    )["id"]
    management.query(
        "select api.set_limits(p_key_id => %s, p_rate_limits => %s::jsonb)",
        key_id,
        json.dumps({"requests_per_minute": 7_391_357, "spend_usd_per_day": "7391.3579"}),
    )
    request_id = await make_request(management, key, tokens=7_654_321, idempotency_key=f"{mark}idempotency")
    account = await management.ok("GET", "/user/balance", key=key)
    record = await management.ok("GET", f"/v1/requests/{request_id}", key=key)
    canaries = {
        "name": f"{mark}name",
        "email": email,
        "username": username,
        "company": f"{mark}company",
        "reference": f"{mark}reference",
        "note": f"{mark}note",
        "key name": f"{mark}key",
        "key": key,
        "prefix": key_prefix(key).removesuffix("…"),
        "customer id": text(customer_id),
        "key id": text(key_id),
        "request id": request_id,
        "balance": account["balance_usd"],
        "credits": text(account["credits"]),
        "charge": record["charge_usd"],
        "tokens": "7654321",
        "total tokens": "7654326",
        "limit": "7391357",
        "spend limit": "7391.3579",
    }
    return Other(customer_id, email, username, key, key_id, request_id, canaries)


async def make_callers(management: Management) -> dict[str, str]:
    """Customer A, with a call of its own and nothing left to pay another with: none goes to a provider."""
    customer = management.customer("1", scopes=SCOPES)
    await make_request(management, customer.key, tokens=20)
    management.query(
        "select api.add_credits(p_customer_id => %(id)s, p_usd =>"
        " -(select balance_usd from gateway.accounts where customer_id = %(id)s))".replace(
            "%(id)s", str(customer.id)
        )
    )
    return {
        "a key with every scope": customer.key,
        **{f"a key with {scope}": management.key(customer.id, scope)[0] for scope in SCOPES},
        "a person": management.person(customer),
    }


@pytest.fixture
async def world(management: Management) -> World:
    # These tests send what no route documents.
    management.client.event_hooks = {}
    await served_model(management)
    callers = await make_callers(management)
    return World(management, await make_other(management, next(_worlds)), callers)


def paths(operation: Operation, other: Other) -> Iterator[str]:
    """The paths of a route with each thing that names B, or the one path that there is."""
    template = template_path(operation.path)
    if "{" not in template:
        yield template
        return
    before, _, after = template.partition("{")
    for name in other.names:
        yield f"{before}{name}{after.partition('}')[2]}"


def documented(operation: Operation, where: str) -> set[str]:
    entry = contract().document["paths"][template_path(operation.path)][operation.method.lower()]
    return {parameter["name"] for parameter in entry["parameters"] if parameter["in"] == where}


def bodies(operation: Operation, other: Other) -> Iterator[tuple[str | None, Any]]:
    """The example as it is, then with each field naming B in each way; the field, and the body."""
    example = ROUTES[route_name(operation)].request
    if operation.body is None or example is None:
        yield None, None
        return
    yield None, dict(example)
    for name in operation.body.model_fields:
        for value in (*other.names, [other.id, other.key_id]):
            yield name, {**example, name: value}
    for name in ALWAYS_TRIED:
        for value in (other.id, other.email):
            yield name, {**example, name: value}


def assert_kept_apart(world: World, response: httpx.Response, caller: str, *, named: bool) -> None:
    request = response.request
    told = f"{caller}: {request.method} {request.url} {request.content[:300]!r} → {response.text[:300]}"
    assert not world.leaks(response), (world.leaks(response), told)
    assert response.status_code < 500, told
    if named:
        assert response.status_code >= 400, f"it may name another customer: {told}"


@pytest.mark.parametrize("operation", GUARDED, ids=route_name)
async def test_nothing_of_another_customer_is_told_or_changed(world: World, operation: Operation) -> None:
    in_path = "{" in operation.path and "/models/" not in operation.path
    plain = next(bodies(operation, world.other))[1]
    for caller, credential in world.callers.items():
        for path in paths(operation, world.other):
            response = await world.call(credential, operation, path, body=plain)
            assert_kept_apart(world, response, caller, named=in_path)
    path = list(paths(operation, world.other))[:2][-1]
    for caller in WIDEST:
        for name, body in bodies(operation, world.other):
            response = await world.call(world.callers[caller], operation, path, body=body)
            known = operation.body is not None and name in operation.body.model_fields
            named = in_path or (known and name in IDENTITY)
            assert_kept_apart(world, response, caller, named=named)
    assert world.state() == world.before


@pytest.mark.parametrize("operation", GUARDED, ids=route_name)
async def test_queries_and_headers_that_name_another_customer_find_nothing(
    world: World, operation: Operation
) -> None:
    other = world.other
    path = next(paths(operation, other))
    example = ROUTES[route_name(operation)].request
    body = None if operation.body is None or example is None else dict(example)
    queries, headers = documented(operation, "query"), documented(operation, "header")
    for caller in WIDEST:
        credential = world.callers[caller]
        for name in sorted({*queries, *ALWAYS_TRIED}):
            for value in other.names if name in queries else (other.id, other.email):
                response = await world.call(credential, operation, path, query={name: value}, body=body)
                named = name in IDENTITY and name in queries
                assert_kept_apart(world, response, caller, named=named)
        idempotency_key = other.canaries["name"].removesuffix("name") + "idempotency"
        for name in sorted({*headers, "user", "x-customer-id", "x-user-id"}):
            value = idempotency_key if name == "Idempotency-Key" else other.username
            response = await world.call(credential, operation, path, headers={name: value}, body=body)
            assert_kept_apart(world, response, caller, named=name in headers and name in IDENTITY)
        # Two keys at once: neither wins.
        response = await world.call(credential, operation, path, headers={"api-key": other.key}, body=body)
        assert response.status_code == 401
        assert not world.leaks(response)
    assert world.state() == world.before


@pytest.mark.parametrize("operation", ADMINS, ids=route_name)
async def test_admin_route_refuses_whoever_is_no_admin(world: World, operation: Operation) -> None:
    management, path = world.management, next(paths(operation, world.other))
    example = ROUTES[route_name(operation)].request
    body = None if example is None else dict(example)
    expired, expired_id = management.key(None, "admin")
    management.query(
        "update gateway.api_keys set created_at = now() - interval '2 days',"
        " expires_at = now() - interval '1 day' where id = %s returning id",
        expired_id,
    )
    revoked, revoked_id = management.key(None, "admin")
    management.query("select api.set_key_state(%s, null, 'revoked')", revoked_id)
    inactive, inactive_id = management.key(None, "admin")
    management.query("select api.set_key_state(%s, null, 'inactive')", inactive_id)
    auth = management.auth
    unknown = {
        "nobody": None,
        "an expired admin key": expired,
        "a revoked admin key": revoked,
        "an admin key that is off": inactive,
        "a key that there is not": new_key(),
        "an expired token": auth.token(admin=True, iat=1, exp=2),
        "a token for another audience": auth.token(admin=True, aud="anon"),
        "a token of another issuer": auth.token(admin=True, iss="https://elsewhere.example.com/auth/v1"),
        "the project's own service_role": auth.token(admin=True, role="service_role"),
    }
    for caller, credential in unknown.items():
        response = await world.call(credential, operation, path, body=body)
        assert response.status_code == 401, (caller, response.text)
    for caller, credential in world.callers.items():
        response = await world.call(credential, operation, path, body=body)
        assert response.status_code == 403, (caller, response.text)
        assert not world.leaks(response)
    assert world.state() == world.before


async def test_the_canaries_are_seen_where_they_may_be_seen(world: World) -> None:
    """By an admin and by B itself: else the tests above would look for what is nowhere."""
    seen: set[str] = set()
    for operation in OPERATIONS:
        if operation.method == "GET":
            for path in paths(operation, world.other):
                for credential in (world.management.admin_key, world.other.key):
                    # The next page begins before B's ids.
                    query = (
                        {"cursor": world.other.id - 1} if "cursor" in documented(operation, "query") else None
                    )
                    for asked in (None, query):
                        response = await world.call(credential, operation, path, query=asked)
                        seen |= world.leaks(response)
    assert {
        "name",
        "email",
        "username",
        "company",
        "key name",
        "prefix",
        "customer id",
        "key id",
        "request id",
        "balance",
        "credits",
        "charge",
        "tokens",
        "total tokens",
        "limit",
        "spend limit",
    } <= seen


async def test_a_change_of_the_other_customer_would_be_seen(world: World) -> None:
    await world.management.ok("POST", f"/v1/keys/{world.other.key_id}/toggle", key=world.other.key)
    assert world.state() != world.before
