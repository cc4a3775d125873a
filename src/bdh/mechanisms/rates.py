"""Firing rates: losses on them, the controller that holds them, and what they say about a layer.

Shapes: B batch, H heads, T tokens, K neurons per head.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


def firing_rates(spikes: Tensor) -> Tensor:
    """Share of tokens at which each neuron fires, r = mean over batch and tokens of s.

    Args:
        spikes: (B, H, T, K), 0 or 1.

    Returns:
        (H, K), float32 at least; differentiable wherever the spikes are (see `bdh.ops.spike_function`).

    Examples:
        >>> firing_rates(torch.tensor([[[[1.0, 0.0], [1.0, 1.0]]]])).tolist()
        [[1.0, 0.5]]
    """
    return spikes.mean(dim=(0, 2), dtype=torch.promote_types(spikes.dtype, torch.float32))


def rate_loss(rates: Tensor, target: float) -> Tensor:
    """L_rate = mean_i (r_i - r*)^2, neuron by neuron: a mean rate on target with dead neurons is not on target.

    Examples:
        >>> round(rate_loss(torch.tensor([[0.0, 0.2]]), 0.1).item(), 4)
        0.01
    """
    return (rates - target).square().mean()


def rate_band_loss(rates: Tensor, low: float, high: float) -> Tensor:
    """L_band = mean_i relu(r_i - high)^2 + relu(low - r_i)^2: free within the band, dead neurons are pulled back.

    Examples:
        >>> round(rate_band_loss(torch.tensor([[0.0, 0.1, 0.5]]), low=0.05, high=0.2).item(), 5)
        0.03083
    """
    return ((rates - high).relu().square() + (low - rates).relu().square()).mean()


def sparsity_loss(activity: Tensor) -> Tensor:
    """L_sparse = mean |y| of any activity, float32 at least.

    Examples:
        >>> sparsity_loss(torch.tensor([0.0, -1.0, 2.0])).item()
        1.0
    """
    return activity.abs().mean(dtype=torch.promote_types(activity.dtype, torch.float32))


def dead_fraction(rates: Tensor, below: float = 1e-4) -> Tensor:
    """Share of neurons that fire at fewer than `below` of the tokens."""
    return (rates < below).float().mean()


def saturated_fraction(rates: Tensor, above: float = 0.9) -> Tensor:
    """Share of neurons that fire at more than `above` of the tokens."""
    return (rates > above).float().mean()


def gini(x: Tensor) -> Tensor:
    """Gini coefficient of nonnegative values along the last dimension: 0 if all are equal, (n - 1)/n if one has all.

        G = sum_i (2i - n - 1) x_(i) / (n sum_i x_i),    x_(1) <= ... <= x_(n)

    Returns:
        (...) of x (..., n); NaN where all are zero.

    Examples:
        >>> gini(torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 5.0]])).tolist()
        [0.0, 0.75]
    """
    n = x.shape[-1]
    weight = 2 * torch.arange(1, n + 1, device=x.device, dtype=x.dtype) - n - 1
    ranked: Tensor = x.sort(dim=-1).values
    return (ranked * weight).sum(-1) / (n * x.sum(-1))


def hoyer(x: Tensor) -> Tensor:
    """Hoyer's sparseness along the last dimension: 0 if all are equally strong, 1 if one has all.

        (sqrt(n) - |x|_1 / |x|_2) / (sqrt(n) - 1)            (Hoyer 2004)

    Returns:
        (...) of x (..., n); NaN where all are zero.

    Examples:
        >>> hoyer(torch.tensor([[1.0, -1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 5.0]])).tolist()
        [0.0, 1.0]
    """
    root = math.sqrt(x.shape[-1])
    return (root - x.abs().sum(-1) / x.square().sum(-1).sqrt()) / (root - 1)


class ThresholdController(nn.Module):
    """Holds firing rates on target by an integral controller of the thresholds.

        theta <- theta + eta spread (r - r*)             once per optimiser step, in `homeostasis_step`

    It is the stochastic (1 - r*) quantile of what the thresholds are compared with. While no threshold meets the
    floor, the mean error over n steps is exactly (theta_n - theta_0) / (eta spread n), so it vanishes as 1/n.

    The thresholds are buffers; a forward pass reads what stood there before and never changes them. In eval mode
    nothing is observed, so nothing moves.

    Args:
        shape: (H, 1) for a threshold per head, (H, K) for one per neuron, (1, 1) for one in all.
        rate: r*, the share of tokens at which a neuron should fire.
        eta: step; with normally distributed potentials the rate settles in about 1 / (eta phi(theta)) steps
            (phi(1.28) = 0.18 at r* = 10 %).
        threshold: where the thresholds start.
        spread: standard deviation of what they are compared with, the unit of their steps.
        floor: no threshold falls below it.

    Raises:
        ValueError: a rate outside (0, 1), a spread or step that is not positive.

    Examples:
        >>> control = ThresholdController((1, 1), rate=0.25, eta=1.0)
        >>> control.observe(torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 4, 1))    # half of the tokens
        >>> control.homeostasis_step()
        >>> control.threshold.item()
        0.25
    """

    SUMS = ("fired", "tokens")
    """Buffers that `observe` adds to: those of two batches, added, are those of both."""
    threshold: Tensor
    """Shape as given: where the neurons fire now."""
    spread: Tensor
    fired: Tensor
    """Since the last step: tokens at which a neuron fired, mean over the neurons that share a threshold."""
    tokens: Tensor
    """Since the last step: tokens seen."""

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        rate: float = 0.1,
        eta: float = 0.3,
        threshold: float = 0.0,
        spread: float = 1.0,
        floor: float = -math.inf,
    ) -> None:
        super().__init__()
        if not 0 < rate < 1:
            raise ValueError(f"rate={rate}: expected a share of tokens, 0 < rate < 1, for example 0.1")
        if eta <= 0 or spread <= 0:
            raise ValueError(f"eta={eta}, spread={spread}: expected both positive")
        self.rate, self.eta, self.floor = rate, eta, floor
        self.register_buffer("threshold", torch.full(shape, threshold))
        self.register_buffer("spread", torch.full(shape, spread))
        self.register_buffer("fired", torch.zeros(shape))
        self.register_buffer("tokens", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def observe(self, spikes: Tensor) -> None:
        """Count the spikes, 0 or 1, in (B, H, T, K). Does nothing in eval mode."""
        if self.training:
            seen = spikes.shape[0] * spikes.shape[2]
            rates = self.pool(spikes.mean(dim=(0, 2), dtype=self.fired.dtype))
            # new tensors, not new values in old ones: a graph may still hold the old
            self.fired, self.tokens = self.fired + seen * rates, self.tokens + seen

    def pool(self, rates: Tensor) -> Tensor:
        """Mean of (H, K) over the neurons that share a threshold."""
        for dim, size in enumerate(self.threshold.shape):
            rates = rates.mean(dim, keepdim=True) if size == 1 else rates
        return rates

    @torch.no_grad()
    def homeostasis_step(self) -> None:
        """Move the thresholds by what was observed since the last call; call it once per optimiser step."""
        # without a branch on `tokens`, for which an accelerator would be waited: nothing seen is nothing moved
        error = torch.where(self.tokens > 0, self.fired / self.tokens.clamp_min(1) - self.rate, 0.0)
        self.threshold = (self.threshold + self.eta * self.spread * error).clamp_min(self.floor)
        self.fired, self.tokens = torch.zeros_like(self.fired), torch.zeros_like(self.tokens)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ThresholdController:
        # in bfloat16 the steps of a threshold would be lost: a cast of the module leaves float32 at least
        def keep_wide(buffer: Tensor) -> Tensor:
            new = fn(buffer)
            narrow = new.is_floating_point() and new.dtype.itemsize < 4
            return buffer.to(new.device) if narrow else new

        super()._apply(keep_wide, recurse)  # type: ignore[no-untyped-call]
        return self
