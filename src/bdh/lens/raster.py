"""Which of a level's neurons spike at which token: a few rows, chosen and said, out of thousands.

Shapes: B batch, T tokens, N neurons of a level by global id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from bdh.lens.inspection import readable

Choice = Literal["active", "even"]
SHOWN_NEURONS = 40
"""Rows of a level: more would be thinner than a line."""

SHOWN_TOKENS = 240
"""Columns: more would be thinner than a line on a page."""

_CHOSEN = {"active": "most active", "even": "evenly spaced", "given": "chosen"}


@dataclass(frozen=True)
class LevelSpikes:
    """The shown rows of one level."""

    neurons: tuple[int, ...]
    """Global ids of the rows, ascending."""
    events: tuple[tuple[int, int], ...]
    """(token, row) of each spike, by token."""
    rate: tuple[float, ...]
    """Share of all N neurons that spike, per token."""


@dataclass(frozen=True)
class SpikeRaster:
    """Spikes of a text, level by level."""

    levels: tuple[LevelSpikes, ...]
    chosen: str
    """How the rows were chosen: "most active", "evenly spaced" or "chosen"."""
    n_neurons: int
    """Neurons of a level in all."""
    n_tokens: int
    """Tokens of the text in all; shown are the first `len(levels[0].rate)`."""
    shown: tuple[str, ...]
    """One string per shown token, or none."""

    @property
    def summary(self) -> str:
        """What is shown of what.

        Examples:
            >>> spike_raster(torch.ones(1, 3, 500)).summary
            '40 most active of 500 neurons per level, 3 tokens'
        """
        shown = len(self.levels[0].rate)
        of = f"first {shown} of {self.n_tokens:,}" if shown < self.n_tokens else f"{shown}"
        return f"{len(self.levels[0].neurons)} {self.chosen} of {self.n_neurons:,} neurons per level, {of} tokens"


def spike_raster(
    spikes: Tensor | Sequence[Tensor],
    *,
    neurons: int | Sequence[int] = SHOWN_NEURONS,
    tokens: int = SHOWN_TOKENS,
    choice: Choice = "active",
    text: str | bytes | None = None,
    sequence: int = 0,
) -> SpikeRaster:
    """Choose what a raster shows.

    Args:
        spikes: what `BDH.get_spikes` returns, or one level of it: (B, T, N) each, sparse or dense. What is > 0 counts
            as a spike, so that `BDH.get_sparse_activations` can be shown too.
        neurons: how many rows per level, or which neurons by global id.
        tokens: how many tokens at most, from the start.
        choice: rows of the neurons that spike most often at these tokens, or of evenly spaced ids.
        text: the text read, one byte per token, for the labels.
        sequence: which of the B texts.

    Raises:
        ValueError: no level, another shape, an id or a count out of range, or a text of another length.

    Examples:
        >>> raster = spike_raster(torch.tensor([[[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]]]), neurons=2, text="hi")
        >>> raster.levels[0].neurons, raster.levels[0].events, raster.shown
        ((0, 1), ((0, 1), (1, 0), (1, 1)), ('h', 'i'))
    """
    levels = [spikes] if isinstance(spikes, Tensor) else list(spikes)
    shapes = {tuple(level.shape) for level in levels}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 3 or 0 in shape:
        raise ValueError(
            f"spikes: expected levels (B, T, N) of one shape, got {[tuple(level.shape) for level in levels]}; "
            "pass what model.get_spikes(text) returns"
        )
    if choice not in get_args(Choice):
        raise ValueError(f"choice={choice!r}: expected one of {', '.join(get_args(Choice))}")
    B, T, N = shape
    if not 0 <= sequence < B:
        raise ValueError(f"sequence={sequence}: expected 0..{B - 1}, one of the {B} texts")
    if tokens < 1:
        raise ValueError(f"tokens={tokens}: expected an integer >= 1")
    data = text.encode() if isinstance(text, str) else text
    if data is not None and len(data) != T:
        raise ValueError(f"text: expected the {T} bytes that were read, got {len(data)}; pass the same text")
    wanted = _wanted(neurons, N)
    return SpikeRaster(
        levels=tuple(_level(level, sequence, min(tokens, T), wanted, choice) for level in levels),
        chosen=_CHOSEN["given" if isinstance(wanted, list) else choice],
        n_neurons=N,
        n_tokens=T,
        shown=() if data is None else tuple(readable(data, "␣")[:tokens]),
    )


def _wanted(neurons: int | Sequence[int], N: int) -> int | list[int]:
    if isinstance(neurons, int):
        if neurons < 1:
            raise ValueError(f"neurons={neurons}: expected at least one row")
        return min(neurons, N)
    ids = sorted(set(neurons))
    if not ids or ids[0] < 0 or ids[-1] >= N:
        raise ValueError(f"neurons: expected global ids 0..{N - 1}, got {list(neurons)[:8]}")
    return ids


def _level(level: Tensor, sequence: int, tokens: int, wanted: int | list[int], choice: Choice) -> LevelSpikes:
    N = level.shape[2]
    found = level.detach().coalesce() if level.is_sparse else level.detach().to_sparse()
    batch, token, neuron = found.indices().cpu()
    here = (batch == sequence) & (token < tokens) & (found.values() > 0).cpu()
    token, neuron = token[here], neuron[here]
    if isinstance(wanted, list):
        ids = torch.tensor(wanted)
    elif choice == "even":
        ids = (torch.arange(wanted) * N + N // 2) // wanted
    else:
        # stable: equal counts go to the lower id, so that the same spikes give the same picture
        ids = neuron.bincount(minlength=N).argsort(descending=True, stable=True)[:wanted].sort().values
    row = torch.full((N,), -1)
    row[ids] = torch.arange(len(ids))
    rows = row[neuron]
    events = torch.stack((token, rows), 1)[rows >= 0].tolist()
    return LevelSpikes(
        neurons=tuple(ids.tolist()),
        events=tuple(sorted((t, r) for t, r in events)),
        rate=tuple((token.bincount(minlength=tokens) / N).tolist()),
    )
