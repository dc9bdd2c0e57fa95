"""Medians over the rounds, what they mean beside the peers, and how they are shown, kept and compared."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

from rich import box
from rich.markup import escape
from rich.table import Table

from tests.benchmarks.contenders import DIRECT, MANY_CUSTOMERS
from tests.benchmarks.peers import LITELLM
from tests.benchmarks.pgbench import PLACES, SCRIPTS
from tests.benchmarks.rounds import DATABASE_CONNECTIONS, HTTP_CONNECTIONS
from tests.benchmarks.slopes import fit
from tests.benchmarks.sluice import OURS
from tests.benchmarks.streams import AT_ONCE, LONG, SHORT, SLOW, SLOW_AT_ONCE, SLOW_SPREAD_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from rich.console import Console

    from tests.benchmarks.load import Load, Streams
    from tests.benchmarks.rounds import Figures, PairFigures
    from tests.benchmarks.streams import PacedStreams

FORMAT = 1
T = TypeVar("T")
_ONE, _MANY = HTTP_CONNECTIONS
_PAID, _BARE = SCRIPTS
_SPREAD, _HOT = PLACES
_OF_MANY = f"connections_{_MANY}_customers_{MANY_CUSTOMERS}"


def _median(values: Sequence[T], read: Callable[[T], float]) -> float:
    return median(read(value) for value in values)


def summarise_http(figures: Mapping[str, Figures]) -> dict[str, Any]:
    """Return name → medians, and what each adds to the upstream's own time in the same round."""
    base = figures[DIRECT]
    summary: dict[str, Any] = {}
    for name, found in figures.items():
        told: dict[str, Any] = {
            "version": found.version,
            "failure": found.failure,
            "stream_failure": found.stream_failure,
            "paced_failure": found.paced_failure,
        }
        if found.failure is None:
            for connections, loads in found.loads.items():
                # Of a base that has failed nothing is left: then nothing is said of what is added to it.
                beside = base.loads.get(connections, []) if name != DIRECT and base.failure is None else []
                told[f"connections_{connections}"] = _summarise_loads(loads, beside)
        if found.failure is None and found.loads_of_many:
            beside = base.loads.get(_MANY, []) if base.failure is None else []
            told[_OF_MANY] = _summarise_loads(found.loads_of_many, beside)
        if found.stream_failure is None:
            others = base.streams if name != DIRECT and base.stream_failure is None else []
            told["stream"] = _summarise_streams(found.streams, others)
        if found.paced_failure is None:
            told["streams_at_once"] = _summarise_paced(found, base)
            if slow := found.paced.get(SLOW.model):
                told["slow_streams"] = _summarise_slow(slow[0])
        if found.settled is not None:
            told["settled_requests"] = found.settled
        summary[name] = told
    return summary


def _summarise_loads(loads: Sequence[Load], bases: Sequence[Load]) -> dict[str, Any]:
    rounds = list(zip(loads, bases, strict=False))
    return {
        "requests_per_second": _median(loads, lambda load: load.requests_per_second),
        "p50_ms": _median(loads, lambda load: load.p50_ms),
        "p99_ms": _median(loads, lambda load: load.p99_ms),
        **_added(
            added_p50_ms=[load.p50_ms - other.p50_ms for load, other in rounds],
            added_p99_ms=[load.p99_ms - other.p99_ms for load, other in rounds],
        ),
        "cpu_ms": {name: median(load.cpu_ms[name] for load in loads) for name in loads[0].cpu_ms},
    }


def _summarise_streams(streams: Sequence[Streams], bases: Sequence[Streams]) -> dict[str, Any]:
    rounds = list(zip(streams, bases, strict=False))
    return {
        "first_byte_ms": _median(streams, lambda each: each.first_byte_ms),
        "whole_ms": _median(streams, lambda each: each.whole_ms),
        **_added(
            added_first_byte_ms=[each.first_byte_ms - other.first_byte_ms for each, other in rounds],
            added_whole_ms=[each.whole_ms - other.whole_ms for each, other in rounds],
        ),
    }


