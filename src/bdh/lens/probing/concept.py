"""Concepts as files: words for something, words for something else, and sentences that take either.

A file is TOML:

    description = "money, against other things that are carried and counted"
    control = ["scents", ...]                     # the same letters without the meaning

    [a]                                           # neurons are selected here ...
    templates = ["He would not part with the {}.", ...]
    pairs = [["ducats", "apples"], ...]           # word of the concept, word like it of something else

    [b]                                           # ... and reported here: other words, other sentences
    templates = [...]
    pairs = [...]

Every pair is put into every template of its half, so that the two sentences differ in nothing but the word.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

MIN_PAIRS = 10
"""Word pairs of a half: with fewer, swapping them in all 2^W ways cannot show that a result is no luck."""
MIN_SENTENCES = 50
"""Sentences of the concept in a half, and as many of the contrast."""
MIN_CONTROL = 5
"""Words of the lexical control."""

_SLOT = "{}"


@dataclass(frozen=True)
class Sentence:
    """A template with a word in its slot."""

    text: str
    start: int
    """First byte of the word in `data`."""
    end: int
    """Last byte of the word in `data`."""

    @classmethod
    def of(cls, template: str, word: str) -> Sentence:
        """Return the sentence, on a line of its own.

        Examples:
            >>> sentence = Sentence.of("He sold the {}.", "crown")
            >>> sentence.data, sentence.data[sentence.start : sentence.end + 1]
            (b'\\nHe sold the crown.', b'crown')
        """
        before = len(("\n" + template[: template.index(_SLOT)]).encode())
        return cls(template.replace(_SLOT, word), before, before + len(word.encode()) - 1)

    @property
    def data(self) -> bytes:
        """What the model reads: a line break, and the sentence."""
        return ("\n" + self.text).encode()


@dataclass(frozen=True)
class Half:
    """One half of a concept: W word pairs in T templates."""

    templates: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]

    def sentences(self) -> list[Sentence]:
        """Return all 2 W T sentences: side (concept first), then word pair, then template."""
        words = [pair[side] for side in (0, 1) for pair in self.pairs]
        return [Sentence.of(template, word) for word in words for template in self.templates]

    @property
    def telling(self) -> tuple[set[str], set[str]]:
        """Words, in lower case, that tell the two sides of pairs apart: of the concept, of the contrast."""
        concept = {word for one, other in self.pairs for word in _words(one) - _words(other)}
        return concept, {word for one, other in self.pairs for word in _words(other) - _words(one)}


@dataclass(frozen=True)
class Concept:
    """A concept, in two halves that share no word of it, with a lexical control."""

    name: str
    description: str
    a: Half
    b: Half
    control: tuple[str, ...]
    """Words with letters of the concept's words and another meaning."""
    sha256: str
    """Of the file."""

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str]) -> Concept:
        """Return a shipped concept by its name, or one from a TOML file.

        Raises:
            ValueError: no such concept, or a file that is none; the message says which line to mend.

        Examples:
            >>> currency = Concept.load("currency")
            >>> currency.a.pairs[0]
            ('ducats', 'apples')
        """
        text = os.fspath(name_or_path)
        if text in concept_names():
            return cls._of(text, files("bdh.lens").joinpath("concepts", f"{text}.toml").read_bytes())
        path = Path(text)
        if not path.is_file():
            near = difflib.get_close_matches(text, concept_names(), 1)
            hint = f"did you mean {near[0]}?" if near else f"shipped are {', '.join(concept_names())}"
            raise ValueError(f"{text}: expected the name of a shipped concept, or a TOML file; {hint}")
        return cls._of(path.stem, path.read_bytes())

    @classmethod
    def _of(cls, name: str, data: bytes) -> Concept:
        try:
            values = tomllib.loads(data.decode("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"concept {name}: not a TOML file: {error}") from None
        known = ("description", "control", "a", "b")
        if strange := [key for key in values if key not in known]:
            raise ValueError(f"concept {name}: expected {', '.join(known)}, got {strange[0]!r}")
        a, b = (_half(name, half, values.get(half)) for half in ("a", "b"))
        words = set().union(*(one & other for one, other in zip(a.telling, b.telling, strict=True)))
        if shared := words | (set(a.templates) & set(b.templates)):
            raise ValueError(
                f"concept {name}: {min(shared)!r} stands in both halves: expected those of half b to be new"
            )
        control = values.get("control", [])
        if not _are_texts(control) or len(set(control)) < MIN_CONTROL:
            raise ValueError(f"concept {name}: control: expected a list of at least {MIN_CONTROL} different words")
        if told := {word for half in (a, b) for pair in half.pairs for word in pair} & set(control):
            raise ValueError(f"concept {name}: control: {min(told)!r} is also a word of a pair")
        description = values.get("description", "")
        if not isinstance(description, str) or not description.strip():
            raise ValueError(f"concept {name}: description: expected what is told from what, in a line")
        return cls(name, description, a, b, tuple(control), hashlib.sha256(data).hexdigest())

    def control_sentences(self) -> list[Sentence]:
        """Return the control words in the templates of half b: word, then template."""
        return [Sentence.of(template, word) for word in self.control for template in self.b.templates]


def concept_names() -> tuple[str, ...]:
    """Return the names of the shipped concepts.

    Examples:
        >>> "currency" in concept_names()
        True
    """
    return tuple(sorted(_shipped()))


def _shipped() -> Iterator[str]:
    for file in files("bdh.lens").joinpath("concepts").iterdir():
        if file.name.endswith(".toml"):
            yield file.name.removesuffix(".toml")


def _half(name: str, half: str, values: object) -> Half:
    """Return a half of a file, checked."""
    where = f"concept {name}, half {half}"
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: missing; expected a table [{half}] with templates and pairs")
    templates, pairs = _checked(where, values)
    if wrong := [text for text in templates if text.count(_SLOT) != 1 or not text.replace(_SLOT, "").strip()]:
        raise ValueError(f"{where}: template {wrong[0]!r}: expected a sentence with one {_SLOT} for the word")
    for pair in pairs:
        if not _are_texts(pair) or len(pair) != 2 or not _words(pair[0]) - _words(pair[1]):
            raise ValueError(f"{where}: pair {pair!r}: expected two words, of the concept and of something else")
    for side, what in enumerate(("concept", "contrast")):
        words = [pair[side] for pair in pairs]
        if twice := [word for word in words if words.count(word) > 1]:
            raise ValueError(f"{where}: {what} word {twice[0]!r} stands there twice")
    if both := {pair[0] for pair in pairs} & {pair[1] for pair in pairs}:
        raise ValueError(f"{where}: {min(both)!r} is a word of the concept and of the contrast")
    n = len(pairs) * len(templates)
    if len(pairs) < MIN_PAIRS or n < MIN_SENTENCES:
        raise ValueError(
            f"{where}: expected at least {MIN_PAIRS} word pairs and {MIN_SENTENCES} sentences of the concept, got "
            f"{len(pairs)} pairs in {len(templates)} templates, {n} sentences"
        )
    return Half(tuple(templates), tuple((concept, contrast) for concept, contrast in pairs))


def _checked(where: str, values: Mapping[str, Any]) -> tuple[list[str], list[Any]]:
    """Templates and pairs as lists, or a complaint."""
    if strange := [key for key in values if key not in ("templates", "pairs")]:
        raise ValueError(f"{where}: expected templates and pairs, got {strange[0]!r}")
    templates, pairs = values.get("templates", []), values.get("pairs", [])
    if not _are_texts(templates) or len(set(templates)) != len(templates):
        raise ValueError(f"{where}: templates: expected a list of different sentences, each with one {_SLOT}")
    if not isinstance(pairs, list):
        raise ValueError(f'{where}: pairs: expected a list like [["ducats", "apples"]]')
    return templates, pairs


def _are_texts(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) and value.strip() for value in values)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))
