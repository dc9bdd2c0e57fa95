"""A running `make dev`, as a person starts it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from infra.local.processes import HOST, free_port
from infra.local.stack import database_url
from infra.local.state import StackState

if TYPE_CHECKING:
    from collections.abc import Iterator
    from decimal import Decimal

REPOSITORY = Path(__file__).parents[2]
DEV = [sys.executable, "-m", "infra.cli", "dev"]
PATIENCE = 60.0


def environment(data_dir: Path, port: int, **more: str) -> dict[str, str]:
    """The environment of a fresh machine: no provider's key, no project, not under make."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    paths = os.pathsep.join([str(REPOSITORY / "functions"), str(REPOSITORY)])
    return {**kept, "PYTHONPATH": paths, "DATA_DIR": str(data_dir), "PORT": str(port), **more}


@dataclass(frozen=True, slots=True)
class Dev:
    """A running `make dev` and what it printed."""

    process: subprocess.Popen[str]
    data_dir: Path
    url: str
    output: str

    @property
    def demo_key(self) -> str:
        found = re.search(r"Demo key:\s+(\S+)", self.output)
        assert found
        return found[1]

    @property
    def admin_key(self) -> str:
        found = re.search(r"Admin key:\s+(\S+)", self.output)
        assert found
        return found[1]

    @property
    def curl(self) -> str:
        return self.output[self.output.index("curl ") :]

    def balance(self) -> tuple[Decimal, Decimal]:
        """The demo customer's balance and what is held of it."""
        with psycopg.connect(database_url({"DATA_DIR": str(self.data_dir)})) as connection:
            row = connection.execute(
                "select balance_usd, held_usd from gateway.accounts as a"
                " join gateway.customers as c on c.id = a.customer_id where c.username = 'demo'"
            ).fetchone()
        assert row is not None
        return row[0], row[1]

    def ports(self) -> tuple[int, ...]:
        state = StackState.read(self.data_dir)
        assert state is not None
        return state.postgres_port, state.postgrest_port, state.simulator_port


@contextlib.contextmanager
def started(data_dir: Path, command: list[str] = DEV, **more: str) -> Iterator[Dev]:
    port = free_port()
    log = data_dir.with_name(data_dir.name + ".err")
    with (
        log.open("w", encoding="utf-8") as errors,
        subprocess.Popen(
            command,
            env=environment(data_dir, port, **more),
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        assert process.stdout is not None
        lines: list[str] = []
        # A start that hangs ends its output, and so the wait for it.
        watchdog = threading.Timer(PATIENCE, process.kill)
        watchdog.start()
        try:
            # The blank line after the curl ends what it prints; the end of the output means that it failed.
            while not ("curl" in "".join(lines) and lines[-1] == "\n"):
                line = process.stdout.readline()
                assert line, f"it did not start:\n{log.read_text(encoding='utf-8')}"
                lines.append(line)
            watchdog.cancel()
            yield Dev(process, data_dir, f"http://{HOST}:{port}", "".join(lines))
        finally:
            watchdog.cancel()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.send_signal(signal.SIGINT)
                process.wait(PATIENCE)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
