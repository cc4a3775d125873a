"""All levels of the model in one differentiable call on a CPU, with products only where neurons fire.

Of nine dense products per level (three forward, six backward) only the drive of the neurons has to be dense, beside
the two of the scores. The gate, the decoder and the gradients of all three weight matrices are computed at firing
entries alone, by the kernels in csrc/. Between forward and backward a level keeps its firing entries as lists of
(token, x, gate) and a few vectors per token.

Work is cut into tiles of neurons x tokens, neuron-major, that stay in cache between the passes over them. A long text
is read in chunks with the state rho between them; rho stands in the frame of the present chunk, so that one table of
phases serves every chunk.

Shapes: B batch, T tokens, L levels, H heads, K neurons per head, D embedding; in a tile J neurons, R rows of the batch
with C tokens each, M = R*C.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bdh.ops import native
from bdh.ops.rotary import frequencies

TILE = 2**19
"""Entries of a tile: 2 MiB, the second-level cache of a core."""
MOST_TOKENS = 1024
"""Tokens of a tile at most; the kernels take up to 4,096."""
DENSE_ABOVE = 0.35
"""Density of x beyond which dense products give the gradients of the drive faster than sums over entries."""
ROWS = 2**17
"""Entries of the (tokens x D) matrices that the kernels keep at hand: 512 KiB; short rows of a batch share a tile."""


def levels(
    v: Tensor, encoder: Tensor, encoder_v: Tensor, decoder: Tensor, *, n_layer: int, dropout: float = 0.0
) -> Tensor:
    """Pass v through all levels, from an empty state; differentiable in all tensors.

    Args:
        v: (B, T, D) float32 on the CPU.
        encoder: (H, D, K).
        encoder_v: (H, D, K).
        decoder: (H*K, D).
        n_layer: L.
        dropout: probability of dropping a gated activity; the choice is seeded from torch's generator.

    Returns:
        (B, T, D).
    """
    seed = int(torch.randint(2**62, ())) if dropout else 0
    out: Tensor = _Levels.apply(v, encoder, encoder_v, decoder, n_layer, dropout, seed)  # type: ignore[no-untyped-call]
    return out


def memory_budget() -> float:
    """Bytes that may be kept between a forward pass and its backward: half of the machine's memory."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
    except (ValueError, OSError, AttributeError):  # not every system tells
        return math.inf


class _Levels(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, v: Tensor, encoder: Tensor, encoder_v: Tensor, decoder: Tensor, n_layer: int, rate: float, seed: int
    ) -> Tensor:
        H, D, K = encoder.shape
        plan = _Plan(v.shape[0], v.shape[1], H, K, D)
        weights = _Weights(encoder.mT.contiguous(), encoder_v.mT.contiguous(), decoder.view(H, K, D).contiguous())
        needed = any(ctx.needs_input_grad)
        kept, lean = [], False
        for level in range(n_layer):
            record = _Level.empty(v.contiguous(), H)
            v = _forward_level(plan, weights, record, _Dropout(seed + level, rate), needed and not lean)
            # what would not fit is dropped, and computed again when its turn comes in the backward pass
            lean = lean or (needed and record.nbytes * n_layer > memory_budget())
            kept.append(_Level.empty(record.v, 0) if lean else record)
        if needed:
            ctx.plan, ctx.weights, ctx.kept, ctx.dropout = plan, weights, kept, (seed, rate)
        return v

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d_v, (seed, rate), w = grads[0], ctx.dropout, ctx.weights
        d_w = _Weights(torch.zeros_like(w.encoder), torch.zeros_like(w.encoder_v), torch.zeros_like(w.decoder))
        while ctx.kept:
            record = ctx.kept.pop()
            dropout = _Dropout(seed + len(ctx.kept), rate)
            if not record.fired:
                record = _Level.empty(record.v, ctx.plan.H)
                _forward_level(ctx.plan, w, record, dropout, needed=True)
            d_v = _backward_level(ctx.plan, w, d_w, record, dropout, d_v.contiguous())
        return d_v, d_w.encoder.mT, d_w.encoder_v.mT, d_w.decoder.flatten(0, 1), None, None, None


@dataclass(frozen=True)
class _Weights:
    """The three maps, or their gradients, neuron-major (H, K, D)."""

    encoder: Tensor
    encoder_v: Tensor
    decoder: Tensor


