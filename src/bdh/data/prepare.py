"""Any amount of text -> shards of tokens on disk, in bounded memory, and gone on with where it was stopped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bdh.data import hub, kept, shards, sources
from bdh.data.corpora import PREPARED
from bdh.data.download import CorpusError
from bdh.data.preparation import STATE, Preparation, Settings
from bdh.files import LOCK, alone, sync

__all__ = ["Settings", "own_place", "prepare"]


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
        OSError: the directory cannot be written; the message says how to go on.

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
    source = _find(name, settings)
    out = settings.out_dir or PREPARED / source.name
    wanted = kept.lasting(name, source, asdict(settings))
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        if not shards.is_prepared(out):
            raise CorpusError(f"{out} holds something else than prepared text: choose another --out-dir")
        if not settings.rebuild_data:
            kept.check_same(out, wanted, source)
            return out
    work = out.with_name(f".{out.name}.preparing")
    try:
        work.mkdir(parents=True, exist_ok=True)
        (work / LOCK).touch()
    except OSError as error:
        raise CorpusError(f"--out-dir {out} cannot be written to ({error.strerror}): choose another") from None
    try:
        with alone(work, "stop it"):
            _write(source, settings, wanted, work, told or (lambda *_: None))
            _put(work, out)
    except BrokenPipeError:  # not of these files: who reads what is printed has left
        raise
    except OSError as error:
        raise OSError(
            f"{error.filename or work} cannot be written ({error.strerror or error}): make room or give rights, then "
            "give the same command again; it goes on with what is finished"
        ) from None
    return out


def own_place(name: str, settings: Settings) -> Path:
    """Return a directory below `PREPARED` that only the same text, prepared in the same way, has.

    Raises:
        CorpusError: see `prepare`.
    """
    source = _find(name, settings)
    hashes = [shards.file_hash(file.remote.path) for file in source.files if file.remote.url is None]
    decisive = json.dumps([kept.lasting(name, source, asdict(settings)), hashes])
    return PREPARED / f"{source.name}-{hashlib.blake2b(decisive.encode(), digest_size=4).hexdigest()}"


def _find(name: str, settings: Settings) -> sources.Source:
    mirror = settings.mirror or os.environ.get("BDH_MIRROR")
    return sources.find(
        name,
        mirror=Path(mirror) if mirror else None,
        revision=settings.revision,
        config=settings.config,
        column=settings.text_column,
        template=settings.template,
        context=settings.dolly_context,
        pair=settings.pair,
    )


def _write(source: sources.Source, settings: Settings, wanted: dict[str, Any], work: Path, told: hub.Told) -> None:
    try:
        Preparation(source, settings, wanted, work, told).run()
    except BaseException:
        if not (work / STATE).exists():  # nothing to go on with
            shutil.rmtree(work, ignore_errors=True)
        raise


def _put(work: Path, out: Path) -> None:
    """Let what is finished take the place of what was there."""
    (work / STATE).unlink(missing_ok=True)
    sync(work)
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.replace(old)
    work.replace(out)
    (out / LOCK).unlink()  # not before: who waits for it would take what is finished for left behind
    sync(out.parent)
    shutil.rmtree(old, ignore_errors=True)
