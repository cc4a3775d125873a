"""What several commands need: the model that a path names, the text that it is compared with, JSON.

As in all modules of commands, what loads torch is imported inside functions: it takes a second, and a mistake in a flag
is to be told at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bdh.checks import check_one_text
from bdh.data import ByteTokenizer, Corpus, load_corpus

if TYPE_CHECKING:
    from bdh.model import BDH
    from bdh.train import World


def open_model(path: Path) -> BDH:
    """Return the model of a run directory, a checkpoint directory or a .pt file."""
    from bdh import checkpoint
    from bdh.foreign import import_checkpoint

    return import_checkpoint(path) if path.is_file() else checkpoint.load(path)


def on_all_ranks(work: Callable[[World], int], **how: Any) -> int:
    """Do the work of a command in all processes that torchrun has started, and return the exit code of this one.

    Args:
        work: what each does.
        **how: see `bdh.train.joined`.
    """
    from bdh.train import NonFiniteError, joined

    with joined(**how) as world:
        try:
            return work(world)
        except NonFiniteError:
            if world.first:
                raise
            return 1  # all ranks know the same, one says it


def open_byte_model(path: Path) -> BDH:
    """Return the model of such a path, whose tokens are bytes."""
    model = open_model(path)
    check_bytes(path)
    return model


def check_bytes(model: Path) -> None:
    """Raise ValueError for other tokens: what is shown of texts, and what is measured on them, are bytes."""
    from bdh import checkpoint

    if checkpoint.load_tokenizer(model).name != ByteTokenizer.name:
        raise ValueError(f"{model} was trained on tokens that are not bytes: expected a byte model")


def run_facts(model: Path) -> dict[str, Any] | None:
    """Return what is known about the run that a model, or a checkpoint in it, is from; None if it is from none."""
    from bdh.train.run import read_facts

    in_run = model.parent.name == "checkpoints"
    return read_facts(model.resolve().parents[1] if in_run else model)


def window_of(model: Path) -> int:
    """Return how many bytes of a text to read from one empty memory: no more than in training, and at most 256.

    Beyond, a model may predict worse, and be another than the one that it was trained to be.
    """
    facts = run_facts(model)
    return 256 if facts is None else min(256, int(facts["train"]["block_size"]))


def corpus_of(model: Path, dataset: str | None, data: Path | None) -> Corpus:
    """Return the text to compare with: as asked for, else the one that the run was trained on."""
    check_one_text(data, dataset)
    facts = None if dataset or data else run_facts(model)
    if facts is not None and facts["text"]:
        dataset, data = facts["text"]["dataset"], facts["text"]["data"]
    check_bytes(model)
    corpus = load_corpus(dataset or "shakespeare", data=data, progress=lambda line: print(line, file=sys.stderr))
    if corpus.tokenizer.name != ByteTokenizer.name:
        raise ValueError(f"{corpus.name} is prepared as tokens that are not bytes: expected a text of bytes")
    return corpus


def json_text(value: Any) -> str:
    """Return one line of JSON."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
