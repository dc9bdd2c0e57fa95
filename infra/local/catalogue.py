"""The price catalogue of sql/catalogue, put into a database that lacks it."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any

from psycopg.types.json import Jsonb

from infra.local import paths
from infra.local.processes import StackError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import psycopg

_PRICES = ("input", "cached_input", "cache_write", "audio_input", "output", "audio_output")


def read_catalogue(path: Path = paths.CATALOGUE) -> dict[str, list[dict[str, str]]]:
    """Return the lines by model, one for each provider. StackError names a line that is malformed."""
    models: dict[str, list[dict[str, str]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file, strict=True)
        for line in reader:
            if None in line or None in line.values() or not all(line[name] for name in ("model", "provider")):
                raise StackError(f"{path}:{reader.line_num}: the line has too few or too many fields")
            models.setdefault(line["model"], []).append(line)
    return models


def load_catalogue(connection: psycopg.Connection[tuple[Any, ...]], *, actor: str) -> int:
    """Add the models that the database has not; return how many. What an admin has changed stays."""
    known = {row[0] for row in connection.execute("select name from gateway.models")}
    added = 0
    for name, lines in read_catalogue().items():
        if name in known:
            continue
        first = lines[0]
        connection.execute(
            "select api.create_model(p_name => %s, p_offers => %s, p_context_length => %s,"
            " p_max_output_tokens => %s, p_input_modalities => %s, p_output_modalities => %s, p_actor => %s)",
            [
                name,
                Jsonb(list(_offers(lines))),
                int(first["context_length"]),
                int(first["max_output_tokens"]) if first["max_output_tokens"] else None,
                first["input_modalities"].split(),
                first["output_modalities"].split(),
                actor,
            ],
        )
        added += 1
    return added


def _offers(lines: list[dict[str, str]]) -> Iterator[dict[str, Any]]:
    for line in lines:
        prices = {name: line[name] for name in (*_PRICES, "source", "source_date") if line[name]}
        yield {"provider": line["provider"], "upstream_model": line["upstream_model"], "prices": prices}
