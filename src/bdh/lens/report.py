"""An inspection as panels, and as one HTML file that needs no network."""

from __future__ import annotations

import base64
import functools
import math
import os
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from bdh.lens import views
from bdh.lens.activity import STEPS
from bdh.lens.inspection import Inspection, Telling, plain
from bdh.lens.mechanisms import Mechanisms
from bdh.lens.page import write_page
from bdh.lens.panel import Panel, Table
from bdh.lens.panels import draw_activity, figures
from bdh.lens.svg import Picture, Plot, Scale, picture
from bdh.lens.svg import text as words_at
from bdh.lens.wording import sentences

_SIGNALS = {
    "x": ("x", "neurons that fire"),
    "y": ("y", "gate, before the product"),
    "xy": ("x · y", "gated activity, the paper's y"),
}


def write_report(
    inspection: Inspection,
    path: str | os.PathLike[str],
    *,
    command: str | None = None,
    before: Sequence[Panel] = (),
    after: Sequence[Panel] = (),
) -> Path:
    """Write an inspection as one self-contained HTML file, all of it or nothing.

    Args:
        inspection: what `inspect_text` returned.
        path: the file; one that exists is replaced.
        command: the command line that makes this report, for the page's "copy command".
        before: panels above those of the inspection.
        after: panels below them.

    Returns:
        The path written.

    Raises:
        ValueError: the page would be larger than `page.MAX_BYTES`, or the folder does not exist.
    """
    shown = "".join(view.shown.replace("␣", " ") for view in inspection.bytes)
    return write_page(
        [*before, *inspection_panels(inspection, command or ""), *after],
        path,
        title=f"“{_clip(shown, 110)}”",
        over="What fires",
        facts=_facts(inspection),
        command=command,
        data=_data(inspection),
        scripts=("raster.js", "report.js"),
    )


def inspection_panels(i: Inspection, command: str = "") -> list[Panel]:
    """Return what an inspection found as panels, in the order of a page.

    Args:
        i: what `inspect_text` returned.
        command: the command line that makes them.
    """
    python = (
        "import bdh\n"
        "model = bdh.load(RUN)  # and VALIDATION, the bytes of the text that it is compared with\n"
        f"found = bdh.lens.inspect_text(model, {_clip(repr(i.text), 400)}, VALIDATION, signal={i.signal!r})"
    )
    panel = functools.partial(Panel, python=python, command=command)
    usual = f"{i.n_baseline:,} bytes of validation text"
    chance = ", ".join(f"{value:.1%}" for value in i.density_init[_key(i)])
    panels = [
        panel(
            "text",
            "Text",
            _text_note(i),
            f"all 256 bytes equally likely, {math.log(256):.2f} nats; the mean here is "
            + ("not defined" if i.surprisal is None else f"{i.surprisal:.2f}"),
            tables={"All bytes": _bytes_table(i), "Strongest neurons of each byte": _strongest_table(i)},
            view=views.strip(i),
        ),
        panel(
            "raster",
            "Activation of all neurons",
            _raster_note(i),
            f"random initialisation, where {chance} of the neurons fire on this text, by level; here "
            + ", ".join(f"{value:.1%}" for value in i.density[_key(i)]),
            tables={"Strongest rows, where each peaks": _peaks_table(i)},
            pictures=(draw_activity(i.activity, [view.shown for view in i.bytes]),),
            view=views.raster(i),
        ),
        panel(
            "telling",
            "Most telling neurons",
            _telling_note(i),
            f"each neuron's own activity on {usual}",
            tables={"Neurons": _neurons_table(i.telling), "Contexts": _contexts_table(i.telling)},
            view=views.scroll("Most telling neurons", views.telling_table(i.telling)),
        ),
        panel(
            "words",
            "Words",
            f"The strongest neurons of each word by {i.rank}, each at its best byte and level; then activation and z.",
            f"each neuron's own activity on {usual}",
            tables={"Words": _words_data(i)},
            view=views.scroll("Words", views.words_table(i.words)),
        ),
        panel(
            "density",
            "Density",
            "Share of neurons that fire, averaged over the bytes of the text. Bars: this text; dots: validation text; "
            "dashed: the same text read by the model freshly initialised.",
            f"random initialisation, measured on this text, and {usual}",
            pictures=tuple(_density(i, key) for key in _SIGNALS),
            tables={"Figures": _density_table(i)},
        ),
    ]
    return panels if i.mechanisms is None else [*panels, _mechanisms(i.mechanisms, panel)]


def _key(i: Inspection) -> str:
    return i.signal.removesuffix("_sparse")


def _clip(words: str, length: int) -> str:
    return words if len(words) <= length else words[: length - 1] + "…"


