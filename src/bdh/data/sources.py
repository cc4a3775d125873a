"""Names -> files: what `bdh prepare` knows by name, data sets of the hub, and files on this machine."""

from __future__ import annotations

import difflib
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bdh.data.documents import Context, Kind, Reading
from bdh.data.download import CorpusError
from bdh.data.hub import Hub, Remote
from bdh.data.rows import SUFFIXES, data_files
from bdh.data.shards import SPLITS
from bdh.data.templates import Template

_VALIDATION = {"validation", "valid", "val", "dev"}


@dataclass(frozen=True)
class Known:
    """A data set of the hub that has a name here."""

    repository: str
    licence: str
    kind: Kind = "auto"
    files: tuple[str, ...] = ()
    """where their names are settled; else the hub is asked"""


KNOWN = {
    "tinystories": Known("noanabeshima/TinyStoriesV2", "CDLA-Sharing-1.0"),
    "alpaca": Known(
        "tatsu-lab/alpaca",
        "CC BY-NC 4.0 (not for commercial use)",
        "instructions",
        ("data/train-00000-of-00001-a09b74b3ef9c3b56.parquet",),
    ),
    "dolly": Known("databricks/databricks-dolly-15k", "CC BY-SA 3.0", "instructions", ("databricks-dolly-15k.jsonl",)),
    "europarl": Known("Helsinki-NLP/europarl", "unknown (as the proceedings themselves; cite Koehn 2005)", "pairs"),
}


class File(NamedTuple):
    """A file of a source, and the split it is of, if its name says so."""

    remote: Remote
    split: str | None


@dataclass(frozen=True)
class Source:
    """Where documents come from."""

    name: str
    files: tuple[File, ...]
    reading: Reading
    about: dict[str, Any]
    """for the manifest: location, revision, licence"""
    path: Path | None = None
    """of text of the user's: the file, or the directory of files"""


def find(
    name: str,
    *,
    mirror: Path | None = None,
    revision: str = "main",
    config: str | None = None,
    column: str | None = None,
    template: Template = "newline",
    context: Context = "input",
    pair: str = "en-fr",
) -> Source:
    """Find the files of a data set.

    Args:
        name: one of `KNOWN`, a file, a directory of files, or owner/name of a data set of the hub.
        mirror: see `Hub`.
        revision: see `Hub`.
        config: part of a data set of the hub.
        column: see `Reading`.
        template: see `Reading`.
        context: see `Reading`.
        pair: languages of europarl.

    Raises:
        CorpusError: nothing by that name, or its files cannot be told.
    """
    languages = tuple(pair.split("-"))
    if len(languages) != 2 or not all(re.fullmatch("[a-z]{2,3}", language) for language in languages):
        raise CorpusError(f"--pair {pair}: expected two languages, such as en-fr")
    first, second = languages
    known = KNOWN.get(name)
    reading = Reading(known.kind if known else "auto", column, template, context, (first, second))
    if known is None and name and (path := Path(name).expanduser()).exists():
        files = [Remote(path.name, None, path)] if path.is_file() else _below(path)
        about = {"location": str(path), "licence": "unknown (the user's own text)"}
        name, used = path.resolve().name if path.is_dir() else path.stem, _with_splits(files)
        if others := [remote.name for remote in files if remote not in {file.remote for file in used}]:
            told = ", ".join(others)
            warnings.warn(f"{path}: left out, since named neither to train nor to validate: {told}", stacklevel=2)
        return Source(name, used, reading, about, path)
    if known is None and _is_path(name):
        raise CorpusError(f"{name}: no such file or directory; {_alike(Path(name).expanduser())}")
    if known is None and not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        near = difflib.get_close_matches(name, KNOWN, 1)
        hint = f"did you mean {near[0]}?" if near else "check the path"
        raise CorpusError(
            f"{name or repr(name)}: expected one of {', '.join(KNOWN)}, a file, a directory, or owner/name of a "
            f"Hugging Face data set; {hint}"
        )
    hub = Hub(known.repository if known else name, revision, mirror)
    if reading.kind == "pairs":
        config = config or "-".join(sorted(languages))
    remotes = hub.files(known.files if known else (), config)
    about = {
        "location": hub.page,
        "revision": revision,
        "licence": known.licence if known else f"see {hub.page}",
    }
    label = name.rpartition("/")[2]
    return Source(label, _with_splits(remotes), reading, about)


def _is_path(name: str) -> bool:
    """Tell whether a name is meant as a path, and not as owner/name of the hub."""
    path = Path(name).expanduser()
    return path.suffix.lower() in SUFFIXES or path.is_absolute() or ("/" in name and path.parent.is_dir())


def _alike(path: Path) -> str:
    there = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, there, 1, cutoff=0.8)
    return f"did you mean {path.with_name(near[0])}?" if near else "check the path"


def _below(directory: Path) -> list[Remote]:
    there, telling = data_files(directory)
    if not there:
        raise CorpusError(f"{directory}: expected {', '.join(SUFFIXES)} files in it, found none")
    if telling:
        names = ", ".join(path.relative_to(directory).as_posix() for path in telling)
        warnings.warn(f"{directory}: left out, since they tell about the rows beside them: {names}", stacklevel=3)
    return [Remote(path.relative_to(directory).as_posix(), None, path) for path in there]


def _with_splits(remotes: list[Remote]) -> tuple[File, ...]:
    """Tell training from validation files by their names, if there are both; those to test with are left alone."""
    words = [set(re.split(r"[^a-z]+", remote.name.lower())) for remote in remotes]
    splits = ["train" if "train" in w else "validation" if w & _VALIDATION else None for w in words]
    named = tuple(File(remote, split) for remote, split in zip(remotes, splits, strict=True) if split)
    if {file.split for file in named} == set(SPLITS):
        return tuple(sorted(named, key=lambda file: str(file.split)))
    kept = [file.remote for file in named if file.split == "train"] or remotes
    return tuple(File(remote, None) for remote in kept)
