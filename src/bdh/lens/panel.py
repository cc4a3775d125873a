"""A finding as people meet it: words, pictures, a table, what it is compared with, and how to get it again.

Every analysis of this room returns plain values and has a function that makes a `Panel` of them; a report, a notebook
and a file are three ways of showing the same panel.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Literal

from bdh.files import replacing_file
from bdh.lens.page import notebook, text
from bdh.lens.svg import Picture

Cell = str | int | float | bool | None
Badge = Literal["measured", "reported by the paper"]
SHOWN_ROWS = 500
"""Rows of a table on a page; a file has them all."""
_LINKED = ("neuron", "level", "byte")
_NUM = ' class="num"'


@dataclass(frozen=True)
class Table:
    """Columns with names, and rows.

    A page links a column `neuron` (global ids) to its other panels, with the columns `level` and `byte` (a position in
    the text) where there are such.

    Examples:
        >>> table = Table(("neuron", "rate"), ((12, 0.25), (47, 0.5)))
        >>> table.column("rate")
        (0.25, 0.5)
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), "a row with more or fewer cells than columns"

    def column(self, name: str) -> tuple[Cell, ...]:
        """Return the cells of a column."""
        at = self.columns.index(name)
        return tuple(row[at] for row in self.rows)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the table to a .csv or .parquet file, all of it or nothing.

        Raises:
            ValueError: another kind of file, a folder that does not exist, or .parquet without pyarrow.
        """
        target = Path(path)
        if target.suffix not in (".csv", ".parquet"):
            raise ValueError(f"path {str(target)!r}: expected a name that ends in .csv or .parquet")
        write = _write_csv if target.suffix == ".csv" else _write_parquet
        with replacing_file(target) as work:
            write(self, work)
        return target

    def html(self, limit: int = SHOWN_ROWS) -> str:
        """Return the first rows as HTML, numbers with four digits, and say how many there are."""
        numbers = [all(isinstance(row[n], int | float | None) for row in self.rows) for n in range(len(self.columns))]
        head = "".join(
            f'<th scope="col"{_NUM if number else ""}>{escape(name)}</th>'
            for name, number in zip(self.columns, numbers, strict=True)
        )
        body = "".join(map(self._row, self.rows[:limit]))
        left = len(self.rows) - limit
        more = f'<p class="note">{left:,} more rows of {len(self.rows):,} are in the files.</p>' if left > 0 else ""
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"

    def _row(self, row: tuple[Cell, ...]) -> str:
        link = {name: cell for name, cell in zip(self.columns, row, strict=True) if name in _LINKED}
        cells = [
            _chip(link) if name == "neuron" and type(cell) is int else _html_cell(cell)
            for name, cell in zip(self.columns, row, strict=True)
        ]
        return f"<tr>{''.join(cells)}</tr>"


@dataclass(frozen=True)
class Panel:
    """One finding."""

    key: str
    """Short name in lower case, for links and file names: topology, logit-lens."""
    title: str
    note: str
    """What is shown and how to read it, in one or two sentences."""
    baseline: str
    """What it is compared with, and that one's figure; never empty."""
    pictures: tuple[Picture, ...] = ()
    tables: dict[str, Table] = field(default_factory=dict)
    """By caption."""
    badge: Badge = "measured"
    python: str = ""
    """Lines of Python that compute it again."""
    command: str = ""
    """The command line that does."""
    view: str = ""
    """HTML, escaped already, that a page shows in place of the pictures."""

    def __post_init__(self) -> None:
        assert self.baseline, f"panel {self.key} says nothing to compare with"

    def save(
        self,
        folder: str | os.PathLike[str],
        pictures: Sequence[str] = (".svg", ".png"),
        tables: Sequence[str] = (".csv", ".parquet"),
    ) -> list[Path]:
        """Write pictures and tables of the panel to files KEY-1.svg, KEY-1.csv, ... in a folder.

        Args:
            folder: made if it does not exist.
            pictures: endings, of .svg and .png (which needs matplotlib).
            tables: endings, of .csv and .parquet (which needs pyarrow).

        Returns:
            The files.

        Raises:
            ValueError: another ending, or the package for it is missing.
        """
        where = Path(folder)
        where.mkdir(parents=True, exist_ok=True)
        kinds: list[tuple[Sequence[str], Sequence[Picture | Table]]] = [
            (pictures, self.pictures),
            (tables, list(self.tables.values())),
        ]
        return [
            one.save(where / f"{self.key}-{n}{ending}")
            for endings, things in kinds
            for n, one in enumerate(things, 1)
            for ending in endings
        ]

    def html(self) -> str:
        """Return the panel as a section of a page (`write_page`)."""
        drawn = "".join(f'<figure tabindex="0">{picture.inline}</figure>' for picture in self.pictures)
        pictures = f'<div class="pictures">{drawn}</div>' if drawn else ""
        tables = "".join(
            f"<details{self._open(n)}><summary>{escape(caption)}</summary>"
            f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">{table.html()}</div>'
            "</details>"
            for n, (caption, table) in enumerate(self.tables.items())
        )
        again = "".join(
            f'<pre><code data-copy="{kind}">{escape(code)}</code></pre>'
            for kind, code in (("Python", self.python), ("command", self.command))
            if code
        )
        again = f'<details class="again"><summary>How to get it again</summary>{again}</details>' if again else ""
        badge = f'<span class="badge" title="where the figures come from">{self.badge}</span>'
        return (
            f'<section id="{self.key}"><div class="head"><h2>{escape(self.title)}</h2>{badge}<div class="tools"></div>'
            f'</div><p class="note" id="{self.key}-note">{text(self.note)}</p>'
            f'<p class="baseline"><b>Compared with</b> {text(self.baseline)}</p>{self.view or pictures}{tables}{again}'
            "</section>"
        )

    def _open(self, n: int) -> str:
        """The first table is all there is to see where nothing is drawn."""
        return "" if n or self.view or self.pictures else " open"

    def _repr_html_(self) -> str:
        return notebook(self)


def _chip(link: dict[str, Cell]) -> str:
    """A neuron as a button that the page links to its other places."""
    data = "".join(f' data-{name}="{cell}"' for name, cell in link.items() if type(cell) is int)
    return f'<td class="num"><button class="chip"{data}>{link["neuron"]}</button></td>'


def _html_cell(cell: Cell) -> str:
    if cell is None or isinstance(cell, str | bool):
        return f"<td>{'–' if cell is None else text(str(cell))}</td>"
    shown = f"{cell:,}" if isinstance(cell, int) else f"{cell:.4g}"
    return f"<td{_NUM}>{shown}</td>"


def _write_csv(table: Table, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(table.columns)
        writer.writerows(table.rows)


def _write_parquet(table: Table, path: Path) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f'{path.name}: parquet files need pyarrow: pip install "bdh[lens]"') from None
    columns: dict[str, Any] = {name: list(table.column(name)) for name in table.columns}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
