"""The database goes away: nothing is called that can't be held, nothing used is lost or paid twice."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from gateway import metering
from gateway.database.rpc import Database as Functions
from gateway.runtime.process import Process
from infra.local.database import create_database, create_roles, migrate
from infra.local.postgres import EmbeddedPostgres
from infra.local.postgrest import PostgRest
from tests.fixtures.database import AUTHENTICATOR_PASSWORD, JWT_SECRET, SETTINGS, Database
from tests.fixtures.gateway import serve
from tests.fixtures.wire import CHAT, HELLO, RawClient, charge, settled

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import httpx

    from tests.fixtures.gateway import Customer, RunningGateway
    from tests.fixtures.simulator import Simulator

NAME = "outage"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL of this module's own, to be stopped."""
    postgres = EmbeddedPostgres(tmp_path_factory.mktemp("postgres") / "data", settings=SETTINGS)
    with postgres:
        create_roles(postgres.url(), authenticator_password=AUTHENTICATOR_PASSWORD)
        create_database(postgres.url(), NAME)
        migrate(postgres.url(NAME))
        yield postgres


@pytest.fixture(scope="module")
def rest(server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgRest]:
    url = server.url(NAME, user="authenticator", password=AUTHENTICATOR_PASSWORD)
    log = tmp_path_factory.mktemp("postgrest") / "log"
    with PostgRest(url, jwt_secret=JWT_SECRET, log=log) as postgrest:
        yield postgrest


@pytest.fixture(scope="module")
def books(server: EmbeddedPostgres) -> Database:
    authenticator = server.url(NAME, user="authenticator", password=AUTHENTICATOR_PASSWORD)
    return Database(NAME, server.url(NAME), authenticator)


@pytest.fixture(scope="module")
def numbers() -> Iterator[int]:
    """Names for what the module's gateways make in the one database."""
    return itertools.count(1)


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def gateway(
    server: EmbeddedPostgres,
    rest: PostgRest,
    *,
    books: Database,
    simulator: Simulator,
    spool: Path,
    numbers: Iterator[int],
) -> Iterator[RunningGateway]:
    """A gateway over them. Whatever a test has stopped runs again afterwards, and the books add up."""
    with serve(books, rest, simulator, spool) as served:
        served._numbers = numbers
        yield served
    if server.pid is None:
        server.start()
        rest.stop()  # else it waits longer and longer between its attempts to connect
    rest.start()
    with books.connect() as connection:
        served.connection = connection
        assert served.books_add_up()


def ask(gateway: RunningGateway, customer: Customer, model: str, *, stream: bool = False) -> httpx.Response:
    asked: dict[str, Any] = {"model": model, "messages": HELLO, "stream": stream}
    if stream:
        asked["stream_options"] = {"include_usage": True}
    return gateway.http(customer).post(CHAT, json=asked)


def answered_in_an_outage(
    gateway: RunningGateway, rest: PostgRest, customer: Customer, *, stream: bool = False
) -> dict[str, Any]:
    """Stop PostgREST between admission and settlement; the gateway_usage of the answer."""
    asked: dict[str, Any] = {"model": gateway.model("slow-300ms"), "messages": HELLO, "stream": stream}
    if stream:
        asked["stream_options"] = {"include_usage": True}
    gateway.simulator.calls.clear()
    with RawClient(gateway.url) as client:
        client.post(CHAT, asked, key=customer.key)
        gateway.simulator.calls.wait_for(lambda log: log.count() == 1)
        rest.stop()
        if stream:
            received = client.read_until(b"[DONE]").decode()
            events = [line[6:] for line in received.splitlines() if line.startswith("data: {")]
            told: dict[str, Any] = json.loads(events[-1])["gateway_usage"]
            assert "Hello" in received
        else:
            status, _, body = client.response()
            assert status == 200
            answer = json.loads(body)
            assert answer["choices"][0]["message"]["content"] == "You said: Hello"
            told = answer["gateway_usage"]
    return told


def replay(gateway: RunningGateway, times: int = 1) -> list[int]:
    """Replay what is kept by so many processes at once; how many each settled."""

    async def run() -> list[int]:
        processes = [Process.start(gateway.settings) for _ in range(times)]
        try:
            return await asyncio.gather(*(each.spool.replay(each.database) for each in processes))
        finally:
            for each in processes:
                await each.aclose()

    return asyncio.run(run())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stopped", ["PostgREST", "PostgreSQL"])
def test_call_without_a_database_is_503_within_seconds_and_reaches_no_provider(
    gateway: RunningGateway, server: EmbeddedPostgres, rest: PostgRest, stopped: str, *, stream: bool
) -> None:
    model, customer = gateway.model("echo"), gateway.customer("1")
    (rest if stopped == "PostgREST" else server).stop()
    began = time.monotonic()
    response = ask(gateway, customer, model, stream=stream)
    assert time.monotonic() - began < 5
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.headers["x-request-id"].startswith("req_")
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("server_error", "database_unavailable")
    assert "127.0.0.1" not in response.text
    assert gateway.simulator.calls.count() == 0


