"""How commands tell what they found: panels in the terminal, values as JSON, pictures and tables as files."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from bdh.cli.shared import json_text

if TYPE_CHECKING:
    from bdh.lens.panel import Cell, Panel, Table

WIDTH = 120
"""Least columns of a table: one that is wider than the terminal is rather wrapped there than cut."""

ROWS = 24
"""Rows of a table in the terminal; files and JSON have all."""


def tell(values: dict[str, Any], panels: Sequence[Panel], json: bool, out: Path | None) -> int:
    """Print what was found, or its values as one line of JSON, and write the panels to files where `out` is given."""
    again = shlex.join(["bdh", *sys.argv[1:]])
    if json:
        print(json_text(values))
    else:
        console = Console(highlight=False)
        for panel in panels:
            _print(panel, console)
    files = [file for panel in panels for file in replace(panel, command=again).save(out)] if out else []
    for file in files:
        print(f"written: {file}", file=sys.stderr if json else sys.stdout)
    return 0


def _print(panel: Panel, console: Console) -> None:
    wide = Console(highlight=False, width=max(console.width, WIDTH))
    console.print(Text(panel.title, style="bold"))
    console.print(Text(panel.note))
    console.print(Text(f"Compared with: {panel.baseline}", style="dim"))
    for caption, table in panel.tables.items():
        console.print()
        console.print(Text(caption, style="italic"))
        wide.print(_grid(table))
        if (more := len(table.rows) - ROWS) > 0:
            console.print(Text(f"... and {more:,} more: --out FOLDER or --json has all", style="dim"))
    console.print()


def _grid(table: Table) -> Grid:
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for at, name in enumerate(table.columns):
        numbers = all(not isinstance(row[at], str) for row in table.rows)
        grid.add_column(name, justify="right" if numbers else "left", no_wrap=True)
    for row in table.rows[:ROWS]:
        grid.add_row(*map(_cell, row))
    return grid


def _cell(cell: Cell) -> Text:
    if cell is None:
        return Text("-")
    return Text(f"{cell:.4g}" if isinstance(cell, float) else str(cell))
