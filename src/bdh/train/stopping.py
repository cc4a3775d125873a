"""Stopping a training when the user or the system asks for it, between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from bdh.train.distributed import World


def agreed(asked: list[str], world: World) -> str:
    """Return the signal by which any of the processes was asked to stop, if one was; all hear the same."""
    found = world.largest(signal.Signals[asked[0]] if asked else 0)
    return signal.Signals(found).name if found else ""


@contextmanager
def stop_requests(*, patient: bool = False) -> Iterator[list[str]]:
    """Give a list that fills when the user or the system asks to stop; a second Ctrl-C stops at once.

    Args:
        patient: it does not; torchrun sends every Ctrl-C of a terminal a second time.
    """
    asked: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked  # only the main thread may handle signals
        return

    def ask(number: int, _frame: object) -> None:
        asked.append(signal.Signals(number).name)
        if not patient:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
