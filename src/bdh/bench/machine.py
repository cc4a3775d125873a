"""What was measured on, for the record."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from bdh import ops
from bdh.train.run import environment


def machine() -> dict[str, Any]:
    """Return processor, memory, versions, and the path that training takes on this machine."""
    facts = environment()
    try:
        facts["packages"]["transformers"] = metadata.version("transformers")
    except metadata.PackageNotFoundError:
        facts["packages"]["transformers"] = "not installed"
    here = {"processor": _processor(), "memory_bytes": _memory(), "training on CPU": ops.levels_path()}
    return facts | here


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not every system tells
        return None
