"""Facts hidden in a text, and questions for them: what a memory is tested with, and what it can learn that from."""

from __future__ import annotations

import re
from typing import NamedTuple

from bdh.data.words import Words

KEYS = ("lamp", "gate", "river", "moon", "well", "boat", "field", "clock")
"""All begin and end with another letter."""
VALUES = ("amber", "bronze", "coral", "denim", "ebony", "fawn", "green", "hazel", "ivory", "jade", "khaki", "lilac",
          "mauve", "navy", "olive", "plum")  # fmt: skip
"""All begin with another letter."""
ANSWERS = tuple(f" {value}.".encode() for value in VALUES)
FACTS = 2
"""Of a needle, unless asked otherwise. The other one tells finding a key from saying what stood out."""
FIRST = 2**61
"""Document whose draws make the first needle of a test; those of a training text begin at 0 and 2**60."""

_TOLD = re.compile(rb"(\n?The (%b) is[^\n]*)+\n?" % "|".join(KEYS).encode())


class Needle(NamedTuple):
    """A text that ends in a question, and the answers that it may have."""

    prompt: bytes
    """facts, filler, and the beginning of one of the facts again"""
    bare: bytes
    """the same filler and question without the facts: what the answer is guessed from then"""
    answers: tuple[bytes, ...]
    right: int
    """index of the answer that the facts give"""


def needle(words: Words, filler: bytes, *, distance: int, facts: int = FACTS) -> Needle:
    r"""Hide facts of a key and a value in a filler and ask for one of them.

    There are `facts` sentences "The key is value." with different keys and values in random order, a piece of
    `distance` bytes of the filler, and the question "The key is".

    Args:
        words: what is random.
        filler: text to hide them in.
        distance: bytes between the facts and the question.
        facts: sentences, 1 .. 8.

    Raises:
        ValueError: the filler is shorter than the distance, or a value out of range.

    Examples:
        >>> found = needle(Words(0, 0), b"and so on " * 9, distance=20)
        >>> found.prompt
        b'\nThe lamp is navy.\nThe river is denim.\n and so on and so on\nThe river is'
        >>> found.answers[found.right]
        b' denim.'
    """
    if not 1 <= facts <= len(KEYS):
        raise ValueError(f"facts={facts}: expected 1 .. {len(KEYS)}")
    if not 0 <= distance <= len(filler):
        raise ValueError(f"distance={distance:,}: expected 0 .. the {len(filler):,} bytes of the filler")
    keys, values = words.choose(facts, len(KEYS)), words.choose(facts, len(VALUES))
    asked, start = words.below(facts), words.below(len(filler) - distance + 1)
    told = b"".join(b"\nThe %b is%b" % (KEYS[k].encode(), ANSWERS[v]) for k, v in zip(keys, values, strict=True))
    end = b"\n%b\nThe %b is" % (filler[start : start + distance], KEYS[keys[asked]].encode())
    return Needle(told + end, end, ANSWERS, values[asked])


def needles(filler: bytes, *, distance: int, facts: int = FACTS, count: int = 32, seed: int = 0) -> list[Needle]:
    """Return needles that no training text has; the same seed, the same facts and questions at every distance.

    Args:
        filler: text to hide them in.
        distance: see `needle`.
        facts: see `needle`.
        count: needles, at least one.
        seed: of all that is random.

    Raises:
        ValueError: see `needle`.
    """
    if count < 1:
        raise ValueError(f"count={count}: expected at least one needle")
    return [needle(Words(seed, FIRST + n), filler, distance=distance, facts=facts) for n in range(count)]


def without_facts(text: bytes) -> bytes:
    r"""Return a text without sentences of the form of a needle's, so that it can be a filler.

    Examples:
        >>> without_facts(b"\nThe lamp is navy.\nThe gate is jade.\nrain fell.\nThe lamp is navy.\na cat slept.")
        b'rain fell.a cat slept.'
    """
    return _TOLD.sub(b"", text)
