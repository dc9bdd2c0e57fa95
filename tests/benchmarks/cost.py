"""What a million requests cost to run, from what the bench measured: Lambda's bill, the database's time.

`python -m tests.benchmarks.cost RESULT.json` prints the tables that the documents have.

Lambda bills memory times duration, and a function waits for its provider while it is billed: an instance
takes one request at a time. So the bill is that of waiting, and what the gateway adds to it is

    its own CPU / the share of a vCPU that the memory buys + its wait for the database + the way there.

The CPU of a stream's chunks is not added: it is spent while the next chunk is waited for. A vCPU is taken for
as fast as a core of the machine of the bench. Prices are in prices.toml, each with its source.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.local import paths
from tests.benchmarks import report
from tests.benchmarks.sluice import OURS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

MILLION = 1_000_000
PROVIDER_SECONDS = (1, 5, 20)
ROUND_TRIPS = 2
ROUND_TRIP_MS = 1.0
"""Between Lambda and a Supabase project in the same region. Assumed: nothing here has measured it."""
BUSY = 0.6
"""The part of a database's cores that may be busy; what is above it is for peaks and for everything else."""
CHUNKS = 300
"""Of the stream whose CPU is told: a long answer."""
_MONTH_HOURS = 730
_PRICES = Path(__file__).with_name("prices.toml")
_TEMPLATE = paths.REPOSITORY / "template.yaml"


@dataclass(frozen=True, slots=True)
class Size:
    """A compute size of Supabase's."""

    name: str
    cores: int
    dedicated: bool
    hour: Decimal


@dataclass(frozen=True, slots=True)
class Prices:
    """USD."""

    gb_second: Mapping[str, Decimal]
    """By architecture."""
    lambda_million: Decimal
    gateway_million: Decimal
    mb_a_vcpu: int
    sizes: Sequence[Size]
    sources: Mapping[str, tuple[str, str]]
    """Whose → the page, and where and of when it was read."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Medians of a run of the bench, in milliseconds for each request. CPU is that of one core."""

    own: float
    """CPU of our own process for a plain request, at 16 connections."""
    waiting: float
    """For the database at one connection: what a request takes longer than without us, less our own CPU."""
    postgres: float
    postgrest: float
    stream: float | None = None
    """CPU of our own process for a stream, without its chunks; None where the run has none."""
    chunk: float | None = None
    """And for each chunk."""


@dataclass(frozen=True, slots=True)
class Bill:
    """Of a million requests, in USD."""

    seconds: int
    """That the provider takes for each."""
    gb_seconds: float
    duration: Mapping[str, Decimal]
    """Of Lambda, by architecture."""
    requests: Decimal
    """Lambda's and API Gateway's."""

    def total(self, architecture: str) -> Decimal:
        """Return all that AWS takes."""
        return self.duration[architecture] + self.requests


def read_prices(path: Path = _PRICES) -> Prices:
    """Read the prices."""
    told = tomllib.loads(path.read_text(encoding="utf-8"))
    return Prices(
        gb_second={name: Decimal(price) for name, price in told["lambda"]["gb_second"].items()},
        lambda_million=Decimal(told["lambda"]["million_requests"]),
        gateway_million=Decimal(told["api_gateway"]["million_requests"]),
        mb_a_vcpu=told["lambda"]["cpu"]["mb_a_vcpu"],
        sizes=[
            Size(each["name"], each["cores"], each["dedicated"], Decimal(each["hour"]))
            for each in told["supabase"]["sizes"]
        ],
        sources={
            name: (each["source"], each["seen"])
            for name, each in (
                ("Lambda", told["lambda"]),
                ("its CPU", told["lambda"]["cpu"]),
                ("API Gateway", told["api_gateway"]),
                ("Supabase", told["supabase"]),
            )
        },
    )


