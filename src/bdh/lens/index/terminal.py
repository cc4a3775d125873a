"""The page of a neuron in a terminal or a plain log."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bdh.lens.index.page import Example, NeuronPage, baseline_of
from bdh.lens.terminal import WIDTH, bar, place

CONTEXTS = 8
_BLOCKS = " ▁▂▃▄▅▆▇█"


def print_page(page: NeuronPage, console: Console) -> None:
    """Print what an index knows of a neuron, within 100 columns; readable without colour.

    Args:
        page: what `Index.neuron` returned.
        console: where to; a driving byte is reversed there, or in [brackets] without colour.
    """
    width = min(WIDTH, console.width)
    console.print(_summary(page), width=width, highlight=False)
    console.print(_levels(page), width=width, highlight=False)
    if not page.fires:
        console.print("\nIt never fired on this text: there is nothing else to show but its wiring.")
    else:
        console.print(_strengths(page), width=width, highlight=False)
        _print_examples("Strongest contexts, at most one of a window", page.contexts[:CONTEXTS], console, width)
        middle = [q.examples[len(q.examples) // 2] for q in reversed(page.quantiles)]
        _print_examples("One of each tenth of its fires, drawn at random", middle, console, width)
        console.print(_ngrams(page), width=width, highlight=False)
    console.print(_wiring(page), width=width, highlight=False)


def _summary(page: NeuronPage) -> Text:
    text = Text()
    text.append(f"h{page.head}:{page.index} (#{page.neuron})", style="bold")
    text.append(f"  {page.signal} on {page.n_bytes:,} bytes, in windows of {page.window}\n")
    where = "" if page.mean_place is None else f", mean position {page.mean_place:.1f} of 0 to {page.window - 1}"
    text.append(
        f"fires at {page.rate:.2%} of positions and levels{where}; "
        f"its rotary phase turns once in {page.period:,.1f} tokens\n",
        style="dim",
    )
    return text


def _levels(page: NeuronPage) -> Table:
    table = Table(box=None, pad_edge=False, title="Depth profile", title_justify="left", title_style="bold")
    for name in ("level", "rate"):
        table.add_column(name, justify="right")
    table.add_column(f"0 {'':18} 60%", no_wrap=True)
    for name in ("mean", "largest", "all neurons", "random init"):
        table.add_column(name, justify="right")
    for i, level in enumerate(page.levels):
        start, usual = page.density_init[i], page.density[i]
        table.add_row(
            str(i), f"{level.rate:.2%}", bar(level.rate, start), f"{level.mean:.3g}", f"{level.largest:.3g}",
            f"{usual:.1%}", f"{start:.1%}",
        )  # fmt: skip
    table.caption = f"Compared with: {baseline_of(page)}. | is the latter."
    table.caption_justify = "left"
    return table


def _strengths(page: NeuronPage) -> Text:
    counts = np.sum([level.histogram for level in page.levels], 0)
    some = np.flatnonzero(counts)
    low, high = int(some[0]), int(some[-1])
    heights = np.ceil(counts[low : high + 1] * 8 / counts.max()).astype(int)
    every = "" if page.stride == 1 else f", at one position in {page.stride}"
    stop = f"{page.edges[high + 1]:.3g}" if high + 1 < len(page.edges) else "more"
    text = Text("\nStrength of its fires", style="bold")
    text.append(f"  {page.edges[low]:.3g} ", style="not bold")
    text.append("".join(_BLOCKS[height] for height in heights), style="not bold")
    text.append(f" {stop}, each step half an octave{every}", style="not bold")
    return text


def _print_examples(title: str, examples: Iterable[Example], console: Console, width: int) -> None:
    examples = list(examples)
    left = min(40, max(len(e.context.left) for e in examples))
    console.print(Text(f"\n{title}", style="bold"))
    for e in examples:
        line = Text(f"  {e.context.activation:7.3f} L{e.level}  ")
        line.append_text(place(e.context, left, plain=console.no_color or not console.is_terminal))
        console.print(line, width=width, highlight=False, no_wrap=True, overflow="ellipsis")


def _ngrams(page: NeuronPage) -> Table:
    table = Table(
        box=None, pad_edge=False, title="\nN-grams it fires at more than elsewhere", title_justify="left",
        title_style="bold",
    )  # fmt: skip
    table.add_column("length", justify="right")
    table.add_column("n-gram: rate there, times its rate everywhere, z", overflow="fold")
    for length, row in page.ngrams.items():
        found = "   ".join(f"{g.shown}: {g.rate:.0%} ×{g.lift:.3g} z={g.z:.0f}" for g in row[:4])
        table.add_row(str(length), Text(found or "none of those counted"))
    table.caption = "z ranks and is no test: neighbouring tokens, and the levels of one token, are not independent"
    table.caption_justify = "left"
    return table


def _wiring(page: NeuronPage) -> Table:
    table = Table(
        box=None, pad_edge=False, show_header=False, title="\nWiring, from the weights alone", title_justify="left",
        title_style="bold",
    )  # fmt: skip
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, effects in (("logits up", page.up), ("logits down", page.down)):
        table.add_row(name, Text("   ".join(f"{e.shown} {e.effect:+.2f}" for e in effects)))
    for kind, wires in page.wires.items():
        found = "   ".join(f"h{w.head}:{w.index} {w.weight:+.2f}" for w in wires[:5])
        table.add_row(f"wires {kind}", Text(found))
    return table
