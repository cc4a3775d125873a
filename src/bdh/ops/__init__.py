"""The one door to the operations: callers name what they want, this room knows how it is computed.

Shapes: B batch, H heads, T tokens, K neurons per head, D embedding.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bdh.ops import parallel, reference
from bdh.ops.rotary import frequencies, rotate, rotation

__all__ = ["attention_read", "frequencies", "linear_attention", "rotate", "rotation"]

Backend = Literal["auto", "reference", "dense", "chunked"]

CROSSOVER = 4
"""The quadratic form is the faster one up to T = CROSSOVER * D (measured: docs/LOG.md)."""


def attention_read(q: Tensor, v: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Read of causal linear attention from an empty state, when no state is wanted afterwards (training).

        a_t = sum_{tau < t} (q_t . q_tau) v_tau          strictly past: read before write (paper, Eq. 8)

    Args:
        q: (B, H, T, K) rotated activations.
        v: (B, T, D) values, shared by the heads.
        backend: "auto" picks the form that is faster at this length.

    Returns:
        a (B, H, T, D).

    Examples:
        >>> a = attention_read(torch.ones(1, 1, 3, 2), torch.ones(1, 3, 1))
        >>> a.flatten().tolist()
        [0.0, 2.0, 4.0]
    """
    if backend == "reference":
        return reference.quadratic_attention(q, v)
    if backend == "dense" or (backend == "auto" and q.shape[2] <= CROSSOVER * v.shape[-1]):
        return parallel.dense(q, v)
    return parallel.chunked(q, v, None)[0]


def linear_attention(
    q: Tensor, v: Tensor, rho: Tensor | None = None, *, backend: Backend = "auto", owns_rho: bool = False
) -> tuple[Tensor, Tensor]:
    """Causal linear attention with its state.

        a_t = q_t rho_{t-1},    rho_t = rho_{t-1} + q_t^T v_t        (paper, Eq. 8; rho in the rotated frame)

    Args:
        q: (B, H, T, K) rotated activations, queries and keys in one.
        v: (B, T, D) values, shared by the heads.
        rho: (B, H, K, D) state; None is zero.
        backend: "auto" picks by length; "dense" has no state and is refused.
        owns_rho: the caller gives its state away, so its memory may be written to. Otherwise it is not touched.

    Returns:
        a (B, H, T, D) and the new state (B, H, K, D), in the dtype of `rho` (float32 at least).
    """
    if backend == "dense":
        raise ValueError("backend='dense' keeps no state: expected 'auto', 'reference' or 'chunked'")
    # sums over a whole stream are kept in float32 at least, under autocast too
    wide = rho.dtype if rho is not None else torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        args = q.to(wide), v.to(wide)
        if backend == "reference":
            a, rho = reference.linear_attention(*args, rho)
        elif q.shape[2] == 1 and rho is not None:
            a, rho = parallel.step(*args, rho, owns_rho=owns_rho)
        else:
            a, rho = parallel.chunked(*args, rho, owns_rho=owns_rho)
    return a.to(q.dtype), rho
