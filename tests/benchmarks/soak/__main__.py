"""`make soak`: ten minutes of mixed load on one gateway, and then nothing may be left of it.

Customers with limits and soft marks call, stream, leave in the middle, are refused, repeat idempotency keys
and meet providers that fail. Every ten seconds it is noted what the gateway, PostgREST and PostgreSQL hold.
Before the load and after it the stack is left at rest, longer than it keeps idle connections: what it holds
then is compared. Exits with 1 where a check fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import psycopg
import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from infra.local.processes import StackError, tail
from tests.benchmarks import machine
from tests.benchmarks.soak import books, verdict
from tests.benchmarks.soak.books import Check
from tests.benchmarks.soak.load import CALLERS, MixedLoad
from tests.benchmarks.soak.samples import Sample, Sampler
from tests.benchmarks.streams import allow_open_files
from tests.e2e.world import open_world

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.e2e.world import GatewayProcess, World

_RESULTS = Path(__file__).parents[1] / "results"
_REST_SECONDS = 35.0
"""Longer than anything keeps an idle connection: PostgREST and our pools 30 s."""
_SETTLE_SECONDS = 60.0
_MAINTENANCE_SECONDS = 60.0
_WARM_UP_SECONDS = 60.0
_OPEN_FILES = 4096


def _say(what: str) -> None:
    print(f"  {what} …", file=sys.stderr, flush=True)


class Soak:
    """One soak of a world with one gateway."""

    def __init__(self, world: World, gateway: GatewayProcess, *, seed: int, target: float) -> None:
        self.samples: list[Sample] = []
        self.load = MixedLoad(world, gateway.url, seed=seed)
        self._world = world
        self._target = target
        cores = len(os.sched_getaffinity(0))
        self._sampler = Sampler(world, gateway, self.load, pid=os.getpid(), cores=cores)

    async def run(self, seconds: float, every: float) -> tuple[Sample, Sample]:
        """Warm up, rest, load for `seconds`, rest; return what was held at both rests."""
        _say("warming up")
        warm_up = min(_WARM_UP_SECONDS, seconds / 4)
        await self._loaded(warm_up, every=warm_up / 6, keep=False)
        before = await self._at_rest()
        _say(f"{seconds / 60:.0f} minutes of load by {CALLERS} callers")
        await self._loaded(seconds, every=every, keep=True)
        after = await self._at_rest()
        return before, after

    async def _loaded(self, seconds: float, *, every: float, keep: bool) -> None:
        """Load, and meanwhile take samples, adapt the load, and do what the schedule does each minute."""
        load = asyncio.create_task(self.load.run(seconds))
        maintained = time.monotonic()
        try:
            while not (await asyncio.wait({load}, timeout=every))[0]:
                sample = await self._sampler.take()
                self.load.adapt(sample.busy, self._target)
                if keep:
                    self.samples.append(sample)
                    _say(_line(sample))
                if time.monotonic() - maintained >= _MAINTENANCE_SECONDS:
                    maintained = time.monotonic()
                    await self._world.maintain()
            await load
        finally:
            load.cancel()

    async def _at_rest(self) -> Sample:
        """Wait until nothing is held and idle connections have been given up; return what is held then."""
        _say("waiting until nothing is held")
        async with asyncio.timeout(_SETTLE_SECONDS):
            while await asyncio.to_thread(self._held):
                await self._world.maintain()
                await asyncio.sleep(0.5)
        _say("at rest")
        await asyncio.sleep(_REST_SECONDS)
        # Pools look after what has been idle for too long when they are used.
        await self.load.probe()
        await asyncio.sleep(2)
        return await self._sampler.take()

    def _held(self) -> bool:
        return bool(
            self._world.rows("select exists (select from gateway.requests where state = 'held')")[0][0]
        )


def _line(sample: Sample) -> str:
    return (
        f"{sample.seconds:4.0f} s, {sample.calls} calls, {sample.busy:.0%} of the machine, pause "
        f"{sample.pause_seconds:.2f} s; gateway {sample.gateway.resident / 2**20:.1f} MiB, "
        f"{sample.heap_bytes / 2**20:.2f} MiB and {sample.heap_blocks} blocks in use, "
        f"{sample.gateway.sockets} sockets, {sum(sample.tasks.values())} tasks; "
        f"{sample.backends} connections, {sample.holds} holds"
    )


def _show(console: Console, kept: Mapping[str, Any]) -> None:
    table = Table(title="What the callers saw", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("")
    table.add_column("calls", justify="right")
    for name, count in sorted(kept["calls"].items()):
        table.add_row(name, f"{count:,}")
    console.print(table)
    table = Table(title="Checks", box=box.SIMPLE_HEAD, title_justify="left")
    for column in ("", "", "found"):
        table.add_column(column)
    for each in kept["checks"]:
        verdict_ = "[green]ok[/green]" if each["ok"] else "[red]failed[/red]"
        table.add_row(escape(each["what"]), verdict_, escape(each["found"]))
    console.print(table)
    if (grown := kept["growth"]) is not None:
        console.print(f"The gateway's growth in the last {grown['seconds']:.0f} s, and 95 % of it:")
        for name, told in grown.items():
            if isinstance(told, dict) and "slope" in told:
                figures = f"{told['slope']:,.2f}, {told['low']:,.2f} to {told['high']:,.2f}"
                console.print(f"  {name.replace('_', ' ')}: {figures}", highlight=False)


def main(
    minutes: Annotated[float, typer.Option(min=1, help="Of load.")] = 10,
    every: Annotated[float, typer.Option(min=1, help="Seconds between two samples.")] = 10,
    load: Annotated[
        float, typer.Option(min=0.05, max=0.9, help="The part of the machine's time to take.")
    ] = 0.6,
    seed: Annotated[int, typer.Option(help="Of the callers' choices.")] = 8,
    output: Annotated[Path | None, typer.Option(help="Where the JSON goes.")] = None,
) -> None:
    """Load a gateway for minutes, and fail where something is left behind or the books are not exact."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    allow_open_files(_OPEN_FILES)
    started_at = datetime.now(UTC)
    around = machine.describe()
    try:
        with contextlib.ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sluice-soak-")))
            directory.chmod(0o755)  # PostgreSQL runs as another user where we are root
            _say("starting the stack")
            world = stack.enter_context(open_world(directory))
            [gateway] = stack.enter_context(world.gateways(HEAP=str(directory / "heap")))
            soak = Soak(world, gateway, seed=seed, target=load)
            try:
                before, after = asyncio.run(soak.run(60 * minutes, every))
            except (TimeoutError, ExceptionGroup, OSError):
                print(tail(gateway.log), file=sys.stderr)
                raise
            grown = verdict.growth(soak.samples) if len(verdict.settled_part(soak.samples)) >= 8 else None
            ledger = soak.load.ledger
            checks = [
                Check(
                    "each call was answered as it should be",
                    not ledger.surprises,
                    f"{len(ledger.surprises)} of {ledger.total} were not",
                ),
                *books.check(world, ledger),
                *verdict.check(soak.samples, before, after, grown),
            ]
    except (StackError, psycopg.Error, OSError) as error:
        print(f"soak: {str(error) or type(error).__name__}", file=sys.stderr)
        raise typer.Exit(1) from error
    kept: dict[str, Any] = {
        "format": 1,
        "started_at": started_at.isoformat(timespec="seconds"),
        "machine": {**around, "load_after": round(os.getloadavg()[0], 2)},
        "minutes": minutes,
        "callers": CALLERS,
        "target": load,
        "calls": dict(sorted(ledger.calls.items())),
        "surprises": ledger.surprises[:50],
        "growth": grown,
        "checks": [asdict(each) for each in checks],
        "passed": all(each.ok for each in checks),
        "at_rest": {"before": asdict(before), "after": asdict(after)},
        "samples": [asdict(sample) for sample in soak.samples],
    }
    path = output or _RESULTS / f"soak-{started_at:%Y-%m-%dT%H-%M-%SZ}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    console = Console(width=None if sys.stdout.isatty() else 140)
    _show(console, kept)
    for surprise in ledger.surprises[:10]:
        console.print(escape(surprise), style="red", highlight=False)
    console.print(f"Kept in {path}", soft_wrap=True, highlight=False)
    if not kept["passed"]:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
