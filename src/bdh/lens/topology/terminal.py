"""Findings about a graph in a terminal or a plain log, and how far a long search is."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as Grid
from rich.text import Text

from bdh.lens.panel import Cell, Panel, Table
from bdh.lens.topology.study import Told

_MOST_COLUMNS, _MOST_ROWS = 9, 12


@contextmanager
def showing(console: Console, title: str) -> Iterator[Told]:
    """Show on a console what `examine` tells: a bar on a terminal, a line now and then elsewhere."""
    if not console.is_terminal:
        last = time.monotonic()

        def line(what: str, done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last > 10:
                last = time.monotonic()
                console.print(f"{title}: {what} ({done} of {total})", markup=False, soft_wrap=True)

        yield line
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title)

        def bar(what: str, done: int, total: int) -> None:
            progress.update(task, description=f"{title}: {what}", completed=done, total=total)

        yield bar


def print_panels(panels: Sequence[Panel], console: Console) -> None:
    """Print panels: words, what they are compared with, and the tables as far as they fit."""
    for panel in panels:
        console.print(Text(f"\n{panel.title}", style="bold"))
        console.print(Text(panel.note))
        console.print(Text(f"Compared with: {panel.baseline}", style="dim"))
        for caption, table in panel.tables.items():
            console.print(_grid(caption, table))


def _grid(caption: str, table: Table) -> Grid:
    grid = Grid(title=Text(f"\n{caption}"), title_justify="left", box=None, pad_edge=False)
    for at, name in enumerate(table.columns[:_MOST_COLUMNS]):
        words = any(isinstance(row[at], str) for row in table.rows)
        grid.add_column(name, justify="left" if words else "right", overflow="fold", no_wrap=words)
    for row in table.rows[:_MOST_ROWS]:
        grid.add_row(*(Text(_shown(cell)) for cell in row[:_MOST_COLUMNS]))
    left_out = (len(table.rows) - _MOST_ROWS, "rows"), (len(table.columns) - _MOST_COLUMNS, "columns")
    if more := " and ".join(f"{count} {what}" for count, what in left_out if count > 0):
        grid.caption = f"{more} more in the file"
    return grid


def _shown(cell: Cell) -> str:
    if cell is None:
        return "-"
    return f"{round(cell, 3):.4g}" if isinstance(cell, float) else f"{cell:,}" if isinstance(cell, int) else str(cell)
