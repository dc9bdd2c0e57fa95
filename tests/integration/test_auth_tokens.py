"""Access tokens of Supabase Auth, against a real server of keys: which are taken, of whom, and for what."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from pydantic import SecretStr

from gateway import auth_tokens
from gateway.auth_tokens import AuthTokens
from gateway.errors import Forbidden, Unauthorized, Unavailable
from gateway.principals import authenticate, require_key
from gateway.settings import Settings
from tests.fixtures.auth_server import KID, SOMEBODY, AuthServer, SigningKey, encode, hmac_signed
from tests.fixtures.certificates import authorities
from tests.fixtures.management import Management, assert_error, management

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

__all__ = ["management"]


@pytest.fixture(autouse=True)
def somebody(request: pytest.FixtureRequest) -> None:
    """Give the database of a test that has one its table of users, with the one that tokens are of."""
    if "management" in request.fixturenames:
        made: Management = request.getfixturevalue("management")
        made.auth.user(made.connection, None, SOMEBODY)


SECRET = "the-shared-secret-of-an-older-project, long enough for its longer brothers, too"
ADMIN: dict[str, Any] = {"app_metadata": {"role": "admin"}}


def header(**others: Any) -> dict[str, Any]:
    return {"alg": "ES256", "typ": "JWT", "kid": KID, **others}


def resigned(auth: AuthServer, head: dict[str, Any], claims: dict[str, Any]) -> str:
    """A token with any header, signed by the right key."""
    text = f"{encode(head)}.{encode(claims)}"
    return f"{text}.{encode(ECAlgorithm(ECAlgorithm.SHA256).sign(text.encode(), auth.key.private))}"


def repeated(auth: AuthServer, name: str, first: Any, second: Any) -> str:
    """A token in which one claim stands twice."""
    claims = auth.claims(**ADMIN)
    claims.pop(name)
    text = json.dumps(claims)[:-1] + f', "{name}": {json.dumps(first)}, "{name}": {json.dumps(second)}}}'
    return auth.key.sign(text.encode())


def raw(auth: AuthServer, name: str, value: str) -> str:
    """A token in which one claim is written as `value`."""
    claims = auth.claims(**ADMIN)
    claims.pop(name, None)
    return auth.key.sign((json.dumps(claims)[:-1] + f', "{name}": {value}}}').encode())


def with_claims(token: str, claims: dict[str, Any]) -> str:
    head, _, signature = token.split(".")
    return f"{head}.{encode(claims)}.{signature}"


OTHER = SigningKey()
# All of them are an admin's by their claims: what is taken wrongly opens everything.
BAD: dict[str, Callable[[AuthServer], str]] = {
    "signed by another key": lambda auth: OTHER.sign(auth.claims(**ADMIN)),
    "signed by another key, of an unknown id": lambda auth: OTHER.sign(auth.claims(**ADMIN), kid="another"),
    "signed by another key, which it brings": lambda auth: OTHER.sign(auth.claims(**ADMIN), jwk=OTHER.jwk),
    "signed by the right key, bringing one": lambda auth: auth.key.sign(
        auth.claims(**ADMIN), jwk=auth.key.jwk
    ),
    "pointing to its key": lambda auth: auth.key.sign(auth.claims(**ADMIN), jku=auth.jwks_url),
    "pointing to its certificate": lambda auth: auth.key.sign(auth.claims(**ADMIN), x5u=auth.jwks_url),
    "bringing a certificate": lambda auth: auth.key.sign(auth.claims(**ADMIN), x5c=["AAAA"]),
    "with a condition": lambda auth: resigned(auth, header(crit=["exp"]), auth.claims(**ADMIN)),
    "with an empty condition": lambda auth: resigned(auth, header(crit=[]), auth.claims(**ADMIN)),
    "unencoded": lambda auth: resigned(auth, header(b64=False), auth.claims(**ADMIN)),
    "alg none": lambda auth: f"{encode(header(alg='none'))}.{encode(auth.claims(**ADMIN))}.",
    "alg none, signed": lambda auth: f"{encode(header(alg='none'))}.{encode(auth.claims(**ADMIN))}.AAAA",
    "alg nOnE": lambda auth: f"{encode(header(alg='nOnE'))}.{encode(auth.claims(**ADMIN))}.AAAA",
    "no alg": lambda auth: resigned(auth, {"typ": "JWT", "kid": KID}, auth.claims(**ADMIN)),
    "alg of another kind": lambda auth: resigned(auth, header(alg="RS256"), auth.claims(**ADMIN)),
    "alg a list": lambda auth: resigned(auth, header(alg=["ES256"]), auth.claims(**ADMIN)),
    "HS256 by the public key as PEM": lambda auth: hmac_signed(
        header(alg="HS256"), auth.claims(**ADMIN), auth.key.pem
    ),
    "HS256 by the public key as PEM, without an id": lambda auth: hmac_signed(
        {"alg": "HS256"}, auth.claims(**ADMIN), auth.key.pem
    ),
    "HS256 by the public key as JWK": lambda auth: hmac_signed(
        header(alg="HS256"), auth.claims(**ADMIN), json.dumps(auth.key.jwk).encode()
    ),
    "HS256 by the public key's x": lambda auth: hmac_signed(
        header(alg="HS256"), auth.claims(**ADMIN), auth.key.jwk["x"].encode()
    ),
    "HS256 by an empty secret": lambda auth: hmac_signed(header(alg="HS256"), auth.claims(**ADMIN), b""),
    "HS256 by the project's secret": lambda auth: hmac_signed(
        header(alg="HS256"), auth.claims(**ADMIN), SECRET.encode()
    ),
    "the project's anon token": lambda _: hmac_signed(
        {"alg": "HS256", "typ": "JWT"},
        {"iss": "supabase", "ref": "abc", "role": "anon", "iat": 1, "exp": 4_000_000_000},
        SECRET.encode(),
    ),
    "the project's service_role token": lambda _: hmac_signed(
        {"alg": "HS256", "typ": "JWT"},
        {"iss": "supabase", "ref": "abc", "role": "service_role", "iat": 1, "exp": 4_000_000_000},
        SECRET.encode(),
    ),
    "a service_role token by the right key": lambda auth: auth.token(role="service_role", **ADMIN),
    "an anon token by the right key": lambda auth: auth.token(role="anon", **ADMIN),
    "without a role": lambda auth: auth.key.sign(
        {k: v for k, v in auth.claims(**ADMIN).items() if k != "role"}
    ),
    "another issuer's": lambda auth: auth.token(iss="https://other.supabase.co/auth/v1", **ADMIN),
    "an issuer with a slash": lambda auth: auth.token(iss=f"{auth.issuer}/", **ADMIN),
    "an issuer in a list": lambda auth: auth.token(iss=[auth.issuer], **ADMIN),
    "without an issuer": lambda auth: raw(auth, "iss", "null"),
    "for another audience": lambda auth: auth.token(aud="anon", **ADMIN),
    "for two audiences": lambda auth: auth.token(aud=["authenticated", "other"], **ADMIN),
    "without an audience": lambda auth: raw(auth, "aud", "null"),
    "expired": lambda auth: auth.token(exp=int(time.time()) - 31, **ADMIN),
    "expired, as text": lambda auth: raw(auth, "exp", '"4000000000"'),
    "never expiring": lambda auth: raw(auth, "exp", "null"),
    "expiring never, as a flag": lambda auth: raw(auth, "exp", "true"),
    "expiring at infinity": lambda auth: raw(auth, "exp", "1e999"),
    "expiring at no number": lambda auth: raw(auth, "exp", "NaN"),
    "not valid yet": lambda auth: auth.token(nbf=int(time.time()) + 120, **ADMIN),
    "made in the future": lambda auth: auth.token(iat=int(time.time()) + 120, **ADMIN),
    "made after its end": lambda auth: auth.token(
        iat=int(time.time()) + 10, exp=int(time.time()) + 5, **ADMIN
    ),
    "made at no time": lambda auth: raw(auth, "iat", "null"),
    "without a subject": lambda auth: raw(auth, "sub", "null"),
    "of a subject that is no id": lambda auth: auth.token("1 or true", **ADMIN),
    "of a subject in braces": lambda auth: auth.token(f"{{{uuid.uuid4()}}}", **ADMIN),
    "of a subject that is a number": lambda auth: raw(auth, "sub", "1"),
    "of somebody anonymous": lambda auth: auth.token(is_anonymous=True, **ADMIN),
    "of somebody anonymous, as text": lambda auth: auth.token(is_anonymous="true", **ADMIN),
    "of an unknown key": lambda auth: auth.key.sign(auth.claims(**ADMIN), kid="unknown"),
    "of a key that is a path": lambda auth: auth.key.sign(auth.claims(**ADMIN), kid="../../../dev/null"),
    "of a key that is an address": lambda auth: auth.key.sign(auth.claims(**ADMIN), kid=auth.jwks_url),
    "of a key that is SQL": lambda auth: auth.key.sign(auth.claims(**ADMIN), kid="' or 1=1 --"),
    "of a key that is a list": lambda auth: resigned(auth, header(kid=[KID]), auth.claims(**ADMIN)),
    "of no key": lambda auth: auth.key.sign(auth.claims(**ADMIN), kid=None),
    "with no signature": lambda auth: auth.token(**ADMIN).rpartition(".")[0] + ".",
    "with a part of its signature": lambda auth: auth.token(**ADMIN)[:-4],
    "with another's signature": lambda auth: (
        auth.token(**ADMIN).rpartition(".")[0] + "." + auth.token().rpartition(".")[2]
    ),
    "with claims changed": lambda auth: with_claims(auth.token(), auth.claims(**ADMIN)),
    "huge": lambda auth: auth.token(padding="x" * 10_000, **ADMIN),
    "with two roles": lambda auth: repeated(auth, "role", "anon", "authenticated"),
    "with two ends": lambda auth: repeated(auth, "exp", 1, 4_000_000_000),
    "with two of one key in its metadata": lambda auth: raw(
        auth, "app_metadata", '{"role": "user", "role": "admin"}'
    ),
    "with two alg": lambda auth: (
        encode(b'{"alg": "none", "kid": "%s", "alg": "ES256"}' % KID.encode())
        + auth.token(**ADMIN)[auth.token(**ADMIN).index(".") :]
    ),
    "of a list": lambda auth: auth.key.sign(json.dumps([auth.claims(**ADMIN)]).encode()),
    "of no JSON": lambda auth: auth.key.sign(b"claims"),
    "of brackets": lambda auth: auth.key.sign(b"[" * 4000),
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_token_is_401_and_opens_nothing(management: Management, name: str) -> None:
    token = BAD[name](management.auth)
    messages = {
        assert_error(await management.call(method, path, token), 401, "invalid_token")
        for method, path in (("GET", "/admin/settings"), ("GET", "/user/balance"), ("POST", "/v1/keys"))
    }
    # One answer for all: what was wrong with it is told to the log alone, and the log has nothing of it.
    assert messages == {"The access token is not valid. Sign in again, or send an API key."}
    assert token not in management.log.text
    assert token.rpartition(".")[2] not in management.log.text or len(token.rpartition(".")[2]) < 8


async def test_the_same_token_without_a_fault_is_an_admins(management: Management) -> None:
    """What the table above varies is good: each of its refusals is for the fault that it names."""
    for token in (
        management.auth.token(**ADMIN),
        resigned(management.auth, header(), management.auth.claims(**ADMIN)),
    ):
        await management.ok("GET", "/admin/settings", key=token)
    now = int(time.time())
    for claims in (
        {"iat": now - 3600, "exp": now - 20},
        {"iat": now + 20},
        {"nbf": now + 20},
        {"aud": ["authenticated"]},
        {"is_anonymous": None},
    ):
        await management.ok("GET", "/admin/settings", key=management.auth.token(**ADMIN, **claims))


@pytest.mark.parametrize("name", BAD)
async def test_with_a_shared_secret_too_a_bad_token_is_refused(
    auth_server: AuthServer, opened: Opened, name: str
) -> None:
    tokens = opened(auth_jwt_secret=SecretStr(SECRET))
    if name == "HS256 by the project's secret":
        # It names a key of the set: that key decides, and no secret is tried.
        by_secret = hmac_signed({"alg": "HS256", "typ": "JWT"}, auth_server.claims(**ADMIN), SECRET.encode())
        assert (await tokens.verify(auth_server.token())).is_admin is False
        assert (await tokens.verify(by_secret)).is_admin is True
    else:
        await tokens.verify(auth_server.token())
    with pytest.raises(Unauthorized):
        await tokens.verify(BAD[name](auth_server))


async def test_the_secret_checks_hs256_and_nothing_else(auth_server: AuthServer, opened: Opened) -> None:
    tokens = opened(auth_jwt_secret=SecretStr(SECRET))
    claims = auth_server.claims(**ADMIN)
    for token in (
        jwt.encode(claims, SECRET, algorithm="HS512"),
        jwt.encode(claims, SECRET, algorithm="HS384"),
        hmac_signed({"alg": "none"}, claims, SECRET.encode()),
        hmac_signed({"alg": "ES256"}, claims, SECRET.encode()),
        hmac_signed({"alg": "HS256"}, claims, SECRET.encode()[:-1]),
    ):
        with pytest.raises(Unauthorized):
            await tokens.verify(token)


async def test_token_without_the_role_is_no_admins(management: Management) -> None:
    customer = management.customer()
    user_id = management.auth.user(management.connection, customer.email)
    for claims in (
        {},
        {"user_metadata": {"role": "admin", "app_metadata": {"role": "admin"}}},
        {"app_metadata": {"role": "Admin"}},
        {"app_metadata": {"role": ["admin"]}},
        {"app_metadata": {"roles": ["admin"]}},
        {"app_metadata": "admin"},
        {"app_metadata": ["role", "admin"]},
        {"user_role": "admin"},
        {"is_super_admin": True},
    ):
        token = management.auth.token(user_id, **claims)
        assert_error(await management.call("GET", "/admin/settings", token), 403, "scope_missing")
        assert_error(await management.call("POST", "/customers", token), 403, "scope_missing")
        assert (await management.ok("GET", "/user/balance", key=token))["user_id"] == customer.id


async def test_person_may_do_what_its_customer_may(management: Management) -> None:
    mine, other = management.customer("2"), management.customer("3")
    token = management.person(mine)
    assert (await management.ok("GET", "/user/balance", key=token))["user_id"] == mine.id
    made = await management.ok("POST", "/v1/keys", {"name": "phone"}, key=token, status=201)
    assert made["scopes"] == ["chat", "usage"]
    assert (made["customer_id"], made["made_by_key_id"]) == (mine.id, None)
    listed = await management.ok("GET", "/v1/keys", key=token)
    assert {key["customer_id"] for key in listed["data"]} == {mine.id}
    await management.ok("POST", f"/v1/keys/{made['id']}/rotate", key=token)
    await management.ok("DELETE", f"/v1/keys/{made['id']}", key=token)
    for method, path in (
        ("GET", f"/v1/keys/{other.key_id}"),
        ("DELETE", f"/v1/keys/{other.key_id}"),
        ("POST", f"/v1/keys/{other.key_id}/rotate"),
        ("PATCH", f"/v1/keys/{other.key_id}"),
    ):
        refused = await management.call(method, path, token, {} if method == "PATCH" else None)
        assert_error(refused, 404, "key_not_found")
    asked = await management.call("POST", "/v1/keys", token, {"name": "x", "customer_id": other.id})
    assert_error(asked, 403, "scope_missing", "customer_id")
    assert_error(await management.call("GET", f"/v1/keys?customer_id={other.id}", token), 404)
    actor = management.value(
        "select distinct actor from gateway.audit_log where entity = 'api_keys' and entity_id = %s",
        str(made["id"]),
    )
    assert actor.startswith("user ")


async def test_person_makes_no_key_beyond_a_customers(management: Management) -> None:
    token = management.person(management.customer())
    for body, field in (
        ({"scopes": ["admin"]}, "scopes"),
        ({"scopes": ["chat", "admin"]}, "scopes"),
        ({"limits": {"requests_per_minute": 61}}, "limits"),
        ({"model_limits": {"*": {"requests_per_minute": 61}}}, "model_limits"),
    ):
        refused = await management.call("POST", "/v1/keys", token, {"name": "x", **body})
        assert_error(refused, 403, "exceeds_maker", field)
    made = await management.ok("POST", "/v1/keys", {"name": "x"}, key=token, status=201)
    for body, field in (
        ({"scopes": ["admin"]}, "scopes"),
        ({"limits": {"requests_per_minute": 61}}, "limits"),
    ):
        refused = await management.call("PATCH", f"/v1/keys/{made['id']}", token, body)
        assert_error(refused, 403, "exceeds_maker", field)


async def test_chat_takes_no_token(management: Management) -> None:
    token = management.person(management.customer("5"))
    body = {"model": "sim/echo", "messages": [{"role": "user", "content": "x"}]}
    for path in ("/v1/chat/completions", "/generate"):
        refused = await management.call("POST", path, token, body)
        assert_error(refused, 401, "invalid_api_key")
    admin = management.auth.token(**ADMIN)
    assert_error(await management.call("POST", "/v1/chat/completions", admin, body), 401, "invalid_api_key")


def links(management: Management, customer_id: int) -> list[tuple[Any, ...]]:
    return management.query(
        "select actor, after ->> 'auth_user_id' from gateway.audit_log"
        " where entity = 'customers' and entity_id = %s and after ? 'auth_user_id' and action = 'update'",
        str(customer_id),
    )


async def test_link_is_made_once_and_audited(management: Management) -> None:
    customer = management.customer()
    user_id = management.auth.user(management.connection, customer.email.upper())
    tokens = [management.auth.token(user_id) for _ in range(12)]
    answers = await asyncio.gather(*(management.call("GET", "/user/balance", token) for token in tokens))
    assert {answer.json()["user_id"] for answer in answers} == {customer.id}
    assert links(management, customer.id) == [(f"user {user_id}", user_id)]
    # The project's own way of signing up was looked at first, and not again once the link stood.
    asked = management.auth.fetches.count("/auth/v1/settings")
    assert asked >= 1
    await management.ok("GET", "/user/balance", key=tokens[0])
    assert management.auth.fetches.count("/auth/v1/settings") == asked


@pytest.mark.parametrize(
    "columns",
    [
        {"email_confirmed_at": None},
        {"is_sso_user": True},
        {"is_anonymous": True},
    ],
    ids=lambda columns: next(iter(columns)),
)
async def test_address_that_is_not_confirmed_links_nobody(
    management: Management, columns: dict[str, Any]
) -> None:
    customer = management.customer()
    user_id = management.auth.user(
        management.connection, customer.email, raw_user_meta_data={"email_verified": True}, **columns
    )
    token = management.auth.token(user_id, email=customer.email, email_verified=True)
    for sign_up in ("link", "create"):
        management.query("update gateway.settings set auth_sign_up = %s returning 1", sign_up)
        assert_error(await management.call("GET", "/user/balance", token), 403, "no_customer")
    management.query("update gateway.settings set auth_sign_up = 'link' returning 1")
    assert links(management, customer.id) == []


async def test_address_in_the_token_is_not_believed(management: Management) -> None:
    victim = management.customer("100")
    user_id = management.auth.user(management.connection, f"{uuid.uuid4()}@attacker.example")
    token = management.auth.token(user_id, email=victim.email, user_metadata={"email": victim.email})
    assert_error(await management.call("GET", "/user/balance", token), 403, "no_customer")
    unknown = management.auth.token(str(uuid.uuid4()), email=victim.email)
    assert_error(await management.call("GET", "/user/balance", unknown), 401, "invalid_token")
    assert links(management, victim.id) == []


async def test_link_is_never_stolen(management: Management) -> None:
    customer = management.customer()
    owner = management.auth.user(management.connection, customer.email)
    await management.ok("GET", "/user/balance", key=management.auth.token(owner))
    for sign_up in ("link", "create"):
        management.query("update gateway.settings set auth_sign_up = %s returning 1", sign_up)
        thief = management.auth.token(management.auth.user(management.connection, customer.email))
        assert_error(await management.call("GET", "/user/balance", thief), 403, "no_customer")
    management.query("update gateway.settings set auth_sign_up = 'link' returning 1")
    assert links(management, customer.id) == [(f"user {owner}", owner)]
    # And the owner stays linked, whatever its address is later.
    management.query("update auth.users set email = 'new@example.org' where id = %s returning 1", owner)
    token = management.auth.token(owner)
    assert (await management.ok("GET", "/user/balance", key=token))["user_id"] == customer.id


async def test_project_that_confirms_no_address_links_nobody(management: Management) -> None:
    """With "Confirm email" off anybody signs up by anybody's address, and Supabase calls it confirmed."""
    customer = management.customer("100")
    token = management.person(customer)
    management.auth.autoconfirm = True
    assert_error(await management.call("GET", "/user/balance", token), 403, "no_customer")
    management.auth.behaviour = "error"
    refused = await management.call("GET", "/user/balance", token)
    assert_error(refused, 503, "auth_unavailable")
    assert links(management, customer.id) == []
    management.auth.reset()
    assert (await management.ok("GET", "/user/balance", key=token))["user_id"] == customer.id


