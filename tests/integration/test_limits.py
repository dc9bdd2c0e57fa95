"""Rate limits and the balance under parallel clients: what they admit is exact."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any

import openai
import pytest

from tests.database.engine import Engine
from tests.fixtures.gateway import RunningGateway, gateway, module_gateway
from tests.fixtures.wire import CHAT, HELLO, RawClient, at_once, charge, nothing_is_left_held, settled

if TYPE_CHECKING:
    import httpx

    from tests.fixtures.database import Database
    from tests.fixtures.gateway import Customer

__all__ = ["gateway", "module_gateway", "nothing_is_left_held"]


def post(gateway: RunningGateway, customer: Customer, model: str, **fields: Any) -> httpx.Response:
    return gateway.http(customer).post(CHAT, json={"model": model, "messages": HELLO, **fields})


def into_a_fresh_minute(gateway: RunningGateway, database: Database, seconds: float) -> None:
    Engine(database, gateway.connection).into_a_fresh_minute(seconds)


@pytest.mark.serial
def test_sixty_a_minute_under_twenty_clients_are_sixty(
    gateway: RunningGateway, module_database: Database
) -> None:
    model = gateway.model("echo")
    customer = gateway.customer("1", requests_per_minute=60)
    clients = [gateway.http(customer) for _ in range(20)]
    into_a_fresh_minute(gateway, module_database, 15)

    def call(number: int) -> list[httpx.Response]:
        return [clients[number].post(CHAT, json={"model": model, "messages": HELLO}) for _ in range(4)]

    responses = [response for some in at_once(20, call) for response in some]
    assert Counter(response.status_code for response in responses) == {200: 60, 429: 20}
    # Read from the rows, not assumed: all of it lay in one window.
    windows = gateway.connection.execute(
        "select date_trunc('minute', admitted_at), count(*) from gateway.requests"
        " where customer_id = %s and state = 'settled' group by 1",
        [customer.id],
    ).fetchall()
    assert [count for _, count in windows] == [60]
    assert gateway.simulator.calls.count() == 60
    for response in responses:
        assert response.headers["x-ratelimit-limit-requests"] == "60"
        assert response.headers["x-ratelimit-reset-requests"].endswith("s")
        if response.status_code == 429:
            assert response.headers["x-ratelimit-remaining-requests"] == "0"
            assert 1 <= int(response.headers["retry-after"]) <= 60
            assert response.json()["error"]["code"] == "rate_limit_exceeded"
            assert "x-should-retry" not in response.headers
    left = sorted(
        int(response.headers["x-ratelimit-remaining-requests"])
        for response in responses
        if response.status_code == 200
    )
    assert left == list(range(60))


def test_default_is_sixty_a_minute_for_a_key_and_model(
    gateway: RunningGateway, module_database: Database
) -> None:
    model, other = gateway.model("echo"), gateway.model("echo")
    customer = gateway.customer("1")
    gateway.connection.execute("delete from gateway.limits where key_id = %s", [customer.key_id])
    into_a_fresh_minute(gateway, module_database, 3)
    first, second = post(gateway, customer, model), post(gateway, customer, other)
    assert first.headers["x-ratelimit-limit-requests"] == "60"
    assert [each.headers["x-ratelimit-remaining-requests"] for each in (first, second)] == ["59", "59"]


@pytest.mark.parametrize("stream", [False, True])
def test_token_limit_counts_what_is_in_flight(
    gateway: RunningGateway, module_database: Database, *, stream: bool
) -> None:
    slow, quick = gateway.model("slow-400ms"), gateway.model("echo")
    customer = gateway.customer("1")
    gateway.call(
        "set_limits",
        p_key_id=customer.key_id,
        p_rate_limits={"tokens_per_minute": 1000},
        p_warn={},
        p_actor="test",
    )
    into_a_fresh_minute(gateway, module_database, 5)
    body = {"model": slow, "messages": HELLO, "max_tokens": 600, "stream": stream}
    running = RawClient(gateway.url).post(CHAT, body, key=customer.key)
    gateway.simulator.calls.wait_for(lambda log: log.count() == 1)
    # 600 and the input's bound are reserved: another 600 are not to be had, though nothing is used yet.
    refused = post(gateway, customer, quick, max_tokens=600)
    assert refused.status_code == 429
    assert refused.headers["x-ratelimit-limit-tokens"] == "1000"
    assert int(refused.headers["x-ratelimit-remaining-tokens"]) < 400
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    running.read_until(b"Hello")
    settled(gateway, customer)
    running.leave()
    # What was not used is free again.
    served = post(gateway, customer, quick, max_tokens=600)
    assert served.status_code == 200
    # And what no window could admit is said to be so.
    never = post(gateway, customer, quick, max_tokens=2000)
    assert never.status_code == 429
    assert never.headers["x-should-retry"] == "false"
    assert "retry-after" not in never.headers


def test_two_tabs_on_a_balance_that_affords_one_call(gateway: RunningGateway) -> None:
    model = gateway.model("slow-200ms")
    asked = {"model": model, "messages": HELLO, "max_tokens": 100}
    probe = gateway.http(gateway.customer("1")).post(CHAT, json=asked)
    hold = Decimal(str(gateway.request(probe.headers["x-request-id"])["hold_usd"]))
    for _ in range(4):
        gateway.simulator.calls.clear()
        customer = gateway.customer(str(hold * Decimal("1.5")))
        clients = [gateway.http(customer) for _ in range(2)]
        work = partial(_post_by, clients, asked)
        assert sorted(response.status_code for response in at_once(2, work)) == [200, 402]
        [row] = settled(gateway, customer)
        due = charge(row["input_tokens"], row["output_tokens"])
        assert gateway.balance(customer) == (hold * Decimal("1.5") - due, 0)
        assert gateway.simulator.calls.count() == 1


def _post_by(clients: list[httpx.Client], body: dict[str, Any], number: int) -> httpx.Response:
    return clients[number].post(CHAT, json=body)


def test_crossed_soft_limit_warns_and_serves(gateway: RunningGateway, module_database: Database) -> None:
    model = gateway.model("echo")
    customer = gateway.customer("1")
    gateway.call(
        "set_limits",
        p_key_id=customer.key_id,
        p_rate_limits={"requests_per_minute": 10},
        p_warn={"requests_per_minute": 1},
        p_actor="test",
    )
    into_a_fresh_minute(gateway, module_database, 3)
    first, second = post(gateway, customer, model), post(gateway, customer, model, stream=True)
    assert (first.status_code, second.status_code) == (200, 200)
    assert "x-ratelimit-warning" not in first.headers
    assert second.headers["x-ratelimit-warning"] == "requests_per_minute"


def test_failed_call_tells_its_limits_too(gateway: RunningGateway) -> None:
    customer = gateway.customer("1", requests_per_minute=1000)
    for stream in (False, True):
        failed = post(gateway, customer, gateway.model("status-500"), stream=stream)
        assert failed.status_code == 502
        assert failed.headers["x-ratelimit-limit-requests"] == "1000"


def test_sdk_does_not_retry_what_no_window_admits(gateway: RunningGateway) -> None:
    customer = gateway.customer("1")
    gateway.call(
        "set_limits",
        p_key_id=customer.key_id,
        p_rate_limits={"tokens_per_minute": 100},
        p_warn={},
        p_actor="test",
    )
    with pytest.raises(openai.RateLimitError):
        gateway.openai(customer, max_retries=2).chat.completions.create(
            model=gateway.model("echo"), messages=HELLO, max_tokens=200
        )
    refused = gateway.connection.execute(
        "select sum(r.refusals) from gateway.refusal_rollups as r where r.customer_id = %s", [customer.id]
    ).fetchone()
    assert refused == (1,)
