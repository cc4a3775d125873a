"""Writing files so that a reader, or a crash, finds the old content or the new, never a part."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from safetensors import SafetensorError

LOCK = "lock"
"""File of `alone`."""

_OF_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


class WritingError(OSError):
    """A file or directory could not be written; what stood there before is as it was."""

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(error.errno, error.strerror or str(error), str(path))

    def __str__(self) -> str:
        return f"{self.filename} cannot be written ({self.strerror}): make room or give rights, and try again"


def check_file(path: str | Path, flag: str = "") -> None:
    """Raise ValueError where `replacing_file` could not write: to be told before the work, not after it.

    Args:
        path: the file.
        flag: what it was given by.
    """
    target = Path(path)
    named = f"{flag} {target}".strip()
    _check_name(target, named)
    _check_writable(target.parent, named)


def check_directory(path: str | Path, flag: str = "", *, replaced: bool = False) -> None:
    """Raise ValueError where files could not be written into a directory, be it there or not; see `check_file`.

    Args:
        path: the directory.
        flag: what it was given by.
        replaced: it is written by `replacing_directory`, which works beside what is there.
    """
    target = Path(path)
    named = f"{flag} {target}".strip()
    there = next(place for place in (target, *target.absolute().parents) if place.exists())
    if not there.is_dir():
        raise ValueError(f"{named}: expected a directory, {'this' if there == target else there} is a file")
    _check_writable(there.absolute().parent if replaced and there == target else there, named)


def _check_name(target: Path, named: str) -> None:
    if target.is_dir():
        raise ValueError(f"{named} is a directory: expected the name of a file to write")
    if not target.parent.is_dir():
        raise ValueError(f"{named}: its folder does not exist; create it, or choose another name")


def _check_writable(directory: Path, named: str) -> None:
    try:
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        raise ValueError(
            f"{named} cannot be written ({error.strerror}): give rights, or choose another place"
        ) from None


@contextmanager
def replacing_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary file to fill, which takes the place of `path` when the block ends well.

    Its content is on disk (fsync) before the rename.

    Raises:
        ValueError: `path` is a directory, or its folder does not exist.
        WritingError: there is no room, or no right to write.
    """
    target = Path(path)
    _check_name(target, str(target))
    with _explained(target):
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
def _explained(target: Path) -> Iterator[None]:
    """Say of which file it was that the room or the right to write was missing."""
    try:
        yield
    except WritingError:
        raise
    except OSError as error:
        temporary = Path(str(error.filename)).name.startswith(f".{target.name}.")
        if error.errno not in _OF_WRITING and not temporary:
            raise  # of what the block reads, or asks the network for
        raise WritingError(target, error) from None
    except SafetensorError as error:
        if found := re.search(r"os error (\d+)", str(error)):
            raise WritingError(target, OSError(int(found[1]), os.strerror(int(found[1])))) from None
        raise


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

    Raises:
        WritingError: there is no room, or no right to write.
    """
    target = Path(path)
    with _explained(target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WritingError(target, error) from None
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        aside = work.with_name(work.name + ".old")
        try:
            yield work
            _put(work, target, aside)
        finally:
            shutil.rmtree(work, ignore_errors=True)
            shutil.rmtree(aside, ignore_errors=True)


def _put(work: Path, target: Path, aside: Path) -> None:
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
