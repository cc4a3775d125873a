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

from bdh.ops import native
from bdh.ops.native_plan import Dropout, Fired, Level, Place, Plan, Weights

DENSE_ABOVE = 0.35
"""Density of x beyond which dense products give the gradients of the drive faster than sums over entries."""
CAUSAL = 128
"""Scores are computed in blocks of this many tokens, up to the diagonal."""


class Memory(NamedTuple):
    """What was read before the first token of a pass, a constant."""

    rho: Sequence[Tensor]
    """(B, H, K, D) of each level, in the frame of position 0; none of them: nothing was read."""
    position: int


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
    return _passed(v, encoder, encoder_v, decoder, n_layer, dropout, winners, None)[0]


def levels_from(
    memory: Memory,
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
        (B, T, D), and the states after the last token as in `memory`, which have no gradient.
    """
    out, *after = _passed(v, encoder, encoder_v, decoder, n_layer, dropout, winners, memory)
    return out, after


def _passed(
    v: Tensor, encoder: Tensor, encoder_v: Tensor, decoder: Tensor, n_layer: int, dropout: float,
    winners: int | None, memory: Memory | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    seed = int(torch.randint(2**62, ())) if dropout else 0
    settings = _Settings(n_layer, dropout, seed, winners, torch.is_autocast_enabled("cpu"), memory)
    found: tuple[Tensor, ...] = _Levels.apply(v, encoder, encoder_v, decoder, settings)  # type: ignore[no-untyped-call]
    return found


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
        memory = settings.memory
        position = memory.position if memory else 0
        plan = Plan(v.shape[0], v.shape[1], H, K, D, winners=settings.winners, position=position)
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
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
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
        rho = [_rows_of(kept.rho, rows, h) for h in range(plan.H)]
        for c, tokens in enumerate(plan.tokens):
            v = kept.v[rows, tokens].flatten(0, 1)  # (M, D)
            C = tokens.stop - tokens.start
            write = torch.zeros_like(v)
            for h in range(plan.H):
                place = (g, c, h)
                out = torch.empty(len(v) // C, plan.K, D) if c < last else None if after is None else after[rows, h]
                a, scores, fired = _attend(plan, w.encoder[h], v, C, rho[h], out)
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


def _attend(
    plan: Plan, encoder: Tensor, v: Tensor, C: int, rho: Tensor | None, after: Tensor | None
) -> tuple[Tensor, Tensor, list[Fired]]:
    """Fire, collect, rotate and read one head: a (M, D), scores, what fired; fills the state `after` (R, K, D)."""
    M, D = v.shape
    R = M // C
    scores, a = torch.zeros(R, C, C), torch.zeros(M, D)
    fired = []
    drive = None
    if plan.winners is not None:  # all neurons of the head have to be known before one of them may fire
        drive = torch.mm(encoder, v.T)  # (K, M)
        native.kernels.keep_winners(drive, plan.winners, plan.threads)
    for neurons in plan.neurons:
        tile = torch.mm(encoder[neurons], v.T) if drive is None else drive[neurons]  # (J, M)
        start = torch.empty(len(tile) + 1, dtype=torch.int64)
        nnz = native.kernels.count(tile, start, plan.threads)
        f = Fired(start, torch.empty(nnz, dtype=torch.uint16), torch.empty(nnz), torch.empty(nnz))
        native.kernels.collect_and_rotate(tile, *f.entries, *plan.phases(neurons, C), plan.threads)
        fired.append(f)
        _add_scores(scores, tile)
        for r, tokens in enumerate(slice(first, first + C) for first in range(0, M, C)):
            if rho is not None:
                a[tokens].addmm_(tile[:, tokens].T, rho[r, neurons])
            if after is None:
                continue
            if rho is None:
                torch.mm(tile[:, tokens], v[tokens], out=after[r, neurons])
            else:
                torch.addmm(rho[r, neurons], tile[:, tokens], v[tokens], out=after[r, neurons])
    a.view(R, C, D).baddbmm_(scores.tril_(-1), v.view(R, C, D))
    return a, scores, fired


def _add_scores(scores: Tensor, tile: Tensor) -> None:
    """Scores (R, C, C) += q^T q of each row of the batch; blocks above the diagonal are left out."""
    C = scores.shape[1]
    for r, q in enumerate(tile.split(C, dim=1)):  # (J, C)
        for block in range(0, C, CAUSAL):
            rows = slice(block, min(C, block + CAUSAL))
            scores[r, rows, : rows.stop].addmm_(q[:, rows].T, q[:, : rows.stop])


# --- backward -----------------------------------------------------------------------------------------------------


def _backward_level(plan: Plan, w: Weights, d_w: Weights, kept: Level, dropout: Dropout, d_out: Tensor) -> Tensor:
    D = plan.D
    normed_write, *write_stats = _layer_norm(kept.write)
    residual = kept.v + normed_write
    d_residual = _layer_norm_backward(d_out, residual, *_layer_norm(residual)[1:])
    d_write_all = _layer_norm_backward(d_residual, kept.write, *write_stats)
    d_v_all = d_residual
    for g, rows in enumerate(plan.rows):
        states = [_states(plan, kept, g, h) for h in range(plan.H)]
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
                d_rho[h] = _attend_backward(plan, w, d_w, kept, place, v, C, rho, d_rho[h], d_a, d_x, d_v)
            d_v_all[rows, tokens] += d_v.view(-1, C, D)
    return d_v_all


def _attend_backward(
    plan: Plan, w: Weights, d_w: Weights, kept: Level, place: Place, v: Tensor, C: int, rho: Tensor | None,
    d_after: Tensor | None, d_a: Tensor, d_x: list[Tensor], d_v: Tensor,
) -> Tensor | None:  # fmt: skip
    """Backward of `_attend`: adds to d_v and to the gradient of the encoder; returns that of the state before."""
    M, D = v.shape
    R, h = M // C, place[2]
    scores, in_rows = kept.scores[place], (R, C, D)
    d_scores = (d_a.view(in_rows) @ v.view(in_rows).mT).tril_(-1)
    both_sides = d_scores + d_scores.mT
    d_v.view(in_rows).baddbmm_(scores.mT, d_a.view(in_rows))
    if d_after is not None:
        d_after = plan.turned(d_after, -1)
    # what was there before the first chunk is a constant
    d_before = torch.empty(plan.K, D) if place[1] > 0 else None
    for f, neurons, d in zip(kept.fired[place], plan.neurons, d_x, strict=True):
        tile = _expand(plan, f, neurons, M, C)
        d_tile = torch.empty_like(tile)
        for r, (q, d_q) in enumerate(zip(tile.split(C, dim=1), d_tile.split(C, dim=1), strict=True)):
            torch.mm(q, both_sides[r], out=d_q)
            if rho is not None:
                d_q.addmm_(rho[r, neurons], d_a[r * C : (r + 1) * C].T)
        if d_before is not None:
            torch.mm(tile, d_a, out=d_before[neurons])
        if d_after is not None:
            d_tile.addmm_(d_after[neurons], v.T)
            d_v.addmm_(tile.T, d_after[neurons])
        here = (h, neurons)
        phases = plan.phases(neurons, C)
        if len(f.x) > DENSE_ABOVE * tile.numel():
            native.kernels.drive_gradient(*f.entries, d, d_tile, *phases, plan.threads)
            d_w.encoder[here].addmm_(d_tile, v)
            d_v.addmm_(d_tile.T, w.encoder[here])
        else:
            maps = w.encoder[here], v, d_w.encoder[here]
            native.kernels.fire_backward(*f.entries, d, d_tile, *phases, *maps, d_v, plan.threads)
    if d_before is not None and d_after is not None:
        d_before += d_after
    return d_before


def _states(plan: Plan, kept: Level, g: int, h: int) -> list[Tensor | None]:
    """Compute the state (R, K, D) of a head before each chunk again."""
    before = [_rows_of(kept.rho, plan.rows[g], h)]
    for c, tokens in enumerate(plan.tokens[:-1]):
        v = kept.v[plan.rows[g], tokens].flatten(0, 1)
        rho = torch.empty(1, plan.K, plan.D)
        for f, neurons in zip(kept.fired[g, c, h], plan.neurons, strict=True):
            torch.mm(_expand(plan, f, neurons, len(v), tokens.stop - tokens.start), v, out=rho[0, neurons])
        previous = before[-1]
        before.append(plan.turned(rho if previous is None else rho.add_(previous), 1))
    return before


def _rows_of(rho: Tensor | None, rows: slice, h: int) -> Tensor | None:
    return None if rho is None else rho[rows, h]


def _expand(plan: Plan, f: Fired, neurons: slice, M: int, C: int) -> Tensor:
    """Rebuild the rotated tile (J, M) from what fired."""
    tile = torch.empty(neurons.stop - neurons.start, M)
    native.kernels.expand_and_rotate(*f.entries, *plan.phases(neurons, C), tile, plan.threads)
    return tile


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
