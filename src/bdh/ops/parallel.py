"""Linear attention in plain PyTorch for many tokens at once: runs on CPU, CUDA and MPS, differentiable.

Shapes: B batch, H heads, T tokens, K neurons per head, D embedding, C tokens per block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BLOCK = 256
"""Tokens per block: score tiles of (C, C) stay in cache, matrix products stay large."""


def dense(q: Tensor, v: Tensor, k: Tensor | None = None) -> Tensor:
    """Quadratic form, block row by block row; score blocks above the diagonal are never computed.

    Cost per head: about T^2/2 (K + D) multiply-adds. Keys k that are not the queries have a gradient of their own.
    """
    T, keys = q.shape[2], q if k is None else k
    rows = []
    for start in range(0, T, BLOCK):
        stop = min(start + BLOCK, T)
        mine = q[:, :, start:stop]
        scores = own_scores(mine) if k is None else mine @ k[:, :, start:stop].mT
        row = scores.tril(-1) @ v[:, None, start:stop]
        if start:
            row = row + (mine @ keys[:, :, :start].mT) @ v[:, None, :start]
        rows.append(row)
    return rows[0] if len(rows) == 1 else torch.cat(rows, dim=2)


def chunked(
    q: Tensor, v: Tensor, rho: Tensor | None, k: Tensor | None = None, *, owns_rho: bool = False,
    fresh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Linear form: quadratic inside a block, state between blocks; keys k that are not the queries may be given.

    Cost per head: T C/2 (K + D) + 2 T K D multiply-adds. With `owns_rho` the state is updated in its own
    memory, which saves writing a second copy of it at every call.
    """
    T = q.shape[2]
    # the number (B, 1, T, 1) of the text that a token is of, and of the one that rho is of
    text = None if fresh is None else fresh.cumsum(1)[:, None, :, None]
    of_rho: Tensor | int = 0
    rows = []
    for start in range(0, T, BLOCK):
        q_c, v_c = q[:, :, start : start + BLOCK], v[:, None, start : start + BLOCK]
        k_c = q_c if k is None else k[:, :, start : start + BLOCK]
        scores = (own_scores(q_c) if k is None else q_c @ k_c.mT).tril(-1)
        if text is None:
            row = scores @ v_c
            if rho is not None:
                row = row + q_c @ rho
        else:
            text_c = text[:, :, start : start + BLOCK]
            row = (scores * (text_c == text_c.mT)) @ v_c
            last = text_c[:, :, -1:]
            if rho is not None:
                row = row + (q_c * (text_c == of_rho)) @ rho
                rho, owns_rho = rho * (last == of_rho), True
            k_c, of_rho = k_c * (text_c == last), last
        rows.append(row)
        write = k_c.mT @ v_c
        rho = write if rho is None else rho.add_(write) if owns_rho else rho + write
        owns_rho = owns_rho or not (rho.requires_grad or row.requires_grad)  # a gradient of q needs it as it was
    assert rho is not None
    return rows[0] if len(rows) == 1 else torch.cat(rows, dim=2), rho


def step(q: Tensor, v: Tensor, rho: Tensor, *, owns_rho: bool = False) -> tuple[Tensor, Tensor]:
    """One token: a = q rho, then rho + q^T v."""
    a = q @ rho
    if not owns_rho:
        return a, torch.addcmul(rho, q.mT, v[:, None])
    return a, rho.addcmul_(q.mT, v[:, None])


def own_scores(q: Tensor) -> Tensor:
    """Return q q^T (..., T, T) of q (..., T, K).

    Each token is a query and a key, so the gradient is (d + d^T) q: one product, where autograd would take two.
    """
    if not q.requires_grad or torch.compiler.is_compiling():
        return q @ q.mT
    scores: Tensor = _OwnScores.apply(q)  # type: ignore[no-untyped-call]
    return scores


class _OwnScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor) -> Tensor:
        ctx.save_for_backward(q)
        return q @ q.mT

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (d,), (q,) = grads, ctx.saved_tensors
        gradient: Tensor = (d + d.mT) @ q
        return gradient


def product(x: Tensor, y: Tensor) -> Tensor:
    """Return x * y (B, H, T, K), in memory token by token as a decoder reads it, so that neither way needs a copy."""
    if not (x.requires_grad or y.requires_grad) or torch.compiler.is_compiling():
        return x * y
    out: Tensor = _Product.apply(x, y)  # type: ignore[no-untyped-call]
    return out


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        B, H, T, K = x.shape
        out = x.new_empty(B, T, H, K, dtype=torch.result_type(x, y)).transpose(1, 2)
        return torch.mul(x, y, out=out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (d,), (x, y) = grads, ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            return d * y, d * x
        return torch.mul(d, y, out=torch.empty_like(x)), torch.mul(d, x, out=torch.empty_like(y))
