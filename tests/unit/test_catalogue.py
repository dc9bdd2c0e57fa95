from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from gateway.providers.registry import find_provider
from infra.local.catalogue import load_catalogue, read_catalogue
from infra.local.processes import StackError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.database import Database


def test_every_line_names_a_known_provider_a_price_a_source_and_a_day() -> None:
    seen = set()
    for name, lines in read_catalogue().items():
        for line in lines:
            assert (name, line["provider"]) not in seen
            seen.add((name, line["provider"]))
            assert find_provider(line["provider"]) is not None, line
            assert 0 < Decimal(line["input"]) < 1000, line
            assert 0 < Decimal(line["output"]) < 2000, line
            assert line["source"].startswith("https://"), line
            assert line["source_date"], line
    assert len(seen) > 100


def test_loading_twice_adds_once_and_keeps_what_an_admin_changed(database: Database) -> None:
    with database.connect() as connection:
        added = load_catalogue(connection, actor="test")
        assert added == len(read_catalogue())
        connection.execute("update gateway.models set context_length = 5 where name = 'gpt-4o-mini'")
        assert load_catalogue(connection, actor="test") == 0
        row = connection.execute(
            "select m.context_length, p.input, p.output, p.cached_input from gateway.models as m"
            " join gateway.offers as o on o.model_id = m.id join gateway.prices as p on p.offer_id = o.id"
            " where m.name = 'gpt-4o-mini'"
        ).fetchone()
    assert row == (5, Decimal("0.15"), Decimal("0.60"), Decimal("0.075"))


def test_malformed_line_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "models.csv"
    broken.write_text("model,provider,input\na,openai,1\nb,openai\n")
    with pytest.raises(StackError, match=r"models\.csv:3"):
        read_catalogue(broken)
