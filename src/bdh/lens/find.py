"""Which neurons fire for a word: told apart from other words of its length, and from other words that end like it.

A unit is one occurrence, read from an empty state with the same number of bytes before its end, and its activation is
that at its last byte: there the model has read the whole word, and nothing behind it.

Shapes: U units, L levels, N neurons, P = L*N pairs (level, neuron).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bdh.lens.inspection import Context, plain
from bdh.lens.names import check_signal
from bdh.lens.rules import WORD, Bytes
from bdh.lens.texts import BLOCK_CELLS, Ids, as_bytes, context_at
from bdh.model import BDH, evaluating

Floats = npt.NDArray[Any]
Groups = tuple[npt.NDArray[np.int64], ...]
"""Rows of the units: occurrences, other words of their lengths, and other words of their last bytes (or nothing)."""

LEAST = 10
"""Occurrences that each half of the text must have."""

OTHERS = 3
"""Other words per occurrence, at most, in each comparison."""

COLUMNS = 4096
"""Pairs that are tested at once."""

RESAMPLES = 1000
"""Of a bootstrap interval."""


@dataclass(frozen=True)
class Effect:
    """How much more active a neuron is at the occurrences than at other words."""

    rank_biserial: float
    """2 P(occurrence > other) + P(equal) - 1, from -1 to 1; 0: no difference."""
    low: float
    high: float
    """95 % interval: bootstrap over units of both kinds."""
    fires: float
    """Share of the other words at which the neuron fires."""


@dataclass(frozen=True)
class FoundNeuron:
    """A neuron that passes; all figures but `level` are of the second half of the text."""

    neuron: int
    level: int
    """Of its levels that pass, the one with the largest effect in the first half."""
    fires: float
    """Share of the occurrences at which it fires."""
    other: Effect
    """Against other words of the same length."""
    ending: Effect | None
    """Against other words with the same last byte; None: there are too few."""
    q: float
    """False discovery rate (Benjamini and Hochberg) among the pairs that were selected."""
    profile: tuple[float, ...]
    """Rank-biserial correlation against `other` at each level."""
    contexts: tuple[Context, ...]
    """Units, occurrences or not, that drive it most."""


@dataclass(frozen=True)
class Found:
    """What `find_neurons` found, and what chance and an untrained model give."""

    words: tuple[str, ...]
    signal: str
    case: bool
    alpha: float
    context: int
    n_selection: tuple[int, ...]
    n_report: tuple[int, ...]
    """Units of each half: occurrences, other words of the same length, other words with the same last byte (0: not
    compared)."""
    n_tested: int
    """Pairs (level, neuron)."""
    n_selected: int
    """Pairs that pass in the first half, over all that are tested."""
    n_passing: int
    """Of these, pairs that pass again in the second half."""
    by_chance: float
    """Pairs that pass where it is shuffled which unit is an occurrence: mean of the shuffles."""
    untrained: int
    """Pairs that pass in an untrained model."""
    neurons: tuple[FoundNeuron, ...]
    """The largest lower end of an effect first, the smaller one where there are two."""

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that goes into JSON."""
        values: dict[str, Any] = plain(asdict(self))
        return values


def find_neurons(
    model: BDH,
    ids: Ids,
    words: str | Sequence[str],
    *,
    signal: str = "x_sparse",
    case: bool = False,
    context: int = 128,
    alpha: float = 0.05,
    most: int = 100,
    shuffles: int = 10,
    contexts: int = 3,
    seed: int = 0,
    progress: Callable[[str], None] = lambda doing: None,
) -> Found:
    """Find the neurons that are more active at a word than at other words, at the word's last byte.

    One-sided Mann-Whitney tests with tie correction, for every neuron at every level, against other words of the same
    length and against other words with the same last byte, lest a neuron of that byte be taken for one of the word; the
    larger p counts. Pairs are selected in the first half of the text by their false discovery rate over all pairs, and
    pass if they are found again, alone among the selected, in the second half.

    Args:
        model: a model of bytes; it is not changed.
        ids: (S,) bytes of a text.
        words: a word, or several that are one concept; letters only.
        signal: x_sparse, y_sparse or xy_sparse.
        case: tell "Love" from "love"; without it A-Z is read as a-z.
        context: bytes that are read up to the end of each unit.
        alpha: false discovery rate.
        most: occurrences used, drawn from all; U*L*N activations of up to 7 times as many units are held.
        shuffles: how often the whole procedure is repeated with shuffled labels.
        contexts: units to show per neuron.
        seed: of the draws, the shuffles, the bootstrap and the untrained model.
        progress: told what is being done.

    Raises:
        ValueError: words that are none, too few occurrences, ids that are not bytes, an unknown signal.

    Examples:
        >>> from bdh import BDHConfig
        >>> model = BDH(BDHConfig(n_layer=1, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4))
        >>> found = find_neurons(model, b"all you need is love, that is all. " * 30, "love", context=16, shuffles=2)
        >>> found.n_tested, found.n_report
        (64, (15, 29, 0))
    """
    check_signal(signal)
    wanted = _wanted(words, case)
    data, rng = as_bytes(ids, "text"), np.random.default_rng(seed)
    if context < 1 or most < 2 * LEAST:
        raise ValueError(f"context={context}, most={most}: expected context >= 1 and most >= {2 * LEAST}")
    ends, halves = _units(data, wanted, case, context, most, rng)
    progress(f"reading {len(ends)} passages")
    activation = _at_ends(model, data, ends, context, signal)  # (U, P)
    progress(f"testing {activation.shape[1]:,} neurons at levels")
    selected, passing, q = _passing(activation, halves, alpha)
    by_chance = []
    for shuffle in range(shuffles):
        progress(f"testing shuffled labels, {shuffle + 1} of {shuffles}")
        by_chance.append(len(_passing(activation, tuple(_shuffled(half, rng) for half in halves), alpha)[1]))
    found = _neurons(model, data, ends, context, activation, halves, passing, q, contexts, rng)
    progress("the same for an untrained model")
    fresh = BDH.from_seed(model.config, seed).to(model.encoder.device)
    fresh.calibrate(_passages(data, ends[:8], context).to(model.encoder.device))
    untrained = len(_passing(_at_ends(fresh, data, ends, context, signal), halves, alpha)[1])
    return Found(
        words=tuple(word.decode() for word in wanted),
        signal=signal,
        case=case,
        alpha=alpha,
        context=context,
        n_selection=tuple(map(len, halves[0])),
        n_report=tuple(map(len, halves[1])),
        n_tested=activation.shape[1],
        n_selected=len(selected),
        n_passing=len(passing),
        by_chance=float(np.mean(by_chance)) if by_chance else 0.0,
        untrained=untrained,
        neurons=found,
    )


