"""Bad input over real sockets: the contract's error, nothing of internals, no hold, no row, no call."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import openai
import pytest

from gateway import auth
from tests.fixtures.gateway import RunningGateway, gateway, module_gateway
from tests.fixtures.wire import CHAT, HELLO, RawClient, nothing_is_left_held

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.fixtures.gateway import Customer

__all__ = ["gateway", "module_gateway", "nothing_is_left_held"]

INTERNALS = (
    "traceback",
    "psycopg",
    "pgrst",
    "postgres",
    "select ",
    "sqlstate",
    "pydantic",
    ".py",
    "/work",
    "gateway.",
)
MODEL = "bad/input"


@pytest.fixture(scope="module")
def caller(module_gateway: RunningGateway) -> Customer:
    """A customer with a dollar, and a model that he could call."""
    module_gateway.model("echo", name=MODEL)
    return module_gateway.customer("1")


@pytest.fixture(autouse=True)
def nothing_happened(gateway: RunningGateway, caller: Customer) -> Iterator[None]:
    """No request of the caller's is admitted, held or charged, and no provider hears of it."""
    yield
    assert gateway.simulator.calls.count() == 0
    assert [row["state"] for row in gateway.requests(caller) if row["state"] != "refused"] == []
    assert gateway.balance(caller) == (1, 0)


def assert_refused(
    answered: tuple[int, dict[str, str], bytes],
    status: int,
    *,
    code: str | None = None,
    param: str | None = None,
) -> dict[str, Any]:
    """The contract's error exactly; its object."""
    got, headers, body = answered
    assert got == status, body
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"].startswith("req_")
    content = json.loads(body)
    assert set(content) == {"error"}
    error: dict[str, Any] = content["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert isinstance(error["type"], str)
    if code is not None:
        assert error["code"] == code
    if param is not None:
        assert error["param"] == param
    lowered = body.decode().lower()
    assert [word for word in INTERNALS if word in lowered] == []
    return error


def send(gateway: RunningGateway, caller: Customer, body: Any, path: str = CHAT, **headers: str) -> Any:
    with RawClient(gateway.url) as client:
        return client.post(path, body, key=caller.key, **headers).response()


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": HELLO, **fields}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"   ",
        b'{"model": "bad/input", "messages": [',
        b'{"model": "bad/input"} trailing',
        b"nonsense",
        b"{'model': 'bad/input'}",
        b'{"model": NaN}',
        b'{"model": "bad/input", "temperature": Infinity}',
        b'{"model": "bad/input", "temperature": 1e999}',
        b'{"model": "bad/input", "seed": ' + b"9" * 5000 + b"}",
        b'{"model": "bad/input", "model": "bad/input"}',
        b'\xff\xfe{"model": "bad/input"}',
        json.dumps(chat()).encode("utf-16"),
        b"[" * 100_000,
        b"[" * 200 + b"]" * 200,
        b'{"a":' * 200 + b"1" + b"}" * 200,
        b'{"model": "bad/input", "messages": [{"role": "user", "content": "a\\u0000b"}]}',
        b'{"model": "bad/input\\u0000", "messages": []}',
        b'{"model": "bad/input", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "bad/input", "x\\u0000": 1, "messages": []}',
        b'{"model": "bad/input", "tools": "a\x00b"}',
    ],
    ids=range(21),
)
@pytest.mark.parametrize("path", [CHAT, "/generate", "/api/layers/chat"])
def test_what_is_no_storable_json_is_400(
    gateway: RunningGateway, caller: Customer, body: bytes, path: str
) -> None:
    error = assert_refused(send(gateway, caller, body, path), 400, code="invalid_json")
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", [b"[]", b"null", b"17", b'"text"', b"false", b"[{}]"])
def test_body_that_is_no_object_is_422(gateway: RunningGateway, caller: Customer, body: bytes) -> None:
    assert_refused(send(gateway, caller, body), 422)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": "Hello"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": ["Hello"]}, "messages.0"),
        ({"messages": [{"role": "user"}]}, "messages.0"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, None),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0"),
        ({"model": None}, "model"),
        ({"model": 7}, "model"),
        ({"model": ""}, "model"),
        ({"model": "x" * 300}, "model"),
        ({"model": ["bad/input"]}, "model"),
        ({"models": "bad/input"}, "models"),
        ({"models": ["bad/input"] * 17}, "models"),
        ({"max_tokens": False}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": "10"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": 10**18}, "max_tokens"),
        ({"max_tokens": 10**4000}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": False}, "n"),
        ({"n": 10**30}, "n"),
        ({"stream": "true"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream_options": []}, "stream_options"),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"seed": 2**70}, "seed"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools.0"),
        ({"stop": 1}, None),
        ({"user": 1}, "user"),
    ],
    ids=lambda value: None if value is None or isinstance(value, dict) else str(value),
)
def test_wrong_value_is_422_and_names_the_field(
    gateway: RunningGateway, caller: Customer, fields: dict[str, Any], param: str | None
) -> None:
    error = assert_refused(send(gateway, caller, chat(**fields)), 422, param=param)
    assert error["param"]
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 400


