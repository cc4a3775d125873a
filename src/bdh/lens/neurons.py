"""What fires: every neuron against validation text, and the neurons that tell what is in a text.

Weights are shared by all levels, so a neuron (global id h*K + k) is the same neuron at every level.
Shapes: B batch, T tokens, L levels, H heads, N neurons in all, K = N/H neurons per head.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bdh.lens.activity import pack_activity
from bdh.lens.density import Density, DensityTap, init_density
from bdh.lens.inspection import (
    ByteView,
    Context,
    Firing,
    Inspection,
    Pair,
    Raster,
    Telling,
    Word,
    readable,
    token_names,
)
from bdh.lens.mechanisms import inspect_mechanisms
from bdh.lens.sums import Sums
from bdh.lens.texts import Ids, as_bytes, blocks, context_at, level_names, to_ids
from bdh.model import BDH, evaluating

Rank = Literal["z", "activation"]
RASTER_ROWS = 240
"""Most rows of a raster: what a page can show."""


@dataclass(frozen=True, eq=False)
class NeuronStatistics:
    """How each neuron behaves on a text: one number per (level, neuron), each (L, N)."""

    mean: Tensor
    """Mean activation, float64."""
    std: Tensor
    """Standard deviation (divided by the count), float64."""
    max: Tensor
    """Largest activation."""
    fires: Tensor
    """Number of positions with an activation > 0."""
    n_bytes: int
    """Positions read."""
    density: Density
    """Fraction of neurons that fire, per level."""

    @property
    def rate(self) -> Tensor:
        """Fraction of positions at which the neuron fires (L, N)."""
        return self.fires.double() / self.n_bytes

    def z(self, pair: Pair, activation: float) -> float | None:
        """Return (activation - mean) / std of one neuron; None where it does not vary."""
        mean, std = self.mean[pair].item(), self.std[pair].item()
        return (activation - mean) / std if std > 0 else None


def neuron_statistics(model: BDH, ids: Ids, *, signal: str = "x_sparse", window: int = 256) -> NeuronStatistics:
    """Read a text in windows that start from an empty state, and sum up each neuron in O(L*N) memory.

    Args:
        model: the model; it is not changed.
        ids: (S,) bytes of the text; each is read once.
        signal: x_sparse, y_sparse or xy_sparse.
        window: bytes of one window.

    Raises:
        ValueError: an empty text, ids that are not bytes, or an unknown signal.

    Examples:
        >>> from bdh import BDHConfig
        >>> model = BDH(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4))
        >>> neuron_statistics(model, b"to be or not to be").rate.shape
        torch.Size([2, 64])
    """
    names = level_names(model, signal)
    data = as_bytes(ids, "validation text")
    sums, count = Sums(model.config.n_layer, model.config.n_neurons), DensityTap(model.config.n_layer)

    def add(name: str, tensor: Tensor) -> Tensor:
        if name in names:
            for sequence in tensor.float().cpu().numpy():  # (H, T, K)
                for head, a in enumerate(sequence):
                    sums.add(names[name], slice(head * a.shape[1], (head + 1) * a.shape[1]), a, a > 0)
        return count(name, tensor)

    with evaluating(model):
        for _, idx in blocks(model, data, window):
            model(idx, tap=add)
    mean, std, largest, fires = map(torch.from_numpy, sums.result(len(data)))
    return NeuronStatistics(mean, std, largest, fires, len(data), count.result())


def inspect_text(
    model: BDH,
    idx: Ids,
    baseline_ids: Ids,
    *,
    signal: str = "x_sparse",
    rank: Rank = "z",
    top: int = 5,
    telling: int = 12,
    contexts: int = 5,
    margin: int = 28,
    min_fires: int = 10,
    window: int = 256,
    seed: int = 0,
) -> Inspection:
    """Find the neurons that fire in a text, and those that tell it from other text.

    A neuron is scored by how far its activation a stands out from its own activity on validation text:

        z = (a - mean) / std,     among neurons that fire there at `min_fires` positions or more

    Ranked by a alone, the same few neurons would head every list: those that always fire, and fire strongly.
    Both numbers are given. `telling` neurons are ranked by z whatever `rank` is, each at its best level.

    Args:
        model: a model of bytes; it is not changed.
        idx: bytes of the text, (T,) or (1, T).
        baseline_ids: (S,) bytes of validation text; more bytes, steadier z-scores (10,000 is a fair start).
        signal: x_sparse, y_sparse or xy_sparse.
        rank: what "strongest" means for bytes and words, "z" or "activation".
        top: neurons per byte and per word.
        telling: neurons for the whole text.
        contexts: places of the validation text per telling neuron, each from another window.
        margin: bytes of text on either side of such a place.
        min_fires: how often a neuron must fire in the validation text to be scored.
        window: bytes of validation text read from one empty state.
        seed: of the weights of the random-initialisation line.

    Raises:
        ValueError: an empty text, ids that are not bytes, an unknown signal or rank, a count below 1.
    """
    if rank not in ("z", "activation"):
        raise ValueError(f"rank={rank!r}: expected 'z' or 'activation'")
    for name, value in {"top": top, "telling": telling, "contexts": contexts, "min_fires": min_fires}.items():
        if value < 1:
            raise ValueError(f"{name}={value}: expected an integer >= 1")
    text, baseline = as_bytes(idx, "text"), as_bytes(baseline_ids, "validation text")
    stats = neuron_statistics(model, baseline, signal=signal, window=window)
    words = [match.span() for match in re.finditer(rb"[^ \t\n\r\v\f]+", text.tobytes())]
    reader = _Reader(model, stats, signal, rank, text, words, (top, telling, min_fires))
    raster = _raster(model, reader, signal, text)
    places = _contexts(model, baseline, signal, [(f.level, f.neuron) for f in reader.telling], contexts, margin, window)
    c = model.config
    return Inspection(
        model=c.to_dict() | {"n_neurons": c.n_neurons, "n_parameters": c.n_parameters},
        signal=signal,
        rank=rank,
        text=text.tobytes(),
        n_baseline=len(baseline),
        min_fires=min_fires,
        density=reader.count.result(),
        density_init=init_density(c, to_ids(model, text[None]), seed),
        density_baseline=stats.density,
        bytes=reader.byte_views(),
        words=tuple(
            Word(start, stop, "".join(readable(text[start:stop].tobytes())), found)
            for (start, stop), found in zip(words, reader.by_word, strict=True)
        ),
        telling=tuple(_telling(f, stats, reader, found) for f, found in zip(reader.telling, places, strict=True)),
        raster=raster,
        activity=pack_activity(reader.levels, c.neurons_per_head),
        n_unseen=reader.n_unseen,
        mechanisms=inspect_mechanisms(
            model,
            to_ids(model, text[None]),
            to_ids(model, baseline),
            neurons=[(f.level, f.neuron) for f in reader.telling],
        ),
    )


class _Reader:
    """One pass over the text that keeps, of each level, only the strongest neurons of each span."""

    def __init__(
        self, model: BDH, stats: NeuronStatistics, signal: str, rank: str, text: npt.NDArray[np.uint8],
        words: list[tuple[int, int]], counts: tuple[int, int, int],
    ) -> None:  # fmt: skip
        self.stats, self.rank, self.text, self.words = stats, rank, text, words
        self.top, self.n_telling, self.min_fires = counts
        self.names, self.K = level_names(model, signal), model.config.neurons_per_head
        self.count = DensityTap(model.config.n_layer)
        self.mean = torch.zeros_like(stats.mean)
        self.activity: list[list[float]] = []
        self.levels: list[Tensor] = []
        self.n_unseen = 0
        self._of_byte: list[list[Firing]] = [[] for _ in text]
        self._of_word: list[list[Firing]] = [[] for _ in words]
        self._of_text: list[Firing] = []
        with evaluating(model):
            logits, _ = model(to_ids(model, text[None]), tap=self)
        self.log_p = logits[0].double().cpu().log_softmax(-1)  # (T, V)
        self.by_byte = [self._best(found, rank, self.top) for found in self._of_byte]
        self.by_word = [self._best(found, rank, self.top) for found in self._of_word]
        self.telling = self._best(self._of_text, "z", self.n_telling)

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        if name in self.names:
            self._read(self.names[name], tensor[0].transpose(0, 1).flatten(1).float().cpu())
        return self.count(name, tensor)

    def _read(self, level: int, a: Tensor) -> None:
        """Keep what is wanted of one level's activations (T, N)."""
        stats, often = self.stats, self.stats.fires[level] >= self.min_fires
        scored = (a > 0) & often & (stats.std[level] > 0)
        z = ((a - stats.mean[level].float()) / stats.std[level].float()).masked_fill(~scored, -math.inf)
        score = z if self.rank == "z" else a.masked_fill(a <= 0, -math.inf)
        self.mean[level] = a.double().mean(0)
        self.levels.append(a)
        self.activity.append((a > 0).double().mean(1).tolist())
        self.n_unseen += int(((a > 0).any(0) & ~often).sum())
        for position, found in enumerate(self._of_byte):
            found += self._strongest(level, a, score, position, position + 1, self.top)
        for (start, stop), found in zip(self.words, self._of_word, strict=True):
            found += self._strongest(level, a, score, start, stop, self.top)
        self._of_text += self._strongest(level, a, z, 0, len(a), self.n_telling)

    def _strongest(self, level: int, a: Tensor, score: Tensor, start: int, stop: int, k: int) -> list[Firing]:
        best = score[start:stop].amax(0)  # (N,)
        found = []
        for value, neuron in zip(*(t.tolist() for t in best.topk(min(k, len(best)))), strict=True):
            if value > -math.inf:
                position = start + int(a[start:stop, neuron].numpy().argmax())
                activation = a[position, neuron].item()
                place, rate = (level, neuron), self.stats.fires[level, neuron].item() / self.stats.n_bytes
                head, index = divmod(neuron, self.K)
                found.append(
                    Firing(level, head, index, neuron, position, activation, self.stats.z(place, activation), rate)
                )
        return found

    @staticmethod
    def _best(found: list[Firing], rank: str, k: int) -> tuple[Firing, ...]:
        """The k best neurons of all levels, each at its best level (k of each level are enough to know them)."""

        def score(f: Firing) -> float:
            return f.activation if rank == "activation" or f.z is None else f.z

        best: dict[int, Firing] = {}
        for firing in sorted(found, key=lambda f: (-score(f), f.level, f.neuron)):
            best.setdefault(firing.neuron, firing)
        return tuple(list(best.values())[:k])

    def byte_views(self) -> tuple[ByteView, ...]:
        p, following = self.log_p.max(-1)
        surprisal = [None, *(-self.log_p[t, byte].item() for t, byte in enumerate(self.text[1:].tolist()))]
        return tuple(
            ByteView(
                byte, shown, surprisal[t], token_names([int(following[t])])[0], p[t].exp().item(),
                tuple(level[t] for level in self.activity), self.by_byte[t],
            )
            for t, (byte, shown) in enumerate(zip(self.text.tolist(), readable(self.text.tobytes(), "␣"), strict=True))
        )  # fmt: skip


