"""Pictures of the mechanisms: spikes, membranes, learned windows, signs, wiring, rates and gains."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from bdh.lens.activity import STEPS, Activity
from bdh.lens.mechanisms import Degrees, Gains, Mechanisms, Rates, Signs, Window
from bdh.lens.membranes import MembraneTrace
from bdh.lens.raster import SHOWN_NEURONS, SHOWN_TOKENS, Choice, SpikeRaster, spike_raster
from bdh.lens.svg import Picture, Plot, Scale, picture, span, text
from bdh.lens.wording import sentences

_LEFT, _RIGHT, _WIDE = 56, 14, 1040
_HEADS = 16
"""Heads with a picture of their own; the numbers of all are in the JSON."""


_BANDS, _SHADES = 96, 6
"""Rows of a level, and shades, of a picture of all neurons: a file that stays small."""


@dataclass(frozen=True)
class Figure:
    """A picture with its words."""

    title: str
    note: str
    picture: Picture
    wide: bool = True


def spike_raster_plot(
    spikes: Tensor | Sequence[Tensor],
    path: str | os.PathLike[str] | None = None,
    *,
    neurons: int | Sequence[int] = SHOWN_NEURONS,
    tokens: int = SHOWN_TOKENS,
    choice: Choice = "active",
    text: str | bytes | None = None,
    sequence: int = 0,
) -> Picture:
    """Draw which neurons spike at which token, a panel per level, with the share of all neurons that spike below.

    Args:
        spikes: what `BDH.get_spikes` returns, or one level of it: (B, T, N) each, sparse or dense. What is > 0 counts
            as a spike, so that `BDH.get_sparse_activations` can be drawn too.
        path: an .svg file to write.
        neurons: how many rows per level, or which neurons by global id. The picture says how many of how many.
        tokens: how many tokens at most, from the start.
        choice: "active", rows of the neurons that spike most often at these tokens, or "even", of evenly spaced ids.
        text: the text that was read, one byte per token: its characters stand below.
        sequence: which of the B texts.

    Returns:
        The picture; a notebook shows it.

    Raises:
        ValueError: no level, another shape, an id or a count out of range, a text of another length, or a file that
            does not end in .svg.

    Examples:
        >>> from bdh import BDH, BDHConfig
        >>> config = BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4, variant="hatching")
        >>> spikes = BDH(config).get_spikes("The dragon")
        >>> spike_raster_plot(spikes, text="The dragon").label
        'spikes: 40 most active of 64 neurons per level, 10 tokens'
    """
    chosen = spike_raster(spikes, neurons=neurons, tokens=tokens, choice=choice, text=text, sequence=sequence)
    drawn = draw_raster(chosen)
    if path is not None:
        drawn.save(path)
    return drawn


def draw_raster(raster: SpikeRaster) -> Picture:
    """Return the picture of a raster."""
    rows, T = len(raster.levels[0].neurons), len(raster.levels[0].rate)
    cell = min(22.0, max(4.0, (_WIDE - _LEFT - _RIGHT) / T))
    row = 3.2 if rows > 24 else 6.4
    tall, strip = rows * row, 26.0
    right = _LEFT + T * cell
    most = max((max(level.rate) for level in raster.levels), default=0.0) or 1.0
    parts: list[Plot | str] = [text(0, 14, raster.summary, "name")]
    top = 44.0
    for number, level in enumerate(raster.levels):
        across, down = Scale(0, T, _LEFT, right), Scale(0, rows, top, top + tall)
        parts.append(text(_LEFT, top - 7, f"level {number}: {sum(level.rate) / T:.1%} of all neurons spike per token"))
        ends = enumerate(level.neurons) if rows == 1 else ((0, level.neurons[0]), (rows - 1, level.neurons[-1]))
        parts += [text(_LEFT - 6, top + (at + 0.5) * row + 4, f"#{neuron}", anchor="end") for at, neuron in ends]
        d = "".join(f"M{across(t):.1f} {down(r + 0.5):.1f}h{0.84 * cell:.1f}" for t, r in level.events)
        parts.append(f'<path class="spike" stroke-width="{row - 0.8:.1f}" d="{d or "M0 0"}"/>')
        base = top + tall + 6 + strip
        line = f'<line class="axis" x1="{_LEFT}" x2="{right:.1f}" y1="{base:.1f}" y2="{base:.1f}"/>'
        share = Plot(across, Scale(0, most, base, base - strip)).bars(range(T + 1), level.rate, gap=cell * 0.16)
        parts += [share, line, text(_LEFT - 6, base - strip + 9, f"{most:.0%}", anchor="end")]
        top = base + 34
    parts += _tokens(raster.shown, T, cell, top - 34 + 14)
    # the words on top need their room, however few tokens there are
    return picture(int(max(right + _RIGHT, 420)), int(top + 8), f"spikes: {raster.summary}", parts)


def _tokens(shown: Sequence[str], T: int, cell: float, y: float) -> list[Plot | str]:
    """Characters where they fit, and positions."""
    parts: list[Plot | str] = []
    if cell >= 7.5:
        parts += [
            text(_LEFT + (t + 0.42) * cell, y, char.replace("␊", "↵")[-2:], "char", "middle")
            for t, char in enumerate(shown)
        ]
    step = next(n for n in (5, 10, 20, 50, 100, 10**9) if n * cell >= 60)
    return parts + [
        text(_LEFT + (t + 0.42) * cell, y + (15 if parts else 0), f"{t}", anchor="middle") for t in range(0, T, step)
    ]


def draw_activity(activity: Activity, shown: Sequence[str]) -> Picture:
    """Return all neurons at all tokens, a band per level; a cell is the largest of the cells that it stands for."""
    T, R = activity.columns, activity.rows
    down, across = -(-R // _BANDS), -(-T // SHOWN_TOKENS)
    rows, columns = -(-R // down), -(-T // across)
    cell, tall = min(22.0, (_WIDE - _LEFT - _RIGHT) / columns), max(1.6, min(6.0, 150 / rows))
    parts: list[Plot | str] = []
    top = 26.0
    for level in range(len(activity.levels)):
        codes = np.zeros((rows * down, columns * across), np.uint8)
        codes[:R, :T] = activity.codes(level)
        shades = -(-codes.reshape(rows, down, columns, across).max((1, 3)).astype(int) * _SHADES // STEPS)
        parts.append(text(_LEFT, top - 7, f"level {level}", "name"))
        for shade in range(1, _SHADES + 1):
            d = "".join(
                f"M{_LEFT + start * cell:.1f} {top + row * tall:.1f}h{(stop - start) * cell:.1f}v{tall:.1f}"
                f"h{(start - stop) * cell:.1f}"
                for row, start, stop in _runs(shades == shade)
            )
            parts.append(f'<path class="fill" fill-opacity="{shade / _SHADES:.2f}" d="{d or "M0 0"}"/>')
        top += rows * tall + 30
    parts += _tokens(shown, T, cell / across, top - 30 + 14)
    each = (
        f"{activity.pooled * down} neurons x {across} tokens" if activity.pooled * down * across > 1 else "one neuron"
    )
    label = f"all neurons by index, a cell is the largest of {each}"
    return picture(int(_LEFT + columns * cell + _RIGHT), int(top + 8), label, parts)


def _runs(cells: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int, int]]:
    """(row, start, stop) of neighbours that are set."""
    edges = np.diff(np.pad(cells.astype(np.int8), ((0, 0), (1, 1))))
    rows, starts = np.nonzero(edges == 1)
    yield from zip(rows.tolist(), starts.tolist(), np.nonzero(edges == -1)[1].tolist(), strict=True)


def draw_membranes(traces: Sequence[MembraneTrace], shown: Sequence[str]) -> Picture:
    """Return the picture of membranes: charge, threshold, spikes, and what the reset leaves."""
    T = len(traces[0].charge)
    cell = min(22.0, max(4.0, (_WIDE - _LEFT - _RIGHT) / T))
    right, tall = _LEFT + T * cell, 84
    parts: list[Plot | str] = []
    top = 26.0
    for trace in traces:
        low, high = span((*trace.charge, *trace.membrane, trace.threshold))
        plot = Plot(Scale(0, T, _LEFT, right), Scale(low, high, top + tall, top))
        for value in plot.y.ticks():
            plot.level(value, "grid")
            plot.marks.append(text(_LEFT - 6, plot.y(value) + 4, f"{value:.3g}", anchor="end"))
        xs, ys = [], []
        for t, (charge, left) in enumerate(zip(trace.charge, trace.membrane, strict=True)):
            xs += [t + 0.42, t + 0.42] if left != charge else [t + 0.42]
            ys += [charge, left] if left != charge else [charge]
        plot.level(trace.threshold).line(xs, ys)
        plot.points([t + 0.42 for t in trace.spikes], [trace.charge[t] for t in trace.spikes], "mark", 3)
        name = f"h{trace.head}·{trace.index} (#{trace.neuron}), level {trace.level}, spikes: {len(trace.spikes)}"
        plot.marks.append(text(_LEFT, top - 9, name, "name"))
        parts.append(plot)
        top += tall + 36
    parts += _tokens(shown, T, cell, top - 36 + 14)
    label = "membranes before the threshold: " + "; ".join(f"neuron {t.neuron} of level {t.level}" for t in traces)
    return picture(int(max(right + _RIGHT, 420)), int(top + 8), label, parts)


def draw_window(window: Window) -> Picture:
    """Return the learned windows of the heads beside the initial ones."""
    heads = min(len(window.learned), _HEADS)
    low, high = span(value for per in (window.learned, window.initial) for head in per[:heads] for value in head)
    plots = []
    for head in range(heads):
        x, y = 48 + head % 4 * 258, 26 + head // 4 * 168
        plot = Plot(Scale(window.dt[0], window.dt[-1], x, x + 200), Scale(low, high, y + 110, y))
        plot.axes(f"head {head}", "tokens from key to value" if head // 4 == (heads - 1) // 4 else "")
        # no pair of tokens is at no distance: two lines, not one through zero
        for css, curve in (("one", window.learned[head]), ("two", window.initial[head])):
            middle = len(curve) // 2
            for side in (slice(0, middle), slice(middle + 1, None)):
                plot.line(window.dt[side], curve[side], css)
        plots.append(plot)
    return picture(min(heads, 4) * 258 + 8, -(-heads // 4) * 168 + 10, "weight of a pair by its distance", plots)


def draw_balance(signs: Signs) -> Picture:
    """Return how many entries of the residual stream get how much inhibition for their excitation."""
    low, high = span(signs.balance, zero=False)
    low, high = min(low, 0.95), max(high, 1.05)
    bins = 24
    edges = [low + (high - low) * n / bins for n in range(bins + 1)]
    counts = [0] * bins
    for value in signs.balance:
        counts[min(bins - 1, int((value - low) / (high - low) * bins))] += 1
    plot = Plot(Scale(low, high, 44, 316), Scale(0, max(1.0, 1.1 * max(counts)), 150, 26))
    plot.axes("entries", "inhibition / excitation").bars(edges, counts).line((1, 1), (0, 1.1 * max(counts)), "two")
    return picture(330, 190, f"inhibition over excitation, from {low:.2f} to {high:.2f}", [plot])


def draw_degrees(degrees: Degrees) -> Picture:
    """Return the share of neurons with at least so many connections, on logarithmic axes."""
    lowest = min(value for value in (*degrees.share, *degrees.law) if value > 0)
    x = Scale(degrees.degree[0], max(degrees.degree[-1], degrees.degree[0] + 1), 50, 316, log=True)
    plot = Plot(x, Scale(min(lowest, 0.1), 1, 150, 26, log=True))
    plot.axes("share with at least", "connections k").points(degrees.degree, degrees.share, radius=1.8)
    plot.line(degrees.degree, degrees.law, "two")
    return picture(330, 190, f"degrees against the power law of exponent {degrees.gamma:g}", [plot])


def draw_rates(rates: Rates) -> Picture:
    """Return the firing rate of each level against its target."""
    L = len(rates.rate)
    plot = Plot(Scale(0, L, 44, 316), Scale(0, 1.15 * max(*rates.rate, rates.target or 0, 1e-3), 150, 26))
    for value in plot.y.ticks():
        plot.level(value, "grid")
        plot.marks.append(text(38, plot.y(value) + 4, f"{value:.3g}", anchor="end"))
    plot.bars(range(L + 1), rates.rate, gap=0.4 * 272 / L).marks.append(text(44, 17, "share that fires", "name"))
    plot.marks += [text(plot.x(level + 0.5), 165, f"level {level}", anchor="middle") for level in range(L)]
    if rates.target is not None:
        plot.level(rates.target)
    return picture(330, 190, "firing rate by level: " + ", ".join(f"{rate:.1%}" for rate in rates.rate), [plot])


def draw_gains(gains: Gains) -> Picture:
    """Return the gain of each head over the tokens, a row per level."""
    T = len(gains.values[0][0])
    low, high = span((value for level in gains.values for head in level for value in head), zero=False)
    low, high = min(low, 0.9), max(high, 1.1)
    plots = []
    for level, heads in enumerate(gains.values):
        top = 26 + 120 * level
        plot = Plot(Scale(0, max(T - 1, 1), _LEFT, _WIDE - 60), Scale(low, high, top + 70, top))
        plot.axes(f"level {level}").level(1.0)
        lowest = -10.0
        # from the top, each name at its line or just below the name before
        for values, head in sorted(((v, head) for head, v in enumerate(heads[:_HEADS])), key=lambda of: -of[0][-1]):
            lowest = max(plot.y(values[-1]) + 4, lowest + 11)
            plot.line(range(T), values, "three" if head else "one")
            plot.marks.append(text(_WIDE - 54, lowest, f"h{head}"))
        plots.append(plot)
    return picture(_WIDE, 120 * len(gains.values), "gain of each head over the tokens", plots)


def figures(found: Mechanisms) -> list[Figure]:
    """Return the pictures of what is on, each with its words, in the order of a page."""
    said = sentences(found)
    made = []
    if found.lif is not None:
        note = "Ticks are spikes; the strip below is the share of all neurons that spike at a token. "
        made.append(Figure("Spikes", note + _sentence(said["lif"]), draw_raster(found.lif.raster)))
    if found.lif is not None and found.lif.membranes:
        note = (
            "The line is the membrane, first as it is compared with the threshold (dashed), then, where it falls, as "
            "the reset leaves it; dots are spikes. Read token by token: these are the model's own values."
        )
        made.append(Figure("Membranes", note, draw_membranes(found.lif.membranes, found.lif.raster.shown)))
    if found.neuromodulation is not None:
        note = _sentence(said["neuromodulation"])
        made.append(Figure("Neuromodulation", note, draw_gains(found.neuromodulation)))
    if found.stdp is not None:
        note = "Line: learned; dashed: where training started. " + _sentence(said["stdp"])
        made.append(Figure("STDP window", note, draw_window(found.stdp)))
    if found.firing is not None:
        made.append(Figure("Firing", _sentence(said["firing"]), draw_rates(found.firing), wide=False))
    if found.dale is not None:
        note = _sentence(said["dale"]) + " Dashed: balance, one entry of the residual stream each."
        made.append(Figure("Dale's law", note, draw_balance(found.dale), wide=False))
    if found.scale_free is not None:
        note = _sentence(said["scale_free"]) + " Dashed: that law, up to the width of the model."
        made.append(Figure("Degrees", note, draw_degrees(found.scale_free), wide=False))
    return made


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:] + ("" if words.endswith(".") else ".")
