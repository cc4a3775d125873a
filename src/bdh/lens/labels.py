"""Labels of neurons without a language model: a label is a rule that runs on bytes, with scores on text held out.

Candidates are found and fitted on the first half of the text, scored on the second, and compared there with the best of
many rules that the same search finds for a shifted activation, and with random rules that hold as often.

Shapes: L levels, n neurons, W windows of T bytes; S = W*T.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bdh.lens.candidates import MOST_PARTS, Candidates, Fitted, Values, n_parts
from bdh.lens.inspection import plain, readable
from bdh.lens.neurons import gather
from bdh.lens.rules import Bytes, Rule
from bdh.lens.texts import Ids, as_bytes, blocks
from bdh.model import BDH

CELLS = 2**23
"""Activations (neurons x levels x bytes) held at once."""

SHIFTS = 19
"""Shifted activations, and random rules, that a label must beat: 19 for a chance of 1 in 20."""

LEAST = 0.5
"""Correlation that a label must reach whatever chance does: a quarter of the variance."""

UNTRAINED = 64
"""Neurons of an untrained model that say how well a rule of so many parts describes what nothing was learned for."""

RESAMPLES = 1000
"""Of a bootstrap interval."""


@dataclass(frozen=True)
class Score:
    """How well a rule describes a neuron on held-out text."""

    pearson: float
    """Simulator: correlation of the activation that the rule foretells with the neuron's."""
    low: float
    high: float
    """95 % interval of `pearson`: bootstrap over windows."""
    auroc: float | None
    """Detector: how often the neuron is more active at a byte where the rule holds than at one where it does not."""
    balanced_accuracy: float | None
    """Detector: mean of the shares of firing and of silent bytes (activation > 0 or not) that the rule tells."""
    match_rate: float
    """Share of bytes at which the rule holds."""


@dataclass(frozen=True)
class Candidate:
    """A rule and its scores."""

    rule: Rule
    means: tuple[float, ...]
    """Activation that is foretold for each part of the rule, and outside of it."""
    score: Score


@dataclass(frozen=True)
class AtLevel:
    """One level of a neuron's depth profile, held-out text."""

    mean: float
    """Mean activation."""
    rate: float
    """Share of bytes at which it fires."""
    pearson: float
    """Of the best candidate's rule, fitted anew at this level."""


