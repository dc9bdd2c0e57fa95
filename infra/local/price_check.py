"""The catalogue against a second public price list: `python -m infra.local.price_check`.

The second list is the PyPI package genai-prices, kept by other people from the providers' own pages. Where it
has a price by the hour, its dearest is compared: that is what a call may cost. Prices by the length of the
prompt are compared tier by tier, but for lengths that are beyond the model's context.
What has been looked into stands in sql/catalogue/settled.csv, with both figures; the rest is open.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

from genai_prices.data import providers as second_list
from genai_prices.types import ModelPrice, TieredPrices
from rich.console import Console
from rich.table import Table

from infra.local import paths
from infra.local.catalogue import read_catalogue, read_changes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from genai_prices.types import ModelInfo

    from gateway.price_list import NumberedLine

SETTLED = paths.CATALOGUE.with_name("settled.csv")
_THEIR_PROVIDERS = {"gemini": "google", "xai": "x-ai"}
_THEIR_CLASSES = {
    "input": "input_mtok",
    "cached_input": "cache_read_mtok",
    "cache_write": "cache_write_mtok",
    "audio_input": "input_audio_mtok",
    "image_input": "input_image_mtok",
    "output": "output_mtok",
    "audio_output": "output_audio_mtok",
    "image_output": "output_image_mtok",
}
_HOURS = 24


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A class whose price is another there. USD per million tokens."""

    model: str
    provider: str
    price_class: str
    ours: Decimal
    theirs: Decimal
    above_input_tokens: int = 0
    """Of requests with more input tokens than this; 0: of those that are short."""

    @property
    def ratio(self) -> Decimal | None:
        """Ours by theirs; None where theirs is zero."""
        return self.ours / self.theirs if self.theirs else None


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came of holding one list against the other."""

    compared: int
    """Offers that both have."""
    unknown: Sequence[tuple[str, str]]
    """(model, provider) of those that the second list lacks."""
    disagreements: Sequence[Disagreement]


def compare(path: Path = paths.CATALOGUE, *, at: datetime | None = None) -> Comparison:
    """Hold the catalogue against the second list, at its prices of the day of `at` (today).

    A class that only we have is not compared. One that only they have costs here what its base class does.
    """
    day = (at or datetime.now(UTC)).replace(hour=0, minute=0, second=0, microsecond=0)
    lines = {(line.offer.model, line.provider): line for line in read_catalogue(path).lines}
    for begins, changed in read_changes(path):
        if begins <= day.date():
            lines |= {(line.offer.model, line.provider): line for line in changed.lines}
    compared, unknown, found = 0, [], []
    for line in lines.values():
        offer = line.offer
        theirs = _find(line.provider, offer.upstream_model or offer.model)
        if theirs is None:
            unknown.append((offer.model, line.provider))
            continue
        compared += 1
        for length, name, amount in _dearest(theirs, day, line):
            ours = _ours(line, name, length)
            if ours != amount:
                found.append(Disagreement(offer.model, line.provider, name, ours, amount, length))
    return Comparison(compared, unknown, found)


def disagreements(path: Path = paths.CATALOGUE, *, at: datetime | None = None) -> list[Disagreement]:
    """Return the classes whose price is another in the second list."""
    return list(compare(path, at=at).disagreements)


def read_settled(path: Path = SETTLED) -> dict[Disagreement, str]:
    """Return what has been looked into, and what came of it."""
    with path.open(newline="", encoding="utf-8") as file:
        return {
            Disagreement(
                row["model"],
                row["provider"],
                row["class"],
                Decimal(row["ours"]),
                Decimal(row["theirs"]),
                int(row["above_input_tokens"] or 0),
            ): row["why"]
            for row in csv.DictReader(file, strict=True)
        }


def _find(provider: str, upstream_model: str) -> ModelInfo | None:
    identity = _THEIR_PROVIDERS.get(provider, provider)
    if provider == "huggingface":
        upstream_model, _, served_by = upstream_model.rpartition(":")
        identity = f"huggingface_{served_by}"
    for entry in second_list:
        if entry.id == identity:
            return entry.find_model(upstream_model)
    return None


def _dearest(model: ModelInfo, day: datetime, line: NumberedLine) -> Iterator[tuple[int, str, Decimal]]:
    """Yield (length that is exceeded, class, their price) for each length at which either list changes."""
    hours = range(1 if isinstance(model.prices, ModelPrice) else _HOURS)
    offered = [model.get_prices(day + timedelta(hours=hour)) for hour in hours]
    priced = {
        name: [getattr(prices, theirs) for prices in offered] for name, theirs in _THEIR_CLASSES.items()
    }
    lengths = {0} | {tier.offer.above_input_tokens or 0 for tier in line.tiers}
    for prices in priced.values():
        lengths |= {tier.start for each in prices if isinstance(each, TieredPrices) for tier in each.tiers}
    context = line.offer.context_length
    for length in sorted(lengths):
        if context is not None and length >= context:
            continue
        for name, prices in priced.items():
            known = [_theirs(each, length) for each in prices if each is not None]
            if known:
                yield length, name, max(known)


def _theirs(price: Decimal | TieredPrices, length: int) -> Decimal:
    if not isinstance(price, TieredPrices):
        return price
    reached = [tier for tier in price.tiers if tier.start <= length]
    return max(reached, key=lambda tier: tier.start).price if reached else price.base


def _ours(line: NumberedLine, name: str, length: int) -> Decimal:
    offer = line.offer
    for tier in line.tiers:
        if (tier.offer.above_input_tokens or 0) <= length:
            offer = tier.offer
    price: Decimal | None = getattr(offer, name)
    if price is not None:
        return price
    return offer.output if name.endswith("output") else offer.input


def main() -> int:
    """Print what is open; return the exit status: 1 where anything is."""
    made, settled = compare(), read_settled()
    opened = [each for each in made.disagreements if each not in settled]
    gone = settled.keys() - set(made.disagreements)
    console = Console()
    if opened:
        table = Table("model", "provider", "prompt", "class", "ours", "theirs", "ratio")
        for each in opened:
            ratio = "" if each.ratio is None else f"{each.ratio:.3f}"
            figures = f"{each.ours.normalize():f}", f"{each.theirs.normalize():f}"
            prompt = f"> {each.above_input_tokens:,}" if each.above_input_tokens else ""
            table.add_row(each.model, each.provider, prompt, each.price_class, *figures, ratio)
        console.print(table)
    for each in gone:
        console.print(f"settled, and no longer so: {each}", markup=False)
    console.print(
        f"{made.compared} offers compared, {len(made.unknown)} are not in the second list; "
        f"{len(made.disagreements) - len(opened)} disagreements are settled, {len(opened)} open"
    )
    return 1 if opened or gone else 0


if __name__ == "__main__":
    sys.exit(main())
