"""Text <-> token ids. By default a token is a byte of UTF-8: 256 ids, nothing to train, nothing out of vocabulary."""

import codecs
from collections.abc import Sequence
from itertools import groupby
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

# ids as they come: a list, bytes, a NumPy array, a torch tensor on any device, or a single int
Ids = Sequence[int] | npt.NDArray[Any] | bytes | int | Any


class Decoder(Protocol):
    """Turns a stream of ids into text."""

    def push(self, ids: Ids) -> str:
        """Take ids and return the text that is complete by now."""

    def flush(self) -> str:
        """Return what is left, and start anew."""


class Tokenizer(Protocol):
    """Turns text into ids and back."""

    @property
    def name(self) -> str:
        """What config.json of a checkpoint calls it."""

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""

    @property
    def separator(self) -> int:
        """The id that every document of prepared text begins with."""

    def encode(self, text: str | bytes) -> npt.NDArray[Any]:
        """Turn text into ids."""

    def encode_all(self, texts: Sequence[bytes]) -> Sequence[npt.ArrayLike]:
        """Turn many texts into ids."""

    def decode(self, ids: Ids) -> str:
        """Turn ids into text."""

    def decoder(self) -> Decoder:
        """Return what decodes a stream."""

    def token_bytes(self) -> npt.NDArray[np.int64]:
        """Return how many bytes of text each id stands for, `(vocab_size,)`."""

    def definition(self) -> str | None:
        """Return what tokenizer.json holds; None: there is none."""


class ByteTokenizer:
    r"""Bytes as tokens.

    Examples:
        >>> tokenizer = ByteTokenizer()
        >>> tokenizer.encode("né").tolist()
        [110, 195, 169]
        >>> tokenizer.decode([110, 195, 169, 255])
        'né\\xff'
    """

    name: ClassVar[str] = "bytes"
    vocab_size: ClassVar[int] = 256
    separator: ClassVar[int] = 0

    def encode(self, text: str | bytes) -> npt.NDArray[np.uint8]:
        """Turn text into ids.

        Args:
            text: a string, encoded as UTF-8, or bytes, taken as they are.

        Returns:
            ids `(T,)`, uint8, a copy that may be written to.

        Raises:
            ValueError: the string holds half of a surrogate pair, which has no bytes.
        """
        if isinstance(text, str):
            # surrogateescape: the stray bytes of a command line or a file name come back as the bytes they were
            try:
                text = text.encode("utf-8", errors="surrogateescape")
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"text must be valid Unicode, got the lone surrogate {text[error.start]!a} at character "
                    f"{error.start}; remove it, or pass bytes"
                ) from error
        return np.frombuffer(text, dtype=np.uint8).copy()

    def decode(self, ids: Ids) -> str:
        r"""Turn ids into text; bytes that are not UTF-8 appear as `\xNN`.

        Args:
            ids: `(T,)` integers in 0..255.

        Returns:
            The text; equal to what a `TextDecoder` gives for any split of `ids`.

        Raises:
            ValueError: `ids` is not one-dimensional, not of integers, or out of range.
        """
        decoder = TextDecoder()
        return decoder.push(_to_bytes(ids)) + decoder.flush()

    def encode_all(self, texts: Sequence[bytes]) -> list[npt.NDArray[np.uint8]]:
        """Turn many texts into ids; read-only."""
        return [np.frombuffer(text, dtype=np.uint8) for text in texts]

    def decoder(self) -> "TextDecoder":
        """Return what decodes a stream."""
        return TextDecoder()

    def token_bytes(self) -> npt.NDArray[np.int64]:
        """Return 1 for each id."""
        return np.ones(256, np.int64)

    def definition(self) -> None:
        """Bytes need no tokenizer.json."""


class TextDecoder:
    r"""Decode a stream of ids: a character is given out when all of its bytes are there, and never a broken one.

    It is for showing what a model says. A model of a larger vocabulary may say tokens that are no bytes: they appear
    by their number, as `<300>`.

    Examples:
        >>> decoder = TextDecoder()
        >>> decoder.push(195), decoder.push([169, 33]), decoder.push([226, 130]), decoder.flush()
        ('', 'é!', '', '\\xe2\\x82')
        >>> decoder.push([104, 300, 105])
        'h<300>i'
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="backslashreplace")

    def push(self, ids: Ids) -> str:
        """Take ids and return the text that is complete by now.

        Args:
            ids: one id or `(T,)`, integers >= 0; above 255 they end an unfinished character.

        Raises:
            ValueError: `ids` is not one-dimensional, not of integers, or negative.
        """
        if isinstance(ids, bytes):
            return self._decoder.decode(ids)
        text = ""
        for beyond, run in groupby(to_integers(ids).tolist(), lambda token: token > 255):
            if beyond:
                text += self.flush() + "".join(f"<{token}>" for token in run)
            else:
                text += self._decoder.decode(_to_bytes(list(run)))
        return text

    def flush(self) -> str:
        r"""Return what an unfinished character has left, as `\xNN`, and start anew."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def _to_bytes(ids: Ids) -> bytes:
    """Check ids and turn them into bytes."""
    if isinstance(ids, bytes):
        return ids
    array = to_integers(ids)
    if array.size and (array.min() < 0 or array.max() > 255):
        raise ValueError(
            f"ids must be bytes, 0..255, got {array.min()}..{array.max()}; a model of a larger vocabulary needs "
            "the tokenizer it was trained with"
        )
    return array.astype(np.uint8).tobytes()


def to_integers(ids: Ids) -> npt.NDArray[Any]:
    """Check that ids are one sequence of integers."""
    # tolist: what NumPy arrays and torch tensors, those of an accelerator too, have in common
    array = np.atleast_1d(np.asarray(ids.tolist() if hasattr(ids, "tolist") else ids))
    if array.ndim != 1:
        raise ValueError(f"ids must be one sequence (T,), got shape {array.shape}; decode the rows one by one")
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"ids must be integers, got {array.dtype}; pass token ids, not logits or text")
    return array
