"""What a soak is judged by: each thing that is left behind is found, and a calm one passes."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.benchmarks.memory import Holding
from tests.benchmarks.soak import verdict
from tests.benchmarks.soak.samples import Sample

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 2**20
REST = Sample(
    seconds=30.0,
    calls=500,
    pause_seconds=0.1,
    busy=0.0,
    gateway=Holding(100 * MIB, 90 * MIB, 12, 5, 1),
    postgrest=Holding(30 * MIB, 30 * MIB, 20, 5, 1),
    postgres=Holding(80 * MIB, 60 * MIB, 90, 4, 8),
    heap_bytes=12 * MIB,
    heap_blocks=260_000,
    tasks={"Server.serve": 1, "LifespanOn.main": 1},
    backends=2,
    idle_in_transaction=0,
    holds=0,
    held_usd="0",
    disagreements=0,
)


def samples(
    *,
    minutes: float = 10.0,
    heap_bytes_a_call: float = 0.0,
    blocks_a_call: float = 0.0,
    resident_bytes_a_call: float = 0.0,
) -> list[Sample]:
    """A soak of 50 calls a second, a sample each ten seconds, with the noise that calls in flight make."""
    noise = random.Random(7)  # noqa: S311 - the same noise in each run
    made = []
    for number in range(1, int(minutes * 6) + 1):
        calls = 500 * number
        resident = 100 * MIB + int(resident_bytes_a_call * calls + noise.gauss(0, 100_000))
        made.append(
            replace(
                REST,
                seconds=10.0 * number,
                calls=calls,
                gateway=replace(REST.gateway, resident=resident),
                heap_bytes=12 * MIB + int(heap_bytes_a_call * calls + noise.gauss(0, 100_000)),
                heap_blocks=260_000 + int(blocks_a_call * calls + noise.gauss(0, 500)),
                tasks={**REST.tasks, "answer": noise.randint(0, 16)},
                holds=noise.randint(0, 16),
                held_usd="0.01",
            )
        )
    return made


def failed(load: list[Sample], *, before: Sample = REST, after: Sample = REST) -> list[str]:
    return [check.what for check in verdict.check(load, before, after, verdict.growth(load)) if not check.ok]


def test_a_calm_soak_passes() -> None:
    load = samples()
    checks = list(verdict.check(load, REST, REST, verdict.growth(load)))
    assert len(checks) == 10
    assert [check for check in checks if not check.ok] == []


@pytest.mark.parametrize(
    ("leak", "found"),
    [
        ({"heap_bytes_a_call": 100.0}, "the C heap in use"),
        ({"blocks_a_call": 1.0}, "Python's heap in use"),
        ({"resident_bytes_a_call": 520.0}, "resident memory"),
    ],
)
def test_a_leak_by_every_tenth_call_is_found(leak: dict[str, float], found: str) -> None:
    [what] = failed(samples(**leak))
    assert what.startswith(found)


def test_the_first_third_may_grow() -> None:
    load = samples()
    filled = [
        replace(sample, heap_bytes=sample.heap_bytes - 200_000 * (20 - number)) if number < 20 else sample
        for number, sample in enumerate(load)
    ]
    assert failed(filled) == []


def test_a_short_soak_is_not_judged_by_memory() -> None:
    load = samples(minutes=4, heap_bytes_a_call=1000.0)
    assert failed(load) == []
    assert verdict.growth(load)["heap_bytes_a_call"]["low"] > 100


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda rest: replace(rest, tasks={**rest.tasks, "answer": 1}), "no task is left"),
        (lambda rest: replace(rest, tasks={"other": 1}), "no task is left"),
        (lambda rest: replace(rest, gateway=replace(rest.gateway, sockets=6)), "of the gateway's is left"),
        (lambda rest: replace(rest, gateway=replace(rest.gateway, files=13)), "of the gateway's is left"),
        (lambda rest: replace(rest, postgrest=replace(rest.postgrest, sockets=6)), "of PostgREST's is left"),
        (lambda rest: replace(rest, backends=3), "no connection to the database is left"),
        (lambda rest: replace(rest, holds=1), "no hold is left"),
    ],
)
def test_what_is_left_at_rest_is_found(change: Callable[[Sample], Sample], found: str) -> None:
    [what] = failed(samples(), after=change(REST))
    assert found in what


@pytest.mark.parametrize(
    ("change", "found"),
    [({"disagreements": 1}, "balance is the ledger's sum"), ({"idle_in_transaction": 1}, "no transaction")],
)
def test_what_is_wrong_in_one_sample_is_found(change: dict[str, Any], found: str) -> None:
    load = samples()
    load[30] = replace(load[30], **change)
    [what] = failed(load)
    assert what.startswith(found)


def test_less_than_at_the_beginning_is_well() -> None:
    less = replace(REST, backends=1, tasks={}, gateway=replace(REST.gateway, sockets=3, files=9))
    assert failed(samples(), after=less) == []