def _wanted(words: str | Sequence[str], case: bool) -> list[bytes]:
    listed = [words] if isinstance(words, str) else list(words)
    if not listed:
        raise ValueError("words=[]: expected at least one word")
    for word in listed:
        if not WORD.fullmatch(word.encode()):
            raise ValueError(f"word {word!r}: expected letters only; inspect shows what a text of any kind drives")
    return list(dict.fromkeys(word.encode() if case else word.encode().lower() for word in listed))


def _units(
    data: Bytes, wanted: list[bytes], case: bool, context: int, most: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], tuple[Groups, Groups]]:
    """Draw the units: their last bytes (U,), and which rows are what in the first and the second half of the text."""
    found = [(match.end() - 1, match[0] if case else match[0].lower()) for match in WORD.finditer(data.tobytes())]
    found = [(end, word) for end, word in found if end + 1 >= context]
    is_wanted = np.array([word in wanted for _, word in found], dtype=bool)
    at = np.array([end for end, _ in found], dtype=np.int64)
    length = np.array([len(word) for _, word in found], dtype=np.int64)
    last = np.array([word[-1] for _, word in found], dtype=np.int64)
    name = f"word {wanted[0].decode()!r}" + (f" and {len(wanted) - 1} others" if len(wanted) > 1 else "")
    if is_wanted.sum() < 2 * LEAST:
        raise ValueError(
            f"{name}: expected at least {2 * LEAST} occurrences that end {context} bytes or more into the text, got "
            f"{is_wanted.sum()} in {len(data):,} bytes; give more text, or more words of the concept"
        )
    (occurrences,) = is_wanted.nonzero()
    cut = occurrences[len(occurrences) // 2]  # as many on either side, and no text on both
    halves = []
    for side in (np.arange(len(found)) < cut, np.arange(len(found)) >= cut):
        mine = _drawn(np.flatnonzero(side & is_wanted), most // 2, rng)
        rest = side & ~is_wanted
        halves.append([mine, _alike(mine, length, rest, rng), _alike(mine, last, rest, rng)])
        if len(halves[-1][1]) < LEAST:
            raise ValueError(
                f"{name}: expected at least {LEAST} other words of the same length in each half of the text, got "
                f"{len(halves[-1][1])}; give more text"
            )
    if min(len(half[2]) for half in halves) < LEAST:
        for half in halves:
            half[2] = half[2][:0]
    chosen = np.unique(np.concatenate([group for half in halves for group in half]))
    first, second = (tuple(np.searchsorted(chosen, group) for group in half) for half in halves)
    return at[chosen], (first, second)


def _alike(
    mine: npt.NDArray[np.int64], trait: npt.NDArray[np.int64], rest: npt.NDArray[np.bool_], rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Other words with the traits of the occurrences, up to OTHERS for each of them."""
    traits, counts = np.unique(trait[mine], return_counts=True)
    drawn = [
        _drawn(np.flatnonzero(rest & (trait == value)), OTHERS * count, rng)
        for value, count in zip(traits.tolist(), counts.tolist(), strict=True)
    ]
    return np.sort(np.concatenate(drawn))


def _drawn(rows: npt.NDArray[np.int64], most: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    return rows if len(rows) <= most else np.sort(rng.choice(rows, most, replace=False))


def _shuffled(half: Groups, rng: np.random.Generator) -> Groups:
    """The same groups, of which a word may be in two, with other units in each place."""
    units = np.unique(np.concatenate(half))
    mixed = rng.permutation(units)
    return tuple(mixed[np.searchsorted(units, group)] for group in half)


def _passages(data: Bytes, ends: npt.NDArray[np.int64], context: int) -> Tensor:
    return torch.from_numpy(data[ends[:, None] + np.arange(1 - context, 1)].astype(np.int64))


def _at_ends(model: BDH, data: Bytes, ends: npt.NDArray[np.int64], context: int, signal: str) -> Floats:
    """Activations at the last byte of each unit, (U, L*N)."""
    L, N = model.config.n_layer, model.config.n_neurons
    out = np.zeros((len(ends), L, N), dtype=np.float32)
    names = {f"layers.{level}.{signal}": level for level in range(L)}
    at_once = max(1, BLOCK_CELLS // (context * N))
    with evaluating(model):
        for start in range(0, len(ends), at_once):
            rows = slice(start, start + at_once)

            def keep(name: str, tensor: Tensor, rows: slice = rows) -> Tensor:
                if name in names:
                    out[rows, names[name]] = tensor[:, :, -1].flatten(1).float().cpu().numpy()
                return tensor

            model(_passages(data, ends[rows], context).to(model.encoder.device), tap=keep)
    flat: Floats = out.reshape(len(ends), L * N)
    return flat


def _passing(
    activation: Floats, halves: tuple[Groups, ...], alpha: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Floats]:
    """Pairs selected in the first half, pairs of these confirmed in the second, and the latter's q."""
    from scipy.stats import false_discovery_control

    p = _p(activation, halves[0])
    selected = np.flatnonzero(false_discovery_control(p) <= alpha)
    if not len(selected):
        return selected, selected, np.zeros(0)
    q = false_discovery_control(_p(activation[:, selected], halves[1]))
    return selected, selected[q <= alpha], q[q <= alpha]


def _p(activation: Floats, half: Groups) -> Floats:
    """The larger p of the comparisons, for each pair; 1 for what does not vary."""
    from scipy.stats import mannwhitneyu

    mine, *others = half
    p = np.zeros(activation.shape[1])
    for other in others:
        if len(other):
            for start in range(0, len(p), COLUMNS):
                c, r = activation[mine, start : start + COLUMNS], activation[other, start : start + COLUMNS]
                varies = np.concatenate([c, r]).std(0) > 0
                found = np.ones(c.shape[1])
                if varies.any():
                    found[varies] = mannwhitneyu(
                        c[:, varies], r[:, varies], alternative="greater", method="asymptotic", axis=0
                    ).pvalue
                p[start : start + COLUMNS] = np.maximum(p[start : start + COLUMNS], found)
    return p


def _signs(c: Floats, r: Floats) -> npt.NDArray[np.float64]:
    """Signs of all differences of two samples of one neuron (n1, n0); their mean is 2 AUROC - 1."""
    signs: npt.NDArray[np.float64] = np.sign(c[:, None] - r[None, :]).astype(np.float64)
    return signs


def _effect(c: Floats, r: Floats, rng: np.random.Generator) -> Effect:
    signs = _signs(c, r)
    n, m = signs.shape
    mine = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    other = rng.multinomial(m, np.full(m, 1 / m), size=RESAMPLES)
    low, high = np.quantile((mine @ signs * other).sum(1) / (n * m), (0.025, 0.975))
    return Effect(float(signs.mean()), float(low), float(high), float((r > 0).mean()))


def _neurons(
    model: BDH, data: Bytes, ends: npt.NDArray[np.int64], context: int, activation: Floats,
    halves: tuple[Groups, ...], passing: npt.NDArray[np.int64], q: Floats, contexts: int, rng: np.random.Generator,
) -> tuple[FoundNeuron, ...]:  # fmt: skip
    """Gather the passing pairs by neuron."""
    L, N = model.config.n_layer, model.config.n_neurons
    first, (mine, other, ending) = halves

    def selecting(pair: int) -> float:
        a = activation[:, pair]
        return min(float(_signs(a[first[0]], a[group]).mean()) for group in first[1:] if len(group))

    best: dict[int, tuple[float, int]] = {}
    for index, pair in enumerate(passing.tolist()):
        best[pair % N] = max(best.get(pair % N, (-2.0, 0)), (selecting(pair), index))
    found = []
    for neuron, (_, index) in best.items():
        a = activation[:, int(passing[index])]
        profile = (activation[:, level * N + neuron] for level in range(L))
        units = np.unique(np.concatenate([mine, other, ending]))
        strongest = units[np.argsort(-a[units], kind="stable")[:contexts]]
        found.append(
            FoundNeuron(
                neuron=neuron,
                level=int(passing[index]) // N,
                fires=float((a[mine] > 0).mean()),
                other=_effect(a[mine], a[other], rng),
                ending=_effect(a[mine], a[ending], rng) if len(ending) else None,
                q=float(q[index]),
                profile=tuple(float(_signs(one[mine], one[other]).mean()) for one in profile),
                contexts=tuple(context_at(data, int(ends[u]), float(a[u]), 28) for u in strongest if a[u] > 0),
            )
        )
    return tuple(sorted(found, key=lambda one: -min(one.other.low, one.ending.low if one.ending else 1.0)))
