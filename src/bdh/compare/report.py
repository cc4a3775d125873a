"""A comparison as one HTML file that needs no network and no script: figures, curves, seeds, rates, settings."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Literal

from bdh.compare.chart import Line, chart, css, ticks
from bdh.compare.results import Comparison, Contender
from bdh.compare.terminal import READING, interval, signed
from bdh.files import replacing_file
from bdh.planning.terminal import duration

MANY = 4
"""From so many others on a title counts them instead of naming them."""


def write_report(found: Comparison, path: str | os.PathLike[str]) -> Path:
    """Write a comparison as one self-contained HTML file, all of it or nothing.

    Args:
        found: the comparison.
        path: the file; one that exists is replaced.

    Returns:
        The path written.

    Raises:
        ValueError: its folder does not exist.
    """
    target = Path(path)
    with replacing_file(target) as work:
        work.write_text(render(found), encoding="utf-8")
    return target


def render(found: Comparison) -> str:
    """Return the page of `write_report`."""
    # the look of the other report, and what is drawn here only
    style = _part("bdh.lens", "page.css") + _part("bdh.compare", "compare.css")
    hashed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    first, *others = (c.name for c in found.contenders)
    names = ", ".join((first, *others)) if len(others) < MANY else f"{first} and {len(others)} others"
    values = {
        "title": escape(f"{names} on {found.settings['text']}"),
        "style": style,
        "style_hash": f"sha256-{hashed}",
        "facts": _facts(found),
        "reading": escape("Lowest loss on fixed validation windows, in nats per byte. " + READING),
        "table": _figures(found),
        "notes": _notes(found),
        "curves_note": escape(
            "Lines are means over seeds, bands reach from the lowest seed to the highest. Seconds are those of "
            "optimiser steps alone, averaged over seeds. The steep beginning is cut off above."
        ),
        "legend": _legend(found),
        "loss_steps": _curves(found, "step", "loss", "validation loss, nats per byte", late=True),
        "loss_seconds": _curves(found, "seconds", "loss", "validation loss, nats per byte", late=True),
        "dots": _dots(found),
        "runs": _runs(found),
        "x_steps": _curves(found, "step", "x", "x active", percent=True),
        "xy_steps": _curves(found, "step", "xy", "xy active", percent=True),
        "settings_note": escape(
            f"{found.equality}. Runs of equal seed see the same batches in the same order. Optimiser (AdamW), schedule "
            "and evaluation windows are the same for all; what differs stands here."
        ),
        "settings": _settings(found),
        "machine": escape(_machine(found)),
        "command": f"<code>{escape(found.command)}</code>" if found.command else "",
    }
    # one pass: a "{{name}}" inside a value stays what it is
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], _part("bdh.compare", "compare.html"))


def _part(room: str, name: str) -> str:
    return files(room).joinpath(name).read_text(encoding="utf-8")


def _facts(found: Comparison) -> str:
    told = found.settings
    train = found.contenders[0].train
    facts = {
        "Made equal": found.equality,
        "Text": f"{told['text']}, {told['training_bytes']:,} bytes to learn, {told['validation_bytes']:,} to validate",
        "Model size": told["model_size"],
        "Batch": f"{train['batch_size'] * train['grad_acc_steps']} × {train['block_size']} bytes",
        "Seeds": ", ".join(map(str, told["seeds"])),
    }
    return "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table of cells that are HTML already; the columns after the first `left` hold numbers."""

    def kind(at: int) -> str:
        return "" if at < left else ' class="num"'

    titles = "".join(f'<th scope="col"{kind(at)}>{escape(title)}</th>' for at, title in enumerate(head))
    body = "".join(
        "<tr>" + "".join(f"<td{kind(at)}>{cell}</td>" for at, cell in enumerate(row)) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"


def _name(c: Contender) -> str:
    return f'<span class="name">{escape(c.name)}</span>'


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _figures(found: Comparison) -> str:
    first = found.contenders[0]
    head = ["Variant", "Parameters", "Seeds", "Best loss", f"Minus {first.name}", "x active", "xy active"]
    head += ["Tokens/s", "Steps", "Training"]
    rows = []
    for c in found.contenders:
        speed, seconds = c.mean("tokens_per_s"), c.mean("seconds")
        rows.append(
            [
                f"{_name(c)}<br><small>{escape(c.about)}</small>",
                f"{c.parameters:,}",
                str(len(c.sound)),
                interval(c.best).replace("-", "–"),
                "" if c is first else signed(found.difference(c)).replace("-", "–"),
                _share(c.mean("x")),
                _share(c.mean("xy")),
                "–" if speed is None else f"{speed:,.0f}",
                f"{c.train['max_steps']:,}",
                "–" if seconds is None else duration(seconds),
            ]
        )
    return _table(head, rows)


def _notes(found: Comparison) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in found.notes)
    return f'<ul class="notes">{items}</ul>' if items else ""