def _raster(model: BDH, reader: _Reader, signal: str, text: npt.NDArray[np.uint8]) -> Raster:
    """Rows for the telling neurons, then for the strongest of words and bytes, as many as a page can show."""
    stats = reader.stats
    # the first of every span before the second of any, so that a long text keeps its end
    spans = (*reader.by_word, *reader.by_byte)
    found = [*reader.telling, *(span[rank] for rank in range(reader.top) for span in spans if rank < len(span))]
    chosen = list(dict.fromkeys((f.level, f.neuron) for f in found))[:RASTER_ROWS]
    values = gather(model, to_ids(model, text[None]), signal, chosen)[:, 0]  # (rows, T)
    peak = values.numpy().argmax(-1) if chosen else np.zeros(0, dtype=np.int64)
    order = sorted(range(len(chosen)), key=lambda row: (chosen[row][0], int(peak[row]), chosen[row][1]))
    return Raster(
        rows=tuple(chosen[row] for row in order),
        values=tuple(tuple(values[row].tolist()) for row in order),
        baseline=tuple(
            (stats.mean[pair].item(), stats.std[pair].item(), stats.fires[pair].item() / stats.n_bytes)
            for pair in (chosen[row] for row in order)
        ),
        n_pairs=model.config.n_layer * model.config.n_neurons,
    )


