"""The figures that README.md and the guide to scaling show, made from kept results.

`python -m tests.benchmarks.figures --write` takes the newest result of `make bench` and of `make soak`,
writes what they say between the marks in the documents, and has .gitignore keep the two files. Without
`--write` it prints the Markdown. Nobody edits what is between the marks: a test makes it again and compares.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.local import paths
from tests.benchmarks import cost, report
from tests.benchmarks.contenders import DIRECT
from tests.benchmarks.peers import LITELLM, PORTKEY
from tests.benchmarks.pgbench import PLACES, SCRIPTS
from tests.benchmarks.sluice import OURS
from tests.benchmarks.streams import AT_ONCE, LONG, SLOW, SLOW_AT_ONCE, SLOW_SPREAD_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

RESULTS = Path(__file__).with_name("results")
README = paths.REPOSITORY / "README.md"
SCALING = paths.REPOSITORY / "infra" / "docs" / "scaling.md"
PARTS = {README: ("cost in short",), SCALING: ("gateways", "database", "streams", "budgets", "soak", "cost")}
"""Which parts each document has."""

_IGNORED = Path(__file__).with_name(".gitignore")
_BUSY = 1.0
_END = "<!-- end of figures -->"
_PAID, _BARE = SCRIPTS
_DIRECTORY = "tests/benchmarks/results"
_NOTES = {LITELLM: ", no database", PORTKEY: ", which keeps no state"}


def parts(bench: Path, soak: Path) -> dict[str, str]:
    """Return each part's Markdown. Raises ValueError where a file is no such result, or lacks a part."""
    kept = report.read(bench)
    soaked = _read_soak(soak)
    prices, memory = cost.read_prices(), cost.default_memory()
    machine = f"{kept['machine']['cores']} cores of an {kept['machine']['cpu']}"
    source = f"[result](../../{_DIRECTORY}/{bench.name}): {kept['started_at'][:10]}, {machine}"
    try:
        return {
            "gateways": "\n".join(_gateways(kept, source)),
            "database": "\n".join(_database(kept)),
            "streams": "\n".join(_streams(kept)),
            "budgets": "\n".join(_budgets(kept)),
            "soak": "\n".join(_soak(soaked, soak)),
            "cost": cost.whole(kept, prices, memory),
            "cost in short": cost.short(kept, prices, memory),
        }
    except KeyError as error:
        raise ValueError(f"{bench.name} or {soak.name} has no {error}") from error


def put(text: str, name: str, content: str) -> str:
    """Return a document's text with a part between its marks. Raises ValueError where it has none."""
    begin = f"<!-- figures: {name} -->"
    pattern = re.compile(f"{re.escape(begin)}\n.*?{re.escape(_END)}", re.DOTALL)
    changed, count = pattern.subn(lambda _: f"{begin}\n{content}\n{_END}", text)
    if count != 1:
        raise ValueError(f"the document has {count} places for {name!r}")
    return changed


def shown_results(text: str) -> tuple[Path, Path]:
    """Return the results that the guide to scaling links: of the bench and of the soak."""
    names = dict.fromkeys(re.findall(rf"\]\(\.\./\.\./{_DIRECTORY}/((?:soak-)?20[^)]+\.json)\)", text))
    [bench] = [name for name in names if not name.startswith("soak-")]
    [soak] = [name for name in names if name.startswith("soak-")]
    return RESULTS / bench, RESULTS / soak


def _read_soak(path: Path) -> dict[str, Any]:
    told: Any = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(told, dict) or "at_rest" not in told:
        raise ValueError(f"{path.name} is no result of a soak")
    return told


