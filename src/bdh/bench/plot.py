"""A bar chart of what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bdh.bench.contenders import CONTENDERS
from bdh.bench.results import Column, Learning, Memory, Table
from bdh.bench.terminal import number, times
from bdh.files import check_file, replacing_file

SUFFIXES = (".png", ".svg", ".pdf")
# after Okabe and Ito: told apart by everybody; the first two are for the naive ways
PALETTE = ("#999999", "#bfbfbf", "#56b4e9", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#d55e00")
ROW_INCHES, HEAD_INCHES, WIDTH_INCHES = 0.24, 1.15, 7.5


def check(path: Path) -> None:
    """Raise ValueError unless a chart can be written to `path`; to be asked before anything is measured."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--plot {path}: expected a name that ends with {', '.join(SUFFIXES)}")
    check_file(path, "--plot")
    _figure_class()


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError('--plot needs matplotlib: pip install "bdh[bench]"') from None
    return Figure


def write_plot(tables: Sequence[Table], path: Path, caption: str) -> None:
    """Draw a panel per table, a column per model: a bar per contender, in a group per point.

    Args:
        tables: what was measured.
        path: PNG, SVG or PDF by its suffix; replaced if it exists.
        caption: what it was measured on.

    Raises:
        ValueError: no such suffix, no such directory, or matplotlib is not installed.
    """
    check(path)
    models = list(dict.fromkeys(table.model for table in tables))
    titles = list(dict.fromkeys(table.title for table in tables))
    rows = [max(_n_rows(table) for table in tables if table.title == title) for title in titles]
    heights = [ROW_INCHES * n + HEAD_INCHES for n in rows]
    figure = _figure_class()(figsize=(WIDTH_INCHES * len(models), sum(heights) + 0.3), layout="constrained")
    grid = figure.add_gridspec(len(titles), len(models), height_ratios=heights)
    for table in tables:
        _draw(figure.add_subplot(grid[titles.index(table.title), models.index(table.model)]), table)
    figure.supxlabel(caption, fontsize=8, color="#555555")
    with replacing_file(path) as work:
        figure.savefig(work, format=path.suffix.lower().removeprefix("."), dpi=130)


def _n_rows(table: Table) -> int:
    return sum(len(column.cells) + (len(table.columns) > 1) for column in table.columns)


def _draw(axes: Any, table: Table) -> None:
    """Draw one panel, from the top down."""
    ticks: list[tuple[int, str]] = []
    row = 0
    longest = max((_bar(c, name)[0] for c in table.columns for name in c.cells), default=0.0) or 1.0
    for column in table.columns:
        if len(table.columns) > 1:
            axes.text(0, row, f" {_group(table, column)}", fontsize=8.5, fontweight="bold", va="center")
            row += 1
        for name in column.cells:
            length, label = _bar(column, name)
            axes.barh(row, length, height=0.8, color=PALETTE[list(CONTENDERS).index(name) % len(PALETTE)])
            style = {"color": "#777777", "style": "italic"} if isinstance(column.cells[name], str) else {}
            axes.text(length + 0.01 * longest, row, label, fontsize=8, va="center", **style)
            ticks.append((row, name))
            row += 1
    axes.set_yticks([at for at, _ in ticks], [name for _, name in ticks], fontsize=8.5)
    axes.set_ylim(row - 0.4, -0.6)
    axes.set_xlim(0, 1.35 * longest)
    axes.set_xlabel(f"{_unit(table)}; x: against {table.columns[0].baseline}", fontsize=8.5)
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    point = table.columns[0].point
    shape = point.label if len(table.columns) == 1 else f"B={point.batch_size}"
    axes.set_title(f"{table.model}: {table.title}, {shape}{_activity(table)}", fontsize=10, loc="left")


def _group(table: Table, column: Column) -> str:
    return column.point.label if table.case == "decode" else f"T={column.point.tokens:,}"


def _activity(table: Table) -> str:
    density = table.columns[0].density
    return "" if density is None else f"   (active: x {density['x']:.0%}, xy {density['xy']:.0%})"


def _unit(table: Table) -> str:
    if table.case == "memory":
        return "peak MiB of one training pass, less is better"
    if table.case == "loss":
        return "seconds of training to the validation loss, less is better"
    return "tokens per second, more is better"


def _bar(column: Column, name: str) -> tuple[float, str]:
    """Length of a bar, and what is written at its end."""
    cell = column.cells[name]
    if isinstance(cell, str):
        return 0.0, cell
    ratio = column.ratio(name)
    factor = f"  {times(ratio)}" if ratio is not None and name != column.baseline else ""
    if isinstance(cell, Memory):
        return cell.peak_bytes / 2**20, f"{cell.peak_bytes / 2**20:,.0f} MiB{factor}"
    if isinstance(cell, Learning):
        return (cell.cost, f"{cell.cost:.1f} s{factor}") if cell.cost else (0.0, f"not reached: {cell.best:.3f}")
    speed = column.point.tokens_per_call / cell.cost
    return speed, f"{number(speed)}{factor}  ({number(1e3 * cell.cost)} ms)"
