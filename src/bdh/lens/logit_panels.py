"""Panels of predictions: surprise, logit lens, attribution of a logit, signed attention."""

from __future__ import annotations

from collections.abc import Sequence

from bdh.lens.attention import Attention, HeadAttention
from bdh.lens.inspection import token_names
from bdh.lens.logits import Attribution, LogitLens
from bdh.lens.panel import Cell, Panel, Table
from bdh.lens.repetition import Repetition
from bdh.lens.stack import axes, stacked
from bdh.lens.surprise import Surprise
from bdh.lens.svg import Picture, picture, text

SHOWN_TOKENS = 48
"""Tokens of a picture of scores: more would have cells too small for a sign."""

# orange below zero and purple above, as on ColorBrewer's PuOr: told apart by the colour-blind too
_NEGATIVE, _POSITIVE = "#b35806", "#542788"

_CHANGE = "level", "signal", "neurons", "first", "later", "control", "effect", "from", "to", "random", "to"


def repetition_panel(found: Repetition) -> Panel:
    """Show what the repetition of a word does to surprisal and density."""
    times = range(1, len(found.times) + 1)
    told, other = [time.surprisal for time in found.times], [time.control for time in found.times]
    plot = axes(0, (1, len(times)), [*told, *other], "surprisal, nats per letter", "time of the word")
    plots = [plot.line(times, told).line(times, other, "two")]
    for level in range(len(found.times[0].density)):
        halves = [time.density[level] for time in found.times], [time.control_density[level] for time in found.times]
        plot = axes(
            level + 1, (1, len(times)), [*halves[0], *halves[1]], f"level {level}: xy that fire", "time of the word"
        )
        plots.append(plot.line(times, halves[0]).line(times, halves[1], "two"))
    gated = [change for change in found.changes if change.signal == "xy"]
    down, up = (sum(min(low * sign, high * sign) > 0 for low, high in (c.ci for c in gated)) for sign in (-1, 1))
    rows = tuple(
        (c.level, c.signal, c.neurons, c.memorising, c.repeating, c.control, c.effect, *c.ci, *c.init)
        for c in found.changes
    )
    by_time = tuple((n, time.surprisal, time.control, *time.density) for n, time in enumerate(found.times, 1))
    return Panel(
        key="repetition",
        title="A word again and again",
        note=f"{found.n_words:,} random words, each 8 times after a warm-up. Line: the same word; dashed: other words "
        f"after the first. Surprisal goes from {told[0]:.2f} at the first to {told[-1]:.2f} nats at the last time. Of "
        f"{len(gated)} halves of levels, repetition lowers the density of xy in {down} and raises it in {up} by the 95 "
        f"% interval of the effect; {0.05 * len(gated):.1f} would be by chance.",
        baseline=f"other words in place of the repetition, with surprisal {other[0]:.2f} at first and {other[-1]:.2f} "
        "at last: their change is taken off; and five draws of random weights, whose effects are in the table",
        pictures=(stacked("surprisal and density by time of the word", plots),),
        tables={
            "By time of the word: surprisal, and density of xy by level": Table(
                ("time", "surprisal", "control", *(f"level {n}" for n in range(len(found.times[0].density)))), by_time
            ),
            "Density of neurons: effect of repetition = change less that of the control": Table(
                ("level", "signal", "neurons", "first", "later", "control", "effect", "from", "to", "random", "to"),
                rows,
            ),
        },
        python="bdh.lens.measure_repetition(model, words=64)",
    )