def test_ten_thousand_bad_messages_are_refused_at_the_first(
    gateway: RunningGateway, caller: Customer
) -> None:
    error = assert_refused(send(gateway, caller, chat(messages=[{"role": "x"}] * 10_000)), 422)
    assert error["param"].startswith("messages.0")


def test_ten_thousand_messages_beyond_the_balance_are_402(gateway: RunningGateway) -> None:
    many = [{"role": "user", "content": "word " * 40}] * 10_000
    # Their bound is the model's context, 128,000 tokens: 6.7 cents.
    answered = send(gateway, gateway.customer("0.06"), chat(messages=many))
    error = assert_refused(answered, 402, code="insufficient_credits")
    assert error["type"] == "insufficient_quota"
    assert answered[1]["x-should-retry"] == "false"


@pytest.mark.parametrize("length", ["declared", "lied", "chunked"])
def test_body_beyond_the_limit_is_413(gateway: RunningGateway, caller: Customer, length: str) -> None:
    size = 20 * 1024 * 1024
    head = f"POST {CHAT} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {caller.key}\r\n"
    with RawClient(gateway.url) as client:
        if length == "chunked":
            client.socket.sendall(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
            for _ in range(20):
                client.socket.sendall(b"100000\r\n" + b"a" * 0x100000 + b"\r\n")
            client.socket.sendall(b"0\r\n\r\n")
        elif length == "declared":
            client.socket.sendall(f"{head}content-length: {size}\r\n\r\n".encode() + b"a" * size)
        else:
            # Says that it will send, and waits to be told to.
            client.socket.sendall(f"{head}content-length: {size}\r\nexpect: 100-continue\r\n\r\n".encode())
        assert_refused(client.response(), 413, code="payload_too_large")


def test_compressed_body_is_400(gateway: RunningGateway, caller: Customer) -> None:
    assert_refused(send(gateway, caller, chat(), content_encoding="gzip"), 400)


def test_client_that_leaves_in_the_middle_of_its_body_leaves_nothing(
    gateway: RunningGateway, caller: Customer
) -> None:
    client = RawClient(gateway.url)
    client.socket.sendall(
        f"POST {CHAT} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {caller.key}\r\n"
        f'content-length: 1000\r\n\r\n{{"model": '.encode()
    )
    client.leave(abruptly=True)
    # The next request is served, and nothing_happened looks for the first.
    assert gateway.http().get("/models/simple").status_code == 200


@pytest.mark.parametrize(
    "model",
    ["no/such-model", "bad", "bad/", "/input", "BAD/INPUT", "bad/input ", "'; drop table x;--", "💥", "%00"],
)
def test_unknown_model_is_404(gateway: RunningGateway, caller: Customer, model: str) -> None:
    error = assert_refused(
        send(gateway, caller, chat(model=model)), 404, code="model_not_found", param="model"
    )
    assert error["type"] == "not_found_error"


def revoked(gateway: RunningGateway) -> str:
    customer = gateway.customer("1")
    gateway.call(
        "set_key_state", p_key_id=customer.key_id, p_customer_id=None, p_state="revoked", p_actor="test"
    )
    return customer.key


def expired(gateway: RunningGateway) -> str:
    customer = gateway.customer("1", p_expires_at="2999-01-01T00:00:00Z")
    gateway.connection.execute(
        "update gateway.api_keys set expires_at = clock_timestamp() - interval '1 second' where id = %s",
        [customer.key_id],
    )
    return customer.key


BAD_KEYS: dict[str, Callable[[RunningGateway], dict[str, str]]] = {
    "none": lambda _: {},
    "unknown": lambda _: {"authorization": f"Bearer {auth.new_key()}"},
    "revoked": lambda gateway: {"authorization": f"Bearer {revoked(gateway)}"},
    "expired": lambda gateway: {"authorization": f"Bearer {expired(gateway)}"},
    "mistyped": lambda gateway: {"authorization": f"Bearer {gateway.customer('1').key[:-1]}!"},
    "short": lambda _: {"x-api-key": "sk_0123"},
    "long": lambda _: {"x-api-key": "sk_" + "a" * 8000},
    "not ASCII": lambda _: {"x-api-key": "sk_\xe9\xff"},
    "another scheme": lambda gateway: {"authorization": f"Basic {gateway.customer('1').key}"},
    "no scheme": lambda gateway: {"authorization": gateway.customer("1").key},
    "two that differ": lambda gateway: {
        "x-api-key": gateway.customer("1").key,
        "api-key": gateway.customer("1").key,
    },
    "an injected query": lambda _: {"x-api-key": "sk_' or '1'='1"},
}


@pytest.mark.parametrize("kind", BAD_KEYS)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_key_is_401(gateway: RunningGateway, kind: str, *, stream: bool) -> None:
    headers = BAD_KEYS[kind](gateway)
    with RawClient(gateway.url) as client:
        answered = client.post(CHAT, chat(stream=stream), **headers).response()
    error = assert_refused(answered, 401)
    assert error["type"] == "authentication_error"
    assert answered[1]["www-authenticate"] == "Bearer"
    for value in headers.values():
        assert value.removeprefix("Bearer ") not in answered[2].decode("utf-8")


def test_same_key_in_every_header_is_one_key(gateway: RunningGateway, caller: Customer) -> None:
    with RawClient(gateway.url) as client:
        headers = {"x-api-key": caller.key, "api-key": caller.key}
        answered = client.post(CHAT, chat(model="no/such-model"), key=caller.key, **headers).response()
    assert_refused(answered, 404)


def test_suspended_customer_is_403(gateway: RunningGateway) -> None:
    customer = gateway.customer("1")
    gateway.connection.execute("update gateway.customers set active = false where id = %s", [customer.id])
    error = assert_refused(send(gateway, customer, chat()), 403, code="customer_suspended")
    assert error["type"] == "permission_error"


def test_key_without_the_scope_is_403(gateway: RunningGateway) -> None:
    customer = gateway.customer("1", p_scopes=["usage"])
    assert_refused(send(gateway, customer, chat()), 403, code="scope_missing")


@pytest.mark.parametrize("key", ["x" * 256, "x" * 300, "", "a\tb", "a\x80b"])
def test_bad_idempotency_key_is_422(gateway: RunningGateway, caller: Customer, key: str) -> None:
    answered = send(gateway, caller, chat(), idempotency_key=key)
    assert_refused(answered, 422, param="Idempotency-Key")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", "/generate", 405, "method_not_allowed"),
        ("POST", "/v1/chat/completions/", 404, "unknown_route"),
        ("POST", "/v1/nothing", 404, "unknown_route"),
        ("GET", "/v1/models/a%00b", 400, None),
        ("GET", "/v1/models/../../etc/passwd", 404, None),
        ("GET", "/v1/models/%2e%2e%2f", 404, None),
        ("POST", CHAT + "?x=%00", 400, None),
    ],
)
def test_bad_route_has_its_status(
    gateway: RunningGateway, caller: Customer, *, method: str, path: str, status: int, code: str | None
) -> None:
    with RawClient(gateway.url) as client:
        head = f"{method} {path} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {caller.key}\r\n"
        client.socket.sendall(f"{head}content-length: 0\r\n\r\n".encode())
        assert_refused(client.response(), status, code=code)


