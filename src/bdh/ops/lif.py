"""Leaky integrate-and-fire neurons over tokens: what they are, and the scan with a backward pass of its own.

Shapes: B batch, H heads, T tokens, K neurons per head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bdh.ops import native
from bdh.ops.leaky import accumulate, decays
from bdh.ops.surrogate import surrogate_slope
from bdh.sections import Reset, Surrogate


@dataclass(frozen=True)
class Neurons:
    """Constants of leaky integrate-and-fire neurons (the equations are those of `lif_scan`)."""

    tau: tuple[float, ...]
    """Time constants in tokens, one per head or one for all."""
    threshold: Tensor
    """(H, 1) or (H, K); (1, 1) for all."""
    spread: Tensor
    """Shape of `threshold`: standard deviation of the membrane, the unit of the surrogate derivative."""
    v_rest: float = 0.0
    v_reset: float = 0.0
    reset: Reset = "soft"
    refractory: int = 0
    """Silent tokens after a spike."""
    detach_reset: bool = True
    """No gradient through the reset."""
    surrogate: Surrogate = "fast_sigmoid"
    beta: float = 2.0

    @property
    def linear_backward(self) -> bool:
        """Whether the way back is a filter with constant coefficients, d_h_t = g_t + alpha d_h_{t+1}."""
        return not self.refractory and (self.reset == "none" or (self.reset == "soft" and self.detach_reset))

    def like(self, wide: Tensor) -> _Constants:
        decay, gain = decays(self.tau, wide)
        return _Constants(decay, gain, self.threshold.to(wide), self.spread.to(wide))


def spiking_step(neurons: Sequence[Neurons], tau_trace: float, output: str) -> native.SpikingStep:
    """Return neurons, whose levels differ in their thresholds alone, for the kernels' step of one token.

    Args:
        neurons: of each level, with a threshold per head.
        tau_trace: time constant of the trace of their spikes, in tokens.
        output: "graded" or "binary".
    """
    n = neurons[0]
    threshold = torch.stack([level.threshold[:, 0].float() for level in neurons])  # (L, H)
    decay, gain = (t[:, 0].expand(threshold.shape[1]).contiguous() for t in decays(n.tau, threshold))
    kept, graded = math.exp(-1 / tau_trace), output == "graded"
    return native.SpikingStep(decay, gain, threshold, n.v_rest, n.v_reset, kept, n.reset, n.refractory, graded)


class _Constants(NamedTuple):
    decay: Tensor  # (H, 1)
    gain: Tensor
    threshold: Tensor  # (H, 1) or (H, K)
    spread: Tensor


class Scan(NamedTuple):
    """What a scan over tokens returns."""

    spikes: Tensor
    """(B, H, T, K), 0 or 1."""
    activity: Tensor
    """(B, H, T, K), how strongly the spikes are felt."""
    membrane: Tensor
    """(B, H, K) after the last token."""
    refractory: Tensor
    """(B, H, K) int8, silent tokens that are left."""


def scan(
    current: Tensor, membrane: Tensor, refractory: Tensor, neurons: Neurons, *, graded: bool, on_kernels: bool
) -> Scan:
    """`ops.lif_scan` in the dtype of `membrane`, which is that of `current`."""
    if current.shape[2] == 0:
        return Scan(current, current, membrane, refractory)
    outputs = _Scan.apply(current, membrane, refractory, neurons, graded, on_kernels)  # type: ignore[no-untyped-call]
    spikes, after, waiting, activity = outputs
    return Scan(spikes, activity if graded else spikes, after, waiting)


class _Scan(torch.autograd.Function):
    """Keeps the charge h alone; spikes and slopes follow from it. While refractory, h is kept as -infinity."""

    @staticmethod
    def forward(
        ctx: Any, current: Tensor, membrane: Tensor, waiting: Tensor, neurons: Neurons, graded: bool, on_kernels: bool
    ) -> tuple[Tensor | None, ...]:
        constants = neurons.like(current)
        needed = any(ctx.needs_input_grad)
        run = _forward_native if on_kernels else _forward
        charge, spikes, activity, membrane, waiting = run(
            current, membrane, waiting, neurons, constants, graded, needed
        )
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(waiting)
        if needed:
            ctx.save_for_backward(charge, current if graded else None)
            ctx.neurons, ctx.constants, ctx.on_kernels = neurons, constants, on_kernels
        return spikes, membrane, waiting, activity

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        d_spikes, d_membrane, _, d_activity = grads
        charge, current = ctx.saved_tensors
        if d_membrane is None:
            d_membrane = torch.zeros_like(charge[:, :, 0])
        run = _backward_native if ctx.on_kernels else _backward
        d_current, d_membrane = run(charge, current, d_spikes, d_activity, d_membrane, ctx.neurons, ctx.constants)
        return d_current, d_membrane, None, None, None, None


# --- PyTorch ------------------------------------------------------------------------------------------------------


def _forward(
    current: Tensor, membrane: Tensor, waiting: Tensor, n: Neurons, c: _Constants, graded: bool, needed: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    # products and sums one by one: fused ones round differently, and a last bit can move a spike
    charge = (current + n.v_rest) * c.gain[:, None]  # (B, H, T, K)
    if n.reset == "none" and not n.refractory:
        charge = accumulate(charge, n.tau, membrane)
        spikes = (charge >= c.threshold[:, None]).to(charge.dtype)
        membrane = charge[:, :, -1].clone()
    else:
        spikes, membrane, waiting = torch.empty_like(charge), membrane.clone(), waiting.clone()
        _fire_in_turn(charge, spikes, membrane, waiting, n, c)
    spikes = torch.where(charge.isnan(), charge, spikes)  # what is not a number must reach the loss
    return charge, spikes, spikes * current.relu() if graded else None, membrane, waiting


def _fire_in_turn(charge: Tensor, spikes: Tensor, v: Tensor, left: Tensor, n: Neurons, c: _Constants) -> None:
    """Token by token: on entry `charge` is what flows in; charge, spikes, v and left are written in place."""
    drop = (c.threshold - n.v_reset).expand(v.shape)
    threshold, decay = c.threshold.expand(v.shape), c.decay.expand(v.shape)
    fires = torch.empty_like(v, dtype=torch.bool)
    for h, s in zip(charge.unbind(2), spikes.unbind(2), strict=True):
        h.add_(v.mul_(decay))
        if n.refractory:
            closed = (left > 0) & (h == h)
            h.masked_fill_(closed, -math.inf)
        if n.reset == "soft":
            # a product with 0 or 1 is exact, fused or not
            torch.addcmul(h, torch.ge(h, threshold, out=s), drop, value=-1, out=v)
        else:
            v.copy_(h)
            s.copy_(torch.ge(h, threshold, out=fires))
            if n.reset == "hard":
                v.masked_fill_(fires, n.v_reset)
        if n.refractory:
            v.masked_fill_(closed, n.v_reset)
            left.sub_(1).clamp_min_(0).masked_fill_(s > 0, n.refractory)


def _backward(
    charge: Tensor,
    current: Tensor | None,
    d_spikes: Tensor | None,
    d_activity: Tensor | None,
    d_v: Tensor,
    n: Neurons,
    c: _Constants,
) -> tuple[Tensor, Tensor]:
    threshold = c.threshold[:, None]
    slope = surrogate_slope((charge - threshold) / c.spread[:, None], n.surrogate, n.beta) / c.spread[:, None]
    direct = None
    if d_activity is not None:
        assert current is not None
        felt = d_activity * current.relu()
        d_spikes = felt if d_spikes is None else d_spikes + felt
        direct = d_activity * ((charge >= threshold) & (current > 0))
    d_h = torch.zeros_like(charge) if d_spikes is None else d_spikes * slope
    if n.linear_backward:
        d_h[:, :, -1] += d_v
        d_h = accumulate(d_h, n.tau, reverse=True)
    else:
        _back_in_turn(d_h, _kept(charge, slope, n, c), d_v, charge == -math.inf, c.decay)
    d_current = d_h * c.gain[:, None]
    return d_current if direct is None else d_current.add_(direct), d_h[:, :, 0] * c.decay


def _kept(charge: Tensor, slope: Tensor, n: Neurons, c: _Constants) -> Tensor:
    """Derivative of v_t by h_t, token by token."""
    threshold = c.threshold[:, None]
    if n.reset == "soft":
        return torch.ones_like(slope) if n.detach_reset else 1 - (threshold - n.v_reset) * slope
    if n.reset == "none":
        return torch.ones_like(slope)
    kept = (charge < threshold).to(slope.dtype)
    return kept if n.detach_reset else kept + (n.v_reset - charge) * slope


def _back_in_turn(d_h: Tensor, kept: Tensor, d_v: Tensor, closed: Tensor, decay: Tensor) -> None:
    """d_h_t = g_t + kept_t d_v_t,  d_v_{t-1} = alpha d_h_t; on entry `d_h` is g. A refractory neuron hears nothing."""
    d_h.masked_fill_(closed, 0.0)
    kept.masked_fill_(closed, 0.0)
    d_v = d_v.clone()
    for d, k in zip(reversed(d_h.unbind(2)), reversed(kept.unbind(2)), strict=True):
        torch.mul(d.addcmul_(k, d_v), decay, out=d_v)


# --- kernels ------------------------------------------------------------------------------------------------------


def _kernel_neurons(n: Neurons, c: _Constants, H: int) -> Any:
    decay, gain = (t[:, 0].expand(H).contiguous() for t in (c.decay, c.gain))
    threshold, spread = (t.expand(H, -1).contiguous() for t in (c.threshold, c.spread))
    return native.kernels.Neurons(
        decay, gain, threshold, spread, n.v_rest, n.v_reset, n.reset, n.refractory, n.detach_reset, n.surrogate, n.beta
    )


def _rows(x: Tensor) -> Tensor:
    """(B, H, ...) -> (B*H, ...) without the graph, contiguous."""
    return x.detach().contiguous().flatten(0, 1)


def _forward_native(
    current: Tensor, membrane: Tensor, waiting: Tensor, n: Neurons, c: _Constants, graded: bool, needed: bool
) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor, Tensor]:
    shape = current.shape
    current, spikes = _rows(current), torch.empty(shape)
    activity = torch.empty(shape) if graded else None
    charge = torch.empty(shape) if needed else None
    membrane, waiting = (t.detach().clone(memory_format=torch.contiguous_format) for t in (membrane, waiting))
    native.kernels.lif_forward(
        _kernel_neurons(n, c, shape[1]),
        current,
        membrane.flatten(0, 1),
        waiting.flatten(0, 1),
        None if charge is None else charge.flatten(0, 1),
        spikes.flatten(0, 1),
        None if activity is None else activity.flatten(0, 1),
        torch.get_num_threads(),
    )
    return charge, spikes, activity, membrane, waiting


def _backward_native(
    charge: Tensor,
    current: Tensor | None,
    d_spikes: Tensor | None,
    d_activity: Tensor | None,
    d_membrane: Tensor,
    n: Neurons,
    c: _Constants,
) -> tuple[Tensor, Tensor]:
    d_current = torch.empty_like(charge)
    d_membrane = d_membrane.clone(memory_format=torch.contiguous_format)
    current, d_spikes, d_activity = (None if t is None else _rows(t) for t in (current, d_spikes, d_activity))
    native.kernels.lif_backward(
        _kernel_neurons(n, c, charge.shape[1]),
        current,
        _rows(charge),
        d_spikes,
        d_activity,
        d_membrane.flatten(0, 1),
        d_current.flatten(0, 1),
        torch.get_num_threads(),
    )
    return d_current, d_membrane
