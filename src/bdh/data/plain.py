"""What a plain text is: UTF-8, whose byte order mark is no part of it."""

from __future__ import annotations

import codecs
import shlex
from pathlib import Path
from typing import BinaryIO

from bdh.data.download import CorpusError

PLAIN = (".txt", ".md")
RAW = ".bin"
"""Training takes a file that ends so as it is, whatever its bytes are."""
# those of UTF-32 first: one of them begins as one of UTF-16 does
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def skip_mark(handle: BinaryIO, file: Path) -> None:
    """Put an open file to where its text begins: behind the mark of UTF-8 if there is one.

    Raises:
        CorpusError: it has the mark of UTF-16 or UTF-32.
    """
    head = handle.read(4)
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            raise CorpusError(f"{file}: expected UTF-8, found the mark of {encoding}; {_convert(file, encoding)}")
    handle.seek(len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0)


def as_text(content: bytes, file: Path, at: int = 0) -> str:
    """Decode a part of a file.

    Args:
        content: whole characters.
        file: where it is from.
        at: and from which byte on.

    Raises:
        CorpusError: it is not UTF-8.

    Examples:
        >>> as_text(b"caf\\xe9", Path("menu.txt"), 100)
        Traceback (most recent call last):
        ...
        bdh.data.download.CorpusError: menu.txt: expected UTF-8, found byte 0xe9 at 103; \
bdh train takes its bytes as they are if it is called menu.bin, else convert it: \
iconv -f LATIN1 -t UTF-8 menu.txt > NEW, with the encoding it has
    """
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        place, line = at + error.start, f" (line {line_of(file, at + error.start):,})" if file.is_file() else ""
        raise CorpusError(
            f"{file}: expected UTF-8, found byte {content[error.start]:#04x} at {place:,}{line}; "
            f"{_convert(file, 'LATIN1')}, with the encoding it has"
        ) from None


def read_text(file: Path) -> bytes:
    """Return the text of a file without the mark of UTF-8; that of a `.bin` file is all of its bytes.

    Raises:
        CorpusError: it is no text.
    """
    if file.suffix.lower() == RAW:
        return file.read_bytes()
    with file.open("rb") as handle:
        skip_mark(handle, file)
        start, content = handle.tell(), handle.read()
    decoder, chunk = codecs.getincrementaldecoder("utf-8")(), 1 << 20
    try:
        for at in range(0, len(content), chunk):
            decoder.decode(content[at : at + chunk], final=at + chunk >= len(content))
    except UnicodeDecodeError:
        as_text(content, file, start)  # says where
    if (strange := next((byte for byte in range(7) if byte in content), None)) is not None:
        place = start + content.index(strange)
        raise CorpusError(
            f"{file}: expected text, found byte {strange:#04x} at {place:,}; convert it to text, or rename it to "
            f"{file.stem}{RAW} to learn its bytes as they are"
        )
    return content


def line_of(file: Path, place: int) -> int:
    """Return the number of the line that a byte is in, from 1."""
    line, left = 1, place
    with file.open("rb") as handle:
        while left > 0 and (chunk := handle.read(min(left, 1 << 20))):
            line, left = line + chunk.count(b"\n"), left - len(chunk)
    return line


def _convert(file: Path, encoding: str) -> str:
    remedy = f"convert it: iconv -f {encoding} -t UTF-8 {shlex.quote(str(file))} > NEW"
    if file.suffix.lower() not in PLAIN:
        return remedy
    return f"bdh train takes its bytes as they are if it is called {file.stem}{RAW}, else {remedy}"