def _data(i: Inspection) -> dict[str, Any]:
    """What the scripts need: the bytes and the cells of the raster; everything else is in the page already."""
    a = i.activity
    data: dict[str, Any] = plain(
        {
            "heads": {"size": i.model["n_neurons"] // i.model["n_head"], "count": i.model["n_head"]},
            "bytes": [
                {
                    "byte": view.byte,
                    "shown": view.shown.replace("␊", "↵"),
                    "surprisal": view.surprisal,
                    "next": view.next_shown.replace("␊", "↵"),
                    "p": view.next_probability,
                    "activity": view.activity,
                    "strongest": [(f.level, f.neuron, f.activation, f.z) for f in view.strongest],
                }
                for view in i.bytes
            ],
            "usual": [(*pair, *of) for pair, of in zip(i.raster.rows, i.raster.baseline, strict=True)],
            "first": [(t.firing.level, t.firing.neuron, t.firing.position) for t in i.telling[:1]],
            "raster": {"rows": a.rows, "columns": a.columns, "pooled": a.pooled, "largest": a.largest, "steps": STEPS},
        }
    )
    data["raster"]["periods"] = [float(f"{period:.3g}") for period in a.periods]
    data["raster"]["levels"] = [base64.b64encode(level).decode() for level in a.levels]
    return data


def _facts(i: Inspection) -> dict[str, str]:
    m = i.model
    return {
        "Model": f"{m['n_layer']} levels, {m['n_neurons']:,} neurons in {m['n_head']} heads, width {m['n_embd']}",
        "Parameters": f"{m['n_parameters']:,}",
        "Text": f"{len(i.text):,} bytes",
        "Surprisal": "–" if i.surprisal is None else f"{i.surprisal:.2f} nats per byte",
        "Compared with": f"{i.n_baseline:,} bytes of validation text",
        "Signal": i.signal,
    }


def _text_note(i: Inspection) -> str:
    tallest = max((view.surprisal for view in i.bytes if view.surprisal is not None), default=0.0)
    return (
        f"The bar under a byte is its surprisal, −ln p, in nats; the tallest bar is {tallest:.1f} nats. The first byte "
        "has none: nothing predicts it."
    )


def _bytes_table(i: Inspection) -> Table:
    columns = ("byte", "shown", "code", "surprisal", "expected next", "its probability", "share that fires")
    rows = tuple(
        (
            at, view.shown or "‥", f"0x{view.byte:02X}", view.surprisal, view.next_shown, view.next_probability,
            sum(view.activity) / len(view.activity),
        )
        for at, view in enumerate(i.bytes)
    )  # fmt: skip
    return Table(columns, rows)


def _strongest_table(i: Inspection) -> Table:
    columns = ("byte", "shown", "neuron", "level", "activation", "z")
    return Table(
        columns,
        tuple((at, v.shown, f.neuron, f.level, f.activation, f.z) for at, v in enumerate(i.bytes) for f in v.strongest),
    )


def _raster_note(i: Inspection) -> str:
    a, found = i.activity, [i.activity.codes(level) for level in range(len(i.activity.levels))]
    silent = sum(int((codes == 0).sum()) for codes in found) / (a.rows * a.columns * len(found))
    row = "one neuron" if a.pooled == 1 else f"{a.pooled} neighbouring neurons, the largest of them shown"
    said = (
        f"A band per level; a row is {row}, a column a byte. All {i.model['n_neurons']:,} neurons are there; where "
        "there are fewer pixels than cells a pixel is the largest of its cells: a single spike does not vanish. "
        f"{silent:.0%} of the cells are silent; the largest activation is {a.largest:.3g}"
    )
    if not i.raster.rows:
        return said + ". No neuron that fires here fires often enough in the validation text to be scored."
    most, at, byte = max((v, r, t) for r, values in enumerate(i.raster.values) for t, v in enumerate(values))
    level, neuron = i.raster.rows[at]
    head, index = divmod(neuron, i.model["n_neurons"] // i.model["n_head"])
    return said + (
        f". Of the {len(i.raster.rows)} strongest rows of {i.raster.n_pairs:,} the largest is h{head}·{index} of level "
        f"{level} at byte {byte}, “{i.bytes[byte].shown}”, with {most:.3g}."
    )


def _peaks_table(i: Inspection) -> Table:
    columns = ("neuron", "level", "byte", "activation", "usual mean", "usual s.d.", "usually fires at")
    rows = []
    for (level, neuron), values, (mean, std, rate) in zip(
        i.raster.rows, i.raster.values, i.raster.baseline, strict=True
    ):
        peak = max(range(len(values)), key=values.__getitem__)
        rows.append((neuron, level, peak, values[peak], mean, std, rate))
    return Table(columns, tuple(rows))


def _telling_note(i: Inspection) -> str:
    if not i.telling:
        return f"None: no neuron that fires here fires at {i.min_fires} or more bytes of the validation text."
    return (
        "Ranked by z, how many standard deviations the largest activation in this text lies above the neuron's mean on "
        f"validation text, among neurons that fire there at {i.min_fires} bytes or more. Ranked by activation alone, "
        "neurons that always fire would head the list. Contexts are the places of the validation text that drive the "
        "neuron most; it has read nothing to the right of the marked byte. Weights are shared, so a neuron is the "
        "same at every level: “by level” is its mean activation here (bars) and in the validation text (dots)."
    )


def _neurons_table(telling: Sequence[Telling]) -> Table:
    columns = ("neuron", "level", "byte", "z", "activation", "usual mean", "usual s.d.", "usual largest")
    rows = tuple(
        (t.firing.neuron, t.firing.level, t.firing.position, t.firing.z, t.firing.activation, t.mean, t.std, t.largest)
        for t in telling
    )
    return Table(columns, rows)


def _contexts_table(telling: Sequence[Telling]) -> Table:
    columns = ("neuron", "left", "shown", "right", "activation", "position in the validation text")
    return Table(
        columns,
        tuple(
            (t.firing.neuron, c.left, c.shown, c.right, c.activation, c.position) for t in telling for c in t.contexts
        ),
    )


def _words_data(i: Inspection) -> Table:
    columns = ("word", "neuron", "level", "byte", "activation", "z")
    return Table(
        columns,
        tuple((w.shown, f.neuron, f.level, f.position, f.activation, f.z) for w in i.words for f in w.strongest),
    )


def _density(i: Inspection, key: str) -> Picture:
    """Bars per level, the measured random-initialisation line, and a dot for the validation text."""
    here, start, usual = i.density[key], i.density_init[key], i.density_baseline[key]
    highest = max(v for d in (i.density, i.density_init, i.density_baseline) for row in d.values() for v in row)
    L, (name, meaning) = len(here), _SIGNALS[key]
    plot = Plot(Scale(0, L, 40, 320), Scale(0, max(0.1, math.ceil(highest * 10.5) / 10), 156, 40))
    for tick in plot.y.ticks():
        plot.level(tick, "grid").marks.append(words_at(34, plot.y(tick) + 4, f"{tick:.0%}", anchor="end"))
    plot.bars(range(L + 1), here, gap=0.4 * 280 / L)
    plot.line([n for level in range(L) for n in (level, level + 1)], [v for v in start for _ in (0, 1)], "two")
    plot.points([level + 0.5 for level in range(L)], usual, "whisker", 3)
    plot.marks += [words_at(0, 12, name, "name"), words_at(0, 27, meaning)]
    plot.marks.append(words_at(320, plot.y(start[-1]) - 6, "random initialisation", "two", "end"))
    step = -(-L // 8)
    for level in range(0, L, step):
        plot.marks.append(
            words_at(plot.x(level + 0.5), 171, f"level {level}" if L < 7 else f"{level}", anchor="middle")
        )
        plot.marks.append(words_at(plot.x(level + 0.5), 186, f"{here[level]:.1%}", "name", "middle"))
    label = f"{name}: " + ", ".join(
        f"level {n} {a:.1%} against {b:.1%} at random" for n, (a, b) in enumerate(zip(here, start, strict=True))
    )
    return picture(330, 192, label, [plot])


def _density_table(i: Inspection) -> Table:
    columns = ("signal", "level", "this text", "validation text", "random initialisation, measured")
    rows = tuple(
        (_SIGNALS[key][0], level, value, i.density_baseline[key][level], i.density_init[key][level])
        for key in _SIGNALS
        for level, value in enumerate(i.density[key])
    )
    return Table(columns, rows)


def _mechanisms(found: Mechanisms, panel: Callable[..., Panel]) -> Panel:
    """The panel of a model with mechanisms: pictures, the small ones side by side, then all figures in words."""
    wide: list[str] = []
    small: list[str] = []
    drawn = figures(found)
    for f in drawn:
        words = f"<figcaption>{escape(f.title)}<small>{escape(f.note)}</small></figcaption>"
        shown = views.scroll(f.title, f.picture.inline) if f.wide else f.picture.inline
        (wide if f.wide else small).append(f"<figure>{words}{shown}</figure>")
    return panel(
        "mechanisms",
        "Mechanisms",
        f"Of variant {found.variant}, on: {', '.join(found.on)}.",
        "where training started, drawn dashed, or the target that was set; each picture says which",
        pictures=tuple(f.picture for f in drawn),
        tables={"Figures": Table(("mechanism", "found"), tuple(sentences(found).items()))},
        view=f'<div class="wide-panels">{"".join(wide)}</div><div class="charts">{"".join(small)}</div>',
    )
