"""Prepared text on disk: shards of token ids that are mapped into memory, not read, and a manifest.

manifest.json            source, licence, settings, and of every shard its size and hash
train-00000.bin          token ids, uint8, uint16 or uint32, little-endian; every document begins with the separator
train-00000.idx          (documents, 2) uint64: where in the shard a document begins, and where its prompt ends
validation-00000.bin     ...
tokenizer.json           where tokens are not bytes
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from bdh.data.download import CorpusError
from bdh.files import sync

MANIFEST = "manifest.json"
FORMAT = 1
SPLITS = ("train", "validation")
COUNTS = ("tokens", "separators", "documents", "text_bytes")
"""What is counted of a shard; the tokens are those of the text and the separators."""


class TokenShards:
    """Several memory-mapped arrays that read like one: `len`, slices, and arrays of indices.

    Args:
        parts: one-dimensional, of one type, none empty.

    Examples:
        >>> tokens = TokenShards([np.array([1, 2, 3]), np.array([4, 5])])
        >>> len(tokens), tokens[1:4].tolist(), tokens[np.array([[0, 4], [3, 2]])].tolist()
        (5, [2, 3, 4], [[1, 5], [4, 3]])
    """

    ndim = 1

    def __init__(self, parts: Sequence[npt.NDArray[Any]]) -> None:
        self.parts = list(parts)
        self.dtype = self.parts[0].dtype
        self.starts = np.array([0, *accumulate(len(part) for part in self.parts)])
        self.shape = (int(self.starts[-1]),)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: slice | npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        if isinstance(key, slice):
            key = np.arange(*key.indices(len(self)))
        if key.size and not (key.min() >= 0 and key.max() < len(self)):
            raise IndexError(f"expected indices in 0..{len(self) - 1}, got {key.min()}..{key.max()}")
        out = np.empty(key.shape, self.dtype)
        shard = np.searchsorted(self.starts, key, side="right") - 1
        for number in np.unique(shard):
            here = shard == number
            out[here] = self.parts[number][key[here] - self.starts[number]]
        return out

    def tobytes(self) -> bytes:
        """Return all of it, in memory."""
        return b"".join(part.tobytes() for part in self.parts)


def dtype_of(vocab_size: int) -> np.dtype[Any]:
    """Return the smallest type that holds the ids of a vocabulary."""
    return np.dtype("u1" if vocab_size <= 2**8 else "<u2" if vocab_size <= 2**16 else "<u4")


def file_hash(path: Path) -> str:
    """Hash a file without holding it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class SplitWriter:
    """Writes the shards of one split; whatever is on disk beyond `state` is cut off when a writer goes on from it.

    Args:
        directory: where.
        split: "train" or "validation".
        dtype: of the ids.
        separator: id that every document begins with.
        state: what `state` was when another writer stopped.
    """

    def __init__(
        self, directory: Path, split: str, dtype: np.dtype[Any], separator: int, state: dict[str, Any] | None = None
    ) -> None:
        self.directory, self.split, self.dtype = directory, split, dtype
        self.separator = np.array([separator], dtype)
        self.shards: list[dict[str, Any]] = list(state["shards"]) if state else []
        self.open: dict[str, int] = dict(state["open"]) if state else dict.fromkeys(COUNTS, 0)
        self._begin()

    def _begin(self) -> None:
        self.name = f"{self.split}-{len(self.shards):05d}"
        sizes = {".bin": self.open["tokens"] * self.dtype.itemsize, ".idx": 16 * self.open["documents"]}
        self.files = {}
        for suffix, size in sizes.items():
            path = self.directory / f"{self.name}{suffix}"
            path.touch()
            self.files[suffix] = path.open("r+b")
            self.files[suffix].truncate(size)
            self.files[suffix].seek(size)

    def add(self, prompt: npt.ArrayLike, tokens: npt.ArrayLike, text_bytes: int, *, follows: bool = False) -> None:
        """Append a document, or a piece that goes on with the one before it."""
        told, said = np.asarray(prompt, self.dtype), np.asarray(tokens, self.dtype)
        before = self.separator[: 0 if follows else 1]
        start = self.open["tokens"] + len(before)
        with self._named(".bin") as file:
            file.write(before.tobytes() + told.tobytes() + said.tobytes())
        with self._named(".idx") as file:
            file.write(np.array([start, start + len(told)], "<u8").tobytes())
        self.open["tokens"] = start + len(told) + len(said)
        self.open["separators"] += len(before)
        self.open["documents"] += 1
        self.open["text_bytes"] += text_bytes

    @contextmanager
    def _named(self, suffix: str) -> Iterator[BinaryIO]:
        """Give an open file, whose errors do not say of themselves which file it is."""
        try:
            yield self.files[suffix]
        except OSError as error:
            error.filename = str(self.directory / f"{self.name}{suffix}")
            raise

    def flush(self) -> None:
        """See what was added onto the disk."""
        for suffix in self.files:
            with self._named(suffix) as file:
                file.flush()
            sync(self.directory / f"{self.name}{suffix}")

    def finish_shard(self) -> None:
        """Close the shard, note its hash, and begin the next one."""
        self.flush()
        self.close()
        names = {kind: f"{self.name}{suffix}" for kind, suffix in (("file", ".bin"), ("index", ".idx"))}
        hashes = {f"{kind}_sha256": file_hash(self.directory / name) for kind, name in names.items()}
        self.shards.append({**names, **self.open, **hashes})
        self.open = dict.fromkeys(self.open, 0)
        self._begin()

    def finish(self) -> dict[str, Any]:
        """Close the last shard and return what the manifest tells about the split."""
        if self.open["tokens"]:
            self.finish_shard()
        self.close()
        for suffix in self.files:
            (self.directory / f"{self.name}{suffix}").unlink()
        return {**{what: self.total(what) for what in self.open}, "shards": self.shards}

    def close(self) -> None:
        """Close the files."""
        for file in self.files.values():
            file.close()

    def total(self, what: str) -> int:
        """Count one of `COUNTS` over all shards."""
        return self.open[what] + sum(int(shard[what]) for shard in self.shards)

    @property
    def state(self) -> dict[str, Any]:
        """What another writer needs to go on from here; JSON-able."""
        return {"shards": list(self.shards), "open": dict(self.open)}


