"""Texts made by rule, each of which asks for one thing that a memory is for; deterministic, and the same everywhere.

repeated-words   a fixed warm-up, then a random word again and again (arXiv 2509.26507, Sec. 5)
copy             a random word, a bar, and the word again
needle           two facts, a filler, and a question for one of them
"""

from __future__ import annotations

from collections.abc import Callable

from bdh.data.needle import needle
from bdh.data.words import Words

WARM_UP = b"abcdefghijklm"
REPEATS = 8
WORD = 8
FILLER = (
    b"the rain fell on the hill. ",
    b"a cat slept by the door. ",
    b"we walked along the river. ",
    b"it was late. ",
)
DISTANCE = 20
"""Most bytes between facts and question, so that a document has at most 85: small models learn it in minutes."""

Document = Callable[[Words], bytes]


def repeated_words(words: Words) -> bytes:
    """Return 13 fixed letters and 8 times the same random 8, a document of 77 bytes.

    Examples:
        >>> text = repeated_words(Words(seed=0, document=0))
        >>> len(text), text[13:21] == text[69:77]
        (77, True)
    """
    return WARM_UP + words.word(WORD) * REPEATS


def copy(words: Words) -> bytes:
    """Return a random word of 8 to 16 letters, a bar, and the word again.

    Examples:
        >>> one, _, other = copy(Words(seed=0, document=3)).partition(b"|")
        >>> one == other
        True
    """
    word = words.word(WORD + words.below(9))
    return word + b"|" + word


def needle_in_filler(words: Words) -> bytes:
    """Return a needle as `bdh eval --needle` asks them, at a random distance of 0 to 20 bytes, and its answer.

    Examples:
        >>> text = needle_in_filler(Words(seed=0, document=0))
        >>> answered = text[text.rindex(b"The") :]
        >>> answered in text[: text.rindex(b"The")]
        True
    """
    filler = b"".join(FILLER[words.below(len(FILLER))] for _ in range(8))
    made = needle(words, filler, distance=words.below(DISTANCE + 1))
    return made.prompt + made.answers[made.right]


TASKS: dict[str, tuple[Document, str]] = {
    "repeated-words": (repeated_words, "a fixed warm-up, then a random word eight times"),
    "copy": (copy, "a random word, a bar, and the word again"),
    "needle": (needle_in_filler, "two facts, a filler, and a question for one of them"),
}
SEPARATOR = 0
SIZES = {"train": 2**20, "validation": 2**17}
"""Bytes of each split."""


def make(name: str, split: str, seed: int = 0) -> bytes:
    """Return the documents of a task, each behind a 0 byte, to about the size of a split; the splits are drawn apart.

    Examples:
        >>> make("copy", "train")[:1], make("copy", "train") == make("copy", "validation")
        (b'\\x00', False)
    """
    task, _ = TASKS[name]
    parts, size, document = [], 0, 0 if split == "train" else 2**60
    while size < SIZES[split]:
        parts.append(b"\0" + task(Words(seed, document)))
        size += len(parts[-1])
        document += 1
    return b"".join(parts)