def _legend(found: Comparison) -> str:
    items = "".join(f'<li><i class="{css(at)}"></i>{_name(c)}</li>' for at, c in enumerate(found.contenders))
    return f'<ul class="legend">{items}</ul>'


def _curves(
    found: Comparison,
    over: Literal["step", "seconds"],
    name: str,
    title: str,
    *,
    percent: bool = False,
    late: bool = False,
) -> str:
    lines = []
    for at, c in enumerate(found.contenders):
        points = [(float(getattr(p, over)), p.mean, p.low, p.high) for p in c.curve(name)]
        lines.append(Line(c.name, at, points))
    label = "optimiser steps" if over == "step" else "seconds of training"
    return chart(lines, title=title, x_label=label, percent=percent, late=late)


def _dots(found: Comparison) -> str:
    """One row per variant: its seeds as dots, their mean as a bar."""
    rows = [(at, c) for at, c in enumerate(found.contenders) if c.sound]
    if not rows:
        return ""
    losses = [loss for _, c in rows for loss in c.losses.values()]
    room = 0.05 * (max(losses) - min(losses)) or 0.01
    low, high = min(losses) - room, max(losses) + room
    tall, left, wide = 26, 240, 1000

    def x(value: float) -> float:
        return left + (wide - left - 20) * (value - low) / (high - low)

    bottom = tall * len(rows) + 4
    marks = []
    for tick in ticks(low, high):
        marks.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="0" y2="{bottom}"/>')
        marks.append(f'<text x="{x(tick):.1f}" y="{bottom + 15}" text-anchor="middle">{tick:.5g}</text>')
    for row, (at, c) in enumerate(rows):
        y = tall * row + tall / 2 + 2
        short = c.name if len(c.name) <= 38 else c.name[:37] + "…"
        marks.append(f'<text class="value" x="{left - 14}" y="{y + 4}" text-anchor="end">{escape(short)}</text>')
        for seed, loss in c.losses.items():
            title = f"<title>{escape(c.name)}, seed {seed}: {loss:.4f}</title>"
            marks.append(f'<circle class="seed {css(at)}" cx="{x(loss):.1f}" cy="{y}" r="5">{title}</circle>')
        assert c.best is not None
        middle = x(c.best.mean)
        marks.append(f'<line class="mean {css(at)}" x1="{middle:.1f}" x2="{middle:.1f}" y1="{y - 9}" y2="{y + 9}"/>')
    label = "best validation loss of every run, by variant"
    return f'<svg viewBox="0 0 {wide} {bottom + 20}" role="img" aria-label="{label}">{"".join(marks)}</svg>'


def _runs(found: Comparison) -> str:
    head = ["Variant", "Seed", "Best loss", "Last loss", "x active", "Tokens/s", "Seconds"]
    rows = []
    for c in found.contenders:
        for run in c.runs:
            speed = "–" if run.tokens_per_s is None else f"{run.tokens_per_s:,.0f}"
            if run.failed:
                rows.append([_name(c), str(run.seed), "failed", "–", "–", speed, "–"])
                continue
            last = run.evaluations[-1]
            losses = [f"{run.best:.4f}", f"{last.loss:.4f}"]
            rows.append([_name(c), str(run.seed), *losses, _share(last.x), speed, f"{run.seconds:.1f}"])
    return _table(head, rows)


def _settings(found: Comparison) -> str:
    """What differs between the variants as columns of its own, then all the rest once."""
    trains = [c.train for c in found.contenders]
    differing = [name for name in trains[0] if any(t[name] != trains[0][name] for t in trains)]
    differing += [] if "learning_rate" in differing else ["learning_rate"]
    rows = [
        [_name(c), *(escape(f"{c.train[name]}") for name in differing), duration(c.planned_seconds_per_step)]
        for c in found.contenders
    ]
    table = _table(["Variant", *differing, "a step, as timed before"], rows)
    rest = ", ".join(f"{name} {value}" for name, value in trains[0].items() if name not in differing)
    return f"{table}<details><summary>The same for all</summary><pre>{escape(rest)}</pre></details>"


def _machine(found: Comparison) -> str:
    m = found.machine
    memory = f", {m['memory_bytes'] / 2**30:.0f} GiB" if m["memory_bytes"] else ""
    device = m["gpu"] or "no GPU"
    packages = ", ".join(f"{name} {version}" for name, version in m["packages"].items())
    return f"{m['processor']}, {m['cores']} cores{memory}; {device}; {m['threads']} threads; {packages}; {m['date']}"
