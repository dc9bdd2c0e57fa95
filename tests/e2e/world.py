"""A gateway of many processes over a durable PostgreSQL and PostgREST, all of which can be killed.

Unlike the fixtures of the other suites, nothing is shared and nothing is relaxed: the database writes
through to the disk, as what is tested is what is left after a crash.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from gateway import auth
from gateway.maintenance import Sweep, run_once
from gateway.runtime.process import Process
from gateway.settings import Settings
from infra.local.database import create_database, create_roles, migrate, seed
from infra.local.postgres import EmbeddedPostgres
from infra.local.postgrest import PostgRest
from infra.local.processes import HOST, free_port, start_child, tail
from infra.local.serving import ThreadedServer
from infra.local.simulator import CallLog, create_simulator
from infra.local.tokenizer import build_tokenizers
from tests.fixtures.database import Database
from tests.fixtures.gateway import MASTER_KEYS, RunningGateway
from tests.fixtures.simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.fixtures.gateway import Customer

REPOSITORY = Path(__file__).parents[2]
DATABASE = "sluice"
AUTHENTICATOR_PASSWORD = "authenticator-of-the-chaos"
JWT_SECRET = "a-secret-of-the-chaos-with-more-than-32-characters"
PROVIDER_KEY = "sk-simulator-key-of-the-chaos"
CALLS_KEPT = 10_000
START_SECONDS = 60.0
STOP_SECONDS = 20.0
MARKUP = Decimal("1.05")
MILLION = Decimal(1_000_000)
TENTH_DECIMAL = Decimal("1e-10")


@dataclass(slots=True)
class GatewayProcess:
    """One server process. It keeps its port over a kill and a start."""

    port: int
    environment: dict[str, str] = field(repr=False)
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def spawn(self) -> None:
        """Start it without waiting until it listens."""
        self.process = start_child(
            [sys.executable, "-m", "tests.e2e.gateway_process", str(self.port)],
            log=self.log,
            on_owner_death=signal.SIGKILL,
            environment=self.environment,
        )

    def listens(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the gateway ended:\n{tail(self.log)}"
        with socket.socket() as probe:
            return probe.connect_ex((HOST, self.port)) == 0

    def wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self.listens():
            assert time.monotonic() < deadline, f"the gateway does not listen:\n{tail(self.log)}"
            time.sleep(0.02)

    async def start(self) -> None:
        """Start it and wait on the loop until it listens, so that clients go on meanwhile."""
        self.spawn()
        await until(self.listens, START_SECONDS)

    def kill(self) -> None:
        """SIGKILL: nothing is settled, nothing is kept."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    async def tasks(self) -> list[str]:
        """The coroutines that it runs."""
        path = Path(self.environment["TASKS"])
        await asyncio.to_thread(path.unlink, missing_ok=True)
        os.kill(self.pid, signal.SIGUSR1)
        await until(path.exists)
        return (await asyncio.to_thread(path.read_text, encoding="utf-8")).splitlines()

    def resident_bytes(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")) * 1024

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))  # noqa: PTH208 - /proc has no better way

    def terminate(self) -> None:
        """SIGTERM; it takes its time."""
        assert self.process is not None
        self.process.terminate()

    def join(self) -> None:
        """Wait until it has ended, in good order."""
        assert self.process is not None
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def stop(self) -> None:
        self.terminate()
        self.join()


