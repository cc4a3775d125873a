"""Facts hidden in a text, and questions for them: what a memory is tested with."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

KEYS = ("lamp", "gate", "river", "stone", "horse", "letter", "tower", "garden")
VALUES = ("amber", "bronze", "coral", "denim", "ebony", "fawn", "green", "hazel", "ivory", "jade", "khaki", "lilac",
          "mauve", "navy", "olive", "plum")  # fmt: skip
"""All begin with another letter."""


class Needle(NamedTuple):
    """A text that ends in a question, and the answers that it may have."""

    prompt: bytes
    """facts, filler, and the beginning of one of the facts again"""
    bare: bytes
    """the same filler and question without the facts: what the answer is guessed from then"""
    answers: tuple[bytes, ...]
    right: int
    """index of the answer that the facts give"""


def needles(filler: bytes, *, distance: int, facts: int = 2, count: int = 32, seed: int = 0) -> list[Needle]:
    r"""Hide facts of a key and a value in a filler and ask for one of them.

    Each needle has `facts` sentences "The key is value." with different keys and values in random order, a piece of
    `distance` bytes of the filler, and the question "The key is". Other facts beside the one that is asked for tell
    finding a key from saying what stood out.

    Args:
        filler: text to hide them in.
        distance: bytes between the facts and the question.
        facts: sentences, 1 .. 8.
        count: needles.
        seed: the same seed, the same needles.

    Raises:
        ValueError: the filler is shorter than the distance, or a value out of range.

    Examples:
        >>> needle = needles(b"and so on " * 9, distance=20, count=1)[0]
        >>> needle.prompt
        b'\nThe letter is plum.\nThe lamp is khaki.\nn and so on and so o\nThe lamp is'
        >>> needle.answers[needle.right]
        b' khaki.'
    """
    if not 1 <= facts <= len(KEYS):
        raise ValueError(f"facts={facts}: expected 1 .. {len(KEYS)}")
    if distance < 0 or count < 1:
        raise ValueError(f"distance={distance}, count={count}: expected distance >= 0 and count >= 1")
    if distance > len(filler):
        raise ValueError(f"distance={distance:,}: expected at most the {len(filler):,} bytes of the filler")
    rng = np.random.Generator(np.random.Philox(key=seed))
    answers = tuple(f" {value}.".encode() for value in VALUES)
    found = []
    for _ in range(count):
        keys, values = rng.permutation(len(KEYS))[:facts], rng.permutation(len(VALUES))[:facts]
        asked, start = int(rng.integers(facts)), int(rng.integers(len(filler) - distance + 1))
        told = b"".join(b"\nThe %b is%b" % (KEYS[k].encode(), answers[v]) for k, v in zip(keys, values, strict=True))
        end = b"\n%b\nThe %b is" % (filler[start : start + distance], KEYS[keys[asked]].encode())
        found.append(Needle(told + end, end, answers, int(values[asked])))
    return found
