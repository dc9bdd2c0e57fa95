"""Slopes with how sure they are: what a chunk adds to a stream's CPU, and whether memory grows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_Z = 1.959963984540054
"""Of the normal distribution: 95 % lie within so many standard deviations."""
_LEAST_TREND = 8
"""Points, below which the normal approximation of Kendall's S means little."""


@dataclass(frozen=True, slots=True)
class Line:
    """y = intercept + slope * x by least squares."""

    slope: float
    intercept: float
    error: float
    """The slope's standard error; 0 where two points leave nothing to judge it by."""


def fit(xs: Sequence[float], ys: Sequence[float]) -> Line:
    """Fit a line. Raises ValueError where all x are the same, or the lengths differ."""
    if len(xs) != len(ys):
        raise ValueError("as many x as y")
    mean_x, mean_y = fmean(xs), fmean(ys)
    spread = math.fsum((x - mean_x) ** 2 for x in xs)
    if spread == 0:
        raise ValueError("a line needs two different x")
    slope = math.fsum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread
    intercept = mean_y - slope * mean_x
    freedom = len(xs) - 2
    squares = math.fsum((y - intercept - slope * x) ** 2 for x, y in zip(xs, ys, strict=True))
    return Line(slope, intercept, math.sqrt(squares / freedom / spread) if freedom else 0.0)


@dataclass(frozen=True, slots=True)
class Trend:
    """The median slope of all pairs of points, and the interval that holds the true one in 95 % of cases."""

    slope: float
    low: float
    high: float


def trend(xs: Sequence[float], ys: Sequence[float]) -> Trend:
    """Return the Theil-Sen slope with Sen's interval (Sen, JASA 63, 1968): a step or a spike doesn't sway it.

    A process's memory now is nearly what it was ten seconds ago, so that samples say less than as many
    independent ones. The interval is as wide as that of n (1 - r) / (1 + r) of them, where r is what is left
    of one deviation from the line in the next. `xs` rises. Raises ValueError for fewer than eight points.
    """
    count = len(xs)
    if count < _LEAST_TREND or count != len(ys):
        raise ValueError(f"a trend needs {_LEAST_TREND} points")
    if any(later <= earlier for earlier, later in pairwise(xs)):
        raise ValueError("x has to rise")
    slopes = sorted((ys[j] - ys[i]) / (xs[j] - xs[i]) for i in range(count) for j in range(i + 1, count))
    middle = median(slopes)
    level = median(y - middle * x for x, y in zip(xs, ys, strict=True))
    left = [y - level - middle * x for x, y in zip(xs, ys, strict=True)]
    deviation = math.sqrt(count * (count - 1) * (2 * count + 5) / 18 * _inflation(left))
    reach = _Z * deviation
    last = len(slopes) - 1
    low = math.floor((len(slopes) - reach) / 2)
    high = math.ceil((len(slopes) + reach) / 2)
    return Trend(middle, slopes[max(low, 0)], slopes[min(high, last)])


def _inflation(deviations: Sequence[float]) -> float:
    """Return how many points say as much as one independent one: at least 1."""
    mean = fmean(deviations)
    squares = math.fsum((each - mean) ** 2 for each in deviations)
    if squares == 0:
        return 1.0
    products = math.fsum((one - mean) * (next_ - mean) for one, next_ in pairwise(deviations))
    lasting = min(max(products / squares, 0.0), 0.95)
    return (1 + lasting) / (1 - lasting)
