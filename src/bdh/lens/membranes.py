"""Read a text token by token, and follow the membranes of a few spiking neurons and the gains of the heads.

Shapes: B batch, T tokens, L levels, H heads, K neurons per head, N = H*K.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bdh.lens.inspection import Pair
from bdh.mechanisms import BCMHomeostasis, LeakyIntegrateFire
from bdh.model import BDH, evaluating
from bdh.state import State

Series = tuple[float, ...]
MEMBRANES = 4
"""Neurons whose membranes are followed."""


@dataclass(frozen=True)
class MembraneTrace:
    """One spiking neuron over the tokens of the text."""

    level: int
    head: int
    index: int
    neuron: int
    """Global id, head*K + index."""
    threshold: float
    charge: Series
    """h, the membrane before it is compared with the threshold, per token."""
    membrane: Series
    """v, what the reset leaves, per token."""
    spikes: tuple[int, ...]
    """Tokens at which it spikes."""


def worth_following(model: BDH, idx: Tensor, first: Sequence[Pair] = (), count: int = MEMBRANES) -> list[Pair]:
    """Return (level, global id) of `count` neurons whose membranes show something.

    Of a neuron that spikes at every token, or once, there is nothing to see. So: those of `first` that spike three
    times or more in the text, then, from each level in turn, those that spike most often but at most at every third.
    """
    counts = torch.stack([level.to_dense()[0].sum(0).cpu() for level in model.get_spikes(idx)])  # (L, N)
    seldom = counts.masked_fill(counts > max(1, idx.shape[1] // 3), -1)
    ranked = seldom.argsort(dim=1, descending=True, stable=True)[:, : count + len(first)].T.tolist()
    lively = [pair for pair in first if counts[pair] >= 3]
    pairs = dict.fromkeys((*lively, *(pair for row in ranked for pair in enumerate(row))))
    return list(pairs)[:count]


class Reading:
    """One reading of a text (1, T), a token at a time, so that the state after each token can be looked at.

    Afterwards `spikes` has a sparse (1, T, N) of each level, `membranes` the traces of the (level, neuron) asked for,
    and `gains` those of the neuromodulation as [level][head][token]; each is empty where the mechanism is off.
    """

    def __init__(self, model: BDH, idx: Tensor, neurons: Sequence[Pair]) -> None:
        self._model, self._seen = model, dict[str, Tensor]()
        levels = range(model.config.n_layer)
        spikes: list[list[Tensor]] = [[] for _ in levels]
        gains: list[list[Tensor]] = [[] for _ in levels]
        charge: dict[Pair, list[float]] = {pair: [] for pair in neurons}
        membrane: dict[Pair, list[float]] = {pair: [] for pair in neurons}
        state: State | None = None
        with evaluating(model):
            for t in range(idx.shape[1]):
                before = state
                # as advance, but the memory is written to in place: what is looked at of `before` is not part of it
                token = idx[:, t : t + 1]
                _, state = model.walk(token, before, self._keep, wants_state=True, owns_state=True)
                assert state is not None
                for level in levels:
                    if model.config.lif.on:
                        now = self._seen[f"layers.{level}.spikes"].transpose(1, 2).flatten(2)
                        spikes[level].append(now.cpu().to_sparse())
                    gains[level] += self._gain(level, before)
                for pair in neurons:
                    charge[pair].append(self._charge(pair, before))
                    membrane[pair].append(_of(state, pair, "membrane", model.config.neurons_per_head))
        self.spikes = [torch.cat(level, 1) for level in spikes if level]
        self.membranes = tuple(self._trace(pair, charge[pair], membrane[pair]) for pair in neurons)
        self.gains = tuple(tuple(map(tuple, torch.stack(level, 1).tolist())) for level in gains if level)

    def _keep(self, name: str, tensor: Tensor) -> Tensor:
        self._seen[name] = tensor
        return tensor

    def _entering(self, level: int) -> Tensor:
        return self._seen["embed" if level == 0 else f"layers.{level - 1}.v"]

    def _gain(self, level: int, before: State | None) -> list[Tensor]:
        part = self._model.parts.neuromodulation
        if part is None:
            return []
        mean = None if before is None else before.mechanisms[level]["mean"]
        return [part(self._entering(level), mean)[0][0, :, 0, 0].float()]  # (H,)

    def _drive(self, pair: Pair) -> float:
        level, (head, index) = pair[0], divmod(pair[1], self._model.config.neurons_per_head)
        parts = self._model.parts
        # one neuron of each head instead of all
        drive = parts.drive(self._entering(level), self._model.encoder[:, :, index, None])[0, head, 0, 0].item()
        if parts.bcm is None:
            return drive
        part = parts.bcm[level]
        assert isinstance(part, BCMHomeostasis)
        return drive - part.threshold()[head, index].item()

    def _charge(self, pair: Pair, before: State | None) -> float:
        # h cannot be told from v after a hard reset, but follows from v one token before
        part, K = self._neurons(pair[0]), self._model.config.neurons_per_head
        if before is not None and _of(before, pair, "refractory", K):
            return part.v_reset
        v = part.v_rest if before is None else _of(before, pair, "membrane", K)
        alpha = math.exp(-1 / part.tau[pair[1] // K if len(part.tau) > 1 else 0])
        return alpha * v + (1 - alpha) * (part.v_rest + self._drive(pair))

    def _trace(self, pair: Pair, charge: list[float], membrane: list[float]) -> MembraneTrace:
        level, neuron = pair
        H, K = self._model.config.n_head, self._model.config.neurons_per_head
        head, index = divmod(neuron, K)
        threshold = self._neurons(level).threshold.expand(H, K)[head, index].item()
        at = self.spikes[level].to_dense()[0, :, neuron].nonzero()[:, 0].tolist()
        return MembraneTrace(level, head, index, neuron, threshold, tuple(charge), tuple(membrane), tuple(at))

    def _neurons(self, level: int) -> LeakyIntegrateFire:
        assert self._model.parts.lif is not None
        part = self._model.parts.lif[level]
        assert isinstance(part, LeakyIntegrateFire)
        return part


def _of(state: State, pair: Pair, name: str, K: int) -> float:
    level, (head, index) = pair[0], divmod(pair[1], K)
    return state.mechanisms[level][name][0, head, index].item()
