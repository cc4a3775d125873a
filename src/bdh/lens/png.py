"""A picture as PNG: matplotlib draws the same few SVG elements, with the rules of `panels.css`.

The SVG is the picture; reading it back keeps one description for page, notebook and file, whoever wrote it.
"""

from __future__ import annotations

import re
import warnings
import xml.etree.ElementTree as ET
from importlib.resources import files
from pathlib import Path
from typing import Any

from bdh.lens.svg import COLOURS, Picture

Style = dict[str, str]
_PER_PX = 0.72
"""Points of a pixel, at a hundred pixels to the inch."""


def write_png(picture: Picture, path: Path) -> None:
    """Draw a picture at two dots per pixel, in the colours of light paper.

    Raises:
        ValueError: matplotlib is missing, or the picture has an element other than path, line, rect, circle, text, g.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError(f'{path.name}: PNG files need matplotlib: pip install "bdh[lens]"') from None
    rules, colours = _rules(), dict(re.findall(r"--(\w+):([^;}]+)", COLOURS))
    figure = Figure(figsize=(picture.width / 100, picture.height / 100), dpi=200, facecolor=colours["card"])
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, picture.width), ylim=(picture.height, 0))
    axes.axis("off")
    root = ET.fromstring(f"<svg>{picture.body}</svg>")
    _draw(axes, root, _style(root, rules, {}), rules, colours)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # a box stands for it, as in a browser
        figure.savefig(path, format="png", facecolor=colours["card"])


def _rules() -> list[tuple[str, str, Style]]:
    """(tag, class, declarations) of each selector of `panels.css`, weakest first."""
    css = files("bdh.lens").joinpath("panels.css").read_text(encoding="utf-8")
    found = []
    for selectors, block in re.findall(r"([^{}]+)\{([^{}]*)\}", css):
        declared = {
            name.strip(): value.strip() for name, _, value in (line.partition(":") for line in block.split(";"))
        }
        for selector in selectors.split(","):
            tag, _, kind = selector.strip().removeprefix(".panel").strip().partition(".")
            found.append((tag, kind, declared))
    return sorted(found, key=lambda rule: (bool(rule[1]), bool(rule[0])))


def _style(element: ET.Element, rules: list[tuple[str, str, Style]], inherited: Style) -> Style:
    """What holds for an element: inherited, its attributes, then the rules."""
    kinds = element.get("class", "").split()
    style = {name: value for name, value in inherited.items() if name not in ("opacity", "class")}
    style |= {name: value for name, value in element.attrib.items() if name not in ("x", "y", "d")}
    for tag, kind, declared in rules:
        if tag in ("", element.tag) and (kind in kinds if kind else bool(tag) or element.tag == "svg"):
            style |= declared
    return style


def _draw(axes: Any, parent: ET.Element, inherited: Style, rules: list[tuple[str, str, Style]], colours: Style) -> None:
    from matplotlib.patches import Circle, PathPatch, Rectangle
    from matplotlib.path import Path as Outline

    for element in parent:
        style = _style(element, rules, inherited)
        if element.tag == "g":
            _draw(axes, element, style, rules, colours)
            continue
        at = {key: float(element.get(key, 0)) for key in ("x", "y", "width", "height", "x1", "x2", "y1", "y2")}
        if element.tag == "text":
            _write(axes, element, style, colours)
        elif element.tag == "rect":
            axes.add_patch(Rectangle((at["x"], at["y"]), at["width"], at["height"], **_look(style, colours)))
        elif element.tag == "circle":
            centre, radius = (float(element.get("cx", 0)), float(element.get("cy", 0))), float(element.get("r", 0))
            axes.add_patch(Circle(centre, radius, **_look(style, colours)))
        elif element.tag in ("line", "path"):
            d = element.get("d", "") if element.tag == "path" else f"M{at['x1']} {at['y1']}L{at['x2']} {at['y2']}"
            vertices, codes = _outline(d)
            axes.add_patch(PathPatch(Outline(vertices, codes), **_look(style, colours)))
        elif element.tag != "title":
            raise ValueError(f"<{element.tag}> of a picture cannot be drawn as PNG: save it as .svg")


def _write(axes: Any, element: ET.Element, style: Style, colours: Style) -> None:
    size = re.search(r"([\d.]+)px", style.get("font-size", style.get("font", "")))
    axes.text(
        float(element.get("x", 0)),
        float(element.get("y", 0)),
        "".join(element.itertext()),
        size=float(size[1] if size else 11.5) * _PER_PX,
        weight="bold" if re.search(r"\b[6-9]00\b", style.get("font-weight", style.get("font", ""))) else "normal",
        family="monospace" if "mono" in style.get("font", "") else "sans-serif",
        color=_colour(style.get("fill", "black"), colours),
        alpha=float(style.get("opacity", 1)),
        ha={"start": "left", "middle": "center", "end": "right"}[style.get("text-anchor", "start")],
        va="baseline",
        parse_math=False,  # a dollar of the text is a dollar
    )


def _look(style: Style, colours: Style) -> dict[str, Any]:
    fill, stroke = style.get("fill", "black"), style.get("stroke", "none")
    dashes = [float(n) * _PER_PX for n in re.findall(r"[\d.]+", style.get("stroke-dasharray", ""))]
    opacity = float(style.get("opacity", 1))
    return {
        "facecolor": _colour(fill, colours, opacity * float(style.get("fill-opacity", 1))),
        "edgecolor": _colour(stroke, colours, opacity * float(style.get("stroke-opacity", 1))),
        "linewidth": 0 if stroke == "none" else float(style.get("stroke-width", 1)) * _PER_PX,
        "linestyle": (0, dashes) if dashes else "-",
        "capstyle": "butt",
        "joinstyle": style.get("stroke-linejoin", "miter"),
    }


def _colour(value: str, colours: Style, opacity: float = 1) -> Any:
    from matplotlib.colors import to_rgba

    if value.startswith("var("):
        value = colours[value[6:-1].strip()]
    channels = [int(n) / 255 for n in re.findall(r"\d+", value)][:3] if value.startswith("rgb") else None
    return to_rgba("none") if value == "none" else to_rgba(channels or value, opacity)


def _outline(d: str) -> tuple[list[tuple[float, float]], list[int]]:
    """Vertices and codes of a path of M, L, H, V, Z and their relative forms."""
    vertices: list[tuple[float, float]] = []
    codes: list[int] = []
    x = y = 0.0
    for letter, rest in re.findall(r"([A-DF-Za-df-z])([^A-DF-Za-df-z]*)", d):  # e is of a number
        if letter not in "MLHVZmlhvz":
            raise ValueError(f"{letter!r} of a path cannot be drawn as PNG: save the picture as .svg")
        numbers = [float(n) for n in re.findall(r"-?[\d.]+(?:[eE][+-]?\d+)?", rest)]
        step = 1 if letter in "HVhv" else 2
        if letter in "Zz":
            vertices.append((x, y))
            codes.append(79)
        for n in range(0, len(numbers), step):
            before = (x, y) if letter.islower() else (0.0, 0.0)
            if letter in "Hh":
                x = before[0] + numbers[n]
            elif letter in "Vv":
                y = before[1] + numbers[n]
            else:
                x, y = before[0] + numbers[n], before[1] + numbers[n + 1]
            vertices.append((x, y))
            codes.append(1 if letter in "Mm" and n == 0 else 2)
    return vertices or [(0.0, 0.0)], codes or [1]
