"""What a million requests cost: the arithmetic, where prices come from, and that the documents show it."""

from __future__ import annotations

import copy
import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from tests.benchmarks import cost, figures, report
from tests.benchmarks.cost import Measured, Prices, Size

if TYPE_CHECKING:
    from pathlib import Path

PRICES = Prices(
    gb_second={"arm64": Decimal("0.00001"), "x86_64": Decimal("0.00002")},
    lambda_million=Decimal("0.20"),
    gateway_million=Decimal("3.50"),
    mb_a_vcpu=2000,
    sizes=[Size("Small", 2, False, Decimal("0.02")), Size("XL", 4, True, Decimal("0.3"))],
    sources={"Lambda": ("https://example.org/", "today")},
)
MEASURED = Measured(own=2.0, waiting=5.0, postgres=3.0, postgrest=1.0, stream=3.0, chunk=0.1)
KEPT: dict[str, Any] = {
    "medians": {
        "gateways": {
            "Sluice": {
                "connections_1": {"added_p50_ms": 9.0, "cpu_ms": {"own": 3.0}},
                "connections_16": {"cpu_ms": {"own": 2.0, "PostgreSQL": 4.0, "PostgREST": 1.0}},
                "streams_at_once": {"cpu_ms_a_stream": 6.0, "cpu_ms_a_chunk": 0.1},
            }
        }
    }
}


def test_half_a_vcpu_takes_twice_as_long() -> None:
    # 2 ms at half a vCPU, 5 ms of waiting, two round trips of 1 ms.
    assert cost.overhead_ms(MEASURED, PRICES, 1000) == pytest.approx(4 + 5 + 2)


def test_more_than_one_vcpu_makes_one_request_no_faster() -> None:
    assert cost.overhead_ms(MEASURED, PRICES, 4000) == pytest.approx(2 + 5 + 2)


def test_a_streams_own_cpu_goes_before_the_plain_ones() -> None:
    assert cost.overhead_ms(MEASURED, PRICES, 1000, cpu=3.0) == pytest.approx(6 + 5 + 2)


@pytest.mark.parametrize(("memory", "gb", "cpu_ms"), [(512, 0.5, 7.8125), (1024, 1.0, 3.90625)])
@pytest.mark.parametrize("seconds", [1, 20])
def test_the_wait_for_the_provider_is_billed(memory: int, gb: float, cpu_ms: float, seconds: int) -> None:
    billed = cost.bill(MEASURED, PRICES, memory, seconds)
    assert billed.gb_seconds == pytest.approx(gb * (seconds * 1_000_000 + (cpu_ms + 5 + 2) * 1000))


def test_a_bill_is_duration_and_both_kinds_of_requests() -> None:
    billed = cost.bill(MEASURED, PRICES, 1000, 1)
    assert float(billed.duration["arm64"]) == pytest.approx(billed.gb_seconds * 0.00001)
    assert billed.duration["x86_64"] == 2 * billed.duration["arm64"]
    assert billed.total("arm64") == billed.duration["arm64"] + Decimal("3.70")


def test_core_hours_and_rates_are_those_of_postgresql_and_postgrest() -> None:
    # 4 ms each: 4,000 s of one core for a million.
    assert cost.database_hours(MEASURED) == pytest.approx(4000 / 3600)
    assert cost.requests_per_second(MEASURED, PRICES.sizes[1]) == pytest.approx(4 * 0.6 / 0.004)


def test_a_run_is_read_as_it_was_kept() -> None:
    found = cost.read_measured(KEPT)
    assert found == Measured(own=2.0, waiting=6.0, postgres=4.0, postgrest=1.0, stream=6.0, chunk=0.1)


def test_a_run_without_streams_has_no_cost_of_them() -> None:
    kept = copy.deepcopy(KEPT)
    del kept["medians"]["gateways"]["Sluice"]["streams_at_once"]
    found = cost.read_measured(kept)
    assert (found.stream, found.chunk) == (None, None)
    assert "A stream" not in cost.whole(kept, PRICES, 512)


def test_a_run_in_which_we_failed_is_refused() -> None:
    kept = copy.deepcopy(KEPT)
    del kept["medians"]["gateways"]["Sluice"]["connections_16"]
    with pytest.raises(ValueError, match="connections_16"):
        cost.read_measured(kept)


def test_the_tables_show_the_sums() -> None:
    table = cost.short(KEPT, PRICES, 1000)
    billed = cost.bill(cost.read_measured(KEPT), PRICES, 1000, 20)
    assert f"${billed.total('x86_64'):.2f}" in table.replace(",", "")
    assert "| Supabase, hours of one core | 1.4 | 1.4 | 1.4 |" in table
    whole = cost.whole(KEPT, PRICES, 1000)
    assert "| XL | 4 | $219 | 480 |" in whole
    assert "| Small | 2, shared | $15 | 240, in bursts |" in whole
    assert "[Lambda](https://example.org/) (today)" in whole


def test_every_price_has_its_source_and_when_it_was_read() -> None:
    prices = cost.read_prices()
    assert prices.gb_second["arm64"] < prices.gb_second["x86_64"]
    assert [size.cores for size in prices.sizes] == sorted(size.cores for size in prices.sizes)
    assert [size.hour for size in prices.sizes] == sorted(size.hour for size in prices.sizes)
    for source, seen in prices.sources.values():
        assert source.startswith("https://")
        assert "202" in seen


def test_the_memory_is_the_templates() -> None:
    assert cost.default_memory() == 512


def test_a_part_goes_between_its_marks_and_nowhere_else() -> None:
    end = "<!-- end of figures -->\n"
    text = f"a\n<!-- figures: one -->\nold\n{end}b\n<!-- figures: two -->\n{end}"
    changed = figures.put(text, "one", r"new \1")
    assert changed.startswith("a\n<!-- figures: one -->\nnew \\1\n<!-- end of figures -->\nb\n")
    assert figures.put(changed, "two", "x").count("<!-- end of figures -->") == 2
    for missing in ("three", "on"):
        with pytest.raises(ValueError, match=missing):
            figures.put(text, missing, "x")


def test_the_documents_show_what_the_kept_results_say() -> None:
    bench, soak = figures.shown_results(figures.SCALING.read_text(encoding="utf-8"))
    made = figures.parts(bench, soak)
    for path, names in figures.PARTS.items():
        text = path.read_text(encoding="utf-8")
        assert figures.put_all(text, names, made) == text, (
            f"python -m tests.benchmarks.figures --write: {path}"
        )


def test_the_results_that_are_shown_are_kept() -> None:
    kept = (figures.RESULTS.parent / ".gitignore").read_text(encoding="utf-8").splitlines()
    for path in figures.shown_results(figures.SCALING.read_text(encoding="utf-8")):
        assert f"!/results/{path.name}" in kept


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "20.json"
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="format"):
        figures.parts(path, path)
    path.write_text(json.dumps({"format": report.FORMAT}), encoding="utf-8")
    with pytest.raises(ValueError, match="soak"):
        figures.parts(path, path)