def read_measured(kept: Mapping[str, Any]) -> Measured:
    """Return what a kept run says. Raises ValueError where ours was not measured in it."""
    ours = kept["medians"]["gateways"].get(OURS, {})
    try:
        one, many = ours["connections_1"], ours["connections_16"]
        streams = ours.get("streams_at_once", {})
        return Measured(
            own=many["cpu_ms"]["own"],
            waiting=max(one["added_p50_ms"] - one["cpu_ms"]["own"], 0.0),
            postgres=many["cpu_ms"]["PostgreSQL"],
            postgrest=many["cpu_ms"]["PostgREST"],
            stream=streams.get("cpu_ms_a_stream"),
            chunk=streams.get("cpu_ms_a_chunk"),
        )
    except KeyError as error:
        raise ValueError(f"the run has no {error} of {OURS}") from error


def default_memory() -> int:
    """Return the MB that the template gives to chat."""
    found = re.search(
        r"^  ChatMemory:\n    Type: Number\n    Default: (\d+)$", _TEMPLATE.read_text(), re.MULTILINE
    )
    if found is None:
        raise ValueError("the template has no ChatMemory")
    return int(found[1])


def overhead_ms(measured: Measured, prices: Prices, memory: int, *, cpu: float | None = None) -> float:
    """Return what the gateway adds to a billed duration; `cpu` is its own, a plain request's unless given."""
    share = min(memory / prices.mb_a_vcpu, 1.0)
    own = measured.own if cpu is None else cpu
    return own / share + measured.waiting + ROUND_TRIPS * ROUND_TRIP_MS


def bill(measured: Measured, prices: Prices, memory: int, seconds: int) -> Bill:
    """Return what AWS takes for a million plain requests whose provider takes so long."""
    billed = seconds + overhead_ms(measured, prices, memory) / 1000
    gb_seconds = memory / 1024 * billed * MILLION
    return Bill(
        seconds,
        gb_seconds,
        {name: Decimal(gb_seconds) * price for name, price in prices.gb_second.items()},
        prices.lambda_million + prices.gateway_million,
    )


def database_hours(measured: Measured) -> float:
    """Return the core-hours of a million requests: PostgREST runs where PostgreSQL does."""
    return (measured.postgres + measured.postgrest) * MILLION / 3_600_000


def requests_per_second(measured: Measured, size: Size) -> float:
    """Return the rate that keeps a size's cores as busy as they may be."""
    return size.cores * BUSY * 1000 / (measured.postgres + measured.postgrest)


# Markdown


def short(kept: Mapping[str, Any], prices: Prices, memory: int) -> str:
    """Return the README's table."""
    measured = read_measured(kept)
    lines = [
        "| a million requests, when the provider takes | 1 s | 5 s | 20 s |",
        "|---|---|---|---|",
    ]
    bills = [bill(measured, prices, memory, seconds) for seconds in PROVIDER_SECONDS]
    lines += [
        f"| {what} | {' | '.join(cells)} |"
        for what, cells in (
            ("Lambda, GB-seconds", [f"{each.gb_seconds / 1e6:.2f} million" for each in bills]),
            *(
                (f"AWS in all, {name}", [_usd(each.total(name)) for each in bills])
                for name in ("arm64", "x86_64")
            ),
        )
    ]
    lines.append(f"| Supabase, hours of one core | {' | '.join([f'{database_hours(measured):.1f}'] * 3)} |")
    return "\n".join(lines)


def whole(kept: Mapping[str, Any], prices: Prices, memory: int) -> str:
    """Return the tables of the guide to scaling."""
    measured = read_measured(kept)
    return "\n".join(
        [*_aws(measured, prices, memory), "", *_database(measured, prices), "", *_sources(prices)]
    )


