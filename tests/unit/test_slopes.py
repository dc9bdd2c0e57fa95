"""Slopes of the benchmarks: what was put in is found again, and noise is not taken for growth."""

from __future__ import annotations

import random

import pytest

from tests.benchmarks.slopes import fit, trend

MINUTES = [number / 6 for number in range(40)]


def seeded(number: int) -> random.Random:
    return random.Random(number)  # noqa: S311 - the same noise in each run


def test_a_line_is_found_exactly() -> None:
    line = fit([10, 120, 10, 120], [1.6, 7.1, 1.6, 7.1])
    assert line.slope == pytest.approx(0.05)
    assert line.intercept == pytest.approx(1.1)
    assert line.error == pytest.approx(0, abs=1e-12)


def test_a_lines_error_is_that_of_the_textbook() -> None:
    # Residuals ±1 at four corners: s² = 4 / 2, and Sxx = 4 * 5².
    line = fit([0, 0, 10, 10], [1, -1, 11, 9])
    assert line.slope == pytest.approx(1)
    assert line.intercept == pytest.approx(0)
    assert line.error == pytest.approx((2 / 100) ** 0.5)


def test_two_points_have_a_slope_and_no_error() -> None:
    line = fit([1, 3], [1, 5])
    assert (line.slope, line.error) == (2, 0)


@pytest.mark.parametrize("xs", [[1, 1], [1, 2, 3]])
def test_what_has_no_slope_is_refused(xs: list[float]) -> None:
    with pytest.raises(ValueError, match="x"):
        fit(xs, [1, 2])


def test_steady_growth_is_found() -> None:
    found = trend(MINUTES, [100 + 3 * minute for minute in MINUTES])
    assert found.slope == pytest.approx(3)
    assert found.low == pytest.approx(3)
    assert found.high == pytest.approx(3)


def test_growth_in_noise_is_found_with_its_interval() -> None:
    noise = seeded(1)
    found = trend(MINUTES, [100 + 3 * minute + noise.gauss(0, 2) for minute in MINUTES])
    assert found.low < 3 < found.high
    assert found.low > 2


def test_noise_is_no_growth() -> None:
    noise = seeded(2)
    found = trend(MINUTES, [100 + noise.gauss(0, 2) for _ in MINUTES])
    assert found.low < 0 < found.high
    assert found.high < 1


def test_a_spike_does_not_sway_it() -> None:
    values = [100 + (number % 2) / 10 for number in range(40)]
    values[20] = 10_000
    found = trend(MINUTES, values)
    assert abs(found.slope) < 0.05
    assert found.high < 0.2


def test_a_wandering_level_makes_the_interval_wider_than_independent_noise_does() -> None:
    noise = seeded(3)
    independent = [noise.gauss(0, 1) for _ in MINUTES]
    wandering, level = [], 0.0
    for step in independent:
        level = 0.9 * level + step
        wandering.append(level)
    narrow, wide = trend(MINUTES, independent), trend(MINUTES, wandering)
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)


def test_a_flat_line_is_flat() -> None:
    found = trend(MINUTES, [7.0] * 40)
    assert (found.slope, found.low, found.high) == (0, 0, 0)


@pytest.mark.parametrize("xs", [[1, 2, 3], [0, *range(9)]])
def test_too_few_points_and_a_standing_x_are_refused(xs: list[float]) -> None:
    with pytest.raises(ValueError, match=r"points|rise"):
        trend(xs, xs)
