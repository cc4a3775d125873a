"""What is probed: the value of every neuron, or of every synapse, for each of some sentences.

A unit is a pair of a level and a neuron, or of a level and a synapse from a pair of neurons to a gate.

Shapes: S sentences, T tokens, L levels, H heads, K neurons per head, N neurons in all, D embedding, P units.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bdh.generate import prefill
from bdh.lens.interventions import Ablate, Intervention
from bdh.lens.memory import check_level, receivers, refuse_pairing, stored_rows
from bdh.lens.names import check_signal
from bdh.lens.probing.concept import Sentence
from bdh.lens.probing.ranks import Array, midranks
from bdh.lens.surgery import ScaleSynapse
from bdh.lens.texts import BLOCK_CELLS
from bdh.model import BDH, evaluating

Values = npt.NDArray[Any]
Ids = npt.NDArray[np.int64]

PASS_CELLS = 2**21
"""Activities (tokens x neurons) of one level that are made at once: few, to stay near the processor."""
MEMORY = 6 * 2**30
"""Bytes that the memories of the sentences of one half may take."""


@dataclass(frozen=True)
class Unit:
    """What was tested at a level: a neuron, or the synapse to it from a pair of neurons."""

    level: int
    neuron: int
    """Global id; of the gate, where it is a synapse."""
    source: int | None = None
    """First neuron of the pair that the synapse comes from, by global id; the other is `source + 1`."""

    def __str__(self) -> str:
        if self.source is None:
            return f"neuron {self.neuron}, level {self.level}"
        return f"synapse {self.source},{self.source + 1} -> {self.neuron}, level {self.level}"

    def removal(self, signal: str) -> list[Intervention]:
        """Return the interventions that take it away: the neuron is silenced, the synapse is cut."""
        if self.source is None:
            return [Ablate(neurons=[self.neuron], layers=[self.level], signal=signal)]
        pair = (self.source, self.source + 1)
        return [ScaleSynapse(self.neuron, source, factor=0.0, layers=[self.level]) for source in pair]


class Units(ABC):
    """The values of all units of a kind for some sentences.

    Args:
        model: a model of bytes.
        sentences: S of them.
        levels: which levels.
    """

    kind: ClassVar[str]

    def __init__(self, model: BDH, sentences: Sequence[Sentence], levels: Sequence[int]) -> None:
        for level in levels:
            check_level(model, level, "levels")
        self.model, self.sentences, self.levels = model, sentences, tuple(levels)

    @property
    @abstractmethod
    def count(self) -> int:
        """How many units there are at these levels."""

    @abstractmethod
    def blocks(self) -> Iterator[tuple[int, Values]]:
        """Yield the number of a unit, and the values (S, P) of it and the units after it, until all had their turn."""

    @abstractmethod
    def values(self, units: Ids) -> Values:
        """Return the values (S, P) of units."""

    @abstractmethod
    def activity(self, units: Ids) -> Array:
        """Return how active units are over all sentences (P,), whatever the concept: what nulls are matched by."""

    @abstractmethod
    def unit(self, number: int) -> Unit:
        """Return which unit has a number."""

    @staticmethod
    @abstractmethod
    def differences(values: Values) -> Array:
        """Return how much more of a unit there is on the concept's side of each word pair, (2, W, T, P) to (W, P).

        In a measure whose sum over word pairs orders the units for selection.
        """

    def level_of(self, unit: int) -> range:
        """Return the numbers of all units of the level that a unit is of."""
        size = self.count // len(self.levels)
        return range(unit // size * size, (unit // size + 1) * size)


class Neurons(Units):
    """Neurons; the value is the largest activity from the last byte of the word to the end of the sentence."""

    kind = "neurons"

    def __init__(self, model: BDH, sentences: Sequence[Sentence], levels: Sequence[int], signal: str) -> None:
        super().__init__(model, sentences, levels)
        check_signal(signal)
        L, N = model.config.n_layer, model.config.n_neurons
        names = {f"layers.{level}.{signal}": level for level in self.levels}
        self._largest = np.zeros((len(sentences), L * N), dtype=np.float32)
        fires, bytes_read = np.zeros(L * N), 0
        for rows, idx, inside in padded(model, sentences):
            bytes_read += int(inside.sum())

            def pool(name: str, tensor: Tensor, rows: slice = rows, inside: Tensor = inside) -> Tensor:
                if name in names:
                    at = slice(names[name] * N, (names[name] + 1) * N)
                    seen = tensor.float() * inside[:, None, :, None]  # activity is not negative
                    self._largest[rows, at] = seen.amax(2).flatten(1).cpu().numpy()
                    fires[at] += (seen > 0).sum((0, 2)).flatten().cpu().numpy()
                return tensor

            with evaluating(model):
                model(idx, tap=pool)
        self._rate = fires / bytes_read

    @property
    def count(self) -> int:
        """How many neurons there are at all of these levels."""
        return len(self.levels) * self.model.config.n_neurons

    def blocks(self) -> Iterator[tuple[int, Values]]:
        """Yield each level."""
        N = self.model.config.n_neurons
        for level in self.levels:
            yield level * N, self._largest[:, level * N : (level + 1) * N]

    def values(self, units: Ids) -> Values:
        """Return the values (S, P)."""
        return self._largest[:, units]

    def activity(self, units: Ids) -> Array:
        """Return the share of bytes, from the last of the word on, at which they fire."""
        return self._rate[units]

    def unit(self, number: int) -> Unit:
        """Return level and neuron."""
        return Unit(*divmod(int(number), self.model.config.n_neurons))

    @staticmethod
    def differences(values: Values) -> Array:
        """Return differences of ranks: their sum orders units by the rank-biserial correlation."""
        concept, contrast = midranks(values).sum(2)
        return np.asarray(concept - contrast)


class Synapses(Units):
    """Synapses; the value is how strong what the word and the rest of the sentence wrote makes them.

        sqrt(s(i, 2k)^2 + s(i, 2k + 1)^2),    s = sigma at the end of the sentence - sigma before the word

    with both sigma in the frame of position 0: as `bdh.lens.pair_strength`, but of what was written from the word on.
    """

    kind = "synapses"

    def __init__(self, model: BDH, sentences: Sequence[Sentence], levels: Sequence[int]) -> None:
        super().__init__(model, sentences, levels)
        refuse_pairing(model, "probing synapses")
        c = model.config
        if (needed := 4 * len(sentences) * len(self.levels) * c.n_neurons * c.n_embd) > MEMORY:
            raise ValueError(
                f"synapses at {len(self.levels)} levels need {needed:,} bytes for {len(sentences)} sentences: expected "
                f"at most {MEMORY:,}; choose fewer levels"
            )
        shape = (len(sentences), c.n_neurons, c.n_embd)
        self._written = {level: torch.empty(shape, device=model.encoder.device) for level in self.levels}
        everyone = torch.arange(c.n_neurons, device=model.encoder.device)

        def form(row: int) -> tuple[int, int]:
            return sentences[row].start, len(sentences[row].data)

        # a state has no padding: only sentences of one form are read together
        for (start, _), group in groupby(sorted(range(len(sentences)), key=form), key=form):
            rows = list(group)
            idx = torch.tensor([list(sentences[row].data) for row in rows], device=model.encoder.device)
            _, before = prefill(model, idx[:, :start])
            _, after = prefill(model, idx[:, start:], before)
            for level in self.levels:
                now, then = (stored_rows(model, state, level, everyone) for state in (after, before))
                self._written[level][rows] = (now - then).float()

    @property
    def count(self) -> int:
        """How many gates times pairs of neurons of their heads there are, at all of these levels."""
        return len(self.levels) * self.model.config.n_neurons * (self.model.config.neurons_per_head // 2)

    def blocks(self) -> Iterator[tuple[int, Values]]:
        """Yield some gates of one head, each with all pairs of neurons of the head."""
        N, K = self.model.config.n_neurons, self.model.config.neurons_per_head
        step = max(1, 4 * BLOCK_CELLS // (len(self.sentences) * K))
        for level in self.levels:
            for head in range(self.model.config.n_head):
                rows = self._written[level][:, head * K : (head + 1) * K]  # (S, K, D)
                for first in range(head * K, (head + 1) * K, step):
                    gates = torch.arange(first, min(first + step, (head + 1) * K), device=rows.device)
                    received = receivers(self.model, gates).detach().to(rows)  # (n, D)
                    even, odd = (received @ rows[:, n::2].mT for n in (0, 1))  # (S, n, K/2)
                    yield (level * N + first) * (K // 2), torch.hypot(even, odd).flatten(1).cpu().numpy()

    def values(self, units: Ids) -> Values:
        """Return the values (S, P)."""
        found = np.empty((len(self.sentences), len(units)), dtype=np.float32)
        D = self.model.config.n_embd
        step = max(1, BLOCK_CELLS // (len(self.sentences) * D))
        places = [self.unit(number) for number in units]
        for level in self.levels:
            columns = [at for at, place in enumerate(places) if place.level == level]
            for start in range(0, len(columns), step):
                here = columns[start : start + step]
                gates, sources = (
                    torch.tensor([getattr(places[at], which) for at in here], device=self._written[level].device)
                    for which in ("neuron", "source")
                )
                received = receivers(self.model, gates).detach().to(self._written[level])
                both = [(self._written[level][:, sources + n] * received).sum(-1) for n in (0, 1)]
                found[:, here] = torch.hypot(*both).cpu().numpy()
        return found

    def activity(self, units: Ids) -> Array:
        """Return their mean values."""
        mean: Array = self.values(units).mean(0, dtype=np.float64)
        return mean

    def unit(self, number: int) -> Unit:
        """Return level, gate and pair."""
        N, K = self.model.config.n_neurons, self.model.config.neurons_per_head
        row, pair = divmod(int(number), K // 2)
        level, gate = divmod(row, N)
        return Unit(level, gate, gate // K * K + 2 * pair)

    @staticmethod
    def differences(values: Values) -> Array:
        """Return differences in standard deviations: ranks of so many units would take too long to find."""
        concept, contrast = values.sum(2, dtype=np.float64)
        spread = values.std((0, 1, 2))
        return np.asarray((concept - contrast) / np.where(spread > 0, spread, 1))


def padded(model: BDH, sentences: Sequence[Sentence]) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield rows, ids (n, T) filled up at their ends, and what is from the last byte of the word on, (n, T).

    What comes later changes nothing before it, so that the filling is never seen.
    """
    T = max(len(sentence.data) for sentence in sentences)
    step = max(1, PASS_CELLS // (T * model.config.n_neurons))
    device = model.encoder.device
    for start in range(0, len(sentences), step):
        some = sentences[start : start + step]
        idx = torch.tensor([list(sentence.data.ljust(T, b"\n")) for sentence in some], device=device)
        at = torch.arange(T, device=device)
        first = torch.tensor([[sentence.end] for sentence in some], device=device)
        last = torch.tensor([[len(sentence.data)] for sentence in some], device=device)
        yield slice(start, start + len(some)), idx, (first <= at) & (at < last)
