"""Rows of text, jsonl, csv and parquet files, one at a time, from any place where a reader stopped before."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from bdh.data.download import CorpusError
from bdh.data.plain import PLAIN, as_text, line_of, skip_mark

PIECE = 1 << 14
"""A longer text is cut at line ends into pieces of about so many bytes, which can go to different splits."""
LONGEST_ROW = 1 << 26
"""Bytes of one row; what is longer is no row of text, and would not fit the memory that preparing may take."""
MARKER = b"<|endoftext|>"
"""A line of a text file that stands between two documents."""
JSON_LINES = (".jsonl", ".ndjson", ".json")
SUFFIXES = (*PLAIN, *JSON_LINES, ".csv", ".parquet")
_ABOUT = ("readme", "license", "licence", "copying", "notice", "changelog")
"""Texts of these names beside rows tell about them; so does a .json beside rows of other kinds."""


class Row(NamedTuple):
    """A row, and where to go on after it."""

    cursor: int
    """opaque: hand it to `read_rows` to go on after this row"""
    values: dict[str, Any]
    follows: bool = False
    """it goes on with the text of the row before"""


def data_files(directory: Path) -> tuple[list[Path], list[Path]]:
    """Return the files below a directory that hold data, in the order of their relative paths.

    Returns:
        Rows and texts; and what beside rows only tells about them, such as README.md.
    """
    there = [file for file in directory.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()]
    there.sort(key=lambda file: file.relative_to(directory).as_posix())
    kinds = {file.suffix.lower() for file in there}
    telling: set[Path] = set()
    if kinds - {*PLAIN}:
        telling = {file for file in there if file.suffix.lower() in PLAIN and file.stem.lower() in _ABOUT}
    if kinds - {*PLAIN, ".json"}:
        telling |= {file for file in there if file.suffix.lower() == ".json"}
    return [file for file in there if file not in telling], [file for file in there if file in telling]


def read_rows(file: Path, start: int = 0, columns: tuple[str, ...] | None = None) -> Iterator[Row]:
    """Read a file row by row.

    Args:
        file: its suffix says how; the text of a `.txt` file is in the column "text".
        start: 0, or the cursor of the last row that was read.
        columns: of a parquet file, those to read where it has them; None: all.

    Raises:
        CorpusError: unknown suffix, a file or a row that cannot be read, or text that is not UTF-8.
    """
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise CorpusError(f"{file}: expected a file that ends in {', '.join(SUFFIXES)}; convert or rename it")
    try:
        if suffix == ".parquet":
            yield from _parquet(file, start, columns)
            return
        reader = _csv if suffix == ".csv" else _json_lines if suffix in JSON_LINES else _text
        with file.open("rb") as handle:
            skip_mark(handle, file)
            yield from reader(handle, file, start)
    except OSError as error:
        raise CorpusError(f"{file} cannot be read ({error.strerror or error}): check the path and its rights") from None


def place(file: Path, cursor: int) -> str:
    """Return where a row is, in words, from the cursor that it ends at."""
    return f"row {cursor:,}" if file.suffix.lower() == ".parquet" else f"line {line_of(file, cursor - 1):,}"


def _text(handle: BinaryIO, file: Path, start: int) -> Iterator[Row]:
    """Pieces of a text; the lowest bit of a cursor says whether the next piece goes on with this one."""
    if start:
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
            as_text(text, file, after - len(text) - (0 if goes_on else len(line)))
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
    if start:
        handle.seek(start)
    while line := _line(handle, file):
        at = handle.tell()
        if not line.strip():
            continue
        text = as_text(line, file, at - len(line))
        if not start and line.lstrip().startswith(b"["):
            raise CorpusError(
                f"{file}: expected one JSON object per line, found an array; convert it: jq -c '.[]' {file}"
            )
        try:
            values = json.loads(text)
        except ValueError as error:
            raise CorpusError(f"{file}: {place(file, at)} is not JSON ({error}); mend it") from None
        if not isinstance(values, dict):
            kind = type(values).__name__
            raise CorpusError(f"{file}: expected one JSON object per line, got a {kind} in {place(file, at)}; mend it")
        yield Row(at, values)


def _csv(handle: BinaryIO, file: Path, start: int) -> Iterator[Row]:
    if csv.field_size_limit() < LONGEST_ROW:
        csv.field_size_limit(LONGEST_ROW)
    lines, done = _lines(handle, file), handle.tell()
    try:
        names = next(csv.reader(lines, strict=True), [])
        if start:
            handle.seek(start)
        done = handle.tell()
        for fields in csv.reader(lines, strict=True):
            if fields and len(fields) != len(names):
                raise csv.Error(f"expected {len(names)} fields, as in its first line, found {len(fields)}")
            done = handle.tell()
            if fields:
                yield Row(done, dict(zip(names, fields, strict=True)))
    except csv.Error as error:
        where = f"the row that begins in line {line_of(file, done):,}"
        raise CorpusError(f"{file}: {where} is not CSV ({error}); look for a quote or a comma too many") from None


def _lines(handle: BinaryIO, file: Path) -> Iterator[str]:
    while line := _line(handle, file):
        yield as_text(line, file, handle.tell() - len(line))


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
