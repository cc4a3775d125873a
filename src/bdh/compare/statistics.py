"""Means over seeds with intervals that say how far other seeds may lie: Student's t, two-sided, 95 %."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# quantiles of 0.975 for 1 .. 30 degrees of freedom
_T = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """A mean and how well it is known."""

    mean: float
    half_width: float | None
    """Of the 95 % interval around the mean; None: one value tells nothing about spread."""
    n: int
    """Values that the mean is of."""

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.half_width is not None and abs(self.mean) > self.half_width


def t_quantile(degrees: int) -> float:
    """Return what a value of Student's distribution exceeds in size in 5 % of cases.

    Args:
        degrees: of freedom.

    Raises:
        ValueError: fewer than one.

    Examples:
        >>> t_quantile(2), round(t_quantile(60), 3)
        (4.3027, 2.0)
    """
    if degrees < 1:
        raise ValueError(f"degrees={degrees}: expected an integer >= 1; two values have one degree of freedom")
    if degrees <= len(_T):
        return _T[degrees - 1]
    # the expansion around the normal distribution; its error is below 1e-5 from here on
    z = statistics.NormalDist().inv_cdf(0.975)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / degrees + second / degrees**2


def estimate(values: Iterable[float]) -> Estimate:
    """Return the mean of some values and the half-width `t s / sqrt(n)` of its 95 % interval.

    Args:
        values: one per seed.

    Raises:
        ValueError: there is none.

    Examples:
        >>> estimate([1.0, 2.0, 3.0])
        Estimate(mean=2.0, half_width=2.484..., n=3)
    """
    found = list(values)
    n = len(found)
    if n == 0:
        raise ValueError("expected at least one value, got none")
    mean = statistics.fmean(found)
    if n == 1:
        return Estimate(mean, None, 1)
    return Estimate(mean, t_quantile(n - 1) * statistics.stdev(found, mean) / math.sqrt(n), n)


def paired(values: Mapping[int, float], against: Mapping[int, float]) -> Estimate | None:
    """Return the mean difference between values of the same seed, which share the order of the data.

    Args:
        values: by seed.
        against: what is subtracted, by seed.

    Returns:
        The estimate over the seeds that both have; None if there is none.

    Examples:
        >>> paired({0: 2.0, 1: 3.5, 2: 9.0}, {0: 1.0, 1: 2.0}).mean
        1.25
    """
    both = values.keys() & against.keys()
    return estimate(values[seed] - against[seed] for seed in sorted(both)) if both else None
