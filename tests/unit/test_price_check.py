"""The catalogue against the second public price list."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from infra.local.price_check import Disagreement, compare, disagreements, read_settled

if TYPE_CHECKING:
    from pathlib import Path

GATHERED = datetime(2026, 11, 21, tzinfo=UTC)
HEADER = "model,provider,upstream_model,input,cached_input,output\n"


def listed(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "models.csv"
    path.write_text(HEADER + "\n".join(lines) + "\n")
    return path


def test_every_disagreement_of_the_catalogue_is_settled() -> None:
    made = compare(at=GATHERED)
    assert made.compared > 330
    assert set(made.disagreements) == read_settled().keys()
    assert all(read_settled().values())


def test_announced_changes_agree_too() -> None:
    for day in (datetime(2026, 12, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)):
        open_then = set(disagreements(at=day)) - read_settled().keys()
        assert {each for each in open_then if each.provider != "openrouter"} == set()


def test_another_price_is_told_with_both_figures(tmp_path: Path) -> None:
    path = listed(tmp_path, "gpt-4o,openai,,2.5,1,10", "gpt-4o-mini,openai,,0.15,0.075,0.6")
    (found,) = disagreements(path, at=GATHERED)
    assert found == Disagreement("gpt-4o", "openai", "cached_input", Decimal(1), Decimal("1.25"))
    assert found.ratio == Decimal("0.8")


def test_a_class_that_only_they_price_costs_us_its_base(tmp_path: Path) -> None:
    (found,) = disagreements(listed(tmp_path, "gpt-4o,openai,,2.5,,10"), at=GATHERED)
    assert (found.price_class, found.ours, found.theirs) == ("cached_input", Decimal("2.5"), Decimal("1.25"))


def test_the_dearest_hour_is_compared(tmp_path: Path) -> None:
    path = listed(tmp_path, "deepseek-flash,deepseek,,0.15,0.003,0.6")
    found = {(each.model, each.price_class): each.theirs for each in disagreements(path, at=GATHERED)}
    assert found["deepseek-flash", "output"] == Decimal("1.2")


TIERED = "model,provider,context_length,above_input_tokens,input,cached_input,output\n"


def tiers_that_differ(tmp_path: Path, *lines: str) -> list[tuple[int, str, Decimal, Decimal]]:
    path = tmp_path / "models.csv"
    path.write_text(TIERED + "\n".join(lines) + "\n")
    return [
        (each.above_input_tokens, each.price_class, each.ours, each.theirs)
        for each in disagreements(path, at=GATHERED)
    ]


BASE, LONG = "gpt-5.5,openai,,,5,0.5,30", "gpt-5.5,openai,,272000,10,1,45"


def test_prices_of_long_prompts_are_compared_tier_by_tier(tmp_path: Path) -> None:
    assert tiers_that_differ(tmp_path, BASE, LONG) == []
    dearer = "gpt-5.5,openai,,272000,10,1,46"
    assert tiers_that_differ(tmp_path, BASE, dearer) == [(272_000, "output", Decimal(46), Decimal(45))]


def test_a_tier_that_only_they_have_is_told(tmp_path: Path) -> None:
    assert tiers_that_differ(tmp_path, BASE) == [
        (272_000, "input", Decimal(5), Decimal(10)),
        (272_000, "cached_input", Decimal("0.5"), Decimal(1)),
        (272_000, "output", Decimal(30), Decimal(45)),
    ]
    # but where the context that is sold is no longer
    assert tiers_that_differ(tmp_path, "gpt-5.5,openai,272000,,5,0.5,30") == []
    assert tiers_that_differ(tmp_path, "gpt-5.5,openai,272001,,5,0.5,30") != []


def test_a_tier_that_only_we_have_and_one_that_begins_elsewhere_are_told(tmp_path: Path) -> None:
    found = tiers_that_differ(tmp_path, BASE, LONG.replace("272000", "200000"))
    assert [each[:2] for each in found] == [
        (200_000, "input"), (200_000, "cached_input"), (200_000, "output"),
    ]  # fmt: skip
    longest = "gpt-5.5,openai,,500000,20,2,90"
    assert {each[0] for each in tiers_that_differ(tmp_path, BASE, LONG, longest)} == {500_000}


def test_a_hugging_face_line_is_held_against_who_serves_it(tmp_path: Path) -> None:
    path = listed(
        tmp_path, "o,huggingface,openai/gpt-oss-20b:groq,0.1,,0.5", "p,huggingface,openai/gpt-oss-20b,1,,1"
    )
    made = compare(path, at=GATHERED)
    assert (made.compared, made.unknown, made.disagreements) == (1, [("p", "huggingface")], [])


def test_what_they_lack_is_told(tmp_path: Path) -> None:
    made = compare(listed(tmp_path, "no-such-model-at-all,xai,,1,,2"), at=GATHERED)
    assert (made.compared, made.unknown) == (0, [("no-such-model-at-all", "xai")])
