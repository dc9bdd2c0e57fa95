"""The metrics of settlements: one line each, in CloudWatch's embedded metric format."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gateway.database.client import DatabaseError
from gateway.database.rpc import Admission, Candidate, RateLimits, Settled, Settlement
from gateway.metering import Meter
from gateway.observability import Metrics, make_logger, open_metrics
from gateway.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

FUNCTIONS = Path(__file__).parents[2] / "functions"


def candidate(route_id: int, provider: str) -> Candidate:
    return Candidate(route_id, 1, "service", provider, None, None, "the/model", "upstream", 100)


class Database:
    """Admits to two routes, and settles as a test says."""

    def __init__(self) -> None:
        self.already = False
        self.broken = False

    async def admit_request(self, *, request_id: str, **_: Any) -> Admission:
        routes = (candidate(7, "first"), candidate(8, "second"))
        return Admission(request_id, "now", 1, "sk_abc…", 2, "0.1", RateLimits(), (), routes)

    async def settle_request(self, document: Mapping[str, Any]) -> Settled:
        if self.broken:
            raise DatabaseError("settle_request", "XX000", "broken")
        return Settled(
            document["request_id"], "markup", 15, "0.00002", "0.000021", "0.5", 1, "0.9", 45000, self.already
        )


class Spool:
    async def keep(self, settlement: Mapping[str, Any]) -> None:
        """Keep nothing: the tests look at the metrics alone."""

    async def replay(self, _database: Any) -> int:
        return 0


@pytest.fixture
def database() -> Database:
    return Database()


@pytest.fixture
def meter(database: Database) -> Meter:
    logger = make_logger(service="test-metrics")
    return Meter(database, Spool(), logger, Metrics("Sluice"))  # type: ignore[arg-type]


async def settle(meter: Meter, request_id: str = "req_1", **fields: Any) -> None:
    await meter.admit(request_id=request_id, seconds=1, models=["the/model"])
    usage = {"input": 10, "cached_input": 3, "output": 5}
    settlement = {"outcome": "succeeded", "status": 200, "latency_ms": 120, "route_id": 8, "usage": usage}
    await meter.settle(Settlement(**{"request_id": request_id, "admitted_at": "now", **settlement, **fields}))


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [line for line in told if "_aws" in line]


async def test_a_settlement_is_one_line_by_model_and_provider(
    meter: Meter, capsys: pytest.CaptureFixture[str]
) -> None:
    await settle(meter, time_to_first_token_ms=40)
    [line] = lines(capsys)
    [described] = line["_aws"]["CloudWatchMetrics"]
    assert described["Namespace"] == "Sluice"
    assert described["Dimensions"] == [["service"], ["model", "provider"]]
    assert (line["service"], line["model"], line["provider"]) == ("sluice", "the/model", "second")
    units = {metric["Name"]: metric["Unit"] for metric in described["Metrics"]}
    values = {name: line[name] for name in units}
    assert values == {
        "Requests": [1.0],
        "Errors": [0.0],
        "PendingSettlements": [0.0],
        "Latency": [120.0],
        "TimeToFirstToken": [40.0],
        "InputTokens": [10.0],
        "CachedInputTokens": [3.0],
        "OutputTokens": [5.0],
        "CostUsd": [0.00002],
        "ChargeUsd": [0.000021],
        "UncollectedUsd": [0.5],
    }
    assert (units["Latency"], units["InputTokens"], units["CostUsd"]) == ("Milliseconds", "Count", "None")


@pytest.mark.parametrize(
    ("outcome", "errors"), [("succeeded", 0), ("cancelled", 0), ("failed", 1), ("cut", 1)]
)
async def test_errors_are_the_calls_that_failed_and_not_those_that_were_left(
    meter: Meter, capsys: pytest.CaptureFixture[str], outcome: str, errors: int
) -> None:
    await settle(meter, outcome=outcome, usage=None, route_id=None)
    [line] = lines(capsys)
    assert line["Errors"] == [errors]
    assert "InputTokens" not in line
    assert line["provider"] == "first"


async def test_a_settlement_that_is_kept_is_pending_and_has_no_cost(
    meter: Meter, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    database.broken = True
    await settle(meter)
    [line] = lines(capsys)
    assert (line["PendingSettlements"], line["InputTokens"]) == ([1.0], [10.0])
    assert "CostUsd" not in line


async def test_what_was_settled_before_is_not_counted_again(
    meter: Meter, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    database.already = True
    await settle(meter)
    assert lines(capsys) == []


async def test_requests_at_once_do_not_mix(meter: Meter, capsys: pytest.CaptureFixture[str]) -> None:
    await asyncio.gather(*(settle(meter, f"req_{number}", latency_ms=number) for number in range(20)))
    assert sorted(line["Latency"][0] for line in lines(capsys)) == list(range(20))


async def test_metrics_that_fail_harm_no_settlement(
    meter: Meter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("no metrics today")

    monkeypatch.setattr(Metrics, "record", fail)
    await settle(meter)
    assert "metrics of a request could not be written" in caplog.text


def test_metrics_are_off_unless_a_namespace_is_set() -> None:
    settings = Settings(rest_url="https://db.example.org", supabase_key="k")  # type: ignore[arg-type]
    assert open_metrics(settings) is None
    on = settings.model_copy(update={"metrics_namespace": "Sluice"})
    assert open_metrics(on) is not None


def test_what_is_off_is_not_imported() -> None:
    program = (
        "import os, sys; os.environ.update(SUPABASE_URL='https://db.example.org', SUPABASE_KEY='k')\n"
        "from gateway.runtime.process import current_process; current_process()\n"
        "off = ('gateway.runtime.tracing', 'aws_xray_sdk', 'boto3', 'botocore.session', 'mangum')\n"
        "print([name for name in off if name in sys.modules])"
    )
    told = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(FUNCTIONS)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == "[]"
