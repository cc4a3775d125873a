"""What text is scored: the held-out part of what a model was trained on, or the whole of any other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bdh.data import Corpus, CorpusError, Tokenizer, load_corpus
from bdh.data.corpora import prepared_directory
from bdh.data.documents import Document, Reading
from bdh.data.download import Progress
from bdh.data.plain import PLAIN, RAW, read_text
from bdh.data.rows import SUFFIXES, data_files
from bdh.data.shards import dtype_of
from bdh.data.streams import Tokens

SAMPLE = 1 << 16
"""Tokens that the bytes of one are counted on."""


# eq=False: arrays have no single answer to ==
@dataclass(frozen=True, eq=False)
class Text:
    """A text as the tokens of a model."""

    name: str
    part: str
    """What of it: the whole text, or its validation split."""
    tokens: Tokens
    separator: int | None
    """What stands between documents; it is no text, and not scored."""
    lossless: bool = True
    """Whether the tokens keep all of the text."""

    def beginning(self, size: int, tokenizer: Tokenizer) -> Text:
        """Return about so many bytes of it from its beginning."""
        per_token = tokenizer.token_bytes()[np.asarray(self.tokens[:SAMPLE], np.int64)].mean()
        return replace(
            self, part=f"beginning of the {self.part}", tokens=self.tokens[: max(2, round(size / per_token))]
        )


def load_text(
    tokenizer: Tokenizer,
    dataset: str | None = None,
    data: Path | None = None,
    facts: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> Text:
    """Load what a model is to be scored on.

    Args:
        tokenizer: what its tokens are.
        dataset: a corpus by name.
        data: a file, a directory of files, or prepared text, instead.
        facts: run.json of the model's training; its text is taken where neither is given.
        progress: see `load_corpus`.

    Returns:
        The validation split of a corpus, of prepared text, and of the text that the model was trained on; all of any
        other. Documents (lines `<|endoftext|>` of a text, rows of other files) are joined by the separator.

    Raises:
        CorpusError: nothing to read, or prepared as other tokens.
    """
    if dataset is None and data is None and facts is not None:
        dataset, data = facts["text"]["dataset"], Path(facts["text"]["data"]) if facts["text"]["data"] else None
    if data is None or prepared_directory(None, data) is not None:
        return _held_out(load_corpus(dataset or "shakespeare", data=data, progress=progress), tokenizer)
    trained_on = ((facts or {}).get("data", {}).get("train") or {}).get("sha256")
    if trained_on is not None and (data.is_dir() or data.suffix in ("", RAW, *PLAIN)):
        corpus = load_corpus(data=data)
        if corpus.hashes[0] == trained_on:
            return _held_out(corpus, tokenizer)
    documents = list(_documents(data.expanduser()))
    if sum(len(document.text) for document in documents) < 2:
        raise CorpusError(f"--data {data}: expected a text of at least two bytes; give a longer one")
    return _whole(data.resolve().name, "whole text", documents, tokenizer)


def _held_out(corpus: Corpus, tokenizer: Tokenizer) -> Text:
    if corpus.tokenizer.definition() == tokenizer.definition():
        lossless = (corpus.info.get("tokenizer") or {}).get("lossless", True)
        return Text(corpus.name, "validation split", corpus.validation, corpus.separator, lossless)
    if corpus.tokenizer.definition() is not None:
        raise CorpusError(f"{corpus.name} is prepared as tokens that the model does not know: prepare it as bytes")
    content = corpus.validation.tobytes()
    texts = content.split(bytes([corpus.separator])) if corpus.separator is not None else [content]
    return _whole(corpus.name, "validation split", [Document(0, text) for text in texts if text], tokenizer)


def _documents(data: Path) -> Iterator[Document]:
    if not data.exists():
        raise CorpusError(f"--data {data}: expected a text file or a directory, found nothing; check the path")
    if not (data.is_file() or data.is_dir()):
        raise CorpusError(f"--data {data}: expected a text file or a directory, this is a device or a pipe")
    files = data_files(data)[0] if data.is_dir() else [data]
    if not files:
        raise CorpusError(f"--data {data}: expected {', '.join(SUFFIXES)} files in it, found none")
    for file in files:
        if file.suffix.lower() in SUFFIXES:
            yield from Reading().documents(file)
        else:
            yield Document(0, read_text(file))


def _whole(name: str, part: str, documents: list[Document], tokenizer: Tokenizer) -> Text:
    several = any(not document.follows for document in documents[1:])
    dtype = dtype_of(tokenizer.vocab_size)
    between = np.array([tokenizer.separator] if several else [], dtype)
    ids = tokenizer.encode_all([document.prompt + document.text for document in documents])
    parts = [np.asarray(part, dtype) for part in ids]
    size = sum(len(document.prompt) + len(document.text) for document in documents)
    lossless = int(tokenizer.token_bytes()[np.concatenate(parts)].sum()) == size
    joined = [p for d, part in zip(documents, parts, strict=True) for p in ((part,) if d.follows else (between, part))]
    return Text(name, part, np.concatenate(joined), tokenizer.separator if several else None, lossless)
