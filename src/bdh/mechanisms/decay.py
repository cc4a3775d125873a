"""Exponential forgetting with learned time constants, computed so that no power overflows.

A rate is 1 / tau per token, one per head, and a power is exp(-rate * steps) with steps >= 0: at most 1 and never NaN,
at any length and for any rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Taus = float | Sequence[float] | None
"""One time constant in tokens for all heads, one per head, or None for a bank of them (`timescales`)."""

NOTHING = 1e-35
"""Smaller powers count as 0: products with numbers below the normal ones (1e-38) take a CPU many times longer."""


def timescales(n_head: int, center: float = 20.0, spread: float = 4.0) -> list[float]:
    """Return a bank of time constants in tokens: `n_head` steps of equal ratio, center / spread to center * spread.

    Examples:
        >>> timescales(3)
        [5.0, 20.0, 80.0]
    """
    if n_head == 1:
        return [center]
    return [center * spread ** (2 * h / (n_head - 1) - 1) for h in range(n_head)]


def raw_rates(tau: Taus, n_head: int) -> Tensor:
    """Return the (H,) parameters whose softplus are the rates 1 / tau.

    Learning the rate, not tau, lets a step of an optimiser change long time constants by the same share as short ones.

    Raises:
        ValueError: a time constant that is not positive, or not one per head.
    """
    taus = timescales(n_head) if tau is None else [tau] * n_head if isinstance(tau, (int, float)) else list(tau)
    if len(taus) != n_head or not all(0 < tau < math.inf for tau in taus):
        raise ValueError(f"tau {tau}: expected one positive number of tokens, or one for each of {n_head} heads")
    return torch.tensor([inverse_softplus(1 / tau) for tau in taus])


def inverse_softplus(y: float) -> float:
    """Return x with log(1 + exp(x)) = y.

    Examples:
        >>> round(inverse_softplus(math.log(2)), 9)
        0.0
    """
    return y + math.log(-math.expm1(-y))


def powers(rate: Tensor, steps: Tensor) -> Tensor:
    """Return exp(-rate * steps) for each head; negative steps count as 0.

    Args:
        rate: (H,), nonnegative.
        steps: any shape (...).

    Returns:
        (H, ...) in the dtype of `rate`.

    Examples:
        >>> powers(torch.tensor([math.log(2)]), torch.tensor([0, 1, 2, 4096])).tolist()
        [[1.0, 0.5, 0.25, 0.0]]
    """
    exponent = (rate.view(-1, *[1] * steps.ndim) * steps).clamp_min(0)
    return F.threshold(torch.exp(-exponent), NOTHING, 0.0)


def past_powers(rate: Tensor, start: int, stop: int) -> Tensor:
    """Return what is left at token t of what token s < t left behind, exp(-rate * (t - 1 - s)); 0 for s >= t.

    Returns:
        (H, stop - start, stop) for t = start..stop-1, s = 0..stop-1.

    Examples:
        >>> past_powers(torch.tensor([math.log(2)]), 0, 3).tolist()
        [[[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.5, 1.0, 0.0]]]
    """
    return powers(rate, distances(start, stop, rate) - 1).tril(start - 1)


def distances(start: int, stop: int, like: Tensor) -> Tensor:
    """Return t - s for tokens t = start..stop-1 and s = 0..stop-1, (stop - start, stop)."""
    s = torch.arange(stop, dtype=like.dtype, device=like.device)
    return s[start:, None] - s
