"""Which tokens each training step reads: a pure function of (seed, step), so that a resumed run needs no replay.

Two orders: windows drawn at random from the whole text, each read from an empty memory; and documents read from their
beginning to their end, window after window, each row of the batch its own, with the memory carried on.

Shapes: B rows of a batch, T tokens of a window (`block_size`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from bdh.config import TrainConfig
from bdh.data.shards import TokenShards
from bdh.data.streams import Tokens, random_windows, tensor

if TYPE_CHECKING:
    from torch import Tensor

SCANNED = 2**24
"""Tokens that are looked at together for separators."""


class Batch(NamedTuple):
    """What one pass reads."""

    idx: Tensor
    """(B, T) tokens."""
    targets: Tensor
    """(B, T) the tokens after them; `NOT_SCORED` where there is none."""
    fresh: Tensor | None
    """(B, T) where texts begin; None where every row is one, read from an empty memory."""
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

    The documents, shuffled anew in every epoch, are one long line; row b begins at b / B of it and reads T tokens per
    step. A document may begin and end anywhere in a window, so there is no padding. The target of a token is what
    follows it in the text: that of the last one of a document is the separator of the next. A row that begins inside
    a document reads from there on as one that has just begun.

    Args:
        tokens: (n,) the text.
        starts: where documents begin, ascending, the first at 0.
        seed: of the order of the documents.
        batch_size: rows of one pass.
        block_size: T.
        passes: of one step; each has rows of its own, so that B is batch_size times passes.

    Raises:
        ValueError: fewer tokens than one step reads.

    Examples:
        >>> streams = DocumentStreams(np.arange(8), [0, 4], seed=0, batch_size=1, block_size=3)
        >>> for step in range(2):
        ...     batch = next(streams.passes(step))
        ...     print(batch.idx.tolist(), batch.targets.tolist(), batch.fresh.tolist())
        [[0, 1, 2]] [[1, 2, 3]] [[True, False, False]]
        [[3, 4, 5]] [[4, 5, 6]] [[False, True, False]]
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
        # the very last token has no successor, and is not read
        self._lengths = np.append(self._starts[1:], len(tokens) - 1) - self._starts
        self.total = int(self._lengths.sum())
        """Tokens that have a successor."""
        self.rows = batch_size * passes
        self.steps_per_epoch = self.total // self.rows // block_size
        if self.steps_per_epoch < 1:
            raise ValueError(
                f"batch_size * grad_acc_steps = {self.rows} rows of {block_size} tokens: expected at most the "
                f"{self.total:,} that the text has; lower it or block_size"
            )
        self._epoch = -1

    def passes(self, step: int) -> Iterator[Batch]:
        """Yield what the passes of a step read."""
        epoch, at = divmod(step, self.steps_per_epoch)
        self._begin(epoch)
        first = np.arange(self.rows) * self.total // self.rows + at * self._block
        place = first[:, None] + np.arange(self._block)  # (B, T) in the line
        number = np.searchsorted(self._ends, place, side="right")
        document = self._order[number]
        inside = place - (self._ends[number] - self._lengths[document])
        where = self._starts[document] + inside  # in the text
        idx, targets = (tensor(self._tokens[places].astype(np.int64)) for places in (where, where + 1))
        fresh = tensor(inside == 0)
        if at == 0:
            fresh[:, 0] = True
        size = self.rows // self._passes
        for rows in (slice(first, first + size) for first in range(0, self.rows, size)):
            yield Batch(idx[rows], targets[rows], fresh[rows])

    def _begin(self, epoch: int) -> None:
        if epoch != self._epoch:
            # raw words, because NumPy keeps those the same for ever; a stable sort of them is a shuffle
            words = np.random.Philox(key=self._seed, counter=epoch << 128).random_raw(len(self._starts))
            self._order = np.argsort(words, kind="stable")
            self._ends = np.cumsum(self._lengths[self._order])
            self._epoch = epoch


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
