"""Tokens -> batches. The order of the data is a pure function of (seed, step), so a resumed run needs no replay.

Shapes: B batch, T tokens of a window (`block_size`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bdh.data.shards import TokenShards

if TYPE_CHECKING:
    from torch import Tensor

    Batch = tuple[Tensor, Tensor]

NOT_SCORED = -100
"""A target that no loss counts."""

Tokens = npt.NDArray[Any] | TokenShards


def random_windows(tokens: Tokens, *, seed: int, step: int, batch_size: int, block_size: int) -> Batch:
    """Draw the windows of one training step, uniformly and with replacement.

    The offsets are raw words of the Philox counter generator with key `seed` and counter `step`: the same on every
    machine and NumPy version, and independent between steps and seeds.

    Args:
        tokens: `(n,)` integers; may be memory-mapped.
        seed: 0..2**63-1.
        step: 0 or more; every step (micro-step, with gradient accumulation) has windows of its own.
        batch_size: B, windows per step.
        block_size: T, tokens per window.

    Returns:
        `idx` and `targets`, `(B, T)` int64 each; `targets[b, t]` is the token after `idx[b, t]`.

    Raises:
        ValueError: fewer than `block_size + 1` tokens, or an argument out of range.

    Examples:
        >>> idx, targets = random_windows(np.arange(100), seed=0, step=7, batch_size=2, block_size=3)
        >>> idx.tolist(), targets.tolist()
        ([[64, 65, 66], [80, 81, 82]], [[65, 66, 67], [81, 82, 83]])
    """
    _require_window(tokens, block_size)
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed={seed} must be in 0..2**63-1; pass a non-negative integer")
    if not 0 <= step < 2**64:
        raise ValueError(f"step={step} must be in 0..2**64-1; count steps from 0")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    # the counter has 256 bits: the step in the upper half, so that no two steps share a word of the lower half;
    # raw words, because NumPy keeps those the same for ever, and the methods of Generator not
    words = np.random.Philox(key=seed, counter=step << 128).random_raw(batch_size)
    # words of 64 bits: the bias of the remainder is below 2**-30 for any text of less than 16 GiB
    starts = words % np.uint64(len(tokens) - block_size)
    return _gather(tokens, starts.astype(np.int64), block_size)


def fixed_windows(tokens: Tokens, *, block_size: int, max_windows: int | None = None) -> Batch:
    """Cut the split into windows that do not overlap, and take `max_windows` of them, evenly spread: for validation.

    The same windows every time. The last tokens that do not fill a window (fewer than `block_size + 1`) are not seen.

    Args:
        tokens: `(n,)` integers.
        block_size: T, tokens per window.
        max_windows: how many windows at most; None: all of them, `(n - 1) // block_size`.

    Returns:
        `idx` and `targets`, `(windows, T)` int64 each; `targets` is `idx` moved on by one token.

    Raises:
        ValueError: fewer than `block_size + 1` tokens, or an argument out of range.

    Examples:
        >>> idx, targets = fixed_windows(np.arange(12), block_size=3, max_windows=2)
        >>> idx.tolist(), targets.tolist()
        ([[0, 1, 2], [3, 4, 5]], [[1, 2, 3], [4, 5, 6]])
    """
    _require_window(tokens, block_size)
    if max_windows is not None and max_windows < 1:
        raise ValueError(f"max_windows={max_windows} must be at least 1, or None for all")
    available = (len(tokens) - 1) // block_size
    count = available if max_windows is None else min(max_windows, available)
    starts = np.arange(count, dtype=np.int64) * available // count * block_size
    return _gather(tokens, starts, block_size)


def scored_share(targets: Tensor) -> float:
    """Return how many windows' worth of targets a loss counts, by which means over batches are to be weighted.

    Examples:
        >>> import torch
        >>> scored_share(torch.tensor([[1, 2], [3, NOT_SCORED]]))
        1.5
    """
    return int((targets != NOT_SCORED).sum()) / targets.shape[1]


def tensor(array: npt.NDArray[Any]) -> Tensor:
    """Return the array as a tensor. The only place where text meets torch, which takes a second to import.

    Examples:
        >>> tensor(np.arange(3))
        tensor([0, 1, 2])
    """
    import torch

    return torch.from_numpy(array)


def _gather(tokens: Tokens, starts: npt.NDArray[np.int64], block_size: int) -> Batch:
    """Copy the windows out of the tokens: `starts (B,)` -> idx, targets `(B, T)`."""
    windows = tokens[starts[:, None] + np.arange(block_size + 1)].astype(np.int64)  # (B, T+1)
    return tensor(windows[:, :-1].copy()), tensor(windows[:, 1:].copy())


def _require_window(tokens: Tokens, block_size: int) -> None:
    """Refuse what no window can be cut from."""
    if block_size < 1:
        raise ValueError(f"block_size={block_size} must be at least 1")
    if tokens.ndim != 1:
        raise ValueError(f"tokens must be one sequence (n,), got shape {tokens.shape}")
    if len(tokens) < block_size + 1:
        raise ValueError(
            f"block_size={block_size} needs at least {block_size + 1} tokens (a window and its targets), "
            f"got {len(tokens)}; use a smaller block size or a longer text"
        )


def spread(text: bytes, size: int, piece: int = 4096) -> bytes:
    """Return about `size` bytes in pieces taken evenly from the whole text, which may begin with one play."""
    if len(text) <= size:
        return text
    count = max(1, size // piece)
    starts = [round(i * (len(text) - piece) / max(1, count - 1)) for i in range(count)]
    return b"".join(text[start : start + piece] for start in starts)
