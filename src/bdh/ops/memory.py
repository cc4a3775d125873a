"""Memory: process-wide settings of the CPU, and how much a pass may take."""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LIMIT = 2**31 - 1
_LARGE = 2**23
_keeping = False


def keep_freed_memory() -> bool:
    """Ask the C allocator to keep large freed blocks instead of returning them to the system.

    Every activation is freed and allocated again within a step. By default glibc maps each block above
    32 MiB anew, and the system clears its pages one fault at a time, which costs several times the
    arithmetic done on them (docs/LOG.md). The price: memory once taken is not given back between steps.

    Returns:
        Whether the setting took effect (glibc only; elsewhere nothing is done).
    """
    global _keeping
    libc = _libc()
    _keeping = libc is not None and _hold(libc, _LIMIT)
    return _keeping


@contextmanager
def returning_freed_memory() -> Iterator[None]:
    """Return freed memory to the system inside, where `keep_freed_memory` holds it; before and after, what is free now.

    For work between training steps. Its tensors have other sizes than those of a step, and holes that neither can use
    would stay beside each other (docs/LOG.md).

    Examples:
        >>> with returning_freed_memory():
        ...     loss = torch.zeros(())
    """
    libc = _libc()
    if libc is None or not _keeping:
        yield
        return
    _hold(libc, _LARGE)
    libc.malloc_trim(0)
    try:
        yield
    finally:
        libc.malloc_trim(0)
        keep_freed_memory()


def _libc() -> Any:
    """The C library where it is glibc; None elsewhere."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL(None)
        return libc if libc.mallopt and libc.malloc_trim else None
    except (OSError, AttributeError):  # musl has no mallopt
        return None


def _hold(libc: Any, size: int) -> bool:
    """Let freed blocks, and the free end of the heap, go back to the system only beyond this size."""
    return bool(libc.mallopt(_M_MMAP_THRESHOLD, size)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, size))


def budget(device: torch.device) -> float:
    """Bytes that one training pass may hold on an accelerator: half of its memory; infinite where that is not known."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 2
    if device.type == "mps":
        return torch.mps.recommended_max_memory() / 2
    return math.inf
