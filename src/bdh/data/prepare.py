"""Any amount of text -> shards of tokens on disk, in bounded memory, and gone on with where it was stopped."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bdh.data import hub, shards, sources, subwords
from bdh.data.corpora import PREPARED
from bdh.data.documents import Context, Document
from bdh.data.download import CorpusError
from bdh.data.shards import SPLITS, SplitWriter
from bdh.data.templates import Template
from bdh.data.tokenizers import ByteTokenizer, Tokenizer
from bdh.files import LOCK, alone, sync, write_text

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


def prepare(name: str, settings: Settings | None = None, told: hub.Told | None = None) -> Path:
    """Make a data set ready for training.

    Args:
        name: see `sources.find`.
        settings: how; None for the defaults.
        told: see `hub.Told`.

    Returns:
        The directory, for `bdh train --data`. It appears when all of it is there; until then a hidden one beside it
        keeps what is finished, and the same call goes on from that.

    Raises:
        CorpusError: there is no such data set, it cannot be read, or the directory holds something else.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "cats.txt")
        ...     _ = file.write_text("".join(f"cat {n}\\n<|endoftext|>\\n" for n in range(100)))
        ...     out = prepare(str(file), Settings(out_dir=Path(folder, "cats"), validation_share=0.2))
        ...     sorted(path.name for path in out.glob("train*"))
        ['train-00000.bin', 'train-00000.idx']
    """
    settings = settings or Settings()
    mirror = settings.mirror or os.environ.get("BDH_MIRROR")
    source = sources.find(
        name,
        mirror=Path(mirror) if mirror else None,
        revision=settings.revision,
        config=settings.config,
        column=settings.text_column,
        template=settings.template,
        context=settings.dolly_context,
        pair=settings.pair,
    )
    out = settings.out_dir or PREPARED / source.name
    lasting = _lasting(name, settings)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        if not shards.is_prepared(out):
            raise CorpusError(f"{out} holds something else than prepared text: choose another --out-dir")
        if not settings.rebuild_data:
            _check_same(out, lasting, source)
            return out
    work = out.with_name(f".{out.name}.preparing")
    work.mkdir(parents=True, exist_ok=True)
    with alone(work, "stop it"):
        try:
            _Preparation(source, settings, lasting, work, told or (lambda *_: None)).run()
        except BaseException:
            if not (work / STATE).exists():  # nothing to go on with
                shutil.rmtree(work, ignore_errors=True)
            raise
        (work / LOCK).unlink()
        (work / STATE).unlink(missing_ok=True)
        sync(work)
        old = out.with_name(f".{out.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if out.exists():
            out.replace(old)
        work.replace(out)
        sync(out.parent)
        shutil.rmtree(old, ignore_errors=True)
    return out


def _lasting(name: str, settings: Settings) -> dict[str, Any]:
    """The settings that decide what comes out."""
    passing = ("out_dir", "rebuild_data", "mirror")
    return {"name": name, **{key: value for key, value in asdict(settings).items() if key not in passing}}


def _stamp(file: sources.File) -> tuple[int, int] | tuple[()]:
    """What changes when a file does; nothing of a file that is yet to be fetched."""
    if file.remote.url is not None or not file.remote.path.is_file():
        return ()
    found = file.remote.path.stat()
    return found.st_size, found.st_mtime_ns


def _check_same(out: Path, lasting: dict[str, Any], source: sources.Source) -> None:
    """Refuse to take what is there for what was asked for, unless it is that."""
    manifest = shards.read_manifest(out)[0]
    before = manifest.get("settings", {})
    changed = [
        f"{key}={before.get(key)!r}, not {value!r}" for key, value in lasting.items() if before.get(key) != value
    ]
    if changed:
        raise CorpusError(
            f"{out} was prepared with {changed[0]}: add --rebuild-data to replace it, or choose another --out-dir"
        )
    known = {file["name"]: file for file in manifest["source"]["files"]}
    for file in source.files:
        path, then = file.remote.path, known.get(file.remote.name)
        if file.remote.url is None and then is not None:  # a file of the user's may have changed
            if path.stat().st_size == then["bytes"] and shards.file_hash(path) == then["sha256"]:
                continue
            raise CorpusError(f"{path} has changed since {out} was prepared: add --rebuild-data to prepare it again")


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


class _Preparation:
    """The objects of one call."""

    def __init__(
        self, source: sources.Source, settings: Settings, lasting: dict[str, Any], work: Path, told: hub.Told
    ) -> None:
        self.source, self.settings, self.work, self.told = source, settings, work, told
        self.identity = {"settings": lasting, "files": [[file.remote.name, *_stamp(file)] for file in source.files]}
        self.state: dict[str, Any] = {
            "file": 0,
            "cursor": 0,
            "last": None,
            "documents": 0,
            "empty": 0,
            "zeros": 0,
            "lossless": True,
        }
        self.files: list[dict[str, Any]] = []
        self.pooled = settings.validation_share is not None or not any(file.split for file in source.files)
        self.share = settings.validation_share or VALIDATION_SHARE

    def run(self) -> None:
        """Do what is not done, and write the manifest."""
        before = self._unfinished()
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
        except BaseException:
            for writer in self.writers.values():
                writer.close()
            raise
        splits = {split: writer.finish() for split, writer in self.writers.items()}
        for split, found in splits.items():
            if not found["tokens"]:
                raise CorpusError(
                    f"{self.source.name}: no text to {'train' if split == 'train' else 'validate'} with in "
                    f"{self.state['documents']} documents; give more, or another --validation-share"
                )
        definition = tokenizer.definition()
        manifest = {
            "format": shards.FORMAT,
            "name": self.source.name,
            "source": {**self.source.about, "files": self.files},
            "settings": self.identity["settings"],
            "split": {"by": "hash of the document", "validation_share": self.share}
            if self.pooled
            else {"by": "files of the data set"},
            "tokenizer": {
                "name": tokenizer.name,
                "vocab_size": tokenizer.vocab_size,
                "sha256": hashlib.sha256(definition.encode()).hexdigest() if definition else None,
                "lossless": self.state["lossless"],
            },
            "dtype": dtype.str,
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
        for file in self.work.iterdir():
            if file.name != LOCK:
                file.unlink()
        return None

    def _tokenizer(self) -> Tokenizer:
        chosen, kept = self.settings.tokenizer, self.work / subwords.FILE
        if chosen == "bytes":
            return ByteTokenizer()
        if kept.is_file():
            return subwords.read_tokenizer(kept)
        if chosen.startswith("bpe:"):
            tokenizer = subwords.train_bpe(self._sample(), int(chosen[4:]))
        elif not Path(chosen).expanduser().is_file():
            raise CorpusError(f"--tokenizer {chosen}: expected bytes, bpe:N or a tokenizer.json, found no such file")
        else:
            tokenizer = subwords.read_tokenizer(chosen)
        write_text(kept, tokenizer.definition())
        return tokenizer

    def _sample(self) -> Iterator[bytes]:
        """Training text from the beginning of every file."""
        of_training = [file for file in self.source.files if self.pooled or file.split == "train"]
        for file in of_training:
            left, path = LEARNED_FROM // len(of_training), hub.fetch(file.remote, self.told)
            for document in self.source.reading.documents(path):
                if self._split(document, file.split) == "train":
                    left -= len(document.prompt) + len(document.text)
                    yield document.prompt + document.text
                if left <= 0:
                    break
                self.told("learning tokens", LEARNED_FROM // len(of_training) - left, None)

    def _split(self, document: Document, of_file: str | None) -> str:
        """Choose by hash, so that the same document is always in the same split, also its copies."""
        if not self.pooled and of_file is not None:
            return of_file
        digest = hashlib.blake2b(document.prompt + document.text, digest_size=8).digest()
        return "validation" if int.from_bytes(digest) < self.share * 2**64 else "train"

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
            split = self._split(document, of_file)
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
