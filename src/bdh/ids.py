"""Token ids: what a model accepts as such, and those of a text of bytes."""

from __future__ import annotations

import torch
from torch import Tensor


def byte_ids(text: str | bytes, vocab_size: int) -> Tensor:
    """Return the UTF-8 bytes of a text as token ids (1, T).

    Bytes of a command line that are not UTF-8, which Python holds as surrogates, count as the bytes they were.

    Raises:
        ValueError: no byte vocabulary, or a lone surrogate, which has no bytes.

    Examples:
        >>> byte_ids("Hi", 256).tolist()
        [[72, 105]]
    """
    if vocab_size < 256:
        raise ValueError(f"text needs a byte vocabulary of 256, this model has {vocab_size}: pass ids")
    if isinstance(text, str):
        try:
            text = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"text: expected valid Unicode, got the lone surrogate {text[error.start]!a} at character "
                f"{error.start}; remove it, or pass bytes"
            ) from error
    return torch.tensor([list(text)], dtype=torch.int64)


def check_ids(idx: Tensor, vocab_size: int) -> None:
    """Raise ValueError unless these are token ids (B, T) of such a vocabulary."""
    if idx.ndim != 2 or idx.numel() == 0 or idx.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"token ids: expected a non-empty integer tensor (B, T), got {idx.dtype} {tuple(idx.shape)}; "
            "for one text use torch.tensor([ids])"
        )
    # on an accelerator the check would wait for the device at every step
    if idx.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = int(idx.min()), int(idx.max())
        if low < 0 or high >= vocab_size:
            raise ValueError(
                f"token ids: expected 0..{vocab_size - 1}, got {low}..{high}; check the tokenizer or resize_vocab()"
            )