@dataclass(frozen=True)
class Labelled:
    """A neuron, what may be said of it, and what chance alone would say."""

    neuron: int
    """Global id."""
    level: int
    """Where the candidates fit best on the training half."""
    label: str | None
    """The first candidate in words; None: it does not do better than `needed`."""
    candidates: tuple[Candidate, ...]
    """Best first, by the training half."""
    needed: float
    """What the lower end of the first candidate's interval must exceed: the largest of the next three and `LEAST`."""
    untrained: float
    """Correlation that rules of as many parts do not exceed for 95 % of the neurons of an untrained model."""
    shifted: float
    """Best held-out correlation that the same search reaches for the activation shifted against the text."""
    random: float
    """Best held-out correlation of random rules that hold as often."""
    profile: tuple[AtLevel, ...]
    """All levels: the weights, and so the neuron, are the same."""
    promotes: tuple[str, ...] = ()
    """Bytes that its decoder row raises most in the readout, the norms after it left out; not scored."""

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that goes into JSON."""
        rules = [candidate.rule for candidate in self.candidates]
        values: dict[str, Any] = plain(asdict(self))
        for candidate, rule in zip(values["candidates"], rules, strict=True):
            candidate["rule"] = plain(rule.to_dict())
            candidate["words"] = rule.words
        return values


def label_neurons(
    model: BDH,
    ids: Ids,
    neurons: Sequence[int],
    *,
    signal: str = "x_sparse",
    level: int | None = None,
    lists: Mapping[str, Sequence[str]] | None = None,
    window: int = 256,
    most: int = 3,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Labelled]:
    """Say in words what neurons fire for, or that no rule tells.

    Weights are shared by all levels, so a neuron has one label: that of the level at which a rule fits best on the
    training half of the text. At level 0, `x_sparse` depends on the byte alone.

    Args:
        model: a model of bytes; it is not changed.
        ids: (S,) bytes of a text; the first half finds the candidates, the second scores them. 30,000 are a fair start.
        neurons: global ids.
        signal: x_sparse, y_sparse or xy_sparse.
        level: look at this level only.
        lists: lists of words to try, by what the words have in common, besides a few built-in ones.
        window: bytes read from one empty state; what is left over at the end of the text is not used.
        most: candidates to keep per neuron.
        seed: of shifts, random rules and bootstrap.
        progress: called with the number of neurons done.

    Raises:
        ValueError: no neuron of that id, no such level or signal, ids that are not bytes, or too little text.

    Examples:
        >>> from bdh import BDHConfig
        >>> model = BDH(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4))
        >>> found = label_neurons(model, b"to be or not to be, " * 40, [3], window=20)
        >>> found[0].neuron, len(found[0].profile), found[0].needed >= 0.5
        (3, 2, True)
    """
    L, N = model.config.n_layer, model.config.n_neurons
    for neuron in neurons:
        if not 0 <= neuron < N:
            raise ValueError(f"neuron {neuron}: expected a global id in 0..{N - 1}")
    if level is not None and not 0 <= level < L:
        raise ValueError(f"level={level}: expected one of 0..{L - 1}")
    data = as_bytes(ids, "text")
    if window < 1 or len(data) < 8 * window:
        raise ValueError(f"text of {len(data)} bytes, window={window}: expected at least 8 windows; give more text")
    windows = data[: len(data) // window * window].reshape(-1, window)
    candidates = Candidates(windows[: len(windows) // 2], lists)
    untrained = _untrained(model, windows[: len(windows) // 2], candidates, signal, level, seed)
    found: list[Labelled] = []
    at_once = max(1, CELLS // (L * windows.size))
    for start in range(0, len(neurons), at_once):
        chosen = list(neurons[start : start + at_once])
        activation = _read(model, windows, signal, chosen)
        found += label_activations(
            windows, activation, chosen, candidates=candidates, untrained=untrained, level=level, most=most, seed=seed
        )
        progress(len(found))
    return [Labelled(**{**vars(labelled), "promotes": _promotes(model, labelled.neuron)}) for labelled in found]


def label_activations(
    data: Bytes,
    activation: Values,
    neurons: Sequence[int],
    *,
    candidates: Candidates | None = None,
    untrained: Sequence[float] = (0.0,) * MOST_PARTS,
    level: int | None = None,
    most: int = 3,
    seed: int = 0,
) -> list[Labelled]:
    """Label what is recorded: see `label_neurons`, which reads the activation of a model.

    Args:
        data: (W, T) windows of bytes.
        activation: (n, L, W, T).
        neurons: (n,) ids that the result carries.
        candidates: of the first half of the windows, made if not given.
        untrained: what a rule of 1, 2, ... `MOST_PARTS` parts must exceed.
        level: look at this level only.
        most: candidates to keep per neuron.
        seed: of shifts, random rules and bootstrap.
    """
    half, rng = len(data) // 2, np.random.default_rng(seed)
    candidates = candidates or Candidates(data[:half])
    n, L = activation.shape[:2]
    levels = list(range(L)) if level is None else [level]
    train = activation[:, levels, :half].reshape(n * len(levels), -1)
    held = activation[:, levels, half:].reshape(n * len(levels), -1)
    best = _best_level(candidates.fit(train, most), n)
    shifted = _shifted(candidates, train, held, data[half:], n, rng)
    W = len(data) - half
    drawn = rng.multinomial(W, np.full(W, 1 / W), size=RESAMPLES).astype(np.float64)
    found = []
    for index, (row, fitted) in enumerate(best):
        scored = tuple(Candidate(f.rule, f.means, _score(f, data[half:], held[row], drawn)) for f in fitted)
        random = least = 0.0
        if fitted:
            least = float(untrained[n_parts(fitted[0]) - 1])
            rules = [candidates.random_like(fitted[0], rng) for _ in range(SHIFTS)]
            random = max(_pearson(rule.matches(data[half:]).ravel().astype(float), held[row]) for rule in rules)
        chance = max(0.0, float(shifted[index]))
        needed = max(LEAST, least, chance, random)
        stands = bool(scored) and scored[0].score.low > needed
        found.append(
            Labelled(
                neuron=int(neurons[index]),
                level=levels[row % len(levels)],
                label=scored[0].rule.words if stands else None,
                candidates=scored,
                needed=needed,
                untrained=least,
                shifted=chance,
                random=random,
                profile=_profile(fitted[0].rule if fitted else None, data, activation[index]),
            )
        )
    return found


def _read(model: BDH, windows: Bytes, signal: str, neurons: Sequence[int]) -> Values:
    """The activation of neurons at all levels, (n, L, W, T)."""
    L = model.config.n_layer
    pairs = [(level, neuron) for neuron in neurons for level in range(L)]
    read = [gather(model, idx, signal, pairs) for _, idx in blocks(model, windows.ravel(), windows.shape[1])]
    activation: Values = torch.cat(read, 1).double().numpy().reshape(len(neurons), L, *windows.shape)
    return activation


def _shifted(
    candidates: Candidates, train: Values, held: Values, data: Bytes, n: int, rng: np.random.Generator
) -> Values:
    """The best held-out correlation, for each neuron, of labels found after the activation was shifted, (n,)."""
    reached = np.zeros((SHIFTS, n))
    T = data.shape[1]
    for shift in range(SHIFTS):
        # each half in a circle and by at least a window: what stays is the activation's own rhythm
        moved = [np.roll(part, rng.integers(T, part.shape[1] - T), 1) for part in (train, held)]
        for index, (row, fitted) in enumerate(_best_level(candidates.fit(moved[0]), n)):
            if fitted:
                reached[shift, index] = _pearson(fitted[0].simulate(data).ravel(), moved[1][row])
    best: Values = reached.max(0)
    return best


def _untrained(
    model: BDH, windows: Bytes, candidates: Candidates, signal: str, level: int | None, seed: int
) -> list[float]:
    """What a rule of 1, 2, ... parts reaches for at most 5 % of untrained neurons, each at its best level."""
    fresh = BDH.from_seed(model.config, seed).to(model.encoder.device)
    fresh.calibrate(next(idx for _, idx in blocks(fresh, windows.ravel(), windows.shape[1])))
    L, N = model.config.n_layer, model.config.n_neurons
    neurons = sorted(np.random.default_rng(seed).choice(N, min(N, UNTRAINED), replace=False).tolist())
    reached = []
    at_once = max(1, CELLS // (L * windows.size))
    for start in range(0, len(neurons), at_once):
        activation = _read(fresh, windows, signal, neurons[start : start + at_once])
        used = activation if level is None else activation[:, [level]]
        by_parts = candidates.by_parts(used.reshape(-1, windows.size))
        reached.append(by_parts.reshape(len(activation), -1, MOST_PARTS).max(1))
    found: list[float] = np.quantile(np.concatenate(reached), 0.95, axis=0).tolist()
    return found


def _best_level(fitted: list[list[Fitted]], n: int) -> list[tuple[int, list[Fitted]]]:
    """For each neuron the row, of its levels' rows, whose first rule fits best."""
    per_neuron = len(fitted) // n
    found = []
    for index in range(n):
        rows = range(index * per_neuron, (index + 1) * per_neuron)
        row = max(rows, key=lambda row: fitted[row][0].pearson if fitted[row] else -1.0)
        found.append((row, fitted[row]))
    return found


