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
from bdh.lens.svg import Picture

Cell = str | int | float | bool | None
Badge = Literal["measured", "reported by the paper"]


@dataclass(frozen=True)
class Table:
    """Columns with names, and rows.

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

    def html(self) -> str:
        """Return the table as HTML, numbers with four digits."""
        head = "".join(f'<th scope="col">{escape(name)}</th>' for name in self.columns)
        rows = "".join("<tr>" + "".join(map(_html_cell, row)) + "</tr>" for row in self.rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


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

    def __post_init__(self) -> None:
        assert self.baseline, f"panel {self.key} says nothing to compare with"

    def save(self, folder: str | os.PathLike[str], tables: Sequence[str] = (".csv",)) -> list[Path]:
        """Write pictures (SVG) and tables of the panel to files KEY-1.svg, KEY-1.csv, ... in a folder.

        Args:
            folder: made if it does not exist.
            tables: endings, of .csv and .parquet.

        Returns:
            The files.
        """
        where = Path(folder)
        where.mkdir(parents=True, exist_ok=True)
        drawn = [picture.save(where / f"{self.key}-{n}.svg") for n, picture in enumerate(self.pictures, 1)]
        kept = [
            table.save(where / f"{self.key}-{n}{ending}")
            for n, table in enumerate(self.tables.values(), 1)
            for ending in tables
        ]
        return drawn + kept

    def html(self) -> str:
        """Return the panel as a section of a page that has the rules of `panels.css`."""
        pictures = "".join(
            f'<figure class="scroll" tabindex="0">{picture.inline}</figure>' for picture in self.pictures
        )
        tables = "".join(
            f"<details><summary>{escape(caption)}</summary>{table.html()}</details>"
            for caption, table in self.tables.items()
        )
        again = "".join(f"<pre><code>{escape(code)}</code></pre>" for code in (self.python, self.command) if code)
        return (
            f'<section id="{self.key}"><h2>{escape(self.title)} <small class="badge">{self.badge}</small></h2>'
            f'<p class="note">{escape(self.note)}</p><p class="baseline">Compared with: {escape(self.baseline)}</p>'
            f"{pictures}{tables}{again}</section>"
        )

    def _repr_html_(self) -> str:
        return self.html()


def _html_cell(cell: Cell) -> str:
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        return f"<td>{'–' if cell is None else escape(str(cell))}</td>"
    shown = f"{cell:,}" if isinstance(cell, int) else f"{cell:.4g}"
    return f'<td class="num">{shown}</td>'


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
