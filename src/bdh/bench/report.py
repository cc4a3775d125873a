"""From what was asked for to tables, a chart and a document."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from rich.console import Console

from bdh.bench import measure, terminal
from bdh.bench import plot as chart
from bdh.bench.machine import machine
from bdh.bench.settings import Settings


def check(settings: Settings, plot: Path | None) -> None:
    """Look whether everything is there, before anything is measured.

    Raises:
        ValueError: something asked for is not there, or does not do.
    """
    measure.check(settings)
    if plot is not None:
        chart.check(plot)


def report(
    settings: Settings, text: bytes | None, console: Console, *, command: str, plot: Path | None = None
) -> dict[str, Any]:
    """Measure, print each table when it is complete, and draw.

    Args:
        settings: what to measure.
        text: what the models read; None for random bytes.
        console: where tables go.
        command: what was typed, for the record.
        plot: file of the chart.

    Returns:
        A dict that goes into JSON: command, settings, machine, and every repetition of every table.

    Raises:
        ValueError: see `check`.
    """
    console.width = max(console.width, terminal.WIDTH)
    facts = machine()
    terminal.print_machine(facts, console)
    tables = []
    # closed at once on Ctrl-C, so that no worker outlives it
    with contextlib.closing(measure.run(settings, text, Console(stderr=True))) as measuring:
        for table in measuring:
            terminal.print_table(table, console)
            tables.append(table)
    terminal.print_legend(tables, console)
    if plot is not None:
        versions = f"bdh {facts['packages']['bdh']}, torch {facts['packages']['torch']}"
        caption = f"{facts['processor']}, {facts['threads']} threads; {versions}; {facts['date'][:10]}"
        chart.write_plot(tables, plot, caption)
        console.print(f"chart: {plot.resolve()}", soft_wrap=True)
    asked = {name: str(value) if isinstance(value, Path) else value for name, value in vars(settings).items()}
    return {"command": command, "settings": asked, "machine": facts, "tables": [table.to_dict() for table in tables]}