def _gateways(kept: Mapping[str, Any], source: str) -> Iterator[str]:
    told = kept["medians"]["gateways"]
    busy = kept["machine"]["load_before"]
    noisy = f" The machine was busy with other things (load {busy:.0f})." if busy > _BUSY else ""
    yield f"One run ({source}; medians). Each machine has its own figures, so compare the ratios.{noisy}"
    yield ""
    yield (
        "| | added, 1 connection | requests/s, 1 | added, 16 | requests/s, 16 | own CPU a request | "
        "first byte of a stream, added |"
    )
    yield "|---|---|---|---|---|---|---|"
    for name, each in told.items():
        if name == DIRECT or each["failure"] is not None:
            continue
        one, many = each["connections_1"], each["connections_16"]
        cells = [
            _ms(one["added_p50_ms"]),
            f"{one['requests_per_second']:,.0f}",
            _ms(many["added_p50_ms"]),
            f"{many['requests_per_second']:,.0f}",
            _ms(many["cpu_ms"]["own"]),
            _ms(each["stream"]["added_first_byte_ms"]) if "stream" in each else "",
        ]
        version = "" if name == OURS else f" {each['version']}"
        yield f"| {name}{version}{_NOTES.get(name, '')} | {' | '.join(cells)} |"
        if (spread := each.get("connections_16_customers_16")) is not None:
            rate = f"{spread['requests_per_second']:,.0f}"
            yield (
                f"| {name}, the 16 of as many customers | | | {_ms(spread['added_p50_ms'])} | {rate} | "
                f"{_ms(spread['cpu_ms']['own'])} | |"
            )
    ours = told[OURS]["connections_16"]["cpu_ms"]
    yield ""
    yield (
        f"Beside its own CPU a request took {ours['PostgreSQL']:.1f} ms of PostgreSQL's and "
        f"{ours['PostgREST']:.1f} ms of PostgREST's."
    )


def _database(kept: Mapping[str, Any]) -> Iterator[str]:
    yield "| | connections | admissions with settlements/s | p50 | p99 | two bare updates/s | ratio |"
    yield "|---|---|---|---|---|---|---|"
    for place in PLACES:
        for connections, told in kept["medians"]["database"][place].items():
            paid, bare = told[_PAID], told[_BARE]
            yield (
                f"| {place} | {connections.removeprefix('connections_')} | {paid['pairs_per_second']:,.0f} | "
                f"{_ms(paid['p50_ms'])} | {_ms(paid['p99_ms'])} | {bare['pairs_per_second']:,.0f} | "
                f"{told['ratio']:.2f} |"
            )


def _streams(kept: Mapping[str, Any]) -> Iterator[str]:
    told = kept["medians"]["gateways"]
    yield (
        f"| {AT_ONCE} streams at once, {1000 // LONG.least_ms} chunks a second each | own CPU a chunk | "
        "and a stream | a chunk comes later by, p50 | p99 |"
    )
    yield "|---|---|---|---|---|"
    for name, each in told.items():
        paced = each.get("streams_at_once", {})
        if "cpu_ms_a_chunk" in paced:
            yield (
                f"| {name} | {paced['cpu_ms_a_chunk']:.3f} ms ± {paced['cpu_ms_a_chunk_error']:.3f} | "
                f"{_ms(paced['cpu_ms_a_stream'])} | {_ms(paced['added_lag_p50_ms'])} | "
                f"{_ms(paced['added_lag_p99_ms'])} |"
            )
    slow = told[OURS]["slow_streams"]
    yield ""
    yield (
        f"{SLOW_AT_ONCE} streams at once on one worker, {SLOW.seconds:.0f} s each with a chunk every "
        f"{SLOW.least_ms / 1000:g} to {SLOW.most_ms / 1000:g} s, begun over {SLOW_SPREAD_SECONDS:.0f} s: the "
        f"first byte came after {_ms(slow['first_byte_p50_ms'])} at the median and "
        f"{_ms(slow['first_byte_p99_ms'])} at p99, a chunk {_ms(slow['lag_p50_ms'])} and "
        f"{_ms(slow['lag_p99_ms'])} after the provider had sent it. A stream held "
        f"{slow['memory_kib']['own']:.0f} KiB of the worker's memory and took "
        f"{_ms(slow['cpu_ms']['own'])} of its CPU. Each was charged once, for its chunks."
    )


