"""Memory of this process as the system counts it, in bytes. Linux tells more than others."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def _kib(file: Path, field: str) -> int | None:
    """A line `field: number kB` of a file of the system, in bytes."""
    try:
        for line in file.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return None
    return None


def resident() -> int | None:
    """Return the memory this process holds now; None where the system does not tell (not Linux)."""
    return _kib(_STATUS, "VmRSS")


def peak() -> int:
    """Return the most memory this process held since `reset_peak`, or since it began where there is no reset."""
    # getrusage would count the peak of the process that started this one too, which Linux hands on at exec
    found = _kib(_STATUS, "VmHWM")
    if found is not None:
        return found
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def reset_peak() -> None:
    """Let `peak` count from now on, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def give_back() -> None:
    """Return freed memory to the system (glibc), so that `resident` counts what is in use."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def limit_to_what_is_free() -> None:
    """Make an allocation beyond the free memory of the machine fail here, instead of in whatever else runs (Linux)."""
    free = _kib(Path("/proc/meminfo"), "MemAvailable")
    if free is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (free, resource.getrlimit(resource.RLIMIT_DATA)[1]))
