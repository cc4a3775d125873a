"""Which tokens each training step reads: a pure function of (seed, step), so that a resumed run needs no replay.

Two orders: windows drawn at random from the whole text, each read from an empty memory; and documents read from their
beginning to their end, window after window, each row of the batch its own, with the memory carried on.

Shapes: B rows of a batch, T tokens of a window (`block_size`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bdh.config import TrainConfig
from bdh.data.shards import TokenShards
from bdh.data.streams import NOT_SCORED, Tokens, random_windows

SCANNED = 2**24
"""Tokens that are looked at together for separators."""


class Batch(NamedTuple):
    """What one pass reads."""

    idx: Tensor
    """(B, T) tokens."""
    targets: Tensor
    """(B, T) the tokens after them; `NOT_SCORED` where there is none."""
    fresh: Tensor | None
    """(B,) which rows begin anew; None where all do, at every pass."""
    weight: float | None = None
    """Share of the loss of the step; None: that of the scored tokens."""

    def rows(self, rows: slice) -> Batch:
        """Return some of its rows."""
        fresh = None if self.fresh is None else self.fresh[rows]
        return self._replace(idx=self.idx[rows], targets=self.targets[rows], fresh=fresh)


class Order(Protocol):
    """A pure function of the step."""

    def passes(self, step: int) -> Iterator[Batch]:
        """Yield what the passes of a step read."""


def shape_of(config: TrainConfig) -> dict[str, int]:
    """Return what every order is made with."""
    shape = {"batch_size": config.batch_size, "block_size": config.block_size, "passes": config.grad_acc_steps}
    return {"seed": config.seed, **shape}


class RandomWindows:
    """Windows drawn uniformly and with replacement, see `random_windows`.

    Args:
        tokens: (n,) the text.
        seed: of the order.
        batch_size: B.
        block_size: T.
        passes: of one step; each has windows of its own.
    """

    def __init__(self, tokens: Tokens, *, seed: int, batch_size: int, block_size: int, passes: int = 1) -> None:
        self._tokens, self._passes = tokens, passes
        self._shape = {"seed": seed, "batch_size": batch_size, "block_size": block_size}

    def passes(self, step: int) -> Iterator[Batch]:
        """Yield what the passes of a step read."""
        for micro in range(self._passes):
            idx, targets = random_windows(self._tokens, step=step * self._passes + micro, **self._shape)
            yield Batch(idx, targets, None)


class DocumentStreams:
    """Documents read in order, each row of the batch one after the other, and their memory carried on.

    Every document is cut into windows of T tokens, the last of which is padded with what no loss counts; token k T + i
    of a document is read at place i of its window k and its successor is the target, so each token but the first is
    predicted once. The windows of all documents, these shuffled anew in every epoch, form one list; row b begins at
    b / B of it and reads one window per step. A document is never split over rows that are read at the same time, save
    where a row begins inside it; it is then read from there on as one that has just begun.

    Args:
        tokens: (n,) the text.
        starts: where documents begin, ascending, the first at 0.
        seed: of the order of the documents.
        batch_size: rows of one pass.
        block_size: T.
        passes: of one step; each has rows of its own, so that B is batch_size times passes.

    Raises:
        ValueError: fewer windows than rows.

    Examples:
        >>> streams = DocumentStreams(np.arange(7), [0, 4], seed=0, batch_size=1, block_size=2)
        >>> for step in range(3):
        ...     batch = next(streams.passes(step))
        ...     print(batch.idx.tolist(), batch.targets.tolist(), batch.fresh.tolist())
        [[0, 1]] [[1, 2]] [True]
        [[2, 0]] [[3, -100]] [False]
        [[4, 5]] [[5, 6]] [True]
    """

    def __init__(
        self,
        tokens: Tokens,
        starts: npt.ArrayLike,
        *,
        seed: int,
        batch_size: int,
        block_size: int,
        passes: int = 1,
    ) -> None:
        self._tokens, self._seed, self._block, self._passes = tokens, seed, block_size, passes
        self._starts = np.asarray(starts, np.int64)
        ends = np.append(self._starts[1:], len(tokens))
        self._lengths = ends - self._starts
        self._windows = np.maximum(self._lengths - 1, 0) // block_size + ((self._lengths - 1) % block_size > 0)
        self.total = int(self._windows.sum())
        """Windows of all documents."""
        self.rows = batch_size * passes
        if self.total < self.rows:
            raise ValueError(
                f"batch_size * grad_acc_steps = {self.rows} rows: expected at most the {self.total} windows of "
                f"{block_size} tokens that the text has; lower it or block_size"
            )
        self.steps_per_epoch = self.total // self.rows
        self._epoch = -1

    @property
    def padding(self) -> float:
        """Share of places that hold no token to learn from."""
        return 1 - float(np.maximum(self._lengths - 1, 0).sum()) / (self.total * self._block)

    def passes(self, step: int) -> Iterator[Batch]:
        """Yield what the passes of a step read."""
        epoch, at = divmod(step, self.steps_per_epoch)
        self._begin(epoch)
        window = np.arange(self.rows) * self.total // self.rows + at  # (B,) in the list of all
        place = np.searchsorted(self._last, window, side="right")
        document = self._order[place]
        inside = window - (self._last[place] - self._windows[document])
        begin = self._starts[document] + inside * self._block
        length = np.minimum(self._lengths[document] - 1 - inside * self._block, self._block)  # targets
        idx, targets = self._read(begin, length)
        fresh = torch.from_numpy((inside == 0) | (at == 0))
        size = self.rows // self._passes
        for rows in (slice(first, first + size) for first in range(0, self.rows, size)):
            yield Batch(idx[rows], targets[rows], fresh[rows])

    def _begin(self, epoch: int) -> None:
        if epoch != self._epoch:
            # raw words, because NumPy keeps those the same for ever; a stable sort of them is a shuffle
            words = np.random.Philox(key=self._seed, counter=epoch << 128).random_raw(len(self._starts))
            self._order = np.argsort(words, kind="stable")
            self._last = np.cumsum(self._windows[self._order])
            self._epoch = epoch

    def _read(self, begin: npt.NDArray[np.int64], length: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Copy windows out of the text: (B,) each -> idx, targets (B, T)."""
        steps = np.arange(self._block + 1)
        there = steps <= length[:, None]
        found = self._tokens[np.where(there, begin[:, None] + steps, begin[:, None])].astype(np.int64)
        idx, targets = np.where(there[:, 1:], found[:, :-1], 0), np.where(there[:, 1:], found[:, 1:], NOT_SCORED)
        return torch.from_numpy(idx), torch.from_numpy(targets)


