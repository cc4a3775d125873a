"""What several commands need: the model that a path names, the text that it is compared with, JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bdh import checkpoint
from bdh.data import ByteTokenizer, Corpus, load_corpus
from bdh.model import BDH
from bdh.train.run import read_facts


def open_model(path: Path) -> BDH:
    """Return the model of a run directory, a checkpoint directory or a .pt file."""
    return checkpoint.import_checkpoint(path) if path.is_file() else checkpoint.load(path)


def facts_of(model: Path) -> dict[str, Any] | None:
    """Return run.json of the run that a model is of; None if it is of none."""
    return read_facts(model.resolve().parents[1] if model.parent.name == "checkpoints" else model)


def corpus_of(model: Path, dataset: str | None, data: Path | None) -> Corpus:
    """Return the text to compare with: as asked for, else the one that the run was trained on."""
    facts = None if dataset or data else facts_of(model)
    if facts is not None and facts["text"]:
        dataset, data = facts["text"]["dataset"], facts["text"]["data"]
    # what is shown of texts, and what is measured on them, are bytes
    if checkpoint.load_tokenizer(model).name != ByteTokenizer.name:
        raise ValueError(f"{model} was trained on tokens that are not bytes: expected a byte model")
    corpus = load_corpus(dataset or "shakespeare", data=data, progress=lambda line: print(line, file=sys.stderr))
    if corpus.tokenizer.name != ByteTokenizer.name:
        raise ValueError(f"{corpus.name} is prepared as tokens that are not bytes: expected a text of bytes")
    return corpus


def json_text(value: Any) -> str:
    """Return one line of JSON."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
