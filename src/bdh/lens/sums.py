"""How often, how much and how strongly each neuron fires, added up as a text is read.

Shapes: L levels, N neurons in all; T tokens and k neurons of a piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

ROWS = 128
"""Tokens added up at once: counts of so few fit a byte, and their sums in float32 are as good as in float64."""

Array = npt.NDArray[Any]


def pieces(tokens: int) -> Iterator[slice]:
    """Yield the tokens in pieces of at most `ROWS`.

    Examples:
        >>> list(pieces(200))
        [slice(0, 128, None), slice(128, 200, None)]
    """
    for start in range(0, tokens, ROWS):
        yield slice(start, min(start + ROWS, tokens))


class Sums:
    """Sums over tokens, per (level, neuron).

    Examples:
        >>> sums, a = Sums(1, 2), np.array([[0, 1], [0, 3]], dtype=np.float32)
        >>> sums.add(0, slice(0, 2), a, a > 0).tolist()
        [0.0, 3.0]
        >>> mean, std, largest, fires = sums.result(2)
        >>> mean.tolist(), std.tolist(), largest.tolist(), fires.tolist()
        ([[0.0, 2.0]], [[0.0, 1.0]], [[0.0, 3.0]], [[0, 2]])
    """

    def __init__(self, n_layer: int, n_neurons: int) -> None:
        shape = (n_layer, n_neurons)
        self.fires = np.zeros(shape, np.int64)
        self.total, self.squares = np.zeros(shape), np.zeros(shape)
        self.largest = np.zeros(shape, np.float32)

    def add(self, level: int, at: slice, a: Array, fires: Array) -> Array:
        """Add activations of some neurons.

        Args:
            level: the level.
            at: their global ids.
            a: (T, k) activations >= 0, float32.
            fires: (T, k) whether a > 0.

        Returns:
            (k,) the largest of each neuron in `a`.
        """
        peak = np.zeros(a.shape[1], np.float32)
        for rows in pieces(len(a)):
            part = a[rows]
            self.fires[level, at] += fires[rows].view(np.uint8).sum(0, dtype=np.uint8)
            self.total[level, at] += part.sum(0)
            self.squares[level, at] += np.einsum("tk,tk->k", part, part)
            np.maximum(peak, part.max(0), out=peak)
        np.maximum(self.largest[level, at], peak, out=self.largest[level, at])
        return peak

    def result(self, tokens: int) -> tuple[Array, Array, Array, Array]:
        """Return mean, standard deviation (divided by the count), largest activation and number of fires, each (L, N).

        Args:
            tokens: how many were added.
        """
        mean = self.total / tokens
        std = np.sqrt(np.maximum(self.squares / tokens - mean**2, 0))
        return mean, std, self.largest, self.fires
