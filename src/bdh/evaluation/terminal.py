"""An evaluation as a person sees it, while it goes on and when it is done."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from bdh.compare.statistics import Estimate
from bdh.compare.terminal import interval, signed
from bdh.data import Tokenizer
from bdh.evaluation.bits import Bits
from bdh.evaluation.choices import Choices
from bdh.evaluation.positions import Positions
from bdh.evaluation.reading import Told
from bdh.evaluation.recall import Recall
from bdh.evaluation.texts import Text

SAID_EVERY = 10.0
"""Seconds between lines where there is no terminal."""


@contextmanager
def showing(console: Console, what: str) -> Iterator[Told]:
    """Show how far something is: a live bar on a terminal, a line now and then elsewhere."""
    if not console.is_terminal:
        last = time.monotonic()

        def say(done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last > SAID_EVERY:
                last = time.monotonic()
                console.print(f"{what}: {done:,} of {total:,}", markup=False, soft_wrap=True)

        yield say
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def print_text(text: Text, tokenizer: Tokenizer, console: Console) -> None:
    """Print what is scored."""
    console.print(f"{'text':20} {text.name}, {text.part}; tokens: {tokenizer.name}", markup=False, soft_wrap=True)
    if not text.lossless:
        console.print("warning: the tokenizer does not keep this text: bits per byte are not exact", soft_wrap=True)


def print_bits(found: Bits, unit: str, console: Console) -> None:
    """Print how well a text is predicted."""
    windows = f"windows of {found.block_size:,} {unit}s, stride {found.stride:,}" if found.block_size else "one stream"
    rows = (
        ("read as", f"{windows}; {found.bytes:,} bytes in {found.tokens:,} {unit}s scored"),
        ("bits per byte", f"{interval(found.bits_per_byte)}   without any context (order 0) {found.order0:.4f}"),
        (f"nats per {unit}", f"{found.nats_per_token:.4f}"),
        (f"perplexity per {unit}", f"{found.perplexity:.4f}"),
    )
    for name, text in rows:
        console.print(f"{name:20} {text}", markup=False, soft_wrap=True)


def print_positions(found: Positions, unit: str, console: Console) -> None:
    """Print bits per byte by how much was read before."""
    console.print(f"\nby position: {found.blocks:,} blocks of {found.block_size:,} {unit}s, each from an empty state")
    table = Table(box=None, pad_edge=False)
    for head in ("bytes read before", "bytes scored", "bits per byte", "change"):
        table.add_column(head, justify="right", no_wrap=True)
    for b in found.bins:
        longer = found.trained is not None and b.first >= found.trained
        table.add_row(
            f"{b.first:,} - {b.last:,}" + (" *" if longer else "  "),
            f"{b.bytes:,}",
            interval(b.bits_per_byte),
            signed(b.change) if b.change else "",
        )
    console.print(table, highlight=False)
    if found.trained is not None:
        console.print(
            f"* behind a line: more than the {found.trained:,} bytes of a training window. Change: from the last line "
            "within it, paired by block; * behind it: an interval without 0",
            soft_wrap=True,
        )


def print_recall(found: list[Recall], console: Console) -> None:
    """Print what was found again."""
    one = found[0]
    console.print(
        f"\nneedles: {one.facts} fact{'s' * (one.facts > 1)}, a filler, and a question; {one.needles} per distance"
    )
    table = Table(box=None, pad_edge=False)
    for head in ("distance", "said exactly", "95 %", "without facts", "rank", "without facts"):
        table.add_column(head, justify="right", no_wrap=True)
    for r in found:
        low, high = r.exact_interval
        table.add_row(
            f"{r.distance:,}",
            f"{100 * r.exact:.0f} %",
            f"{100 * low:.0f}-{100 * high:.0f} %",
            f"{100 * r.exact_without:.0f} %",
            short(r.rank),
            short(r.rank_without),
        )
    console.print(table, highlight=False)
    told = f", and who remembers answers but not of what, {100 / one.facts:.0f} %" if one.facts > 1 else ""
    console.print(
        f"distance in bytes; rank of the right one among {one.answers} answers. Who guesses has rank "
        f"{(one.answers + 1) / 2:.1f} and says {100 / one.answers:.0f} % exactly{told}",
        soft_wrap=True,
    )


def short(found: Estimate) -> str:
    """Return a mean with its interval, to one decimal.

    Examples:
        >>> short(Estimate(8.25, 1.125, 32))
        '8.2 ± 1.1'
    """
    return f"{found.mean:.1f}" + ("" if found.half_width is None else f" ± {found.half_width:.1f}")


def print_choices(found: Choices, console: Console) -> None:
    """Print how many questions were answered rightly."""
    console.print(f"\nmultiple choice, questions: {found.questions:,}; guessing {100 * found.chance:.1f} %")
    rows = (
        ("accuracy", found.accuracy, found.interval),
        ("accuracy per byte", found.accuracy_per_byte, found.interval_per_byte),
    )
    for name, accuracy, (low, high) in rows:
        console.print(f"{name:20} {100 * accuracy:.1f} %   95 %: {100 * low:.1f}-{100 * high:.1f} %")
