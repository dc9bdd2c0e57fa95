"""The price catalogue of sql/catalogue, put into a database that lacks it."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

from psycopg.types.json import Jsonb

from gateway.price_list import PriceList, PriceListError, read_price_list
from infra.local import paths
from infra.local.processes import StackError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import psycopg

    Connection = psycopg.Connection[tuple[Any, ...]]

_FROM = "from-"


def read_catalogue(path: Path = paths.CATALOGUE) -> PriceList:
    """Return the catalogue. StackError names the first line that is malformed."""
    try:
        return read_price_list(path.read_text(encoding="utf-8"))
    except PriceListError as error:
        raise StackError(f"{path}: {error}") from error


def read_changes(path: Path = paths.CATALOGUE) -> list[tuple[date, PriceList]]:
    """Return the changes of price that providers have announced, with their days: from-DAY.csv beside it."""
    found = sorted(path.parent.glob(f"{_FROM}*.csv"))
    return [(date.fromisoformat(each.stem.removeprefix(_FROM)), read_catalogue(each)) for each in found]


def load_catalogue(connection: Connection, *, actor: str, path: Path = paths.CATALOGUE) -> int:
    """Add the offers that the database has not; return how many. What an admin has changed stays.

    Announced changes of their prices come with them. Newer prices of offers that the database has come with
    `sluice prices import`, which shows the difference first. Call it in a transaction: all or nothing.
    """
    catalogue, changes = read_catalogue(path), read_changes(path)
    known = set(
        connection.execute(
            "select m.name, o.provider from gateway.offers as o join gateway.models as m on m.id = o.model_id"
        )
    )

    def lacking(prices: PriceList) -> list[dict[str, Any]]:
        return [line.as_json() for line in prices.lines if (line.offer.model, line.provider) not in known]

    added = _bring_in(connection, lacking(catalogue), actor=actor)
    for day, changed in changes:
        start = datetime(day.year, day.month, day.day, tzinfo=UTC)
        later = start if start > datetime.now(UTC) else None
        _bring_in(connection, lacking(changed), actor=actor, effective_from=later)
    return added


def _bring_in(
    connection: Connection,
    lines: Sequence[dict[str, Any]],
    *,
    actor: str,
    effective_from: datetime | None = None,
) -> int:
    if not lines:
        return 0
    row = connection.execute(
        "select api.import_prices(p_lines => %s, p_effective_from => %s, p_actor => %s)",
        [Jsonb(list(lines)), effective_from, actor],
    ).fetchone()
    if row is None or "error" in row[0]:
        raise StackError(f"the database refused the catalogue: {row}")
    return len(row[0]["offers_added"])
