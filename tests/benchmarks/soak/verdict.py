"""What is judged of a soak: memory that stays, and nothing that is left open."""

from __future__ import annotations

import collections
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tests.benchmarks.slopes import trend
from tests.benchmarks.soak.books import Check

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.benchmarks.soak.samples import Sample

BYTES_A_CALL = 100
BLOCKS_A_CALL = 1
"""The growth of what is in use, of C's heap and of Python's, that has to be ruled out with 97.5 % confidence.

What a call can leave behind is an object that holds others: a task with its frames, a connection with its
buffers, a parsed body. Each is more than 1 kB in some ten blocks: this finds one that is left by every tenth
call.
"""
RESIDENT_BYTES_A_CALL = 512
"""The same for resident memory. In it is what the C allocator has free between blocks in use and doesn't give
back, which grows for long after nothing else does. An instance on Lambda lives for hours and takes one call
at a time: for ten thousand calls this is 5 MB of its 512.
"""
LEAST_SECONDS = 300
"""Of samples. What is shorter has too few of them to rule such a growth out, and isn't judged."""


def settled_part(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Return the last two thirds: before them caches and the allocator's arenas are filled."""
    return samples[len(samples) // 3 :]


def growth(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return how the gateway's memory grew in the last two thirds, by the call and by the minute.

    Raises ValueError where there are too few samples for a trend.
    """
    part = settled_part(samples)
    calls = [sample.calls for sample in part]
    minutes = [sample.seconds / 60 for sample in part]
    resident = [sample.gateway.resident for sample in part]
    return {
        "seconds": part[-1].seconds - part[0].seconds,
        "calls": calls[-1] - calls[0],
        "resident_bytes": {"first": resident[0], "last": resident[-1], "most": max(resident)},
        "resident_bytes_a_call": asdict(trend(calls, resident)),
        "resident_bytes_a_minute": asdict(trend(minutes, resident)),
        "heap_bytes_a_call": asdict(trend(calls, [sample.heap_bytes for sample in part])),
        "heap_blocks_a_call": asdict(trend(calls, [sample.heap_blocks for sample in part])),
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
        for what, name, bound, unit in (
            ("the C heap in use", "heap_bytes_a_call", BYTES_A_CALL, "bytes"),
            ("Python's heap in use", "heap_blocks_a_call", BLOCKS_A_CALL, "blocks"),
            ("resident memory", "resident_bytes_a_call", RESIDENT_BYTES_A_CALL, "bytes"),
        ):
            told = grown[name]
            yield Check(
                f"{what} grows by less than {bound} {unit} a call",
                told["high"] < bound,
                f"{told['slope']:.2f}, 95 % between {told['low']:.2f} and {told['high']:.2f}",
            )