async def test_sign_up_follows_the_setting(management: Management) -> None:
    def sign_up(value: str) -> None:
        management.query("update gateway.settings set auth_sign_up = %s returning 1", value)

    customer = management.customer()
    known, stranger = management.person(customer), f"new-{uuid.uuid4().hex}@example.org"
    user_id = management.auth.user(management.connection, stranger)
    token = management.auth.token(user_id)
    sign_up("off")
    assert_error(await management.call("GET", "/user/balance", known), 403, "no_customer")
    sign_up("link")
    await management.ok("GET", "/user/balance", key=known)
    assert_error(await management.call("GET", "/user/balance", token), 403, "no_customer")
    sign_up("create")
    answers = await asyncio.gather(*(management.call("GET", "/user/balance", token) for _ in range(8)))
    sign_up("link")
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["user_id"] for answer in answers}) == 1
    rows = management.query(
        "select name, username, email, auth_user_id::text, balance_usd from gateway.customers as c"
        " join gateway.accounts as a on a.customer_id = c.id where lower(email) = %s",
        stranger,
    )
    assert rows == [(stranger, stranger, stranger, user_id, 0)]


async def test_banned_or_deleted_user_is_401_at_once(management: Management) -> None:
    customer = management.customer()
    token = management.person(customer)
    await management.ok("GET", "/user/balance", key=token)
    for column, value in (("banned_until", "2999-01-01"), ("deleted_at", "2026-01-01")):
        management.query(
            f"update auth.users set {column} = '{value}' where email = %s returning 1", customer.email
        )
        assert_error(await management.call("GET", "/user/balance", token), 401, "invalid_token")
        management.query(
            f"update auth.users set {column} = null where email = %s returning 1", customer.email
        )
        await management.ok("GET", "/user/balance", key=token)
    # An admin is one of the project's users, too.
    gone = management.auth.token(str(uuid.uuid4()), **ADMIN)
    assert_error(await management.call("GET", "/admin/settings", gone), 401, "invalid_token")


