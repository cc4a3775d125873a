"""Fine-tuning: what is learned from, which tokens count, and what it costs; the loop is that of `bdh.train`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bdh import checkpoint
from bdh.config import TrainConfig
from bdh.data import (
    Corpus,
    CorpusError,
    Example,
    ExampleCorpus,
    Template,
    Tokenizer,
    load_corpus,
    opening,
    shards,
    subwords,
)
from bdh.data.corpora import PREPARED
from bdh.data.hub import Told
from bdh.data.prepare import Settings, own_place, prepare
from bdh.data.streams import NOT_SCORED
from bdh.generate import stream_text
from bdh.model import BDH
from bdh.train import Reporter, Result, Run, World, fit, pick_device
from bdh.train.distributed import ALONE
from bdh.train.validation import validation_loss

LOOKED_AT = 50
"""Steps whose batches are looked at for their padding."""


@dataclass(frozen=True)
class Tuned:
    """What fine-tuning changed, measured on the checkpoint that it left: the one with the best loss of the answers."""

    result: Result
    """how training ended"""
    answer_bits: tuple[float, float]
    """loss of held-out answers before and after, bits per byte of answer; their end token counts"""
    base_bits: tuple[float, float] | None
    """bits per byte of held-out base text before and after, on the same windows; None where there is no such text"""

    @property
    def cost(self) -> float | None:
        """By which share base text has become harder.

        Examples:
            >>> Tuned(Result(1, 0.0, 0.0, None, 0.0), (3.0, 1.0), (2.0, 2.1)).cost
            0.050000000000000044
        """
        return self.base_bits[1] / self.base_bits[0] - 1 if self.base_bits else None

    def to_dict(self) -> dict[str, Any]:
        """Return all of it; JSON-able."""
        names = ("answer_bits_per_byte", "base_bits_per_byte")
        return {**vars(self.result), **dict(zip(names, (self.answer_bits, self.base_bits), strict=True))} | {
            "cost": self.cost
        }


def finetune(
    model: BDH,
    corpus: ExampleCorpus,
    config: TrainConfig,
    run: Run,
    reporter: Reporter | None = None,
    facts: dict[str, Any] | None = None,
    *,
    base: Corpus | None = None,
    base_block: int | None = None,
    world: World = ALONE,
) -> Tuned:
    """Train a model to answer, and measure it before and after.

    Args:
        model: trained in place; with `bdh.lowrank.add_low_rank` only the changes are.
        corpus: from `load_examples`.
        config: see `bdh.train.fit`; `block_size` is the longest example.
        run: where checkpoints go; they keep template and end token.
        reporter: what to show.
        facts: what else run.json should tell.
        base: text that the model was trained on, to see what it forgets.
        base_block: tokens of a window of it; by default `config.block_size`.
        world: the processes that share the work, see `bdh.train.joined`.

    Raises:
        ValueError: see `bdh.train.fit`; or examples or replay cannot be shared out evenly.
    """
    windows = config.eval_windows

    def measure(model: BDH) -> tuple[float, float | None]:
        answers = bits_per_byte(model, corpus, config.block_size, windows, world)
        return answers, bits_per_byte(model, base, base_block or config.block_size, windows, world) if base else None

    rows = [len(batch.idx) for batch in corpus.order(config).passes(0)]
    if any(count % world.size for count in rows):
        raise ValueError(
            f"batch_size={config.batch_size}: expected examples and replay to have multiples of {world.size} rows "
            f"each, for as many processes, got {rows[0]} and {rows[-1]}; change --batch-size or --replay-share"
        )
    corpus.require(config.block_size, model.config.vocab_size)
    model.to(device := pick_device(config.device))
    before = measure(model)
    result = fit(model, corpus, config, run, reporter, facts, world)
    world.wait()  # rank 0 has written the last checkpoint
    after = measure(checkpoint.load(run.path, device=device))
    of_base = None if before[1] is None or after[1] is None else (before[1], after[1])
    return Tuned(result, (before[0], after[0]), of_base)


def bits_per_byte(model: BDH, corpus: Corpus, block_size: int, max_windows: int | None, world: World = ALONE) -> float:
    """Return the loss of a model on the fixed validation windows of a text, in bits per byte of it."""
    model.eval()
    loss = validation_loss(model, *corpus.validation_windows(block_size, max_windows), at_once=8, world=world)
    return loss / math.log(2) / corpus.bytes_per_token


def answers(
    model: BDH, tokenizer: Tokenizer, examples: list[Example], end: int, max_new_tokens: int = 200
) -> Iterator[tuple[str, str, str]]:
    """Ask a model, which always takes the most likely token.

    Yields:
        The prompt, the answer of the example, and that of the model.
    """
    for example in examples:
        ids = torch.from_numpy(opening(example, end)).to(model.embed.weight.device)[None]
        said = stream_text(model, ids, max_new_tokens, end=end, tokenizer=tokenizer, temperature=0)
        parts = (example.tokens[: example.prompt], example.tokens[example.prompt :])
        prompt, expected = map(tokenizer.decode, parts)
        yield prompt, expected, "".join(said)


def padding(corpus: ExampleCorpus, config: TrainConfig) -> float:
    """Return the share of padding in the rows of the first steps."""
    order = corpus.order(config)
    places = found = 0
    for step in range(min(LOOKED_AT, config.max_steps)):
        for batch in order.passes(step):
            # the last scored target of a row is its end, or that of the row; what lies behind it is padding
            behind = (batch.targets != NOT_SCORED).flip(1).cumsum(1) == 0
            places, found = places + behind.numel(), found + int(behind.sum())
    return found / places


def prepared_examples(
    dataset: str | None, data: Path | None, template: Template | None, model: Path, told: Told | None = None
) -> Path:
    """Return the directory of prepared examples, which are prepared if they are not yet.

    Args:
        dataset: alpaca, dolly, or a name that `bdh prepare` knows.
        data: a prepared directory, or a file or directory with rows of instructions, instead.
        template: of the prompts; None: as they are prepared, else newline.
        model: whose tokens they are to be made of.
        told: see `bdh.data.hub.Told`.

    Raises:
        CorpusError: neither or both are given, they cannot be prepared, or are with another template.
    """
    if (dataset is None) == (data is None):
        raise CorpusError("expected one of --dataset (alpaca, dolly, NAME) and --data (a file, or what is prepared)")
    there = data or PREPARED / str(dataset)
    if not shards.is_prepared(there):
        tokenizer = checkpoint.resolve(model) / subwords.FILE if model.is_dir() else None
        tokens = str(tokenizer) if tokenizer and tokenizer.is_file() else "bytes"
        settings = Settings(template=template or "newline", tokenizer=tokens)
        if data is not None:  # files of the same name, and a file that was edited, are other examples
            settings = replace(settings, out_dir=own_place(str(data), settings))
        there = prepare(str(data or dataset), settings, told)
    prepared_with = shards.read_manifest(there)[0].get("settings", {}).get("template")
    if template not in (None, prepared_with):
        raise CorpusError(
            f"{there} was prepared with the template {prepared_with}, not {template}: leave --template "
            "away, or prepare it again"
        )
    return there


def base_text(replay: str | None, facts: dict[str, Any] | None) -> Corpus | None:
    """Return the text to replay, else the one that a run was trained on; None if that is not known any more.

    Args:
        replay: a path, or the name of a corpus.
        facts: run.json of the model.

    Raises:
        CorpusError: `replay` cannot be read.
    """
    if replay is not None:
        return load_corpus(data=replay) if Path(replay).expanduser().exists() else load_corpus(replay)
    text = (facts or {}).get("text")
    if text is None:
        return None
    try:
        return load_corpus(text["dataset"], data=text["data"])
    except CorpusError:
        return None
