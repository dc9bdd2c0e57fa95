"""Settlements on Lambda that could not reach the database: through SQS, and replayed once."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from gateway.auth import key_hash
from gateway.database.rpc import Admission, Settlement
from gateway.http import new_request_id
from gateway.maintenance import answer
from gateway.runtime.process import Process
from tests.fixtures.emulator import FUNCTIONS
from tests.fixtures.management import Management, management, settings
from tests.fixtures.queue import MAX_RECEIVES, SettlementQueue, settlement_queue, sqs_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from infra.local.postgrest import PostgRest

__all__ = ["management", "settlement_queue", "sqs_server"]


@pytest.fixture
async def cut_off(settlement_queue: SettlementQueue, tmp_path: Path) -> AsyncIterator[Process]:
    """A process with the queue for a spool, whose database is away."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    process = Process.start(
        settings(f"http://127.0.0.1:{port}", "sb_secret_x", tmp_path, spool_queue_url=settlement_queue.url)
    )
    yield process
    await process.aclose()


@pytest.fixture
async def maintenance(
    module_postgrest: PostgRest, settlement_queue: SettlementQueue, tmp_path: Path
) -> AsyncIterator[Process]:
    """The maintenance function's process, whose database is there."""
    key = module_postgrest.token("service_role")
    process = Process.start(
        settings(module_postgrest.url, key, tmp_path, spool_queue_url=settlement_queue.url)
    )
    yield process
    await process.aclose()


async def admitted(management: Management, key: str) -> tuple[Admission, Settlement]:
    """A held request, and what is to be settled of it: 0.000063 USD."""
    model = await management.model()
    service = {
        "name": f"of {model['name']}",
        "provider": "openai-compatible",
        "base_url": "https://8.8.8.8/v1",
        "enabled_models": [model["name"]],
    }
    await management.ok("POST", "/admin/services", service, status=201)
    admission = await management.process.database.admit_request(
        key_hash=key_hash(key),
        request_id=new_request_id(),
        models=[model["name"]],
        endpoint="chat.completions",
        lease_seconds=60,
        input_tokens_bound=1000,
        max_output_tokens=100,
    )
    assert isinstance(admission, Admission)
    settlement = Settlement(
        request_id=admission.request_id,
        admitted_at=admission.admitted_at,
        outcome="succeeded",
        status=200,
        latency_ms=1,
        route_id=admission.candidates[0].route_id,
        usage={"input": 10, "output": 5},
    )
    return admission, settlement


async def test_settlement_that_cannot_reach_the_database_is_replayed_once_from_the_queue(
    management: Management, settlement_queue: SettlementQueue, cut_off: Process, maintenance: Process
) -> None:
    customer = management.customer("1")
    _, settlement = await admitted(management, customer.key)
    assert await cut_off.meter.settle(settlement) is None
    assert settlement_queue.waiting() == 1
    # Still away: it stays in the queue.
    assert await settlement_queue.poll(functools.partial(answer, cut_off)) == 1
    assert settlement_queue.waiting() == 1
    # Back. SQS may hand a message out twice, and two consumers may have it at the same time.
    settlement_queue.send(settlement.as_json())
    replay = functools.partial(answer, maintenance)
    await asyncio.gather(settlement_queue.poll(replay), settlement_queue.poll(replay))
    settlement_queue.send(settlement.as_json())
    await settlement_queue.poll(replay)
    assert settlement_queue.waiting() == 0
    assert settlement_queue.dead_letters() == []
    balance = await management.ok("GET", "/user/balance", key=customer.key)
    assert (balance["balance_usd"], balance["held_usd"]) == ("0.999937", "0")
    entries = management.query(
        "select amount_usd::text from gateway.ledger_entries where request_id = %s", settlement.request_id
    )
    assert entries == [("-0.0000630000",)]


async def test_what_the_database_refuses_reaches_the_dead_letter_queue_and_holds_nobody_up(
    management: Management, settlement_queue: SettlementQueue, maintenance: Process
) -> None:
    customer = management.customer("1")
    _, settlement = await admitted(management, customer.key)
    unknown = {**settlement.as_json(), "request_id": "req_" + "0" * 32}
    for body in ("{cut", "[]", unknown, settlement.as_json()):
        settlement_queue.send(body)
    for _ in range(MAX_RECEIVES + 2):
        await settlement_queue.poll(functools.partial(answer, maintenance))
    assert settlement_queue.waiting() == 0
    assert sorted(settlement_queue.dead_letters()) == sorted(["{cut", "[]", json.dumps(unknown)])
    balance = await management.ok("GET", "/user/balance", key=customer.key)
    assert (balance["balance_usd"], balance["held_usd"]) == ("0.999937", "0")


async def test_an_event_without_messages_is_the_schedules(maintenance: Process) -> None:
    told = await answer(maintenance, {"source": "aws.events", "detail-type": "Scheduled Event"})
    assert told["settlements_replayed"] == 0
    assert set(told) >= {"holds_expired", "partitions_made"}


async def test_a_queue_that_is_away_too_leaves_the_settlement_in_the_log(
    cut_off: Process, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", f"http://127.0.0.1:{port}")
    settlement = Settlement("req_1", "2026-11-21T00:00:00Z", "succeeded", 200, 1)
    assert await cut_off.meter.settle(settlement) is None
    [kept] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert getattr(kept, "settlement", None) == settlement.as_json()
    [lost] = [record for record in caplog.records if record.levelname == "CRITICAL"]
    assert lost.exc_info is not None
    assert isinstance(lost.exc_info[1], OSError)


def test_boto3_is_imported_by_nothing_but_a_failure() -> None:
    program: Any = (
        "import sys; import chat.handler, maintenance.handler, gateway.runtime.streaming;"
        "unwanted = ('boto3', 'botocore.session', 'mangum', 'aws_xray_sdk');"
        "print([name for name in unwanted if name in sys.modules])"
    )
    told = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(FUNCTIONS)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == "[]"
