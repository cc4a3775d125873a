"""Which n-grams are counted, and how surely a neuron fires at one of them.

The n-grams are chosen before the pass, by how often the text has them, so that memory is bounded by their number and
all counts are exact. What is rarer is not counted; the contexts of a neuron show it.

Shapes: S bytes of the text, G n-grams, N neurons.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

LENGTHS = (1, 2, 3, 4)
LEAST = 5
"""An n-gram that is rarer than this in the text is not counted."""
PRIOR = 100.0
"""Pseudo-counts of the prior, shared out by the frequency of each n-gram in the text."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class NGrams:
    """All bytes of a text, and its most frequent longer n-grams."""

    grams: tuple[bytes, ...]
    counts: Array
    """(G,) positions at which each ends, inside a window."""
    ids: Array
    """(4, S): which n-gram of length 1, 2, 3, 4 ends at each byte of the text; -1 where none is counted."""


def frequent(text: npt.NDArray[np.uint8], window: int, most: int) -> NGrams:
    """Find what to count; an n-gram that reaches over the start of a window is none, the model does not see it.

    Args:
        text: (S,) bytes.
        window: bytes of a window.
        most: n-grams of each length above 1.

    Examples:
        >>> found = frequent(np.frombuffer(b"abababababab", dtype=np.uint8), window=12, most=1)
        >>> found.grams, found.counts.tolist(), found.ids[1, :4].tolist()
        ((b'a', b'b', b'ab', b'aba', b'abab'), [6, 6, 6, 5, 5], [-1, 2, -1, 2])
    """
    grams: list[bytes] = []
    counts: list[int] = []
    ids = np.full((len(LENGTHS), len(text)), -1, np.int32)
    place = np.arange(len(text)) % window
    code = np.zeros(len(text), np.uint32)
    for row, length in enumerate(LENGTHS):
        code[length - 1 :] |= text[: len(text) - length + 1].astype(np.uint32) << np.uint32(8 * (length - 1))
        whole = np.flatnonzero(place >= length - 1)
        values, which, often = np.unique(code[whole], return_inverse=True, return_counts=True)
        order = np.argsort(-often, kind="stable")
        chosen = order if length == 1 else order[often[order] >= LEAST][:most]
        new = np.full(len(values), -1, np.int32)
        new[chosen] = len(grams) + np.arange(len(chosen))
        ids[row, whole] = new[which]
        grams += [int(values[i]).to_bytes(length, "big") for i in chosen]
        counts += often[chosen].tolist()
    return NGrams(tuple(grams), np.array(counts, np.int64), ids)


def log_odds(fires: Array, total: Array, counts: Array, cells: int) -> tuple[Array, Array]:
    """Return by how much more a neuron fires at an n-gram than elsewhere, and that in standard deviations.

    The log-odds ratio with an informative Dirichlet prior (Monroe, Colaresi & Quinn 2008, Eq. 16 and 20) of where it
    fires against where it is silent, with the n-gram's frequency in the text as the prior:

        delta = ln((y + a) / (F + P - y - a)) - ln((z + a) / (Z + P - z - a)),    sd^2 = 1 / (y + a) + 1 / (z + a)

    with y of F fires and z of Z silences at the n-gram, and a = P counts / cells. Neighbouring tokens, and the levels
    of one token, are not independent, so delta / sd ranks n-grams; it is no test.

    Args:
        fires: (G, N) fires at each n-gram.
        total: (N,) fires in all.
        counts: (G,) how often the n-gram could be fired at: positions times levels.
        cells: positions times levels of the text.

    Returns:
        delta and delta / sd, each (G, N).

    Examples:
        >>> delta, z = log_odds(np.array([[20.0]]), np.array([20.0]), np.array([20]), 1000)
        >>> round(delta.item(), 2), round(z.item(), 2)      # it fires at this n-gram, always and nowhere else
        (4.8, 6.49)
    """
    prior = PRIOR * (counts / cells)[:, None]
    y = fires + prior
    z = counts[:, None] - fires + prior
    delta = np.log(y / (total + PRIOR - y)) - np.log(z / (cells - total + PRIOR - z))
    return delta, delta / np.sqrt(1 / y + 1 / z)
