"""How sparse the model is: the fraction of neurons that fire, per level, and the same at random initialisation."""

from __future__ import annotations

import torch
from torch import Tensor

from bdh.config import BDHConfig
from bdh.model import BDH, evaluating

Density = dict[str, list[float]]
"""Fraction of entries > 0 per level, by "x", "y" and "xy"."""

_SIGNAL = {"x_sparse": "x", "y_sparse": "y", "xy_sparse": "xy"}


class DensityTap:
    """A tap that counts entries > 0 and stores nothing else; counts add up over calls of the model."""

    def __init__(self, n_layer: int) -> None:
        self._firing: dict[str, list[Tensor | int]] = {key: [0] * n_layer for key in _SIGNAL.values()}
        self._all: dict[str, list[int]] = {key: [0] * n_layer for key in _SIGNAL.values()}

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """Count, and hand the tensor on unchanged."""
        _, _, rest = name.partition(".")
        level, _, signal = rest.partition(".")
        if signal in _SIGNAL:
            key = _SIGNAL[signal]
            # stays on the device: reading it here would make the accelerator wait at every level
            # (a sum would first make eight bytes of every truth value)
            self._firing[key][int(level)] = self._firing[key][int(level)] + (tensor > 0).count_nonzero()
            self._all[key][int(level)] += tensor.numel()
        return tensor

    def result(self) -> Density:
        """Return the fractions counted so far."""
        return {
            key: [int(firing) / size for firing, size in zip(levels, self._all[key], strict=True)]
            for key, levels in self._firing.items()
        }


def density(model: BDH, idx: Tensor) -> Density:
    """Return the fraction of neurons that fire, per level; dropout is off while it is measured.

    The key "y" is the gate before the product; "xy" is the gated activity, which the paper calls y.

    Args:
        model: the model; it is not changed.
        idx: (B, T) token ids.

    Returns:
        {"x": [...], "y": [...], "xy": [...]}, each with one fraction of B*T*N per level.

    Raises:
        ValueError: token ids that the model refuses.

    Examples:
        >>> from bdh import BDHConfig
        >>> model = BDH(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4))
        >>> measured = density(model, torch.tensor([list(b"The dragon")]))
        >>> [len(levels) for levels in measured.values()], all(xy <= x for x, xy in zip(measured["x"], measured["xy"]))
        ([2, 2, 2], True)
    """
    tap = DensityTap(model.config.n_layer)
    with evaluating(model):
        for row in idx.split(1):  # together they would take more memory than a training pass does
            model(row, tap=tap)
    return tap.result()


def init_density(config: BDHConfig, idx: Tensor, seed: int = 0) -> Density:
    """Measure the density of a freshly initialised model: what a figure has to differ from to mean anything.

    The global random state is left as it was.

    Args:
        config: shape of the model.
        idx: (B, T) token ids.
        seed: of the weights.

    Returns:
        As `density`.

    Examples:
        >>> config = BDHConfig(n_layer=1, n_embd=32, n_head=2, mlp_internal_dim_multiplier=16)
        >>> 0.4 < init_density(config, torch.arange(64)[None])["x"][0] < 0.6
        True
    """
    # the generator of the CPU only: torch.manual_seed would also reseed every accelerator
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        model = BDH(config)
    return density(model.to(idx.device), idx)
