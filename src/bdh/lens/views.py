"""The parts of a report that are more than pictures and tables: bytes, raster, contexts, words, as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from bdh.lens.inspection import ByteView, Context, Firing, Inspection, Telling, Word
from bdh.lens.page import text


def strip(i: Inspection) -> str:
    kind = "strip dense" if len(i.bytes) > 120 else "strip"
    return (
        '<div class="modes" hidden role="group" aria-label="Colour of the bytes"></div>'
        f'<div class="{kind}" role="group" aria-label="Bytes of the text">{"".join(map(_cell, i.bytes))}</div>'
        '<div class="detail" id="byte" hidden></div>'
    )


def _cell(view: ByteView) -> str:
    # a continuation byte belongs to the character before it
    shown = view.shown or "‥"
    glyph = f'<b class="hex">{text(shown[2:])}</b>' if shown.startswith("0x") else f"<b>{text(shown)}</b>"
    surprisal = "" if view.surprisal is None else f", surprisal {view.surprisal:.2f} nats"
    line = "<hr>" if view.byte == 0x0A else ""
    return f'<button title="0x{view.byte:02X}{surprisal}">{glyph}<i></i></button>{line}'


def raster(i: Inspection) -> str:
    return (
        '<div class="plot" hidden><div class="modes" role="group" aria-label="Order and zoom"></div>'
        '<canvas tabindex="0" role="application" aria-label="Activation raster: arrow keys move, square brackets '
        'change the level, Enter pins, Escape unpins, plus and minus zoom, question mark lists all keys" '
        'aria-describedby="raster-note"></canvas>'
        '<div class="under"><output aria-live="polite"></output>'
        '<span class="ramp"><span>silent</span><i></i><span class="most"></span></span></div></div>'
        '<noscript><p class="note">The picture needs JavaScript; the tables hold its figures.</p></noscript>'
    )


def telling_table(telling: Sequence[Telling]) -> str:
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
    where = f"{text(c.left)}<mark>{text(c.shown)}</mark>{text(c.right)}"
    return f'<li><span class="num">{c.activation:.3g}</span><span class="where">{where}</span></li>'


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


def words_table(words: Sequence[Word]) -> str:
    rows = "".join(
        f'<tr><th scope="row" class="word">{text(word.shown)}</th><td class="num">{word.start}</td>'
        f"<td>{_chips(word.strongest)}</td></tr>"
        for word in words
    )
    return _table([("Word", ""), ("At byte", "num"), ("Strongest neurons", "")], f"<tbody>{rows}</tbody>")


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


def scroll(label: str, inside: str) -> str:
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">{inside}</div>'
