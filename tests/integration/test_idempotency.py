"""Idempotency-Key: a call is charged once, however often it is sent."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import openai
import pytest

from tests.fixtures.gateway import RunningGateway, gateway, module_gateway
from tests.fixtures.wire import CHAT, HELLO, RawClient, at_once, charge, money, nothing_is_left_held, settled

if TYPE_CHECKING:
    import httpx

    from tests.fixtures.gateway import Customer

__all__ = ["gateway", "module_gateway", "nothing_is_left_held"]

KEY = "an order of the customer's, number 1"

pytestmark = pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])


def post(
    gateway: RunningGateway, customer: Customer, model: str, *, key: str = KEY, **fields: Any
) -> httpx.Response:
    body = {"model": model, "messages": HELLO, **fields}
    return gateway.http(customer).post(CHAT, json=body, headers={"idempotency-key": key})


def assert_conflict(response: httpx.Response, code: str) -> str:
    """409 of that code, and no retry; the message."""
    assert response.status_code == 409
    assert response.headers["x-should-retry"] == "false"
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("conflict_error", code)
    message: str = error["message"]
    return message


def test_second_request_is_409_while_the_first_runs(gateway: RunningGateway, *, stream: bool) -> None:
    model = gateway.model("slow-400ms")
    customer = gateway.customer("1")
    body = {"model": model, "messages": HELLO, "stream": stream}
    client = RawClient(gateway.url).post(CHAT, body, key=customer.key, idempotency_key=KEY)
    gateway.simulator.calls.wait_for(lambda log: log.count() == 1)
    raw = gateway.http(customer)
    # The same bytes: another spelling of the same JSON would be another body.
    content = json.dumps(body).encode()
    second = raw.post(CHAT, content=content, headers={"idempotency-key": KEY})
    assert_conflict(second, "idempotency_key_in_use")
    client.read_until(b"Hello")
    [row] = settled(gateway, customer)
    client.leave()
    assert row["outcome"] == "succeeded"
    third = raw.post(CHAT, content=content, headers={"idempotency-key": KEY})
    assert_conflict(third, "idempotency_key_reused")
    assert gateway.simulator.calls.count() == 1


def test_request_after_a_charged_one_is_told_its_id(gateway: RunningGateway, *, stream: bool) -> None:
    model = gateway.model("echo")
    customer = gateway.customer("1")
    first = post(gateway, customer, model, stream=stream)
    [row] = settled(gateway, customer)
    balance = gateway.balance(customer)
    message = assert_conflict(post(gateway, customer, model, stream=stream), "idempotency_key_reused")
    assert first.headers["x-request-id"] == row["id"]
    assert row["id"] in message
    assert gateway.balance(customer) == balance
    assert gateway.simulator.calls.count() == 1


def test_key_with_another_body_is_422(gateway: RunningGateway, *, stream: bool) -> None:
    model = gateway.model("echo")
    customer = gateway.customer("1")
    post(gateway, customer, model, stream=stream)
    settled(gateway, customer)
    other = post(gateway, customer, model, stream=stream, seed=2)
    assert other.status_code == 422
    error = other.json()["error"]
    assert (error["code"], error["param"]) == ("idempotency_key_mismatch", "Idempotency-Key")
    assert gateway.simulator.calls.count() == 1


def test_key_belongs_to_one_api_key(gateway: RunningGateway, *, stream: bool) -> None:
    model = gateway.model("echo")
    for _ in range(2):
        assert post(gateway, gateway.customer("1"), model, stream=stream).status_code == 200


def test_other_keys_are_other_requests(gateway: RunningGateway, *, stream: bool) -> None:
    model = gateway.model("echo")
    customer = gateway.customer("1")
    for key in ("a", "b", "x" * 255, "\N{LATIN SMALL LETTER E WITH ACUTE}"):
        headers = {
            b"idempotency-key": key.encode("latin-1"),
            b"authorization": f"Bearer {customer.key}".encode(),
        }
        body = {"model": model, "messages": HELLO, "stream": stream}
        assert gateway.http().post(CHAT, json=body, headers=headers).status_code == 200
    assert len(settled(gateway, customer, 4)) == 4


@pytest.mark.parametrize("behaviour", ["status-500", "status-400", "error-in-stream-0"])
def test_request_that_failed_frees_its_key(gateway: RunningGateway, behaviour: str, *, stream: bool) -> None:
    name = gateway.model(behaviour)
    customer = gateway.customer("1")
    assert post(gateway, customer, name, stream=stream).status_code >= 400
    settled(gateway, customer)
    gateway.connection.execute(
        "update gateway.offers set upstream_model = 'echo' where model_id ="
        " (select id from gateway.models where name = %s)",
        [name],
    )
    assert post(gateway, customer, name, stream=stream).status_code == 200
    assert_conflict(post(gateway, customer, name, stream=stream), "idempotency_key_reused")
    failed, charged = settled(gateway, customer, 2)
    assert money(failed["charge_usd"]) == 0 < money(charged["charge_usd"])


def test_refused_request_does_not_take_its_key(gateway: RunningGateway, *, stream: bool) -> None:
    model = gateway.model("echo")
    customer = gateway.customer(None)
    assert post(gateway, customer, model, stream=stream).status_code == 402
    gateway.call("add_credits", p_customer_id=customer.id, p_usd=1)
    assert post(gateway, customer, model, stream=stream).status_code == 200
    settled(gateway, customer)


def test_of_twenty_at_once_one_is_served_and_charged(gateway: RunningGateway, *, stream: bool) -> None:
    model = gateway.model("slow-200ms")
    customer = gateway.customer("1")
    clients = [gateway.openai(customer, max_retries=2) for _ in range(20)]

    def call(number: int) -> str:
        try:
            answer: Any = clients[number].chat.completions.create(
                model=model, messages=HELLO, stream=stream, extra_headers={"idempotency-key": KEY}
            )
            if stream:
                return "".join(chunk.choices[0].delta.content or "" for chunk in answer)
            return str(answer.choices[0].message.content)
        except openai.ConflictError as error:
            return str(error.code)

    answers = at_once(20, call)
    assert answers.count("You said: Hello") == 1
    assert set(answers) <= {"You said: Hello", "idempotency_key_in_use", "idempotency_key_reused"}
    assert gateway.simulator.calls.count() == 1
    [row] = settled(gateway, customer)
    due = charge(row["input_tokens"], row["output_tokens"])
    assert gateway.balance(customer) == (1 - due, 0)