def _score(fitted: Fitted, data: Bytes, activation: Values, drawn: Values) -> Score:
    simulated, holds = fitted.simulate(data), fitted.rule.matches(data).ravel()
    low, high = _pearson_interval(simulated, activation.reshape(data.shape), drawn)
    return Score(
        pearson=_pearson(simulated.ravel(), activation),
        low=low,
        high=high,
        auroc=_auroc(activation, holds),
        balanced_accuracy=_balanced_accuracy(activation > 0, holds),
        match_rate=float(holds.mean()),
    )


def _profile(rule: Rule | None, data: Bytes, activation: Values) -> tuple[AtLevel, ...]:
    """How active a neuron (L, W, T) is at each level of the held-out half, and how well one rule does there."""
    half = len(data) // 2
    found = []
    for level in activation:
        pearson = 0.0
        if rule is not None:
            parts, held = rule.which(data[:half]), rule.which(data[half:])
            n = int(parts.max()) + 2
            counts = np.bincount(parts.ravel() + 1, minlength=n)
            sums = np.bincount(parts.ravel() + 1, level[:half].ravel(), minlength=n)
            means = np.where(counts > 0, sums / np.maximum(counts, 1), level[:half].mean())
            pearson = _pearson(means[np.minimum(held, n - 2) + 1].ravel(), level[half:].ravel())
        found.append(AtLevel(float(level[half:].mean()), float((level[half:] > 0).mean()), pearson))
    return tuple(found)


def _pearson(p: Values, a: Values) -> float:
    """Correlation; 0 where one of them does not vary, for then nothing is foretold."""
    if np.ptp(p) == 0 or np.ptp(a) == 0:
        return 0.0
    return float(np.corrcoef(p, a)[0, 1])


def _pearson_interval(p: Values, a: Values, drawn: Values) -> tuple[float, float]:
    """95 % bootstrap interval of the correlation of (W, T) values; drawn: how often each window is in a resample."""
    p, a = p - p.mean(), a - a.mean()
    sums = np.stack([p.sum(1), a.sum(1), (p * p).sum(1), (a * a).sum(1), (p * a).sum(1)], 1)
    mp, ma, pp, aa, pa = (drawn @ sums / p.size).T
    scale = np.sqrt(np.maximum(pp - mp**2, 0) * np.maximum(aa - ma**2, 0))
    r = np.divide(pa - mp * ma, scale, out=np.zeros(len(drawn)), where=scale > 0)
    low, high = np.quantile(r, (0.025, 0.975))
    return float(low), float(high)


def _auroc(activation: Values, holds: npt.NDArray[np.bool_]) -> float | None:
    """P(active where the rule holds > elsewhere) + P(equal) / 2; None if it holds everywhere or nowhere."""
    from scipy.stats import rankdata

    n, rest = int(holds.sum()), int((~holds).sum())
    if not n or not rest:
        return None
    return float((rankdata(activation)[holds].sum() - n * (n + 1) / 2) / (n * rest))


def _balanced_accuracy(fires: npt.NDArray[np.bool_], holds: npt.NDArray[np.bool_]) -> float | None:
    if fires.all() or not fires.any():
        return None
    return float((holds[fires].mean() + (~holds[~fires]).mean()) / 2)


def _promotes(model: BDH, neuron: int, most: int = 5) -> tuple[str, ...]:
    raised = (model.decoder[neuron].detach() @ model.lm_head.detach())[:256].topk(min(most, 256)).indices
    return tuple(readable(bytes([int(byte)]), "␣")[0] for byte in raised)
