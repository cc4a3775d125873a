"""An inspection as one HTML file that needs no network: text, raster, telling neurons, words, density."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from bdh.files import replacing_file
from bdh.lens.inspection import ByteView, Context, Firing, Inspection, Telling, Word, plain
from bdh.lens.mechanisms import Mechanisms
from bdh.lens.panels import figures
from bdh.lens.wording import sentences

MAX_BYTES = 5_000_000
"""Largest report; beyond this a page is slow to open and to send."""

_SIGNALS = {
    "x": ("x", "neurons that fire"),
    "y": ("y", "gate, before the product"),
    "xy": ("x · y", "gated activity, the paper's y"),
}


def write_report(inspection: Inspection, path: str | os.PathLike[str], *, command: str | None = None) -> Path:
    """Write an inspection as one self-contained HTML file, all of it or nothing.

    Args:
        inspection: what `inspect_text` returned.
        path: the file; one that exists is replaced.
        command: the command line that makes this report, for the page's "copy command".

    Returns:
        The path written.

    Raises:
        ValueError: the page would be larger than `MAX_BYTES`, or the folder does not exist.
    """
    target = Path(path)
    page = render(inspection, command).encode()
    if len(page) > MAX_BYTES:
        raise ValueError(
            f"report: expected at most {MAX_BYTES:,} bytes, got {len(page):,} for a text of {len(inspection.text):,} "
            "bytes; inspect a shorter text or fewer neurons per byte"
        )
    with replacing_file(target) as work:
        work.write_bytes(page)
    return target


def render(inspection: Inspection, command: str | None = None) -> str:
    """Return the page of `write_report`."""
    i = inspection
    style, script = _part("report.css") + _part("panels.css"), _part("report.js")
    shown = "".join(view.shown.replace("␣", " ") for view in i.bytes)
    surprises = [view.surprisal for view in i.bytes if view.surprisal is not None]
    values = {
        "title": _text(f"What fires: {_clip(shown, 60)}"),
        "heading": f"“{_text(_clip(shown, 110))}”",
        "style": style,
        "script": script,
        "style_hash": _hash(style),
        "script_hash": _hash(script),
        "facts": _facts(i),
        "strip": "".join(map(_cell, i.bytes)),
        "strip_kind": "strip dense" if len(i.bytes) > 120 else "strip",
        "tallest": f"{max(surprises, default=0.0):.1f}",
        "bytes": _bytes_table(i.bytes),
        "raster_summary": _text(_raster_summary(i)),
        "telling_note": escape(_telling_note(i)),
        "telling": _telling_table(i.telling),
        "words_note": escape(_words_note(i)),
        "words": _words_table(i.words),
        "charts": "".join(_chart(i, key) for key in _SIGNALS),
        "density": _density_table(i),
        "mechanisms": "" if i.mechanisms is None else _mechanisms(i.mechanisms),
        "command": f"<code>{escape(command)}</code>" if command else "",
        # a "</script>" in the text must not end the block that holds it
        "data": json.dumps(_data(i, command), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    # one pass: a "{{name}}" inside the inspected text stays what it is
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], _part("report.html"))


def _part(name: str) -> str:
    return files("bdh.lens").joinpath(name).read_text(encoding="utf-8")


def _hash(source: str) -> str:
    """The name by which the content security policy allows one inline block."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def _text(shown: str) -> str:
    """Escape bytes made readable; a return arrow for the newline, since few fonts have its control picture."""
    return escape(shown.replace("␊", "↵"))


