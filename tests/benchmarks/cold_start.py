"""Cold starts: every function beside a hello-world of FastAPI, Mangum and Powertools' Logger, in one run.

    python -m tests.benchmarks.cold_start [--rounds 5] [--json FILE]

Each runs as its Lambda package, with the runtime's Python where this machine has it, under the Runtime
Interface Emulator, which times INIT. They start in turn, round by round, so that a busy machine is busy for
all; what is shown are medians. `first` is the first request after INIT: settings, clients and routes are
made in it, and it is refused before a database is asked. Lambda has other hardware: the ratio is what counts.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from infra.local import paths
from infra.sam import package
from tests.fixtures.emulator import Emulator, NoEmulatorError, install, rest_event, runtime

if TYPE_CHECKING:
    from collections.abc import Mapping

HELLO = "hello-world"
_HELLO_REQUIREMENTS = Path(__file__).with_name("hello-requirements.txt")
_HELLO_SOURCE = '''\
"""The least that answers over FastAPI, Mangum and Powertools."""

from aws_lambda_powertools import Logger
from fastapi import FastAPI
from mangum import Mangum
from pydantic import BaseModel

logger = Logger(service="hello")
app = FastAPI()


class Greeting(BaseModel):
    message: str


@app.get("/")
async def hello() -> Greeting:
    logger.info("hello")
    return Greeting(message="hello")


handler = Mangum(app, lifespan="off")
'''
_WARM = 20
_SETTINGS = {
    "SUPABASE_URL": "https://project.supabase.co",
    "SUPABASE_KEY": "sb_secret_of_the_bench",
    "POWERTOOLS_METRICS_NAMESPACE": "Sluice",
}


@dataclass(frozen=True, slots=True)
class Contender:
    """A function: its package, how it is started, and a request that it answers without a database."""

    name: str
    root: Path
    command: tuple[str, ...]
    event: Mapping[str, Any]
    status: int
    package_mb: float


@dataclass(frozen=True, slots=True)
class Start:
    """One cold start. Milliseconds, and MiB at the most."""

    init_ms: float
    first_ms: float
    warm_ms: float
    memory_mb: float


def _contenders(python: str, work: Path) -> list[Contender]:
    ours = work / "sluice"
    package.build(_architecture(), ours)
    hello = work / HELLO
    hello.mkdir()
    install(hello, python, "-r", str(_HELLO_REQUIREMENTS))
    (hello / "hello.py").write_text(_HELLO_SOURCE)
    # As our package is, or its first start would compile it.
    subprocess.run([python, "-m", "compileall", "-q", str(hello)], check=True, capture_output=True)
    managed = (python, "-m", "awslambdaric")
    size = _megabytes(ours)
    functions = {
        name: Contender(
            name,
            ours,
            (*managed, f"{name}.handler.handler"),
            rest_event("GET", "/nowhere"),
            404,
            size,
        )
        for name in sorted(path.parent.name for path in ours.glob("*/handler.py"))
        if name != "maintenance"  # which answers no HTTP, and starts in the schedule's time
    }
    refused = rest_event("POST", "/v1/chat/completions", {"model": "m", "messages": []})
    bootstrap = str(ours / "chat" / "bootstrap")
    functions["chat"] = Contender("chat", ours, (bootstrap, *managed), refused, 401, size)
    greeting = Contender(
        HELLO, hello, (*managed, "hello.handler"), rest_event("GET", "/"), 200, _megabytes(hello)
    )
    return [greeting, functions.pop("chat"), *functions.values()]


def _start(contender: Contender, binary: Path, packages: Path) -> Start:
    variables = {
        "LAMBDA_TASK_ROOT": str(contender.root),
        "LAMBDA_RUNTIME_DIR": str(packages),
        "PYTHONPATH": f"{contender.root}:{packages}",
        "PYTHONDONTWRITEBYTECODE": "1",
        **_SETTINGS,
    }
    with Emulator(contender.command, variables, binary) as emulator:
        cold = _timed(emulator, contender)
        warm = statistics.median(_timed(emulator, contender) for _ in range(_WARM))
        init = emulator.init_ms
        # The emulator runs INIT within the first invocation.
        return Start(init, max(cold - init, 0), warm, emulator.peak_memory_mb)


def _timed(emulator: Emulator, contender: Contender) -> float:
    began = time.perf_counter()
    answer = emulator.invoke(contender.event)
    took = (time.perf_counter() - began) * 1000
    told = json.loads(answer.partition(b"\0")[0])
    if told.get("statusCode") != contender.status:
        raise SystemExit(f"{contender.name} answered {answer[:500]!r}\n{emulator.log}")
    return took


def _median(starts: list[Start]) -> Start:
    columns = [asdict(start) for start in starts]
    return Start(**{name: statistics.median(column[name] for column in columns) for name in columns[0]})


def _architecture() -> str:
    return "arm64" if platform.machine() in {"aarch64", "arm64"} else "x86_64"


def _megabytes(root: Path) -> float:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) / 2**20


def _table(contenders: list[Contender], starts: Mapping[str, list[Start]], python: str) -> Table:
    version = subprocess.check_output([python, "-c", "import sys; print(sys.version.split()[0])"], text=True)
    rounds = len(starts[HELLO])
    table = Table(title=f"Cold starts under the emulator, Python {version.strip()}, medians of {rounds}")
    table.add_column("function")
    for column in ("INIT ms", "of hello's", "first ms", "warm ms", "peak MiB", "package MiB"):
        table.add_column(column, justify="right")
    base = _median(starts[HELLO]).init_ms
    for contender in contenders:
        told = _median(starts[contender.name])
        table.add_row(
            contender.name,
            f"{told.init_ms:.0f}",
            f"{told.init_ms / base:.0%}",
            f"{told.first_ms:.1f}",
            f"{told.warm_ms:.1f}",
            f"{told.memory_mb:.0f}",
            f"{contender.package_mb:.0f}",
        )
    return table


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Cold starts of each function.")] = 5,
    output: Annotated[Path | None, typer.Option("--json", help="Write the figures here, too.")] = None,
) -> None:
    """Measure, and print a table."""
    python = package._find_python() or sys.executable
    try:
        binary, packages = runtime(python)
    except NoEmulatorError as error:
        raise SystemExit(str(error)) from error
    console = Console(width=100)
    with tempfile.TemporaryDirectory(dir=paths.REPOSITORY / ".venv", prefix="cold-start-") as work:
        contenders = _contenders(python, Path(work))
        starts: dict[str, list[Start]] = {contender.name: [] for contender in contenders}
        # The first round warms the disk's cache and is not counted.
        for number in range(rounds + 1):
            for contender in contenders:
                start = _start(contender, binary, packages)
                if number:
                    starts[contender.name].append(start)
        console.print(_table(contenders, starts, python))
    if output is not None:
        figures = {name: [asdict(start) for start in several] for name, several in starts.items()}
        output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