def _summarise_paced(found: Figures, base: Figures) -> dict[str, Any]:
    """Return what a chunk costs by the difference between short streams and long ones, and how late it is."""
    runs = [run for pace in (SHORT, LONG) for run in found.paced[pace.model][-len(found.paced[LONG.model]) :]]
    long = found.paced[LONG.model]
    others = base.paced.get(LONG.model, []) if base is not found and base.paced_failure is None else []
    rounds = list(zip(long, others, strict=False))
    return {
        "lag_p50_ms": _median(long, lambda run: run.lag_p50_ms),
        "lag_p99_ms": _median(long, lambda run: run.lag_p99_ms),
        **_added(
            added_lag_p50_ms=[run.lag_p50_ms - other.lag_p50_ms for run, other in rounds],
            added_lag_p99_ms=[run.lag_p99_ms - other.lag_p99_ms for run, other in rounds],
        ),
        **_chunk_cost(runs),
    }


def _chunk_cost(runs: Sequence[PacedStreams]) -> dict[str, float]:
    """Return what chunks and the rest of a stream take of the gateway's own process; nothing without one."""
    if any("own" not in run.cpu_ms for run in runs):
        return {}
    line = fit([run.chunks for run in runs], [run.cpu_ms["own"] for run in runs])
    return {
        "cpu_ms_a_chunk": line.slope,
        "cpu_ms_a_chunk_error": line.error,
        "cpu_ms_a_stream": line.intercept,
    }


def _summarise_slow(ran: PacedStreams) -> dict[str, Any]:
    told = asdict(ran)
    return {name: value for name, value in told.items() if name not in {"streams", "chunks", "seconds"}}


def _added(**values: Sequence[float]) -> dict[str, float]:
    return {name: median(each) for name, each in values.items() if each}


def summarise_pairs(figures: PairFigures) -> dict[str, Any]:
    """Return place → connections → medians of both scripts and their ratio."""
    summary: dict[str, Any] = {}
    for place, scripts in figures.items():
        for connections in DATABASE_CONNECTIONS[place]:
            told: dict[str, Any] = {}
            for name in SCRIPTS:
                pairs = scripts[name][connections]
                told[name] = {
                    "pairs_per_second": _median(pairs, lambda each: each.pairs_per_second),
                    "p50_ms": _median(pairs, lambda each: each.p50_ms),
                    "p99_ms": _median(pairs, lambda each: each.p99_ms),
                }
            rounds = zip(scripts[_PAID][connections], scripts[_BARE][connections], strict=True)
            told["ratio"] = median(paid.pairs_per_second / bare.pairs_per_second for paid, bare in rounds)
            summary.setdefault(place, {})[f"connections_{connections}"] = told
    return summary


# Beside the budgets


@dataclass(frozen=True, slots=True)
class Budget:
    """A line of the design's table of budgets; `measured` and `met` are None where a side is missing."""

    what: str
    goal: str
    measured: float | None
    unit: str
    met: bool | None


def judge(http: Mapping[str, Any], pairs: Mapping[str, Any] | None) -> list[Budget]:
    """Return the budgets that this bench can judge."""
    added = (f"connections_{_ONE}", "added_p50_ms")
    rate = (f"connections_{_MANY}", "requests_per_second")
    return [
        _budget(
            "added latency, p50, 1 connection, to LiteLLM's",
            _ratio(_at(http, OURS, *added), _at(http, LITELLM, *added)),
            at_most=1 / 3,
            goal="≤ 1/3",
            unit="x",
        ),
        _budget(
            f"requests per second, {_MANY} connections of one customer, to LiteLLM's",
            _ratio(_at(http, OURS, *rate), _at(http, LITELLM, *rate)),
            at_least=5,
            goal="≥ 5",
            unit="x",
        ),
        _budget(
            f"requests per second, {_MANY} connections of {MANY_CUSTOMERS} customers, to LiteLLM's",
            _ratio(_at(http, OURS, _OF_MANY, "requests_per_second"), _at(http, LITELLM, *rate)),
            at_least=5,
            goal="≥ 5",
            unit="x",
        ),
        _budget(
            "time to first byte of a stream, added",
            _at(http, OURS, "stream", "added_first_byte_ms"),
            at_most=10,
            goal="≤ 10",
            unit="ms",
        ),
        _budget(
            "admit + settle, 1,000 customers, 8 connections, to two bare updates",
            _at(pairs, _SPREAD, "connections_8", "ratio"),
            at_least=0.6,
            goal="≥ 0.6",
            unit="x",
        ),
        _budget(
            "admit + settle, one hot customer, 20 connections, p50",
            _at(pairs, _HOT, "connections_20", _PAID, "p50_ms"),
            at_most=20,
            goal="≤ 20",
            unit="ms",
        ),
    ]


