"""Rank statistics of many units at once, on sentences that come in pairs.

Values are arrays (2, W, T, U): side (concept, contrast), word pair, template, unit. A side has n = W T sentences.
Sentences with the same word are not independent. So beside the usual p-value of U, which takes them as if they were,
stands one from swapping the two words of pairs, in all templates at once; and intervals draw word pairs, not sentences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

MOST_SWAPS = 2**12
"""Ways of swapping pairs that are tried: all 2^W of up to 12 pairs, a sample for more."""


def midranks(values: Array) -> Array:
    """Return the rank of each value among all sentences of its unit, equal ones sharing the mean of their ranks.

    Args:
        values: (2, W, T, U).

    Returns:
        (2, W, T, U), ranks from 1.
    """
    from scipy.stats import rankdata

    ranks: Array = rankdata(values.reshape(-1, values.shape[-1]), axis=0).reshape(values.shape)
    return ranks


def all_swaps(n_pairs: int, generator: np.random.Generator) -> Array:
    """Return ways of swapping pairs, (R, W) of 1 (as they are) and -1 (swapped); the first swaps none.

    Examples:
        >>> all_swaps(2, np.random.default_rng(0)).astype(int).tolist()
        [[1, 1], [-1, 1], [1, -1], [-1, -1]]
    """
    if 2**n_pairs <= MOST_SWAPS:
        bits = np.arange(2**n_pairs)[:, None] >> np.arange(n_pairs) & 1
        return 1.0 - 2.0 * bits
    signs = random_swaps(MOST_SWAPS, n_pairs, generator)
    signs[0] = 1
    return signs


def random_swaps(n: int, n_pairs: int, generator: np.random.Generator) -> Array:
    """Return n random ways of swapping pairs, (n, W)."""
    return 1.0 - 2.0 * generator.integers(0, 2, (n, n_pairs))


@dataclass(frozen=True, eq=False)
class Ranked:
    """The Mann-Whitney U of units, as it is and as it would be with pairs swapped.

        U = R_1 - n (n + 1) / 2,    r_rb = 2 U / n^2 - 1

    with R_1 the sum of the ranks of the concept's sentences: U counts the pairs of a concept and a contrast sentence in
    which the concept's value is larger (equal ones half), r_rb is the rank-biserial correlation, from -1 to 1.
    """

    ranks: Array
    """(2, W, T, U) from `midranks`."""

    @property
    def n(self) -> int:
        """Sentences of a side."""
        return int(self.ranks[0, ..., 0].size)

    def u(self, signs: Array | None = None) -> Array:
        """Return U.

        Args:
            signs: (R, W) from `random_swaps`; by default nothing is swapped.

        Returns:
            (R, U), or (U,) by default.

        Examples:
            >>> values = np.array([3.0, 5.0, 0.0, 0.0]).reshape(2, 2, 1, 1)   # concept 3, 5; contrast 0, 0
            >>> Ranked(midranks(values)).u()
            array([4.])
        """
        concept, contrast = self.ranks.sum(2)  # (W, U) each
        if signs is None:
            signs = np.ones(len(concept))
        u: Array = (concept + contrast).sum(0) / 2 + signs @ ((concept - contrast) / 2) - self.n * (self.n + 1) / 2
        return u

    def effect(self, u: Array) -> Array:
        """Return the rank-biserial correlation r_rb of some U."""
        return 2 * u / self.n**2 - 1

    def p(self, u: Array) -> Array:
        """Return the one-sided p-value of some U (..., U) by the normal approximation, corrected for ties.

        The variance is that of a sum of n of the 2 n ranks as they are, ties included,

            n^2 / (2 n (2 n - 1)) sum_s (rank_s - mean)^2,

        which is the usual formula with its tie correction. Continuity is corrected by 1/2. Where nothing varies, 1.
        """
        from scipy.special import ndtr

        N = 2 * self.n
        ranks = self.ranks.reshape(N, -1)
        sd = np.sqrt(self.n**2 / (N * (N - 1)) * ((ranks - (N + 1) / 2) ** 2).sum(0))
        z = (u - self.n**2 / 2 - 0.5) / np.where(sd > 0, sd, 1)
        p: Array = np.where(sd > 0, ndtr(-z), 1.0)
        return p

    def p_of_swaps(self, u: Array, signs: Array) -> Array:
        """Return the share of swaps of word pairs that give as large a U, (..., U): exact if `signs` are all swaps.

        It holds whatever sentences with the same word have in common.
        """
        null = np.sort(self.u(signs), axis=0)  # (R, U)
        rows = np.atleast_2d(u)
        # ranks are multiples of a half: half of that is far from any rounding
        at = [np.searchsorted(null[:, unit], rows[:, unit] - 0.25) for unit in range(null.shape[1])]
        p: Array = 1 - np.stack(at, axis=-1) / len(null)
        return p.reshape(u.shape)


def dominance(concept: Array, other: Array) -> Array:
    """Return how far the sentences of one word lie above those of another: P(larger) - P(smaller), (W, V, U).

    Its mean over both kinds of words is the rank-biserial correlation.

    Args:
        concept: (W, T, U).
        other: (V, S, U).

    Examples:
        >>> dominance(np.array([[[3.0], [1.0]]]), np.array([[[2.0]], [[0.0]]])).ravel()
        array([0., 1.])
    """
    W, V, U = concept.shape[0], other.shape[0], concept.shape[-1]
    found = np.empty((W, V, U))
    for unit in range(U):  # all at once would be W V T S U numbers
        above = np.sign(concept[:, None, :, None, unit] - other[None, :, None, :, unit])
        found[..., unit] = above.mean((2, 3))
    return found


def interval(
    above: Array, generator: np.random.Generator, *, paired: bool, resamples: int, level: float = 0.95
) -> tuple[Array, Array]:
    """Return the bootstrap interval of r_rb that draws words with all of their sentences, not sentences.

    Args:
        above: (W, V, U) from `dominance`.
        generator: source of the draws.
        paired: word w of the one kind and word w of the other are drawn together (then V = W); else each for itself.
        resamples: how many draws.
        level: probability between the ends, which are percentiles of the draws.

    Returns:
        Low and high ends (U,).
    """
    W, V, _ = above.shape
    first = generator.multinomial(W, np.full(W, 1 / W), resamples) / W  # (R, W)
    second = first if paired else generator.multinomial(V, np.full(V, 1 / V), resamples) / V
    drawn = np.einsum("rw,wvu,rv->ru", first, above, second, optimize=True)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def false_discovery_rates(p: Array) -> Array:
    """Return the Benjamini-Hochberg q-value of each p-value of the last axis: the rate at which it is a discovery."""
    from scipy.stats import false_discovery_control

    q: Array = false_discovery_control(p, axis=-1)
    return q
