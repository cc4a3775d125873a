"""How the degrees are spread: their tail, and what it may be called.

What a tail is called, by rule. Its start is where a power law fits best (least Kolmogorov-Smirnov distance; Clauset,
Shalizi and Newman 2009), with at least 50 neurons in it. R is a log-likelihood ratio, positive for the first of two,
and p says how easily chance makes one as large (Vuong 1989); "better" is R > 0 with p < 0.1.

    heavy-tailed       the power law is no worse than the exponential (R >= 0), and it or the lognormal is better
    power law          heavy-tailed, and more: better than the exponential itself; neither the lognormal nor the
                       truncated power law better than it; in the tail are a hundred neurons, and a quarter of those
                       that have edges; its largest degree is ten times its least; and of samples drawn from the fit at
                       least a tenth fit worse
    not heavy-tailed   anything else, too few degrees too

A power law and a lognormal of large variance are one and the same to most samples, so "power law" means that nothing
here speaks against it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Verdict = Literal["power law", "heavy-tailed", "not heavy-tailed"]

LEAST_TAIL = 50
# a steeper law cannot be told from an exponential; and powerlaw loses its normalisation to rounding there
_RANGES = {"alpha": [1.0, 6.0]}
_SAMPLES = 40
_ROUNDING = 0.1
_LONGEST = 10**6


@dataclass(frozen=True)
class Comparison:
    """Likelihood ratio of two fits to the same tail."""

    R: float
    """Positive: the first fits better."""
    p: float
    """How easily chance makes a ratio as large."""

    @property
    def first(self) -> bool:
        """Whether the first is better."""
        return self.R > 0 and self.p < 0.1

    @property
    def second(self) -> bool:
        """Whether the second is better."""
        return self.R < 0 and self.p < 0.1


@dataclass(frozen=True)
class Tail:
    """A power law fitted to the tail of some degrees, and what else was fitted there."""

    alpha: float
    """Exponent: P(k) in proportion to k^-alpha."""
    xmin: int
    """Least degree of the tail."""
    n: int
    """Neurons in the tail."""
    connected: int
    """Neurons with edges."""
    largest: int
    """Largest degree."""
    exponential: Comparison
    """Power law against it."""
    lognormal: Comparison
    """Power law against it."""
    lognormal_exponential: Comparison
    """Lognormal against exponential."""
    truncated: Comparison | None = None
    """Power law against one with an exponential cut-off, which contains it: R <= 0. None where nothing depends on it,
    since this fit takes most of the time."""
    plausible: float | None = None
    """Share of samples drawn from the fit that fit worse; None where nothing depends on it."""

    @property
    def verdict(self) -> Verdict:
        """What the tail may be called."""
        if not self._heavy:
            return "not heavy-tailed"
        cut = self.truncated
        # a fit that contains the other cannot be worse: where it is, it failed, and nothing is known
        open_ended = cut is not None and not cut.second and cut.R <= _ROUNDING
        earned = self._earned and open_ended and (self.plausible or 0) >= 0.1
        return "power law" if earned else "heavy-tailed"

    @property
    def _heavy(self) -> bool:
        return self.exponential.R >= 0 and (self.exponential.first or self.lognormal_exponential.first)

    @property
    def _earned(self) -> bool:
        """Whether all speaks for a power law that is quickly found."""
        wide = self.n >= max(100, self.connected / 4) and self.largest >= 10 * self.xmin
        return self._heavy and self.exponential.first and not self.lognormal.second and wide


def ccdf(degrees: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return the degrees that occur, and the share of neurons that have at least so many.

    Examples:
        >>> ccdf([0, 1, 1, 4])
        (array([0, 1, 4]), array([1.  , 0.75, 0.25]))
    """
    values, counts = np.unique(np.asarray(degrees), return_counts=True)
    return values, counts[::-1].cumsum()[::-1] / counts.sum()


def word(tail: Tail | None) -> Verdict:
    """Return what a tail may be called, one too short to be fitted too."""
    return "not heavy-tailed" if tail is None else tail.verdict


def fit_tail(degrees: npt.ArrayLike, seed: int = 0) -> Tail | None:
    """Fit the tail of some degrees; those of 0 are left out.

    Args:
        degrees: one per neuron.
        seed: of the samples drawn from the fit.

    Returns:
        The tail; None where fewer than 50 neurons, or fewer than three different degrees, can be fitted.

    Raises:
        ValueError: powerlaw is missing.

    Examples:
        >>> word(fit_tail(np.random.default_rng(0).poisson(20, 1000)))
        'not heavy-tailed'
    """
    k = np.asarray(degrees)
    k = np.sort(k[k > 0])
    if len(k) < LEAST_TAIL or len(np.unique(k)) < 3:
        return None
    with _quiet():
        fit = _fitted(k)
        n, xmin, alpha = int((k >= fit.xmin).sum()), int(fit.xmin), float(fit.power_law.alpha)

        def against(first: str, second: str) -> Comparison:
            R, p = map(float, fit.distribution_compare(first, second))
            # a fit that found no optimum says nothing for either
            return Comparison(R, p) if math.isfinite(R) and math.isfinite(p) else Comparison(0.0, 1.0)

        tail = Tail(
            alpha,
            xmin,
            n,
            len(k),
            int(k[-1]),
            exponential=against("power_law", "exponential"),
            lognormal=against("power_law", "lognormal"),
            lognormal_exponential=against("lognormal", "exponential"),
        )
        if not tail._earned:
            return tail
        rng = np.random.default_rng(seed)
        distances = [_fitted(_sample(k, xmin, alpha, rng)).power_law.D for _ in range(_SAMPLES)]
        return replace(
            tail,
            truncated=against("power_law", "truncated_power_law"),
            plausible=float(np.mean(distances >= fit.power_law.D)),
        )


def _fitted(k: npt.NDArray[Any]) -> Any:
    try:
        import powerlaw
    except ImportError:
        raise ValueError('fits of tails need powerlaw: pip install "bdh[lens]"') from None
    values, at = np.unique(k, return_index=True)  # k is sorted: at is how many are smaller
    starts = values[len(k) - at >= LEAST_TAIL]
    # the search never takes the last value of its range, and needs two others
    rest = values[values > starts[-1]]
    xmin = (starts[0], rest[0] + 1) if len(starts) > 1 and len(rest) else int(starts[0])
    return powerlaw.Fit(k, discrete=True, estimate_discrete=False, xmin=xmin, parameter_ranges=_RANGES, verbose=False)


def _sample(k: npt.NDArray[Any], xmin: int, alpha: float, rng: np.random.Generator) -> npt.NDArray[Any]:
    """As many degrees: below the tail from the data, in it from the fit."""
    body = k[k < xmin]
    in_tail = rng.binomial(len(k), 1 - len(body) / len(k))
    below = np.cumsum(np.arange(xmin, _LONGEST, dtype=np.float64) ** -alpha)
    tail = xmin + np.searchsorted(below / below[-1], rng.random(in_tail))
    return np.sort(np.concatenate((rng.choice(body, len(k) - in_tail) if len(body) else body, tail)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Warnings of the fits, about optima at the edge of what is allowed, say what the ratios say."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield
