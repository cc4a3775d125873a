"""Rows -> documents: plain text, instructions with their answers, and sentence pairs of a translation."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bdh.data.download import CorpusError
from bdh.data.plain import PLAIN
from bdh.data.rows import PIECE, Row, place, read_rows
from bdh.data.templates import Template, fill

Kind = Literal["auto", "instructions", "pairs"]
Context = Literal["input", "append"]

_ANSWERS = ("output", "response")


class Document(NamedTuple):
    """A text, and where to go on after it."""

    cursor: int
    text: bytes
    """what a model is to say"""
    prompt: bytes = b""
    """what it is told before; a fine-tuning does not score it"""
    follows: bool = False
    """goes on with the text of the document before"""


class Reading(NamedTuple):
    """How the rows of a data set become documents."""

    kind: Kind = "auto"
    column: str | None = None
    """where a plain text is; None: in "text", unless there are instructions with answers"""
    template: Template = "newline"
    context: Context = "input"
    """what the context of an instruction becomes"""
    languages: tuple[str, str] = ("en", "fr")

    def documents(self, file: Path, start: int = 0) -> Iterator[Document]:
        """Read the documents of a file; empty ones are left away.

        Args:
            file: as `read_rows` takes it.
            start: 0, or the cursor of the last document that was read.

        Raises:
            CorpusError: a column is missing; the columns that are there are told.
        """
        if self.kind == "pairs":
            yield from self._pairs(file, start)
            return
        plain = "text" if self.column is None or file.suffix.lower() in PLAIN else self.column
        columns = ("instruction", "input", "context", *_ANSWERS)
        wanted = (plain, *columns) if self.kind == "auto" else columns
        for row in read_rows(file, start, wanted):
            answer = next((name for name in _ANSWERS if name in row.values), None)
            instructs = "instruction" in row.values and answer is not None
            if self.kind == "auto" and plain in row.values and (self.column is not None or not instructs):
                yield Document(row.cursor, _value(row, plain, file), follows=row.follows)
            elif answer is None or not instructs or (self.kind == "auto" and self.column is not None):
                raise CorpusError(self._missing(row, file))
            else:
                if plain in row.values:
                    warnings.warn(
                        f"{file}: its instructions are taken, with {answer} as the answer; its column {plain} is left "
                        f"out (bdh prepare --text-column {plain} takes that instead)",
                        stacklevel=2,
                    )
                yield self._instruction(row, answer, file)

    def _missing(self, row: Row, file: Path) -> str:
        wanted = f"instruction and {' or '.join(_ANSWERS)}"
        if self.kind == "auto":
            wanted = self.column or f"text, or {wanted}"
        found = ", ".join(all_columns(file, row))
        return (
            f"{file}: expected the column {wanted}, found {found} in {place(file, row.cursor)}; name the column of the "
            "text with --text-column"
        )

    def _instruction(self, row: Row, answer: str, file: Path) -> Document:
        instruction, given, context = (
            _value(row, name, file).decode("utf-8", errors="replace") for name in ("instruction", "input", "context")
        )
        if context and self.context == "append":
            instruction = f"{instruction}\n\n**Context:**\n{context}"
        elif context:
            given = context
        text = _value(row, answer, file)
        return Document(row.cursor, text if text.strip() else b"", fill(self.template, instruction, given).encode())

    def _pairs(self, file: Path, start: int) -> Iterator[Document]:
        """Sentence pairs in the order of the file, joined to pieces; which language comes first is drawn per pair."""
        held, size, follows, cursor = list[bytes](), 0, start > 0, start
        for row in read_rows(file, start, ("translation", *self.languages)):
            values = row.values.get("translation") or row.values
            missing = [language for language in self.languages if not isinstance(values.get(language), str)]
            if missing:
                raise CorpusError(
                    f"{file}: expected the languages {' and '.join(self.languages)}, found "
                    f"{', '.join(map(str, values))}; choose two of them with --pair"
                )
            pair = as_pair(values, self.languages)
            held.append(pair)
            size, cursor = size + len(pair), row.cursor
            if size >= PIECE:
                yield Document(cursor, b"".join(held), follows=follows)
                held, size, follows = [], 0, True
        if held:
            yield Document(cursor, b"".join(held), follows=follows)


def as_pair(values: dict[str, Any], languages: tuple[str, str]) -> bytes:
    """Join two sentences by tags, in an order that depends on nothing but them.

    Examples:
        >>> as_pair({"en": "Yes.", "fr": "Oui."}, ("en", "fr"))
        b'<F:en>Yes.<T:fr>Oui.'
    """
    texts = {language: values[language].encode("utf-8", errors="replace") for language in languages}
    digest = hashlib.blake2b(b"\0".join(texts.values()), digest_size=1).digest()
    source, target = languages if digest[0] % 2 == 0 else languages[::-1]
    return b"<F:%b>%b<T:%b>%b" % (source.encode(), texts[source], target.encode(), texts[target])


def _value(row: Row, name: str, file: Path) -> bytes:
    """Return the text in a column of a row; a missing one is empty, half a surrogate pair a question mark."""
    value = row.values.get(name)
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str | None):
        shown = repr(value)
        raise CorpusError(
            f"{file}: expected text in the column {name} of {place(file, row.cursor)}, found "
            f"{shown if len(shown) <= 40 else shown[:37] + '...'}; write it as text"
        )
    return (value or "").encode("utf-8", errors="replace")


def all_columns(file: Path, row: Row) -> list[str]:
    """Return the names of all columns of a file, also of those that were not read."""
    if file.suffix.lower() != ".parquet":
        return [str(name) for name in row.values]
    return [str(name) for name in next(iter(read_rows(file))).values]
