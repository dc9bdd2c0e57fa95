"""Streams, whole and broken: each is settled exactly once, for what was streamed, and nothing stays held."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from threading import Timer
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from gateway import completions
from infra.local import serving
from tests.fixtures.gateway import RunningGateway, gateway, module_gateway, serve
from tests.fixtures.wire import (
    CHAT,
    HELLO,
    RawClient,
    RawProvider,
    charge,
    money,
    nothing_is_left_held,
    settled,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from infra.local.postgrest import PostgRest
    from tests.fixtures.database import Database
    from tests.fixtures.gateway import Customer

__all__ = ["gateway", "module_gateway", "nothing_is_left_held"]

PROMPT_TOKENS = 8
"""Of HELLO, by OpenAI's rule: 3 for the reply, 3 for the message, 1 for its role, 1 for its text."""


def stream_body(model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": HELLO, "stream": True, **fields}


def events(body: bytes | str) -> list[Any]:
    """The data of each event, JSON decoded; comments left out."""
    text = body.decode() if isinstance(body, bytes) else body
    found = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(data) if data != "[DONE]" else data for data in found]


def said(found: list[Any]) -> str:
    return "".join(
        choice["delta"].get("content") or ""
        for event in found
        if isinstance(event, dict)
        for choice in event.get("choices", ())
    )


def post(gateway: RunningGateway, customer: Customer, model: str, **fields: Any) -> httpx.Response:
    return gateway.http(customer).post(CHAT, json=stream_body(model, **fields))


def assert_charged(gateway: RunningGateway, customer: Customer, row: dict[str, Any], output: int) -> None:
    """For the prompt and `output` tokens, to the last digit, out of a dollar."""
    due = charge(PROMPT_TOKENS, output)
    assert (row["input_tokens"], row["output_tokens"]) == (PROMPT_TOKENS, output)
    assert money(row["charge_usd"]) == due
    assert gateway.balance(customer) == (1 - due, 0)


def assert_uncharged(gateway: RunningGateway, customer: Customer, row: dict[str, Any]) -> None:
    assert money(row["charge_usd"]) == 0
    assert gateway.balance(customer) == (1, 0)


# The client leaves. The simulator's first chunk has the role alone; after it comes one token a chunk.


@pytest.mark.parametrize("abruptly", [False, True])
@pytest.mark.parametrize(
    ("behaviour", "chunks", "output"),
    [("hang", 0, 0), ("long-50+hang-1", 1, 0), ("long-50+hang-21", 21, 20), ("long-50+hang-52", 52, 50)],
    ids=["before the first chunk", "after the first", "in the middle", "just before the end"],
)
def test_client_that_leaves_stops_the_provider_and_pays_what_was_streamed(
    gateway: RunningGateway, behaviour: str, chunks: int, output: int, *, abruptly: bool
) -> None:
    model = gateway.model(behaviour)
    customer = gateway.customer("1")
    client = RawClient(gateway.url).post(CHAT, stream_body(model), key=customer.key)
    gateway.simulator.calls.wait_for(lambda log: log.count() == 1 and log.last().chunks_sent == chunks)
    client.read_until(b"data: ", chunks)
    client.leave(abruptly=abruptly)
    gateway.simulator.calls.wait_for(lambda log: log.last().disconnected)
    [row] = settled(gateway, customer)
    assert (row["outcome"], row["status"]) == ("cancelled", 499)
    assert row["usage_estimated"]
    assert_charged(gateway, customer, row, output)


def test_client_that_leaves_after_the_provider_told_usage_pays_by_that(gateway: RunningGateway) -> None:
    # Usage on each chunk, and cached tokens that no estimate would know of.
    model = gateway.model("long-50+cached-4+usage-each+hang-11")
    customer = gateway.customer("1")
    client = RawClient(gateway.url).post(CHAT, stream_body(model), key=customer.key)
    client.read_until(b"data: ", 11)
    client.leave()
    [row] = settled(gateway, customer)
    assert row["outcome"] == "cancelled"
    assert not row["usage_estimated"]
    assert (row["cached_input_tokens"], row["output_tokens"]) == (4, 10)


def test_client_that_leaves_before_a_provider_is_reached_pays_nothing(gateway: RunningGateway) -> None:
    # A listener whose backlog is full answers no connection attempt.
    import socket

    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(2)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        model = gateway.model("echo", base_url=f"http://127.0.0.1:{port}/v1")
        customer = gateway.customer("1")
        client = RawClient(gateway.url).post(CHAT, stream_body(model), key=customer.key)
        while not gateway.requests(customer):
            assert client.silent_for(0.01)
        client.leave()
        [row] = settled(gateway, customer)
        for one in waiting:
            one.close()
    assert row["outcome"] == "cancelled"
    assert_uncharged(gateway, customer, row)