async def test_suspended_customer_is_403_in_person_too(management: Management) -> None:
    customer = management.customer()
    token = management.person(customer)
    await management.ok("GET", "/user/balance", key=token)
    management.query("update gateway.customers set active = false where id = %s returning 1", customer.id)
    assert_error(await management.call("GET", "/user/balance", token), 403, "customer_suspended")
    assert_error(await management.call("GET", "/v1/keys", token), 403, "customer_suspended")


async def test_route_about_keys_refuses_a_person(management: Management) -> None:
    from starlette.requests import Request

    async def caller(credential: str) -> Any:
        headers = [(b"authorization", f"Bearer {credential}".encode())]
        return await authenticate(Request({"type": "http", "headers": headers}), management.process)

    customer = management.customer()
    person, key = await caller(management.person(customer)), await caller(customer.key)
    assert (person.key_id, person.customer_id, person.own_key_id) == (None, customer.id, None)
    assert require_key(key) == customer.key_id
    with pytest.raises(Forbidden) as refused:
        require_key(person)
    assert refused.value.code == "key_required"


async def test_database_without_supabases_users_links_by_hand_alone(management: Management) -> None:
    customer = management.customer()
    user_id = str(uuid.uuid4())
    management.connection.execute("alter schema auth rename to auth_away")
    try:
        token = management.auth.token(user_id, email=customer.email)
        assert_error(await management.call("GET", "/user/balance", token), 403, "no_customer")
        management.query(
            "update gateway.customers set auth_user_id = %s where id = %s returning 1", user_id, customer.id
        )
        assert (await management.ok("GET", "/user/balance", key=token))["user_id"] == customer.id
        await management.ok("GET", "/admin/settings", key=management.auth.token(**ADMIN))
    finally:
        management.connection.execute("alter schema auth_away rename to auth")


