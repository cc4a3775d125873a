"""One preparation of a text: documents are read, split by their hash, made into tokens and written as shards."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bdh.data import hub, shards, sources, subwords
from bdh.data.documents import Context, Document
from bdh.data.download import CorpusError
from bdh.data.kept import stamp
from bdh.data.plain import PLAIN
from bdh.data.rows import MARKER
from bdh.data.shards import SPLITS, SplitWriter
from bdh.data.templates import Template
from bdh.data.tokenizers import ByteTokenizer, Tokenizer
from bdh.files import LOCK, write_text

VALIDATION_SHARE = 0.01
LEARNED_FROM = 100_000_000
"""Bytes of training text that a BPE is trained on."""
BATCH = 256, 1 << 22
"""Documents, and bytes of these, that are made into tokens at once."""
STATE = "state.json"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to prepare, and how."""

    out_dir: Path | None = None
    """Directory to write; by default data/NAME."""
    rebuild_data: bool = False
    """Replace what is prepared there already."""
    mirror: Path | None = None
    """Take data sets of the hub from this directory, as owner/name/resolve/main/FILE; default $BDH_MIRROR."""
    tokenizer: str = "bytes"
    """bytes, bpe:N (a byte-level BPE of N tokens, trained on the text), or a tokenizer.json."""
    max_documents: int | None = None
    """Stop after so many documents; a piece of a long text counts as one."""
    validation_share: float | None = None
    """Share of the documents that validate, by hash; by default 0.01, or the validation files of the data set."""
    text_column: str | None = None
    """Column of the text in jsonl, csv and parquet files; by default text, where there are no instructions."""
    template: Template = "newline"
    """How instruction and answer are joined: as Alpaca does it (official), with the answer on a line of its own
    (newline), or without the first paragraph (short)."""
    dolly_context: Context = "input"
    """What the context of a dolly instruction becomes: its input, or **Context:** behind the instruction (append)."""
    pair: str = "en-fr"
    """Languages of europarl."""
    config: str | None = None
    """Part of a data set of the hub that has several."""
    revision: str = "main"
    """Branch, tag or commit of a data set of the hub."""
    shard_tokens: int = 2**28
    """Tokens of a file."""

    def __post_init__(self) -> None:
        share = self.validation_share
        if share is not None and not 0 < share < 1:
            raise CorpusError(f"--validation-share {share}: expected a number between 0 and 1")
        if self.max_documents is not None and self.max_documents < 1:
            raise CorpusError(f"--max-documents {self.max_documents}: expected an integer >= 1")
        if self.shard_tokens < 1:
            raise CorpusError(f"--shard-tokens {self.shard_tokens}: expected an integer >= 1")
        if self.tokenizer.startswith("bpe:") and not re.fullmatch(r"bpe:\d{3,6}", self.tokenizer):
            raise CorpusError(f"--tokenizer {self.tokenizer}: expected bpe:N with 257 or more tokens, such as bpe:4096")
        if self.tokenizer.startswith("bpe:") and int(self.tokenizer[4:]) < 257:
            raise CorpusError(f"--tokenizer {self.tokenizer}: expected at least 257 tokens: 256 bytes and a separator")


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Take a few documents at a time, fewer of long ones."""
    batch, size = list[Document](), 0
    for document in documents:
        batch.append(document)
        size += len(document.prompt) + len(document.text)
        if len(batch) >= BATCH[0] or size >= BATCH[1]:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class Preparation:
    """Reads documents and writes their tokens; stopped, another one for the same goes on at the last full shard.

    Args:
        source: what to read.
        settings: how.
        lasting: what of these decides what comes out.
        work: directory to write.
        told: see `hub.Told`.
    """

    def __init__(
        self, source: sources.Source, settings: Settings, lasting: dict[str, Any], work: Path, told: hub.Told
    ) -> None:
        self.source, self.settings, self.work, self.told = source, settings, work, told
        self.identity = {"settings": lasting, "files": [[file.remote.name, *stamp(file)] for file in source.files]}
        self.pooled = settings.validation_share is not None or not any(file.split for file in source.files)
        self.share = settings.validation_share or VALIDATION_SHARE
        self._begin(round(self.share * 2**64))

    def _begin(self, bar: int) -> None:
        """Be at the first document; those whose hash is below the bar validate."""
        self.state: dict[str, Any] = {
            "bar": bar,
            "hashes": None,
            "file": 0,
            "cursor": 0,
            "last": None,
            "documents": 0,
            "empty": 0,
            "zeros": 0,
            "lossless": True,
        }
        self.files: list[dict[str, Any]] = []

    def run(self) -> None:
        """Do what is not done, and write the manifest.

        Raises:
            CorpusError: what is read cannot be, or leaves a split empty.
        """
        splits = self._pass(self._unfinished())
        least, greatest = self.state["hashes"] or (0, 0)
        if self.pooled and least < greatest and not all(splits[split]["tokens"] for split in SPLITS):
            # few documents: the one with the least hash validates, or that with the greatest trains
            self._remove_all()
            self._begin(greatest if splits["validation"]["tokens"] else least + 1)
            splits = self._pass(None)
        for split in SPLITS:
            if not splits[split]["tokens"]:
                raise CorpusError(self._lacking(split))
        self._describe(splits)

    def _pass(self, before: dict[str, Any] | None) -> dict[str, Any]:
        tokenizer = self.tokenizer = self._tokenizer()
        dtype = shards.dtype_of(tokenizer.vocab_size)
        self.writers = {
            split: SplitWriter(
                self.work, split, dtype, tokenizer.separator, before["splits"][split] if before else None
            )
            for split in SPLITS
        }
        try:
            self._write()
            return {split: writer.finish() for split, writer in self.writers.items()}
        except BaseException:
            for writer in self.writers.values():
                with contextlib.suppress(OSError):  # what could not be written cannot be now
                    writer.close()
            raise

    def _lacking(self, split: str) -> str:
        """Say why there is nothing to train or to validate with, and what to do."""
        path, found = self.source.path, self.state["documents"]
        what = path or self.source.name
        if not found:
            empty = self.state["empty"]
            return f"{what}: expected text, found {f'{empty:,} empty documents' if empty else 'an empty file'}"
        if not self.pooled:
            return (
                f"{what}: no text to {'train' if split == 'train' else 'validate'} with in the files that are named "
                "so; --validation-share draws from all files instead"
            )
        whole = f", or learn it by bdh train --data {path}, which holds out its last tenth" if self._is_plain else ""
        return (
            f"{what}: expected at least two documents, one to train and one to validate with, found "
            f"{'one' if found == 1 else f'{found:,} that are the same'}; give more, or put lines {MARKER.decode()} "
            f"between those of a text{whole}"
        )

    @property
    def _is_plain(self) -> bool:
        path = self.source.path
        return path is not None and path.is_file() and path.suffix.lower() in PLAIN

    def _describe(self, splits: dict[str, Any]) -> None:
        tokenizer = self.tokenizer
        definition = tokenizer.definition()
        manifest = {
            "format": shards.FORMAT,
            "name": self.source.name,
            "source": {**self.source.about, "files": self.files},
            "settings": self.identity["settings"],
            "split": {"by": "hash of the document", "validation_share": self.state["bar"] / 2**64}
            if self.pooled
            else {"by": "files of the data set"},
            "tokenizer": {
                "name": tokenizer.name,
                "vocab_size": tokenizer.vocab_size,
                "sha256": hashlib.sha256(definition.encode()).hexdigest() if definition else None,
                "lossless": self.state["lossless"],
            },
            "dtype": shards.dtype_of(tokenizer.vocab_size).str,
            "separator": tokenizer.separator,
            "left_away": {"empty_documents": self.state["empty"], "zero_bytes": self.state["zeros"]},
            "splits": splits,
        }
        write_text(self.work / shards.MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")

    def _unfinished(self) -> dict[str, Any] | None:
        """Return where an earlier call for the same stopped; what another left is removed."""
        try:
            state = json.loads((self.work / STATE).read_text(encoding="utf-8"))
            if state.pop("identity") == self.identity:
                self.state = state.pop("progress")
                self.files = state.pop("files")
                return dict(state)
        except (OSError, ValueError, KeyError, AttributeError):
            pass
        self._remove_all()
        return None

    def _remove_all(self) -> None:
        for file in self.work.iterdir():
            if file.name != LOCK:
                file.unlink()

    def _tokenizer(self) -> Tokenizer:
        chosen, kept = self.settings.tokenizer, self.work / subwords.FILE
        if chosen == "bytes":
            return ByteTokenizer()
        if kept.is_file():
            return subwords.read_tokenizer(kept)
        if chosen.startswith("bpe:"):
            tokenizer = subwords.train_bpe(self._sample(), int(chosen[4:]))
        else:
            tokenizer = subwords.read_tokenizer(chosen)
        write_text(kept, tokenizer.definition())
        return tokenizer

    def _sample(self) -> Iterator[bytes]:
        """Training text from the beginning of every file, or of the documents that are asked for."""
        most, read = self.settings.max_documents, 0
        of_training = [file for file in self.source.files if self.pooled or file.split == "train"]
        budget = LEARNED_FROM // (1 if most else len(of_training))
        for file in of_training:
            left, path = budget, hub.fetch(file.remote, self.told)
            for document in self.source.reading.documents(path):
                if read == most:
                    return
                read += bool(document.text.strip(b"\0"))
                if self._split(self._hash(document), file.split) == "train":
                    left -= len(document.prompt) + len(document.text)
                    yield document.prompt + document.text
                if left <= 0:
                    break
                self.told("learning tokens", budget - left, None)

    def _hash(self, document: Document) -> int:
        return int.from_bytes(hashlib.blake2b(document.prompt + document.text, digest_size=8).digest())

    def _split(self, digest: int, of_file: str | None) -> str:
        """Choose by hash, so that the same document is always in the same split, also its copies."""
        if not self.pooled and of_file is not None:
            return of_file
        return "validation" if digest < self.state["bar"] else "train"

    def _write(self) -> None:
        for number, file in enumerate(self.source.files):
            if number < self.state["file"] or self._enough():
                continue
            path = hub.fetch(file.remote, self.told)
            size = path.stat().st_size
            documents = self.source.reading.documents(path, self.state["cursor"])
            for batch in _batches(documents):
                self._add(batch, file.split)
                self.state["cursor"] = batch[-1].cursor
                self.told(f"{file.remote.name}: {self.state['documents']:,} documents", self._bytes, None)
                self._keep_full_shards()
                if self._enough():
                    break
            self.files.append({"name": file.remote.name, "bytes": size, "sha256": shards.file_hash(path)})
            self.state |= {"file": number + 1, "cursor": 0, "last": None}

    def _enough(self) -> bool:
        most = self.settings.max_documents
        return most is not None and self.state["documents"] >= most

    @property
    def _bytes(self) -> int:
        return sum(writer.total("text_bytes") for writer in self.writers.values())

    def _add(self, batch: list[Document], of_file: str | None) -> None:
        documents = []
        for document in batch:
            cleaned = document._replace(text=self._clean(document.text), prompt=self._clean(document.prompt))
            if cleaned.text:
                documents.append(cleaned)
            else:
                self.state["empty"] += 1
        if self.settings.max_documents is not None:
            documents = documents[: self.settings.max_documents - self.state["documents"]]
        prompts, texts = (
            self.tokenizer.encode_all([getattr(d, part) for d in documents]) for part in ("prompt", "text")
        )
        if not self.state["documents"]:
            self.state["lossless"] = all(map(self._comes_back, documents, texts))
        for document, prompt, text in zip(documents, prompts, texts, strict=True):
            digest = self._hash(document)
            least, greatest = self.state["hashes"] or (digest, digest)
            self.state["hashes"] = min(least, digest), max(greatest, digest)
            split = self._split(digest, of_file)
            self.writers[split].add(
                prompt,
                text,
                len(document.prompt) + len(document.text),
                follows=document.follows and self.state["last"] == split,
            )
            self.state["last"] = split
        self.state["documents"] += len(documents)

    def _comes_back(self, document: Document, ids: Any) -> bool:
        """Tell whether the tokens of a text hold all of it; bytes do."""
        is_bytes = self.tokenizer.name == ByteTokenizer.name
        return is_bytes or self.tokenizer.decode(ids) == document.text.decode("utf-8", errors="replace")

    def _clean(self, text: bytes) -> bytes:
        """Leave zero bytes away: they separate documents."""
        zeros = text.count(b"\0")
        self.state["zeros"] += zeros
        return text.replace(b"\0", b"") if zeros else text

    def _keep_full_shards(self) -> None:
        full = [writer for writer in self.writers.values() if writer.open["tokens"] >= self.settings.shard_tokens]
        if not full:
            return
        for writer in full:
            writer.finish_shard()
        for writer in self.writers.values():
            writer.flush()
        splits = {split: writer.state for split, writer in self.writers.items()}
        state = {"identity": self.identity, "progress": self.state, "files": self.files, "splits": splits}
        write_text(self.work / STATE, json.dumps(state))
