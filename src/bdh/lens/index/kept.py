"""The few places of a text that are kept of each neuron: those with the smallest keys, whatever the order they come in.

Shapes: N neurons, k kept of each, W bytes whose activations are kept with a place, r rows, C candidates of a row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

NONE = np.uint64(2**64 - 1)
"""Key of a place that is not there."""

Array = npt.NDArray[Any]


class Kept:
    """Per neuron the places with the smallest keys, in the order of these.

    A key has what ranks a place in its upper half, and the place itself in its lower half: no two are the same, so
    what is kept depends neither on the order of the text nor on how it was shared out.
    """

    def __init__(self, n_neurons: int, size: int, width: int) -> None:
        self.key = np.full((n_neurons, size), NONE)
        self.activation = np.zeros((n_neurons, size), np.float32)
        self.strip = np.zeros((n_neurons, size, width), np.float16)
        """Activations around each place."""

    def offer(self, neurons: Array, key: Array, activation: Array, strip: Array) -> None:
        """Keep what is better than what is kept.

        Args:
            neurons: (r,) global ids, each once.
            key: (r, C); NONE where a row has fewer candidates.
            activation: (r, C).
            strip: (r, C, W).
        """
        size = self.key.shape[1]
        keys = np.concatenate((self.key[neurons], key), 1)
        best = np.argsort(keys, axis=1)[:, :size]
        self.key[neurons] = np.take_along_axis(keys, best, 1)
        together = np.concatenate((self.activation[neurons], activation), 1)
        self.activation[neurons] = np.take_along_axis(together, best, 1)
        strips = np.concatenate((self.strip[neurons], strip), 1)
        self.strip[neurons] = np.take_along_axis(strips, best[..., None], 1)

    def merge(self, other: Kept) -> None:
        """Keep the best of both."""
        for start in range(0, len(self.key), 1024):
            some = np.arange(start, min(start + 1024, len(self.key)))
            self.offer(some, other.key[some], other.activation[some], other.strip[some])

    def last(self, neurons: slice) -> Array:
        """Return (k,) the upper half of the largest key that is kept of each: what is to be beaten."""
        return (self.key[neurons, -1] >> np.uint64(32)).astype(np.uint32)

    def events(self) -> Array:
        """(N, k) places: position * L + level."""
        return (self.key & np.uint64(0xFFFFFFFF)).astype(np.uint32)


def keys(rank: Array, event: Array) -> Array:
    """Return keys from what ranks (uint32, smallest first) and places."""
    return (rank.astype(np.uint64) << np.uint64(32)) | event.astype(np.uint64)


def strongest_first(activation: Array) -> Array:
    """Return ranks of activations >= 0: their bits grow with them, so their complement falls.

    Examples:
        >>> ranks = strongest_first(np.array([0.0, 0.5, 2.0], dtype=np.float32))
        >>> bool(ranks[0] > ranks[1] > ranks[2])
        True
    """
    return ~np.ascontiguousarray(activation, np.float32).view(np.uint32)


def by_neuron(neuron: Array, *columns: Array) -> tuple[Array, Array, list[Array]]:
    """Turn a list of candidates into rows, one per neuron.

    Args:
        neuron: (c,) whose candidate it is.
        *columns: (c, ...) of each.

    Returns:
        neurons (r,), which of the cells (r, C) are filled, and each column as (r, C, ...).

    Examples:
        >>> neurons, filled, (values,) = by_neuron(np.array([7, 3, 7]), np.array([1, 2, 3]))
        >>> neurons.tolist(), filled.tolist(), values.tolist()
        ([3, 7], [[True, False], [True, True]], [[2, 0], [1, 3]])
    """
    order = np.argsort(neuron, kind="stable")
    neurons, first, count = np.unique(neuron[order], return_index=True, return_counts=True)
    row = np.repeat(np.arange(len(neurons)), count)
    column = np.arange(len(order)) - np.repeat(first, count)
    filled = np.zeros((len(neurons), int(count.max(initial=0))), bool)
    filled[row, column] = True
    spread = []
    for values in columns:
        out = np.zeros((*filled.shape, *values.shape[1:]), values.dtype)
        out[row, column] = values[order]
        spread.append(out)
    return neurons, filled, spread
