"""One page of panels that needs no network: the frame that reports and notebooks share."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bdh.files import replacing_file

if TYPE_CHECKING:  # a panel shows itself with this page
    from bdh.lens.panel import Panel

MAX_BYTES = 5_000_000
"""Largest page; beyond this it is slow to open and to send."""


def write_page(
    panels: Sequence[Panel],
    path: str | os.PathLike[str],
    *,
    title: str,
    over: str = "Findings",
    facts: Mapping[str, str] | None = None,
    command: str | None = None,
    data: Mapping[str, Any] | None = None,
    scripts: Sequence[str] = (),
) -> Path:
    """Write panels as one self-contained HTML file, all of it or nothing.

    Args:
        panels: in the order of the page, each with a key of its own.
        path: the file; one that exists is replaced.
        title: the heading.
        over: a word or two above the heading.
        facts: names and values below the heading.
        command: the command line that makes this page.
        data: what `scripts` read.
        scripts: files of this room that run after `page.js`.

    Returns:
        The path written.

    Raises:
        ValueError: two panels with one key, the page would be larger than `MAX_BYTES`, or the folder does not exist.

    Examples:
        >>> import tempfile
        >>> from bdh.lens.panel import Panel, Table
        >>> panel = Panel("rates", "Rates", "How often.", "chance: 0.5", tables={"Rates": Table(("rate",), ((0.25,),))})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_page([panel], folder + "/page.html", title="Rates").name
        'page.html'
    """
    target = Path(path)
    whole = render(panels, title=title, over=over, facts=facts, command=command, data=data, scripts=scripts).encode()
    if len(whole) > MAX_BYTES:
        raise ValueError(
            f"report: expected at most {MAX_BYTES:,} bytes, got {len(whole):,}; "
            "inspect a shorter text, or write fewer panels"
        )
    with replacing_file(target) as work:
        work.write_bytes(whole)
    return target


def render(
    panels: Sequence[Panel],
    *,
    title: str,
    over: str = "Findings",
    facts: Mapping[str, str] | None = None,
    command: str | None = None,
    data: Mapping[str, Any] | None = None,
    scripts: Sequence[str] = (),
) -> str:
    """Return the page of `write_page`."""
    keys = [panel.key for panel in panels]
    if twice := {key for key in keys if keys.count(key) > 1}:
        raise ValueError(f"panels: expected a key of its own for each, got {', '.join(sorted(twice))} more than once")
    style = "".join(map(part, ("page.css", "panels.css")))
    script = "".join(map(part, ("page.js", *scripts)))
    contents = "".join(f'<li><a href="#{panel.key}">{escape(panel.title)}</a></li>' for panel in panels)
    values = {
        "title": text(title),
        "over": escape(over),
        "style": style,
        "script": script,
        "style_hash": _hash(style),
        "script_hash": _hash(script),
        "facts": "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in (facts or {}).items()),
        "contents": contents if len(panels) > 1 else "",
        "panels": "".join(panel.html() for panel in panels),
        "command": f"<code>{escape(command)}</code>" if command else "",
        # a "</script>" in the text must not end the block that holds it
        "data": json.dumps(data or {}, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    # one pass: a "{{name}}" inside what is shown stays what it is
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], part("page.html"))


def notebook(panel: Panel) -> str:
    """Return a panel for a notebook: its page in a frame of its own, so that no rule of one reaches the other."""
    # a view may need the scripts and the data of a report; the pictures need nothing
    page = render([dataclasses.replace(panel, view="") if panel.pictures else panel], title=panel.title)
    tall = 300 + sum(picture.height + 24 for picture in panel.pictures) + 44 * len(panel.tables)
    # scripts may run, and reach nothing but the frame
    return (
        f'<iframe sandbox="allow-scripts" title="{escape(panel.title)}" width="100%" height="{min(tall, 900)}" '
        f'style="border:0;resize:vertical" srcdoc="{escape(page)}"></iframe>'
    )


def part(name: str) -> str:
    """Return a file of this room."""
    return files("bdh.lens").joinpath(name).read_text(encoding="utf-8")


def text(shown: str) -> str:
    """Escape bytes made readable; a return arrow for the newline, since few fonts have its control picture."""
    return escape(shown.replace("␊", "↵"))


def _hash(source: str) -> str:
    """The name by which the content security policy allows one inline block."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
