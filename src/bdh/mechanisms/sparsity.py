"""Exact sparsity: k winners take all."""

from __future__ import annotations

import torch
from torch import Tensor


def k_winners(x: Tensor, k: int) -> Tensor:
    """Keep the k largest entries of the last dimension and, of those, the positive ones; the rest is zero.

        y_i = x_i  if x_i > 0 and rank(x_i) < k,  else 0         rank 0 is the largest, ties go to the lower index

    Each token decides for itself, so the choice is causal. The gradient flows through the kept entries. NaN stays NaN,
    so that a broken computation is noticed.

    Args:
        x: (..., K) pre-activations.
        k: how many may stay, 1 <= k <= K.

    Returns:
        (..., K), nonnegative.

    Raises:
        ValueError: k is out of range.

    Examples:
        >>> import torch
        >>> k_winners(torch.tensor([3.0, -1.0, 2.0, 2.0]), 2).tolist()
        [3.0, 0.0, 2.0, 0.0]
    """
    if not 1 <= k <= x.shape[-1]:
        raise ValueError(f"k={k}: expected 1 <= k <= {x.shape[-1]} neurons; change the sparsity")
    positive = x.relu()
    if k == x.shape[-1]:
        return positive
    values = positive.detach()
    # one more than k: whoever exceeds the best loser has won
    best = values.topk(k + 1, dim=-1, sorted=False).values
    loser = best.amin(-1, keepdim=True)
    if values.device.type == "cpu" and not torch.compiler.is_compiling():
        drop = values <= loser
        # winners as small as the loser were dropped too: only those rows need the ties told apart, zeros need it not
        tied = ((best == loser).sum(-1, dtype=torch.int32) > 1) & (loser[..., 0] > 0)
        if tied.any():
            drop[tied] = _lost(values[tied], loser[tied], k)
    else:
        # an accelerator would be waited for to know whether there are ties
        drop = _lost(values, loser, k)
    return positive.masked_fill(drop, 0.0)


def _lost(values: Tensor, loser: Tensor, k: int) -> Tensor:
    """Which entries are not among the k largest, ties by index; NaN never is."""
    tied = values == loser
    room = k - (values > loser).sum(-1, keepdim=True)
    return (values < loser) | (tied & (tied.cumsum(-1) > room))