def _budgets(kept: Mapping[str, Any]) -> Iterator[str]:
    yield "| our goals | goal | measured | |"
    yield "|---|---|---|---|"
    for each in kept["budgets"]:
        unit = f" {each['unit']}"
        measured = "" if each["measured"] is None else f"{each['measured']:.2f}{unit}"
        met = {True: "met", False: "missed", None: "not measured"}[each["met"]]
        yield f"| {each['what']} | {each['goal']}{unit} | {measured} | {met} |"


def _soak(told: Mapping[str, Any], path: Path) -> Iterator[str]:
    before, after = told["at_rest"]["before"], told["at_rest"]["after"]
    calls = sum(told["calls"].values())
    machine = f"{told['machine']['cores']} cores of an {told['machine']['cpu']}"
    failed = [each["what"] for each in told["checks"] if not each["ok"]]
    ended = "every check passed" if not failed else f"failed: {'; '.join(failed)}"
    yield (
        f"{told['minutes']:g} minutes of mixed load ([result](../../{_DIRECTORY}/{path.name}): "
        f"{told['started_at'][:10]}, {machine}) were {calls:,} calls with {len(told['calls'])} kinds of "
        f"outcome; {ended}. At rest before and after: {sum(before['tasks'].values())} and "
        f"{sum(after['tasks'].values())} tasks, {before['gateway']['sockets']} and "
        f"{after['gateway']['sockets']} sockets of the gateway's, {before['backends']} and "
        f"{after['backends']} connections to the database, {before['holds']} and {after['holds']} holds."
    )
    if (grown := told["growth"]) is not None:
        resident, a_call = grown["resident_bytes"], grown["resident_bytes_a_call"]
        heap, blocks = grown["heap_bytes_a_call"], grown["heap_blocks_a_call"]
        yield (
            f"In the last {grown['seconds'] / 60:.0f} minutes what it has in use grew by {heap['slope']:.1f} "
            f"bytes of the C heap a call (95 % between {heap['low']:.1f} and {heap['high']:.1f}) and by "
            f"{blocks['slope']:.3f} blocks of Python's ({blocks['low']:.3f} to {blocks['high']:.3f}); its "
            f"resident memory, {resident['last'] / 2**20:.0f} MiB, by {a_call['slope']:.0f} bytes a call "
            f"({a_call['low']:.0f} to {a_call['high']:.0f}): what the allocator keeps free in between."
        )


def _ms(value: float) -> str:
    return f"{value:,.0f} ms" if value >= 20 else f"{value:.1f} ms"


def _keep(names: list[str]) -> None:
    """Have .gitignore keep these results, and no other runs of the bench and the soak."""
    lines = _IGNORED.read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if not re.fullmatch(r"!/results/(soak-)?20.*\.json", line)]
    _IGNORED.write_text(
        "\n".join([*lines, *(f"!/results/{name}" for name in names)]) + "\n", encoding="utf-8"
    )


def _newest(pattern: str) -> Path:
    found = sorted(RESULTS.glob(pattern))
    if not found:
        raise typer.BadParameter(f"there is no {pattern} in {RESULTS}")
    return found[-1]


def main(
    bench: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Of `make bench`.")] = None,
    soak: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Of `make soak`.")] = None,
    write: Annotated[bool, typer.Option(help="Into the documents.")] = False,
) -> None:
    """Print the documents' figures, or write them; of the newest results unless others are named."""
    bench, soak = bench or _newest("20*.json"), soak or _newest("soak-20*.json")
    try:
        made = parts(bench, soak)
        texts = {
            path: put_all(path.read_text(encoding="utf-8"), names, made) for path, names in PARTS.items()
        }
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if not write:
        print("\n\n".join(f"<!-- {name} -->\n{text}" for name, text in made.items()))
        return
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    _keep([bench.name, soak.name])
    print(f"{', '.join(path.name for path in texts)}: {bench.name}, {soak.name}")


def put_all(text: str, names: tuple[str, ...], made: Mapping[str, str]) -> str:
    """Return a document's text with all its parts."""
    for name in names:
        text = put(text, name, made[name])
    return text


if __name__ == "__main__":
    typer.run(main)
