"""What the schedule does: kept settlements, expired holds, partitions."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from gateway.auth import key_hash
from gateway.database.client import DatabaseAwayError, DatabaseError
from gateway.database.rpc import Admission, Settlement
from gateway.http import new_request_id
from gateway.maintenance import BATCH, run_once
from gateway.runtime.process import Process, current_process
from tests.fixtures.management import Management, management, settings

if TYPE_CHECKING:
    import asyncio
    from pathlib import Path

    from infra.local.postgrest import PostgRest

__all__ = ["management"]


async def admitted(management: Management, key: str) -> Admission:
    model = await management.model()
    await management.ok(
        "POST",
        "/admin/services",
        {
            "name": f"of {model['name']}",
            "provider": "openai-compatible",
            "base_url": "https://8.8.8.8/v1",
            "enabled_models": [model["name"]],
        },
        status=201,
    )
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
    return admission


def run_out(management: Management, admission: Admission) -> None:
    """Let a hold's lease have run out."""
    with management.connection.transaction():
        management.query("select set_config('gateway.engine', 'on', true)")
        management.query(
            "update gateway.requests set lease_until = now() - interval '1 s' where id = %s returning id",
            admission.request_id,
        )


def settlement_of(admission: Admission) -> dict[str, Any]:
    return Settlement(
        request_id=admission.request_id,
        admitted_at=admission.admitted_at,
        outcome="succeeded",
        status=200,
        latency_ms=1,
        route_id=admission.candidates[0].route_id,
        usage={"input": 10, "output": 5},
    ).as_json()


async def test_expired_holds_are_ended_once(management: Management) -> None:
    customer = management.customer("1")
    first, second = [await admitted(management, customer.key) for _ in range(2)]
    run_out(management, first)
    sweep = await run_once(management.process)
    assert sweep.as_json() == {
        "settlements_replayed": 0,
        "holds_expired": 1,
        "charged_usd": "0",
        "released_usd": "0.00294",
        "partitions_made": [],
        "idempotency_keys_forgotten": 0,
        "retired_secrets_forgotten": 0,
        "usage_rows_closed": 0,
        "provider_costs_compared": 0,
        "ledger_months_closed": [],
        "log_months_dropped": [],
        "events_delivered": 0,
        "events_failed": 0,
        "events_published": 0,
        "events_not_published": 0,
        "events_forgotten": 0,
        "ledger_ok": True,
    }
    balance = await management.ok("GET", "/user/balance", key=customer.key)
    assert (balance["balance_usd"], balance["held_usd"]) == ("1", second.hold_usd)
    assert (await run_once(management.process)).holds_expired == 0
    assert "Holds have expired" in management.log.text


async def test_all_expired_holds_are_ended_however_many(
    management: Management, monkeypatch: pytest.MonkeyPatch
) -> None:
    customer = management.customer("1")
    for _ in range(3):
        run_out(management, await admitted(management, customer.key))
    assert BATCH > 3
    monkeypatch.setattr("gateway.maintenance.BATCH", 2)
    sweep = await run_once(management.process)
    assert sweep.holds_expired == 3
    assert f"{sweep.released_usd:f}" == "0.00882"


async def test_kept_settlement_is_replayed_before_its_hold_expires(management: Management) -> None:
    customer = management.customer("1")
    admission = await admitted(management, customer.key)
    await management.process.spool.keep(settlement_of(admission))
    run_out(management, admission)
    sweep = await run_once(management.process)
    assert (sweep.settlements_replayed, sweep.holds_expired) == (1, 0)
    record = await management.ok("GET", f"/v1/requests/{admission.request_id}", key=customer.key)
    assert (record["state"], record["charge_usd"]) == ("settled", "0.000063")
    assert (await run_once(management.process)).settlements_replayed == 0


async def test_partitions_are_made_ahead(management: Management) -> None:
    now = datetime.now(UTC)
    months = now.year * 12 + now.month - 1 + 3
    name = f"requests_{months // 12}_{months % 12 + 1:02}"
    management.connection.execute(f"drop table gateway.{name}".encode())
    sweep = await run_once(management.process)
    assert sweep.partitions_made == (name,)
    assert management.value("select to_regclass(%s) is not null", f"gateway.{name}")


async def test_step_that_fails_keeps_no_other_from_being_done(
    management: Management, monkeypatch: pytest.MonkeyPatch
) -> None:
    customer = management.customer("1")
    run_out(management, await admitted(management, customer.key))

    async def fail(*_args: object) -> int:
        raise DatabaseError("settle_request", "XX000", "broken")

    monkeypatch.setattr("gateway.spool.FileSpool.replay", fail)
    with pytest.raises(DatabaseError, match="broken"):
        await run_once(management.process)
    balance = await management.ok("GET", "/user/balance", key=customer.key)
    assert balance["held_usd"] == "0"


async def test_database_that_is_away_is_told(tmp_path: Path, unused_tcp_port: int) -> None:
    process = Process.start(settings(f"http://127.0.0.1:{unused_tcp_port}", "key", tmp_path))
    with pytest.raises(DatabaseAwayError):
        await run_once(process)
    await process.aclose()


def test_schedules_handler_runs_again_and_again_on_one_loop(
    module_postgrest: PostgRest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from maintenance import handler as module

    monkeypatch.setenv("SLUICE_REST_URL", module_postgrest.url)
    monkeypatch.setenv("SUPABASE_KEY", module_postgrest.token("service_role"))
    monkeypatch.setenv("SLUICE_SPOOL_DIR", str(tmp_path / "spool"))
    current_process.cache_clear()
    module._runner.cache_clear()
    try:
        # A client that was opened on a loop that is closed by now would fail in the second.
        for _ in range(3):
            assert module.handler({"source": "aws.events"}, None)["settlements_replayed"] == 0
    finally:
        runner: asyncio.Runner = module._runner()
        runner.run(current_process().aclose())
        runner.close()
        module._runner.cache_clear()
        current_process.cache_clear()


async def test_idempotency_keys_older_than_a_day_are_forgotten(management: Management) -> None:
    customer = management.customer()
    with management.database.connect() as connection:
        connection.execute("select set_config('gateway.engine', 'on', false)")
        for name, age in (("old", "25 hours"), ("young", "23 hours")):
            connection.execute(
                "insert into gateway.idempotency_keys"
                " (key_id, idempotency_key, body_hash, request_id, charged, created_at)"
                " values (%s, %s, sha256('x'), 'req_00000000', true, now() - %s::interval)",
                [customer.key_id, name, age],
            )
    sweep = await run_once(management.process)
    assert sweep.idempotency_keys_forgotten == 1
    with management.database.connect() as connection:
        left = connection.execute("select idempotency_key from gateway.idempotency_keys").fetchall()
    assert left == [("young",)]
