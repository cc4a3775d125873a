"""How far back the memory is read, by timescale: the age of what is read, weighted by how strongly.

    span[b] = sum_{t, tau<t} (t - tau) |s_b(t, tau)| / sum_{t, tau<t} |s_b(t, tau)|
    s_b(t, tau) = w(t - tau) sum_{j in b} x_t[j] (R_t^T R_tau x_tau)[j]

The scores s are those of the ledger (`bdh.lens.write_ledger`), split by the band b of periods that the neurons have;
over the bands they sum to the score. Were every past token read alike, the span would be the mean age.

Shapes: T tokens, H heads, K neurons per head, P = K/2 pairs of a head.
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
from bdh.lens.memory import refuse_pairing, weights
from bdh.lens.timescales import bands
from bdh.model import BDH, evaluating


@dataclass(frozen=True)
class BandSpan:
    """How far back one band of one level reads."""

    band: str
    """Periods, in tokens."""
    neurons: int
    """Of all heads."""
    span: float | None
    """Mean age of what is read, in tokens; None where nothing is read."""
    share: float | None
    """Of the level's sum of |s_b| over the bands."""
    negative: float | None
    """Share of negative scores in this sum."""


@dataclass(frozen=True)
class MemorySpan:
    """How far back the memory is read."""

    levels: tuple[tuple[BandSpan, ...], ...]
    """By level and band."""
    whole: tuple[float | None, ...]
    """Span of the whole score, by level."""
    even: float
    """Mean age of all past tokens of all reading tokens: the span if all were read alike."""
    n_tokens: int

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that goes into JSON."""
        values: dict[str, Any] = plain(dataclasses.asdict(self))
        return values


def memory_span(model: BDH, text_or_idx: str | bytes | Tensor) -> MemorySpan:
    """Measure how old what is read from the memory is, by level and by the period of the neurons that read it.

    Args:
        model: the model; dropout is off.
        text_or_idx: text (read as UTF-8 bytes) or token ids (1, T), two tokens or more.

    Raises:
        ValueError: more than one text, fewer than two tokens, or STDP of the form "trace", where pairs of tokens write.

    Examples:
        >>> from bdh import BDHConfig
        >>> model = BDH.from_seed(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4), 0)
        >>> found = memory_span(model, "one euro, two euros")
        >>> round(found.even, 2), round(sum(band.share for band in found.levels[1]), 6)
        (6.67, 1.0)
    """
    refuse_pairing(model, "memory_span")
    idx = model.as_ids(text_or_idx)
    check_one(idx)
    T = idx.shape[1]
    if T < 2:
        raise ValueError("text: expected two tokens or more, got 1; the first one reads nothing")
    at = torch.arange(T, dtype=torch.float64, device=idx.device)
    age = (at[:, None] - at).tril(-1)  # (T, T)
    levels: list[tuple[BandSpan, ...]] = []
    whole: list[float | None] = []

    def measure(name: str, tensor: Tensor) -> Tensor:
        if not name.endswith(".x_sparse"):
            return tensor
        wide = tensor[0].to(torch.promote_types(tensor.dtype, torch.float32))  # (H, T, K)
        q = ops.rotate(wide, ops.rotation(wide.shape[-1], 0, T, like=wide)).unflatten(-1, (-1, 2))
        weight = weights(model, T, like=wide)
        found = {}
        for band, of in bands(model).items():
            part = q[:, :, of.to(q.device)].flatten(2)
            found[band] = ((part @ part.mT) * weight).double()  # (H, T, T)
        whole.append(_mean(age, sum(found.values(), torch.zeros_like(age)).abs()))
        size = {band: scores.abs().sum().item() for band, scores in found.items()}
        all_of_them = sum(size.values())
        levels.append(
            tuple(
                BandSpan(
                    band, 2 * int(of.sum()) * model.config.n_head, _mean(age, found[band].abs()),
                    size[band] / all_of_them if all_of_them else None,
                    found[band].clamp(max=0).abs().sum().item() / size[band] if size[band] else None,
                )
                for band, of in bands(model).items()
            )
        )  # fmt: skip
        return tensor

    with evaluating(model):
        model(idx, tap=measure)
    return MemorySpan(tuple(levels), tuple(whole), age.sum().item() / (T * (T - 1) / 2), T)


def _mean(age: Tensor, weight: Tensor) -> float | None:
    """Mean of the age (T, T) weighted by (H, T, T); None without any weight."""
    total = weight.sum().item()
    return (age * weight).sum().item() / total if total else None
