"""Panels of the memory: energy, timescales, differences of states, synapses and what a token read."""

from __future__ import annotations

from collections.abc import Sequence

from bdh.lens.course import SynapseCourse
from bdh.lens.energy import MemoryEnergy, StateDiff
from bdh.lens.inspection import token_names
from bdh.lens.panel import Cell, Panel, Table
from bdh.lens.reading import Reading
from bdh.lens.span import MemorySpan
from bdh.lens.stack import axes, bars, stacked
from bdh.lens.synapses import Growth


def energy_panel(found: MemoryEnergy) -> Panel:
    """Show the energy of the memory over a text.

    Examples:
        >>> from bdh.lens.energy import LevelEnergy
        >>> level = LevelEnergy((1.0, 3.0), (1.0, 2.0), {"under 10": (1.0, 3.0)}, (4,), ((1.0, 3.0),))
        >>> energy_panel(MemoryEnergy((level,), (104, 105))).baseline
        'writes that overlap with nothing: the same ones would add up to level 0: 2'
    """
    places = range(len(found.ids))
    plots = []
    for number, level in enumerate(found.levels):
        plot = axes(number, (0, len(places) - 1), (*level.total, *level.apart), f"level {number}", "token")
        plots.append(plot.line(places, level.total).line(places, level.apart, "two"))
    numbers = [str(number) for number in range(len(found.levels))]
    tokens = zip(places, token_names(found.ids), *(level.total for level in found.levels), strict=True)
    ends = [
        (number, band, values[-1], values[-1] / level.total[-1] if level.total[-1] else None)
        for number, level in enumerate(found.levels)
        for band, values in level.bands.items()
    ]
    pairs = [
        (number, pair, pair + 1, values[-1], values[-1] / level.total[-1] if level.total[-1] else None)
        for number, level in enumerate(found.levels)
        for pair, values in zip(level.pairs, level.of_pairs, strict=True)
    ]
    return Panel(
        key="memory-energy",
        title="Energy of the memory",
        note="Line: sum of squares of rho after each token. Dashed: what the same writes would add up to if none "
        "overlapped with another. Above the dashed line writes repeat each other, below they cancel.",
        baseline="writes that overlap with nothing: the same ones would add up to "
        + ", ".join(f"level {number}: {level.apart[-1]:.4g}" for number, level in enumerate(found.levels)),
        pictures=(stacked("energy of the memory over the text", plots),),
        tables={
            "Energy at the end by period of the rotation, in tokens": Table(
                ("level", "period", "energy", "share"), tuple(ends)
            ),
            "Pairs of neurons with most energy at the end": Table(
                ("level", "neuron", "and", "energy", "share"), tuple(pairs)
            ),
            "Energy after each token": Table(("position", "token", *(f"level {n}" for n in numbers)), tuple(tokens)),
        },
        python="bdh.lens.memory_energy(model, text)",
    )


def span_panel(found: MemorySpan) -> Panel:
    """Show how far back the memory is read, by timescale."""
    rows = [
        (number, band.band, band.neurons, band.span, band.share, band.negative)
        for number, level in enumerate(found.levels)
        for band in level
    ]
    plots = []
    for number, level in enumerate(found.levels):
        names = [band.band for band in level]
        plot = bars(
            number, [band.span or 0.0 for band in level], f"level {number}: mean age, tokens", names, found.even
        )
        plots.append(plot.level(found.even))
    whole = ", ".join("nothing read" if value is None else f"{value:.1f}" for value in found.whole)
    return Panel(
        key="memory-span",
        title="How far back the memory is read",
        note="Mean age of what is read, weighted by the size of the scores that neurons of a period make. All "
        f"neurons together, by level: {whole} tokens.",
        baseline=f"even reading (dashed): were all past tokens read alike, {found.even:.1f} tokens in a text of "
        f"{found.n_tokens}",
        pictures=(stacked("mean age of what is read by period", plots),),
        tables={
            "Mean age in tokens, by period in tokens; share of the reading; negative part of it": Table(
                ("level", "period", "neurons", "mean age", "share", "negative"), tuple(rows)
            )
        },
        python="bdh.lens.memory_span(model, text)",
    )


def diff_panel(found: StateDiff) -> Panel:
    """Show where two states differ."""
    plots = [
        bars(number, list(level.bands.values()), f"level {number}: share of the difference", list(level.bands))
        for number, level in enumerate(found.levels)
        if level.bands
    ]
    levels = [
        (number, level.cosine, level.first, level.second, level.distance) for number, level in enumerate(found.levels)
    ]
    pairs = [
        (number, one.pair, one.pair + 1, one.period, one.first, one.second, one.distance)
        for number, level in enumerate(found.levels)
        for one in level.pairs
        if one.distance
    ]
    return Panel(
        key="state-diff",
        title="Two states",
        note=f"After {found.positions[0]} and {found.positions[1]} tokens. {found.words}",
        baseline="states without anything in common: cosine 0, and the energy of the difference is the sum of both",
        pictures=(stacked("difference of two states by period", plots),) if plots else (),
        tables={
            "Levels": Table(("level", "cosine", "energy 1", "energy 2", "energy of the difference"), tuple(levels)),
            "Pairs of neurons that differ most": Table(
                ("level", "neuron", "and", "period", "energy 1", "energy 2", "of the difference"), tuple(pairs)
            ),
        },
        python="bdh.lens.diff_states(model, first, second)",
    )