def _aws(measured: Measured, prices: Prices, memory: int) -> Iterator[str]:
    share = min(memory / prices.mb_a_vcpu, 1.0)
    added = overhead_ms(measured, prices, memory)
    gb_seconds = memory / 1024 * added * MILLION / 1000
    yield (
        f"A plain request takes {measured.own:.1f} ms of our own CPU. {memory} MB of Lambda buy {share:.2f} "
        f"of a vCPU, so that is {measured.own / share:.1f} ms there; with {measured.waiting:.1f} ms of "
        f"waiting for PostgREST and PostgreSQL, and {ROUND_TRIPS} ways of {ROUND_TRIP_MS:.0f} ms to "
        f"them (assumed), the gateway adds {added:.0f} ms to what is billed: {gb_seconds:,.0f} "
        "GB-seconds of a million requests. The rest is the wait for the provider."
    )
    if measured.stream is not None and measured.chunk is not None:
        cpu = measured.stream + CHUNKS * measured.chunk
        stream = overhead_ms(measured, prices, memory, cpu=measured.stream)
        yield (
            f"A stream takes {measured.stream:.1f} ms and {measured.chunk:.3f} ms for each chunk, so "
            f"{cpu:.0f} ms with {CHUNKS} of them; the chunks' part is spent while the next is waited for, "
            f"the rest adds {stream:.0f} ms."
        )
    yield ""
    bills = [bill(measured, prices, memory, seconds) for seconds in PROVIDER_SECONDS]
    yield f"| a million requests, {memory} MB, when the provider takes | 1 s | 5 s | 20 s |"
    yield "|---|---|---|---|"
    rows: list[tuple[str, list[str]]] = [
        ("Lambda, GB-seconds", [f"{each.gb_seconds:,.0f}" for each in bills]),
        *(
            (f"Lambda, duration on {name}", [_usd(each.duration[name]) for each in bills])
            for name in prices.gb_second
        ),
        ("Lambda, requests", [_usd(prices.lambda_million)] * len(bills)),
        ("API Gateway, requests", [_usd(prices.gateway_million)] * len(bills)),
        *((f"in all on {name}", [_usd(each.total(name)) for each in bills]) for name in prices.gb_second),
    ]
    for what, cells in rows:
        yield f"| {what} | {' | '.join(cells)} |"


def _database(measured: Measured, prices: Prices) -> Iterator[str]:
    yield (
        f"In the database a request takes {measured.postgres:.1f} ms of PostgreSQL's CPU and "
        f"{measured.postgrest:.1f} ms of PostgREST's, which Supabase runs on the same machine: "
        f"{database_hours(measured):.1f} hours of one core for a million. What a size carries with its cores "
        f"{BUSY:.0%} busy, if a core is as fast as one of the bench's:"
    )
    yield ""
    yield "| Supabase compute | cores | a month | requests/s |"
    yield "|---|---|---|---|"
    for size in prices.sizes:
        cores = f"{size.cores}" if size.dedicated else f"{size.cores}, shared"
        rate = f"{requests_per_second(measured, size):,.0f}" + ("" if size.dedicated else ", in bursts")
        yield f"| {size.name} | {cores} | {_usd(size.hour * _MONTH_HOURS, 0)} | {rate} |"


def _sources(prices: Prices) -> Iterator[str]:
    told = "; ".join(f"[{name}]({source}) ({seen})" for name, (source, seen) in prices.sources.items())
    yield f"Prices of N. Virginia, first tier, without free tiers, credits and savings plans: {told}."
    yield (
        "Not in these sums: the providers, starts of new instances, logs, data that goes out, Supabase's "
        "plan and disk, and the functions other than chat."
    )


def _usd(amount: Decimal, digits: int = 2) -> str:
    return f"${amount.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP):,}"


def main(
    result: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="What `make bench` has kept.")],
    memory: Annotated[
        int | None, typer.Option(min=128, max=10_240, help="MB; the template's unless given.")
    ] = None,
) -> None:
    """Print what a million requests cost, as Markdown."""
    try:
        kept, size = report.read(result), memory or default_memory()
        prices = read_prices()
        print(f"{short(kept, prices, size)}\n\n{whole(kept, prices, size)}")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


if __name__ == "__main__":
    typer.run(main)