@pytest.mark.parametrize("stream", [False, True])
def test_settlement_in_an_outage_is_kept_and_replayed_once(
    gateway: RunningGateway, rest: PostgRest, spool: Path, *, stream: bool
) -> None:
    customer = gateway.customer("1")
    told = answered_in_an_outage(gateway, rest, customer, stream=stream)
    [row] = gateway.requests(customer)
    assert told == {
        "request_id": row["id"],
        "user_api_key": f"{customer.key[:9]}…",
        "status": "pending",
    }
    assert row["state"] == "held"
    [kept] = list(spool.iterdir())
    assert json.loads(kept.read_bytes())["request_id"] == row["id"]
    assert spool.stat().st_mode & 0o077 == 0
    # Still away: it stays where it is.
    assert replay(gateway) == [0]
    assert kept.exists()
    rest.start()
    copy = kept.read_bytes()
    assert sum(replay(gateway, 2)) in {1, 2}
    assert not kept.exists()
    [row] = settled(gateway, customer)
    due = charge(row["input_tokens"], row["output_tokens"])
    assert due > 0
    assert gateway.balance(customer) == (1 - due, 0)
    # A file that comes back, from a backup or by a crash before it was removed, changes nothing.
    kept.write_bytes(copy)
    assert replay(gateway) == [1]
    assert not kept.exists()
    assert gateway.balance(customer) == (1 - due, 0)


def test_file_that_can_not_be_settled_stays_and_blocks_none(
    gateway: RunningGateway, rest: PostgRest, spool: Path
) -> None:
    customer = gateway.customer("1")
    answered_in_an_outage(gateway, rest, customer)
    rest.start()
    [good] = list(spool.iterdir())
    document = json.loads(good.read_bytes())
    # All but the last come before the good one in the order of names.
    bad = {
        "req_000.settlement.json": json.dumps({**document, "request_id": "req_000"}),
        "req_001.settlement.json": json.dumps({**document, "usage": {"input": "many"}}),
        "req_002.settlement.json": json.dumps({**document, "outcome": "nonsense"}),
        "req_003.settlement.json": json.dumps({**document, "route_id": -1}),
        "req_004.settlement.json": "",
        "req_005.settlement.json": '{"request_id": ',
        "req_006.settlement.json": "[]",
        "req_z.settlement.json": json.dumps({**document, "request_id": "req_z"}),
    }
    for name, content in bad.items():
        (spool / name).write_text(content)
    (spool / "req_007.settlement.json").mkdir()
    # A writer that was killed in the middle leaves this.
    (spool / "req_008.settlement.1.partial").write_text('{"request')
    assert replay(gateway) == [1]
    assert not good.exists()
    assert {path.name for path in spool.glob("*.json")} == {*bad, "req_007.settlement.json"}
    assert gateway.balance(customer)[1] == 0


def test_settlement_that_no_disk_takes_is_in_the_log_and_the_answer_is_given(
    gateway: RunningGateway, rest: PostgRest, spool: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Not even root can make a directory where a file is.
    spool.write_text("in the way")
    customer = gateway.customer("1")
    told = answered_in_an_outage(gateway, rest, customer)
    assert told["status"] == "pending"
    [failed] = [record for record in caplog.records if "could not be kept" in record.message]
    assert failed.levelname == "CRITICAL"
    [kept] = [record for record in caplog.records if "kept for a replay" in record.message]
    document = vars(kept)["settlement"]
    # It is all there: what the log has is enough to settle by.
    rest.start()
    spool.unlink()
    spool.mkdir()
    (spool / f"{told['request_id']}.settlement.json").write_text(json.dumps(document))
    assert replay(gateway) == [1]
    [row] = settled(gateway, customer)
    assert row["outcome"] == "succeeded"
    assert gateway.balance(customer) == (1 - charge(row["input_tokens"], row["output_tokens"]), 0)


def test_settlement_that_fails_for_a_reason_nobody_foresaw_is_kept(
    gateway: RunningGateway, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_self: Functions, _settlement: object) -> None:
        raise RuntimeError("the client has been closed")

    customer = gateway.customer("1")
    with monkeypatch.context() as patched:
        patched.setattr(Functions, "settle_request", fail)
        response = ask(gateway, customer, gateway.model("echo"))
    assert response.status_code == 200
    assert response.json()["gateway_usage"]["status"] == "pending"
    assert len(list(spool.iterdir())) == 1
    assert replay(gateway) == [1]
    assert gateway.balance(customer)[0] < 1


def test_short_outage_is_bridged_by_retries(
    gateway: RunningGateway, rest: PostgRest, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # PostgREST needs 0.3 s to start, longer than the pauses are together.
    monkeypatch.setattr(metering, "_SETTLE_PAUSE_SECONDS", 0.6)
    customer = gateway.customer("1")
    model = gateway.model("slow-300ms")
    with RawClient(gateway.url) as client:
        client.post(CHAT, {"model": model, "messages": HELLO}, key=customer.key)
        gateway.simulator.calls.wait_for(lambda log: log.count() == 1)
        rest.stop()
        gateway.simulator.calls.wait_for(lambda log: log.last().finished)
        rest.start()
        _, _, body = client.response()
    told = json.loads(body)["gateway_usage"]
    assert "charge_usd" in told
    assert not spool.exists()
    settled(gateway, customer)