# The provider fails.


@pytest.mark.parametrize("behaviour", ["long-50+cut-5", "long-50+cut-clean-5", "long-50+error-in-stream-5"])
def test_stream_that_the_provider_breaks_off_ends_in_an_error_and_is_charged_for_its_chunks(
    gateway: RunningGateway, behaviour: str
) -> None:
    customer = gateway.customer("1")
    response = post(gateway, customer, gateway.model(behaviour))
    assert response.status_code == 200
    *chunks, last = events(response.text)
    assert len(chunks) == 5
    assert set(last) == {"error"}
    assert set(last["error"]) == {"message", "type", "param", "code"}
    [row] = settled(gateway, customer)
    assert row["outcome"] == "cut"
    assert row["usage_estimated"]
    assert row["error_code"] == last["error"]["code"]
    assert_charged(gateway, customer, row, 4)


def test_sdk_raises_for_a_stream_that_is_broken_off(gateway: RunningGateway) -> None:
    chunks = gateway.openai(gateway.customer()).chat.completions.create(
        model=gateway.model("long-50+cut-5"), messages=HELLO, stream=True
    )
    with pytest.raises(openai.APIError) as failed:
        list(chunks)
    assert failed.value.code == "provider_failed"


def test_malformed_chunk_ends_the_stream_after_the_good_ones(gateway: RunningGateway) -> None:
    customer = gateway.customer("1")
    first, last = events(post(gateway, customer, gateway.model("malformed")).text)
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert last["error"]["code"] == "provider_failed"
    [row] = settled(gateway, customer)
    assert row["outcome"] == "cut"
    assert_charged(gateway, customer, row, 0)


@pytest.mark.parametrize(
    ("behaviour", "status", "code"),
    [
        ("error-in-stream-0", 502, "provider_failed"),
        ("cut-0", 502, "provider_failed"),
        ("cut-clean-0", 502, "provider_failed"),
        ("status-400", 400, "simulated_400"),
        ("status-401", 502, "provider_failed"),
        ("status-404", 404, "simulated_404"),
        ("status-429", 503, "provider_rate_limited"),
        ("status-500", 502, "provider_failed"),
        ("status-503", 503, "provider_unavailable"),
        ("status-504", 504, "provider_timeout"),
    ],
)
def test_failure_before_the_first_chunk_has_its_true_status_and_costs_nothing(
    gateway: RunningGateway, behaviour: str, status: int, code: str
) -> None:
    customer = gateway.customer("1")
    response = post(gateway, customer, gateway.model(behaviour))
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert response.json()["error"]["code"] == code
    [row] = settled(gateway, customer)
    assert (row["outcome"], row["status"], row["error_code"]) == ("failed", status, code)
    assert_uncharged(gateway, customer, row)


@pytest.mark.parametrize("stream", [False, True])
def test_answer_that_can_not_be_decompressed_is_the_providers_failure(
    gateway: RunningGateway, *, stream: bool
) -> None:
    with RawProvider.of(b"this is no gzip", headers={"content-encoding": "gzip"}) as provider:
        customer = gateway.customer("1")
        model = gateway.model("echo", base_url=provider.base_url)
        response = gateway.http(customer).post(CHAT, json=stream_body(model) | {"stream": stream})
    assert response.status_code == 502
    assert response.json()["error"]["code"] == "provider_failed"
    [row] = settled(gateway, customer)
    assert_uncharged(gateway, customer, row)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("word", ["a\\u0000b", "\\ud800", "x" * 100_000], ids=["NUL", "surrogate", "long"])
def test_words_of_a_provider_that_can_not_be_stored_do_not_stop_its_settlement(
    gateway: RunningGateway, word: str, *, stream: bool
) -> None:
    usage = '"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15}'
    part = '{"role":"assistant","content":"Hi"}'
    choice = f'{{"index":0,"finish_reason":"{word}","{"delta" if stream else "message"}":{part}}}'
    body = f'{{"id":"1","object":"chat.completion","choices":[{choice}],{usage}}}'
    content = f"data: {body}\n\ndata: [DONE]\n\n" if stream else body
    with RawProvider.of(content.encode()) as provider:
        customer = gateway.customer("1")
        model = gateway.model("echo", base_url=provider.base_url)
        response = gateway.http(customer).post(CHAT, json=stream_body(model) | {"stream": stream})
    assert response.status_code == 200
    [row] = settled(gateway, customer)
    assert row["outcome"] == "succeeded"
    assert gateway.balance(customer) == (1 - charge(10, 5), 0)