async def test_gateway_without_an_issuer_takes_no_token(auth_server: AuthServer, opened: Opened) -> None:
    tokens = opened(auth_issuer=None, auth_jwks_url=None)
    for token in (auth_server.token(), auth_server.token(iss=None)):
        with pytest.raises(Unauthorized):
            await tokens.verify(token)
    assert auth_server.fetches == []


# The key set


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Opened(Protocol):
    def __call__(self, clock: Clock | None = None, **settings: Any) -> AuthTokens: ...


@pytest.fixture
async def opened(auth_server: AuthServer) -> AsyncIterator[Opened]:
    """Makes checkers of the server's tokens, each with a client of its own."""
    made: list[AuthTokens] = []

    def open_one(clock: Clock | None = None, **changes: Any) -> AuthTokens:
        settings = Settings(
            supabase_key=SecretStr("sb_secret_of_the_project"),
            **{"rest_url": "http://127.0.0.1:9/rest/v1", **auth_server.settings, **changes},
        )
        made.append(
            AuthTokens(
                settings, lambda: httpx.AsyncClient(trust_env=False, verify=authorities()), clock or Clock()
            )
        )
        return made[-1]

    yield open_one
    for tokens in made:
        await tokens.aclose()


def key_fetches(auth: AuthServer) -> int:
    return sum(path.endswith("/jwks.json") for path in auth.fetches)


