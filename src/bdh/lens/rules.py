"""Rules that say where a neuron might fire: each runs on bytes, says itself in words, and goes to JSON and back.

A row of bytes is one window, read from an empty state: a rule looks back to the beginning of its row and no further.
Only `WordList(where="inside")` looks ahead, to the end of the word that it is in.

Shapes: W windows, T bytes of each.
"""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bdh.lens.inspection import readable

Bytes = npt.NDArray[np.uint8]
Parts = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

WORD = re.compile(rb"[A-Za-z\x80-\xff]+")
"""A word: letters, and the bytes of characters beyond ASCII. A-Z counts as a-z; other letters are as they are."""

Where = Literal["so far", "inside", "after"]
What = Literal["window", "line", "word"]


class Rule(ABC):
    """What all rules can do."""

    @property
    @abstractmethod
    def words(self) -> str:
        """The rule as words, to be read after "fires"."""

    @abstractmethod
    def which(self, data: Bytes) -> Parts:
        """Return which part of the rule (which n-gram, which word) holds at each byte, -1 for none.

        Args:
            data: (W, T) windows of bytes, or (T,).
        """

    def matches(self, data: Bytes) -> Flags:
        """Return where the rule holds, in the shape of the data."""
        return self.which(data) >= 0

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that goes into JSON; `from_dict` reads it."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {"kind": type(self).__name__, **fields}


@dataclass(frozen=True)
class Grams(Rule):
    """One of these byte sequences ends here; where several do, the longest counts.

    Examples:
        >>> rule = Grams((b"e", b"th"))
        >>> rule.which(np.frombuffer(b"the", dtype=np.uint8)).tolist(), rule.words
        ([-1, 1, 0], "at the end of 'e' or 'th'")
    """

    grams: tuple[bytes, ...]

    @property
    def words(self) -> str:
        """The rule as words."""
        at = "on" if all(len(gram) == 1 for gram in self.grams) else "at the end of"
        return f"{at} {_listed(''.join(readable(gram, '␣')) for gram in self.grams)}"

    def which(self, data: Bytes) -> Parts:
        """Return which sequence ends at each byte."""
        found = np.full(data.shape, -1)
        T = data.shape[-1]
        for part, gram in sorted(enumerate(self.grams), key=lambda item: len(item[1])):
            n = len(gram)
            if n <= T:
                here = np.ones((*data.shape[:-1], T - n + 1), dtype=bool)
                for i, byte in enumerate(gram):
                    here &= data[..., i : T - n + 1 + i] == byte
                found[..., n - 1 :][here] = part
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that goes into JSON."""
        return {"kind": "Grams", "grams": [list(gram) for gram in self.grams]}


@dataclass(frozen=True)
class WordList(Rule):
    """The word read so far is one of these, or the byte is inside one of these, or follows one of these.

    Examples:
        >>> rule = WordList(("love",), "so far")
        >>> rule.matches(np.frombuffer(b"Lovely glove", dtype=np.uint8)).nonzero()[0].tolist(), rule.words
        ([3], "where the word so far is 'love'")
    """

    listed: tuple[str, ...]
    """In lower case."""
    where: Where = "so far"
    name: str = ""
    """What the words have in common."""

    @property
    def words(self) -> str:
        """The rule as words."""
        place = {"so far": "where the word so far is", "inside": "inside", "after": "right after"}[self.where]
        return f"{place} {self.name or _listed(self.listed)}"

    def which(self, data: Bytes) -> Parts:
        """Return which word it is at each byte."""
        found = np.full(data.shape, -1)
        part_of = {word.encode(): part for part, word in enumerate(self.listed)}
        lengths = {len(word) for word in part_of}
        rows = found.reshape(-1, data.shape[-1])
        for row, start, word in words_of(data):
            if self.where == "so far":
                for n in lengths:
                    if n <= len(word) and word[:n] in part_of:
                        rows[row, start + n - 1] = part_of[word[:n]]
            elif word in part_of:
                stop = start + len(word)
                rows[row, slice(start, stop) if self.where == "inside" else slice(stop, stop + 1)] = part_of[word]
        return found


@dataclass(frozen=True)
class Shape(Rule):
    """The byte has this look, or stands in such a place of a word or line; one of `SHAPES`.

    Examples:
        >>> Shape("word start").matches(np.frombuffer(b"to be", dtype=np.uint8)).tolist()
        [True, False, False, True, False]
    """

    name: str

    @property
    def words(self) -> str:
        """The rule as words."""
        return SHAPES[self.name][0]

    def which(self, data: Bytes) -> Parts:
        """Return 0 where the byte is of this shape."""
        return np.where(SHAPES[self.name][1](data), 0, -1)


@dataclass(frozen=True)
class Place(Rule):
    """The byte is the low-th to high-th (from 0, both included) of its window, line or word.

    Examples:
        >>> rule = Place("word", 2)
        >>> rule.matches(np.frombuffer(b"is this", dtype=np.uint8)).nonzero()[0].tolist(), rule.words
        ([5, 6], 'from byte 3 of a word on')
    """

    what: What
    low: int = 0
    high: int | None = None

    @property
    def words(self) -> str:
        """The rule as words."""
        low, thing = self.low + 1, {"window": "what is read", "line": "a line", "word": "a word"}[self.what]
        if self.high is None:
            return f"from byte {low:,} of {thing} on"
        return (
            f"on byte {low:,} of {thing}"
            if self.high == self.low
            else f"on bytes {low:,} to {self.high + 1:,} of {thing}"
        )

    def which(self, data: Bytes) -> Parts:
        """Return 0 where the byte is in this place."""
        place = _places(self.what, data)
        return np.where((place >= self.low) & (self.high is None or place <= self.high), 0, -1)


def rule_from_dict(values: dict[str, Any]) -> Rule:
    """Return the rule that `Rule.to_dict` wrote.

    Raises:
        ValueError: no such rule.

    Examples:
        >>> rule_from_dict({"kind": "Place", "what": "line", "low": 0, "high": 3}).words
        'on bytes 1 to 4 of a line'
    """
    kinds = {kind.__name__: kind for kind in (Grams, WordList, Shape, Place)}
    try:
        fields = dict(values)
        kind = kinds[fields.pop("kind")]
        if kind is Grams:
            return Grams(tuple(bytes(gram) for gram in fields["grams"]))
        if kind is WordList:
            fields["listed"] = tuple(fields["listed"])
        rule: Rule = kind(**fields)
        if isinstance(rule, Shape) and rule.name not in SHAPES:
            raise KeyError(rule.name)
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"rule {values!r}: expected what to_dict of a rule returns, kind {', '.join(kinds)}") from None
    return rule


def words_of(data: Bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield (row, place of the first byte, the word with A-Z as a-z) of the words of each window.

    Args:
        data: (W, T) windows of bytes, or (T,).
    """
    for row, window in enumerate(data.reshape(-1, data.shape[-1])):
        for match in WORD.finditer(window.tobytes()):
            yield row, match.start(), match[0].lower()


