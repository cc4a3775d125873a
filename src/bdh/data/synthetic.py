"""Texts made by rule, each of which asks for one thing that a memory is for; deterministic, and the same everywhere.

repeated-words   a fixed warm-up, then a random word again and again (arXiv 2509.26507, Sec. 5)
copy             a random word, a bar, and the word again
needle           facts between filler, and later a question for one of them
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", np.uint8)
WARM_UP = b"abcdefghijklm"
REPEATS = 8
WORD = 8
FILLER = (
    b"the rain fell on the hill. ",
    b"a cat slept by the door. ",
    b"we walked along the river. ",
    b"it was late. ",
)
FACTS = 3

Document = Callable[["Words"], bytes]


class Words:
    """Random words from the raw stream of the Philox generator, which is the same in every version of NumPy."""

    def __init__(self, seed: int, document: int) -> None:
        self._bits = np.random.Philox(key=seed, counter=document << 128)

    def below(self, n: int) -> int:
        """Return a number 0..n-1."""
        return int(self._bits.random_raw() % np.uint64(n))

    def word(self, length: int = WORD) -> bytes:
        """Return random letters."""
        return bytes(LETTERS[(self._bits.random_raw(length) % np.uint64(len(LETTERS))).astype(np.int64)])


def repeated_words(words: Words) -> bytes:
    """Return 13 fixed letters and 8 times the same random 8, a document of 77 bytes.

    Examples:
        >>> text = repeated_words(Words(seed=0, document=0))
        >>> len(text), text[13:21] == text[69:77]
        (77, True)
    """
    return WARM_UP + words.word() * REPEATS


def copy(words: Words) -> bytes:
    """Return a random word of 8 to 16 letters, a bar, and the word again.

    Examples:
        >>> one, _, other = copy(Words(seed=0, document=3)).partition(b"|")
        >>> one == other
        True
    """
    word = words.word(WORD + words.below(9))
    return word + b"|" + word


def needle(words: Words) -> bytes:
    """Return facts "key=value;" between filler, and after more filler "?key=" with its value.

    Examples:
        >>> text = needle(Words(seed=0, document=0))
        >>> answered = text[text.index(b"?") + 1 :]
        >>> answered + b";" in text
        True
    """
    facts = [words.word(4) + b"=" + words.word(4) for _ in range(FACTS)]
    parts = []
    for fact in facts:
        parts += [FILLER[words.below(len(FILLER))] for _ in range(1 + words.below(4))] + [fact + b";"]
    parts += [FILLER[words.below(len(FILLER))] for _ in range(words.below(8))]
    return b"".join(parts) + b"?" + facts[words.below(FACTS)]


TASKS: dict[str, tuple[Document, str]] = {
    "repeated-words": (repeated_words, "a fixed warm-up, then a random word eight times"),
    "copy": (copy, "a random word, a bar, and the word again"),
    "needle": (needle, "facts between filler, and later a question for one of them"),
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