def surprise_panel(found: Surprise) -> Panel:
    """Show density beside predictability."""
    places, across = range(len(found.places)), (0, len(found.places) - 1)
    course = [0.0 if place.surprisal is None else place.surprisal for place in found.places]
    entropy = [place.entropy for place in found.places]
    plot = axes(0, across, [*course, *entropy], "surprisal, nats (line); entropy (dashed)", "place in the text")
    plots = [plot.line(places[1:], course[1:]).line(places, entropy, "two")]
    for level in range(len(found.places[0].density["xy"])):
        halves = [[place.density["xy"][level][half] for place in found.places] for half in (0, 1)]
        plot = axes(level + 1, across, [*halves[0], *halves[1]], f"level {level}: xy that fire", "place in the text")
        plots.append(plot.line(places, halves[0]).line(places, halves[1], "two"))
    kinds = {
        "Spearman": [(c.spearman, c.spearman_ci, c.init_spearman) for c in found.correlations],
        "Pearson": [(c.pearson, c.pearson_ci, c.init_pearson) for c in found.correlations],
    }
    nothing = (None, None)
    tables = {
        f"{kind} correlation of density: r with the 95 % interval over texts, and its range for random weights": Table(
            ("level", "signal", "neurons", "with", "r", "from", "to", "random", "to"),
            tuple(
                (c.level, c.signal, c.neurons, c.against, r, *(ci or nothing), *(init or nothing))
                for c, (r, ci, init) in zip(found.correlations, values, strict=True)
            ),
        )
        for kind, values in kinds.items()
    }
    init = found.mean(0, len(found.places)).init
    return Panel(
        key="surprise",
        title="Density and surprise",
        note=f"{found.n_texts:,} texts of {len(found.places)} tokens, each read from an empty memory. Picture: means "
        "over texts by place; line: neurons of the fast half of the rotation, dashed: of the slow half. A positive "
        "correlation means: quieter where the text is predictable, and counts where it is outside the range of random "
        "weights.",
        baseline="five draws of random weights on the same texts: mean density of xy "
        + ", ".join(f"{sum(level) / 2:.1%}" for level in init["xy"])
        + " by level; their correlations with this model's surprisal are in the tables",
        pictures=(stacked("surprisal and density by place", plots),),
        tables=tables,
        python="bdh.lens.measure_surprise(model, ids)",
    )


def logit_panel(found: LogitLens) -> Panel:
    """Show what every level would predict after each token.

    Examples:
        >>> from bdh.lens.logits import Guess
        >>> end = ((Guess(((105, 1.0),), 1, 0.0), Guess(((33, 0.5),), None, 0.0)),)
        >>> logit_panel(LogitLens((104, 105), end, 4.0, 256)).tables["By depth"].rows
        (('embedding', 0.0, 1.0),)
    """
    depths = range(len(found.depths))
    names = ["embedding", *(f"level {depth - 1}" for depth in depths[1:])]
    shown = token_names(found.ids)
    rows = []
    for t, token in enumerate(shown):
        guesses = [found.depths[depth][t] for depth in depths]
        cells = [f"{token_names([guess.top[0][0]])[0]} {guess.top[0][1]:.0%}" for guess in guesses]
        rows.append((t, token, shown[t + 1] if t + 1 < len(shown) else None, *cells, guesses[-1].rank))
    means = tuple((names[depth], found.mean_kl(depth), found.mean_rank(depth)) for depth in depths)
    return Panel(
        key="logit-lens",
        title="What each level would predict",
        note="The readout put to the stream after every level: most likely next token and its probability. KL is how "
        "far a level's prediction is from the last one's, in nats.",
        baseline=f"a prediction that knows nothing: KL {found.uniform_kl:.2f} nats, mean rank "
        f"{(found.vocab_size + 1) / 2:.1f} of {found.vocab_size}",
        tables={
            "By depth": Table(("depth", "KL to the last", "mean rank of the true token"), means),
            "By token": Table(("position", "token", "next", *names, "rank"), tuple(rows)),
        },
        python="bdh.lens.logit_lens(model, text)",
    )