def test_no_header_can_be_injected(gateway: RunningGateway, caller: Customer) -> None:
    injected = "x\r\nset-cookie: stolen=1\r\n\r\n<script>"
    for fields in ({"model": injected}, {"model": MODEL, "messages": [{"role": injected, "content": "x"}]}):
        _, headers, _ = answered = send(gateway, caller, chat(**fields))
        assert "set-cookie" not in headers
        assert answered[0] in {404, 422}
    preflight = {"access_control_request_method": "POST", "origin": "https://evil.example"}
    with RawClient(gateway.url) as client:
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in preflight.items())
        client.socket.sendall(f"OPTIONS {CHAT} HTTP/1.1\r\nhost: gateway\r\n{lines}\r\n".encode())
        received = client.read_until(b"\r\n\r\n").lower()
    assert received.startswith(b"http/1.1 204")
    assert b"access-control-allow-origin" not in received


def test_request_id_of_the_client_is_not_ours(gateway: RunningGateway, caller: Customer) -> None:
    _, headers, _ = send(gateway, caller, chat(model="no/such"), x_request_id="mine")
    assert headers["x-request-id"] != "mine"


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_wrong_content_type_with_a_bad_body_is_the_same_400(
    gateway: RunningGateway, caller: Customer, content_type: str
) -> None:
    answered = send(gateway, caller, b"model=bad", content_type=content_type)
    assert_refused(answered, 400, code="invalid_json")


def test_sdk_raises_its_typed_exceptions(gateway: RunningGateway, caller: Customer) -> None:
    client = gateway.openai(caller)

    def create(**fields: Any) -> None:
        client.chat.completions.create(**chat(**fields))

    with pytest.raises(openai.NotFoundError):
        create(model="no/such-model")
    with pytest.raises(openai.UnprocessableEntityError) as invalid:
        create(max_tokens=0)
    assert invalid.value.param == "max_tokens"
    with pytest.raises(openai.BadRequestError):
        create(messages=[{"role": "user", "content": "a\0b"}])
    with pytest.raises(openai.APIStatusError) as large:
        create(messages=[{"role": "user", "content": "a" * 7_000_000}])
    assert large.value.status_code == 413
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=auth.new_key(), max_retries=0).models.list()
    with pytest.raises(openai.PermissionDeniedError):
        gateway.openai(gateway.customer("1", p_scopes=["usage"])).chat.completions.create(**chat())
