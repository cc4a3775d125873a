"""All levels of the model in one differentiable call on a CPU, with products only where neurons fire.

Of nine dense products per level (three forward, six backward) only the drive of the neurons has to be dense, beside
the two of the scores. The gate, the decoder and the gradients of all three weight matrices are computed at firing
entries alone, by the kernels in csrc/. Between forward and backward a level keeps its firing entries as lists of
(token, x, gate) and a few vectors per token.

Work is cut into tiles of neurons x tokens, neuron-major, that stay in cache between the passes over them. A long text
is read in chunks with the state rho between them; rho stands in the frame of the present chunk, so that one table of
phases serves every chunk. The frame of the first chunk is that of position 0, as it is outside of this room.

Shapes: B batch, T tokens, L levels, H heads, K neurons per head, D embedding; in a tile J neurons, R rows of the batch
with C tokens each, M = R*C. A text in several chunks has R = 1.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bdh.ops import native, native_attention
from bdh.ops.native_plan import Dropout, Level, Plan, Weights
from bdh.ops.through_time import is_through_time


class Memory(NamedTuple):
    """What was read before the first token of a pass, a constant, and where it is forgotten."""

    rho: Sequence[Tensor]
    """(B, H, K, D) of each level, in the frame of position 0; none of them: nothing was read."""
    position: int
    fresh: Tensor | None = None
    """(B, T) tokens with which a text begins: these and those behind them see nothing before; None: no such tokens."""


def levels(
    v: Tensor,
    encoder: Tensor,
    encoder_v: Tensor,
    decoder: Tensor,
    *,
    n_layer: int,
    dropout: float = 0.0,
    winners: int | None = None,
) -> Tensor:
    """Pass v through all levels, from an empty state; differentiable in all tensors.

    Inside `without_gradient_through_time` what a token wrote is a constant to those that read it.

    Args:
        v: (B, T, D) float32 on the CPU.
        encoder: (H, D, K).
        encoder_v: (H, D, K).
        decoder: (H*K, D).
        n_layer: L.
        dropout: probability of dropping a gated activity; the choice is seeded from torch's generator.
        winners: how many neurons of a head may fire per token (see `bdh.mechanisms.k_winners`); None is all.

    Under autocast to bfloat16 the factors of the dense products (drive, scores, their gradients) are rounded to
    bfloat16 where the processor multiplies those faster; sums, states, gate, decoder and weight gradients stay float32.

    Returns:
        (B, T, D).
    """
    return levels_from(None, v, encoder, encoder_v, decoder, n_layer=n_layer, dropout=dropout, winners=winners)[0]


def levels_from(
    memory: Memory | None,
    v: Tensor,
    encoder: Tensor,
    encoder_v: Tensor,
    decoder: Tensor,
    *,
    n_layer: int,
    dropout: float = 0.0,
    winners: int | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Pass v through all levels, from a state to the next; differentiable in v and the maps, see `levels`.

    Returns:
        (B, T, D), and the states after the last token as in `memory`, which have no gradient; none without `memory`.
    """
    seed = int(torch.randint(2**62, ())) if dropout else 0
    rounded = torch.is_autocast_enabled("cpu")
    settings = _Settings(n_layer, dropout, seed, winners, rounded, memory, is_through_time())
    out, *after = _Levels.apply(v, encoder, encoder_v, decoder, settings)  # type: ignore[no-untyped-call]
    return out, after


