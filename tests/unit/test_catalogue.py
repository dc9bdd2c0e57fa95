"""The catalogue of sql/catalogue: what its lines say, and how the local stack takes them in."""

from __future__ import annotations

from collections import Counter
from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from gateway.schemas.admin import Prices
from infra.local.catalogue import load_catalogue, read_catalogue, read_changes
from infra.local.processes import StackError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.database import Database

LEAST = {
    "openai": 40,
    "anthropic": 12,
    "gemini": 15,
    "deepseek": 3,
    "openrouter": 90,
    "huggingface": 12,
    "mistral": 30,
    "together": 20,
    "groq": 4,
    "xai": 10,
}
AMOUNTS = [name for name in Prices.model_fields if name not in {"source", "source_date"}]


def test_there_are_three_hundred_lines_over_all_providers() -> None:
    lines = read_catalogue().lines
    counted = Counter(line.provider for line in lines)
    assert len(lines) >= 300
    assert counted.keys() == LEAST.keys()
    assert {name for name, least in LEAST.items() if counted[name] < least} == set()


def test_every_line_has_a_price_a_source_and_a_day() -> None:
    for line in read_catalogue().lines:
        offer = line.offer
        prices = {name: getattr(offer, name) for name in AMOUNTS}
        assert all(price is None or price < 700 for price in prices.values()), line
        if "embedding" in (offer.output_modalities or ()):
            assert offer.input > 0, line
            assert offer.output == 0, line
        elif offer.per_image:
            assert offer.input >= 0, line
            assert "image" in (offer.output_modalities or ()), line
        else:
            # none is free: what has no price of its own is not here
            assert offer.input > 0, line
            assert offer.output > 0, line
        assert offer.cached_input is None or 0 < offer.cached_input <= offer.input, line
        assert offer.cache_write is None or offer.cache_write >= offer.input, line
        assert offer.source is not None, line
        assert offer.source.startswith("https://"), line
        assert offer.source_date is not None, line
        assert date(2026, 1, 1) <= offer.source_date <= date(2026, 12, 31), line


@pytest.mark.parametrize(
    ("model", "provider", "above"),
    [
        ("gpt-5.4", "openai", 272_000),
        ("gpt-6.1-terra", "openai", 272_000),
        ("gemini-2.5-pro", "gemini", 200_000),
        ("claude-haiku-5-5", "anthropic", 100_000),
        # from 200,000 on, where the others begin above theirs
        ("grok-4.7", "xai", 199_999),
        ("x-ai/grok-4.7", "openrouter", 200_000),
    ],
)
def test_long_prompts_have_their_own_price(model: str, provider: str, above: int) -> None:
    (line,) = (
        line for line in read_catalogue().lines if (line.offer.model, line.provider) == (model, provider)
    )
    (tier,) = line.tiers
    assert tier.offer.above_input_tokens == above
    assert tier.offer.input > line.offer.input
    assert tier.offer.output > line.offer.output


def test_every_tier_is_within_the_context_and_has_its_source() -> None:
    tiers = [(line, tier) for line in read_catalogue().lines for tier in line.tiers]
    assert len(tiers) > 50
    for line, tier in tiers:
        assert line.offer.context_length is not None, line
        assert (tier.offer.above_input_tokens or 0) < line.offer.context_length, tier
        assert (tier.offer.source, tier.offer.source_date) == (line.offer.source, line.offer.source_date), (
            tier
        )


def test_lengths_are_those_of_a_context() -> None:
    for line in read_catalogue().lines:
        offer = line.offer
        if "image" not in (offer.output_modalities or ()):
            # without one an input that has no cheap bound is refused
            assert offer.context_length is not None, line
        assert offer.context_length is None or 512 <= offer.context_length <= 10_000_000, line
        assert offer.max_output_tokens is None or 512 <= offer.max_output_tokens <= 1_048_576, line
        assert offer.input_modalities, line
        assert offer.output_modalities, line


def test_audio_that_is_read_or_spoken_has_its_own_price_where_it_is_dearer() -> None:
    offers = {(line.offer.model, line.provider): line.offer for line in read_catalogue().lines}
    audio = offers["gpt-audio", "openai"]
    assert (audio.audio_input, audio.audio_output) == (Decimal(32), Decimal(64))
    image = offers["gemini-3-pro-image", "gemini"]
    assert (image.output, image.image_output) == (Decimal(12), Decimal(120))


