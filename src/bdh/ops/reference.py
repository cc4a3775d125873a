"""The truth that every other form must match: each operation written as its equation, without regard for speed.

Shapes: B batch, H heads, T tokens, K neurons per head, D embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor


def linear_attention(q: Tensor, v: Tensor, rho: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Causal linear attention, one token at a time, read before write (paper, Eq. 8):

        a_t = q_t rho_{t-1},    rho_t = rho_{t-1} + q_t^T v_t

    Args:
        q: (B, H, T, K) rotated activations, queries and keys in one.
        v: (B, T, D) values, shared by the heads.
        rho: (B, H, K, D) state before the first token; None is zero.

    Returns:
        a (B, H, T, D) and the state after the last token (B, H, K, D).
    """
    B, H, T, K = q.shape
    if rho is None:
        rho = q.new_zeros(B, H, K, v.shape[-1])
    reads = []
    for t in range(T):
        q_t, v_t = q[:, :, t : t + 1], v[:, None, t : t + 1]  # (B, H, 1, K), (B, 1, 1, D)
        reads.append(q_t @ rho)
        rho = rho + q_t.mT @ v_t
    return torch.cat(reads, dim=2), rho


def quadratic_attention(q: Tensor, v: Tensor) -> Tensor:
    """The same read as the released code writes it: a = (q q^T, strictly below the diagonal) v.

    Holds (T, T) scores per head and computes those above the diagonal in vain.

    Args:
        q: (B, H, T, K).
        v: (B, T, D).

    Returns:
        (B, H, T, D).
    """
    return (q @ q.mT).tril(diagonal=-1) @ v[:, None]
