"""What the stack holds at a moment: memory, files, tasks, connections, money."""

from __future__ import annotations

import asyncio
import collections
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.local.processes import StackError
from tests.benchmarks import memory
from tests.benchmarks.cpu import Watched, children, seconds
from tests.e2e.world import until

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.benchmarks.memory import Holding
    from tests.benchmarks.soak.load import MixedLoad
    from tests.e2e.world import GatewayProcess, World

# One statement is one snapshot, so that the two sides of each sum are of the same moment.
_BOOKS = """
select
    (select count(*) from gateway.requests where state = 'held'),
    (select coalesce(sum(held_usd), 0) from gateway.accounts),
    (select count(*) from pg_stat_activity where usename = 'authenticator'),
    (
        select count(*)
        from pg_stat_activity
        where usename = 'authenticator' and state like 'idle in tr%' and state_change < now() - interval '5 s'
    ),
    (
        select count(*)
        from gateway.accounts as a
        left join (
            select customer_id, sum(amount_usd) as total from gateway.ledger_entries group by customer_id
        ) as l using (customer_id)
        left join (
            select customer_id, sum(hold_usd) as total
            from gateway.requests
            where state = 'held'
            group by customer_id
        ) as r using (customer_id)
        where a.balance_usd <> coalesce(l.total, 0)
            or a.held_usd <> coalesce(r.total, 0)
            or a.balance_usd < a.held_usd
    )
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """The stack at one moment of the load, or at rest."""

    seconds: float
    """Since the soak began."""
    calls: int
    """Made so far."""
    pause_seconds: float
    busy: float
    """The part of the machine's time that the stack and its callers took since the last sample."""
    gateway: Holding
    postgrest: Holding
    postgres: Holding
    heap_bytes: int
    """What the gateway has in use of the C heap, where everything lies that is larger than 512 bytes."""
    heap_blocks: int
    """What it has in use of Python's own heap, of 95 bytes on average. Both after a garbage collection."""
    tasks: Mapping[str, int]
    """Of the gateway, by coroutine."""
    backends: int
    """PostgREST's connections to the database."""
    idle_in_transaction: int
    """Of these, those that have had a transaction open for five seconds and do nothing."""
    holds: int
    held_usd: str
    disagreements: int
    """Accounts whose balance is not the ledger's sum or held not the holds', or that are overdrawn."""


class Sampler:
    """Takes samples of a world with one gateway. `pid` is ours, which started all the others."""

    def __init__(
        self, world: World, gateway: GatewayProcess, load: MixedLoad, *, pid: int, cores: int
    ) -> None:
        self._world = world
        self._gateway = gateway
        self._load = load
        self._cores = cores
        self._all = {"all": Watched(pid)}
        self._postgrest = _named(children(pid), "postgrest")
        postgres = world.postgres.pid
        if postgres is None:
            raise StackError("PostgreSQL does not run")
        self._postgres = postgres
        self._began = self._last_at = time.monotonic()
        self._last_cpu = seconds(self._all)["all"]

    async def take(self) -> Sample:
        """Return what is held now."""
        held = await asyncio.to_thread(self._holdings)
        tasks = collections.Counter(_coroutine(each) for each in await self._gateway.tasks())
        heap_bytes, heap_blocks = await self._heap()
        now, used = time.monotonic(), seconds(self._all)["all"]
        busy = (used - self._last_cpu) / max(now - self._last_at, 1e-3) / self._cores
        self._last_at, self._last_cpu = now, used
        holds, held_usd, backends, idle, disagreements = await asyncio.to_thread(self._books)
        return Sample(
            seconds=now - self._began,
            calls=self._load.ledger.total,
            pause_seconds=self._load.pause,
            busy=busy,
            gateway=held[0],
            postgrest=held[1],
            postgres=held[2],
            heap_bytes=heap_bytes,
            heap_blocks=heap_blocks,
            tasks=dict(sorted(tasks.items())),
            backends=backends,
            idle_in_transaction=idle,
            holds=holds,
            held_usd=str(held_usd),
            disagreements=disagreements,
        )

    async def _heap(self) -> tuple[int, int]:
        path = Path(self._gateway.environment["HEAP"])
        await asyncio.to_thread(path.unlink, missing_ok=True)
        os.kill(self._gateway.pid, signal.SIGUSR2)
        await until(path.exists)
        in_use, blocks = (await asyncio.to_thread(path.read_text, encoding="ascii")).split()
        return int(in_use), int(blocks)

    def _holdings(self) -> tuple[Holding, Holding, Holding]:
        return memory.of(self._gateway.pid), memory.of_tree(self._postgrest), memory.of_tree(self._postgres)

    def _books(self) -> tuple[Any, ...]:
        with self._world.database.connect() as connection:
            row = connection.execute(_BOOKS.encode()).fetchone()
        assert row is not None
        return row


def _named(found: Mapping[str, int], name: str) -> int:
    for each, pid in found.items():
        if each.startswith(name):
            return pid
    raise StackError(f"{name} is not among our processes: {', '.join(found)}")


def _coroutine(told: str) -> str:
    """`<coroutine object Server.serve at 0x…>` → `Server.serve`."""
    return told.removeprefix("<coroutine object ").partition(" at 0x")[0]
