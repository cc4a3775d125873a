"""Spikes that can be learnt: a step in the forward pass, the slope of a smooth one in the backward pass."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bdh.sections import Surrogate


def spike_function(
    x: Tensor, kind: Surrogate = "fast_sigmoid", beta: float = 2.0, *, scale: Tensor | float = 1.0
) -> Tensor:
    """Heaviside step of x with a surrogate derivative.

        s = 1 if x >= 0 else 0,    ds/dx := surrogate_slope(x / scale) / scale

    Args:
        x: distance from the threshold, any shape.
        kind: the family, see `surrogate_slope`.
        beta: sharpness; the slope at the threshold is beta / (2 scale).
        scale: the spread of x, broadcast to it. A surrogate much wider or narrower than the values it is taken at
            passes no gradient to speak of.

    Returns:
        0 or 1 in the shape and dtype of x; NaN stays NaN.

    Examples:
        >>> x = torch.tensor([-1.0, 0.0, 1.0], requires_grad=True)
        >>> s = spike_function(x)
        >>> s.sum().backward()
        >>> s.tolist(), [round(g, 3) for g in x.grad.tolist()]
        ([0.0, 1.0, 1.0], [0.111, 1.0, 0.111])
    """
    out: Tensor = _Spike.apply(x / scale, kind, beta)  # type: ignore[no-untyped-call]
    return out


def surrogate_slope(x: Tensor, kind: Surrogate, beta: float) -> Tensor:
    """Derivative that stands in for that of the step: integral 1 over x, peak b/2 at 0, symmetric.

        fast_sigmoid   b/2 / (1 + b |x|)^2             (Zenke and Ganguli 2018, normalised)
        arctan         b/2 / (1 + (pi b x / 2)^2)      (Fang et al. 2021)
        triangular     b/2 max(0, 1 - b |x| / 2)       (Esser et al. 2016)

    Raises:
        ValueError: another kind.
    """
    half = beta / 2
    if kind == "fast_sigmoid":
        return half / (1 + beta * x.abs()).square()
    if kind == "arctan":
        return half / (1 + (math.pi * half * x).square())
    if kind == "triangular":
        return half * (1 - half * x.abs()).relu()
    raise ValueError(f"surrogate {kind!r}: expected 'fast_sigmoid', 'arctan' or 'triangular'")


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: Surrogate, beta: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.kind, ctx.beta = kind, beta
        return torch.where(x.isnan(), x, (x >= 0).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return grads[0] * surrogate_slope(x, ctx.kind, ctx.beta), None, None
