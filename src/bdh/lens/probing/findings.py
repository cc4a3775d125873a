"""What a probe finds, as plain values: every tested unit with its numbers and what it failed, and the nulls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from bdh.lens.probing.ranks import false_discovery_rates
from bdh.lens.probing.units import Unit

CRITERIA = {
    "effect": "rank-biserial of half b at least {effect}, and its interval above 0",
    "fdr": "false discovery rate of the Mann-Whitney test at most {alpha}, over everything tested",
    "words": "the same for the test that swaps the words of pairs",
    "lexical": "larger for the concept than for words with its letters: interval of the rank-biserial above 0",
    "init": "effect larger than of every unit that {inits} untrained models select in the same way",
    "matched": "effect larger than of all but {alpha:.0%} of the {matched} units of its level that are about as active",
    "causal": "taken away, it changes the next bytes of the concept more than those of the contrast, and with a larger "
    "effect than each of {controls} units that are about as active",
}
"""What a unit has to pass, by name."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The thresholds and seeds of a probe, fixed before it looks; the defaults are those to publish with."""

    candidates: int = 20
    """Units that half a selects, all of which half b tests."""
    effect: float = 0.5
    """Least rank-biserial correlation: three quarters of all pairs of sentences are in the right order."""
    alpha: float = 0.05
    """Highest false discovery rate, and highest share of matched units with as large an effect."""
    shuffles: int = 200
    """Repetitions of selection and test with the words of pairs swapped at random."""
    inits: int = 3
    """Untrained models of the same shape."""
    matched: int = 100
    """Units of the same level and nearest activity that a unit is compared with."""
    ablated: int = 5
    """Units that are taken away to see what it does."""
    controls: int = 20
    """Of the matched units, those that are taken away too."""
    resamples: int = 2000
    """Draws of a bootstrap interval."""
    seed: int = 0
    """Of shuffles, draws and untrained models."""

    def __post_init__(self) -> None:
        low = [name for name, value in asdict(self).items() if name not in ("alpha", "effect", "seed") and value < 1]
        if low or not 0 < self.alpha < 1:
            raise ValueError(f"protocol: expected counts >= 1 and 0 < alpha < 1, got {self}")

    def criteria(self) -> dict[str, str]:
        """Return what a unit has to pass, in words."""
        return {name: words.format(**asdict(self)) for name, words in CRITERIA.items()}


@dataclass(frozen=True)
class Causal:
    """What taking a unit away changes in half b: D is the divergence of the next bytes, without it from with it."""

    effect: float
    """Rank-biserial correlation of D, of sentences of the concept against those of the contrast."""
    divergence: float
    """Mean D of the concept minus that of the contrast, nats per byte."""
    loss: float
    """Mean growth of the loss of the concept minus that of the contrast, nats per byte."""
    largest_control: float
    """Largest `effect` of a control."""
    p: float
    """Share of controls, and the unit, with an effect as large."""
    n_controls: int
    """Controls that were taken away: all, or up to the first with an effect as large."""


@dataclass(frozen=True)
class Finding:
    """A unit that half a selected, as half b shows it."""

    unit: Unit
    effect_a: float
    """Rank-biserial correlation on half a, where it was selected: too large for that reason."""
    u: float
    """Mann-Whitney U of half b."""
    effect: float
    """Rank-biserial correlation on half b, 2 U / n^2 - 1."""
    low: float
    """Ends of its 95 % interval."""
    high: float
    p: float
    """Of the one-sided Mann-Whitney test, sentences taken as independent."""
    q: float
    p_words: float
    """Of the test that swaps word pairs."""
    q_words: float
    lexical: float
    """Rank-biserial correlation of the concept against the lexical control."""
    lexical_low: float
    lexical_high: float
    activity: float
    """Share of bytes at which a neuron fires; mean strength of a synapse."""
    p_matched: float
    """Share of units as active, and the unit, with an effect as large."""
    beats_init: bool
    causal: Causal | None
    """None where it was not taken away."""

    def failed(self, protocol: Protocol) -> tuple[str, ...]:
        """Return the names of the criteria that it does not pass; one that was not tried is not passed."""
        passed = {
            "effect": self.effect >= protocol.effect and self.low > 0,
            "fdr": self.q <= protocol.alpha,
            "words": self.q_words <= protocol.alpha,
            "lexical": self.lexical_low > 0,
            "init": self.beats_init,
            "matched": self.p_matched <= protocol.alpha,
            "causal": self.causal is not None and self.causal.p <= protocol.alpha and self.causal.divergence > 0,
        }
        return tuple(name for name in CRITERIA if not passed[name])


@dataclass(frozen=True)
class Nulls:
    """How many units pass effect and both false discovery rates, where there is nothing to find."""

    shuffled: float
    """Mean count over shuffled labels."""
    shuffled_most: int
    """Largest of them."""
    init: float
    """Mean count over untrained models."""
    init_effect: float
    """Largest effect in an untrained model."""
    matched: float
    """Mean count over sets of matched units."""


@dataclass(frozen=True)
class Probe:
    """A concept in a model: what was tested, what it showed, and what to compare that with."""

    concept: str
    description: str
    sha256: str
    """Of the concept's file."""
    kind: str
    signal: str
    levels: tuple[int, ...]
    n_units: int
    """Units that half a chose from."""
    n_sentences: tuple[int, int]
    """Sentences of the concept, and as many of the contrast, in half a and in half b."""
    n_words: tuple[int, int]
    """Word pairs of the halves."""
    protocol: Protocol
    findings: tuple[Finding, ...]
    """From the best to the worst: those that pass first, then by effect."""
    n_discovered: int
    """Units that pass effect and both false discovery rates, these over the tests of this concept: as the nulls."""
    nulls: Nulls
    n_tests: int
    """Tests that the false discovery rates go over."""

    @property
    def passing(self) -> tuple[Finding, ...]:
        """The units that pass everything."""
        return tuple(finding for finding in self.findings if not finding.failed(self.protocol))

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary that `json.dumps` takes."""
        values = asdict(self) | {"criteria": self.protocol.criteria()}
        values["findings"] = [
            asdict(finding) | {"failed": finding.failed(self.protocol), "passes": not finding.failed(self.protocol)}
            for finding in self.findings
        ]
        return values


def together(probes: Sequence[Probe]) -> tuple[Probe, ...]:
    """Return probes whose false discovery rates go over all of their tests at once.

    Whoever asks about ten concepts and reports those that pass has made the tests of all ten.
    """
    findings = [finding for probe in probes for finding in probe.findings]
    if not findings:
        return tuple(probes)
    q, q_words = (false_discovery_rates(np.array([getattr(f, name) for f in findings])) for name in ("p", "p_words"))
    adjusted = iter(
        replace(finding, q=float(one), q_words=float(other))
        for finding, one, other in zip(findings, q, q_words, strict=True)
    )
    return tuple(
        replace(probe, findings=tuple(next(adjusted) for _ in probe.findings), n_tests=len(findings))
        for probe in probes
    )
