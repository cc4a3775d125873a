"""Tables of what was measured, for a terminal or a plain log."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from bdh.bench.contenders import CONTENDERS
from bdh.bench.results import Column, Density, Learning, Memory, Table, Timing

MIB = 2**20
WIDTH = 100
"""Columns that the tables need; on a narrower console lines are broken, not cut."""

_SPEED = "speed (x): against {}"
_KEYS = {
    "memory": "peak: of the process; less (x): against {}; before: the pass, with libraries and weights; "
    "kept: between forward and backward pass, beyond that",
    "loss": "speed (x): against {}; seconds of training, validation not counted",
}


def print_machine(machine: dict[str, Any], console: Console) -> None:
    """Print what was measured on."""
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    memory = machine["memory_bytes"]
    size = f", {memory / 2**30:.0f} GiB" if memory else ""
    _dim(
        console,
        f"{machine['processor']}, {machine['cores']} cores{size}; {machine['threads']} threads",
        f"{machine['training on CPU']}; float32",
        f"{packages}; {machine['date']}",
    )


def print_legend(tables: Iterable[Table], console: Console) -> None:
    """Print what the names of the contenders stand for."""
    shown = {name for table in tables for column in table.columns for name in column.cells}
    console.print(Text("\nContenders, each in a process of its own", style="bold"))
    grid = Grid.grid(padding=(0, 2))
    for name, contender in CONTENDERS.items():
        if name in shown:
            grid.add_row(name, contender.note)
    console.print(grid, style="dim", highlight=False)


def print_table(table: Table, console: Console) -> None:
    """Print one case: figures per contender, the ratio to the baseline, and why others have none."""
    console.print(Text(f"\n{table.model}, {table.title}{_shape(table)}", style="bold"))
    first = table.columns[0]
    if first.density and len(table.columns) == 1:
        _dim(console, f"active neurons, x and xy: {_active(first.density)}")
    grid = _rows(first) if len(table.columns) == 1 else _matrix(table)
    console.print(grid, highlight=False)
    _dim(console, *_notes(table))


def _dim(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(Text(line, style="dim"), soft_wrap=True)


def _shape(table: Table) -> str:
    point = table.columns[0].point
    if len(table.columns) == 1:
        return f", {point.label}"
    return f", B={point.batch_size}; {'ms of one call' if table.case == 'decode' else 'µs per token'}"


def _active(density: Density | None) -> str:
    return "" if density is None else f"{100 * density['x']:.1f}, {100 * density['xy']:.1f} %"


def _rows(column: Column) -> Grid:
    """One point: a row per contender, its figures side by side."""
    rows = {name: _figures(column, name, cell) for name, cell in column.cells.items() if not isinstance(cell, str)}
    grid = _grid()
    for head in next(iter(rows.values()), {}):
        grid.add_column(head, justify="right", no_wrap=True)
    for name, figures in rows.items():
        grid.add_row(name, *figures.values())
    return grid


def _grid() -> Grid:
    grid = Grid(box=None, pad_edge=False)
    grid.add_column("contender", no_wrap=True)
    return grid


def _figures(column: Column, name: str, cell: Timing | Memory | Learning) -> dict[str, str]:
    """What a row shows, by the head of the column."""
    ratio = times(column.ratio(name))
    if isinstance(cell, Timing):
        return {
            "median ms": number(1e3 * cell.cost),
            "least .. most": f"{number(1e3 * min(cell.seconds))} .. {number(1e3 * max(cell.seconds))}",
            "tokens/s": f"{column.point.tokens_per_call / cell.cost:,.0f}",
            "speed": ratio,
            "peak MiB": _mib(cell.peak_bytes),
        }
    if isinstance(cell, Memory):
        per_token = cell.kept_per_token(column.point)
        return {
            "peak MiB": _mib(cell.peak_bytes),
            "less": ratio,
            "before": _mib(cell.before_bytes),
            "kept": _mib(cell.kept_bytes),
            "KiB/token": "?" if per_token is None else number(per_token / 1024),
            "ms": number(1e3 * cell.seconds),
        }
    return {
        f"s to {cell.target_loss:g}": "not reached" if cell.cost is None else f"{cell.cost:.1f}",
        "speed": ratio,
        "lowest loss": f"{cell.best:.3f}",
        "ended, s": f"{cell.curve[-1][0]:.1f}",
        "steps": f"{cell.steps:,}",
        "x, xy active": f"{cell.density['x']:.0%}, {cell.density['xy']:.1%}",
    }


def _matrix(table: Table) -> Grid:
    """Several points: a row per contender, a column per point."""
    grid = _grid()
    for column in table.columns:
        head = column.point.label if table.case == "decode" else f"T={column.point.tokens:,}"
        grid.add_column(head, justify="right", no_wrap=True)
    grid.add_column("peak MiB", justify="right")
    grid.add_row("active: x, xy", *(_active(column.density) for column in table.columns), style="dim")
    for name in table.columns[0].cells:
        cells = [column.cells[name] for column in table.columns]
        peaks = [cell.peak_bytes for cell in cells if isinstance(cell, Timing)]
        if peaks:
            grid.add_row(name, *(_entry(table, column, name) for column in table.columns), _mib(max(peaks)))
    return grid


def _entry(table: Table, column: Column, name: str) -> str:
    cell = column.cells[name]
    if not isinstance(cell, Timing):
        return "-      "
    value = 1e3 * cell.cost if table.case == "decode" else 1e6 * cell.cost / column.point.tokens_per_call
    return f"{number(value)} {times(column.ratio(name)):>6}"


def _notes(table: Table) -> list[str]:
    """Why there are figures missing, and the shapes of peers."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for column in table.columns:
        for name, cell in column.cells.items():
            if isinstance(cell, str):
                reasons.setdefault((name, cell), []).append(column.point.label)
    notes = []
    for (name, reason), labels in reasons.items():
        where = "" if len(labels) == len(table.columns) else f" ({', '.join(labels)})"
        notes.append(f"{name}: {reason}{where}")
    shapes = {name: about for name, about in table.about.items() if about["about"]}
    notes += [f"{name}: {about['parameters']:,} parameters, {about['about']}" for name, about in shapes.items()]
    return [_KEYS.get(table.case, _SPEED).format(table.columns[0].baseline), *notes]


def number(value: float) -> str:
    """Three digits, no more.

    Examples:
        >>> number(0.2134), number(12.44), number(1674.4)
        ('0.213', '12.4', '1,674')
    """
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def times(ratio: float | None) -> str:
    """A ratio as a factor, nothing where there is none.

    Examples:
        >>> times(2.264), times(78.7), times(None)
        ('2.26x', '78.7x', '')
    """
    return "" if ratio is None else (f"{ratio:.2f}" if ratio < 10 else number(ratio)) + "x"


def _mib(size: int | None) -> str:
    return "?" if size is None else f"{size / MIB:,.0f}"
