"""Tokens of several bytes: any tokenizer.json, or a byte-level BPE that is trained on the text."""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bdh.data.tokenizers import Decoder, Ids, to_integers

FILE = "tokenizer.json"
SEPARATOR = "<|endoftext|>"
ENDS = (SEPARATOR, "</s>", "<eos>", "<|end_of_text|>", "[SEP]", "<s>")
"""What tokenizers call the token between documents, in the order in which they are looked for."""


class SubwordTokenizer:
    """A tokenizer of the `tokenizers` package.

    Args:
        definition: what its tokenizer.json holds.

    Raises:
        ValueError: the package is missing, or this is no tokenizer.
    """

    name = FILE

    def __init__(self, definition: str) -> None:
        library = _library()
        try:
            self._tokenizer = library.Tokenizer.from_str(definition)
        except Exception as error:  # the library raises nothing more special
            raise ValueError(f"not a tokenizer.json ({' '.join(str(error).split())}): give another file") from None
        # text that looks like a special token is text
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.vocab_size: int = max(self._tokenizer.get_vocab().values(), default=-1) + 1
        """How many ids there are."""

    @property
    def separator(self) -> int:
        """The id that every document begins with.

        Raises:
            ValueError: there is none; texts that are one document can do without.
        """
        found = [token for token in map(self._tokenizer.token_to_id, ENDS) if token is not None]
        if not found:
            raise ValueError(f"the tokenizer has no token between documents: expected one of {', '.join(ENDS)}")
        return int(found[0])

    def definition(self) -> str:
        """Return what tokenizer.json holds."""
        text: str = self._tokenizer.to_str()
        return text

    def encode(self, text: str | bytes) -> npt.NDArray[Any]:
        """Turn text into ids `(T,)`; bytes are read as UTF-8, and what is not becomes a replacement character."""
        ids = self._tokenizer.encode(_text(text), add_special_tokens=False).ids
        return np.array(ids, np.int64)

    def encode_all(self, texts: Sequence[bytes]) -> list[list[int]]:
        """Turn many texts into ids, on all cores."""
        batch = self._tokenizer.encode_batch_fast([_text(text) for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in batch]

    def decode(self, ids: Ids) -> str:
        """Turn ids into text."""
        text: str = self._tokenizer.decode(to_integers(ids).tolist(), skip_special_tokens=False)
        return text

    def token_bytes(self) -> npt.NDArray[np.int64]:
        """Return how many bytes of text each id stands for, `(vocab_size,)`; ids that stand for nothing have 0.

        Examples:
            >>> tokenizer = train_bpe(iter([b"the cat sat"] * 9), 260)
            >>> int(tokenizer.token_bytes()[tokenizer.encode("the cats, né")].sum())
            13
        """
        sizes = np.zeros(self.vocab_size, np.int64)
        parts = json.loads(self.definition())
        if (parts["decoder"] or {}).get("type") == "ByteLevel":  # its alphabet has a character per byte
            for word, token in self._tokenizer.get_vocab().items():
                sizes[token] = len(word)
            return sizes
        # others join words by spaces: what a token adds after another is what it stands for
        before = next(token for word, token in self._tokenizer.get_vocab().items() if word.isalpha())
        start = len(self.decode([before]).encode())
        for token in self._tokenizer.get_vocab().values():
            sizes[token] = len(self.decode([before, token]).encode()) - start
        return sizes

    def decoder(self) -> Decoder:
        """Return what decodes a stream; a character is given out when all of it is there."""
        return _StreamDecoder(self._tokenizer)


class _StreamDecoder:
    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._start()

    def _start(self) -> None:
        self.stream = _library().decoders.DecodeStream(skip_special_tokens=False)
        self.held: list[int] = []

    def push(self, ids: Ids) -> str:
        """Take ids and return the text that is complete by now."""
        text = ""
        for token in to_integers(ids).tolist():
            piece = self.stream.step(self.tokenizer, token)
            self.held = [*self.held, token] if piece is None else []
            text += piece or ""
        return text

    def flush(self) -> str:
        """Return what an unfinished character has left, and start anew."""
        rest: str = self.tokenizer.decode(self.held, skip_special_tokens=False)
        self._start()
        return rest


def train_bpe(texts: Iterator[bytes], vocab_size: int) -> SubwordTokenizer:
    """Train a byte-level BPE: whatever it is given it can say, since all 256 bytes are among its tokens.

    Args:
        texts: what to learn from.
        vocab_size: at least 257; fewer if the text has no more pairs to join.

    Raises:
        ValueError: the package tokenizers is missing.

    Examples:
        >>> tokenizer = train_bpe(iter([b"the cat sat on the mat"] * 9), 262)
        >>> tokenizer.decode(tokenizer.encode("the mat")), len(tokenizer.encode("the")) < 3
        ('the mat', True)
    """
    library = _library()
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[SEPARATOR],
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    stopped = threading.Event()
    fed = (_text(text) for text in itertools.takewhile(lambda _: not stopped.is_set(), texts))
    _interruptibly(lambda: tokenizer.train_from_iterator(fed, trainer), stopped)
    return SubwordTokenizer(tokenizer.to_str())


def _interruptibly(work: Callable[[], None], stopped: threading.Event) -> None:
    """Do what hears no Ctrl-C beside the main thread, which does; then the work is told to stop, and left behind."""
    failed: list[BaseException] = []

    def worker() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=worker, daemon=True)
    thread.start()
    try:
        thread.join()
    except BaseException:
        stopped.set()
        raise
    if failed:
        raise failed[0]


def read_tokenizer(file: str | os.PathLike[str]) -> SubwordTokenizer:
    """Read a tokenizer.json.

    Raises:
        ValueError: see `SubwordTokenizer`, or there is no such file.
    """
    try:
        return SubwordTokenizer(Path(file).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: {getattr(error, 'strerror', None) or error}") from None


def _text(text: str | bytes) -> str:
    return text.decode("utf-8", errors="replace") if isinstance(text, bytes) else text


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise ValueError('tokens other than bytes need the package tokenizers: pip install "bdh[data]"') from None
    return tokenizers