async def test_keys_are_fetched_once_for_many_at_once_and_kept(
    auth_server: AuthServer, opened: Opened
) -> None:
    clock = Clock()
    tokens = opened(clock)
    people = await asyncio.gather(*(tokens.verify(auth_server.token()) for _ in range(40)))
    assert {person.user_id for person in people} == {SOMEBODY}
    clock.now += auth_tokens.FRESH_SECONDS - 1
    await tokens.verify(auth_server.token())
    assert key_fetches(auth_server) == 1
    clock.now += 1
    await tokens.verify(auth_server.token())
    assert key_fetches(auth_server) == 2


async def test_new_key_is_found_and_a_withdrawn_one_is_forgotten(
    auth_server: AuthServer, opened: Opened
) -> None:
    clock, newer = Clock(), SigningKey("newer")
    tokens = opened(clock)
    await tokens.verify(auth_server.token())
    auth_server.keys = [newer.jwk]
    clock.now += auth_tokens.INTERVAL_SECONDS
    await tokens.verify(newer.sign(auth_server.claims()))
    assert key_fetches(auth_server) == 2
    with pytest.raises(Unauthorized):
        await tokens.verify(auth_server.token())


async def test_unknown_key_ids_make_few_fetches(auth_server: AuthServer, opened: Opened) -> None:
    clock = Clock()
    tokens = opened(clock)
    await tokens.verify(auth_server.token())
    for number in range(100):
        clock.now += 1
        with pytest.raises(Unauthorized):
            await tokens.verify(OTHER.sign(auth_server.claims(), kid=f"unknown-{number}"))
        await tokens.verify(auth_server.token())
    assert key_fetches(auth_server) == 1 + 100 // auth_tokens.INTERVAL_SECONDS


