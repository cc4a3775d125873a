"""Writing files so that a reader, or a crash, finds the old content or the new, never a part."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

LOCK = "lock"
"""File of `alone`."""


@contextmanager
def replacing_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary file to fill, which takes the place of `path` when the block ends well.

    Its content is on disk (fsync) before the rename.

    Raises:
        ValueError: `path` is a directory, or its folder does not exist.
    """
    target = Path(path)
    if target.is_dir():
        raise ValueError(f"{target} is a directory: expected the name of a file to write")
    if not target.parent.is_dir():
        raise ValueError(f"{target}: its folder does not exist; create it, or choose another name")
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    os.close(handle)
    work = Path(name)
    try:
        yield work
        sync(work)
        work.chmod(0o666 & ~_umask())  # mkstemp makes private files
        work.replace(target)
        sync(target.parent)
    finally:
        work.unlink(missing_ok=True)


@contextmanager
def alone(directory: Path, remedy: str) -> Iterator[None]:
    """Let one process at a time write a directory; who only reads there does not ask.

    The process holds its file `lock` (flock), which ends with it however it ends, and writes its number there. The file
    stays: if it were deleted, two processes could hold one each.

    Args:
        directory: where; it must be there.
        remedy: what to do other than to wait.

    Raises:
        ValueError: another process has it.
    """
    with (directory / LOCK).open("a+", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "?"
            raise ValueError(f"{directory} is in use by process {holder}: wait for it, or {remedy}") from None
        except OSError as error:  # some network file systems
            warnings.warn(f"{directory} cannot be locked ({error.strerror}): start nothing else there", stacklevel=3)
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


@contextmanager
def replacing_directory(path: str | Path) -> Iterator[Path]:
    """Give a temporary directory to fill, which takes the place of `path` when the block ends well.

    Every file in it is on disk (fsync) before the rename. An old directory is moved aside first and back again if
    the rename fails; only a crash between the two renames leaves it under its other name, beside the target.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    aside = work.with_name(work.name + ".old")
    try:
        yield work
        for file in work.rglob("*"):
            if file.is_file():
                file.chmod(0o666 & ~_umask())  # some libraries make private files
            sync(file)
        sync(work)
        work.chmod(0o777 & ~_umask())  # mkdtemp makes private directories
        if target.exists():
            target.replace(aside)
        try:
            work.replace(target)
        except BaseException:
            if aside.exists():
                aside.replace(target)
            raise
        sync(target.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Replace a small text file."""
    with replacing_file(path) as work:
        work.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Wait until a file or directory is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@cache  # it can only be read by changing it, which other threads would see
def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
