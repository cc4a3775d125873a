"""Curves with bands as SVG text; colours come from the style sheet of the page, by number."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLOURS = 8
"""Then they begin again, dashed."""
_WIDE, _TALL = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 40


@dataclass(frozen=True)
class Line:
    """A mean over seeds with its lowest and highest value, at increasing places."""

    name: str
    colour: int
    """Number of the contender."""
    points: Sequence[tuple[float, float, float, float]]
    """x, mean, low, high."""


def chart(lines: Sequence[Line], *, title: str, x_label: str, percent: bool = False, late: bool = False) -> str:
    """Return a figure with one curve and one band per line.

    Args:
        lines: what to draw.
        title: what the curves are, with their unit.
        x_label: what the places are, with their unit.
        percent: whether values are shares.
        late: leave out the values before a quarter of each line, which would flatten the rest.

    Examples:
        >>> "<svg" in chart([Line("a", 0, [(0, 2.0, 1.9, 2.1), (1, 1.0, 1.0, 1.0)])], title="loss", x_label="step")
        True
    """
    drawn = [line for line in lines if line.points]
    if not drawn:
        return f"<figure><figcaption>{escape(title)}<small>nothing to draw yet</small></figcaption></figure>"
    low, high = _range(drawn, percent, late)
    right = max(line.points[-1][0] for line in drawn) or 1.0

    def x(value: float) -> float:
        return _LEFT + (_WIDE - _LEFT - _RIGHT) * value / right

    def y(value: float) -> float:
        return _TALL - _BOTTOM - (_TALL - _BOTTOM - _TOP) * (value - low) / (high - low)

    marks = []
    for tick in ticks(low, high):
        shown = f"{100 * tick:.3g} %" if percent else f"{tick:.4g}"
        marks.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDE - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        marks.append(f'<text x="{_LEFT - 7}" y="{y(tick) + 4:.1f}" text-anchor="end">{shown}</text>')
    under = f'y="{_TALL - _BOTTOM + 17}" text-anchor="middle"'
    marks += [f'<text x="{x(tick):.1f}" {under}>{tick:,.6g}</text>' for tick in ticks(0, right)]
    middle = (_LEFT + _WIDE - _RIGHT) / 2
    marks.append(f'<text x="{middle}" y="{_TALL - 5}" text-anchor="middle">{escape(x_label)}</text>')
    # what the range leaves out must not run over the title
    clip = "clip-" + hashlib.sha256((title + x_label).encode()).hexdigest()[:8]
    inside = f'x="{_LEFT}" y="{_TOP}" width="{_WIDE - _LEFT - _RIGHT}" height="{_TALL - _TOP - _BOTTOM}"'
    marks.append(f'<clipPath id="{clip}"><rect {inside}/></clipPath><g clip-path="url(#{clip})">')
    for line in drawn:
        there = [f"{x(at):.1f},{y(most):.1f}" for at, _, _, most in line.points]
        back = [f"{x(at):.1f},{y(least):.1f}" for at, _, least, _ in reversed(line.points)]
        marks.append(f'<polygon class="band {css(line.colour)}" points="{" ".join(there + back)}"/>')
    for line in drawn:
        path = " ".join(f"{x(at):.1f},{y(mean):.1f}" for at, mean, _, _ in line.points)
        name = f"<title>{escape(line.name)}</title>"
        marks.append(f'<polyline class="curve {css(line.colour)}" points="{path}">{name}</polyline>')
    label = escape(f"{title}: " + "; ".join(f"{line.name} ends at {line.points[-1][1]:.4g}" for line in drawn))
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {_WIDE} {_TALL}" role="img" aria-label="{label}">{"".join(marks)}</g></svg></figure>'
    )


def css(colour: int) -> str:
    """Return the classes of a colour number.

    Examples:
        >>> css(1), css(9)
        ('c1', 'c1 dashed')
    """
    return f"c{colour % COLOURS}" + (" dashed" if colour >= COLOURS else "")


def ticks(low: float, high: float) -> list[float]:
    """Return some four to eight round numbers from low to high.

    Examples:
        >>> ticks(0, 2000)
        [0.0, 500.0, 1000.0, 1500.0, 2000.0]
    """
    rough = (high - low) / 5
    size = 10.0 ** math.floor(math.log10(rough))
    step = size * min((1, 2, 2.5, 5, 10), key=lambda factor: abs(factor * size - rough))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(at * step, 12) for at in range(first, last + 1)]


def _range(lines: Sequence[Line], percent: bool, late: bool) -> tuple[float, float]:
    shown = []
    for line in lines:
        # the first quarter goes, but never all of a line
        start = line.points[-1][0] / 4 if late else 0.0
        shown += [point for point in line.points if point[0] >= start]
    low = 0.0 if percent else min(least for _, _, least, _ in shown)
    high = max(most for _, _, _, most in shown)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return (0.0 if percent else low - room), high + room
