"""How the neurons of each level fire: rate, who never does, who always does, and how far firing spreads in time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bdh.mechanisms import branching_ratio, dead_fraction, saturated_fraction, spike_counts
from bdh.model import BDH, evaluating

Firing = dict[str, list[Any]]
"""Per level: "rate", "dead" and "saturated" are shares, "branching" is [m, low, high] or None."""

_STEPS = 30


class FiringTap:
    """A tap that counts who fires: the spikes of a spiking model, else where x > 0. Counts add up over calls."""

    def __init__(self, model: BDH) -> None:
        self._signal = ".spikes" if model.config.lif.on else ".x_sparse"
        self._fired: dict[str, Tensor] = {}
        self._counts: dict[str, list[Tensor]] = {}
        self._tokens = 0

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """Count, and hand the tensor on unchanged."""
        if name.endswith(self._signal):
            fired = (tensor > 0).sum((0, 2))  # (H, K)
            self._fired[name] = self._fired.get(name, 0) + fired
            self._counts.setdefault(name, []).append(spike_counts(tensor).cpu())
        elif name == "embed":
            self._tokens += tensor.shape[0] * tensor.shape[1]
        return tensor

    def result(self) -> Firing:
        """Return what was counted so far."""
        rates = [fired / self._tokens for fired in self._fired.values()]
        return {
            "rate": [rate.mean().item() for rate in rates],
            "dead": [dead_fraction(rate).item() for rate in rates],
            "saturated": [saturated_fraction(rate).item() for rate in rates],
            "branching": [_branching(torch.cat(counts)) for counts in self._counts.values()],
        }


def firing(model: BDH, idx: Tensor) -> Firing:
    """Measure how the neurons of each level fire on some texts; dropout is off.

    A neuron is dead that fires at fewer than one in 10,000 of the tokens, saturated at more than nine in ten. The
    branching ratio is that of `bdh.mechanisms.branching_ratio`, with its 95 % interval; None where the texts are
    fewer than two or shorter than it needs, or where the counts never vary. It alone proves no criticality.

    Args:
        model: the model; it is not changed.
        idx: (B, T) token ids.

    Raises:
        ValueError: token ids that the model refuses.

    Examples:
        >>> from bdh import BDHConfig
        >>> model = BDH(BDHConfig(n_layer=2, n_embd=32, n_head=2, mlp_internal_dim_multiplier=8, variant="hatching"))
        >>> model.calibrate(torch.arange(256).view(4, 64))
        >>> [round(rate, 1) for rate in firing(model, torch.arange(256).view(4, 64))["rate"]]
        [0.1, 0.1]
    """
    tap = FiringTap(model)
    with evaluating(model):
        for row in idx.split(1):
            model(row, tap=tap)
    return tap.result()


def _branching(counts: Tensor) -> list[float] | None:
    steps = min(_STEPS, (counts.shape[1] - 1) // 4)
    if len(counts) < 2 or steps < 2 or counts.min() == counts.max():
        return None
    found = branching_ratio(counts, steps=steps, bootstrap=200)
    return [found.m, found.low, found.high]