def _clip(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _data(i: Inspection, command: str | None) -> dict[str, Any]:
    """What the script needs: the raster and the bytes; everything else is in the page already."""
    data: dict[str, Any] = plain(
        {
            "command": command,
            "heads": {"size": i.model["n_neurons"] // i.model["n_head"]},
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
            "baseline": i.raster.baseline,
            "telling": [(t.firing.level, t.firing.neuron, t.firing.position) for t in i.telling],
        }
    )
    # five digits are more than a colour or a caption shows, and a third of the page
    values = [[float(f"{value:.5g}") for value in row] for row in i.raster.values]
    return data | {"raster": {"rows": i.raster.rows, "values": [[v or 0 for v in row] for row in values]}}


def _facts(i: Inspection) -> str:
    m = i.model
    facts = {
        "Model": f"{m['n_layer']} levels, {m['n_neurons']:,} neurons in {m['n_head']} heads, width {m['n_embd']}",
        "Parameters": f"{m['n_parameters']:,}",
        "Text": f"{len(i.text):,} bytes",
        "Surprisal": "–" if i.surprisal is None else f"{i.surprisal:.2f} nats per byte",
        "Compared with": f"{i.n_baseline:,} bytes of validation text",
        "Signal": i.signal,
    }
    return "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())


def _cell(view: ByteView) -> str:
    # a continuation byte belongs to the character before it
    shown = view.shown or "‥"
    glyph = f'<b class="hex">{_text(shown[2:])}</b>' if shown.startswith("0x") else f"<b>{_text(shown)}</b>"
    surprisal = "" if view.surprisal is None else f", surprisal {view.surprisal:.2f} nats"
    line = "<hr>" if view.byte == 0x0A else ""
    return f'<button title="0x{view.byte:02X}{surprisal}">{glyph}<i></i></button>{line}'


def _chips(found: Iterable[Firing], byte: int | None = None) -> str:
    """Neurons as buttons that the script links to the raster."""
    return (
        '<div class="chips">'
        + "".join(
            f'<button class="chip" data-level="{f.level}" data-neuron="{f.neuron}" '
            f'data-byte="{f.position if byte is None else byte}">h{f.head}·{f.index} '
            f"<small>level {f.level}, {f.activation:.3g}, z {_z(f)}</small></button>"
            for f in found
        )
        + "</div>"
    )


def _z(firing: Firing) -> str:
    return "–" if firing.z is None else f"{firing.z:.1f}"


def _table(head: Sequence[tuple[str, str]], body: str, kind: str = "") -> str:
    """A table; `head` lists (title, class of the column)."""
    titles = "".join(f'<th scope="col" class="{css}">{title}</th>' for title, css in head)
    return f'<table class="{kind}"><thead><tr>{titles}</tr></thead>{body}</table>'


def _bytes_table(views: Sequence[ByteView]) -> str:
    rows = "".join(
        f'<tr><th scope="row" class="byte">{_text(view.shown or "‥")}</th><td class="num">{at}</td>'
        f'<td class="num">{"–" if view.surprisal is None else format(view.surprisal, ".2f")}</td>'
        f'<td><span class="byte">{_text(view.next_shown)}</span> {view.next_probability:.2f}</td>'
        f"<td>{_chips(view.strongest, at)}</td></tr>"
        for at, view in enumerate(views)
    )
    head = [("Byte", ""), ("Position", "num"), ("Surprisal", "num"), ("Expected next", ""), ("Strongest neurons", "")]
    return _table(head, f"<tbody>{rows}</tbody>")


def _raster_summary(i: Inspection) -> str:
    shown = len(i.raster.rows)
    if not shown:
        return "No neuron to show: none that fires here fires often enough in the validation text."
    levels = [level for level, _ in i.raster.rows]
    per_level = ", ".join(f"{levels.count(level)} at level {level}" for level in sorted(set(levels)))
    most, row, byte = max((v, r, t) for r, values in enumerate(i.raster.values) for t, v in enumerate(values))
    level, neuron = i.raster.rows[row]
    head, index = divmod(neuron, i.model["n_neurons"] // i.model["n_head"])
    silent = sum(v == 0 for values in i.raster.values for v in values) / (shown * len(i.bytes))
    return (
        f"{shown} of {i.raster.n_pairs:,} rows (level × neuron), the strongest of each byte: {per_level}. "
        f"{silent:.0%} of the cells are silent. The largest activation is {most:.3g}: neuron h{head}·{index} of level "
        f"{level} at byte {byte}, “{i.bytes[byte].shown}”. Rows are ordered by where they peak."
    )


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


def _words_note(i: Inspection) -> str:
    by = "z" if i.rank == "z" else "activation"
    return f"The strongest neurons of each word by {by}, each at its best byte and level; then activation and z."


def _telling_table(telling: Sequence[Telling]) -> str:
    if not telling:
        return ""
    head = [
        ("Neuron", ""), ("At byte", "num wide"), ("Level", "num"), ("z", "num"), ("Activation", "num"),
        ("Mean ± s.d.", "num wide"), ("Largest", "num wide"), ("Fires at", "num wide"), ("By level", ""),
    ]  # fmt: skip
    return _table(head, "".join(map(_telling_rows, telling)), "neurons")


def _telling_rows(t: Telling) -> str:
    f = t.firing
    name = (
        f'<button class="chip" data-level="{f.level}" data-neuron="{f.neuron}" data-byte="{f.position}">'
        f"h{f.head}·{f.index} <small>#{f.neuron}</small></button>"
    )
    figures = "".join(
        f'<td class="{css}">{value}</td>'
        for css, value in (
            ("num wide", f.position), ("num", f.level), ("num", _z(f)), ("num", f"{f.activation:.3g}"),
            ("num wide", f"{t.mean:.2g} ± {t.std:.2g}"), ("num wide", f"{t.largest:.3g}"),
            ("num wide", f"{100 * f.rate:.1f} %"), ("", _spark(t)),
        )
    )  # fmt: skip
    more = "".join(map(_place, t.contexts[1:]))
    contexts = f'<ul class="contexts">{_place(t.contexts[0])}</ul>' if t.contexts else "never above zero"
    if more:
        contexts += f'<details><summary>{len(t.contexts) - 1} more</summary><ul class="contexts">{more}</ul></details>'
    row = f'<tr><th scope="row">{name}</th>{figures}</tr><tr><td colspan="9">{contexts}</td></tr>'
    return f'<tbody data-neuron="{f.neuron}">{row}</tbody>'


def _place(c: Context) -> str:
    text = f"{_text(c.left)}<mark>{_text(c.shown)}</mark>{_text(c.right)}"
    return f'<li><span class="num">{c.activation:.3g}</span><span class="where">{text}</span></li>'


def _spark(t: Telling) -> str:
    """Mean activation by level: bars for the text, dots for the validation text."""
    most = max(*t.text_profile, *t.baseline_profile) or 1.0
    step = 96 / len(t.text_profile)
    marks = []
    for level, (here, usual) in enumerate(zip(t.text_profile, t.baseline_profile, strict=True)):
        tall, x = 24 * max(0.0, here) / most, level * step
        marks.append(
            f'<rect class="bar" x="{x + 2:.1f}" y="{28 - tall:.1f}" width="{step - 4:.1f}" height="{tall:.1f}"/>'
        )
        marks.append(
            f'<circle class="dot" cx="{x + step / 2:.1f}" cy="{28 - 24 * max(0.0, usual) / most:.1f}" r="2.5"/>'
        )
    label = "; ".join(
        f"level {level}: {here:.2g} here, {usual:.2g} usually"
        for level, (here, usual) in enumerate(zip(t.text_profile, t.baseline_profile, strict=True))
    )
    start = f'<svg class="spark" viewBox="0 0 96 30" role="img" aria-label="{label}"><title>{label}</title>'
    return start + "".join(marks) + "</svg>"


def _words_table(words: Sequence[Word]) -> str:
    rows = "".join(
        f'<tr><th scope="row" class="word">{_text(word.shown)}</th><td class="num">{word.start}</td>'
        f"<td>{_chips(word.strongest)}</td></tr>"
        for word in words
    )
    return _table([("Word", ""), ("At byte", "num"), ("Strongest neurons", "")], f"<tbody>{rows}</tbody>")


def _chart(i: Inspection, key: str) -> str:
    """Bars per level with the measured random-initialisation line and a dot for the validation text."""
    here, start, usual = i.density[key], i.density_init[key], i.density_baseline[key]
    highest = max(v for d in (i.density, i.density_init, i.density_baseline) for row in d.values() for v in row)
    ceiling = max(0.1, -(-highest * 1.05 // 0.1) * 0.1)
    step = 290 / len(here)
    wide = min(46.0, step * 0.6)

    def y(value: float) -> float:
        return 150 - 130 * value / ceiling

    marks = []
    for tick in (0.0, ceiling / 2, ceiling):
        marks.append(f'<line class="grid" x1="30" x2="320" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        marks.append(f'<text x="24" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.0%}</text>')
    for level, value in enumerate(here):
        x, centre = 30 + level * step + (step - wide) / 2, 30 + (level + 0.5) * step
        marks.append(
            f'<rect class="bar" x="{x:.1f}" y="{y(value):.1f}" width="{wide:.1f}" '
            f'height="{150 - y(value):.1f}" rx="2"/>'
        )
        marks.append(f'<circle class="dot" cx="{centre:.1f}" cy="{y(usual[level]):.1f}" r="3.5"/>')
        marks.append(f'<text x="{centre:.1f}" y="167" text-anchor="middle">level {level}</text>')
        marks.append(f'<text class="value" x="{centre:.1f}" y="183" text-anchor="middle">{value:.1%}</text>')
    line = " ".join(
        f"H{30 + (level + 1) * step:.1f} V{y(start[min(level + 1, len(start) - 1)]):.1f}" for level in range(len(start))
    )
    marks.append(f'<path class="init" d="M30 {y(start[0]):.1f} {line}"/>')
    marks.append(
        f'<text class="init-label" x="320" y="{y(start[-1]) - 7:.1f}" text-anchor="end">'
        "random initialisation, measured</text>"
    )
    name, meaning = _SIGNALS[key]
    label = f"{name}: " + ", ".join(
        f"level {n} {a:.1%} against {b:.1%} at random" for n, (a, b) in enumerate(zip(here, start, strict=True))
    )
    return (
        f"<figure><figcaption>{name}<small>{meaning}</small></figcaption>"
        f'<svg viewBox="0 0 320 190" role="img" aria-label="{label}">{"".join(marks)}</svg></figure>'
    )


def _mechanisms(found: Mechanisms) -> str:
    """The section of a model with mechanisms: pictures, the small ones side by side, then all figures in words."""
    wide: list[str] = []
    small: list[str] = []
    for f in figures(found):
        words = f"<figcaption>{escape(f.title)}<small>{escape(f.note)}</small></figcaption>"
        drawn = f.picture.inline
        if f.wide:
            drawn = f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(f.title)}">{drawn}</div>'
        (wide if f.wide else small).append(f"<figure>{words}{drawn}</figure>")
    rows = "".join(
        f'<tr><th scope="row">{name}</th><td>{escape(said)}</td></tr>' for name, said in sentences(found).items()
    )
    return (
        '<section id="mechanisms"><div class="head"><h2>Mechanisms</h2></div>'
        f'<p class="note">Of variant {escape(found.variant)}, on: {", ".join(found.on)}.</p>'
        f'<div class="wide-panels">{"".join(wide)}</div><div class="charts">{"".join(small)}</div>'
        f"<details><summary>Figures</summary>{_table([('Mechanism', ''), ('Found', '')], rows)}</details></section>"
    )


def _density_table(i: Inspection) -> str:
    rows = "".join(
        f'<tr><th scope="row">{_SIGNALS[key][0]}, level {level}</th><td class="num">{value:.2%}</td>'
        f'<td class="num">{i.density_baseline[key][level]:.2%}</td>'
        f'<td class="num">{i.density_init[key][level]:.2%}</td></tr>'
        for key in _SIGNALS
        for level, value in enumerate(i.density[key])
    )
    head = [
        ("Signal", ""),
        ("This text", "num"),
        ("Validation text", "num"),
        ("Random initialisation, measured", "num"),
    ]
    return _table(head, f"<tbody>{rows}</tbody>")
