"""Rows of text, jsonl, csv and parquet files, one at a time, from any place where a reader stopped before."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from bdh.data.download import CorpusError

PIECE = 1 << 14
"""A longer text is cut at line ends into pieces of about so many bytes, which can go to different splits."""
LONGEST_ROW = 1 << 26
"""Bytes of one row; what is longer is no row of text, and would not fit the memory that preparing may take."""
MARKER = b"<|endoftext|>"
"""A line of a text file that stands between two documents."""
PLAIN, JSON_LINES = (".txt", ".md"), (".jsonl", ".ndjson", ".json")
SUFFIXES = (*PLAIN, *JSON_LINES, ".csv", ".parquet")
# a text beside rows, such as README.md, tells about them; so does a .json beside files of other kinds
_PREFERRED = ((".parquet", ".jsonl", ".ndjson", ".csv"), (".json",), PLAIN)


class Row(NamedTuple):
    """A row, and where to go on after it."""

    cursor: int
    """opaque: hand it to `read_rows` to go on after this row"""
    values: dict[str, Any]
    follows: bool = False
    """it goes on with the text of the row before"""


def data_files(directory: Path) -> list[Path]:
    """Return the files below a directory that hold data, in the order of their relative paths: rows, else texts."""
    there = [file for file in directory.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()]
    chosen: list[Path] = []
    for suffixes in _PREFERRED:
        chosen = chosen or [file for file in there if file.suffix.lower() in suffixes]
    return sorted(chosen, key=lambda file: file.relative_to(directory).as_posix())


def read_rows(file: Path, start: int = 0, columns: tuple[str, ...] | None = None) -> Iterator[Row]:
    """Read a file row by row.

    Args:
        file: its suffix says how; the text of a `.txt` file is in the column "text".
        start: 0, or the cursor of the last row that was read.
        columns: of a parquet file, those to read where it has them; None: all.

    Raises:
        CorpusError: unknown suffix, or a row that cannot be read.
    """
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        yield from _parquet(file, start, columns)
        return
    if suffix not in SUFFIXES:
        raise CorpusError(f"{file}: expected a file that ends in {', '.join(SUFFIXES)}; convert or rename it")
    reader = _csv if suffix == ".csv" else _json_lines if suffix in JSON_LINES else _text
    with file.open("rb") as handle:
        yield from reader(handle, file, start)


def _text(handle: BinaryIO, file: Path, start: int) -> Iterator[Row]:
    """Pieces of a text; the lowest bit of a cursor says whether the next piece goes on with this one."""
    handle.seek(start // 2)
    held: list[bytes] = []
    follows, size = bool(start % 2), 0
    while True:
        line = handle.readline(PIECE)
        if len(line) == PIECE and not line.endswith(b"\n"):
            line = _whole_characters(line)
            handle.seek(handle.tell() - PIECE + len(line))
        marker = line.strip() == MARKER
        if held and (not line or marker or size + len(line) > PIECE):
            goes_on = bool(line) and not marker
            text = b"".join(held)
            # the marker is a line of its own, and the line end before it belongs to it
            after = handle.tell() - len(line) if goes_on else handle.tell()
            yield Row(2 * after + goes_on, {"text": text.removesuffix(b"\n") if marker else text}, follows)
            follows, held, size = goes_on, [], 0
        if not line:
            return
        if not marker:
            held.append(line)
            size += len(line)


def _whole_characters(content: bytes) -> bytes:
    """Leave an unfinished UTF-8 character at the end away."""
    for back in range(1, 4):
        if content[-back] >= 0xC0:
            return content[:-back]
        if content[-back] < 0x80:
            break
    return content


def _json_lines(handle: BinaryIO, file: Path, start: int) -> Iterator[Row]:
    handle.seek(start)
    while line := _line(handle, file):
        at = handle.tell()
        if not line.strip():
            continue
        if not start and line.lstrip().startswith(b"["):
            raise CorpusError(
                f"{file}: expected one JSON object per line, found an array; convert it: jq -c '.[]' {file}"
            )
        try:
            values = json.loads(line)
        except ValueError as error:
            raise CorpusError(f"{file}: the row that ends at byte {at:,} is not JSON ({error}); mend it") from None
        if not isinstance(values, dict):
            kind = type(values).__name__
            raise CorpusError(f"{file}: expected one JSON object per line, got a {kind} at byte {at:,}; convert it")
        yield Row(at, values)


def _csv(handle: BinaryIO, file: Path, start: int) -> Iterator[Row]:
    if csv.field_size_limit() < LONGEST_ROW:
        csv.field_size_limit(LONGEST_ROW)
    lines = _lines(handle, file)
    try:
        names = next(csv.reader(lines), [])
        if start:
            handle.seek(start)
        for fields in csv.reader(lines):
            if fields:
                yield Row(handle.tell(), dict(zip(names, fields, strict=False)))
    except csv.Error as error:
        raise CorpusError(f"{file}: not CSV before byte {handle.tell():,} ({error}); mend it") from None


def _lines(handle: BinaryIO, file: Path) -> Iterator[str]:
    while line := _line(handle, file):
        yield line.decode("utf-8", errors="replace").removeprefix("\ufeff")


def _line(handle: BinaryIO, file: Path) -> bytes:
    line = handle.readline(LONGEST_ROW + 1)
    if len(line) > LONGEST_ROW:
        raise CorpusError(f"{file}: a line of more than {LONGEST_ROW:,} bytes; expected one row per line")
    return line


def _parquet(file: Path, start: int, columns: tuple[str, ...] | None) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise CorpusError(f'{file} needs pyarrow to be read: pip install "bdh[data]"') from None
    try:
        # unbuffered and in one thread: as little as can be is held at once
        with pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20) as table:
            there = table.schema_arrow.names
            wanted = [name for name in there if name in columns] if columns else there
            at, groups = 0, list[int]()
            for group in range(table.num_row_groups):
                rows = table.metadata.row_group(group).num_rows
                if groups or at + rows > start:
                    groups.append(group)
                else:
                    at += rows
            # a file without any of the columns still has its rows counted: what reads them says what is missing
            for batch in table.iter_batches(256, groups, wanted or there, use_threads=False):
                for values in batch.to_pylist():
                    at += 1
                    if at > start:
                        yield Row(at, values)
    except pyarrow.ArrowException as error:
        raise CorpusError(f"{file}: cannot be read as parquet ({' '.join(str(error).split())}); get it again") from None