def memory_budget() -> float:
    """Bytes that may be kept between a forward pass and its backward: half of the machine's memory."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
    except (ValueError, OSError, AttributeError):  # not every system tells
        return math.inf


@dataclass(frozen=True)
class _Settings:
    n_layer: int
    dropout: float
    seed: int
    winners: int | None
    rounded: bool
    memory: Memory | None
    through_time: bool

    def plan_of(self, v: Tensor, encoder: Tensor) -> Plan:
        (B, T, _), (H, D, K) = v.shape, encoder.shape
        position, fresh = (self.memory.position, self.memory.fresh) if self.memory else (0, None)
        plan = Plan(B, T, H, K, D, winners=self.winners, position=position, fresh=fresh)
        plan.through_time = self.through_time
        return plan

    def rho_of(self, level: int) -> Tensor | None:
        return self.memory.rho[level].detach() if self.memory and self.memory.rho else None

    def dropout_of(self, level: int) -> Dropout:
        return Dropout(self.seed + level, self.dropout)


class _Levels(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, v: Tensor, encoder: Tensor, encoder_v: Tensor, decoder: Tensor, settings: _Settings
    ) -> tuple[Tensor, ...]:
        H, D, K = encoder.shape
        memory, plan = settings.memory, settings.plan_of(v, encoder)
        weights = Weights(_transposed(encoder), _transposed(encoder_v), decoder.contiguous().view(H, K, D))
        needed = any(ctx.needs_input_grad)
        kept, lean = [], False
        after = [torch.empty(v.shape[0], H, K, D) for _ in range(settings.n_layer if memory else 0)]
        with _dense_products(settings.rounded):
            for level in range(settings.n_layer):
                record = Level.empty(v.contiguous(), settings.rho_of(level), H)
                dropout, wanted = settings.dropout_of(level), after[level] if memory else None
                v = _forward_level(plan, weights, record, dropout, needed=needed and not lean, after=wanted)
                # what would not fit is dropped, and computed again when its turn comes in the backward pass
                lean = lean or (needed and record.nbytes * settings.n_layer > memory_budget())
                kept.append(Level.empty(record.v, record.rho, 0) if lean else record)
        if needed:
            ctx.plan, ctx.weights, ctx.kept, ctx.settings = plan, weights, kept, settings
        ctx.mark_non_differentiable(*after)
        return v, *after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.kept:  # it is freed on the way, level by level
            raise RuntimeError("native levels: expected one way back, this is a second; use ops.using('composed')")
        d_v, w = grads[0], ctx.weights
        d_w = Weights(torch.zeros_like(w.encoder), torch.zeros_like(w.encoder_v), torch.zeros_like(w.decoder))
        with _dense_products(ctx.settings.rounded):
            while ctx.kept:
                record = ctx.kept.pop()
                dropout = ctx.settings.dropout_of(len(ctx.kept))
                if not record.fired:
                    record = Level.empty(record.v, record.rho, ctx.plan.H)
                    _forward_level(ctx.plan, w, record, dropout, needed=True)
                d_v = _backward_level(ctx.plan, w, d_w, record, dropout, d_v.contiguous())
        # whole tensors in the order of the parameters: autograd takes them over without a copy
        return d_v, _transposed(d_w.encoder), _transposed(d_w.encoder_v), d_w.decoder.flatten(0, 1), None


@contextmanager
def _dense_products(rounded: bool) -> Iterator[None]:
    """Let dense float32 products round their factors to bfloat16 or not, whatever the caller's settings are."""
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16" if rounded else "ieee"
    try:
        with torch.autocast("cpu", enabled=False):
            yield
    finally:
        settings.fp32_precision = before


# --- forward ------------------------------------------------------------------------------------------------------