def _at(told: Mapping[str, Any] | None, *path: str) -> float | None:
    found: Any = told
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return None if found is None else float(found)


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def _budget(
    what: str,
    measured: float | None,
    *,
    goal: str,
    unit: str,
    at_most: float | None = None,
    at_least: float | None = None,
) -> Budget:
    met = None
    if measured is not None:
        met = (at_most is None or measured <= at_most) and (at_least is None or measured >= at_least)
    return Budget(what, goal, measured, unit, met)


# Shown, kept, compared


def document(
    *,
    started_at: str,
    machine: Mapping[str, Any],
    versions: Mapping[str, str],
    plan: Mapping[str, Any],
    figures: Mapping[str, Figures],
    http: Mapping[str, Any],
    pairs: Mapping[str, Any] | None,
    pair_figures: PairFigures | None,
    server: Mapping[str, str],
    failure: str | None,
    budgets: Sequence[Budget],
) -> dict[str, Any]:
    """Return everything that is kept of a run: `medians` is what another run is compared with."""
    return {
        "format": FORMAT,
        "started_at": started_at,
        "machine": machine,
        "versions": versions,
        "plan": plan,
        "database_server": server,
        "database_failure": failure,
        "medians": {"gateways": http, "database": pairs or {}},
        "budgets": [asdict(each) for each in budgets],
        "rounds": {
            "gateways": {name: asdict(found) for name, found in figures.items()},
            "database": {
                place: {
                    name: {
                        str(connections): [asdict(each) for each in runs] for connections, runs in by.items()
                    }
                    for name, by in scripts.items()
                }
                for place, scripts in (pair_figures or {}).items()
            },
        },
    }


def show(console: Console, kept: Mapping[str, Any]) -> None:
    """Print the tables of a run."""
    http, pairs = kept["medians"]["gateways"], kept["medians"]["database"]
    console.print(_http_table(http))
    for note in _notes(http):
        console.print(note, highlight=False)
    console.print()
    console.print(_streams_table(http))
    for line in _slow_lines(http):
        console.print(line, highlight=False)
    console.print()
    console.print(_pairs_table(pairs, kept["database_server"], kept["database_failure"]))
    console.print(_budgets_table(kept["budgets"]))
    versions = ", ".join(f"{name} {version}" for name, version in kept["versions"].items())
    machine = kept["machine"]
    console.print(
        f"{machine['cpu']}, {machine['cores']} cores, load before {machine['load_before']}. {versions}.",
        style="dim",
        highlight=False,
    )


def _table(title: str, *columns: str, caption: str | None = None) -> Table:
    table = Table(
        title=title, caption=caption, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left"
    )
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=number > 0)
    return table


