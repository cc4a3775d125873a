"""Fire and read one head of a level, tile by tile, forward and backward; for `bdh.ops.native_levels`.

Shapes: M = R*C tokens of R rows with C each, D embedding, K neurons per head, J neurons of a tile. A text in several
chunks has R = 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bdh.ops import native
from bdh.ops.native_plan import Fired, Level, Place, Plan, Row, Weights

DENSE_ABOVE = 0.35
"""Density of x beyond which dense products give the gradients of the drive faster than sums over entries."""
CAUSAL = 128
"""Scores are computed in blocks of this many tokens, up to the diagonal."""


def attend(
    plan: Plan, encoder: Tensor, v: Tensor, rows: Sequence[Row], rho: Tensor | None, after: Tensor | None
) -> tuple[Tensor, Tensor, list[Fired]]:
    """Fire, collect, rotate and read one head: a (M, D), scores, what fired; fills the state `after` (R, K, D)."""
    M, D = v.shape
    R = len(rows)
    C = M // R
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
        for r, row in enumerate(rows):
            if rho is not None:
                a[row.old].addmm_(tile[:, row.old].T, rho[r, neurons])
            if after is None:
                continue
            if rho is None or row.starts:
                torch.mm(tile[:, row.new], v[row.new], out=after[r, neurons])
            else:
                torch.addmm(rho[r, neurons], tile[:, row.new], v[row.new], out=after[r, neurons])
    a.view(R, C, D).baddbmm_(separate(scores.tril_(-1), rows), v.view(R, C, D))
    return a, scores, fired


def _add_scores(scores: Tensor, tile: Tensor) -> None:
    """Scores (R, C, C) += q^T q of each row of the batch; blocks above the diagonal are left out."""
    C = scores.shape[1]
    for r, q in enumerate(tile.split(C, dim=1)):  # (J, C)
        for block in range(0, C, CAUSAL):
            rows = slice(block, min(C, block + CAUSAL))
            scores[r, rows, : rows.stop].addmm_(q[:, rows].T, q[:, : rows.stop])


def separate(scores: Tensor, rows: Sequence[Row]) -> Tensor:
    """Let no token of a text see one of the texts before, in place: scores (R, C, C)."""
    for mine, row in zip(scores, rows, strict=True):
        for start in row.starts:
            mine[start:, :start] = 0
    return scores


def attend_backward(
    plan: Plan, w: Weights, d_w: Weights, kept: Level, place: Place, v: Tensor, rho: Tensor | None,
    d_after: Tensor | None, d_a: Tensor, d_x: list[Tensor], d_v: Tensor,
) -> Tensor | None:  # fmt: skip
    """Backward of `attend`: adds to d_v and to the gradient of the encoder; returns that of the state before."""
    (M, D), rows, h = v.shape, plan.texts(place[0], place[1]), place[2]
    C = M // len(rows)
    scores, in_rows = kept.scores[place], (len(rows), C, D)
    d_scores = separate((d_a.view(in_rows) @ v.view(in_rows).mT).tril_(-1), rows)
    both_sides = d_scores.mT  # as queries,
    if plan.through_time:  # and as keys
        both_sides = both_sides + d_scores
        d_v.view(in_rows).baddbmm_(scores.mT, d_a.view(in_rows))
    if d_after is not None:
        d_after = plan.turned(d_after, -1)
    # what was there before the first chunk is a constant
    d_before = torch.empty(plan.K, D) if place[1] > 0 and plan.through_time else None
    for f, neurons, d in zip(kept.fired[place], plan.neurons, d_x, strict=True):
        tile = _expand(plan, f, neurons, M, C)
        d_tile = torch.empty_like(tile)
        for r, (q, d_q) in enumerate(zip(tile.split(C, dim=1), d_tile.split(C, dim=1), strict=True)):
            torch.mm(q, both_sides[r], out=d_q)
            if rho is not None:
                d_tile[:, rows[r].old].addmm_(rho[r, neurons], d_a[rows[r].old].T)
        old, new = rows[0].old, rows[0].new  # of the one row that a text in chunks has
        if d_before is not None:
            torch.mm(tile[:, old], d_a[old], out=d_before[neurons])
        if d_after is not None:
            d_tile[:, new].addmm_(d_after[neurons], v[new].T)
            d_v[new].addmm_(tile[:, new].T, d_after[neurons])
        here = (h, neurons)
        phases = plan.phases(neurons, C)
        if len(f.x) > DENSE_ABOVE * tile.numel():
            native.kernels.drive_gradient(*f.entries, d, d_tile, *phases, plan.threads)
            d_w.encoder[here].addmm_(d_tile, v)
            d_v.addmm_(d_tile.T, w.encoder[here])
        else:
            maps = w.encoder[here], v, d_w.encoder[here]
            native.kernels.fire_backward(*f.entries, d, d_tile, *phases, *maps, d_v, plan.threads)
    if d_before is not None and d_after is not None and not rows[0].starts:
        d_before += d_after
    return d_before


def states(plan: Plan, kept: Level, g: int, h: int) -> list[Tensor | None]:
    """Compute the state (R, K, D) of a head before each chunk again."""
    before = [rows_of(kept.rho, plan.rows[g], h)]
    for c, tokens in enumerate(plan.tokens[:-1]):
        v = kept.v[plan.rows[g], tokens].flatten(0, 1)
        rho = torch.empty(1, plan.K, plan.D)
        (row,) = plan.texts(g, c)
        for f, neurons in zip(kept.fired[g, c, h], plan.neurons, strict=True):
            tile = _expand(plan, f, neurons, len(v), len(v))
            torch.mm(tile[:, row.new], v[row.new], out=rho[0, neurons])
        previous = None if row.starts else before[-1]
        before.append(plan.turned(rho if previous is None else rho.add_(previous), 1))
    return before


def rows_of(rho: Tensor | None, rows: slice, h: int) -> Tensor | None:
    return None if rho is None else rho[rows, h]


def _expand(plan: Plan, f: Fired, neurons: slice, M: int, C: int) -> Tensor:
    """Rebuild the rotated tile (J, M) from what fired."""
    tile = torch.empty(neurons.stop - neurons.start, M)
    native.kernels.expand_and_rotate(*f.entries, *plan.phases(neurons, C), tile, plan.threads)
    return tile
