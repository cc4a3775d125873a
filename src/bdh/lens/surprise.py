"""Is a level quieter where the text is predictable? Density per level and timescale beside surprisal and entropy.

    surprisal_t = -ln p_{t-1}(token t),    entropy_t = -sum_c p_t(c) ln p_t(c),    p_t the prediction after token t

Texts are rows, each read from an empty memory, so rows are the blocks of the bootstrap: tokens of a row depend on each
other, rows do not. The null is the same architecture with random weights, drawn five times: how its activity on the
same texts goes with the surprisal and entropy *of the model*. Random neurons fire more at some letters than at others,
and letters differ in surprisal: a correlation inside that range comes from the text, not from learning.

Shapes: B texts, T tokens, L levels, H heads, K neurons per head.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bdh.lens.inspection import plain
from bdh.lens.timescales import HALVES, by_half
from bdh.lens.untrained import untrained
from bdh.model import BDH, evaluating

RANDOM = 5
"""Draws of random weights."""

Floats = npt.NDArray[np.float64]
_CELLS = 2**21
"""Activities (tokens x neurons) of one level that are held at once."""

_SIGNALS = {"x_sparse": "x", "xy_sparse": "xy"}


@dataclass(frozen=True)
class Correlation:
    """How the density of some neurons goes with how unexpected the text is."""

    level: int
    signal: str
    """"x", or "xy", which the paper calls y."""
    neurons: str
    """"fast" or "slow", by the period of the rotation."""
    against: str
    """"surprisal" of the token that is read, or "entropy" of the prediction that is then made."""
    pearson: float | None
    pearson_ci: tuple[float, float] | None
    """95 % interval, by bootstrap over texts; None where the density never varies, or for a single text."""
    spearman: float | None
    spearman_ci: tuple[float, float] | None
    """The ranks are those among all tokens."""
    init_pearson: tuple[float, float] | None
    """The same for random weights, against the same surprisal or entropy: least and largest of the draws."""
    init_spearman: tuple[float, float] | None


@dataclass(frozen=True)
class Place:
    """One place of the texts, averaged over them."""

    surprisal: float | None
    """None at the first token, which nothing predicts."""
    entropy: float
    density: dict[str, tuple[tuple[float, float], ...]]
    """By signal and level, of the fast and of the slow half."""
    init: dict[str, tuple[tuple[float, float], ...]]
    """The same of random weights, averaged over the draws."""


@dataclass(frozen=True)
class Surprise:
    """Density beside predictability."""

    correlations: tuple[Correlation, ...]
    places: tuple[Place, ...]
    n_texts: int

    def mean(self, start: int, stop: int) -> Place:
        """Return the average over the places from `start` to before `stop`."""
        found = self.places[start:stop]
        known = [place.surprisal for place in found if place.surprisal is not None]

        def average(of: str) -> dict[str, tuple[tuple[float, float], ...]]:
            values = {key: np.mean([getattr(place, of)[key] for place in found], 0) for key in getattr(found[0], of)}
            return {key: tuple((float(fast), float(slow)) for fast, slow in rows) for key, rows in values.items()}

        return Place(
            float(np.mean(known)) if known else None,
            float(np.mean([place.entropy for place in found])),
            average("density"),
            average("init"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that goes into JSON."""
        values: dict[str, Any] = plain(dataclasses.asdict(self))
        return values


def measure_surprise(model: BDH, ids: Tensor, *, seed: int = 0, resamples: int = 1000) -> Surprise:
    """Measure the density of each level and timescale at each token, and how it goes with surprisal and entropy.

    Args:
        model: the model; dropout is off.
        ids: (B, T) texts, each read from an empty memory; two tokens or more. Their first token counts for no
            correlation, since nothing predicts it.
        seed: of the random weights, and of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        ValueError: texts of one token, token ids that the model refuses, or no scipy.

    Examples:
        >>> from bdh import BDHConfig
        >>> model = BDH.from_seed(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4), 0)
        >>> found = measure_surprise(model, torch.arange(256).view(8, 32))
        >>> len(found.places), len(found.correlations)
        (32, 16)
    """
    if ids.ndim != 2 or ids.shape[1] < 2:
        raise ValueError(f"ids: expected texts (B, T) of two tokens or more, got {tuple(ids.shape)}")
    density, logits = read(model, ids)
    random = [read(untrained(model, ids, seed + n), ids)[0] for n in range(RANDOM)]
    init = {signal: np.stack([drawn[signal] for drawn in random]) for signal in density}  # (RANDOM, B, T, L, 2)
    log_p = logits.double().log_softmax(-1)
    target = {
        "surprisal": -log_p[:, :-1].gather(-1, ids[:, 1:, None].to(log_p.device))[..., 0].numpy(),
        "entropy": -(log_p.exp() * log_p).sum(-1).numpy(),
    }
    draws = resampled(len(ids), resamples, seed)
    correlations = tuple(
        _correlation(
            level, signal, half, against, values[..., level, which], init[signal][..., level, which],
            target[against], draws,
        )
        for signal, values in density.items() for level in range(values.shape[2])
        for which, half in enumerate(HALVES) for against in target
    )  # fmt: skip
    course = {name: values.mean(0) for name, values in target.items()}
    places = tuple(
        Place(
            float(course["surprisal"][t - 1]) if t else None,
            float(course["entropy"][t]),
            {signal: _rows(values[:, t].mean(0)) for signal, values in density.items()},
            {signal: _rows(values[:, :, t].mean((0, 1))) for signal, values in init.items()},
        )
        for t in range(ids.shape[1])
    )
    return Surprise(correlations, places, len(ids))


