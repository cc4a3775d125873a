"""The other end of a worker's pipe: start it, ask it, notice when it dies, and end it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from bdh.bench.protocol import Declined
from bdh.bench.worker import Setup

START_SECONDS = 120.0
"""A worker that is not ready by then is ended."""


class Failed(Exception):  # noqa: N818 - named like Declined
    """A contender died, or ran into its time limit; the text says how in one line."""


class Worker:
    """A contender in a process of its own.

    Args:
        setup: what it is made from. The process begins at once; `wait` returns when it is ready.
    """

    def __init__(self, setup: Setup) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        handle = theirs.fileno()
        # a session of its own: Ctrl-C reaches this process alone, which then ends the workers
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from bdh.bench.worker import main; main({handle})"],
            pass_fds=(handle,),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        theirs.close()
        with contextlib.suppress(OSError):  # it died already; `wait` will say how
            self._pipe.send(setup)
        self._about: dict[str, Any] | None = None
        self._refusal: Declined | None = None

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._process.pid

    def wait(self) -> dict[str, Any]:
        """Return parameters and shape of the contender when it is ready.

        Raises:
            Declined: it cannot take part.
            Failed: it died.
        """
        if self._refusal is not None:
            raise self._refusal
        if self._about is None:
            try:
                self._about = self._receive(START_SECONDS)
            except Declined as refusal:
                self._refusal = refusal
                raise
        assert self._about is not None
        return self._about

    def ask(self, question: str, seconds: float, **arguments: Any) -> Any:
        """Return the answer to a question: the name of a method of `worker.Server` and its arguments.

        Raises:
            Declined: the contender has no answer; it can be asked something else.
            Failed: it died, or took longer than `seconds`; it is gone.
        """
        self.wait()
        with contextlib.suppress(OSError):
            self._pipe.send((question, arguments))
        return self._receive(seconds)

    def _receive(self, seconds: float) -> Any:
        try:
            if not self._pipe.poll(seconds):
                self.end()
                raise Failed(f"ended: no answer within {seconds:,.0f} s (--max-seconds)")
            kind, value = self._pipe.recv()
        except (EOFError, OSError):
            self._process.wait()
            raise Failed(self._how_it_died()) from None
        if kind == "declined":
            raise Declined(value)
        if kind == "failed":
            self.end()
            raise Failed(value)
        return value

    def _how_it_died(self) -> str:
        code = self._process.returncode
        if code == -signal.SIGKILL:
            return "killed (SIGKILL), as the system does when memory runs out"
        self._log.seek(0)
        last = self._log.read().decode(errors="replace").strip().rpartition("\n")[2]
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"{how}: {last}" if last else how

    def end(self) -> None:
        """End the process, at once."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._pipe.close()
        self._log.close()


class Pool:
    """The workers of one model, one per contender; all are ended when the `with` is left.

    Args:
        setups: by contender.
    """

    def __init__(self, setups: dict[str, Setup]) -> None:
        self._setups = setups
        self._workers: dict[str, Worker] = {}

    def __enter__(self) -> Self:
        # who is asked to end must end its workers too
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before)
        for worker in self._workers.values():
            worker.end()

    def start(self, names: Sequence[str]) -> None:
        """Let the processes of these contenders begin, beside each other, unless they are there."""
        for name in names:
            if name not in self._workers:
                self._workers[name] = Worker(self._setups[name])

    def __getitem__(self, name: str) -> Worker:
        """Return the worker of a contender, started if need be."""
        self.start((name,))
        return self._workers[name]

    def drop(self, name: str) -> None:
        """End a worker; it is started anew when asked for again."""
        if worker := self._workers.pop(name, None):
            worker.end()
