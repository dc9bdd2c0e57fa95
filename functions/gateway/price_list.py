"""Price lists as CSV: one line for each model of each provider, in USD per million tokens of each class.

The first line names the columns, in any order: those of `PriceLine`. An empty cell says nothing: a class
without a price costs what its base class (input or output) costs. The short form has the columns provider,
model and price_per_token: USD for a token, read or written alike.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from gateway.providers.registry import find_provider
from gateway.schemas.admin import MAX_TIERS, TOKEN_CLASSES, Prices
from gateway.schemas.price_list import PriceLine
from gateway.schemas.values import as_sent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

MAX_LINES = 20_000
_PRICE_PER_TOKEN = "price_per_token"  # noqa: S105 - a column
_COLUMNS = frozenset(PriceLine.model_fields) - {"tiers"}
_NEEDED = ("model", "provider", "input", "output")
_TOKEN_PRICE = re.compile(r"[0-9]{1,20}(\.[0-9]{1,32})?([eE][+-]?[0-9]{1,2})?")
_SHORT_FORM = frozenset({"model", "provider", _PRICE_PER_TOKEN})
_TIER = "above_input_tokens"
_OF_THE_OFFER = ("upstream_model", "source", "source_date")
_NOT_OF_A_TIER = ("per_request", "per_image")
_OF_THE_MODEL = ("context_length", "max_output_tokens", "input_modalities", "output_modalities")
# Sold here before the gateway speaks their formats: a service of theirs can't be made yet.
_PRICED_ONLY = {"gemini": "gemini", "google": "gemini"}
# A dearer class is odd, and may be right all the same.
_CHEAPER = (("cached_input", "input"),)


class PriceListError(ValueError):
    """A line is malformed. `line` counts from 1, the header's; `column` is None where it is no cell's fault.

    `others` is how many more lines are malformed.
    """

    def __init__(self, message: str, *, line: int, column: str | None = None, others: int = 0) -> None:
        where = f"line {line}, {column}" if column else f"line {line}"
        more = f" ({others} more lines are malformed)" if others else ""
        super().__init__(f"{where}: {message}{more}")
        self.message = message
        self.line = line
        self.column = column
        self.others = others


@dataclass(frozen=True, slots=True)
class NumberedLine:
    """A line that is sound, and its number in the file."""

    number: int
    offer: PriceLine
    provider: str
    """By its name in the registry, not by an alias."""
    tiers: Sequence[NumberedLine] = ()
    """The lines of what long prompts cost, ascending."""

    def as_json(self) -> dict[str, Any]:
        """Return it as api.import_prices takes it; prices are exact text."""
        said = _said(self.offer, _COLUMNS - {_TIER})
        if self.tiers:
            said["tiers"] = [_said(tier.offer, (_TIER, *TOKEN_CLASSES)) for tier in self.tiers]
        return {**said, "provider": self.provider}


@dataclass(frozen=True, slots=True)
class PriceList:
    """A whole list, each line of it sound; those of tiers are with the offer's own.

    `warnings` are what is odd and may be right all the same.
    """

    lines: Sequence[NumberedLine]
    warnings: Sequence[str]

    def as_json(self) -> list[dict[str, Any]]:
        return [line.as_json() for line in self.lines]


def read_price_list(text: str) -> PriceList:
    """Return the list. Raises PriceListError for the first line that is malformed."""
    rows = list(_rows(text))
    if len(rows) <= 1:
        raise PriceListError("the list is empty: names of columns, then a line for each offer", line=1)
    if len(rows) > MAX_LINES + 1:
        raise PriceListError(
            f"more than {MAX_LINES} lines: import them in parts", line=rows[MAX_LINES + 1][0]
        )
    columns = _columns(*rows[0])
    lines: list[NumberedLine] = []
    faults: list[PriceListError] = []
    offers: dict[tuple[str, str, int | None], int] = {}
    models: dict[tuple[str, str], NumberedLine] = {}
    for number, cells in rows[1:]:
        try:
            line = _line(number, columns, cells)
            _compare(line, offers, models)
        except PriceListError as fault:
            faults.append(fault)
        else:
            lines.append(line)
    if not faults:
        lines = list(_with_tiers(lines, faults))
    if faults:
        first = min(faults, key=lambda fault: fault.line)
        raise PriceListError(first.message, line=first.line, column=first.column, others=len(faults) - 1)
    return PriceList(lines, [warning for line in lines for warning in _warnings(line)])


def _rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the lines that are not blank, each with the number of the line that it begins on."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise PriceListError(f"can't be read as CSV: {error}", line=number) from error
        if cells is None:
            return
        if cells:
            yield number, [cell.strip() for cell in cells]


def _columns(number: int, names: list[str]) -> list[str]:
    for name in names:
        if names.count(name) > 1:
            raise PriceListError("stands here twice", line=number, column=_shown(name))
        if name not in _COLUMNS | _SHORT_FORM:
            # A misspelt class would be a class without a price.
            raise PriceListError("is no column of a price list", line=number, column=_shown(name))
    needed = _SHORT_FORM if _PRICE_PER_TOKEN in names else _NEEDED
    missing = [name for name in needed if name not in names]
    if missing:
        raise PriceListError("is missing", line=number, column=missing[0])
    beside = sorted(set(names) & set(Prices.model_fields))
    if _PRICE_PER_TOKEN in names and beside:
        raise PriceListError(f"can't stand beside {_PRICE_PER_TOKEN}", line=number, column=beside[0])
    return names


def _line(number: int, columns: list[str], cells: list[str]) -> NumberedLine:
    if len(cells) != len(columns):
        raise PriceListError(f"has {len(cells)} fields, not {len(columns)}", line=number)
    said: dict[str, Any] = {name: cell for name, cell in zip(columns, cells, strict=True) if cell}
    if _PRICE_PER_TOKEN in columns:
        price = _per_million(number, said.pop(_PRICE_PER_TOKEN, ""))
        said |= {"input": price, "output": price}
    try:
        offer = PriceLine.model_validate(said)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        column = str(fault["loc"][0])
        if _PRICE_PER_TOKEN in columns and column in {"input", "output"}:
            column = _PRICE_PER_TOKEN
        message = "is empty" if fault["type"] == "missing" else fault["msg"]
        raise PriceListError(message, line=number, column=column) from None
    provider = find_provider(offer.provider)
    name = provider.name if provider else _PRICED_ONLY.get(offer.provider.lower())
    if name is None:
        raise PriceListError(
            f"{offer.provider[:64]!r} is not a provider that the gateway knows",
            line=number,
            column="provider",
        )
    return NumberedLine(number, offer, name)


def _per_million(number: int, text: str) -> Decimal:
    if not _TOKEN_PRICE.fullmatch(text):
        message = "must be a decimal number such as 0.00000015" if text else "is empty"
        raise PriceListError(message, line=number, column=_PRICE_PER_TOKEN)
    # Shifted, not multiplied: exact.
    return Decimal(text).scaleb(6)


def _compare(
    line: NumberedLine,
    offers: dict[tuple[str, str, int | None], int],
    models: dict[tuple[str, str], NumberedLine],
) -> None:
    """Hold a line against those before it. A model has one context, whoever sells it."""
    above = line.offer.above_input_tokens
    before = offers.setdefault((line.offer.model, line.provider, above), line.number)
    if before != line.number and above is not None:
        raise PriceListError(f"is the same as in line {before}", line=line.number, column=_TIER)
    if before != line.number:
        raise PriceListError(f"names the offer of line {before} again", line=line.number, column="provider")
    for name in _OF_THE_MODEL:
        value = getattr(line.offer, name)
        if value is None:
            continue
        other = models.setdefault((line.offer.model, name), line)
        if _in_any_order(getattr(other.offer, name)) != _in_any_order(value):
            raise PriceListError(
                f"is another than line {other.number} has for the same model", line=line.number, column=name
            )


def _with_tiers(lines: Sequence[NumberedLine], faults: list[PriceListError]) -> Iterator[NumberedLine]:
    """Yield the lines of offers, each with those of its tiers; add to `faults` what is wrong with these."""
    tiers: dict[tuple[str, str], list[NumberedLine]] = {}
    for line in lines:
        if line.offer.above_input_tokens is not None:
            tiers.setdefault((line.offer.model, line.provider), []).append(line)
    for line in lines:
        if line.offer.above_input_tokens is not None:
            continue
        own = tiers.pop((line.offer.model, line.provider), [])
        for number, tier in enumerate(own, start=1):
            fault = _fault_of_tier(tier, line)
            if fault is None and number > MAX_TIERS:
                fault = PriceListError(f"is one more than {MAX_TIERS} tiers", line=tier.number, column=_TIER)
            if fault is not None:
                faults.append(fault)
        own.sort(key=lambda tier: tier.offer.above_input_tokens or 0)
        yield replace(line, tiers=tuple(own))
    faults.extend(
        PriceListError("is a tier of an offer that has no line of its own", line=tier.number, column=_TIER)
        for own in tiers.values()
        for tier in own
    )


def _fault_of_tier(tier: NumberedLine, base: NumberedLine) -> PriceListError | None:
    for name in _NOT_OF_A_TIER:
        if getattr(tier.offer, name) is not None:
            return PriceListError("is the same for any length", line=tier.number, column=name)
    for name in TOKEN_CLASSES:
        ours, theirs = getattr(tier.offer, name), getattr(base.offer, name)
        if ours is None and theirs is not None:
            return PriceListError(
                f"is empty, and is not in line {base.number}", line=tier.number, column=name
            )
        if ours is not None and theirs is None:
            return PriceListError(f"is empty in line {base.number}", line=tier.number, column=name)
    for name in _OF_THE_OFFER:
        said = getattr(tier.offer, name)
        if said is not None and said != getattr(base.offer, name):
            return PriceListError(
                f"is another than line {base.number} has for the same offer", line=tier.number, column=name
            )
    return None


def _warnings(line: NumberedLine) -> Iterator[str]:
    for name, base in _CHEAPER:
        price = getattr(line.offer, name)
        if price is not None and price > getattr(line.offer, base):
            yield f"line {line.number}, {name}: is more than {base}"
    shorter = line
    for tier in line.tiers:
        yield from _warnings(tier)
        for name in TOKEN_CLASSES:
            price = getattr(tier.offer, name)
            if price is not None and price < getattr(shorter.offer, name):
                yield f"line {tier.number}, {name}: is less than in line {shorter.number}, of shorter prompts"
        shorter = tier


def _said(offer: PriceLine, names: Iterable[str]) -> dict[str, Any]:
    named = {name: getattr(offer, name) for name in names}
    return {name: as_sent(value) for name, value in named.items() if value is not None}


def _in_any_order(value: Any) -> Any:
    return sorted(value) if isinstance(value, list) else value


def _shown(name: str) -> str:
    return name[:64] or "a column without a name"