def is_prepared(path: Path) -> bool:
    """Tell whether a directory holds prepared text."""
    return (path / MANIFEST).is_file()


def read_manifest(directory: Path) -> tuple[dict[str, Any], str]:
    """Return the manifest of prepared text and its hash.

    Raises:
        CorpusError: it is missing, damaged, or of another format.
    """
    file = directory / MANIFEST
    try:
        content = file.read_bytes()
        manifest = json.loads(content)
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']}")
        for key in ("name", "source", "tokenizer", "dtype", "separator", "splits"):
            manifest[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorpusError(
            f"{file} is not a manifest of format {FORMAT} ({error}): prepare the text again with --rebuild-data"
        ) from None
    return manifest, hashlib.sha256(content).hexdigest()


def map_split(directory: Path, manifest: dict[str, Any], split: str) -> npt.NDArray[Any] | TokenShards:
    """Map the shards of a split into memory; read-only.

    Raises:
        CorpusError: a shard is missing or not as long as the manifest says.
    """
    dtype = np.dtype(manifest["dtype"])
    parts = []
    for shard in manifest["splits"][split]["shards"]:
        file = directory / shard["file"]
        size, expected = file.stat().st_size if file.is_file() else None, shard["tokens"] * dtype.itemsize
        if size != expected:
            found = "nothing" if size is None else f"{size:,} bytes"
            raise CorpusError(
                f"{file}: expected {expected:,} bytes, found {found}; prepare the text again with --rebuild-data"
            )
        parts.append(np.memmap(file, dtype, "r"))
    return np.empty(0, dtype) if not parts else parts[0] if len(parts) == 1 else TokenShards(parts)


def read_documents(directory: Path, split: str) -> Iterator[tuple[npt.NDArray[Any], int]]:
    """Yield the documents of a split: their tokens without separator, and how many of these are a prompt.

    Raises:
        CorpusError: see `read_manifest` and `map_split`.
    """
    manifest, _ = read_manifest(directory)
    for shard in manifest["splits"][split]["shards"]:
        one = {**manifest, "splits": {split: {"shards": [shard]}}}
        tokens = map_split(directory, one, split)
        index = np.fromfile(directory / shard["index"], "<u8").reshape(-1, 2).astype(np.int64)
        for number, (start, scored) in enumerate(index):
            end = index[number + 1][0] if number + 1 < len(index) else len(tokens)
            # the last token before the next document is the separator of that one, unless it goes on
            whole = tokens[start:end]
            if number + 1 < len(index) and whole[-1] == manifest["separator"]:
                whole = whole[:-1]
            yield whole, int(scored - start)