@pytest.mark.parametrize("behaviour", ["error", "slow", "huge", "redirect", "text", "list"])
async def test_last_good_keys_are_kept_for_a_while(
    auth_server: AuthServer, opened: Opened, monkeypatch: pytest.MonkeyPatch, behaviour: str
) -> None:
    monkeypatch.setattr(auth_tokens, "FETCH_SECONDS", 0.3)
    clock = Clock()
    tokens = opened(clock)
    auth_server.behaviour = behaviour
    with pytest.raises(Unavailable) as away:
        await tokens.verify(auth_server.token())
    assert (away.value.code, away.value.headers["retry-after"]) == ("auth_unavailable", "3")
    # Of many that come at once one asks; the others are told what it met.
    outcomes = await asyncio.gather(
        *(tokens.verify(auth_server.token()) for _ in range(20)), return_exceptions=True
    )
    assert {type(outcome) for outcome in outcomes} == {Unavailable}
    assert key_fetches(auth_server) == 1

    auth_server.behaviour = "good"
    clock.now += auth_tokens.FIRST_INTERVAL_SECONDS
    await tokens.verify(auth_server.token())
    auth_server.behaviour = behaviour
    clock.now += auth_tokens.LAST_GOOD_SECONDS - 1
    await tokens.verify(auth_server.token())
    clock.now += 1
    with pytest.raises(Unavailable):
        await tokens.verify(auth_server.token())
    assert not any("elsewhere" in path for path in auth_server.fetches)


