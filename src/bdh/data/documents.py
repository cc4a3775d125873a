"""Rows -> documents: plain text, instructions with their answers, and sentence pairs of a translation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bdh.data.download import CorpusError
from bdh.data.rows import PIECE, Row, read_rows
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
    column: str = "text"
    """where a plain text is"""
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
        columns = ("instruction", "input", "context", *_ANSWERS)
        wanted = (self.column, *columns) if self.kind == "auto" else columns
        for row in read_rows(file, start, wanted):
            if self.kind == "auto" and self.column in row.values:
                document = Document(row.cursor, as_bytes(row.values[self.column]), follows=row.follows)
            else:
                document = self._instruction(row, file)
            yield document

    def _instruction(self, row: Row, file: Path) -> Document:
        values = row.values
        answer = next((name for name in _ANSWERS if name in values), None)
        if answer is None or "instruction" not in values:
            plain = f"{self.column}, or " if self.kind == "auto" else ""
            raise CorpusError(
                f"{file}: expected the column {plain}instruction and {' or '.join(_ANSWERS)}, found "
                f"{', '.join(all_columns(file, row))}; name the column of the text with --text-column"
            )
        instruction, given = (_text_of(values.get(name)) for name in ("instruction", "input"))
        context = _text_of(values.get("context"))
        if context and self.context == "append":
            instruction = f"{instruction}\n\n**Context:**\n{context}"
        elif context:
            given = context
        prompt = fill(self.template, instruction, given)
        text = as_bytes(values[answer])
        return Document(row.cursor, text if text.strip() else b"", as_bytes(prompt))

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
    texts = {language: as_bytes(values[language]) for language in languages}
    digest = hashlib.blake2b(b"\0".join(texts.values()), digest_size=1).digest()
    source, target = languages if digest[0] % 2 == 0 else languages[::-1]
    return b"<F:%b>%b<T:%b>%b" % (source.encode(), texts[source], target.encode(), texts[target])


def as_bytes(text: Any) -> bytes:
    """Turn a value of a row into text; a missing one is empty, half a surrogate pair a question mark."""
    return text if isinstance(text, bytes) else _text_of(text).encode("utf-8", errors="replace")


def all_columns(file: Path, row: Row) -> list[str]:
    """Return the names of all columns of a file, also of those that were not read."""
    if file.suffix.lower() != ".parquet":
        return [str(name) for name in row.values]
    return [str(name) for name in next(iter(read_rows(file))).values]


def _text_of(value: Any) -> str:
    return "" if value is None else str(value)
