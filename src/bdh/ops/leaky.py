"""First-order filters over tokens, in chunks of matrix products instead of a loop over tokens.

Shapes: B batch, H heads, T tokens, K channels per head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

CHUNK = 32
"""Tokens of a chunk: multiply-adds per entry, against calls per text."""


def leaky_integrate(x: Tensor, tau: Sequence[float], membrane: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Exponential smoothing over tokens: the membrane of a neuron that never fires.

        h_t = alpha h_{t-1} + (1 - alpha) x_t,    alpha = exp(-1/tau)

    It is linear, so it may be taken before a linear map that is wider: the membranes of x @ W are those of x, times W.

    Args:
        x: (B, H, T, K); (B, 1, T, K) is read by every head.
        tau: time constants in tokens, one per head or one for all.
        membrane: (B, H, K) before the first token; None is zero.

    Returns:
        h (B, H, T, K) and the last of it (B, H, K), in float32 at least; differentiable in x and membrane.

    Examples:
        >>> import math
        >>> h, last = leaky_integrate(torch.ones(1, 1, 3, 1), [1 / math.log(2)])   # alpha = 1/2
        >>> h.flatten().tolist()
        [0.5, 0.75, 0.875]
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    x = x.expand(-1, max(x.shape[1], len(tau)), -1, -1)
    if membrane is None:
        membrane = x.new_zeros((*x.shape[:2], x.shape[3]), dtype=wide)
    h: Tensor = _Integrate.apply(x.to(wide), membrane.to(wide), tuple(tau))  # type: ignore[no-untyped-call]
    return h, h[:, :, -1]


def decays(tau: Sequence[float], like: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha = exp(-1/tau) and 1 - alpha per head (H, 1), computed in float64, in the dtype of `like`."""
    rate = 1 / torch.tensor(tau, dtype=torch.float64)[:, None]
    return (-rate).exp().to(like), (-torch.expm1(-rate)).to(like)


def accumulate(x: Tensor, tau: Sequence[float], carry: Tensor | None = None, *, reverse: bool = False) -> Tensor:
    """y_t = x_t + alpha y_{t-1} with y_{-1} = carry, or with `reverse` y_t = x_t + alpha y_{t+1}; x is overwritten.

    Per chunk one product with the Toeplitz matrix alpha^(i-j), i >= j; the carry joins the chunk's first row.
    """
    T = x.shape[2]
    order = torch.arange(min(CHUNK, T), dtype=torch.float64)
    lag = order[:, None] - order[None, :]
    if reverse:
        lag = -lag
    rate = 1 / torch.tensor(tau, dtype=torch.float64)[:, None, None]
    mix = torch.where(lag < 0, 0.0, (-rate * lag.clamp_min(0)).exp()).to(x)  # (H, C, C)
    decay, _ = decays(tau, x)
    y = torch.empty_like(x)
    starts = range(0, T, CHUNK)
    with torch.autocast(x.device.type, enabled=False):
        for start in reversed(starts) if reverse else starts:
            chunk = x[:, :, start : start + CHUNK]
            C = chunk.shape[2]
            if carry is not None:
                chunk[:, :, -1 if reverse else 0] += decay * carry
            y[:, :, start : start + C] = mix[:, :C, :C] @ chunk
            carry = y[:, :, start if reverse else start + C - 1]
    return y


class _Integrate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, membrane: Tensor, tau: tuple[float, ...]) -> Tensor:
        ctx.tau = tau
        _, gain = decays(tau, x)
        return accumulate(x * gain[:, None], tau, membrane)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        decay, gain = decays(ctx.tau, grads[0])
        d_h = accumulate(grads[0].clone(), ctx.tau, reverse=True)
        return d_h * gain[:, None], d_h[:, :, 0] * decay, None
