"""How strongly every neuron of every level fires at every byte, coded small enough for a page.

Shapes: T tokens, L levels, N neurons in all, K neurons per head, R rows of a level.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from bdh.ops import frequencies

STEPS = 31
"""Shades of a cell above silence: as many as an eye can tell, and far less to send than 255."""

BUDGET = 2_800_000
"""Compressed bytes of all levels; a page writes four characters for three of them."""


@dataclass(frozen=True)
class Activity:
    """All neurons at all bytes of a text: row r of a level holds neurons r*pooled to (r+1)*pooled - 1 of it."""

    levels: tuple[bytes, ...]
    """Per level (R, T) codes, one byte each, by rows, compressed (zlib): 0 silent, else the shade 1..31 of
    sqrt(activation / largest), rounded up so that nothing that fires is silent."""
    rows: int
    columns: int
    pooled: int
    """Neurons of a row, neighbours in a head; the row holds the largest of them."""
    largest: float
    """Largest activation of all."""
    periods: tuple[float, ...]
    """Tokens in one turn of the rotation of each row of a head (of the fastest neuron in it)."""

    def codes(self, level: int) -> npt.NDArray[np.uint8]:
        """Return the codes of a level (R, T)."""
        return np.frombuffer(zlib.decompress(self.levels[level]), np.uint8).reshape(self.rows, self.columns)


def pack_activity(levels: Sequence[Tensor], neurons_per_head: int, budget: int = BUDGET) -> Activity:
    """Code activations; where they would be more than the budget, neighbours share a row that holds their maximum.

    A mean, or every k-th neuron, would hide a single spike. The two neurons of a pair turn together, so that
    neighbours have nearly one timescale.

    Args:
        levels: (T, N) activations >= 0 of each level.
        neurons_per_head: K; rows never cross heads.
        budget: most compressed bytes.

    Examples:
        >>> import torch
        >>> found = pack_activity([torch.tensor([[0.0, 4.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1e-6]])], 2)
        >>> found.codes(0).tolist(), found.pooled
        ([[0, 0], [31, 0], [16, 0], [0, 1]], 1)
    """
    largest = max(level.max().item() for level in levels)
    codes, pooled = [np.ascontiguousarray(_code(level, largest).T) for level in levels], 1
    while True:
        last, first = neurons_per_head % (2 * pooled) > 0, zlib.compress(codes[0].tobytes())
        # one level tells whether to compress the others is worth the time
        if last or len(first) * len(codes) <= 1.2 * budget:
            packed = (first, *(zlib.compress(rows.tobytes()) for rows in codes[1:]))
            if last or sum(map(len, packed)) <= budget:
                break
        pooled *= 2
        codes = [rows.reshape(-1, 2, rows.shape[1]).max(1) for rows in codes]
    turns = (1 / frequencies(neurons_per_head)).repeat_interleave(2)[::pooled]
    rows, columns = codes[0].shape
    return Activity(packed, rows, columns, pooled, largest, tuple(turns.tolist()))


def _code(level: Tensor, largest: float) -> npt.NDArray[np.uint8]:
    share = level.float().clamp(min=0) / (largest or 1.0)
    return (share.sqrt() * STEPS).ceil().clamp(max=STEPS).numpy().astype(np.uint8)
