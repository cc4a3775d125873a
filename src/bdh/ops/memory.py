"""Memory: process-wide settings of the CPU, and how much a pass may take."""

from __future__ import annotations

import ctypes
import math
import sys

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LIMIT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Ask the C allocator to keep large freed blocks instead of returning them to the system.

    Every activation is freed and allocated again within a step. By default glibc maps each block above
    32 MiB anew, and the system clears its pages one fault at a time, which costs several times the
    arithmetic done on them (docs/LOG.md). The price: memory once taken is not given back between steps.

    Returns:
        Whether the setting took effect (glibc only; elsewhere nothing is done).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has no mallopt
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LIMIT)) and bool(mallopt(_M_TRIM_THRESHOLD, _LIMIT))


def budget(device: torch.device) -> float:
    """Bytes that one training pass may hold on an accelerator: half of its memory; infinite where that is not known."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 2
    if device.type == "mps":
        return torch.mps.recommended_max_memory() / 2
    return math.inf
