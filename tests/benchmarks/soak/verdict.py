"""What is judged of a soak: memory that stays, and nothing that is left open."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Any

from tests.benchmarks.slopes import trend
from tests.benchmarks.soak.books import Check

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.benchmarks.soak.samples import Sample

BYTES_A_CALL = 100
"""The growth of the gateway's memory that has to be ruled out, with 97.5 % confidence.

What a call can leave behind is an object that holds others: a task with its frames, a connection with its
buffers, a parsed body. Each is more than 1 kB, so that this finds one that is left by every tenth call. On
Lambda, where an instance makes one call at a time, it is less than 1 MB in a day of ten-second calls.
"""
LEAST_SECONDS = 300
"""Of samples. What is shorter has too few of them to rule such a growth out, and isn't judged."""


def settled_part(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Return the last two thirds: before them caches and the allocator's arenas are filled."""
    return samples[len(samples) // 3 :]


def growth(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return how the gateway's resident memory grew in the last two thirds, by the minute and by the call."""
    part = settled_part(samples)
    memory = [sample.gateway.resident for sample in part]
    by_minute = trend([sample.seconds / 60 for sample in part], memory)
    by_call = trend([sample.calls for sample in part], memory)
    return {
        "seconds": part[-1].seconds - part[0].seconds,
        "calls": part[-1].calls - part[0].calls,
        "first_bytes": memory[0],
        "last_bytes": memory[-1],
        "most_bytes": max(memory),
        "bytes_a_minute": {"slope": by_minute.slope, "low": by_minute.low, "high": by_minute.high},
        "bytes_a_call": {"slope": by_call.slope, "low": by_call.low, "high": by_call.high},
    }


def check(
    samples: Sequence[Sample], before: Sample, after: Sample, grown: Mapping[str, Any] | None
) -> Iterator[Check]:
    """Yield what is held against the soak. `before` and `after` are at rest."""
    more = collections.Counter(after.tasks) - collections.Counter(before.tasks)
    yield Check("no task is left", not more, f"{dict(more) or 'none'} more than at the beginning")
    for name, one, other in (
        ("the gateway", before.gateway, after.gateway),
        ("PostgREST", before.postgrest, after.postgrest),
    ):
        yield Check(
            f"no socket and no file of {name}'s is left open",
            other.sockets <= one.sockets and other.files <= one.files,
            f"{one.sockets} → {other.sockets} sockets, {one.files} → {other.files} files",
        )
    yield Check(
        "no connection to the database is left",
        after.backends <= before.backends,
        f"{before.backends} → {after.backends}",
    )
    yield Check("no hold is left", after.holds == 0, f"{after.holds} holds of {after.held_usd} USD")
    wrong = sum(sample.disagreements for sample in samples)
    yield Check(
        "balance is the ledger's sum, held the holds', and none overdrawn, at each sample",
        wrong == 0,
        f"{wrong} accounts differed in {len(samples)} samples",
    )
    idle = max(sample.idle_in_transaction for sample in samples)
    yield Check("no transaction stays open", idle == 0, f"at most {idle} idle in one for five seconds")
    if grown is not None and grown["seconds"] >= LEAST_SECONDS:
        told = grown["bytes_a_call"]
        yield Check(
            f"memory grows by less than {BYTES_A_CALL} bytes a call",
            told["high"] < BYTES_A_CALL,
            f"{told['slope']:.1f} bytes, 95 % between {told['low']:.1f} and {told['high']:.1f}",
        )
