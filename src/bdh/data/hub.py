"""Files of the Hugging Face hub over plain HTTPS: kept once fetched, gone on with where a download broke off.

Kept files, and those of a mirror, lie as on the hub: owner/name/resolve/REVISION/FILE.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bdh.data.download import CorpusError, cache_root, one_line
from bdh.data.plain import PLAIN
from bdh.data.rows import SUFFIXES, data_files
from bdh.files import sync, write_text

Told = Callable[[str, int, int | None], None]
"""Told what is going on, how many bytes are done, and of how many."""

_CHUNK = 1 << 20
_LISTING = 1 << 24


class Remote(NamedTuple):
    """A file of a data set."""

    name: str
    """as its repository, or the listing, calls it"""
    url: str | None
    path: Path
    """where it is, or will be"""


class Hub:
    """A data set of the hub, or its copy in a mirror.

    Args:
        repository: owner/name.
        revision: branch, tag or commit.
        mirror: directory of such data sets; then nothing is fetched.
    """

    def __init__(self, repository: str, revision: str = "main", mirror: Path | None = None) -> None:
        self.repository, self.revision, self.mirror = repository, revision, mirror
        self.base = os.environ.get("BDH_HUB", "https://huggingface.co").rstrip("/")
        root = mirror.expanduser() if mirror else cache_root() / "hub"
        self.folder = root.joinpath(*repository.split("/"), "resolve", urllib.parse.quote(revision, safe=""))
        self.page = f"{self.base}/datasets/{repository}"

    def files(self, names: tuple[str, ...] = (), config: str | None = None) -> list[Remote]:
        """Return the files of the data set.

        Args:
            names: those that are known; none: all that the mirror has, or that the hub lists.
            config: which of several parts of a data set.

        Raises:
            CorpusError: nothing there, no network, or several parts and none chosen.
        """
        if self.mirror:
            return self._mirrored(names, config)
        if not names:
            return self._listed(config)
        revision = urllib.parse.quote(self.revision, safe="")
        return [Remote(name, f"{self.page}/resolve/{revision}/{name}", self.folder / name) for name in names]

    def _mirrored(self, names: tuple[str, ...], config: str | None) -> list[Remote]:
        if names and all((self.folder / name).is_file() for name in names):
            return [Remote(name, None, self.folder / name) for name in names]
        folder = self.folder / config if config and (self.folder / config).is_dir() else self.folder
        there, _ = data_files(folder)
        # a text beside rows of the hub says the same, or tells about them
        there = [path for path in there if path.suffix.lower() not in PLAIN] or there
        if not there:
            what = ", ".join(names) or f"{', '.join(SUFFIXES)} files"
            raise CorpusError(
                f"{self.repository}: expected {what} in {folder}, found none; fetch them from {self.page}"
            )
        return [Remote(path.relative_to(self.folder).as_posix(), None, path) for path in there]

    def _listed(self, config: str | None) -> list[Remote]:
        """Ask the hub for the parquet files it has of a data set; the answer is kept beside the files."""
        kept = self.folder.parent / "parquet.json"
        if not kept.is_file():
            url = f"{self.base}/api/datasets/{self.repository}/parquet"
            remedy = f"fetch its files from {self.page} into DIR/{self.repository}/resolve/main/ and give --mirror DIR"
            content = _get(url, remedy)
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_text(kept, content.decode("utf-8", errors="replace"))
        try:
            listing = json.loads(kept.read_text(encoding="utf-8"))
            configs = {
                str(key): {str(k): list(map(str, v)) for k, v in splits.items()} for key, splits in listing.items()
            }
        except (ValueError, AttributeError, TypeError):
            kept.unlink()
            raise CorpusError(f"{self.repository}: the hub gave no listing of parquet files; try again later") from None
        chosen = config or ("default" if "default" in configs else next(iter(configs), ""))
        if chosen not in configs or (config is None and chosen != "default" and len(configs) > 1):
            told = f"no part {config!r}" if config else "several parts"
            raise CorpusError(f"{self.repository}: {told}; choose with --config one of {', '.join(sorted(configs))}")
        found = []
        for split, urls in sorted(configs[chosen].items()):
            for number, url in enumerate(urls):
                name = f"{chosen}/{split}/{number:04d}.parquet"
                if re.search(r"[^\w./-]|\.\.", name) or not url.startswith(("http://", "https://")):
                    raise CorpusError(f"{self.repository}: the hub lists {url!r} as {name!r}; expected plain names")
                found.append(Remote(name, url, self.folder / name))
        return found


def _get(url: str, remedy: str) -> bytes:
    """Read a short answer."""
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            content: bytes = response.read(_LISTING)
            return content
    except urllib.error.HTTPError as error:
        error.close()
        raise CorpusError(f"cannot read {url}: HTTP status {error.code}; check the name, or {remedy}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = one_line(getattr(error, "reason", None) or error)
        raise CorpusError(f"cannot read {url}: {reason}; check the network, or {remedy}") from None


def fetch(remote: Remote, told: Told | None = None, timeout: float = 30.0) -> Path:
    """Return the file on disk, fetched unless it is there; a download that broke off goes on where it was.

    Args:
        remote: what to fetch.
        told: see `Told`.
        timeout: seconds without an answer.

    Raises:
        CorpusError: it cannot be fetched; the message says where to put it by hand.
    """
    target = remote.path
    if target.is_file():
        return target
    if remote.url is None:
        raise CorpusError(f"{target}: expected a file, found nothing; put it there")
    target.parent.mkdir(parents=True, exist_ok=True)
    part, tag = (target.with_name(target.name + suffix) for suffix in (".part", ".etag"))
    remedy = f"fetch it by hand and put it at {target}"
    headers = {}
    if part.is_file() and tag.is_file():
        # without the tag, bytes of two versions of the file could meet
        headers = {"Range": f"bytes={part.stat().st_size}-", "If-Range": tag.read_text(encoding="utf-8")}
    try:
        with urllib.request.urlopen(urllib.request.Request(remote.url, headers=headers), timeout=timeout) as response:
            resumed = response.status == 206
            done = part.stat().st_size if resumed else 0
            length = response.headers.get("Content-Length")
            total = done + int(length) if length else None
            if (etag := response.headers.get("ETag")) and not etag.startswith("W/"):
                write_text(tag, etag)
            else:
                tag.unlink(missing_ok=True)
            with part.open("r+b" if resumed else "wb") as file:
                file.seek(done)
                while chunk := response.read1(_CHUNK):
                    done += file.write(chunk)
                    if told is not None:
                        told(f"fetching {remote.name}", done, total)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # what is there is no beginning of what the hub has
            tag.unlink(missing_ok=True)
            return fetch(remote, told, timeout)
        raise CorpusError(f"cannot fetch {remote.url}: HTTP status {error.code}; {remedy}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = one_line(getattr(error, "reason", None) or error)
        raise CorpusError(f"cannot fetch {remote.url}: {reason}; try again to go on, or {remedy}") from None
    if total is not None and done != total:
        raise CorpusError(
            f"cannot fetch {remote.url}: broke off after {done:,} of {total:,} bytes; try again to go on, or {remedy}"
        )
    sync(part)
    part.replace(target)
    sync(target.parent)
    tag.unlink(missing_ok=True)
    return target
