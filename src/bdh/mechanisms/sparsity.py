"""Exact sparsity: k winners take all."""

from __future__ import annotations

from torch import Tensor


def k_winners(x: Tensor, k: int) -> Tensor:
    """Keep the k largest entries of the last dimension and, of those, the positive ones; the rest is zero.

        y_i = x_i  if x_i > 0 and rank(x_i) < k,  else 0         rank 0 is the largest, ties go to the lower index

    Each token decides for itself, so the choice is causal. The gradient flows through the kept entries.

    Args:
        x: (..., K) pre-activations.
        k: how many may stay, 1 <= k <= K.

    Returns:
        (..., K), nonnegative.

    Examples:
        >>> import torch
        >>> k_winners(torch.tensor([3.0, -1.0, 2.0, 2.0]), 2).tolist()
        [3.0, 0.0, 2.0, 0.0]
    """
    if not 1 <= k <= x.shape[-1]:
        raise ValueError(f"k={k}: expected 1 <= k <= {x.shape[-1]} neurons; change the sparsity")
    values = x.detach()
    smallest_kept = values.topk(k, dim=-1, sorted=True).values[..., -1:]
    above = values > smallest_kept
    tied = values == smallest_kept
    room = k - above.sum(-1, keepdim=True)
    keep = above | (tied & (tied.cumsum(-1) <= room))
    return x.masked_fill(~keep, 0.0).relu()
