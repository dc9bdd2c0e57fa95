"""The price catalogue of sql/catalogue, put into a database that lacks it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg.types.json import Jsonb

from gateway.price_list import PriceList, PriceListError, read_price_list
from infra.local import paths
from infra.local.processes import StackError

if TYPE_CHECKING:
    from pathlib import Path

    import psycopg


def read_catalogue(path: Path = paths.CATALOGUE) -> PriceList:
    """Return the catalogue. StackError names the first line that is malformed."""
    try:
        return read_price_list(path.read_text(encoding="utf-8"))
    except PriceListError as error:
        raise StackError(f"{path}: {error}") from error


def load_catalogue(
    connection: psycopg.Connection[tuple[Any, ...]], *, actor: str, path: Path = paths.CATALOGUE
) -> int:
    """Add the offers that the database has not; return how many. What an admin has changed stays.

    Newer prices of offers that it has come with `sluice prices import`, which shows the difference first.
    """
    known = set(
        connection.execute(
            "select m.name, o.provider from gateway.offers as o join gateway.models as m on m.id = o.model_id"
        )
    )
    lacking = [
        line.as_json()
        for line in read_catalogue(path).lines
        if (line.offer.model, line.provider) not in known
    ]
    if not lacking:
        return 0
    row = connection.execute(
        "select api.import_prices(p_lines => %s, p_actor => %s)", [Jsonb(lacking), actor]
    ).fetchone()
    if row is None or "error" in row[0]:
        raise StackError(f"{path}: the database refused the catalogue: {row}")
    return len(row[0]["offers_added"])