def _is(allowed: Callable[[str], bool]) -> Flags:
    return np.array([byte < 0x80 and allowed(chr(byte)) for byte in range(256)])


_UPPER, _LOWER, _DIGIT, _SPACE = _is(str.isupper), _is(str.islower), _is(str.isdigit), _is(str.isspace)
_BEYOND = np.arange(256) >= 0x80
_LETTER = _UPPER | _LOWER | _BEYOND
_PUNCTUATION = _is(str.isprintable) & ~(_LETTER | _DIGIT | _SPACE)


def _before(flags: Flags) -> Flags:
    """What held one byte earlier in the window; nothing did before its beginning."""
    return np.concatenate([np.zeros_like(flags[..., :1]), flags[..., :-1]], axis=-1)


def _word_start(data: Bytes) -> Flags:
    return _LETTER[data] & ~_before(_LETTER[data])


def _since(starts: Flags) -> Parts:
    """Bytes since the latest start, the beginning of the window being one."""
    at = np.broadcast_to(np.arange(starts.shape[-1]), starts.shape)
    return at - np.maximum.accumulate(np.where(starts, at, 0), axis=-1)


def _places(what: What, data: Bytes) -> Parts:
    if what == "word":
        return np.where(_LETTER[data], _since(_word_start(data)), -1)
    return _since(_before(data == 0x0A) if what == "line" else np.zeros(data.shape, dtype=bool))


def _capitalised(data: Bytes) -> Flags:
    found: Flags = _LETTER[data] & _at_word_start(_UPPER[data], data)
    return found


def _capitals(data: Bytes) -> Flags:
    """Two or more capitals of a word that has had nothing else."""
    capitals = np.cumsum(_UPPER[data], axis=-1)
    place = _places("word", data)
    found: Flags = _capitalised(data) & (place >= 1) & (capitals - _at_word_start(capitals, data) == place)
    return found


def _at_word_start(values: npt.NDArray[Any], data: Bytes) -> npt.NDArray[Any]:
    """The values at the latest beginning of a word."""
    return np.take_along_axis(values, np.arange(data.shape[-1]) - _since(_word_start(data)), axis=-1)


SHAPES: dict[str, tuple[str, Callable[[Bytes], Flags]]] = {
    "letter": ("on a letter", lambda data: _LETTER[data]),
    "lower case": ("on a lower-case letter", lambda data: _LOWER[data]),
    "upper case": ("on a capital letter", lambda data: _UPPER[data]),
    "digit": ("on a digit", lambda data: _DIGIT[data]),
    "punctuation": ("on punctuation", lambda data: _PUNCTUATION[data]),
    "space": ("on a space, tab or line end", lambda data: _SPACE[data]),
    "newline": ("on a line end", lambda data: data == 0x0A),
    "beyond ASCII": ("on a byte beyond ASCII", lambda data: _BEYOND[data]),
    "line start": ("on the first byte of a line", lambda data: _before(data == 0x0A)),
    "word start": ("on the first letter of a word", _word_start),
    "word end": ("on the first byte after a word", lambda data: ~_LETTER[data] & _before(_LETTER[data])),
    "capitalised": ("in a word that begins with a capital", _capitalised),
    "capitals": ("in a word of capitals, from its second letter on", _capitals),
}


def _listed(things: Any, most: int = 12) -> str:
    """Some quoted things, "or" before the last.

    Examples:
        >>> _listed("abc", most=2)
        "'a', 'b' or 1 more"
    """
    quoted = [f'"{thing}"' if "'" in thing else f"'{thing}'" for thing in things]
    if len(quoted) > most:
        quoted[most:] = [f"{len(quoted) - most} more"]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"
