"""All that an index knows of one neuron, as plain values; and the panel that shows it.

Weights are shared by all levels, so this is one neuron with a profile over depth.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bdh.lens.index.ngrams import LENGTHS
from bdh.lens.index.store import Index, shown
from bdh.lens.index.tally import EDGES, stride
from bdh.lens.index.wiring import KINDS, TOKENS
from bdh.lens.inspection import Context, plain, token_names
from bdh.lens.panel import Panel, Table
from bdh.lens.svg import Picture, Plot, Scale, picture
from bdh.lens.texts import context_at

Array = npt.NDArray[Any]

QUANTILES = 10
MARGIN = 28
"""Bytes of text on either side of an example."""


@dataclass(frozen=True)
class Level:
    """What the neuron does at one level."""

    rate: float
    """Share of the positions at which it fires."""
    mean: float
    std: float
    largest: float
    histogram: tuple[int, ...]
    """Fires by activation, at every `stride`-th position; the bins begin at the page's `edges`."""


@dataclass(frozen=True)
class Example:
    """A place at which the neuron fires."""

    level: int
    context: Context
    """The text around it, its position and the activation there."""
    first: int
    """Position of the first byte that `values` has an activation for."""
    values: tuple[float, ...]
    """Activations at this level around it, with three digits; none beyond the window that the model had read."""


@dataclass(frozen=True)
class Quantile:
    """Examples from one part of a uniform sample of all fires, by strength."""

    low: float
    high: float
    share: float
    """Of the fires, as far as the sample tells."""
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class NGram:
    """An n-gram at whose last byte the neuron fires more than elsewhere."""

    shown: str
    bytes: tuple[int, ...]
    count: int
    """How often the text has it, inside a window."""
    rate: float
    """Share of its occurrences, all levels, at which the neuron fires."""
    lift: float
    """That over the neuron's rate everywhere."""
    log_odds: float
    z: float
    """log_odds over its standard deviation, see `bdh.lens.index.ngrams.log_odds`: it ranks, and is no test."""


@dataclass(frozen=True)
class Effect:
    """What the neuron's decoder row adds to the logit of a token, per unit, before the last norm."""

    token: int
    shown: str
    effect: float


@dataclass(frozen=True)
class Wire:
    """A connection of the neuron graph G."""

    neuron: int
    head: int
    index: int
    weight: float