@dataclass(slots=True)
class World:
    """The servers under the gateway's processes. `operator` looks at the books and makes customers."""

    directory: Path
    postgres: EmbeddedPostgres
    postgrest: PostgRest
    database: Database
    operator: RunningGateway

    @property
    def calls(self) -> CallLog:
        return self.operator.simulator.calls

    @property
    def spool(self) -> Path:
        return self.operator.settings.spool_dir

    def kept_settlements(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_bytes()) for path in sorted(self.spool.glob("*.settlement.json"))]

    @contextlib.contextmanager
    def gateways(self, count: int = 1, **settings: str) -> Iterator[list[GatewayProcess]]:
        """So many processes on this database, all of them listening; `settings` are further variables."""
        made = [self._gateway(settings) for _ in range(count)]
        try:
            for gateway in made:
                gateway.spawn()
            for gateway in made:
                gateway.wait()
            yield made
        finally:
            running = [gateway for gateway in made if gateway.process is not None]
            for gateway in running:
                gateway.terminate()
            for gateway in running:
                gateway.join()

    def _gateway(self, settings: dict[str, str]) -> GatewayProcess:
        port = free_port()
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        environment = {
            **kept,
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY / "functions"), str(REPOSITORY)]),
            "SLUICE_REST_URL": self.postgrest.url,
            "SUPABASE_KEY": self.postgrest.token("service_role"),
            "SLUICE_MASTER_KEYS": json.dumps(
                {name: base64.b64encode(key).decode() for name, key in MASTER_KEYS.items()}
            ),
            "SLUICE_ALLOW_PRIVATE_URLS": "true",
            "SLUICE_SPOOL_DIR": str(self.spool),
            "SLUICE_REQUEST_TIMEOUT_SECONDS": "30",
            "TASKS": str(self.directory / f"gateway-{port}.tasks"),
            **settings,
        }
        return GatewayProcess(port, environment, self.directory / f"gateway-{port}.log")

    def more_keys(self, customer: Customer, count: int) -> list[str]:
        """Further keys of a customer, out of the limits' way."""
        secrets = [auth.new_key() for _ in range(count)]
        for number, secret in enumerate(secrets):
            self.operator.call(
                "create_key",
                p_customer_id=customer.id,
                p_name=f"key {number}",
                p_prefix=auth.key_prefix(secret),
                p_secret_hash=auth.key_hash(secret),
                p_rate_limit=100_000,
            )
        return secrets

    # What befalls it

    def crash_postgres(self) -> None:
        """Stop the database as a crash does: it drops what it does, and recovers at its next start."""
        pid = self.postgres.pid
        assert pid is not None
        os.kill(pid, signal.SIGQUIT)
        self.postgres.stop()

    @contextlib.contextmanager
    def frozen_postgres(self) -> Iterator[None]:
        """Let the database hold every connection and answer none, as when a network swallows packets."""
        pid = self.postgres.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)  # the parent first, or it would make more
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
        stopped = [pid, *map(int, children)]
        try:
            for each in stopped[1:]:
                os.kill(each, signal.SIGSTOP)
            yield
        finally:
            for each in reversed(stopped):
                os.kill(each, signal.SIGCONT)

    def start_postgres(self) -> None:
        self.postgres.start()
        self.operator.connection.close()
        self.operator.connection = self.database.connect()

    async def until_database_serves(self) -> None:
        """Wait until PostgREST has found the database again: it asks in growing intervals."""
        process = Process.start(self.operator.settings)
        try:
            async with asyncio.timeout(60):
                while True:
                    with contextlib.suppress(Exception):
                        await process.database.check_health()
                        return
                    await asyncio.sleep(0.1)
        finally:
            await process.aclose()

    def lapse_leases(self) -> int:
        """Let every lease run out now, past the guards, as only time could; how many holds there are."""
        connection = self.operator.connection
        connection.execute("set session_replication_role = replica")
        try:
            return connection.execute(
                "update gateway.requests set lease_until = clock_timestamp() - interval '1 second'"
                " where state = 'held'"
            ).rowcount
        finally:
            connection.execute("set session_replication_role = origin")

    async def maintain(self) -> Sweep:
        """What the schedule does every minute: replay, expire, make partitions."""
        process = Process.start(self.operator.settings)
        try:
            return await run_once(process)
        finally:
            await process.aclose()

    async def replay_again(self, kept: list[dict[str, Any]]) -> None:
        """Replay what has been replayed, as after a crash between a settlement and the end of its file."""
        for settlement in kept:
            path = self.spool / f"{settlement['request_id']}.settlement.json"
            await asyncio.to_thread(path.write_text, json.dumps(settlement), encoding="utf-8")
        assert len(self.kept_settlements()) == len(kept)
        swept = await self.maintain()
        assert swept == Sweep(settlements_replayed=len(kept))
        assert self.kept_settlements() == []

    # What came of it

    def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return self.operator.connection.execute(query.encode(), parameters or None).fetchall()

    def requests(self, customer: Customer) -> list[dict[str, Any]]:
        """A customer's admitted requests with their money as exact decimals, the oldest first."""
        names = (
            "id",
            "state",
            "outcome",
            "status",
            "error_code",
            "hold_usd",
            "charge_usd",
            "collected_usd",
            "uncollected_usd",
            "input_tokens",
            "output_tokens",
            "input_tokens_bound",
            "output_tokens_bound",
            "usage_estimated",
            "provider_request_id",
            "idempotency_key",
            "settled_at",
        )
        found = self.rows(
            f"select {', '.join(names)} from gateway.requests"
            " where customer_id = %s and state <> 'refused' order by admitted_at",
            customer.id,
        )
        return [dict(zip(names, row, strict=True)) for row in found]

    def paid_in(self, customer: Customer) -> Decimal:
        return Decimal(
            self.rows(
                "select coalesce(sum(amount_usd), 0) from gateway.ledger_entries"
                " where customer_id = %s and request_id is null",
                customer.id,
            )[0][0]
        )

    def assert_books_are_exact(self, customer: Customer) -> None:
        """Nothing is held, every request has ended, and the balance is what was paid in less every charge."""
        told = self.operator.call("check_ledger")
        assert (told["ok"], told["orphan_holds"], told["misbooked_requests"]) == (True, 0, 0), told
        requests = self.requests(customer)
        assert {request["state"] for request in requests} <= {"settled", "expired"}
        balance, held = self.operator.balance(customer)
        assert held == 0
        assert balance >= 0
        collected = sum((request["collected_usd"] for request in requests), Decimal(0))
        assert balance == self.paid_in(customer) - collected
        twice = self.rows(
            "select request_id, count(*) from gateway.ledger_entries"
            " where request_id is not null group by request_id having count(*) > 1"
        )
        assert twice == []


