"""Bits per byte by how much was read before: does a longer context help, also beyond the length of the training?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bdh.compare.statistics import Estimate, paired
from bdh.data import Tokenizer
from bdh.data.streams import Tokens
from bdh.evaluation.bits import check_tokens, cutter, tokens_at
from bdh.evaluation.reading import Told, rows_at_once, surprisals
from bdh.evaluation.statistics import ratio
from bdh.model import BDH

MOST_BINS = 48
LEAST_BLOCKS = 8
"""An interval over fewer says little."""


@dataclass(frozen=True)
class Bin:
    """Bytes with about as much read before them."""

    first: int
    """bytes read before, at least"""
    last: int
    """bytes read before, at most"""
    bytes: int
    """scored"""
    bits_per_byte: Estimate
    """with a 95 % interval over blocks"""
    change: Estimate | None
    """minus the last bin within the length of the training, paired by block; None: that bin, or no such length"""


@dataclass(frozen=True)
class Positions:
    """Bits per byte by position."""

    bins: tuple[Bin, ...]
    blocks: int
    block_size: int
    """tokens of a block, each read from an empty state"""
    trained: int | None
    """bytes of a training window"""


def by_position(
    model: BDH,
    tokens: Tokens,
    tokenizer: Tokenizer,
    *,
    block_size: int,
    trained: int | None = None,
    separator: int | None = None,
    told: Told | None = None,
) -> Positions:
    """Read equal blocks of a text, each from an empty state, and score their bytes by how many were read before.

    The bins double: 1, 2-3, 4-7, ... bytes read before. All bins are of the same blocks, so that a change from one to
    another is not a change of text; it is paired by block.

    Args:
        model: the model.
        tokens: (n,).
        tokenizer: what they are.
        block_size: tokens of a block.
        trained: bytes of a training window, where known.
        separator: token that is read, and not scored.
        told: progress.

    Raises:
        ValueError: the text is shorter than eight blocks.

    Examples:
        >>> from bdh import BDHConfig
        >>> from bdh.data import ByteTokenizer
        >>> model = BDH.from_seed(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4), 0)
        >>> text = ByteTokenizer().encode("the cat sat on the mat. " * 9)
        >>> [(b.first, b.last, b.bytes) for b in by_position(model, text, ByteTokenizer(), block_size=8).bins]
        [(1, 1, 26), (2, 3, 52), (4, 7, 104), (8, 8, 26)]
    """
    n = len(tokens)
    check_tokens(model, n, tokenizer)
    blocks = (n - 1) // block_size if block_size > 0 else 0
    if blocks < LEAST_BLOCKS:
        raise ValueError(
            f"block_size={block_size}: expected at most {max(1, (n - 1) // LEAST_BLOCKS)}, "
            f"so that a text of {n:,} tokens has {LEAST_BLOCKS} blocks; or give a longer text"
        )
    sizes = tokenizer.token_bytes()
    if separator is not None:
        sizes[separator] = 0
    nats, bytes_ = np.zeros((blocks, MOST_BINS)), np.zeros((blocks, MOST_BINS))
    starts = (np.arange(blocks, dtype=np.int64) * block_size)[:, None]
    at_once, longest = rows_at_once(model.config, block_size), 0
    for first in range(0, blocks, at_once):
        rows = starts[first : first + at_once]
        before = np.zeros((len(rows), 1), np.int64)  # bytes of the chunks before
        for start, found in surprisals(model, block_size, cutter(tokens, rows)):
            ids = tokens_at(tokens, rows + np.arange(start, start + found.shape[1] + 1))
            read = before + sizes[ids[:, :-1]].cumsum(1)
            before, longest = read[:, -1:], max(longest, int(read.max()))
            # tokens without bytes, separators among them, are not scored
            scored = np.nonzero(sizes[ids[:, 1:]])
            where = (scored[0] + first, _bin_of(read[scored]))
            np.add.at(nats, where, found[scored])
            np.add.at(bytes_, where, sizes[ids[:, 1:]][scored])
        if told:
            told(min(first + at_once, blocks) * block_size, blocks * block_size)
    return Positions(_bins(nats / math.log(2), bytes_, trained, longest), blocks, block_size, trained)


def _bin_of(read: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.log2(np.maximum(read, 1)).astype(np.int64)


def _bins(
    bits: npt.NDArray[np.float64], bytes_: npt.NDArray[np.float64], trained: int | None, longest: int
) -> tuple[Bin, ...]:
    """Of each block (rows) and bin (columns)."""
    filled = [k for k in range(MOST_BINS) if bytes_[:, k].any()]
    # the last one that ends within a training window
    within = None if trained is None or trained < 2 else int(math.log2(trained)) - 1
    rates = [{int(i): float(bits[i, k] / bytes_[i, k]) for i in np.flatnonzero(bytes_[:, k])} for k in range(MOST_BINS)]
    return tuple(
        Bin(
            2**k,
            min(2 ** (k + 1) - 1, longest),
            int(bytes_[:, k].sum()),
            ratio(bits[:, k], bytes_[:, k]),
            None if within is None or k == within else paired(rates[k], rates[within]),
        )
        for k in filled
    )
