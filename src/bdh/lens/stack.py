"""Plots of one width under each other, as the panels of this room have them."""

from __future__ import annotations

from collections.abc import Sequence

from bdh.lens.svg import Picture, Plot, Scale, picture, span, text

_LEFT, _WIDE, _TALL, _STEP = 64, 560, 96, 150


def axes(row: int, across: tuple[float, float], values: Sequence[float], name: str, below: str) -> Plot:
    """Return the empty plot of a row of the stack, with room for these values."""
    top = 26 + row * _STEP
    low, high = span(values)
    start, stop = across
    plot = Plot(Scale(start, max(stop, start + 1), _LEFT, _LEFT + _WIDE), Scale(low, high, top + _TALL, top))
    return plot.axes(name, below)


def bars(row: int, values: Sequence[float], name: str, below: Sequence[str], line: float | None = None) -> Plot:
    """Return a plot of bars >= 0 with words under them, and perhaps a dashed line across."""
    top = 26 + row * _STEP
    _, high = span([*values, line or 0.0])
    plot = Plot(Scale(0, len(values), _LEFT, _LEFT + _WIDE), Scale(0, high, top + _TALL, top))
    for value in plot.y.ticks():
        plot.level(value, "grid")
        plot.marks.append(text(_LEFT - 6, plot.y(value) + 4, f"{value:.3g}", anchor="end"))
    plot.bars(range(len(values) + 1), values, gap=24)
    plot.marks += [text(plot.x(at + 0.5), top + _TALL + 15, words, anchor="middle") for at, words in enumerate(below)]
    plot.marks.append(text(_LEFT, top - 9, name, "name"))
    return plot if line is None else plot.level(line)


def stacked(label: str, plots: Sequence[Plot]) -> Picture:
    """Return the plots of a stack as one picture.

    Examples:
        >>> stacked("two", [bars(0, [1.0, 2.0], "a", ["x", "y"]), axes(1, (0, 5), [1.0], "b", "t")]).height
        326
    """
    return picture(_LEFT + _WIDE + 24, 26 + _STEP * len(plots), label, plots)
