"""What is prepared already, and whether that is what is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bdh.data import shards
from bdh.data.download import CorpusError
from bdh.data.sources import File, Source


def lasting(name: str, source: Source, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that decide what comes out, however paths among them are spelled.

    Args:
        name: of the source.
        source: what it stands for.
        settings: fields of `bdh.data.prepare.Settings`.

    Raises:
        CorpusError: there is no such tokenizer.
    """
    kept = {key: value for key, value in settings.items() if key not in ("out_dir", "rebuild_data", "mirror")}
    if kept["tokenizer"] != "bytes" and not kept["tokenizer"].startswith("bpe:"):
        file = Path(kept["tokenizer"]).expanduser()
        if not file.is_file():
            raise CorpusError(f"--tokenizer {file}: expected bytes, bpe:N or a tokenizer.json, found no such file")
        kept["tokenizer"] = f"sha256:{shards.file_hash(file)}"
    return {"name": str(source.path.resolve()) if source.path else name, **kept}


def stamp(file: File) -> tuple[int, int] | tuple[()]:
    """What changes when a file does; nothing of a file that is yet to be fetched."""
    if file.remote.url is not None or not file.remote.path.is_file():
        return ()
    found = file.remote.path.stat()
    return found.st_size, found.st_mtime_ns


def check_same(out: Path, wanted: dict[str, Any], source: Source) -> None:
    """Refuse to take what is there for what was asked for, unless it is that.

    Text of the user's is known by the names and the content of its files, wherever they are now.
    """
    manifest = shards.read_manifest(out)[0]
    before, remedy = manifest.get("settings", {}), "add --rebuild-data to replace it, or choose another --out-dir"
    for key, value in wanted.items():
        if before.get(key) != value and not (key == "name" and source.path):
            raise CorpusError(f"{out} was prepared with {key}={before.get(key)!r}, not {value!r}: {remedy}")
    known = manifest["source"]["files"]
    # files behind the last document that was asked for were not read
    files = source.files[: len(known)] if wanted["max_documents"] else source.files
    same = [file.remote.name for file in files] == [file["name"] for file in known]
    changed = same and next((f for f, then in zip(files, known, strict=True) if _differs(f, then)), None)
    if same and not changed:
        return
    was = str(Path(str(before.get("name"))).expanduser().resolve()) if source.path else wanted["name"]
    if was != wanted["name"]:
        raise CorpusError(f"{out} was prepared from {before.get('name')}, not {source.path}: {remedy}")
    what = changed.remote.path if changed else source.path or source.name
    raise CorpusError(f"{what} has changed since {out} was prepared: add --rebuild-data to prepare it again")


def _differs(file: File, then: dict[str, Any]) -> bool:
    path = file.remote.path
    return file.remote.url is None and (
        path.stat().st_size != then["bytes"] or shards.file_hash(path) != then["sha256"]
    )