def _http_table(http: Mapping[str, Any]) -> Table:
    table = _table(
        "Gateways before the same upstream: medians of the rounds, in ms",
        "",
        f"added p50\n{_ONE} conn.",
        "added p99",
        "req/s",
        f"added p50\n{_MANY} conn.",
        "added p99",
        "req/s",
        "req/s to\nLiteLLM's",
        "CPU a\nrequest",
        "stream's\n1st byte",
        "whole\nstream",
        caption="Added: above the time without a gateway in the same round; the first line has its own "
        f"times. CPU: of the gateway's own process, {_MANY} connections.",
    )
    peer = _at(http, LITELLM, f"connections_{_MANY}", "requests_per_second")
    for name, told in http.items():
        lead = "" if name == DIRECT else "added_"
        one, many = (told.get(f"connections_{connections}", {}) for connections in HTTP_CONNECTIONS)
        stream = told.get("stream", {})
        ratio = None if name == DIRECT else _ratio(many.get("requests_per_second"), peer)
        table.add_row(
            f"{name} {told['version']}".strip(),
            *(
                text
                for each in (one, many)
                for text in (
                    _number(each.get(f"{lead}p50_ms")),
                    _number(each.get(f"{lead}p99_ms")),
                    _number(each.get("requests_per_second"), 0),
                )
            ),
            "" if ratio is None else f"{ratio:.1f} x",
            _number(many.get("cpu_ms", {}).get("own")),
            _number(stream.get(f"{lead}first_byte_ms")),
            _number(stream.get(f"{lead}whole_ms")),
        )
    return table


def _streams_table(http: Mapping[str, Any]) -> Table:
    table = _table(
        f"{AT_ONCE} streams at once of a provider that sends {1000 / LONG.least_ms:.0f} chunks a second each",
        "",
        "CPU a chunk\nms",
        "± error",
        "CPU a stream\nwithout chunks",
        "lag p50\nms",
        "lag p99",
        "added p50",
        "added p99",
        caption="CPU of the gateway's own process: the slope from streams of "
        f"{SHORT.chunks} chunks to such of {LONG.chunks}, with its standard error. Lag: from the "
        "provider's sending to the client's reading.",
    )
    for name, told in http.items():
        paced = told.get("streams_at_once")
        if paced is not None:
            table.add_row(
                f"{name} {told['version']}".strip(),
                _number(paced.get("cpu_ms_a_chunk"), 3),
                _number(paced.get("cpu_ms_a_chunk_error"), 3),
                _number(paced.get("cpu_ms_a_stream")),
                *(
                    _number(paced.get(figure))
                    for figure in ("lag_p50_ms", "lag_p99_ms", "added_lag_p50_ms", "added_lag_p99_ms")
                ),
            )
    return table


def _slow_lines(http: Mapping[str, Any]) -> Iterator[str]:
    """Yield what hundreds of slow streams came to."""
    for name, told in http.items():
        if (slow := told.get("slow_streams")) is not None:
            memory, used = slow["memory_kib"], slow["cpu_ms"]
            yield (
                f"{name}: {SLOW_AT_ONCE} streams of {SLOW.seconds:.0f} s at once on one worker, begun over "
                f"{SLOW_SPREAD_SECONDS:.0f} s: first byte p50 {_number(slow['first_byte_p50_ms'], 1)} ms, "
                f"p99 {_number(slow['first_byte_p99_ms'], 1)}; lag of a chunk p50 "
                f"{_number(slow['lag_p50_ms'])} ms, p99 {_number(slow['lag_p99_ms'])}, most "
                f"{_number(slow['lag_max_ms'], 0)}; a stream held {_number(memory['own'], 0)} KiB and took "
                f"{_number(used['own'])} ms of its CPU; each is charged once, for its chunks"
            )