async def until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    """Wait for what another process does, and what thus has no event to wait for. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def charge_of(prompt_tokens: int, completion_tokens: int, prices: dict[str, str]) -> Decimal:
    """What a call costs its customer, in USD: cost with the commission, rounded up at the tenth decimal."""
    cost = (
        prompt_tokens * Decimal(prices["input"]) + completion_tokens * Decimal(prices["output"])
    ) / MILLION
    return (cost * MARKUP).quantize(TENTH_DECIMAL, rounding="ROUND_UP")


@contextlib.contextmanager
def open_world(directory: Path) -> Iterator[World]:
    """Start PostgreSQL, PostgREST and the simulator, each as production would."""
    build_tokenizers()
    log = CallLog(kept=CALLS_KEPT)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(EmbeddedPostgres(directory / "postgres"))
        create_roles(server.url(), authenticator_password=AUTHENTICATOR_PASSWORD)
        create_database(server.url(), DATABASE)
        migrate(server.url(DATABASE))
        seed(server.url(DATABASE))
        database = Database(
            name=DATABASE,
            url=server.url(DATABASE),
            authenticator_url=server.url(DATABASE, user="authenticator", password=AUTHENTICATOR_PASSWORD),
        )
        postgrest = stack.enter_context(
            PostgRest(database.authenticator_url, jwt_secret=JWT_SECRET, log=directory / "postgrest.log")
        )
        simulator_server = stack.enter_context(ThreadedServer(create_simulator(key=PROVIDER_KEY, log=log)))
        settings = Settings(
            rest_url=postgrest.url,
            supabase_key=SecretStr(postgrest.token("service_role")),
            master_keys=MASTER_KEYS,
            allow_private_urls=True,
            spool_dir=directory / "spool",
        )
        operator = RunningGateway(
            url="",
            settings=settings,
            connection=database.connect(),
            simulator=Simulator(f"{simulator_server.url}/v1", PROVIDER_KEY, log),
            clients=stack.enter_context(contextlib.ExitStack()),
        )
        world = World(directory, server, postgrest, database, operator)
        try:
            yield world
        finally:
            # Not the one of the beginning, where the database has been started anew.
            world.operator.connection.close()
