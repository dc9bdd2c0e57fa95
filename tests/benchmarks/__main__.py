"""`make bench`: our gateway beside its peers, and its database functions beside bare updates, in one run.

Everybody is measured in the same run against the same upstream, in turn, round by round; what counts are
medians. Latency is that of a closed loop (wrk), so at one connection it is what one client waits for. The
budgets for cold starts and for millions of rows are not this bench's.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import psycopg
import typer
from rich.console import Console

from infra.local.processes import StackError
from tests.benchmarks import machine, report
from tests.benchmarks.contenders import DIRECT, direct, paced_upstream
from tests.benchmarks.load import LoadError
from tests.benchmarks.peers import LITELLM, LITELLM_VERSION, PORTKEY, PORTKEY_VERSION, litellm, portkey
from tests.benchmarks.pgbench import Bench
from tests.benchmarks.rounds import Figures, HttpRounds, Plan, run_database
from tests.benchmarks.sluice import OURS, sluice, sluice_database_url
from tests.benchmarks.streams import allow_open_files
from tests.benchmarks.upstream import Upstream, find_nginx

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.benchmarks.contenders import Contender, Starter
    from tests.benchmarks.rounds import PairFigures

_LONGEST_SECONDS = 540
_BUSY = 0.5
# Two sockets a stream in a gateway, which inherits the limit.
_OPEN_FILES = 4096
_RESULTS = Path(__file__).with_name("results")


def _say(what: str) -> None:
    print(f"  {what} …", file=sys.stderr, flush=True)


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "").strip() or Path.home() / ".cache"
    return Path(base) / "sluice-benchmarks"


def _programs() -> tuple[str, str]:
    """Return where nginx and wrk are; StackError says how to get what is missing."""
    nginx, wrk = find_nginx(), shutil.which("wrk")
    missing = [name for name, found in (("nginx", nginx), ("wrk", wrk)) if found is None]
    if nginx is None or wrk is None:
        command = f"apt-get install --no-install-recommends {' '.join(missing)}"
        raise StackError(f"the bench needs {' and '.join(missing)}: {command}")
    return nginx, wrk


def _start(name: str, version: str, starter: Starter, stack: contextlib.ExitStack) -> Contender | Figures:
    """Start one; where it can't be had, return figures that say why."""
    _say(f"starting {name}")
    try:
        return stack.enter_context(starter)
    except (StackError, OSError) as error:
        print(f"  {name} can't be measured: {error}", file=sys.stderr, flush=True)
        why = str(error)
        return Figures(version, failure=why, stream_failure=why, paced_failure=why)


def _measure(
    directory: Path, cache: Path, plan: Plan
) -> tuple[dict[str, Figures], PairFigures | None, dict[str, str], str | None]:
    """Return the gateways' figures, the pairs', the database server's settings, and why it has no pairs."""
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(contextlib.ExitStack())
        peers = stack.enter_context(contextlib.ExitStack())
        upstream = ours.enter_context(Upstream(directory))
        paced_url = ours.enter_context(paced_upstream(directory))
        _say(f"starting {OURS}")
        us = ours.enter_context(sluice(upstream, paced_url, directory))
        contenders = [peers.enter_context(direct(upstream, paced_url)), us]
        absent: dict[str, Figures] = {}
        for name, version, starter in (
            (LITELLM, LITELLM_VERSION, litellm(upstream, paced_url, directory, cache)),
            (PORTKEY, PORTKEY_VERSION, portkey(upstream, paced_url, directory, cache)),
        ):
            started = _start(name, version, starter, peers)
            if isinstance(started, Figures):
                absent[name] = started
            else:
                contenders.append(started)
        rounds = HttpRounds(contenders, plan, _say)
        rounds.run()
        peers.close()
        rounds.run_slow(us)
        pairs: PairFigures | None = None
        server: dict[str, str] = {}
        failure: str | None = None
        bench = Bench(sluice_database_url(directory))
        try:
            _say("preparing 1,000 customers")
            server = bench.prepare()
            pairs = run_database(bench, plan, _say)
        except (LoadError, StackError, psycopg.Error) as error:
            failure = str(error) or type(error).__name__
        return {**rounds.figures, **absent}, pairs, server, failure


def _versions(nginx: str, wrk: str, figures: Mapping[str, Figures]) -> dict[str, str]:
    told = {name: found.version for name, found in figures.items() if found.version}
    return {**told, **machine.versions(nginx=nginx, wrk=wrk)}


def main(  # noqa: PLR0917 - typer calls it by name
    seconds: Annotated[int, typer.Option(min=1, help="Of each run of wrk.")] = 5,
    rounds: Annotated[int, typer.Option(min=1, help="How often everybody has a turn.")] = 2,
    streams: Annotated[int, typer.Option(min=10, help="Read in each round.")] = 100,
    database_seconds: Annotated[int, typer.Option(min=1, help="Of each run of pgbench.")] = 2,
    output: Annotated[Path | None, typer.Option(help="Where the JSON goes.")] = None,
    compare: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="An earlier run's JSON.")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Where the peers are installed.")] = None,
) -> None:
    """Measure the gateway beside LiteLLM and Portkey, and its SQL beside bare updates."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    allow_open_files(_OPEN_FILES)
    plan = Plan(rounds, seconds, database_seconds, streams)
    expected = plan.expected_seconds(contenders=4)
    if expected > _LONGEST_SECONDS:
        raise typer.BadParameter(
            f"so many rounds would take {expected:.0f} s, and {_LONGEST_SECONDS} is the most"
        )
    earlier = None
    started_at = datetime.now(UTC)
    try:
        earlier = report.read(compare) if compare else None
        nginx, wrk = _programs()
        around = machine.describe()
        if around["load_before"] > _BUSY:
            print(
                f"  the machine is busy (load {around['load_before']}): figures will be noisy",
                file=sys.stderr,
            )
        _say(f"this takes about {expected + 60:.0f} s, and more where a peer is to be installed first")
        with tempfile.TemporaryDirectory(prefix="sluice-bench-") as made:
            directory = Path(made)
            # PostgreSQL runs as another user where we are root.
            directory.chmod(0o755)
            figures, pairs, server, failure = _measure(directory, cache or _cache(), plan)
    except (StackError, ValueError, psycopg.Error) as error:
        print(f"bench: {error}", file=sys.stderr)
        raise typer.Exit(1) from error

    http = report.summarise_http(figures)
    medians = report.summarise_pairs(pairs) if pairs is not None else None
    kept: dict[str, Any] = report.document(
        started_at=started_at.isoformat(timespec="seconds"),
        machine=around,
        versions=_versions(nginx, wrk, figures),
        plan=asdict(plan),
        figures=figures,
        http=http,
        pairs=medians,
        pair_figures=pairs,
        server=server,
        failure=failure,
        budgets=report.judge(http, medians),
    )
    path = output or _RESULTS / f"{started_at:%Y-%m-%dT%H-%M-%SZ}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")

    # Where it isn't a terminal nobody can widen it, and a table that is cut tells nothing.
    console = Console(width=None if sys.stdout.isatty() else 160)
    report.show(console, kept)
    if earlier is not None:
        report.compare(console, earlier, kept)
    console.print(f"Kept in {path}", soft_wrap=True, highlight=False)
    ours = [figures[name] for name in (DIRECT, OURS)]
    if failure is not None or any(each.failure or each.stream_failure or each.paced_failure for each in ours):
        # A peer that is not there is its own affair; where we fail, the run has failed.
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