@dataclass(frozen=True)
class _Fired:
    """What is kept of a tile, per firing entry, ordered by neuron and token."""

    start: Tensor  # (J+1,) int64
    token: Tensor  # (nnz,) uint16
    x: Tensor  # (nnz,)
    gate: Tensor  # (nnz,)

    @property
    def entries(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.start, self.token, self.x


Place = tuple[int, int, int]  # group of rows, chunk of tokens, head


@dataclass(frozen=True)
class _Level:
    """What is kept of a level."""

    v: Tensor  # (B, T, D) at its entry
    a: Tensor  # (H, B, T, D) read, before its norm
    write: Tensor  # (B, T, D) decoded, before its norm
    fired: dict[Place, list[_Fired]] = field(default_factory=dict)
    scores: dict[Place, Tensor] = field(default_factory=dict)  # (R, C, C), strictly below the diagonal

    @classmethod
    def empty(cls, v: Tensor, H: int) -> _Level:
        """With room for the reads of H heads; without heads it keeps nothing but v."""
        return cls(v, v.new_empty(H, *v.shape), v.new_zeros(v.shape if H else 0))

    @property
    def nbytes(self) -> int:
        lists = sum(t.nbytes for tile in self.fired.values() for f in tile for t in (*f.entries, f.gate))
        return lists + sum(t.nbytes for t in (self.v, self.a, self.write, *self.scores.values()))


@dataclass(frozen=True)
class _Dropout:
    seed: int
    rate: float

    def of(self, place: Place, block: int) -> tuple[int, float]:
        """Seed of one tile, and the rate."""
        key = self.seed
        for part in (*place, block):
            key = (key * 0x9E3779B97F4A7C15 + part + 1) % 2**64
        return key, self.rate


class _Plan:
    """How a call is cut into tiles, and the phases of a chunk."""

    def __init__(self, B: int, T: int, H: int, K: int, D: int) -> None:
        self.H, self.K, self.D = H, K, D
        # the quadratic form is the cheaper one up to about T = 4 D
        self.chunk = T if min(4 * D, MOST_TOKENS) >= T else min(2 * D, MOST_TOKENS)
        rows = max(1, min(MOST_TOKENS, ROWS // D) // T) if self.chunk == T else 1
        per_tile = max(2, TILE // (min(rows, B) * self.chunk))
        size = 2 * math.ceil(K / math.ceil(K / per_tile) / 2)
        self.rows = [slice(first, min(B, first + rows)) for first in range(0, B, rows)]
        self.tokens = [slice(first, min(T, first + self.chunk)) for first in range(0, T, self.chunk)]
        self.neurons = [slice(first, min(K, first + size)) for first in range(0, K, size)]
        self.threads = torch.get_num_threads()
        angle = (frequencies(K)[:, None] * torch.arange(self.chunk, dtype=torch.float64)).frac() * (2 * math.pi)
        self._cosine, self._sine = angle.cos().float(), angle.sin().float()  # (K/2, C)
        turn = (frequencies(K) * self.chunk).frac() * (2 * math.pi)
        self._chunk_turn = turn.cos().float()[:, None], turn.sin().float()[:, None]
        self._phases: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def phases(self, neurons: slice, C: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine (J/2, C) of a block of neurons."""
        if (neurons.start, C) not in self._phases:
            pairs = slice(neurons.start // 2, neurons.stop // 2)
            self._phases[neurons.start, C] = (
                self._cosine[pairs, :C].contiguous(),
                self._sine[pairs, :C].contiguous(),
            )
        return self._phases[neurons.start, C]

    def to_next_frame(self, rho: Tensor, direction: int = 1) -> Tensor:
        """Turn rho (K, D) from the frame of a chunk to that of the next one (-1: of the one before)."""
        (c, s), (even, odd) = self._chunk_turn, (rho[0::2], rho[1::2])
        s = -direction * s
        return torch.stack((even * c - odd * s, odd * c + even * s), 1).flatten(0, 1)


# --- forward ------------------------------------------------------------------------------------------------------


def _forward_level(plan: _Plan, w: _Weights, kept: _Level, dropout: _Dropout, needed: bool) -> Tensor:
    D = plan.D
    for g, rows in enumerate(plan.rows):
        rho: list[Tensor | None] = [None] * plan.H
        for c, tokens in enumerate(plan.tokens):
            v = kept.v[rows, tokens].flatten(0, 1)  # (M, D)
            C = tokens.stop - tokens.start
            write = torch.zeros_like(v)
            for h in range(plan.H):
                place = (g, c, h)
                last = c + 1 == len(plan.tokens)
                a, scores, fired, rho[h] = _attend(plan, w.encoder[h], v, C, rho[h], wants_rho=not last)
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
    plan: _Plan, encoder: Tensor, v: Tensor, C: int, rho: Tensor | None, *, wants_rho: bool
) -> tuple[Tensor, Tensor, list[_Fired], Tensor | None]:
    """Fire, collect, rotate and read one head: a (M, D), scores, what fired, and the state in the next frame."""
    M, D = v.shape
    R = M // C
    scores, a = torch.zeros(R, C, C), torch.zeros(M, D)
    after = torch.empty(plan.K, D) if wants_rho else None
    fired = []
    for neurons in plan.neurons:
        tile = torch.mm(encoder[neurons], v.T)  # (J, M)
        start = torch.empty(len(tile) + 1, dtype=torch.int64)
        nnz = native.kernels.count(tile, start, plan.threads)
        f = _Fired(start, torch.empty(nnz, dtype=torch.uint16), torch.empty(nnz), torch.empty(nnz))
        native.kernels.collect_and_rotate(tile, *f.entries, *plan.phases(neurons, C), plan.threads)
        fired.append(f)
        _add_scores(scores, tile)
        if rho is not None:
            a.addmm_(tile.T, rho[neurons])
        if after is not None:
            torch.mm(tile, v, out=after[neurons])
    a.view(R, C, D).baddbmm_(scores.tril_(-1), v.view(R, C, D))
    if after is not None:
        after = plan.to_next_frame(after if rho is None else after.add_(rho))
    return a, scores, fired, after


def _add_scores(scores: Tensor, tile: Tensor) -> None:
    """Scores (R, C, C) += q^T q of each row of the batch."""
    R, C, _ = scores.shape
    if R == 1:
        scores[0].addmm_(tile.T, tile)
    else:
        q = tile.view(-1, R, C).transpose(0, 1)  # (R, J, C)
        scores.baddbmm_(q.mT, q)


# --- backward -----------------------------------------------------------------------------------------------------


def _backward_level(plan: _Plan, w: _Weights, d_w: _Weights, kept: _Level, dropout: _Dropout, d_out: Tensor) -> Tensor:
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
    plan: _Plan, w: _Weights, d_w: _Weights, kept: _Level, place: Place, v: Tensor, C: int, rho: Tensor | None,
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
        d_after = plan.to_next_frame(d_after, direction=-1)
    d_before = torch.empty(plan.K, D) if rho is not None else None
    for f, neurons, d in zip(kept.fired[place], plan.neurons, d_x, strict=True):
        tile = _expand(plan, f, neurons, M, C)
        d_tile = torch.empty_like(tile)
        if R == 1:
            torch.mm(tile, both_sides[0], out=d_tile)
        else:
            in_tile = (-1, R, C)
            d_tile.view(in_tile).copy_((tile.view(in_tile).transpose(0, 1) @ both_sides).transpose(0, 1))
        if rho is not None and d_before is not None:
            d_tile.addmm_(rho[neurons], d_a.T)
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


def _states(plan: _Plan, kept: _Level, g: int, h: int) -> list[Tensor | None]:
    """Compute the state of a head before each chunk again."""
    before: list[Tensor | None] = [None]
    for c, tokens in enumerate(plan.tokens[:-1]):
        v = kept.v[plan.rows[g], tokens].flatten(0, 1)
        rho = torch.empty(plan.K, plan.D)
        for f, neurons in zip(kept.fired[g, c, h], plan.neurons, strict=True):
            torch.mm(_expand(plan, f, neurons, len(v), tokens.stop - tokens.start), v, out=rho[neurons])
        previous = before[-1]
        before.append(plan.to_next_frame(rho if previous is None else rho.add_(previous)))
    return before


def _expand(plan: _Plan, f: _Fired, neurons: slice, M: int, C: int) -> Tensor:
    """Rebuild the rotated tile (J, M) from what fired."""
    tile = torch.empty(neurons.stop - neurons.start, M)
    native.kernels.expand_and_rotate(*f.entries, *plan.phases(neurons, C), tile, plan.threads)
    return tile


def _layer_norm(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Normed x, and the statistics that its backward needs."""
    out: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_layer_norm(x, x.shape[-1:], None, None, 1e-5)
    return out


def _layer_norm_backward(d_out: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    wanted = [True, False, False]
    d_x: Tensor = torch.ops.aten.native_layer_norm_backward(d_out, x, x.shape[-1:], mean, rstd, None, None, wanted)[0]
    return d_x
