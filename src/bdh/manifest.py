"""Sizes and hashes of the files of a checkpoint, by which one that was damaged after it was written is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path

import numpy as np

FILE = "manifest.json"
FORMAT = 1


def write(directory: Path) -> None:
    """Write the size, SHA-256 and sum of every file in `directory` to its manifest."""
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file), "sum": _sum(file)}
        for file in sorted(directory.iterdir())
        if file.name != FILE
    }
    # no newline at the end: a manifest without its last byte is no JSON
    (directory / FILE).write_text(json.dumps({"format": FORMAT, "files": files}, indent=2), encoding="utf-8")


def damage(directory: Path, names: Collection[str] | None = None, *, quick: bool = False) -> str | None:
    """Return what is wrong with files of a checkpoint, or None where they are as they were written.

    Args:
        directory: the checkpoint.
        names: look at these files only, where they are in the manifest; None: at all that are.
        quick: compare sums, where the manifest has them, instead of hashes: a tenth of the time. A changed bit is
            noticed, and what is cut off or zeroed, but not changes that cancel, as of words that changed places.
    """
    try:
        content = json.loads((directory / FILE).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            return f"{FILE} is of format {content['format']}, not {FORMAT}"
        expected = {
            name: (int(about["bytes"]), str(about["sha256"]), about.get("sum"))
            for name, about in content["files"].items()
            if names is None or name in names
        }
    except FileNotFoundError:
        return f"{FILE} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{FILE} cannot be read"
    for name, (size, digest, total) in expected.items():
        file = directory / name
        if not file.is_file():
            return f"{name} is missing"
        found = file.stat().st_size
        if found != size:
            return f"{name} has {found:,} bytes, not {size:,}"
        try:
            if (_sum(file) != total) if quick and total else (_sha256(file) != digest):
                return f"{name} does not have the {'sum' if quick and total else 'hash'} it was written with"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _sum(file: Path) -> str:
    """Return the sum of the little-endian 64-bit words of a file, modulo 2^64, in hexadecimal digits."""
    content = np.memmap(file, np.uint8, "r") if file.stat().st_size else np.empty(0, np.uint8)
    words, rest = np.split(content, [len(content) // 8 * 8])
    total = int(words.view("<u8").sum(dtype=np.uint64)) + int.from_bytes(rest.tobytes(), "little")
    return f"{total % 2**64:016x}"
