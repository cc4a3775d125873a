"""Estimates against numbers worked out by hand and printed in tables of Student's distribution."""

import math

import pytest

from bdh.compare import Estimate, estimate, paired
from bdh.compare.statistics import t_quantile


def test_mean_and_interval_by_hand() -> None:
    # mean 4, deviations -2 0 2, s = 2; 4.3027 * 2 / sqrt(3)
    found = estimate([2.0, 4.0, 6.0])
    assert found.mean == 4
    assert found.half_width == pytest.approx(4.9683, abs=1e-4)
    assert found.n == 3
    assert not estimate([-1.0, 1.0]).excludes_zero
    # two values, one degree of freedom: 12.7062 * 0.1 / sqrt(2) / sqrt(2)
    assert estimate([1.0, 1.1]).half_width == pytest.approx(12.7062 * 0.05, abs=1e-9)


def test_one_value_has_no_interval() -> None:
    assert estimate([3.5]) == Estimate(3.5, None, 1)
    assert not estimate([3.5]).excludes_zero
    with pytest.raises(ValueError, match="at least one value"):
        estimate([])


@pytest.mark.parametrize(
    ("degrees", "printed"), [(1, 12.706), (4, 2.776), (10, 2.228), (30, 2.042), (31, 2.040), (60, 2.000), (120, 1.980)]
)
def test_quantiles_are_those_of_the_tables(degrees: int, printed: float) -> None:
    assert t_quantile(degrees) == pytest.approx(printed, abs=6e-4)


def test_no_degrees_of_freedom_are_refused() -> None:
    with pytest.raises(ValueError, match="degrees=0"):
        t_quantile(0)


def test_pairs_see_a_difference_that_the_spread_of_seeds_hides() -> None:
    first = {0: 1.0, 1: 2.0, 2: 3.0}
    better = {2: 2.8, 1: 1.9, 0: 0.9, 9: 7.0}  # seed 9 has no partner
    found = paired(better, first)
    assert found is not None
    # differences -0.1 -0.1 -0.2: mean -0.4/3, s = 0.057735
    assert (found.mean, found.n) == (pytest.approx(-0.4 / 3), 3)
    assert found.half_width == pytest.approx(4.3027 * 0.0577350 / math.sqrt(3), abs=1e-5)
    assert not found.excludes_zero
    assert paired({0: 1.0, 1: 2.01}, {0: 0.0, 1: 1.0}).excludes_zero
    assert paired({0: 1.0}, {1: 1.0}) is None
