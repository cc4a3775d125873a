"""The truth that every other form must match: each operation written as its equation, without regard for speed.

Shapes: B batch, H heads, T tokens, K neurons per head, D embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bdh.ops.lif import Neurons, Scan
from bdh.ops.surrogate import spike_function


def linear_attention(
    q: Tensor, v: Tensor, rho: Tensor | None = None, fresh: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Causal linear attention, one token at a time, read before write (paper, Eq. 8):

        a_t = q_t rho_{t-1},    rho_t = rho_{t-1} + q_t^T v_t

    Args:
        q: (B, H, T, K) rotated activations, queries and keys in one.
        v: (B, T, D) values, shared by the heads.
        rho: (B, H, K, D) state before the first token; None is zero.
        fresh: (B, T) tokens with which a text begins; before these rho is emptied.

    Returns:
        a (B, H, T, D) and the state after the last token (B, H, K, D).
    """
    B, H, T, K = q.shape
    if rho is None:
        rho = q.new_zeros(B, H, K, v.shape[-1])
    reads = []
    for t in range(T):
        q_t, v_t = q[:, :, t : t + 1], v[:, None, t : t + 1]  # (B, H, 1, K), (B, 1, 1, D)
        if fresh is not None:
            rho = torch.where(fresh[:, t, None, None, None], 0.0, rho)
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


def lif_scan(current: Tensor, membrane: Tensor, refractory: Tensor, n: Neurons, *, graded: bool) -> Scan:
    """Leaky integrate-and-fire neurons, token by token, the gradient left to autograd: see `bdh.ops.lif_scan`.

    Args:
        current: (B, H, T, K).
        membrane: (B, H, K).
        refractory: (B, H, K) int8.
        n: constants.
        graded: whether the activity is graded.

    Returns:
        spikes and activity (B, H, T, K), membrane and refractory after the last token.
    """
    alpha = (-1 / torch.tensor(n.tau, dtype=torch.float64)[:, None]).exp().to(current)  # (H, 1)
    threshold, spread = n.threshold.to(current), n.spread.to(current)
    v, left, spikes = membrane, refractory, []
    for t in range(current.shape[2]):
        h = alpha * v + (1 - alpha) * (n.v_rest + current[:, :, t])
        closed = left > 0
        s = spike_function(h - threshold, n.surrogate, n.beta, scale=spread)
        s = torch.where(closed, 0.0, s)
        felt = s.detach() if n.detach_reset else s
        if n.reset == "soft":
            v = h - felt * (threshold - n.v_reset)
        elif n.reset == "hard":
            v = (1 - felt) * h + felt * n.v_reset
        else:
            v = h
        v = torch.where(closed, n.v_reset, v)
        left = torch.where(s > 0, n.refractory, (left - 1).clamp_min(0)).to(left.dtype)
        spikes.append(s)
    fired = torch.stack(spikes, dim=2)
    return Scan(fired, fired * current.relu() if graded else fired, v, left)
