"""Random numbers and words that are the same in every version of NumPy."""

from __future__ import annotations

import numpy as np

LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", np.uint8)


class Words:
    """Draws from the raw stream of the Philox generator, which NumPy keeps the same for ever.

    Args:
        seed: key of the generator, 0..2**63-1.
        document: 0..2**64-1; every document has draws of its own.

    Examples:
        >>> words = Words(seed=0, document=3)
        >>> words.below(10), words.word(4), words.choose(2, 5)
        (3, b'urke', [2, 4])
    """

    def __init__(self, seed: int, document: int) -> None:
        self._bits = np.random.Philox(key=seed, counter=document << 128)

    def below(self, n: int) -> int:
        """Return a number 0..n-1."""
        return int(self._bits.random_raw() % np.uint64(n))

    def word(self, length: int) -> bytes:
        """Return random letters."""
        return bytes(LETTERS[(self._bits.random_raw(length) % np.uint64(len(LETTERS))).astype(np.int64)])

    def choose(self, k: int, n: int) -> list[int]:
        """Return k different numbers of 0..n-1 in random order."""
        return [int(number) for number in np.argsort(self._bits.random_raw(n), kind="stable")[:k]]