@dataclass(frozen=True)
class NeuronPage:
    """One neuron."""

    neuron: int
    head: int
    index: int
    signal: str
    n_bytes: int
    """Bytes of text that were read."""
    window: int
    fires: int
    """Positions times levels at which it fires."""
    rate: float
    levels: tuple[Level, ...]
    edges: tuple[float, ...]
    """Lower edges of the bins; the last one is open."""
    stride: int
    """The histograms look at so-manieth positions only, for speed; 1 in a text of less than half a mebibyte."""
    density: tuple[float, ...]
    """Mean rate of all neurons, by level."""
    density_init: tuple[float, ...]
    """The same at random initialisation."""
    period: float
    """Tokens in which the rotary phase of its pair turns once: its timescale in the memory."""
    mean_place: float | None
    """Mean position in the window of its fires; (window - 1) / 2 if it fires alike everywhere."""
    contexts: tuple[Example, ...]
    """Where it is strongest, at most one of a window."""
    quantiles: tuple[Quantile, ...]
    """Weakest first."""
    ngrams: dict[int, tuple[NGram, ...]]
    """By length."""
    up: tuple[Effect, ...]
    down: tuple[Effect, ...]
    wires: dict[str, tuple[Wire, ...]]
    """By kind, see `bdh.lens.index.wiring`: the strongest, whatever their sign."""

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that goes into JSON (no NaN; numbers with six digits)."""
        found: dict[str, Any] = plain(dataclasses.asdict(self))
        return found


def page_of(index: Index, neuron: int) -> NeuronPage:
    """Read one neuron from an index; see `Index.neuron`."""
    plan, K = index.plan, index.plan.shape.neurons_per_head
    a, table = index.arrays, {name: column[neuron] for name, column in index.neurons.items()}
    mean, std, largest = (index.levels[name][neuron].tolist() for name in ("mean", "std", "largest"))
    rate = (index.levels["fires"][neuron] / plan.n_bytes).tolist()
    up = np.argsort(-a["logits"][neuron], kind="stable")
    effect = [Effect(t, token_names([t])[0], float(a["logits"][neuron, t])) for t in up.tolist()]
    return NeuronPage(
        neuron=neuron,
        head=neuron // K,
        index=neuron % K,
        signal=plan.signal,
        n_bytes=plan.n_bytes,
        window=plan.window,
        fires=int(table["fires"]),
        rate=sum(rate) / len(rate),
        levels=tuple(map(Level, rate, mean, std, largest, map(tuple, a["histogram"][neuron].tolist()))),
        edges=EDGES,
        stride=stride(plan.n_bytes),
        density=index.density,
        density_init=index.density_init,
        period=float(table["period"]),
        mean_place=float(table["mean_place"]) if table["fires"] else None,
        contexts=_examples(index, a["contexts"][neuron], a["context_strips"][neuron]),
        quantiles=_quantiles(_examples(index, a["samples"][neuron], a["sample_strips"][neuron])),
        ngrams=dict(zip(LENGTHS, (_ngrams(index, row, neuron) for row in a["lifts"][neuron]), strict=True)),
        up=tuple(effect[:TOKENS]),
        down=tuple(effect[: -TOKENS - 1 : -1]),
        wires={
            kind: tuple(Wire(n, n // K, n % K, weight) for n, weight in row.tolist())
            for kind, row in zip(KINDS, a["wires"][neuron], strict=True)
        },
    )


def _examples(index: Index, places: Array, strips: Array) -> tuple[Example, ...]:
    found = []
    for (position, level, activation), strip in zip(places.tolist(), strips, strict=True):
        if activation > 0:
            window = position // index.plan.window * index.plan.window
            first = max(window, position - index.plan.before)
            last = min(window + index.plan.window, len(index.text), position + index.plan.after + 1)
            offset = first - (position - index.plan.before)
            values = tuple(strip[offset : offset + last - first].tolist())
            found.append(Example(level, context_at(index.text, position, activation, MARGIN), first, values))
    return tuple(found)


def _quantiles(sample: tuple[Example, ...]) -> tuple[Quantile, ...]:
    """Cut a sample into ten parts of equal size, or as many as there are examples."""
    ordered = sorted(sample, key=lambda e: (e.context.activation, e.context.position, e.level))
    parts = [part.tolist() for part in np.array_split(np.arange(len(ordered)), min(QUANTILES, len(ordered) or 1))]
    groups = [tuple(ordered[i] for i in part) for part in parts if part]
    return tuple(
        Quantile(group[0].context.activation, group[-1].context.activation, len(group) / len(ordered), group)
        for group in groups
    )


def _ngrams(index: Index, row: Array, neuron: int) -> tuple[NGram, ...]:
    L = index.plan.shape.n_layer
    overall = int(index.neurons["fires"][neuron]) / (index.plan.n_bytes * L)
    found = []
    for number, fires, log_odds, z in row.tolist():
        if number >= 0:
            gram, count = index.ngrams[number], int(index.counts[number])
            rate = fires / (count * L)
            found.append(NGram(shown(gram), tuple(gram), count, rate, rate / overall, log_odds, z))
    return tuple(found)


def baseline_of(page: NeuronPage) -> str:
    """Say what the rates of a page are to be compared with."""
    start, usual = (", ".join(f"{value:.0%}" for value in found) for found in (page.density_init, page.density))
    return (
        f"share of all neurons that fire at a token, by level: {start} at random initialisation, "
        f"{usual} in this model, on the same text"
    )


def panel(page: NeuronPage) -> Panel:
    """Show a page: depth profile, histogram, contexts, quantiles, n-grams, logits and wires.

    Args:
        page: what `Index.neuron` returned.
    """
    quantiles = [(q, e) for q in reversed(page.quantiles) for e in q.examples]
    wires = [(kind, f"h{w.head}:{w.index}", w.neuron, w.weight) for kind, row in page.wires.items() for w in row]
    ngrams = [(g.shown, g.count, g.rate, g.lift, g.z) for row in page.ngrams.values() for g in row]
    return Panel(
        key=f"neuron-{page.neuron}",
        title=f"Neuron h{page.head}:{page.index} (#{page.neuron})",
        note=(
            f"{page.signal} on {page.n_bytes:,} bytes in windows of {page.window}; it fires {page.fires:,} times, "
            f"{page.rate:.2%} of all positions and levels. Its rotary phase turns once in {page.period:,.1f} tokens. "
            "z ranks n-grams and is no test: neighbouring tokens are not independent."
        ),
        baseline=baseline_of(page),
        pictures=(_profile(page), _histogram(page)),
        tables={
            "By level": Table(
                ("level", "rate", "mean", "std", "largest", "all neurons", "random initialisation"),
                tuple(
                    (i, level.rate, level.mean, level.std, level.largest, page.density[i], page.density_init[i])
                    for i, level in enumerate(page.levels)
                ),
            ),
            "Strongest contexts": Table(_PLACES, tuple(map(_row, page.contexts))),
            "A sample of its fires, strongest tenth first": Table(
                ("from", "to", *_PLACES), tuple((q.low, q.high, *_row(e)) for q, e in quantiles)
            ),
            "N-grams it fires at more than elsewhere": Table(("n-gram", "count", "rate", "lift", "z"), tuple(ngrams)),
            "Logit effect": Table(
                ("token", "effect"), tuple((e.shown, e.effect) for e in (*page.up, *reversed(page.down)))
            ),
            "Strongest wires": Table(("kind", "neuron", "global id", "weight"), tuple(wires)),
        },
        python=f"bdh.lens.Index.open(FOLDER).neuron({page.neuron})",
        command=f"bdh lens neuron {page.neuron} --index FOLDER",
    )


_PLACES = ("activation", "level", "position", "left", "byte", "right")


def _row(e: Example) -> tuple[float, int, int, str, str, str]:
    c = e.context
    return c.activation, e.level, c.position, c.left, c.shown, c.right


def _profile(page: NeuronPage) -> Picture:
    levels = range(len(page.levels))
    rates = [level.rate for level in page.levels]
    high = max(*rates, *page.density_init, *page.density, 0.01)
    plot = Plot(Scale(0, len(page.levels), 50, 330), Scale(0, 1.1 * high, 170, 30)).axes("rate", "level")
    plot.bars([*levels, len(page.levels)], rates, gap=6)
    middles = [level + 0.5 for level in levels]
    plot.points(middles, page.density_init, "dot")
    return picture(350, 210, "rate by level; points: all neurons at random initialisation", [plot])


def _histogram(page: NeuronPage) -> Picture:
    counts = np.sum([level.histogram for level in page.levels], 0)
    some = np.flatnonzero(counts)
    first, last = (int(some[0]), int(some[-1])) if len(some) else (0, 0)
    top = float(max(counts.max(), 1))
    plot = Plot(Scale(first, last + 1, 60, 340), Scale(0, 1.1 * top, 170, 30)).axes("fires", "bin of activation")
    plot.bars(range(first, last + 2), counts[first : last + 1].astype(float).tolist())
    low, high = page.edges[first], page.edges[last + 1] if last + 1 < len(page.edges) else float("inf")
    return picture(360, 210, f"fires by activation, bins of half an octave from {low:.3g} to {high:.3g}", [plot])