def attribution_panel(found: Attribution) -> Panel:
    """Show which neurons made a logit."""
    token = token_names([found.token])[0]
    other = "the mean of all" if found.against is None else repr(token_names([found.against])[0])
    named, everyone = len(found.neurons), found.firing
    rows = tuple((one.level, one.neuron, one.activation, one.part) for one in found.neurons)
    sums: list[tuple[Cell, ...]] = [("embedding", found.embedding)]
    sums += [(f"neurons of level {level}", part) for level, part in enumerate(found.levels)]
    sums += [(f"HiPPO at level {level}", part) for level, part in enumerate(found.recalled) if part]
    return Panel(
        key="attribution",
        title=f"What made the logit of {token!r} after token {found.position}",
        note=f"The logit less that of {other} is {found.logit:.4g}: the exact sum of these parts, with the divisors of "
        "the norms as they were. The direct part only: what a neuron makes later levels do is counted there.",
        baseline=f"{everyone:,} (level, neuron) pairs take part; the {named} largest hold {found.share:.1%} of the sum "
        "of sizes" + (f", {named} alike ones would hold {named / everyone:.1%}" if everyone else ""),
        tables={
            "Sum": Table(("of", "part"), tuple(sums)),
            "Largest parts": Table(("level", "neuron", "xy", "part"), rows),
        },
        python=f"bdh.lens.attribute_logit(model, text, {found.position}, token={found.token}, against={found.against})",
    )


def attention_panel(found: Attention) -> Panel:
    """Show the signed scores of a text at a level."""
    shares = tuple(
        (number, head.negative, head.init_negative, head.weight, head.init_weight)
        for number, head in enumerate(found.heads)
    )
    shown = token_names(found.ids)
    largest: list[tuple[Cell, ...]] = []
    for number, head in enumerate(found.heads):
        cells = [(score, t, s) for t, row in enumerate(head.scores) for s, score in enumerate(row)]
        best = sorted(cells, key=lambda cell: -abs(cell[0]))[:12]
        largest += [(number, t, shown[t], s, shown[s], score) for score, t, s in best]
    return Panel(
        key=f"attention-{found.level}",
        title=f"Signed attention, level {found.level}",
        note="How much each token (row) reads of each token before it (column): purple + adds what was written, orange "
        "- takes it off. There is no softmax: scores are no shares. The deeper the colour the larger "
        "the score, by its root, within a head"
        + (f"; the last {SHOWN_TOKENS} tokens are drawn." if len(shown) > SHOWN_TOKENS else "."),
        baseline="random initialisation, negative scores by head: "
        + ", ".join("none" if head.init_negative is None else f"{head.init_negative:.1%}" for head in found.heads)
        + "; here "
        + ", ".join("none" if head.negative is None else f"{head.negative:.1%}" for head in found.heads),
        pictures=tuple(_scores(number, head, shown) for number, head in enumerate(found.heads)),
        tables={
            "Negative scores: share of their number and of their size": Table(
                ("head", "negative", "random", "by size", "random, by size"), shares
            ),
            "Largest scores": Table(("head", "reads", "token", "of", "written by", "score"), tuple(largest)),
        },
        python=f"bdh.lens.signed_attention(model, text, level={found.level})",
    )


def _scores(number: int, head: HeadAttention, shown: Sequence[str]) -> Picture:
    """A triangle of cells, with signs where there is room."""
    first = max(0, len(shown) - SHOWN_TOKENS)
    count, cell, left, top = len(shown) - first, 15, 60, 30
    most = max((abs(score) for row in head.scores[first:] for score in row[first:]), default=0.0) or 1.0
    parts = [text(0, 14, f"head {number}: largest score {most:.3g}", "name")]
    for row in range(count):
        y = top + row * cell
        parts.append(text(left - 6, y + 11, shown[first + row], "char", "end"))
        parts.append(text(left + (row + 0.5) * cell, top + count * cell + 12, shown[first + row], "char", "middle"))
        for column, score in enumerate(head.scores[first + row][first:]):
            share = abs(score) / most
            if share < 0.02:
                continue
            colour, x = _POSITIVE if score > 0 else _NEGATIVE, left + column * cell
            box = f'x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}"'
            parts.append(f'<rect {box} fill="{colour}" fill-opacity="{share**0.5:.2f}"/>')
            # on a dark cell the colour of the words would not be seen
            ink, sign = ' fill="#fff"' if share > 0.25 else "", "+" if score > 0 else "−"
            parts.append(f'<text{ink} x="{x + cell / 2 - 0.5}" y="{y + 11}" text-anchor="middle">{sign}</text>')
    label = f"signed scores of head {number}"
    return picture(max(320, left + count * cell + 12), top + count * cell + 22, label, parts)