def _contexts(
    model: BDH, data: npt.NDArray[np.uint8], signal: str, chosen: Sequence[Pair], k: int, margin: int, window: int
) -> list[tuple[Context, ...]]:
    """The k places that drive each chosen neuron most, at most one of each window."""
    if not chosen:
        return []
    values, positions = [], []
    with evaluating(model):
        for start, idx in blocks(model, data, window):
            block = gather(model, idx, signal, chosen).numpy()  # (rows, B, T)
            at = block.argmax(-1)
            values.append(np.take_along_axis(block, at[..., None], -1)[..., 0])
            positions.append(start + np.arange(idx.shape[0]) * idx.shape[1] + at)
    value, position = np.concatenate(values, 1), np.concatenate(positions, 1)  # (rows, windows)
    best = np.argsort(-value, axis=1, kind="stable")[:, :k]
    return [
        tuple(
            context_at(data, int(position[row, w]), value[row, w].item(), margin)
            for w in best[row]
            if value[row, w] > 0
        )
        for row in range(len(chosen))
    ]


def _telling(firing: Firing, stats: NeuronStatistics, reader: _Reader, contexts: tuple[Context, ...]) -> Telling:
    pair = firing.level, firing.neuron
    return Telling(
        firing=firing,
        mean=stats.mean[pair].item(),
        std=stats.std[pair].item(),
        largest=stats.max[pair].item(),
        contexts=contexts,
        text_profile=tuple(reader.mean[:, firing.neuron].tolist()),
        baseline_profile=tuple(stats.mean[:, firing.neuron].tolist()),
    )


def gather(model: BDH, idx: Tensor, signal: str, chosen: Sequence[Pair]) -> Tensor:
    """Activations of the chosen (level, neuron) pairs at each token, (rows, B, T), on the CPU."""
    names, K = level_names(model, signal), model.config.neurons_per_head
    out = torch.zeros(len(chosen), *idx.shape)

    def pick(name: str, tensor: Tensor) -> Tensor:
        level = names.get(name)
        rows = [row for row, pair in enumerate(chosen) if pair[0] == level]
        if rows:
            neurons = torch.tensor([chosen[row][1] for row in rows], device=tensor.device)
            out[rows] = tensor[:, neurons // K, :, neurons % K].float().cpu()
        return tensor

    with evaluating(model):
        model(idx, tap=pick)
    return out
