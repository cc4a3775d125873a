"""The memory of a level as a token reads it: rows in the frame of the reading token, scores, and what a gate receives.

    a_t = sum_{tau<t} w(t - tau) <R_t x_t, R_tau x_tau> v_tau = sum_j x_t[j] rho_t[j]
    rho_t[j] = sum_{tau<t} w(t - tau) <R_t e_j, R_tau x_tau> v_tau

R is the rotary position, e_j the unit vector of neuron j, and w is 1, or 1 + c exp(-d / tau) with STDP of the form
"kernel".

Shapes: B batch, T tokens, H heads, K neurons per head, N neurons in all, D embedding, n neurons that are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bdh import ops
from bdh.mechanisms import KernelSTDP, TraceSTDP
from bdh.mechanisms.decay import distances, powers
from bdh.model import BDH, State

LAYER_NORM_EPS = 1e-5
"""Of `torch.nn.functional.layer_norm`, which the model calls without one."""


def check_neurons(model: BDH, neurons: Sequence[int], field: str = "neurons") -> None:
    """Raise ValueError unless these are global ids of neurons of the model."""
    N, K = model.config.n_neurons, model.config.neurons_per_head
    if wrong := [neuron for neuron in neurons if not 0 <= neuron < N]:
        raise ValueError(f"{field}: expected global neuron ids 0..{N - 1} (head*{K} + k), got {wrong[0]}")


def check_level(model: BDH, level: int, field: str = "level") -> None:
    """Raise ValueError unless the model has this level."""
    if not 0 <= level < model.config.n_layer:
        raise ValueError(f"{field}: expected 0..{model.config.n_layer - 1}, got {level}")


def refuse_pairing(model: BDH, what: str) -> None:
    """Raise ValueError where the memory holds pairs of tokens, which no single token wrote."""
    if isinstance(model.parts.stdp, TraceSTDP):
        raise ValueError(
            f"{what}: expected a memory that single tokens write, got stdp.form='trace', which writes pairs of tokens; "
            "use a model with stdp.form 'off' or 'kernel'"
        )


def stored_rows(model: BDH, state: State, level: int, neurons: Tensor) -> Tensor:
    """Return rows (B, n, D) of the memory that the next token reads, STDP included, in the frame of position 0."""
    K = model.config.neurons_per_head
    at = slice(None), neurons // K, neurons % K
    now, part = state.level(level), model.parts.stdp
    rows = now["rho"][at]
    wide = torch.promote_types(rows.dtype, torch.float32)
    rows = rows.to(wide)
    if isinstance(part, KernelSTDP):
        strength, rate = part.strength.to(wide)[at[1]], part.rate().to(wide)[at[1]]  # (n,)
        late = state.position - now["fading_at"][at]  # (B, n)
        return rows + (strength * torch.exp(-rate * (late + 1)))[..., None] * now["fading"][at].to(wide)
    if isinstance(part, TraceSTDP):
        return rows + part.strength.to(wide)[at[1], None] * now["paired"][at].to(wide)
    return rows


def rows_now(model: BDH, state: State, level: int, neurons: Tensor) -> Tensor:
    """Return the rows rho_t[j] (B, n, D) that the next token reads, for neurons j (n,)."""
    K = model.config.neurons_per_head
    turn = ops.rotation(K, state.position, 1, like=state.rho[level])[0]  # (K/2,)
    first = neurons // 2 * 2
    axes = _axes(turn[neurons % K // 2], neurons % 2 == 1)  # (n, 2)
    even, odd = (stored_rows(model, state, level, first + n) for n in (0, 1))
    axes = axes.to(even.dtype)
    return axes[:, :1] * even + axes[:, 1:] * odd


def rows_read(model: BDH, level: int, x: Tensor, value: Tensor, state: State | None, neurons: Sequence[int]) -> Tensor:
    """Return the row rho_t[j] that each of several tokens reads.

    Args:
        model: the model, without STDP of the form "trace".
        level: the level.
        x: (B, H, T, K) activity at these tokens.
        value: (B, T, D) what they write.
        state: what was read before them.
        neurons: global ids j.

    Returns:
        (B, T, n, D), at least float32.
    """
    K, T = model.config.neurons_per_head, x.shape[2]
    wide = torch.promote_types(x.dtype, torch.float32)
    position = 0 if state is None else state.position
    turn = ops.rotation(K, position, T, like=model.encoder)  # (T, K/2)
    weight = weights(model, T, like=x.to(wide))
    rows = []
    for neuron in neurons:  # one at a time: each holds (B, T, T) scores
        head, k = divmod(neuron, K)
        pair = slice(k // 2 * 2, k // 2 * 2 + 2)
        phase = turn[:, k // 2]
        keys = ops.rotate(x[:, head, :, pair].to(wide), phase[:, None])  # (B, T, 2)
        axis = _axes(phase, torch.tensor(k % 2 == 1, device=x.device)).to(wide)  # (T, 2)
        row = (axis @ keys.mT * weight[head]) @ value.to(wide)  # (B, T, D)
        if state is not None:
            row = row + _from_before(model, state.level(level), state.position, head, pair, axis)
        rows.append(row)
    return torch.stack(rows, dim=2)


def weights(model: BDH, tokens: int, *, like: Tensor) -> Tensor:
    """Return w(t - tau) for tau < t and 0 elsewhere, (H, T, T)."""
    H = model.config.n_head
    ones = like.new_ones(tokens, tokens).tril(-1).expand(H, -1, -1)
    part = model.parts.stdp
    if not isinstance(part, KernelSTDP):
        return ones
    strength, rate = part.strength.to(like.dtype), part.rate().to(like.dtype)
    return ones * (1 + strength[:, None, None] * powers(rate, distances(0, tokens, rate)))


def receivers(model: BDH, neurons: Tensor) -> Tensor:
    """Return what the gates i (n,) take from a read before its norm is divided by its spread, (n, D).

    LayerNorm takes the mean off the read, which is the same as taking it off Dy[:, i].
    """
    head, k = neurons // model.config.neurons_per_head, neurons % model.config.neurons_per_head
    columns = model.encoder_v[head, :, k]
    return columns - columns.mean(-1, keepdim=True) if model.config.norm == "layer" else columns


def spread(model: BDH, a: Tensor) -> Tensor:
    """Return what the norm divides a read (..., D) by, (..., 1)."""
    if model.config.norm == "layer":
        return (a.var(-1, unbiased=False, keepdim=True) + LAYER_NORM_EPS).sqrt()
    return (a.square().mean(-1, keepdim=True) + torch.finfo(a.dtype).eps).sqrt()


def _from_before(
    model: BDH, before: Mapping[str, Tensor], position: int, head: int, pair: slice, axis: Tensor
) -> Tensor:
    """What the tokens before left in a row, (B, T, D), as seen along the axes (T, 2) of the reading tokens."""
    row = axis @ before["rho"][:, head, pair].to(axis.dtype)
    part = model.parts.stdp
    if not isinstance(part, KernelSTDP):
        return row
    strength, rate = part.strength.to(axis.dtype)[head], part.rate().to(axis.dtype)
    late = position - before["fading_at"]
    fading = part.faded(before["fading"].to(axis.dtype), late)[:, head, pair]
    steps = torch.arange(1, len(axis) + 1, device=axis.device)
    return row + strength * powers(rate[head, None], steps)[0, :, None] * (axis @ fading)


def _axes(turn: Tensor, odd: Tensor) -> Tensor:
    """R e_j as its two entries inside its pair, (..., 2), from the turns (...) of the pairs."""
    return torch.view_as_real(torch.where(odd, 1j * turn, turn))
