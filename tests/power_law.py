"""Maximum-likelihood exponent of a discrete power law between two known bounds."""

import numpy as np
from numpy.typing import ArrayLike


def fit(samples: ArrayLike, low: int, high: int) -> tuple[float, float]:
    """Exponent g of P(k) = k^-g / sum_{j=low}^{high} j^-g, and its standard error.

    The log-likelihood is -g sum(log k) - n log Z(g). Its derivative is zero where the mean of log k is the expected one
    under g; its curvature n Var(log k) gives the standard error 1 / sqrt(n Var(log k)).
    """
    k = np.asarray(samples, dtype=np.float64)
    k = k[(k >= low) & (k <= high)]
    log = np.log(np.arange(low, high + 1, dtype=np.float64))
    g = 1.5
    for _ in range(50):
        p = np.exp(-g * log)
        p /= p.sum()
        mean = p @ log
        variance = p @ (log - mean) ** 2
        g += (mean - np.log(k).mean()) / variance
    return float(g), float(1 / np.sqrt(len(k) * variance))


def kolmogorov_smirnov(samples: ArrayLike, low: int, high: int, gamma: float) -> float:
    """Largest distance between the cumulative shares of the samples and of the power law."""
    support = np.arange(low, high + 1)
    p = support.astype(np.float64) ** -gamma
    shares = np.searchsorted(np.sort(np.asarray(samples)), support, side="right") / len(np.asarray(samples))
    return float(np.abs(shares - np.cumsum(p) / p.sum()).max())
