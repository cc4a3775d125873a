"""Text on its way into a model: bytes, in blocks of windows that each start from an empty state.

Shapes: B windows of a block, T tokens of a window, S bytes of the text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bdh.lens.inspection import Context, readable
from bdh.lens.names import check_signal
from bdh.model import BDH

Ids = bytes | npt.NDArray[Any] | Tensor
BLOCK_CELLS = 2**22
"""Activations (tokens x neurons) of a level that a block holds, unless a single window has more."""


def as_bytes(ids: Ids, what: str) -> npt.NDArray[np.uint8]:
    """Check one sequence of byte ids, (T,) or (1, T)."""
    if isinstance(ids, bytes):
        data = np.frombuffer(ids, dtype=np.uint8)
    else:
        data = ids.cpu().numpy() if isinstance(ids, Tensor) else np.asarray(ids)
    data = data[0] if data.ndim == 2 and len(data) == 1 else data
    if data.ndim != 1 or data.size == 0 or data.dtype.kind not in "iu":
        raise ValueError(f"{what}: expected a non-empty sequence of byte ids (T,), got {data.dtype} {data.shape}")
    if data.min() < 0 or data.max() > 255:
        raise ValueError(f"{what}: expected byte ids 0..255, got {data.min()}..{data.max()}; encode it as UTF-8 bytes")
    return data.astype(np.uint8)


def blocks(model: BDH, data: npt.NDArray[np.uint8], window: int) -> Iterator[tuple[int, Tensor]]:
    """Yield (position of the first byte, ids (B, window)) over the text, its rest (1, fewer) last."""
    if window < 1:
        raise ValueError(f"window={window}: expected an integer >= 1, for example 256")
    whole = len(data) // window * window
    size = window * max(1, BLOCK_CELLS // (window * model.config.n_neurons))
    for start in range(0, whole, size):
        yield start, to_ids(model, data[start : min(start + size, whole)].reshape(-1, window))
    if whole < len(data):
        yield whole, to_ids(model, data[None, whole:])


def level_names(model: BDH, signal: str) -> dict[str, int]:
    """Return the level of each name that this signal has; a ValueError if there is no such signal."""
    check_signal(signal)
    return {f"layers.{level}.{signal}": level for level in range(model.config.n_layer)}


def to_ids(model: BDH, data: npt.NDArray[np.uint8]) -> Tensor:
    """Return bytes as token ids, where the model is."""
    return torch.from_numpy(data.astype(np.int64)).to(model.encoder.device)


def context_at(data: npt.NDArray[np.uint8], position: int, activation: float, margin: int) -> Context:
    """Return the place of a text, with so many bytes of it on either side."""
    start, stop = max(0, position - margin), min(len(data), position + margin + 1)
    # whole characters: a continuation byte is 10xxxxxx
    while start < position and data[start] & 0xC0 == 0x80:
        start += 1
    while stop < len(data) and data[stop] & 0xC0 == 0x80:
        stop += 1
    shown = readable(data[start:stop].tobytes())
    at = position - start
    driver = {" ": "␣", "": f"0x{data[position]:02X}"}.get(shown[at], shown[at])
    return Context(position, "".join(shown[:at]), driver, "".join(shown[at + 1 :]), activation)
