"""What training may ask of the activity beside predicting well: L = CE + w_sparse L_sparse + w_rate L_rate."""

from __future__ import annotations

import torch
from torch import Tensor

from bdh.config import BDHConfig, TrainConfig
from bdh.mechanisms import firing_rates, rate_loss, sparsity_loss


class ActivityLosses:
    """A tap that adds up, over the levels and tokens of a window, what activity costs.

        L_sparse = mean over levels of mean |x|,    L_rate = mean over levels of mean_i (r_i - r*)^2

    Args:
        model: of the model; L_rate needs neurons that spike.
        train: the weights.

    Raises:
        ValueError: a weight on rates that have no gradient.
    """

    def __init__(self, model: BDHConfig, train: TrainConfig) -> None:
        if train.rate_weight and not model.lif.on:
            raise ValueError(
                f"rate_weight={train.rate_weight}: expected a model whose neurons spike (--variant hatching, or "
                "--lif.tau 10), since other rates have no gradient; use sparse_weight instead"
            )
        self.target, self.levels = model.lif.rate, model.n_layer
        self.weights = {"sparse": train.sparse_weight, "rate": train.rate_weight}
        self.step: dict[str, Tensor] = {}
        """Of the windows of a step so far, each by its weight."""
        self._sums: dict[str, Tensor] = {}
        self._tokens = 0

    @property
    def wanted(self) -> bool:
        """Whether any weight is not zero."""
        return any(self.weights.values())

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """Add up, and hand the tensor on unchanged."""
        if name == "embed":
            self._tokens += tensor.shape[1]
        elif name.endswith(".x_sparse") and self.weights["sparse"]:
            self._add("sparse", sparsity_loss(tensor), tensor.shape[2])
        elif name.endswith(".spikes") and self.weights["rate"]:
            self._add("rate", rate_loss(firing_rates(tensor), self.target), tensor.shape[2])
        return tensor

    def _add(self, name: str, value: Tensor, tokens: int) -> None:
        # a window may be read in pieces: each counts by its tokens
        self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value * tokens / self.levels

    def take(self, weight: float = 1.0) -> Tensor | float:
        """Return the weighted sum for the window that was read since the last call, and begin anew.

        Args:
            weight: of the window in its step.
        """
        now = {name: value / self._tokens for name, value in self._sums.items()}
        self._sums, self._tokens = {}, 0
        for name, value in now.items():
            self.step[name] = self.step.get(name, torch.zeros_like(value)) + value.detach() * weight
        return sum((self.weights[name] * value for name, value in now.items()), start=0.0)