async def test_keys_out_of_reach_are_503_and_keys_of_ours_work_on(management: Management) -> None:
    management.auth.behaviour = "error"
    customer = management.customer()
    refused = await management.call("GET", "/user/balance", management.auth.token())
    assert_error(refused, 503, "auth_unavailable")
    assert refused.headers["retry-after"] == "3"
    await management.ok("GET", "/user/balance", key=customer.key)


async def test_each_kind_of_key_has_its_one_algorithm(auth_server: AuthServer, opened: Opened) -> None:
    rsa_key, ed_key = rsa.generate_private_key(65537, 2048), ed25519.Ed25519PrivateKey.generate()
    jwks = {
        "rsa": json.loads(RSAAlgorithm.to_jwk(rsa_key.public_key())),
        "ed": json.loads(OKPAlgorithm.to_jwk(ed_key.public_key())),
    }
    auth_server.keys = [
        {"kid": kid, **{k: v for k, v in jwk.items() if k != "alg"}} for kid, jwk in jwks.items()
    ]
    tokens = opened()
    claims = auth_server.claims()
    await tokens.verify(jwt.encode(claims, rsa_key, algorithm="RS256", headers={"kid": "rsa"}))
    await tokens.verify(jwt.encode(claims, ed_key, algorithm="EdDSA", headers={"kid": "ed"}))
    for token in (
        jwt.encode(claims, rsa_key, algorithm="PS256", headers={"kid": "rsa"}),
        jwt.encode(claims, rsa_key, algorithm="RS512", headers={"kid": "rsa"}),
        jwt.encode(claims, rsa_key, algorithm="RS256", headers={"kid": "ed"}),
    ):
        with pytest.raises(Unauthorized):
            await tokens.verify(token)