def cut_documents(starts: npt.ArrayLike, total: int, longest: int) -> npt.NDArray[np.int64]:
    """Return where pieces begin when documents are cut into pieces of at most so many tokens.

    Examples:
        >>> cut_documents([0, 7], total=10, longest=3).tolist()
        [0, 3, 6, 7]
    """
    begin = np.asarray(starts, np.int64)
    count = -(-(np.append(begin[1:], total) - begin) // longest)
    first = np.repeat(np.cumsum(count) - count, count)  # of the document that a piece is from
    pieces: npt.NDArray[np.int64] = np.repeat(begin, count) + (np.arange(count.sum()) - first) * longest
    return pieces


def document_starts(tokens: Tokens, separator: int | None) -> npt.NDArray[np.int64]:
    """Return where documents begin: at each separator; a text without any is one document.

    Examples:
        >>> document_starts(np.array([0, 5, 6, 0, 7]), separator=0).tolist()
        [0, 3]
    """
    if separator is None:
        return np.zeros(1, np.int64)
    parts = tokens.parts if isinstance(tokens, TokenShards) else [tokens]
    found, before = [np.zeros(1, np.int64)], 0
    for part in parts:
        pieces = range(0, len(part), SCANNED)
        found += [np.flatnonzero(part[at : at + SCANNED] == separator) + before + at for at in pieces]
        before += len(part)
    return np.unique(np.concatenate(found))
