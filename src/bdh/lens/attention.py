"""The memory read as attention: how much each token takes of each token before it, with its sign.

    s(t, tau) = w(t - tau) <R_t x_t, R_tau x_tau>   for tau < t, else 0;      a_t = sum_tau s(t, tau) v_tau

There is no softmax: scores are no shares, do not sum to one and can be negative, though x >= 0, since neurons whose
rotation has gone half a turn count against. A token does not see itself.

Shapes: B texts, H heads, T tokens, K neurons per head.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bdh import ops
from bdh.lens.energy import check_one
from bdh.lens.inspection import plain
from bdh.lens.memory import check_level, refuse_pairing, weights
from bdh.lens.record import record
from bdh.lens.untrained import untrained
from bdh.model import BDH, evaluating


@torch.no_grad()
def attention_scores(model: BDH, text_or_idx: str | bytes | Tensor, level: int) -> Tensor:
    """Return the scores of every token for every token before it; the same as those of `write_ledger`.

    Args:
        model: the model; dropout is off.
        text_or_idx: text (read as UTF-8 bytes) or token ids (B, T).
        level: the level.

    Returns:
        (B, H, T, T), reading token before the one that is read; at least float32.

    Raises:
        ValueError: a level that the model does not have, token ids that it refuses, or STDP of the form "trace".

    Examples:
        >>> from bdh import BDHConfig
        >>> model = BDH.from_seed(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4), 0)
        >>> scores = attention_scores(model, "euro", level=1)
        >>> scores.shape, bool((scores.triu() == 0).all())
        (torch.Size([1, 2, 4, 4]), True)
    """
    refuse_pairing(model, "attention_scores")
    check_level(model, level)
    idx = model.as_ids(text_or_idx)
    with evaluating(model):
        _, trace = record(model, idx, f"layers.{level}.x_sparse", limit=None)
    x = trace[f"layers.{level}.x_sparse"]
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    q = ops.rotate(x, ops.rotation(x.shape[-1], 0, x.shape[2], like=x))
    return q @ q.mT * weights(model, x.shape[2], like=x)


@dataclass(frozen=True)
class HeadAttention:
    """The scores of one head."""

    scores: tuple[tuple[float, ...], ...]
    """Row t has the t scores of the tokens before token t."""
    negative: float | None
    """Share of the scores that are negative; None for a single token."""
    weight: float | None
    """Share of negative scores in the sum of their sizes; None where all are 0."""
    init_negative: float | None
    """`negative` at random initialisation."""
    init_weight: float | None
    """`weight` at random initialisation."""


@dataclass(frozen=True)
class Attention:
    """How one text reads itself at one level."""

    level: int
    ids: tuple[int, ...]
    heads: tuple[HeadAttention, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that goes into JSON."""
        values: dict[str, Any] = plain(dataclasses.asdict(self))
        return values


def signed_attention(model: BDH, text_or_idx: str | bytes | Tensor, level: int, *, seed: int = 0) -> Attention:
    """Return the scores of a text, how much of them is negative, and the same at random initialisation.

    Args:
        model: the model; dropout is off.
        text_or_idx: text (read as UTF-8 bytes) or token ids (1, T).
        level: the level.
        seed: of the random weights.

    Raises:
        ValueError: more than one text, or as `attention_scores`.

    Examples:
        >>> from bdh import BDHConfig
        >>> model = BDH.from_seed(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4), 0)
        >>> found = signed_attention(model, "euro", level=1)
        >>> [len(row) for row in found.heads[0].scores]
        [0, 1, 2, 3]
    """
    idx = model.as_ids(text_or_idx)
    check_one(idx)
    scores = attention_scores(model, idx, level)[0]
    init = attention_scores(untrained(model, idx, seed), idx, level)[0]
    heads = tuple(
        HeadAttention(
            tuple(tuple(row[:t]) for t, row in enumerate(found.tolist())),
            *negative_share(found),
            *negative_share(first),
        )
        for found, first in zip(scores, init, strict=True)
    )
    return Attention(level, tuple(idx[0].tolist()), heads)


def negative_share(scores: Tensor) -> tuple[float | None, float | None]:
    """Return the share of negative scores (T, T) below the diagonal, by number and by size.

    Examples:
        >>> negative_share(torch.tensor([[0.0, 0, 0], [1, 0, 0], [4, -5, 0]]))
        (0.3333333333333333, 0.5)
    """
    T = len(scores)
    size = scores.abs().sum().item()
    return (
        (scores < 0).sum().item() / (T * (T - 1) / 2) if T > 1 else None,
        scores.clamp(max=0).abs().sum().item() / size if size else None,
    )
