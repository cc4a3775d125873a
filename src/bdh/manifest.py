"""Sizes and hashes of the files of a checkpoint, by which one that was damaged after it was written is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path

FILE = "manifest.json"
FORMAT = 1


def write(directory: Path) -> None:
    """Write the size and SHA-256 of every file in `directory` to its manifest."""
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)}
        for file in sorted(directory.iterdir())
        if file.name != FILE
    }
    # no newline at the end: a manifest without its last byte is no JSON
    (directory / FILE).write_text(json.dumps({"format": FORMAT, "files": files}, indent=2), encoding="utf-8")


def damage(directory: Path, names: Collection[str] | None = None) -> str | None:
    """Return what is wrong with files of a checkpoint, or None where they are as they were written.

    Args:
        directory: the checkpoint.
        names: look at these files only, where they are in the manifest; None: at all that are.
    """
    try:
        content = json.loads((directory / FILE).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            return f"{FILE} is of format {content['format']}, not {FORMAT}"
        expected = {
            name: (int(about["bytes"]), str(about["sha256"]))
            for name, about in content["files"].items()
            if names is None or name in names
        }
    except FileNotFoundError:
        return f"{FILE} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{FILE} cannot be read"
    for name, (size, digest) in expected.items():
        file = directory / name
        if not file.is_file():
            return f"{name} is missing"
        found = file.stat().st_size
        if found != size:
            return f"{name} has {found:,} bytes, not {size:,}"
        try:
            if _sha256(file) != digest:
                return f"{name} does not have the hash it was written with"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
