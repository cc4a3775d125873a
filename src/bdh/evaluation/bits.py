"""Bits per byte of a text, which are comparable between tokenizers, and perplexity per token at a stride."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bdh.compare.statistics import Estimate
from bdh.data import Tokenizer
from bdh.data.streams import Tokens
from bdh.evaluation.reading import Cut, Told, rows_at_once, surprisals
from bdh.evaluation.statistics import ratio
from bdh.model import BDH

PIECES = 32
"""Equal pieces of a text whose spread gives the interval: neighbouring bytes are too alike to count one by one."""


@dataclass(frozen=True)
class Bits:
    """How well a text is predicted."""

    bits_per_byte: Estimate
    """sum of -log2 p over the bytes of what was scored, with a 95 % interval over pieces of the text"""
    nats_per_token: float
    tokens: int
    """scored"""
    bytes: int
    """of text that they stand for"""
    block_size: int | None
    """tokens of a window that is read from an empty state; None: all is one stream"""
    stride: int | None
    """tokens from one window to the next: each is scored with at least block_size - stride tokens before it"""
    order0: float
    """bits per byte of the best model without any context: the entropy of the scored tokens themselves"""

    @property
    def perplexity(self) -> float:
        """exp(nats per token)."""
        return math.exp(self.nats_per_token)


def bits_per_byte(
    model: BDH,
    tokens: Tokens,
    tokenizer: Tokenizer,
    *,
    block_size: int | None = None,
    stride: int | None = None,
    separator: int | None = None,
    told: Told | None = None,
) -> Bits:
    """Score every token of a text but the first, once.

        bits per byte = sum_t -log2 p(token_t | tokens before it) / bytes of these tokens

    As one stream, a token has all those before it as its context, through the state. In windows, as in training, it
    has those of its window: the first window scores all of its tokens, the others the last `stride` of them.

    Args:
        model: the model.
        tokens: (n,), at least 2.
        tokenizer: what they are.
        block_size: tokens of a window; None: one stream.
        stride: tokens from window to window, at most block_size; None: block_size, windows that do not overlap.
        separator: token that is read, and not scored.
        told: progress, in tokens.

    Raises:
        ValueError: fewer tokens, a stride without windows, a value out of range, or tokens that the model lacks.

    Examples:
        >>> from bdh import BDHConfig
        >>> from bdh.data import ByteTokenizer
        >>> model = BDH.from_seed(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4), 0)
        >>> text = ByteTokenizer().encode("the cat sat on the mat")
        >>> found = bits_per_byte(model, text, ByteTokenizer(), block_size=8)
        >>> round(found.bits_per_byte.mean, 1), found.bytes, found.stride
        (8.0, 21, 8)
    """
    n = len(tokens)
    check_tokens(model, n, tokenizer)
    if block_size is None and stride is not None:
        raise ValueError(f"stride={stride}: expected windows; give a block_size, such as that of the training")
    if block_size is not None and block_size < 1:
        raise ValueError(f"block_size={block_size}: expected an integer >= 1")
    if block_size is not None:
        stride = block_size if stride is None else stride
        if not 1 <= stride <= block_size:
            raise ValueError(f"stride={stride}: expected 1 .. block_size={block_size}")
    sizes = tokenizer.token_bytes()
    # per piece: nats, bytes, tokens; and how often each token was scored
    sums, counts = np.zeros((3, PIECES)), np.zeros(tokenizer.vocab_size)
    read = _stream(model, tokens) if block_size is None else _windows(model, tokens, block_size, stride or block_size)
    for at, nats in read:
        targets = tokens_at(tokens, at)
        scored = targets != separator
        at, nats, targets = at[scored], nats[scored], targets[scored]
        piece = (at - 1) * PIECES // (n - 1)
        for row, weights in enumerate((nats, sizes[targets], None)):
            sums[row] += np.bincount(piece, weights, minlength=PIECES)
        counts += np.bincount(targets, minlength=len(counts))
        if told:
            told(int(sums[2].sum()), n - 1)
    nats, bytes_, scored_tokens = sums.sum(1)
    estimate = ratio(sums[0] / math.log(2), sums[1])
    p = counts[counts > 0] / scored_tokens
    order0 = float(-(p * np.log2(p)).sum() * scored_tokens / bytes_)
    return Bits(estimate, float(nats / scored_tokens), int(scored_tokens), int(bytes_), block_size, stride, order0)


def check_tokens(model: BDH, n: int, tokenizer: Tokenizer) -> None:
    """Refuse a text that is too short, or of tokens that the model lacks."""
    if n < 2:
        raise ValueError(f"tokens: expected at least 2, one to read and one to predict, got {n}")
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"the text has {tokenizer.vocab_size:,} tokens, the model {model.config.vocab_size:,}: "
            "give the tokenizer that it was trained with"
        )


def tokens_at(tokens: Tokens, at: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Copy tokens out of a text."""
    return np.asarray(tokens[at]).astype(np.int64)


def cutter(tokens: Tokens, starts: npt.NDArray[np.int64]) -> Cut:
    """Return what gives ranges of the rows that begin at starts (B, 1)."""
    return lambda start, end: tokens_at(tokens, starts + np.arange(start, end))


Scored = Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]]
"""Positions of targets in the text, and their nats."""


def _stream(model: BDH, tokens: Tokens) -> Scored:
    length = len(tokens) - 1
    for start, nats in surprisals(model, length, cutter(tokens, np.zeros((1, 1), np.int64))):
        yield start + 1 + np.arange(nats.shape[1]), nats[0]


def _windows(model: BDH, tokens: Tokens, block_size: int, stride: int) -> Scored:
    last = len(tokens) - 1
    length = min(block_size, last)
    ends = np.unique([*range(length, last, stride), last])  # last target of each window
    new = np.diff(ends, prepend=0)
    at_once = rows_at_once(model.config, length)
    for first in range(0, len(ends), at_once):
        rows = slice(first, first + at_once)
        starts, before = (ends[rows] - length)[:, None], (ends - new)[rows, None]
        for start, nats in surprisals(model, length, cutter(tokens, starts)):
            at = starts + start + 1 + np.arange(nats.shape[1])  # (B, t)
            yield at[at > before], nats[at > before]