@pytest.mark.parametrize(
    ("model", "provider", "upstream"),
    [
        ("gpt-4o", "openai", "gpt-4o"),
        ("gpt-4o-mini", "openai", "gpt-4o-mini"),
        ("deepseek/deepseek-r1-0528", "openrouter", "deepseek/deepseek-r1-0528"),
        ("deepseek/deepseek-r1", "openrouter", "deepseek/deepseek-r1"),
        ("claude-opus-5-5", "anthropic", "claude-opus-5-5"),
        ("claude-sonnet-5-5", "anthropic", "claude-sonnet-5-5"),
        ("gemini-3.8-flash", "gemini", "gemini-3.8-flash"),
        ("gemini-4-argon", "gemini", "gemini-4-argon"),
        ("text-embedding-3-small", "openai", "text-embedding-3-small"),
    ],
)
def test_what_clients_ask_for_is_there(model: str, provider: str, upstream: str) -> None:
    found = {
        line.provider: line.offer.upstream_model or model
        for line in read_catalogue().lines
        if line.offer.model == model
    }
    assert found[provider] == upstream


def test_the_file_is_in_order() -> None:
    named = [(line.provider, line.offer.model) for line in read_catalogue().lines]
    assert named == sorted(named)
    assert read_catalogue().warnings == []


def test_loading_twice_adds_once_and_keeps_what_an_admin_changed(database: Database) -> None:
    with database.connect() as connection:
        assert load_catalogue(connection, actor="test") == len(read_catalogue().lines)
        connection.execute("update gateway.models set context_length = 5 where name = 'gpt-4o-mini'")
        connection.execute(
            "update gateway.prices as p set input = 7 from gateway.offers as o, gateway.models as m"
            " where o.id = p.offer_id and m.id = o.model_id"
            " and (m.name, o.provider) = ('gpt-4o-mini', 'openai')"
        )
        versions = connection.execute("select count(*) from gateway.prices").fetchone()
        assert load_catalogue(connection, actor="test") == 0
        assert connection.execute("select count(*) from gateway.prices").fetchone() == versions
        row = connection.execute(
            "select m.context_length, p.input, p.output, p.cached_input from gateway.models as m"
            " join gateway.offers as o on o.model_id = m.id join gateway.prices as p on p.offer_id = o.id"
            " where m.name = 'gpt-4o-mini' and o.provider = 'openai' order by p.effective_from desc limit 1"
        ).fetchone()
    assert row == (5, Decimal(7), Decimal("0.60"), Decimal("0.075"))


def test_a_newer_catalogue_adds_what_the_database_lacks(database: Database, tmp_path: Path) -> None:
    path = tmp_path / "models.csv"
    header = "model,provider,input,output\n"
    with database.connect() as connection:
        path.write_text(header + "a,openai,1,2\n")
        assert load_catalogue(connection, actor="test", path=path) == 1
        path.write_text(header + "a,openai,9,9\na,xai,1,2\nb,xai,1,2\n")
        assert load_catalogue(connection, actor="test", path=path) == 2
        rows = connection.execute("select input from gateway.prices order by id").fetchall()
    assert rows == [(1,), (1,), (1,)]


def test_an_announced_change_comes_with_its_offer(database: Database, tmp_path: Path) -> None:
    path = tmp_path / "models.csv"
    header = "model,provider,input,output\n"
    path.write_text(header + "a,openai,1,2\nb,openai,1,2\n")
    (tmp_path / "from-2020-01-01.csv").write_text(header + "b,openai,3,2\n")
    (tmp_path / "from-2999-01-01.csv").write_text(header + "a,openai,5,2\n")
    with database.connect() as connection:
        assert load_catalogue(connection, actor="test", path=path) == 2
        assert load_catalogue(connection, actor="test", path=path) == 0
        rows = connection.execute(
            "select m.name, p.input, p.effective_from > now() from gateway.prices as p"
            " join gateway.offers as o on o.id = p.offer_id join gateway.models as m on m.id = o.model_id"
            " order by m.name, p.effective_from"
        ).fetchall()
    assert rows == [("a", 1, False), ("a", 5, True), ("b", 1, False), ("b", 3, False)]


def test_announced_changes_are_of_offers_that_are_there() -> None:
    offers = {(line.offer.model, line.provider): line.offer for line in read_catalogue().lines}
    for day, changes in read_changes():
        assert day > date(2026, 11, 21)
        for line in changes.lines:
            before = offers[line.offer.model, line.provider]
            assert (
                before.model_copy(update={name: getattr(line.offer, name) for name in AMOUNTS}) == line.offer
            )
            assert before != line.offer


def test_malformed_line_is_named_and_nothing_is_loaded(database: Database, tmp_path: Path) -> None:
    broken = tmp_path / "models.csv"
    broken.write_text("model,provider,input,output\na,openai,1,2\nb,openai,1\n")
    with database.connect() as connection:
        with pytest.raises(StackError, match=r"models\.csv: line 3: has 3 fields, not 4"):
            load_catalogue(connection, actor="test", path=broken)
        assert connection.execute("select count(*) from gateway.models").fetchone() == (0,)
