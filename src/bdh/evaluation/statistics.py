"""How surely a rate is known: intervals over pieces of a text, and of a share of successes."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from bdh.compare.statistics import Estimate, t_quantile


def ratio(amounts: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64]) -> Estimate:
    """Return sum(amounts) / sum(sizes) and the half-width of its 95 % interval over the pieces that have a size.

    The error is that of the ratio estimator (Cochran, Sampling Techniques, 3rd ed., section 2.11): with the residuals
    `e = amount - R size` of m pieces, `s = sqrt(m / (m - 1) sum(e^2)) / sum(sizes)`, times Student's t of m - 1.

    Args:
        amounts: of each piece, such as bits.
        sizes: of each piece, such as bytes.

    Raises:
        ValueError: no piece has a size.

    Examples:
        >>> found = ratio(np.array([2.0, 4.0, 6.0]), np.array([1.0, 1.0, 1.0]))
        >>> found.mean, round(found.half_width, 3), found.n       # of equal pieces, that of their mean
        (4.0, 4.968, 3)
    """
    amounts, sizes = amounts[sizes > 0], sizes[sizes > 0]
    m = len(sizes)
    if m == 0:
        raise ValueError("nothing was scored: expected at least one piece of text")
    rate = float(amounts.sum() / sizes.sum())
    if m == 1:
        return Estimate(rate, None, 1)
    spread = math.sqrt(m / (m - 1) * float(((amounts - rate * sizes) ** 2).sum())) / float(sizes.sum())
    return Estimate(rate, t_quantile(m - 1) * spread, m)


def share(successes: int, trials: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share of successes (Wilson 1927), which stays within 0 and 1.

    Examples:
        >>> low, high = share(8, 10)
        >>> round(low, 3), round(high, 3)
        (0.49, 0.943)
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"successes={successes}: expected 0..trials={trials}, of at least one trial")
    z2 = 1.959964**2
    p = successes / trials
    middle = p + z2 / (2 * trials)
    half = math.sqrt(z2 * (p * (1 - p) / trials + z2 / (4 * trials**2)))
    # rounding must not put a share of 1 outside of its own interval
    return max(0.0, (middle - half) / (1 + z2 / trials)), min(1.0, (middle + half) / (1 + z2 / trials))
