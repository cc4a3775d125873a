"""What a person sees while text is prepared: a live line on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from bdh.data.hub import Told


@contextmanager
def showing(console: Console) -> Iterator[Told]:
    """Show on a console what `prepare` tells."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def told(what: str, done: int, total: int | None) -> None:
            doing = what.partition(":")[0]
            if doing not in tasks:  # speed and bar are those of one file
                for before in tasks.values():
                    progress.remove_task(before)
                tasks.clear()
                tasks[doing] = progress.add_task(what, total=total)
            progress.update(tasks[doing], description=what, completed=done)

        yield told


class _Lines:
    def __init__(self, console: Console) -> None:
        self.console, self.last = console, time.monotonic()

    def __call__(self, what: str, done: int, total: int | None) -> None:
        if time.monotonic() - self.last > 5:
            self.last = time.monotonic()
            of = f" of {total:,}" if total else ""
            self.console.print(f"{what}, {done:,}{of} bytes", markup=False, soft_wrap=True)