def read(model: BDH, ids: Tensor) -> tuple[dict[str, Floats], Tensor]:
    """Return the density (B, T, L, 2) by signal, level and half, and the logits (B, T, V)."""
    found: dict[str, list[list[Tensor]]] = {key: [] for key in _SIGNALS.values()}
    logits = []

    def count(name: str, tensor: Tensor) -> Tensor:
        key = _SIGNALS.get(name.rpartition(".")[2])
        if key is not None:
            found[key][-1].append(by_half((tensor > 0).double()).cpu())
        return tensor

    with evaluating(model):
        for rows in ids.split(max(1, _CELLS // (ids.shape[1] * model.config.n_neurons))):
            for levels in found.values():
                levels.append([])
            logits.append(model(rows, tap=count)[0].cpu())
    joined = {key: torch.cat([torch.stack(levels, 2) for levels in parts]).numpy() for key, parts in found.items()}
    return joined, torch.cat(logits)


def resampled(texts: int, resamples: int, seed: int) -> Floats:
    """Return how often each text is in each resample of the bootstrap, (R, B)."""
    return np.random.default_rng(seed).multinomial(texts, [1 / texts] * texts, resamples).astype(np.float64)


def _correlation(
    level: int, signal: str, half: str, against: str, density: Floats, init: Floats, target: Floats, draws: Floats
) -> Correlation:
    """Of densities (B, T) with a target (B, T), or (B, T-1) without the first token."""
    x, y = density[:, 1:], target[:, target.shape[1] - density.shape[1] + 1 :]
    found = []
    for ranked in (False, True):
        a, b, *drawn = (_ranks(values) if ranked else values for values in (x, y, *init[:, :, 1:]))
        null = [r for r, _ in (correlate(one, b) for one in drawn) if r is not None]
        found.append((*correlate(a, b, draws), (min(null), max(null)) if null else None))
    (pearson, pearson_ci, pearson_init), (spearman, spearman_ci, spearman_init) = found
    return Correlation(
        level, signal, half, against, pearson, pearson_ci, spearman, spearman_ci, pearson_init, spearman_init
    )


def correlate(x: Floats, y: Floats, draws: Floats | None = None) -> tuple[float | None, tuple[float, float] | None]:
    """Return Pearson's r of two (B, T) arrays, and its 95 % interval over resampled rows.

    A resample is how often each row is in it, so the sums of each row are enough for all of them.

    Args:
        x: any values.
        y: any values.
        draws: (R, B) how often each row is drawn; without them there is no interval.

    Returns:
        None where one of them does not vary; no interval for one row.

    Examples:
        >>> x = np.arange(6.0).reshape(2, 3)
        >>> correlate(x, 2 * x + 1, np.ones((1, 2)))
        (1.0, (1.0, 1.0))
    """
    x, y = x - x.mean(), y - y.mean()
    sums = np.stack([np.full(len(x), x.shape[1]), *(part.sum(1) for part in (x, y, x * x, y * y, x * y))], 1)

    def r(n: Floats, sx: Floats, sy: Floats, xx: Floats, yy: Floats, xy: Floats) -> Floats:
        scale = (xx - sx * sx / n).clip(0) * (yy - sy * sy / n).clip(0)
        # what is left of sums of equal numbers is rounding
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(scale > 1e-24 * xx * yy, (xy - sx * sy / n) / np.sqrt(scale), np.nan)

    whole = float(r(*sums.sum(0)[:, None])[0])
    if not np.isfinite(whole):
        return None, None
    if draws is None or len(x) < 2:
        return whole, None
    found = r(*(draws @ sums).T)
    low, high = np.nanquantile(found, (0.025, 0.975))
    return whole, (float(low), float(high))


def _ranks(values: Floats) -> Floats:
    try:
        from scipy.stats import rankdata
    except ImportError:
        raise ValueError('rank correlations need scipy: pip install "bdh[lens]"') from None
    ranked: Floats = rankdata(values, axis=None).reshape(values.shape)
    return ranked


def _rows(levels: Floats) -> tuple[tuple[float, float], ...]:
    return tuple((float(fast), float(slow)) for fast, slow in levels)