# Fallback


@pytest.mark.parametrize("behaviour", ["status-500", "error-in-stream-0"])
def test_stream_falls_back_before_the_first_chunk(gateway: RunningGateway, behaviour: str) -> None:
    customer = gateway.customer("1")
    response = post(gateway, customer, gateway.model(behaviour), models=[gateway.model("echo")])
    assert said(events(response.text)) == "You said: Hello"
    [row] = settled(gateway, customer)
    assert row["outcome"] == "succeeded"
    assert len(row["failed_routes"]) == 1


def test_stream_does_not_fall_back_after_the_first_chunk(gateway: RunningGateway) -> None:
    response = post(
        gateway,
        gateway.customer("1"),
        gateway.model("long-50+error-in-stream-1"),
        models=[gateway.model("echo")],
    )
    assert "error" in events(response.text)[-1]
    assert gateway.simulator.calls.count() == 1


# What a whole stream says


def test_stream_costs_what_the_plain_answer_costs(gateway: RunningGateway) -> None:
    model = gateway.model("long-137")
    plain, streamed = gateway.customer("1"), gateway.customer("1")
    gateway.openai(plain).chat.completions.create(model=model, messages=HELLO)
    assert events(post(gateway, streamed, model).text)[-1] == "[DONE]"
    assert gateway.balance(plain) == gateway.balance(streamed) == (1 - charge(PROMPT_TOKENS, 137), 0)


def test_gateway_usage_of_a_stream_is_its_record(gateway: RunningGateway) -> None:
    customer = gateway.customer("1")
    response = post(gateway, customer, gateway.model("long-40"), stream_options={"include_usage": True})
    *_, last, done = events(response.text)
    assert done == "[DONE]"
    told = last["gateway_usage"]
    row = gateway.request(response.headers["x-request-id"])
    assert told["request_id"] == row["id"]
    assert Decimal(told["charge_usd"]) == money(row["charge_usd"]) == charge(PROMPT_TOKENS, 40)
    assert Decimal(told["cost_usd"]) == money(row["cost_usd"])
    assert (
        told["tokens_charged"] == row["input_tokens"] + row["output_tokens"] == last["usage"]["total_tokens"]
    )
    assert Decimal(told["balance_after_usd"]) == gateway.balance(customer)[0]


def test_every_choice_is_streamed_and_charged(gateway: RunningGateway) -> None:
    customer = gateway.customer("1")
    found = events(
        post(gateway, customer, gateway.model("echo"), n=2, stream_options={"include_usage": True}).text
    )
    indices = {choice["index"] for event in found[:-1] for choice in event["choices"]}
    assert indices == {0, 1}
    usage = found[-2]["usage"]
    assert gateway.balance(customer)[0] == 1 - charge(usage["prompt_tokens"], usage["completion_tokens"])
    [alone] = settled(gateway, customer)
    single = gateway.customer("1")
    post(gateway, single, gateway.model("echo"))
    assert alone["output_tokens"] > gateway.requests(single)[0]["output_tokens"]