def _notes(http: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the table has no column for: what failed, and what a request costs beside our process."""
    for name, told in http.items():
        if told["failure"] is not None:
            yield f"[red]{name} was not measured[/red]: {escape(_first_line(told['failure']))}"
        if told["stream_failure"] is not None and told["stream_failure"] != told["failure"]:
            reason = escape(_first_line(told["stream_failure"]))
            yield f"[red]{name}'s streams were not measured[/red]: {reason}"
        if told["paced_failure"] not in {None, told["failure"]}:
            reason = escape(_first_line(told["paced_failure"]))
            yield f"[red]{name}'s streams at once were not measured[/red]: {reason}"
        cpu = told.get(f"connections_{_MANY}", {}).get("cpu_ms", {})
        if len(cpu) > 1:
            parts = ", ".join(f"{part} {_number(value)}" for part, value in cpu.items())
            yield f"{name}: CPU ms a request at {_MANY} connections: {parts}"
        if (spread := told.get(_OF_MANY)) is not None:
            parts = ", ".join(f"{part} {_number(value)}" for part, value in spread["cpu_ms"].items())
            yield (
                f"{name}, {_MANY} connections of {MANY_CUSTOMERS} customers: added p50 "
                f"{_number(spread.get('added_p50_ms'))} ms, p99 {_number(spread.get('added_p99_ms'))}, "
                f"{_number(spread['requests_per_second'], 0)} requests a second; CPU ms a request: {parts}"
            )
        if "settled_requests" in told:
            yield f"{name}: the ledger adds up; {told['settled_requests']:,} requests are charged in it"


def _pairs_table(pairs: Mapping[str, Any], server: Mapping[str, str], failure: str | None) -> Table:
    shown = ", ".join(f"{name} {value}" for name, value in server.items() if name != "version")
    table = _table(
        f"The database alone, pairs by pgbench on PostgreSQL {server.get('version', '?')}",
        "",
        "connections",
        "admit + settle/s",
        "p50 ms",
        "p99 ms",
        "two bare updates/s",
        "p50 ms",
        "p99 ms",
        "ratio",
        caption=f"The server's defaults: {shown}.",
    )
    if failure is not None:
        table.add_row("[red]not measured[/red]: " + escape(_first_line(failure)))
    for place, by_connections in pairs.items():
        for number, (connections, told) in enumerate(by_connections.items()):
            table.add_row(
                "" if number else place,
                connections.removeprefix("connections_"),
                *(
                    _number(told[name][figure], digits)
                    for name in SCRIPTS
                    for figure, digits in (("pairs_per_second", 0), ("p50_ms", 2), ("p99_ms", 2))
                ),
                f"{told['ratio']:.2f}",
            )
    return table


def _budgets_table(budgets: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("Budgets", "", "goal", "measured", "")
    for each in budgets:
        verdict = {True: "[green]met[/green]", False: "[red]missed[/red]", None: "not measured"}[each["met"]]
        measured = "" if each["measured"] is None else f"{each['measured']:.2f} {each['unit']}"
        table.add_row(each["what"], f"{each['goal']} {each['unit']}", measured, verdict)
    return table


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:160] if text.strip() else "no reason was given"


def read(path: Path) -> dict[str, Any]:
    """Return a kept run. Raises ValueError where the file is none of this format."""
    try:
        kept: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        kept = None
    if not isinstance(kept, dict) or kept.get("format") != FORMAT:
        raise ValueError(f"{path} holds no run of this bench's format {FORMAT}")
    return kept


def compare(console: Console, earlier: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Print every median of both runs side by side; what only one of them has is shown as missing."""
    before, after = dict(_flat(earlier["medians"])), dict(_flat(now["medians"]))
    table = _table(f"Beside the run of {earlier['started_at']}", "", "then", "now", "now / then")
    for name in dict.fromkeys([*before, *after]):
        then, value = before.get(name), after.get(name)
        ratio = _ratio(value, then)
        # What is added to next to nothing has no ratio that means anything.
        meaningful = ratio is not None and then is not None and then > _LEAST_COMPARED
        table.add_row(name, _number(then), _number(value), f"{ratio:.2f}" if meaningful else "")
    console.print(table)


_LEAST_COMPARED = 0.05


def _flat(told: Any, *path: str) -> Iterator[tuple[str, float]]:
    if isinstance(told, dict):
        for name, value in told.items():
            if name == "settled_requests":
                continue  # as many as there was time for
            yield from _flat(value, *path, name)
    elif isinstance(told, int | float) and not isinstance(told, bool):
        yield " · ".join(path), float(told)
