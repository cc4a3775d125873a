"""A probe for a terminal and as a panel."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table as Printed
from rich.text import Text

from bdh.lens.panel import Cell, Panel, Table
from bdh.lens.probing.findings import CRITERIA, Finding, Probe
from bdh.lens.svg import Picture, Plot, Scale, picture, text

WIDTH = 100
"""Columns that the output needs at most."""
_ROWS = 10
_COLUMNS = (
    "level", "neuron", "source", "effect", "low", "high", "u", "p", "q", "p_words", "q_words", "effect_a",
    "lexical", "lexical_low", "lexical_high", "activity", "p_matched", "beats_init", "causal_effect",
    "causal_divergence", "causal_loss", "causal_largest_control", "causal_p", "causal_n_controls", "failed",
)  # fmt: skip


def verdict(probe: Probe) -> str:
    """Return which units pass, or that none does and why, in a sentence or two."""
    what = probe.kind
    passing = probe.passing
    if passing:
        units = "; ".join(f"{finding.unit} (r = {finding.effect:.2f})" for finding in passing)
        return f"{probe.concept}: {len(passing)} of {len(probe.findings)} tested {what} pass everything: {units}."
    best = probe.findings[0]
    return (
        f"{probe.concept}: none passes. The nearest of the {len(probe.findings)} tested {what}, {best.unit} "
        f"(r = {best.effect:.2f}), fails: {', '.join(best.failed(probe.protocol))}."
    )


def print_probes(probes: Sequence[Probe], console: Console) -> None:
    """Print probes, within 100 columns; the last lines are their verdicts."""
    for probe in probes:
        _print(probe, console)
    _say(console, "\nTo pass, a unit needs all of")
    for name, words in probes[0].protocol.criteria().items():
        _say(console, f"  {name[0].upper()} {name:8} {words}", style="dim")
    _say(console, "")
    for probe in probes:
        _say(console, verdict(probe), style="bold")


def _print(probe: Probe, console: Console) -> None:
    a, b = probe.n_sentences
    words, rules, nulls = probe.n_words, probe.protocol, probe.nulls
    _say(console, f"\n{probe.concept}: {probe.description}", style="bold")
    few = len(probe.findings)
    chosen = f"{few} asked for" if probe.n_units == few else f"{few} of {probe.n_units:,} selected"
    _say(
        console,
        f"{probe.kind} ({probe.signal}), levels {', '.join(map(str, probe.levels))}: {chosen}; half a has {a} + {a} "
        f"sentences, {words[0]} word pairs; tested on half b, {b} + {b}, {words[1]} other pairs\n"
        f"false discovery rates over {probe.n_tests} tests; file sha256 {probe.sha256[:16]}, seed {rules.seed}\n"
        f"r: rank-biserial; U: of {b * b:,}; qw: q of swapping words; lex: r against the control; near: share of units "
        "as active with as large an r; caus: r of the change when taken away",
        style="dim",
    )
    table = Printed(box=None, pad_edge=False, collapse_padding=True)
    for name in ("unit", "r", "95 %", "U", "q", "qw", "lex", "near", "caus", "passes"):
        table.add_column(name, justify="left" if name in ("unit", "passes") else "right", no_wrap=True)
    for finding in probe.findings[:_ROWS]:
        table.add_row(*map(Text, _row(finding, probe)))
    console.print(table, width=min(WIDTH, console.width), highlight=False)
    _say(
        console,
        f"pass effect, fdr and words, among the tests of this concept: {probe.n_discovered}; with nothing to find: "
        f"{nulls.shuffled:.2f} with shuffled labels ({rules.shuffles} times, at most {nulls.shuffled_most}), "
        f"{nulls.init:.2f} untrained ({rules.inits} models, largest r = {nulls.init_effect:.2f}), "
        f"{nulls.matched:.2f} among units as active",
    )


def _row(finding: Finding, probe: Probe) -> list[str]:
    unit, causal, failed = finding.unit, finding.causal, finding.failed(probe.protocol)
    where = f"{unit.neuron}" if unit.source is None else f"{unit.source}>{unit.neuron}"
    return [
        f"{where} L{unit.level}",
        f"{finding.effect:.2f}",
        f"{finding.low:.2f} {finding.high:.2f}",
        f"{finding.u:,.0f}",
        _small(finding.q),
        _small(finding.q_words),
        f"{finding.lexical:.2f}",
        _small(finding.p_matched),
        "-" if causal is None else f"{causal.effect:.2f}",
        "".join("." if name in failed else name[0].upper() for name in CRITERIA),
    ]


def _small(p: float) -> str:
    return f"{p:.2g}" if p >= 0.001 else f"{p:.0e}"


def _say(console: Console, words: str, style: str = "") -> None:
    console.print(Text(words, style=style), width=min(WIDTH, console.width), highlight=False)


def panel(probe: Probe, command: str = "") -> Panel:
    """Return a probe as a panel: effects with their intervals, and a table of all tested units."""
    nulls, rules = probe.nulls, probe.protocol
    description = probe.description[0].upper() + probe.description[1:]
    note = (
        f"{verdict(probe)} {description}. Half a of the concept's sentences selected {len(probe.findings)} of "
        f"{probe.n_units:,} {probe.kind}; half b, with other words, gave these figures."
    )
    baseline = (
        f"{probe.n_discovered} pass effect and false discovery rates; with shuffled labels {nulls.shuffled:.2f}, in "
        f"untrained models {nulls.init:.2f} (largest effect {nulls.init_effect:.2f}), among units as active "
        f"{nulls.matched:.2f}. File sha256 {probe.sha256}, seed {rules.seed}, {probe.n_tests} tests."
    )
    return Panel(
        key=f"concept-{probe.concept}-{probe.kind}".replace("_", "-").lower(),
        title=f"Concept: {probe.concept} ({probe.kind})",
        note=note,
        baseline=baseline,
        pictures=(draw(probe),),
        tables={
            "Tested units": Table(_COLUMNS, tuple(_cells(finding, probe) for finding in probe.findings)),
            "What a unit has to pass": Table(("criterion", "meaning"), tuple(rules.criteria().items())),
        },
        python=f"bdh.lens.probe(model, bdh.lens.Concept.load({probe.concept!r}), {probe.kind!r})",
        command=command,
    )


def _cells(finding: Finding, probe: Probe) -> tuple[Cell, ...]:
    c, unit = finding.causal, finding.unit
    cells: dict[str, Cell] = {"level": unit.level, "neuron": unit.neuron, "source": unit.source}
    for name in ("effect", "divergence", "loss", "largest_control", "p", "n_controls"):
        cells[f"causal_{name}"] = None if c is None else getattr(c, name)
    cells["failed"] = " ".join(finding.failed(probe.protocol))
    return tuple(cells[name] if name in cells else getattr(finding, name) for name in _COLUMNS)


def draw(probe: Probe) -> Picture:
    """Return the effect of each tested unit with its interval, the threshold, and the largest of untrained models."""
    left, right, row = 300, 760, 18
    shown = probe.findings
    bottom = 30 + row * len(shown)
    plot = Plot(Scale(-1, 1, left, right), Scale(0, len(shown), 30, bottom))
    marks: list[Plot | str] = []
    for at, finding in enumerate(shown):
        y = at + 0.5
        plot.line((finding.low, finding.high), (y, y), "three").points((finding.effect,), (y,), radius=3)
        words = f"{finding.unit}" + ("" if finding.failed(probe.protocol) else ", passes")
        marks.append(text(left - 10, plot.y(y) + 4, words, anchor="end"))
    marks += [
        text(plot.x(tenths / 10), bottom + 15, f"{tenths / 10:g}", anchor="middle") for tenths in range(-10, 11, 5)
    ]
    plot.line((0, 0), (0, len(shown)), "axis")
    for value, css in ((probe.protocol.effect, "grid"), (probe.nulls.init_effect, "two")):
        plot.line((value, value), (0, len(shown)), css)
    marks.append(text(left, 17, "rank-biserial correlation on half b, with 95 % interval; dashed: untrained", "name"))
    best = shown[0]
    label = f"effects of {len(shown)} {probe.kind} for {probe.concept}; the first, {best.unit}: {best.effect:.2f}"
    return picture(right + 20, bottom + 24, label, [plot, *marks])