def test_connection_to_the_provider_is_kept_after_a_stream(gateway: RunningGateway) -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    choice = {"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}
    chunk = json.dumps({"id": "1", "choices": [choice], "usage": usage}).encode()
    said = b"data: " + chunk + b"\n\ndata: [DONE]\n\n"
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    # The end of the response comes after the end mark, as from any server that learns of it only then.
    parts = (head, f"{len(said):x}\r\n".encode() + said + b"\r\n", b"0\r\n\r\n")
    with RawProvider(*parts, keeps=True) as provider:
        customer = gateway.customer("1")
        model = gateway.model("echo", base_url=provider.base_url)
        for _ in range(3):
            assert events(post(gateway, customer, model).text)[-1] == "[DONE]"
        assert provider.connections == 1


async def test_fifty_concurrent_streams_are_each_whole_and_settled(gateway: RunningGateway) -> None:
    model = gateway.model("long-30")
    customers = [gateway.customer("1") for _ in range(50)]
    limits = httpx.Limits(max_connections=50)
    async with httpx.AsyncClient(base_url=gateway.url, timeout=60, trust_env=False, limits=limits) as client:
        responses = await asyncio.gather(
            *(
                client.post(
                    CHAT, json=stream_body(model), headers={"authorization": f"Bearer {customer.key}"}
                )
                for customer in customers
            )
        )
    for customer, response in zip(customers, responses, strict=True):
        found = events(response.text)
        assert found[-1] == "[DONE]"
        assert len(found) == 33
        assert gateway.balance(customer) == (1 - charge(PROMPT_TOKENS, 30), 0)


# Time. A gateway of its own, whose deadlines are short.


@pytest.fixture
def hasty(
    module_database: Database,
    module_postgrest: PostgRest,
    gateway: RunningGateway,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Iterator[RunningGateway]:
    """Half a second for a request; keep-alives after what the test says, else never."""
    silence = getattr(request, "param", 15.0)
    with serve(
        module_database,
        module_postgrest,
        gateway.simulator,
        tmp_path,
        request_timeout_seconds=0.5,
        keep_alive_seconds=silence,
    ) as served:
        served._numbers = gateway._numbers
        yield served


def test_hang_before_the_first_byte_is_504_at_the_deadline_and_costs_nothing(hasty: RunningGateway) -> None:
    customer = hasty.customer("1")
    response = post(hasty, customer, hasty.model("hang"))
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "provider_timeout"
    assert 0.5 <= response.elapsed.total_seconds() < 3
    hasty.simulator.calls.wait_for(lambda log: log.last().disconnected)
    [row] = settled(hasty, customer)
    assert (row["outcome"], row["status"]) == ("failed", 504)
    assert_uncharged(hasty, customer, row)


@pytest.mark.parametrize("hasty", [0.1], indirect=True)
def test_hang_after_keep_alives_ends_in_an_error_event_and_costs_nothing(hasty: RunningGateway) -> None:
    customer = hasty.customer("1")
    response = post(hasty, customer, hasty.model("hang"))
    assert response.status_code == 200
    assert response.text.startswith(": keep-alive\n\n")
    assert 2 <= response.text.count(": keep-alive") <= 5
    [last] = events(response.text)
    assert last["error"]["code"] == "provider_timeout"
    [row] = settled(hasty, customer)
    assert row["outcome"] == "failed"
    assert_uncharged(hasty, customer, row)


def test_hang_in_mid_stream_ends_at_the_deadline_and_is_charged_for_its_chunks(hasty: RunningGateway) -> None:
    customer = hasty.customer("1")
    *chunks, last = events(post(hasty, customer, hasty.model("long-50+hang-9")).text)
    assert len(chunks) == 9
    assert last["error"]["code"] == "provider_timeout"
    hasty.simulator.calls.wait_for(lambda log: log.last().disconnected)
    [row] = settled(hasty, customer)
    assert (row["outcome"], row["usage_estimated"]) == ("cut", True)
    assert_charged(hasty, customer, row, 8)


def test_head_waits_for_the_first_chunk(hasty: RunningGateway) -> None:
    customer = hasty.customer("1")
    model = hasty.model("slow-300ms")
    with RawClient(hasty.url).post(CHAT, stream_body(model), key=customer.key) as client:
        hasty.simulator.calls.wait_for(lambda log: log.count() == 1)
        assert client.silent_for(0.15)
        received = client.read_until(b"[DONE]")
    assert received.startswith(b"HTTP/1.1 200")
    assert b": keep-alive" not in received


@pytest.mark.parametrize("hasty", [0.1], indirect=True)
def test_keep_alive_comes_before_a_slow_first_chunk_and_is_no_event(hasty: RunningGateway) -> None:
    customer = hasty.customer("1")
    model = hasty.model("slow-250ms")
    with RawClient(hasty.url).post(CHAT, stream_body(model), key=customer.key) as client:
        client.read_until(b": keep-alive\n\n")
        assert hasty.simulator.calls.last().chunks_sent == 0
        assert client.received.startswith(b"HTTP/1.1 200")
        client.read_until(b"[DONE]")
    answer = hasty.openai(customer).chat.completions.create(model=model, messages=HELLO, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in answer) == "You said: Hello"


@pytest.mark.parametrize("hasty", [0.1], indirect=True)
def test_stream_still_falls_back_after_a_keep_alive(hasty: RunningGateway) -> None:
    customer = hasty.customer("1")
    response = post(hasty, customer, hasty.model("slow-200ms+status-500"), models=[hasty.model("echo")])
    assert response.text.startswith(": keep-alive")
    assert said(events(response.text)) == "You said: Hello"


def test_client_that_takes_nothing_has_left_when_the_lifetime_is_over(
    hasty: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completions, "STALLED_CLIENT_SECONDS", 0.5)
    # Each of a megabyte: sixty are more than the sockets and queues between the two hold.
    chunk = {"id": "1", "choices": [{"index": 0, "delta": {"content": "a "}}], "padding": "x" * 1_000_000}
    parts = [f"data: {json.dumps(chunk)}\n\n".encode()] * 60
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    monkeypatch.setattr(completions, "_QUEUED_EVENTS", 4)
    with RawProvider(head, *parts) as provider:
        customer = hasty.customer("1")
        model = hasty.model("echo", base_url=provider.base_url)
        client = RawClient(hasty.url, receive_buffer=4096)
        client.post(CHAT, stream_body(model), key=customer.key)
        assert provider.stopped.wait(10)
        [row] = settled(hasty, customer)
        client.leave()
    assert row["outcome"] == "cancelled"
    assert 0 < row["output_tokens"] < 100
    assert hasty.balance(customer) == (1 - charge(PROMPT_TOKENS, row["output_tokens"]), 0)


# The server stops.


def stop_during(
    gateway: RunningGateway,
    database: Database,
    postgrest: PostgRest,
    spool: Path,
    body: dict[str, Any],
    *,
    chunks: int = 0,
    locked_for: float | None = None,
) -> tuple[Customer, dict[str, Any]]:
    """Stop a gateway while a call of it runs, its account locked for some seconds; the call's row."""
    customer = gateway.customer("1")
    with database.connect(autocommit=False) as lock:
        unlock = Timer(locked_for or 0, lock.commit)
        with serve(database, postgrest, gateway.simulator, spool) as stopped:
            client = RawClient(stopped.url).post(CHAT, body, key=customer.key)
            gateway.simulator.calls.wait_for(
                lambda log: log.count() == 1 and log.last().chunks_sent == chunks
            )
            client.read_until(b"data: ", chunks)
            if locked_for is not None:
                lock.execute("select from gateway.accounts where customer_id = %s for update", [customer.id])
                unlock.start()
        client.leave()
        if locked_for is not None:
            unlock.join()
    [row] = settled(gateway, customer)
    assert not list(spool.iterdir())
    return customer, row


@pytest.fixture
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_GRACE_SECONDS", 0.1)


@pytest.mark.usefixtures("no_grace")
@pytest.mark.parametrize("locked_for", [None, 1.5], ids=["", "while the database is slow"])
def test_server_that_stops_in_mid_stream_settles_what_was_streamed(
    gateway: RunningGateway,
    module_database: Database,
    module_postgrest: PostgRest,
    tmp_path: Path,
    locked_for: float | None,
) -> None:
    body = stream_body(gateway.model("long-50+hang-11"))
    customer, row = stop_during(
        gateway, module_database, module_postgrest, tmp_path, body, chunks=11, locked_for=locked_for
    )
    assert row["outcome"] == "cancelled"
    assert_charged(gateway, customer, row, 10)


@pytest.mark.usefixtures("no_grace")
def test_server_that_stops_in_mid_call_frees_a_plain_answer_that_never_came(
    gateway: RunningGateway, module_database: Database, module_postgrest: PostgRest, tmp_path: Path
) -> None:
    body = {"model": gateway.model("hang"), "messages": HELLO}
    customer, row = stop_during(gateway, module_database, module_postgrest, tmp_path, body)
    assert (row["outcome"], row["error_code"]) == ("failed", "gateway_stopped")
    assert_uncharged(gateway, customer, row)


@pytest.mark.usefixtures("no_grace")
def test_server_that_stops_during_admission_leaves_no_hold(
    gateway: RunningGateway, module_database: Database, module_postgrest: PostgRest, tmp_path: Path
) -> None:
    customer = gateway.customer("1")
    body = stream_body(gateway.model("echo"))
    with module_database.connect(autocommit=False) as lock:
        lock.execute("select from gateway.accounts where customer_id = %s for update", [customer.id])
        unlock = Timer(1.0, lock.commit)
        with serve(module_database, module_postgrest, gateway.simulator, tmp_path) as stopped:
            client = RawClient(stopped.url).post(CHAT, body, key=customer.key)
            waiting = "select 1 from pg_locks where not granted"
            while not gateway.connection.execute(waiting).fetchone():
                assert client.silent_for(0.01)
            unlock.start()
        client.leave()
        unlock.join()
    [row] = settled(gateway, customer)
    assert row["outcome"] == "cancelled"
    assert gateway.simulator.calls.count() == 0
    assert_uncharged(gateway, customer, row)
