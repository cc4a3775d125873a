"""The probe: select units on one half of a concept, test them on the other, and do the same where nothing can be found.

Shapes: W word pairs, T templates, U units, R repetitions, k candidates.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bdh.lens.memory import check_neurons
from bdh.lens.probing.ablation import Predictions
from bdh.lens.probing.concept import Concept, Half, Sentence
from bdh.lens.probing.findings import Causal, Finding, Nulls, Probe, Protocol, together
from bdh.lens.probing.ranks import (
    Array,
    Ranked,
    all_swaps,
    dominance,
    false_discovery_rates,
    interval,
    midranks,
    random_swaps,
)
from bdh.lens.probing.units import Ids, Neurons, Synapses, Units, padded
from bdh.model import BDH

Kind = Literal["neurons", "synapses"]
Reader = Callable[[BDH, Sequence[Sentence]], Units]

_ROUNDING = 1e-12
_POOL = 4_000
"""Most units that matched ones are looked for among."""
_ABLATION_TEMPLATES = 2
"""Templates of half b that are read without a unit, by it and each of its controls: more would take long."""


def probe(
    model: BDH,
    concept: Concept,
    kind: Kind = "neurons",
    *,
    signal: str = "x_sparse",
    levels: Sequence[int] | None = None,
    neurons: Sequence[int] | None = None,
    protocol: Protocol | None = None,
    progress: Callable[[str], object] = str,
) -> Probe:
    """Find the neurons, or synapses, that stand for a concept, and try to refute each of them.

    Half a of the concept selects `protocol.candidates` units, of all levels, by how much larger they are for the
    concept. Half b, with other words in other sentences, tests them: a one-sided Mann-Whitney U of its sentences,
    corrected for ties, and the same U with the words of pairs swapped, which is exact where sentences share words; each
    with the false discovery rate over all that were tested (Benjamini-Hochberg). See `findings.CRITERIA` for what else
    a unit has to pass, `Units` for its value, `probe_together` for several concepts.

    Args:
        model: a model of bytes; it is not changed.
        concept: what to look for.
        kind: "neurons" or "synapses".
        signal: of neurons: x_sparse, y_sparse or xy_sparse.
        levels: which levels; None is all.
        neurons: test these, by global id, at each of the levels, and select none.
        protocol: thresholds and seeds; None is those to publish with.
        progress: called with what is being done.

    Raises:
        ValueError: an unknown kind or signal, a level or neuron that the model does not have, no byte vocabulary,
            synapses of more levels than memory holds, or of a memory that pairs of tokens write.

    Examples:
        >>> from bdh import BDHConfig
        >>> model = BDH.from_seed(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4), seed=0)
        >>> quick = Protocol(candidates=4, shuffles=10, inits=1, matched=20)
        >>> found = probe(model, Concept.load("currency"), protocol=quick)
        >>> len(found.findings), found.passing
        (4, ())
    """
    _check(model, kind, neurons)
    rules = protocol or Protocol()
    chosen = tuple(range(model.config.n_layer)) if levels is None else tuple(sorted(set(levels)))
    if not chosen:
        raise ValueError("levels: expected at least one level, or None for all")
    read: Reader = partial(Synapses, levels=chosen)
    if kind == "neurons":
        read = partial(Neurons, levels=chosen, signal=signal)
    asked = dict.fromkeys(neurons or ())
    given = [level * model.config.n_neurons + neuron for level in chosen for neuron in asked] or None
    a, b = concept.a, concept.b
    generator = np.random.default_rng(rules.seed)
    swaps = all_swaps(len(b.pairs), generator)
    swapped = [random_swaps(rules.shuffles, len(half.pairs), generator) for half in (a, b)]

    progress(f"{concept.name}: reading half a, selecting {kind}")
    first = read(model, a.sentences())
    picked = select(first, a, np.vstack((np.ones(len(a.pairs)), swapped[0])), rules.candidates, given)
    before = _ranked(first, a, picked[0])
    n_units = first.count if given is None else len(given)
    del first  # of synapses it is large

    progress(f"{concept.name}: reading half b, testing, and with shuffled labels")
    second = read(model, b.sentences())
    tests = Tests.of(_ranked(second, b, picked[0]), swaps)
    shuffled = _shuffled(second, b, picked[1:], swapped[1], swaps, rules)
    progress(f"{concept.name}: {rules.inits} untrained models")
    seeds = range(rules.seed, rules.seed + rules.inits)
    init = [_untrained(model, concept, read, swaps, seed, rules, given) for seed in seeds]
    progress(f"{concept.name}: {kind} that are as active")
    near = _matched(second, picked[0], rules.matched, generator)  # (k, M)
    peers = Tests.of(_ranked(second, b, near.ravel()), swaps, sets=near.shape)
    nulls = Nulls(
        shuffled=float(np.mean(shuffled)),
        shuffled_most=max(shuffled),
        init=float(np.mean([one.passing(rules).sum() for one in init])),
        init_effect=max(float(one.effect.max()) for one in init),
        matched=float(peers.passing(rules).sum(0).mean()),
    )
    control = read(model, concept.control_sentences())
    found = _findings(tests, before.effect(before.u()), (second, control), concept, picked[0], peers, nulls, rules)
    order = sorted(range(len(found)), key=lambda n: (len(found[n].failed(rules)), -found[n].effect))
    predictions = Predictions(model, replace(b, templates=b.templates[:_ABLATION_TEMPLATES]).sentences())
    for at, n in enumerate(order[: rules.ablated], 1):
        progress(f"{concept.name}: taking away {found[n].unit} ({at} of {rules.ablated}), and its controls")
        causal = _causal(predictions, second, int(picked[0][n]), near[n][: rules.controls], signal)
        found[n] = replace(found[n], causal=causal)
    return Probe(
        concept=concept.name,
        description=concept.description,
        sha256=concept.sha256,
        kind=kind,
        signal=signal if kind == "neurons" else "sigma",
        levels=chosen,
        n_units=n_units,
        n_sentences=(len(a.pairs) * len(a.templates), len(b.pairs) * len(b.templates)),
        n_words=(len(a.pairs), len(b.pairs)),
        protocol=rules,
        findings=tuple(found[n] for n in order),
        n_discovered=int(tests.passing(rules).sum()),
        nulls=nulls,
        n_tests=len(found),
    )


def probe_together(model: BDH, concepts: Sequence[Concept], kind: Kind = "neurons", **more: Any) -> tuple[Probe, ...]:
    """Probe several concepts, with false discovery rates over the tests of all of them.

    Args:
        model: as in `probe`.
        concepts: one or more.
        kind: as in `probe`.
        **more: as in `probe`.
    """
    return together([probe(model, concept, kind, **more) for concept in concepts])


def _check(model: BDH, kind: str, neurons: Sequence[int] | None) -> None:
    if kind not in ("neurons", "synapses"):
        raise ValueError(f"kind={kind!r}: expected 'neurons' or 'synapses'")
    if importlib.util.find_spec("scipy") is None:
        raise ValueError('probing needs scipy: pip install "bdh[lens]"')
    model.as_ids("")  # refuses a vocabulary that is not of bytes
    if neurons is not None:
        if kind == "synapses" or not neurons:
            raise ValueError(f"neurons={list(neurons)}: expected at least one neuron to test, and kind 'neurons'")
        check_neurons(model, neurons)


def _findings(
    tests: Tests, effect_a: Array, units: tuple[Units, Units], concept: Concept, picked: Ids, peers: Tests,
    nulls: Nulls, rules: Protocol,
) -> list[Finding]:  # fmt: skip
    """All that is known of the picked units before one of them is taken away; units of half b and of the control."""
    second, control = units
    values = _shaped(second, concept.b, picked)  # (2, W, T, U)
    others = control.values(picked).reshape(len(concept.control), len(concept.b.templates), -1)
    lexical = dominance(values[0], others)
    draw = partial(interval, generator=np.random.default_rng(rules.seed), resamples=rules.resamples)
    ends, lexical_ends = draw(dominance(*values), paired=True), draw(lexical, paired=False)
    n_peers = peers.effect.shape[1]
    p_matched = (1 + (peers.effect >= tests.effect[:, None] - _ROUNDING).sum(1)) / (1 + n_peers)
    activity = second.activity(picked)
    return [
        Finding(
            unit=second.unit(int(number)),
            effect_a=float(effect_a[n]),
            u=float(tests.u[n]),
            effect=float(tests.effect[n]),
            low=float(ends[0][n]),
            high=float(ends[1][n]),
            p=float(tests.p[n]),
            q=float(tests.q[n]),
            p_words=float(tests.p_words[n]),
            q_words=float(tests.q_words[n]),
            lexical=float(lexical[..., n].mean()),
            lexical_low=float(lexical_ends[0][n]),
            lexical_high=float(lexical_ends[1][n]),
            activity=float(activity[n]),
            p_matched=float(p_matched[n]),
            beats_init=bool(tests.effect[n] > nulls.init_effect + _ROUNDING),
            causal=None,
        )
        for n, number in enumerate(picked)
    ]


def select(units: Units, half: Half, signs: Array, k: int, given: Sequence[int] | None = None) -> Ids:
    """Return the numbers of the k units that are most larger for the concept than for the contrast.

    Args:
        units: values of the sentences of the half.
        half: the half.
        signs: (R, W) 1 for word pairs as they are, -1 for swapped ones.
        k: how many.
        given: numbers of units to return instead.

    Returns:
        (R, k), the best first.
    """
    R = len(signs)
    if given is not None:
        return np.tile(np.array(given), (R, 1))
    best, ids = np.full((R, 0), -np.inf), np.zeros((R, 0), dtype=np.int64)
    for first, values in units.blocks():
        shape = (2, len(half.pairs), len(half.templates), values.shape[1])
        scores = signs @ units.differences(values.reshape(shape))  # (R, n)
        few = min(k, scores.shape[1])
        at = np.argpartition(-scores, few - 1, axis=1)[:, :few]
        best = np.hstack((best, np.take_along_axis(scores, at, 1)))
        ids = np.hstack((ids, first + at))
        kept = np.argsort(-best, axis=1, kind="stable")[:, :k]
        best, ids = np.take_along_axis(best, kept, 1), np.take_along_axis(ids, kept, 1)
    return ids


@dataclass(frozen=True, eq=False)
class Tests:
    """Both tests of some sets of units; false discovery rates go over a set. Arrays (sets..., U)."""

    u: Array
    effect: Array
    p: Array
    q: Array
    p_words: Array
    q_words: Array

    @classmethod
    def of(cls, ranked: Ranked, swaps: Array, *, u: Array | None = None, sets: tuple[int, ...] | None = None) -> Tests:
        """Return the tests of ranks.

        Args:
            ranked: of U units.
            swaps: (R, W), the ways of swapping word pairs.
            u: (U,) what is to be tested instead of their U.
            sets: (k, M), where the units are k times M and each column of k makes a set.
        """
        u = ranked.u() if u is None else u
        shape = sets or u.shape
        effect, p, p_words = (
            values.reshape(shape) for values in (ranked.effect(u), ranked.p(u), ranked.p_of_swaps(u, swaps))
        )
        q, q_words = (false_discovery_rates(values.T).T for values in (p, p_words))  # over a column, or all
        return cls(u.reshape(shape), effect, p, q, p_words, q_words)

    def passing(self, rules: Protocol) -> npt.NDArray[np.bool_]:
        """Return which pass effect and both false discovery rates."""
        return (self.effect >= rules.effect) & (self.q <= rules.alpha) & (self.q_words <= rules.alpha)


def _shaped(units: Units, half: Half, ids: Ids) -> npt.NDArray[np.float32]:
    return units.values(ids).reshape(2, len(half.pairs), len(half.templates), len(ids))


def _ranked(units: Units, half: Half, ids: Ids) -> Ranked:
    return Ranked(midranks(_shaped(units, half, ids)))


def _shuffled(units: Units, half: Half, picked: Ids, signs: Array, swaps: Array, rules: Protocol) -> list[int]:
    """How many units pass in each repetition with shuffled labels."""
    numbers, at = np.unique(picked, return_inverse=True)
    ranks = _ranked(units, half, numbers).ranks
    counts = []
    for columns, sign in zip(at.reshape(picked.shape), signs, strict=True):
        ranked = Ranked(ranks[..., columns])
        counts.append(int(Tests.of(ranked, swaps, u=ranked.u(sign[None])[0]).passing(rules).sum()))
    return counts


def _untrained(
    model: BDH, concept: Concept, read: Reader, swaps: Array, seed: int, rules: Protocol, given: Sequence[int] | None
) -> Tests:
    """Selection and test in a model with random weights."""
    fresh = BDH.from_seed(model.config, seed).to(model.encoder)
    _, idx, _ = next(padded(fresh, concept.a.sentences()))
    fresh.calibrate(idx)
    as_is = np.ones((1, len(concept.a.pairs)))
    picked = select(read(fresh, concept.a.sentences()), concept.a, as_is, rules.candidates, given)[0]
    return Tests.of(_ranked(read(fresh, concept.b.sentences()), concept.b, picked), swaps)


def _matched(units: Units, picked: Ids, n: int, generator: np.random.Generator) -> Ids:
    """The n units (k, n) of the level of each that are nearest in activity and were not picked themselves."""
    found = []
    pools: dict[range, tuple[Ids, Array]] = {}
    for number, activity in zip(picked, units.activity(picked), strict=True):
        level = units.level_of(int(number))
        if level not in pools:
            some = np.arange(level.start, level.stop)
            if len(some) > _POOL:
                some = level.start + generator.choice(len(some), _POOL, replace=False)
            pool = np.setdiff1d(some, picked)
            if not len(pool):
                raise ValueError(f"all {len(level):,} units of a level are tested: expected some to compare with")
            pools[level] = pool, units.activity(pool)
        pool, active = pools[level]
        found.append(pool[np.argsort(np.abs(active - activity), kind="stable")[:n]])
    fewest = min(map(len, found))
    return np.array([generator.permutation(near[:fewest]) for near in found])


def _causal(predictions: Predictions, units: Units, number: int, controls: Ids, signal: str) -> Causal:
    """What taking a unit away changes; of the controls only as many as it takes to refute it are taken away."""
    change = predictions.without(units.unit(number).removal(signal))
    others: list[float] = []
    for one in controls:
        others.append(predictions.without(units.unit(int(one)).removal(signal)).effect())
        if others[-1] >= change.effect():
            break
    p = (1 + sum(other >= change.effect() for other in others)) / (1 + len(others))
    return Causal(change.effect(), change.gap(), change.loss_gap(), max(others), p, len(others))
