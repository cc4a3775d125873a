"""An inspection in a terminal or a plain log: density, words, telling neurons and what drives them."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bdh.lens.inspection import Context, Firing, Inspection, Telling
from bdh.lens.mechanisms import Mechanisms
from bdh.lens.wording import sentences

WIDTH = 100
"""Columns that the output needs at most."""

_BAR = 24
_LABELS = {"x": "x  fires", "y": "y  gate", "xy": "xy gated"}


def print_inspection(inspection: Inspection, console: Console) -> None:
    """Print what `inspect_text` found, within 100 columns; readable without colour.

    Args:
        inspection: what `inspect_text` returned.
        console: where to; a driving byte is reversed there, or in [brackets] without colour.
    """
    for part in (_summary(inspection), _density(inspection), _words(inspection)):
        console.print(part, width=min(WIDTH, console.width), highlight=False)
    console.print(Text("\nMost telling neurons", style="bold"))
    console.print("z: standard deviations above the neuron's mean on validation text", style="dim", highlight=False)
    for telling in inspection.telling:
        console.print(_telling(telling, console), width=min(WIDTH, console.width), highlight=False, no_wrap=True)
    if not inspection.telling:
        console.print(f"none: no neuron fires here and {inspection.min_fires} times or more in the validation text")
    if inspection.mechanisms is not None:
        console.print(_mechanisms(inspection.mechanisms), width=min(WIDTH, console.width), highlight=False)


def _summary(i: Inspection) -> Text:
    m = i.model
    surprisal = "" if i.surprisal is None else f", surprisal {i.surprisal:.2f} nats per byte"
    shown = "".join(view.shown.replace("␣", " ") for view in i.bytes)
    text = Text()
    text.append(clip(shown, WIDTH - 4) + "\n", style="bold")
    text.append(
        f"{m['n_layer']} levels, {m['n_neurons']:,} neurons, {m['n_parameters']:,} parameters; {i.signal}\n"
        f"{len(i.text):,} bytes{surprisal}; compared with {i.n_baseline:,} bytes of validation text\n",
        style="dim",
    )
    return text


def _density(i: Inspection) -> Table:
    table = Table(
        box=None, pad_edge=False, title="Density: share of neurons that fire", title_justify="left", title_style="bold"
    )
    table.add_column("signal")
    table.add_column("level", justify="right")
    table.add_column("this text", justify="right")
    table.add_column(f"0 {'':{_BAR - 6}} 60%", no_wrap=True)
    table.add_column("validation", justify="right")
    table.add_column("random init", justify="right")
    for key, label in _LABELS.items():
        for level, value in enumerate(i.density[key]):
            start = i.density_init[key][level]
            row = (f"{value:.1%}", bar(value, start), f"{i.density_baseline[key][level]:.1%}", f"{start:.1%}")
            table.add_row(label if level == 0 else "", str(level), *row)
    table.caption = "| is the random initialisation, measured on the same text"
    table.caption_justify = "left"
    return table


def bar(value: float, line: float, scale: float = 0.6) -> str:
    """A bar of `#` with the random-initialisation line as `|`.

    Examples:
        >>> bar(0.3, 0.5)
        '############........|...'
    """
    cells = ["#" if at < round(_BAR * value / scale) else "." for at in range(_BAR)]
    cells[min(_BAR - 1, int(_BAR * line / scale))] = "|"
    return "".join(cells)


def _words(i: Inspection) -> Table:
    table = Table(
        box=None,
        pad_edge=False,
        title=f"\nStrongest neurons per word, by {i.rank}",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("word", no_wrap=True, max_width=18)
    table.add_column("head·neuron, level, activation, z", overflow="fold")
    for word in i.words:
        table.add_row(Text(word.shown), Text("   ".join(map(_brief, word.strongest[:3])) or "none"))
    return table


def _brief(f: Firing) -> str:
    return f"h{f.head}·{f.index} L{f.level} {f.activation:.2f} z={_z(f)}"


def _z(f: Firing) -> str:
    return "-" if f.z is None else f"{f.z:.1f}"


def _mechanisms(found: Mechanisms) -> Table:
    table = Table(
        box=None, pad_edge=False, show_header=False, title="\nMechanisms", title_justify="left", title_style="bold"
    )
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, said in sentences(found).items():
        table.add_row(Text(name), Text(said))
    return table


def _telling(t: Telling, console: Console) -> Text:
    f = t.firing
    profile = " ".join(f"{value:.2g}" for value in t.text_profile)
    usual = " ".join(f"{value:.2g}" for value in t.baseline_profile)
    text = Text()
    text.append(f"h{f.head}·{f.index} (#{f.neuron})", style="bold")
    text.append(
        f"  level {f.level}, byte {f.position}: activation {f.activation:.2f}, z={_z(f)}; fires at {f.rate:.1%}\n"
    )
    text.append(clip(f"  mean by level: here {profile}; validation {usual}", WIDTH) + "\n", style="dim")
    left = max((len(context.left) for context in t.contexts[:3]), default=0)
    for context in t.contexts[:3]:
        text.append(f"  {context.activation:6.2f}  ")
        text.append_text(place(context, min(left, 40), plain=console.no_color or not console.is_terminal))
        text.append("\n")
    return text


def place(c: Context, left: int, plain: bool) -> Text:
    """Return a context with its driving byte reversed, or in brackets where there is no colour."""
    text = Text(c.left[-left:].rjust(left) if left else "")
    text.append(f"[{c.shown}]" if plain else c.shown, style="" if plain else "reverse bold")
    text.append(c.right[:40])
    return text


def clip(text: str, length: int) -> str:
    """Return the text, with an ellipsis at its end where it is longer."""
    return text if len(text) <= length else text[: length - 1] + "…"
