"""The catalogue against a second public price list: `python -m infra.local.price_check`.

The second list is the PyPI package genai-prices, kept by other people from the providers' own pages. Where it
has a price by the hour or by the length of the prompt, its dearest is compared: that is what a call may cost.
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
    from collections.abc import Sequence
    from pathlib import Path

    from genai_prices.types import ModelInfo

    from gateway.schemas.price_list import PriceLine

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
        for name, amount in _dearest(theirs, day).items():
            ours = _ours(offer, name)
            if ours != amount:
                found.append(Disagreement(offer.model, line.provider, name, ours, amount))
    return Comparison(compared, unknown, found)


def disagreements(path: Path = paths.CATALOGUE, *, at: datetime | None = None) -> list[Disagreement]:
    """Return the classes whose price is another in the second list."""
    return list(compare(path, at=at).disagreements)


def read_settled(path: Path = SETTLED) -> dict[Disagreement, str]:
    """Return what has been looked into, and what came of it."""
    with path.open(newline="", encoding="utf-8") as file:
        return {
            Disagreement(
                row["model"], row["provider"], row["class"], Decimal(row["ours"]), Decimal(row["theirs"])
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


def _dearest(model: ModelInfo, day: datetime) -> dict[str, Decimal]:
    dearest: dict[str, Decimal] = {}
    for hour in range(1 if isinstance(model.prices, ModelPrice) else _HOURS):
        prices = model.get_prices(day + timedelta(hours=hour))
        for name, theirs in _THEIR_CLASSES.items():
            price = getattr(prices, theirs)
            if isinstance(price, TieredPrices):
                price = max(price.base, *(tier.price for tier in price.tiers))
            if price is not None:
                dearest[name] = max(price, dearest.get(name, price))
    return dearest


def _ours(offer: PriceLine, name: str) -> Decimal:
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
        table = Table("model", "provider", "class", "ours", "theirs", "ratio")
        for each in opened:
            ratio = "" if each.ratio is None else f"{each.ratio:.3f}"
            figures = f"{each.ours.normalize():f}", f"{each.theirs.normalize():f}"
            table.add_row(each.model, each.provider, each.price_class, *figures, ratio)
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
