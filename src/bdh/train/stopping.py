"""Stopping work when the user or the system asks for it: a training between two steps, a wait at once."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


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


@contextmanager
def leaving_on_sigterm() -> Iterator[None]:
    """Let SIGTERM leave a `with` wherever it stands, with exit code 0, so that `finally` blocks are run."""

    def leave(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # what is left to do is done in peace
        sys.exit(0)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
