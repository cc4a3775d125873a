"""The graph of neurons as people meet it: sentences, tables and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from bdh.lens.panel import Panel, Table
from bdh.lens.svg import Picture, Plot, Scale, picture, text
from bdh.lens.topology.degrees import Tail, ccdf, word
from bdh.lens.topology.ego import Ego, draw_ego
from bdh.lens.topology.graph import Graph
from bdh.lens.topology.study import ORIENTATION, Null, Point, Topology

_SIGN = {1: "positive", -1: "negative"}
# the model is drawn in the first colour, a null in a dash or in grey
_LOOKS = {"G(n, m)": "three", "low rank": "two", "initial": "three", "rewired": "two"}


def half(found: Topology) -> str:
    """Return which half of which graph this is."""
    return f"{found.name}, {_SIGN[found.sign]} half"


def said(found: Topology) -> list[str]:
    """Return what was found in the graph with the most edges, a sentence each on tails and modularity."""
    last = found.last
    lines = []
    for side, at, tail in (("out", 0, last.out_tail), ("in", 1, last.in_tail)):
        others = ", ".join(f"{name} {pair[at]}" for name, pair in found.tails.items() if name != "rewired")
        lines.append(f"{side}-degrees at {last.edges:,} edges: {_tail(tail)}; nulls: {others}")
    above = last.above()
    over, under = ([name for name in above if above[name] is yes] for yes in (True, False))
    lines.append(
        f"modularity at {last.edges:,} edges: {last.modularity:.3f}; above every draw of {', '.join(over) or 'no null'}"
        f"; not above {', '.join(under) or 'none'}"
    )
    return lines


def sweep_table(found: Topology) -> Table:
    """Return a row per number of edges: threshold, modularity, and the mean of each null."""
    names = list(found.last.nulls)
    rows = []
    for point in found.points:
        size, means = len(point.communities), [point.nulls[name].mean for name in names]
        rows.append((point.edges, point.threshold, found.n - point.alone, size, point.modularity, *means))
    return Table(("edges", "threshold", "neurons", "communities", "modularity", *names), tuple(rows))


def spread_table(found: Topology) -> Table:
    """Return a row per number of edges: the standard deviation of the modularity between the draws of each null."""
    names = list(found.last.nulls)
    rows = tuple((point.edges, *(point.nulls[name].sd for name in names)) for point in found.points)
    return Table(("edges", *names), rows)


def tails_table(found: Topology) -> Table:
    """Return a row per number of edges and side: what the tail may be called, and the power law in it."""
    columns = ("edges", "side", "tail", "largest", "of G(n, m)", "of low rank", "exponent", "from", "in tail")
    rows = []
    for point, side, tail in _sides(found):
        others = [getattr(point.nulls[name], f"{side}_largest") for name in ("G(n, m)", "low rank")]
        law = (None, None, None) if tail is None else (tail.alpha, tail.xmin, tail.n)
        rows.append((point.edges, side, word(tail), getattr(point, f"{side}_largest"), *others, *law))
    return Table(columns, tuple(rows))


def fits_table(found: Topology) -> Table:
    """Return a row per number of edges and side: the likelihood ratios that decide what a tail may be called."""
    pairs = {
        "exponential": "law/exp",
        "lognormal": "law/ln",
        "lognormal_exponential": "ln/exp",
        "truncated": "law/cut",
    }
    rows = []
    for point, side, tail in _sides(found):
        ratios: list[float | None] = []
        for name in pairs:
            one = getattr(tail, name, None)
            ratios += [None, None] if one is None else [one.R, one.p]
        rows.append((point.edges, side, *ratios, None if tail is None else tail.plausible))
    measured = (f"{name} {what}" for name in pairs.values() for what in "Rp")
    return Table(("edges", "side", *measured, "worse"), tuple(rows))


def _sides(found: Topology) -> Iterator[tuple[Point, str, Tail | None]]:
    for point in found.points:
        yield point, "out", point.out_tail
        yield point, "in", point.in_tail


def hubs_table(found: Topology) -> Table:
    """Return the neurons with the most edges."""
    rows = tuple((hub.neuron, hub.out, hub.into, hub.community) for hub in found.hubs)
    return Table(("neuron", "out-degree", "in-degree", "community"), rows)


def communities_table(found: Topology) -> Table:
    """Return the sizes of the communities of the graph with the most edges."""
    return Table(("community", "neurons"), tuple(enumerate(found.last.communities)))


def topology_panel(found: Topology, partners: Ego | None = None) -> Panel:
    """Return the panel of one signed half.

    Args:
        found: from `examine`.
        partners: an ego network to show beside.
    """
    tables = {
        "Modularity over the sweep, and means of the nulls": sweep_table(found),
        "Standard deviation between the draws of a null": spread_table(found),
        "Tails of the degrees, out (edges from a neuron) and in (to it)": tails_table(found),
        "Fits of the tails: R > 0, the first is better; p, by chance; worse, share of samples": fits_table(found),
        "Hubs": hubs_table(found),
        "Communities": communities_table(found),
    }
    pictures = [draw_degrees(found), draw_modularity(found)] + ([draw_ego(partners)] if partners is not None else [])
    return Panel(
        key=_key(found),
        title=f"Topology of {half(found)}",
        note=f"{'. '.join(said(found))}. Direction: {ORIENTATION}.",
        baseline=f"modularity at {found.last.edges:,} edges of {_nulls(found.last.nulls)}",
        pictures=tuple(pictures),
        tables=tables,
    )


def training_panel(history: Sequence[tuple[int, Topology]]) -> Panel:
    """Return the panel of one signed half over the checkpoints of a run, at one number of edges.

    Args:
        history: training step and what `examine` found there, in order.
    """
    names = list(history[-1][1].last.nulls)
    columns = ["step", "threshold", "modularity", *names, "out-degrees", "largest out", "in-degrees", "largest in"]
    rows = []
    for step, found in history:
        at = found.last
        nulls = [at.nulls[name].mean for name in names]
        tails = [word(at.out_tail), at.out_largest, word(at.in_tail), at.in_largest]
        rows.append((step, at.threshold, at.modularity, *nulls, *tails))
    last = history[-1][1]
    edges, steps = last.last.edges, [step for step, _ in history]
    top = max(value for _, found in history for value in (found.last.modularity, *_means(found)))
    plot = Plot(Scale(steps[0], max(steps[-1], steps[0] + 1), 56, 416), Scale(0, max(1.08 * top, 0.1), 206, 46))
    plot.axes("modularity", "training step")
    curves = [("model", "one", [found.last.modularity for _, found in history])]
    curves += [(name, _LOOKS[name], [found.last.nulls[name].mean for _, found in history]) for name in names]
    _named_lines(plot, steps, curves)
    label = f"modularity of {half(last)} over training, {edges:,} edges, source to target"
    return Panel(
        key=f"{_key(last)}-training",
        title=f"{half(last)} over training",
        note=f"The {edges:,} strongest edges at each checkpoint. Direction: {ORIENTATION}.",
        baseline=f"random graphs of as many edges at each checkpoint; at the last {_nulls(last.last.nulls)}",
        pictures=(picture(490, 250, label, [plot, text(8, 14, label)]),),
        tables={"Over training": Table(tuple(columns), tuple(rows))},
    )


def draw_degrees(found: Topology) -> Picture:
    """Return the share of neurons with at least so many edges, out and in, beside two nulls."""
    curves = {"model": found.graph, **{name: found.drawn[name] for name in ("low rank", "G(n, m)")}}
    widest = max(int(max(g.out_degree.max(), g.in_degree.max())) for g in curves.values())
    plots: list[Plot | str] = []
    sides = {"out_degree": "out-degree: edges from a neuron", "in_degree": "in-degree: edges to a neuron"}
    for place, (side, words) in enumerate(sides.items()):
        left = 56 + place * 330
        plot = Plot(Scale(1, max(widest, 2), left, left + 250, True), Scale(1 / found.n, 1, 206, 46, True))
        plot.axes("share of neurons with at least", words)
        for name, drawn in curves.items():
            xs, ys = _positive(drawn, side)
            if name == "model":
                plot.points(xs, ys)
            else:
                plot.line(xs, ys, _LOOKS[name])
        tail = found.last.out_tail if side == "out_degree" else found.last.in_tail
        plot.marks.append(text(left + 250, 62, word(tail), anchor="end"))
        plots.append(plot)
    plots.append(_legend({"model": "one", "low rank": "two", "G(n, m)": "three"}, 56, 262))
    label = f"degrees of {half(found)}, {found.last.edges:,} edges, source to target"
    return picture(660, 270, label, [*plots, text(8, 14, label)])


def draw_modularity(found: Topology) -> Picture:
    """Return the modularity over the number of edges, beside all nulls with the range of their draws."""
    edges = [point.edges for point in found.points]
    top = max(value for p in found.points for value in (p.modularity, *(max(n.draws) for n in p.nulls.values())))
    low = edges[0] if len(edges) > 1 else edges[0] / 2
    plot = Plot(Scale(low, max(edges[-1], low + 1), 56, 416, True), Scale(0, max(1.08 * top, 0.1), 206, 46))
    plot.axes("modularity", "edges (the strongest of this sign)")
    curves = [("model", "one", [point.modularity for point in found.points])]
    for name in found.last.nulls:
        curves.append((name, _LOOKS[name], [point.nulls[name].mean for point in found.points]))
        for point in found.points:
            draws = point.nulls[name].draws
            plot.line((point.edges, point.edges), (min(draws), max(draws)), "whisker")
    _named_lines(plot, edges, curves)
    plot.points(edges, curves[0][2])
    label = f"modularity of {half(found)}, source to target, and of its nulls"
    return picture(490, 250, label, [plot, text(8, 14, label)])


def _named_lines(plot: Plot, xs: Sequence[float], curves: Sequence[tuple[str, str, Sequence[float]]]) -> None:
    """Lines with their names at the right end; from the top, each at its line or just below the name before."""
    lowest = -10.0
    for name, css, ys in sorted(curves, key=lambda curve: -curve[2][-1]):
        plot.line(xs, ys, css)
        lowest = max(plot.y(ys[-1]) + 4, lowest + 12)
        plot.marks.append(text(plot.x.stop + 6, lowest, name, css))


def _means(found: Topology) -> list[float]:
    return [null.mean for null in found.last.nulls.values()]


def _key(found: Topology) -> str:
    return "-".join(["topology", *found.name.lower().split(), _SIGN[found.sign]])


def _positive(drawn: Graph, side: str) -> tuple[list[int], list[float]]:
    values, share = ccdf(getattr(drawn, side))
    keep = np.flatnonzero(values > 0)
    return values[keep].tolist(), share[keep].tolist()


def _legend(names: Mapping[str, str], x: float, y: float) -> str:
    parts = []
    for name, css in names.items():
        parts.append(f'<path class="{css}" d="M{x} {y - 4}h18"/>' + text(x + 24, y, name))
        x += 40 + 7 * len(name)
    return "".join(parts)


def _tail(tail: Tail | None) -> str:
    if tail is None:
        return "not heavy-tailed (too few degrees to fit)"
    return f"{tail.verdict} (exponent {tail.alpha:.2f} from {tail.xmin} on, {tail.n} neurons)"


def _nulls(nulls: Mapping[str, Null]) -> str:
    spread = {name: "" if null.sd is None else f" \u00b1 {null.sd:.3f}" for name, null in nulls.items()}
    return ", ".join(f"{name} {null.mean:.3f}{spread[name]}" for name, null in nulls.items())
