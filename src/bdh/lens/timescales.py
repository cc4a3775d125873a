"""Timescales of the memory: how many tokens the rotation of a neuron pair takes for one turn, and bands of these.

Neurons 2k and 2k + 1 of every head turn together by exp(2 pi i f_k t), so what a pair wrote is found in phase again
after a period 1 / f_k: fast pairs tell near tokens apart, slow ones find what was written long ago as it was written.

Shapes: B batch, H heads, T tokens, K neurons per head, P = K/2 pairs of a head.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from bdh.model import BDH
from bdh.ops.rotary import frequencies

EDGES = (0.0, 10.0, 100.0, 1_000.0, 10_000.0, math.inf)
"""Periods, in tokens, between which the bands lie."""

HALVES = ("fast", "slow")
"""The first and the second half of the pairs of each head, by period."""


def periods(model: BDH) -> Tensor:
    """Return the tokens per turn of each neuron, by global id: 2 pi theta^(2k/K), theta = 2^16 (paper, Def. 4).

    Returns:
        (N,) float64; the same in every head.

    Examples:
        >>> from bdh import BDHConfig
        >>> found = periods(BDH(BDHConfig(n_layer=1, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4)))
        >>> [round(period, 1) for period in found[:4].tolist()], found[31] == found[63]
        ([6.3, 6.3, 12.6, 12.6], tensor(True))
    """
    return (1 / frequencies(model.config.neurons_per_head)).repeat_interleave(2).repeat(model.config.n_head)


def bands(model: BDH) -> dict[str, Tensor]:
    """Return the pairs k of a head by band of their period; bands without a pair are left away.

    Returns:
        By name, (P,) truth values.

    Examples:
        >>> from bdh import BDHConfig
        >>> found = bands(BDH(BDHConfig(n_layer=1, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4)))
        >>> {name: int(pairs.sum()) for name, pairs in found.items()}
        {'under 10': 1, '10 to 100': 3, '100 to 1,000': 4, '1,000 to 10,000': 3, '10,000 and more': 5}
    """
    period = 1 / frequencies(model.config.neurons_per_head)
    found = {_name(low, high): (period >= low) & (period < high) for low, high in pairwise(EDGES)}
    return {name: pairs for name, pairs in found.items() if pairs.any()}


def by_half(values: Tensor) -> Tensor:
    """Return the mean over the neurons of each half, (B, H, T, K) -> (B, T, 2), the fast half first.

    Examples:
        >>> by_half(torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 1, 4)).tolist()
        [[[1.0, 0.0]]]
    """
    return torch.stack([half.mean((1, 3)) for half in values.chunk(2, -1)], -1)


def _name(low: float, high: float) -> str:
    if low == 0:
        return f"under {high:,.0f}"
    return f"{low:,.0f} and more" if math.isinf(high) else f"{low:,.0f} to {high:,.0f}"
