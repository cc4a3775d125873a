"""Pictures as text: axes, lines, bars and points in SVG, for a page, a notebook or a file; no plotting package."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path

from bdh.files import replacing_file

# a picture that stands alone brings its colours, and its paper: it may lie on a dark page
COLOURS = (
    ".panel{--paper:#fbfaf7;--card:#fff;--ink:#1d1f24;--soft:#5d6069;--line:#e4e1d9;--bar:#2b7aa8;--init:#a8431a;"
    '--mono:ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;--sans:system-ui,"Segoe UI",Roboto,'
    '"Helvetica Neue","DejaVu Sans",sans-serif}'
)


@dataclass(frozen=True)
class Picture:
    """An SVG picture: a notebook shows it, `str` is its source, `save` writes it to a file.

    Examples:
        >>> picture = Picture(20, 10, "a line", '<path class="one" d="M0 0h20"/>')
        >>> str(picture)[:58]
        '<svg xmlns="http://www.w3.org/2000/svg" class="panel" widt'
        >>> picture.inline[:18]
        '<svg class="panel"'
    """

    width: int
    height: int
    label: str
    """What it shows, for those who do not see it."""
    body: str

    @property
    def inline(self) -> str:
        """The picture for a page that has the rules of `panels.css` and its colours."""
        return self._whole("", "")

    def __str__(self) -> str:
        rules = files("bdh.lens").joinpath("panels.css").read_text(encoding="utf-8")
        paper = f'<rect width="{self.width}" height="{self.height}" style="fill:var(--card)"/>'
        return self._whole(' xmlns="http://www.w3.org/2000/svg"', f"<style>{COLOURS}{rules}</style>{paper}")

    def _repr_svg_(self) -> str:
        return str(self)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the picture to an .svg or .png file, all of it or nothing.

        Raises:
            ValueError: another kind of file, a folder that does not exist, or .png without matplotlib.
        """
        target = Path(path)
        if target.suffix not in (".svg", ".png"):
            raise ValueError(f"path {str(target)!r}: expected a name that ends in .svg or .png")
        with replacing_file(target) as work:
            if target.suffix == ".svg":
                work.write_text(str(self), encoding="utf-8")
            else:
                from bdh.lens.png import write_png  # it reads what this file writes

                write_png(self, work)
        return target

    def _whole(self, space: str, before: str) -> str:
        return (
            f'<svg{space} class="panel" width="{self.width}" height="{self.height}" '
            f'viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(self.label)}">'
            f"{before}{self.body}</svg>"
        )


@dataclass(frozen=True)
class Scale:
    """From values to places of a picture, linear or logarithmic."""

    low: float
    high: float
    start: float
    """Place of `low`."""
    stop: float
    """Place of `high`."""
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the place, inside the picture whatever the value.

        Examples:
            >>> Scale(1, 100, 0, 50, log=True)(10), Scale(0, 1, 100, 0)(0.25), Scale(0, 1, 0, 9)(2)
            (25.0, 75.0, 9.0)
        """
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        at = (math.log(max(value, self.low)) if self.log else value) - low
        return self.start + (self.stop - self.start) * min(1.0, max(0.0, at / (high - low)))

    def ticks(self) -> list[float]:
        """Return three to seven round values.

        Examples:
            >>> Scale(0, 1, 0, 0).ticks(), Scale(1, 200, 0, 0, log=True).ticks()
            ([0.0, 0.5, 1.0], [1, 10, 100])
        """
        if self.log:
            tens = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
            found = [10**p if p >= 0 else 10.0**p for p in tens]
            # less than two powers of ten lie in a short range: then its ends and its middle
            return found if len(found) > 1 else [self.low, (self.low * self.high) ** 0.5, self.high]
        step = 10 ** math.floor(math.log10((self.high - self.low) / 2))
        step *= next(n for n in (5, 2, 1) if (self.high - self.low) / (step * n) >= 2)
        first = math.ceil(self.low / step - 1e-9)
        return [round(n * step, 12) + 0.0 for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


class Plot:
    """One pair of axes: marks in values, collected as SVG."""

    def __init__(self, x: Scale, y: Scale) -> None:
        self.x, self.y = x, y
        self.marks: list[str] = []

    def axes(self, name: str = "", across: str = "") -> Plot:
        """Add grid lines with their values, a name above and what is across below."""
        left, right, bottom = self.x.start, self.x.stop, self.y.start
        for value in self.y.ticks():
            at = self.y(value)
            self.marks.append(f'<line class="grid" x1="{_n(left)}" x2="{_n(right)}" y1="{_n(at)}" y2="{_n(at)}"/>')
            self.marks.append(text(left - 6, at + 4, f"{value:.3g}", anchor="end"))
        for value in self.x.ticks():
            self.marks.append(text(self.x(value), bottom + 15, f"{value:.4g}", anchor="middle"))
        if name:
            self.marks.append(text(left, self.y.stop - 9, name, "name"))
        if across:
            self.marks.append(text((left + right) / 2, bottom + 31, across, anchor="middle"))
        return self

    def line(self, xs: Sequence[float], ys: Sequence[float], css: str = "one") -> Plot:
        """Add a line through points."""
        places = [f"{_n(self.x(x))} {_n(self.y(y))}" for x, y in zip(xs, ys, strict=True)]
        self.marks.append(f'<path class="{css}" d="M{"L".join(places)}"/>')
        return self

    def level(self, value: float, css: str = "two") -> Plot:
        """Add a line across at one value."""
        return self.line((self.x.low, self.x.high), (value, value), css)

    def points(self, xs: Sequence[float], ys: Sequence[float], css: str = "dot", radius: float = 2.2) -> Plot:
        """Add points."""
        self.marks += [
            f'<circle class="{css}" cx="{_n(self.x(x))}" cy="{_n(self.y(y))}" r="{radius}"/>'
            for x, y in zip(xs, ys, strict=True)
        ]
        return self

    def bars(self, edges: Sequence[float], heights: Sequence[float], gap: float = 1) -> Plot:
        """Add bars from the lowest value, one more edge than bars."""
        zero = self.y.start
        for low, high, height in zip(edges, edges[1:], heights, strict=False):
            x, top = self.x(low), self.y(height)
            if top < zero:
                wide = self.x(high) - x - gap
                box = f'x="{_n(x + gap / 2)}" y="{_n(top)}" width="{_n(wide)}" height="{_n(zero - top)}"'
                self.marks.append(f'<rect class="fill" {box}/>')
        return self


def text(x: float, y: float, words: str, css: str = "", anchor: str = "start") -> str:
    """Return words at a place, escaped."""
    kind = f' class="{css}"' if css else ""
    return f'<text{kind} x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}">{escape(words)}</text>'


def picture(width: int, height: int, label: str, plots: Iterable[Plot | str]) -> Picture:
    """Return plots, and other marks, as one picture."""
    body = "".join(part if isinstance(part, str) else "".join(part.marks) for part in plots)
    return Picture(width, height, label, body)


def span(values: Iterable[float], zero: bool = True) -> tuple[float, float]:
    """Return lowest and highest value with some room, never the same.

    Examples:
        >>> span([1.0, 2.0]), span([3.0, 3.0], zero=False)
        ((0.0, 2.1), (2.85, 3.15))
    """
    found = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(found), max(found)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    room = 0.05 * (high - low or abs(high) or 1.0)
    return (low if zero and low == 0 else low - room), (high if zero and high == 0 and low < 0 else high + room)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
