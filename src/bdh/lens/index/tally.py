"""What one pass over a text counts and keeps of every neuron, in memory that does not grow with the text.

The activations of a level are looked at in slices of neurons that stay in the cache: sums, a histogram by the bits of
the numbers, and only the few places that beat what is kept. Slices are independent, so threads change nothing.

Shapes: B windows of a block, T tokens of a window, L levels, H heads, K neurons per head, N neurons in all, G n-grams;
k neurons of a slice.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bdh.lens.index.kept import NONE, Kept, by_neuron, keys, strongest_first
from bdh.lens.index.ngrams import NGrams
from bdh.lens.index.plan import Plan
from bdh.lens.sums import ROWS, Sums, pieces

Array = npt.NDArray[Any]

SLICE = 2048
"""Neurons that are looked at together: with 128 tokens, a megabyte."""

IN_HISTOGRAM = 2**18
"""About as many positions are looked at for the histogram, evenly spread; a shorter text wholly."""
LOW, HIGH = -8, 8
_STEP = 22
"""Bits below the exponent and the first bit of the mantissa of a float32."""
_ZERO = ((127 + LOW) << 1) - 2
"""Upper bits of a number two steps below 2^LOW: what is counted from."""
N_BINS = 2 * (HIGH - LOW) + 2
EDGES = (0.0, *(2.0**e * half for e in range(LOW, HIGH) for half in (1.0, 1.5)), 2.0**HIGH)
"""Lower edges of the bins of positive activations: 0, then 2^e and 1.5 * 2^e; the last bin has no upper edge."""


def stride(n_bytes: int) -> int:
    """Return between which positions of a text the histogram goes from one to the next.

    Examples:
        >>> stride(1000), stride(2**20)
        (1, 4)
    """
    return max(1, n_bytes // IN_HISTOGRAM)


class Desk:
    """Room for the intermediate results of one slice, so that none of them is allocated for every few tokens."""

    def __init__(self, width: int) -> None:
        self.upper, self.bins = np.empty((ROWS, width), np.int32), np.empty((ROWS, width), np.uint8)
        self.fires, self.flags = np.empty((ROWS, width), bool), np.empty((ROWS, width), bool)


def bins(a: Array, fires: Array, desk: Desk) -> Array:
    """Return the number of the bin of each activation, 1..N_BINS, 0 where it is 0.

    Args:
        a: activations >= 0, float32.
        fires: whether a > 0.
        desk: its `upper` and `bins` are written to.

    Examples:
        >>> a = np.array([[0, 1e-30, 1.0, 1.4999, 1.5, 9e9]], dtype=np.float32)
        >>> found = bins(a, a > 0, Desk(6))[0]
        >>> found.tolist(), [EDGES[b - 1] for b in found[1:]]
        ([0, 1, 18, 18, 19, 34], [0.0, 1.0, 1.0, 1.5, 256.0])
    """
    upper, found = desk.upper[: len(a)], desk.bins[: len(a)]
    np.right_shift(a.view(np.int32), _STEP, out=upper)
    np.clip(upper, _ZERO, _ZERO + N_BINS, out=upper)
    # the lowest byte alone, and what it wraps around: bins are fewer than bytes
    np.copyto(found, upper, casting="unsafe")
    np.subtract(found, np.uint8(_ZERO & 255), out=found)
    return np.maximum(found, fires.view(np.uint8), out=found)


class Tally:
    """The counts of one shard of a text; a tap of the model. `begin` goes before each block and `finish` after it."""

    def __init__(self, plan: Plan, ngrams: NGrams) -> None:
        c = plan.shape
        L, N, width = c.n_layer, c.n_neurons, plan.before + 1 + plan.after
        assert L <= 255, "how many levels fire at a token is counted in a byte"
        self.plan, self.ngrams, self.K, self.L = plan, ngrams, c.neurons_per_head, L
        self.names = {f"layers.{level}.{plan.signal}": level for level in range(L)}
        self.sums = Sums(L, N)
        self.stride = stride(plan.n_bytes)
        self.above = np.zeros((L, N_BINS, N), np.uint32)
        """Fires in each bin or a higher one, at every so-manieth position."""
        self.at_ngram = np.zeros((len(ngrams.grams), N), np.uint32)
        """Fires at each n-gram, all levels."""
        self.place = np.zeros(N, np.int64)
        """Sum of the positions in their windows of all fires."""
        self.top = Kept(N, plan.top, width)
        self.drawn = Kept(N, plan.samples, width)
        self._pool = ThreadPoolExecutor(torch.get_num_threads())

    def begin(self, start: int, windows: int, tokens: int) -> None:
        """Prepare for a block.

        Args:
            start: position of its first byte in the text.
            windows: B.
            tokens: T.
        """
        N = self.top.key.shape[0]
        self._start = start
        self._firing = np.zeros((windows, tokens, N), np.uint8)  # levels at which each neuron fires
        self._best = np.zeros((windows, N), np.float32)
        self._best_event = np.zeros((windows, N), np.uint32)
        self._best_strip = np.zeros((windows, N, self.plan.before + 1 + self.plan.after), np.float16)
        # raw words of a counter generator: the same for a place of the text whoever reads it, and whenever
        words = np.random.Philox(key=self.plan.seed, counter=start << 128).random_raw(self.L * windows * tokens)
        self._lot = (words >> np.uint64(32)).astype(np.uint32).reshape(self.L, windows, tokens)

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """Count the activations of a level, and hand the tensor on unchanged."""
        if (level := self.names.get(name)) is not None:
            values = tensor.detach().float().cpu().contiguous().numpy()  # (B, H, T, K)
            slices = [(h, k) for h in range(values.shape[1]) for k in range(0, self.K, SLICE)]
            list(self._pool.map(lambda one: self._slice(level, values, *one), slices))
        return tensor

    def _slice(self, level: int, values: Array, head: int, k: int) -> None:
        part = values[:, head, :, k : k + SLICE]  # (B, T, k)
        at = slice(head * self.K + k, head * self.K + k + part.shape[2])
        desk = Desk(part.shape[2])
        for b, window in enumerate(part):
            peak = np.zeros(window.shape[1], np.float32)
            for rows in pieces(len(window)):
                a, flags = window[rows], desk.flags[: rows.stop - rows.start]
                fires = np.greater(a, 0, out=desk.fires[: len(a)])
                highest = self.sums.add(level, at, a, fires)
                np.maximum(peak, highest, out=peak)
                some = slice(-(self._start + b * len(window) + rows.start) % self.stride, None, self.stride)
                found = bins(a[some], fires[some], desk)
                for number in range(int(found.max(initial=0))):
                    more = np.greater(found, number, out=flags[: len(found)]).view(np.uint8)
                    # 128 rows at most, so a byte is enough
                    self.above[level, number, at] += np.add.reduce(more, 0, dtype=np.uint8)
                self._firing[b, rows, at] += fires.view(np.uint8)
                self._draw(level, b, rows, at, window, fires, highest)
            self._note(level, b, at, window, peak)

    def _draw(self, level: int, b: int, rows: slice, at: slice, window: Array, fires: Array, highest: Array) -> None:
        """A uniform sample of the fires of each neuron: those with the smallest lots, whatever their strength."""
        lots, limit = self._lot[level, b, rows], self.drawn.last(at)
        # few tokens have a lot that could win anything: the others need not be looked at neuron by neuron
        some = np.flatnonzero(lots <= limit[highest > 0].max(initial=0))
        wins = (lots[some, None] <= limit) & fires[some]
        if not wins.any():
            return
        token, neuron = np.nonzero(wins)
        token = some[token]
        key = keys(lots[token], self._events(level, b, rows.start + token))
        token = token + rows.start
        neurons, filled, columns = by_neuron(neuron, key, window[token, neuron], self._strips(window, token, neuron))
        self.drawn.offer(at.start + neurons, np.where(filled, columns[0], NONE), *columns[1:])

    def _note(self, level: int, b: int, at: slice, window: Array, peak: Array) -> None:
        """Remember the strongest place of the window, if it beats the contexts kept and the levels before."""
        better = np.flatnonzero(peak > np.maximum(self.top.activation[at, -1], self._best[b, at]))
        if len(better):
            token = np.ascontiguousarray(window[:, better].T).argmax(1)
            self._best[b, at.start + better] = peak[better]
            self._best_event[b, at.start + better] = self._events(level, b, token)
            self._best_strip[b, at.start + better] = self._strips(window, token, better)

    def _events(self, level: int, b: int, token: Array) -> Array:
        """Numbers of places: position in the text times L, plus the level."""
        return (self._start + b * self._firing.shape[1] + token) * self.L + level

    def _strips(self, window: Array, token: Array, neuron: Array) -> Array:
        """Activations around places (c,) of a window, 0 beyond its ends, as (c, W)."""
        around = token[:, None] + np.arange(-self.plan.before, self.plan.after + 1)
        inside = (around >= 0) & (around < len(window))
        found = window[np.where(inside, around, 0), neuron[:, None]]
        return np.where(inside, found, 0).clip(max=65504).astype(np.float16)

    def finish(self) -> None:
        """Add up what all levels of the block gave together."""
        list(self._pool.map(self._finish_slice, range(0, self._firing.shape[2], SLICE)))
        list(self._pool.map(self._finish_ngrams, self.ngrams.ids))

    def _finish_slice(self, start: int) -> None:
        at = slice(start, start + SLICE)
        some = np.flatnonzero(self._best[:, at].any(0))
        value = self._best[:, start + some].T
        found = keys(strongest_first(value), self._best_event[:, start + some].T)
        strip = self._best_strip[:, start + some].swapaxes(0, 1)
        self.top.offer(start + some, np.where(value > 0, found, NONE), value, strip)
        for window in self._firing[:, :, at]:
            for rows in pieces(len(window)):
                place = np.arange(rows.start, rows.stop, dtype=np.float32)
                self.place[at] += np.einsum("t,tk->k", place, window[rows].astype(np.float32)).astype(np.int64)

    def _finish_ngrams(self, ids: Array) -> None:
        """Fires at the n-grams of one length: their rows of the table are no other length's."""
        firing = self._firing.reshape(-1, self._firing.shape[2])
        here = ids[self._start : self._start + len(firing)]
        # sorted, so that the row of an n-gram that comes again is still in the cache
        for token in np.argsort(here, kind="stable")[(here < 0).sum() :].tolist():
            row = self.at_ngram[here[token]]
            np.add(row, firing[token], out=row)

    def merge(self, other: Tally) -> None:
        """Add the counts of another shard."""
        for name, mine in self.arrays().items():
            if not name.startswith(("top.", "drawn.", "largest")):
                mine += other.arrays()[name]
        np.maximum(self.sums.largest, other.sums.largest, out=self.sums.largest)
        self.top.merge(other.top)
        self.drawn.merge(other.drawn)

    def arrays(self) -> dict[str, Array]:
        """Return all that is counted and kept, to be written or filled."""
        kept = {
            f"{name}.{part}": getattr(store, part)
            for name, store in {"top": self.top, "drawn": self.drawn}.items()
            for part in ("key", "activation", "strip")
        }
        sums = {name: getattr(self.sums, name) for name in ("fires", "total", "squares", "largest")}
        return {**sums, "above": self.above, "at_ngram": self.at_ngram, "place": self.place, **kept}
