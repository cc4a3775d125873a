"""The sliding threshold of Bienenstock, Cooper and Munro (1982): who fires much must be driven harder to fire.

Shapes: B batch, H heads, T tokens, K neurons per head, D inputs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bdh.mechanisms.homeostasis import Homeostatic


class BCMHomeostasis(Homeostatic):
    """A threshold per neuron, subtracted from its drive before the nonlinearity, that follows the neuron's activity.

        u' = u - threshold,    threshold = base + kappa (theta - target), at least `floor`
        theta <- theta + (mean[v^2] - theta) / tau          once per optimiser step, v the activity

    This is negative feedback in proportion to the deviation: it evens out, and leaves an offset. For an exact rate an
    integral controller owns the level of the thresholds, and this part, with `target=None`, only the neurons'
    deviation from the mean of their head. At the start theta is the target, so the part changes nothing.

    Args:
        n_head: H.
        neurons_per_head: K.
        target: theta at which the threshold is `base`, in units of v^2 (for binary spikes the firing rate);
            None: the mean of the head's neurons.
        kappa: feedback, in units of the drive per unit of theta.
        tau: time constant of theta in optimiser steps.
        base: threshold of a neuron on target.
        floor: no threshold falls below it.

    Raises:
        ValueError: `kappa` is negative, `tau` below one step, or `target` negative.

    Examples:
        >>> part = BCMHomeostasis(1, 1, target=0.0, kappa=1.0, tau=10.0)
        >>> for _ in range(200):
        ...     v = part(torch.full((1, 1, 1, 1), 2.0)).relu()
        ...     part.observe(v)
        ...     part.homeostasis_step()
        >>> round(v.item(), 4)                       # v = 2 - v^2
        1.0
    """

    SUMS = ("power", "tokens")
    theta: Tensor
    """(H, K) running mean of the squared activity."""
    power: Tensor
    """(H, K) sum of the squared activity since the last step."""
    tokens: Tensor
    """Tokens observed since the last step."""

    def __init__(
        self,
        n_head: int,
        neurons_per_head: int,
        *,
        target: float | None,
        kappa: float = 1.0,
        tau: float = 100.0,
        base: float = 0.0,
        floor: float = -math.inf,
    ) -> None:
        super().__init__()
        if not (kappa >= 0 and tau >= 1 and (target is None or target >= 0)):
            raise ValueError(
                f"kappa={kappa}, tau={tau}, target={target}: expected kappa >= 0, tau >= 1 step and target >= 0 or None"
            )
        self.target, self.kappa, self.tau, self.base, self.floor = target, kappa, tau, base, floor
        self.register_buffer("theta", torch.full((n_head, neurons_per_head), target or 0.0))
        self.register_buffer("power", torch.zeros(n_head, neurons_per_head))
        self.register_buffer("tokens", torch.zeros((), dtype=torch.int64))

    def threshold(self) -> Tensor:
        """Return what is subtracted from the drive, (H, K)."""
        target = self.theta.mean(1, keepdim=True) if self.target is None else self.target
        return (self.base + self.kappa * (self.theta - target)).clamp_min(self.floor)

    def forward(self, drive: Tensor) -> Tensor:
        """Subtract the thresholds from (B, H, T, K)."""
        return drive - self.threshold()[:, None].to(drive.dtype)

    def _add_up(self, activity: Tensor) -> None:
        # new tensors, not new values in old ones: a graph may still hold the old
        self.power = self.power + activity.to(self.power.dtype).square().sum((0, 2))
        self.tokens = self.tokens + activity.shape[0] * activity.shape[2]

    @torch.no_grad()
    def homeostasis_step(self) -> None:
        """Let theta follow the activity observed since the last call; call it once per optimiser step."""
        mean = self.power / self.tokens.clamp_min(1)
        self.theta = torch.where(self.tokens > 0, self.theta + (mean - self.theta) / self.tau, self.theta)
        self.power, self.tokens = torch.zeros_like(self.power), torch.zeros_like(self.tokens)


def bcm_step(
    weight: Tensor, theta: Tensor, x: Tensor, *, eta: float, tau: float, y0: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Take one step of the learning rule itself: neurons become selective for one of the patterns they see.

        y = relu(x w),    w <- w + eta mean[y (y - theta) x],    theta <- theta + (mean[y^2] / y0 - theta) / tau

    For independent patterns of probability p the selective state is y = y0 / p for one and 0 for the others. It is
    stable only where theta is faster than the weights: linearised there, while `eta tau y0 |x|^2 < 1`. The step demands
    half of it.

    Args:
        weight: (D, K).
        theta: (K,).
        x: (M, D) patterns, equally probable.
        eta: learning rate.
        tau: time constant of theta in steps.
        y0: activity that counts as one.

    Returns:
        The new weight and theta.

    Raises:
        ValueError: theta would be too slow for this learning rate.

    Examples:
        >>> w, theta = torch.tensor([[0.6], [0.4]]), torch.tensor([0.0])
        >>> for _ in range(3000):
        ...     w, theta = bcm_step(w, theta, torch.eye(2), eta=0.01, tau=10.0)
        >>> [round(y, 3) for y in (torch.eye(2) @ w).relu().flatten().tolist()]
        [2.0, 0.0]
    """
    speed = eta * tau * y0 * x.square().sum(-1).max().item()
    if not speed < 0.5:
        raise ValueError(
            f"eta * tau * y0 * |x|^2 = {speed:g}: expected < 0.5, else theta lags behind the weights and they "
            "oscillate or collapse; lower eta or tau"
        )
    y = (x @ weight).relu()
    weight = weight + eta * x.mT @ (y * (y - theta)) / len(x)
    return weight, theta + (y.square().mean(0) / y0 - theta) / tau