def _forward_level(
    plan: Plan, w: Weights, kept: Level, dropout: Dropout, *, needed: bool, after: Tensor | None = None
) -> Tensor:
    """Pass a level: fills `kept`, and `after` with the state that it leaves; returns v (B, T, D)."""
    D, last = plan.D, len(plan.tokens) - 1
    for g, rows in enumerate(plan.rows):
        rho = [native_attention.rows_of(kept.rho, rows, h) for h in range(plan.H)]
        for c, tokens in enumerate(plan.tokens):
            v = kept.v[rows, tokens].flatten(0, 1)  # (M, D)
            C = tokens.stop - tokens.start
            write = torch.zeros_like(v)
            for h in range(plan.H):
                place = (g, c, h)
                out = torch.empty(1, plan.K, D) if c < last else None if after is None else after[rows, h]
                a, scores, fired = native_attention.attend(plan, w.encoder[h], v, plan.texts(g, c), rho[h], out)
                if out is not None and c < last:
                    rho[h] = plan.turned(out, 1)
                elif out is not None:
                    out.copy_(plan.turned(out, -last))
                kept.a[h, rows, tokens] = a.view(-1, C, D)
                normed = _layer_norm(a)[0]
                for b, (f, neurons) in enumerate(zip(fired, plan.neurons, strict=True)):
                    native.kernels.gate(*f.entries, w.encoder_v[h, neurons], normed, f.gate, plan.threads)
                    decoder = w.decoder[h, neurons]
                    native.kernels.decode(*f.entries, f.gate, decoder, *dropout.of(place, b), write, plan.threads)
                if needed:
                    kept.fired[place], kept.scores[place] = fired, scores
            kept.write[rows, tokens] = write.view(-1, C, D)
    return _layer_norm(kept.v + _layer_norm(kept.write)[0])[0]


# --- backward -----------------------------------------------------------------------------------------------------


def _backward_level(plan: Plan, w: Weights, d_w: Weights, kept: Level, dropout: Dropout, d_out: Tensor) -> Tensor:
    D = plan.D
    normed_write, *write_stats = _layer_norm(kept.write)
    residual = kept.v + normed_write
    d_residual = _layer_norm_backward(d_out, residual, *_layer_norm(residual)[1:])
    d_write_all = _layer_norm_backward(d_residual, kept.write, *write_stats)
    d_v_all = d_residual
    for g, rows in enumerate(plan.rows):
        states = [native_attention.states(plan, kept, g, h) for h in range(plan.H)]
        d_rho: list[Tensor | None] = [None] * plan.H
        for c, tokens in reversed(list(enumerate(plan.tokens))):
            C = tokens.stop - tokens.start
            v, d_write = kept.v[rows, tokens].flatten(0, 1), d_write_all[rows, tokens].flatten(0, 1)
            d_v = torch.zeros_like(v)
            for h in range(plan.H):
                place = (g, c, h)
                a = kept.a[h, rows, tokens].flatten(0, 1)
                normed, *stats = _layer_norm(a)
                d_normed = torch.zeros_like(a)
                d_x = []
                for b, (f, neurons) in enumerate(zip(kept.fired[place], plan.neurons, strict=True)):
                    d_x.append(torch.empty_like(f.x))
                    here = (h, neurons)
                    weights = w.encoder_v[here], w.decoder[here]
                    d_weights = d_w.encoder_v[here], d_w.decoder[here]
                    native.kernels.gate_backward(
                        *f.entries, f.gate, *weights, normed, d_write, *dropout.of(place, b), *d_weights, d_normed,
                        d_x[-1], plan.threads,
                    )  # fmt: skip
                d_a = _layer_norm_backward(d_normed, a, *stats)
                rho = states[h][c]
                d_rho[h] = native_attention.attend_backward(plan, w, d_w, kept, place, v, rho, d_rho[h], d_a, d_x, d_v)
            d_v_all[rows, tokens] += d_v.view(-1, C, D)
    return d_v_all


def _transposed(weight: Tensor) -> Tensor:
    """(H, R, C) to (H, C, R)."""
    out = weight.new_empty(weight.shape[0], weight.shape[2], weight.shape[1])
    native.kernels.transpose(weight.detach().contiguous(), out, torch.get_num_threads())
    return out


def _layer_norm(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Normed x, and the statistics that its backward needs."""
    out: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_layer_norm(x, x.shape[-1:], None, None, 1e-5)
    return out


def _layer_norm_backward(d_out: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    wanted = [True, False, False]
    d_x: Tensor = torch.ops.aten.native_layer_norm_backward(d_out, x, x.shape[-1:], mean, rstd, None, None, wanted)[0]
    return d_x
