"""Prompts with their answers as training reads them: one example is one row, and only answers are learned.

    row       separator  prompt  answer            padding
    target    prompt             answer  separator
    scored    no                 yes     yes       no

A row begins from an empty memory, so nothing of one example can leak into another; and since no token sees a later
one, padding behind an example changes nothing before it.

Shapes: B rows, T tokens of the longest example among them, at most `block_size`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bdh.config import TrainConfig
from bdh.data import shards, streams
from bdh.data.corpora import Corpus, CorpusError, load_corpus
from bdh.data.order import Batch, shape_of
from bdh.data.streams import NOT_SCORED, Tokens, random_windows, tensor
from bdh.data.templates import Prompting

POOL = 64
"""Batches among which examples are put together by length."""


class Example(NamedTuple):
    """Tokens of a prompt and its answer."""

    tokens: npt.NDArray[Any]
    """(P + A,)"""
    prompt: int
    """P, how many of them are told and not learned"""


def read_examples(directory: Path, split: str) -> list[Example]:
    """Return the documents of a split that have a prompt, see `shards.read_documents`."""
    return [Example(*found) for found in shards.read_documents(directory, split) if found[1]]


def as_rows(examples: Sequence[Example], separator: int, block_size: int) -> streams.Batch:
    """Lay out one example a row.

    Args:
        examples: what to lay out.
        separator: what a prompt begins with and an answer ends with.
        block_size: most tokens of a row; what is behind them is cut off.

    Returns:
        `idx` and `targets` (B, T); targets that are not of an answer are `NOT_SCORED`.

    Examples:
        >>> idx, targets = as_rows([Example(np.array([5, 6, 7]), 2), Example(np.array([8, 9, 9, 9]), 1)], 0, 8)
        >>> idx.tolist()
        [[0, 5, 6, 7, 0], [0, 8, 9, 9, 9]]
        >>> targets.tolist()
        [[-100, -100, 7, 0, -100], [-100, 9, 9, 9, 0]]
    """
    width = min(block_size, max(len(example.tokens) for example in examples) + 1)
    idx = np.full((len(examples), width), separator, np.int64)
    targets = np.full_like(idx, NOT_SCORED)
    for row, (tokens, prompt) in enumerate(examples):
        idx[row, 1 : len(tokens) + 1] = tokens[: width - 1]
        answer = np.append(tokens[prompt:], separator)[: max(0, width - prompt)]
        targets[row, prompt : prompt + len(answer)] = answer
    return tensor(idx), tensor(targets)


class Examples:
    """The order in which examples are read: every one once an epoch, those of similar length together.

    An epoch shuffles all examples, sorts the shuffled list by length within every `POOL` batches, cuts it into batches
    and shuffles these; examples that fill no whole batch wait for another epoch.

    Replay gives a share s of the rows of every batch to random windows of another text, as long as the longest example
    beside them. They are a pass of their own, whose weight does not depend on how short the answers are:

        loss = (1 - s) mean over tokens of answers + s mean over tokens of the windows

    Args:
        examples: what to read.
        separator: see `as_rows`.
        seed: of the order.
        batch_size: rows of a batch, replay included.
        block_size: most tokens of a row.
        passes: batches of one step; each has rows of its own.
        replay: (n,) tokens of the other text.
        replay_share: s; at least one row is replay.

    Raises:
        CorpusError: fewer examples than rows, or no row left for them.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        separator: int,
        *,
        seed: int,
        batch_size: int,
        block_size: int,
        passes: int = 1,
        replay: Tokens | None = None,
        replay_share: float = 0.0,
    ) -> None:
        replay_rows = 0 if replay is None else max(1, round(replay_share * batch_size))
        self.rows = batch_size - replay_rows
        if not 1 <= self.rows <= len(examples):
            raise CorpusError(
                f"batch_size={batch_size}: expected 1 to {len(examples):,} rows for as many examples, beside "
                f"{replay_rows} of replay; got {self.rows}"
            )
        self._examples, self._separator, self._block = examples, separator, block_size
        self._seed, self._passes = seed, passes
        self._replay, self._share, self._replay_rows = replay, replay_share, replay_rows
        self._lengths = np.minimum([len(example.tokens) + 1 for example in examples], block_size)
        self.passes_per_epoch = len(examples) // self.rows
        self._epoch = -1

    def passes(self, step: int) -> Iterator[Batch]:
        """Yield what the passes of a step read: first the examples, then the replay."""
        numbers = range(step * self._passes, (step + 1) * self._passes)
        told = [self._examples_of(number) for number in numbers]
        if self._replay is None:
            yield from (Batch(idx, targets, None) for idx, targets in told)
            return
        scored = [int((targets != NOT_SCORED).sum()) for _, targets in told]
        for (idx, targets), count in zip(told, scored, strict=True):
            yield Batch(idx, targets, None, (1 - self._share) * count / sum(scored))
        for number, (idx, _) in zip(numbers, told, strict=True):
            shape = {"batch_size": self._replay_rows, "block_size": idx.shape[1]}
            windows = random_windows(self._replay, seed=self._seed, step=number, **shape)
            yield Batch(*windows, None, self._share / self._passes)

    def _examples_of(self, number: int) -> streams.Batch:
        epoch, at = divmod(number, self.passes_per_epoch)
        self._begin(epoch)
        return as_rows([self._examples[i] for i in self._batches[at]], self._separator, self._block)

    def _begin(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        # raw words, because NumPy keeps those the same for ever; a stable sort of them is a shuffle
        words = np.random.Philox(key=self._seed, counter=epoch << 128).random_raw(
            len(self._examples) + self.passes_per_epoch
        )
        order = np.argsort(words[: len(self._examples)], kind="stable")[: self.passes_per_epoch * self.rows]
        pools = [order[start : start + POOL * self.rows] for start in range(0, len(order), POOL * self.rows)]
        by_length = [pool[np.argsort(self._lengths[pool], kind="stable")] for pool in pools]
        batches = np.concatenate(by_length).reshape(-1, self.rows)
        self._batches = batches[np.argsort(words[len(self._examples) :], kind="stable")]
        self._epoch = epoch


@dataclasses.dataclass(frozen=True, eq=False)
class ExampleCorpus(Corpus):
    """Prepared text whose documents are prompts with answers; what is measured on it is the loss of the answers."""

    examples: Sequence[Example] = ()
    """to learn from"""
    held_out: Sequence[Example] = ()
    """to validate on"""
    replay: Corpus | None = None
    """text whose training split is mixed in"""
    replay_share: float = 0.0
    """share of the rows, and of the loss, that it has"""

    @property
    def opening(self) -> npt.NDArray[Any]:
        """A held-out prompt."""
        return opening(self.held_out[0], self.end)

    @property
    def end(self) -> int:
        """Token that ends an answer."""
        assert self.separator is not None
        return self.separator

    def order(self, config: TrainConfig) -> Examples:
        """Return the order in which training reads it."""
        if config.batches != "windows":
            raise CorpusError(f"batches={config.batches!r}: expected windows: every example is a row; leave it away")
        replay = self.replay.train if self.replay else None
        shape = shape_of(config)
        return Examples(self.examples, self.end, replay=replay, replay_share=self.replay_share, **shape)

    def validation_windows(self, block_size: int, max_windows: int | None) -> streams.Batch:
        """Return held-out examples as rows, evenly spread."""
        count = min(max_windows or len(self.held_out), len(self.held_out))
        chosen = [self.held_out[i * len(self.held_out) // count] for i in range(count)]
        return as_rows(chosen, self.end, block_size)

    def require(self, block_size: int, vocab_size: int | None = None) -> None:
        """Check that a model can learn from this, see `Corpus.require`."""
        super().require(1, vocab_size)
        if self.replay:
            self.replay.require(block_size, vocab_size)
        _, targets = self.validation_windows(block_size, None)
        if not bool((targets != NOT_SCORED).any()):
            raise CorpusError(f"{self.name}: block_size={block_size} holds no answer that is held out; raise it")


def opening(example: Example, separator: int) -> npt.NDArray[Any]:
    """Return what a model reads before it answers: separator and prompt."""
    return np.concatenate([[separator], example.tokens[: example.prompt]]).astype(np.int64)


def load_examples(
    directory: Path,
    block_size: int,
    *,
    max_examples: int | None = None,
    replay: Corpus | None = None,
    replay_share: float = 0.0,
) -> ExampleCorpus:
    """Load prompts with answers that `bdh prepare` wrote.

    Examples whose prompt fills a row leave no token to learn and are left away; `info["examples"]` counts them, and
    those whose answer is cut.

    Args:
        directory: prepared text.
        block_size: most tokens of a row.
        max_examples: learn from so many, the first ones.
        replay: text to mix in.
        replay_share: share of the rows and of the loss for it.

    Raises:
        CorpusError: there are no prompts in it, or the two texts have different tokens.
    """
    base = load_corpus(data=directory)
    manifest, _ = shards.read_manifest(directory)
    train, held_out = (read_examples(directory, split) for split in shards.SPLITS)
    train = train[:max_examples]
    fit = [example for example in train if example.prompt < block_size]
    told = [example for example in held_out if example.prompt < block_size]
    if not fit or not told:
        raise CorpusError(
            f"{directory}: expected prompts with answers below {block_size} tokens in both splits, found "
            f"{len(fit):,} to learn and {len(told):,} to validate; raise --block-size, or learn plain text by bdh train"
        )
    if replay is not None and replay.tokenizer.definition() != base.tokenizer.definition():
        raise CorpusError(f"{replay.name} has other tokens than {base.name}: prepare both with one --tokenizer")
    counts = {
        "learned": len(fit),
        "held_out": len(told),
        "cut": sum(len(example.tokens) >= block_size for example in fit),
        "left_away": len(train) - len(fit),
    }
    answers = [example.tokens[example.prompt :] for example in told]
    text = sum(len(base.tokenizer.decode(answer).encode()) for answer in answers)
    hashes = "\n".join([base.hashes[0], str(len(train)), *(replay.hashes if replay else ())])
    known = {field.name: getattr(base, field.name) for field in dataclasses.fields(base)}
    known |= {
        "info": {**base.info, "examples": counts, "replay": replay.info if replay else None},
        "known_hashes": (hashlib.sha256(hashes.encode()).hexdigest(), base.hashes[1]),
        "prompting": Prompting(manifest["settings"]["template"], manifest["separator"]),
        "bytes_per_token": text / sum(len(answer) + 1 for answer in answers),
    }
    return ExampleCorpus(**known, examples=fit, held_out=told, replay=replay, replay_share=replay_share)