def unusable(jwk: dict[str, Any]) -> dict[str, dict[str, Any]]:
    symmetric = {"kty": "oct", "kid": KID, "k": encode(SECRET.encode()), "alg": "HS256"}
    return {
        "for encryption": {**jwk, "use": "enc"},
        "for another algorithm": {**jwk, "alg": "HS256"},
        "private": {**jwk, "d": jwk["x"]},
        "symmetric": symmetric,
        "without an id": {name: value for name, value in jwk.items() if name != "kid"},
        "of an unknown curve": {**jwk, "crv": "secp256k1"},
        "of a list as a curve": {**jwk, "crv": ["P-256"]},
        "not on the curve": {**jwk, "x": jwk["y"], "y": jwk["x"]},
        "cut": {name: value for name, value in jwk.items() if name != "x"},
    }


@pytest.mark.parametrize("fault", unusable(OTHER.jwk))
async def test_key_that_is_no_public_key_for_signatures_is_passed_over(
    auth_server: AuthServer, opened: Opened, fault: str
) -> None:
    newer = SigningKey("newer")
    auth_server.keys = [unusable(auth_server.key.jwk)[fault], "no key", newer.jwk]  # type: ignore[list-item]
    tokens = opened()
    await tokens.verify(newer.sign(auth_server.claims()))
    for token in (
        auth_server.token(),
        hmac_signed({"alg": "HS256", "kid": KID}, auth_server.claims(), SECRET.encode()),
    ):
        with pytest.raises(Unauthorized):
            await tokens.verify(token)


async def test_weak_rsa_key_is_passed_over(auth_server: AuthServer, opened: Opened) -> None:
    weak = rsa.generate_private_key(65537, 1024)  # noqa: S505 - which is the point
    auth_server.keys = [{**json.loads(RSAAlgorithm.to_jwk(weak.public_key())), "kid": KID}]
    tokens = opened()
    claims = auth_server.claims()
    head = f"{encode({'alg': 'RS256', 'kid': KID})}.{encode(claims)}"
    signature = RSAAlgorithm(RSAAlgorithm.SHA256).sign(head.encode(), weak)
    with pytest.raises(Unauthorized):
        await tokens.verify(f"{head}.{encode(signature)}")


async def test_projects_key_goes_to_its_own_server_alone(auth_server: AuthServer, opened: Opened) -> None:
    """It opens the whole database: no issuer that is set to another host may be sent it."""
    foreign = opened()
    assert await foreign.confirms_addresses()
    await foreign.verify(auth_server.token())
    own = opened(rest_url=f"{auth_server.url}/rest/v1")
    assert await own.confirms_addresses()
    await own.verify(auth_server.token())
    # Nor is it sent where it is not asked for.
    assert auth_server.api_keys == [None, None, "sb_secret_of_the_project", None]


@pytest.mark.parametrize("function", ["chat", "keys"])
def test_library_of_tokens_is_loaded_when_one_comes_and_not_before(function: str) -> None:
    code = f"import sys, {function}.handler, gateway.auth_tokens; assert 'jwt' not in sys.modules"
    functions = Path(auth_tokens.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], cwd=functions, check=True, timeout=60)