def gap_panel(found: StateDiff) -> Panel:
    """Show how a state whose tokens were taken out differs from one that never had them."""
    levels = [
        (number, level.cosine, level.first, level.second, level.distance) for number, level in enumerate(found.levels)
    ]
    return Panel(
        key="erased",
        title="Taken out, or never written",
        note="The saved state has what the other tokens wrote in their presence: the direct effect. The second one is "
        "that of a reading in which nobody ever saw them. At level 0 both are the same.",
        baseline=f"never written: {found.words}",
        tables={"Levels": Table(("level", "cosine", "taken out", "never written", "difference"), tuple(levels))},
        python="bdh.lens.diff_states(model, bdh.lens.erase_tokens(model, idx, positions), never)",
    )


def growth_panel(grown: Sequence[Growth], typical: tuple[float, float], words: str, level: int) -> Panel:
    """Show the synapses that grew most on a span.

    Args:
        grown: from `strongest_growth`.
        typical: median and largest growth of synapses drawn at random, from `typical_growth`.
        words: the span.
        level: the level.
    """
    rows = tuple((one.target, one.source, one.source + 1, one.before, one.after, one.growth) for one in grown)
    return Panel(
        key="synapses",
        title="Synapses that grew most",
        note=f"While the model read {words!r} at level {level}: strength of the synapse from a pair of neurons to a "
        "gate before and after, whatever the phase of the rotation.",
        baseline=f"1,000 synapses drawn at random: median growth {typical[0]:.3g}, largest {typical[1]:.3g}",
        tables={"Synapses": Table(("gate", "from neuron", "and", "before", "after", "growth"), rows)},
        python="bdh.lens.strongest_growth(model, text, span, level)",
    )


def course_panel(found: SynapseCourse) -> Panel:
    """Show one synapse while a text is read."""
    places = range(len(found.ids))
    values = (*found.sigma, *found.strength, *found.init)
    plot = axes(0, (0, len(places) - 1), values, f"synapse {found.source} to {found.target}", "token")
    plot.line(places, found.sigma, "three").line(places, found.strength).line(places, found.init, "two")
    rows = zip(places, token_names(found.ids), found.sigma, found.strength, found.init, strict=True)
    return Panel(
        key=f"synapse-{found.target}-{found.source}",
        title=f"Synapse from neuron {found.source} to gate {found.target}, level {found.level}",
        note=f"As each token finds it. Line: strength. Grey: sigma itself, which swings with the rotation of the pair, "
        f"once in {found.period:,.1f} tokens, though nothing is written. Dashed: strength at random initialisation.",
        baseline=f"random initialisation: strength {max(found.init):.3g} at most, here {max(found.strength):.3g}",
        pictures=(stacked("a synapse over the text", [plot]),),
        tables={"As each token finds it": Table(("position", "token", "sigma", "strength", "random"), tuple(rows))},
        python=f"bdh.lens.synapse_course(model, text, {found.level}, {found.target}, {found.source})",
    )


def reading_panel(found: Reading) -> Panel:
    """Show what one token read."""
    shown = token_names(found.ids)
    t = found.position
    plots = []
    for row, parts in enumerate(found.parts):
        name = f"gate {found.gate}" if found.gate is not None else f"head {row}"
        plot = axes(row, (0, t), parts, name, "past token")
        for at, part in enumerate(parts):
            plot.line((at + 0.5, at + 0.5), (0, part), "one" if part >= 0 else "two")
        plots.append(plot)
    size = sum(abs(part) for parts in found.parts for part in parts)
    by_token = sorted(range(t), key=lambda at: -sum(abs(parts[at]) for parts in found.parts))
    heads = ["part"] if found.gate is not None else [f"head {n}" for n in range(len(found.parts))]
    rows: list[tuple[Cell, ...]] = [(at, shown[at], t - at, *(parts[at] for parts in found.parts)) for at in by_token]
    through = tuple((one.position, shown[one.position], one.neuron, one.part) for one in found.through)
    what = "scores" if found.gate is None else f"parts of the drive of gate {found.gate}, which is {found.total:.4g}"
    most = max((sum(abs(parts[at]) for parts in found.parts) for at in range(t)), default=0.0)
    return Panel(
        key="ledger",
        title=f"What token {t} read at level {found.level}",
        note=f"Token {t} is {shown[t]!r}. By past token: {what}. Exact: the parts sum to what was read; dashed ones "
        "are negative.",
        baseline=f"even reading: each of {t} tokens would have {1 / t:.1%} of the sum of sizes; the largest has "
        + (f"{most / size:.1%}" if size else "nothing, since nothing was read"),
        pictures=(stacked("parts of a read by past token", plots),),
        tables={
            "Past tokens, the largest first": Table(("position", "token", "age", *heads), tuple(rows)),
            "Largest single contributions": Table(("position", "token", "through neuron", "part"), through),
        },
        python=f"bdh.lens.explain_reading(model, text, {found.level}, {t}, gate={found.gate})",
    )
