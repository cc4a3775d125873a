"""A comparison as a table, for a terminal or a plain log."""

from __future__ import annotations

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from bdh.compare.results import Comparison
from bdh.compare.statistics import Estimate
from bdh.planning.terminal import duration

READING = (
    "± is half of a 95 % interval over seeds (Student's t), for these texts and settings; differences are paired by "
    "seed; * marks those whose interval excludes zero, which by chance alone happens to one in twenty."
)


def print_comparison(found: Comparison, console: Console) -> None:
    """Print what was compared, a row per variant, and what to keep in mind.

    Args:
        found: the comparison.
        console: where to.
    """
    told = found.settings
    console.print(Text(f"\n{told['text']}, {told['model_size']}; {found.equality}", style="bold"))
    first = found.contenders[0].name
    table = Table(box=None, pad_edge=False)
    table.add_column("variant", no_wrap=True)
    for head in ("parameters", "seeds", "best loss", f"minus {first}", "x active", "tokens/s", "steps", "training"):
        table.add_column(head, justify="right", no_wrap=True)
    for c in found.contenders:
        x, speed, seconds = c.mean("x"), c.mean("tokens_per_s"), c.mean("seconds")
        table.add_row(
            Text(c.name),
            f"{c.parameters:,}",
            str(len(c.sound)),
            interval(c.best),
            "" if c is found.contenders[0] else signed(found.difference(c)),
            "-" if x is None else f"{100 * x:.1f} %",
            "-" if speed is None else f"{speed:,.0f}",
            f"{c.train['max_steps']:,}",
            "-" if seconds is None else duration(seconds),
        )
    # on a narrow terminal lines are broken, not cut
    least = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    table.width = least if least > console.width else None
    console.print(table, highlight=False, crop=False)
    for line in ("best loss: lowest on the validation windows, nats per byte. " + READING, *found.notes):
        console.print(Text(line, style="dim"), soft_wrap=True)


def interval(found: Estimate | None) -> str:
    """Return a mean with its interval, if it has one.

    Examples:
        >>> interval(Estimate(1.23456, 0.0123, 3)), interval(Estimate(1.5, None, 1)), interval(None)
        ('1.2346 ± 0.0123', '1.5000', '-')
    """
    if found is None:
        return "-"
    return f"{found.mean:.4f}" + ("" if found.half_width is None else f" ± {found.half_width:.4f}")


def signed(found: Estimate | None) -> str:
    """Return a difference with its interval, and a star where the interval excludes zero.

    Examples:
        >>> signed(Estimate(-0.05, 0.01, 3)), signed(Estimate(0.05, 0.06, 3))
        ('−0.0500 ± 0.0100 *', '+0.0500 ± 0.0600')
    """
    if found is None:
        return "-"
    return (
        ("−" if found.mean < 0 else "+")
        + interval(Estimate(abs(found.mean), found.half_width, found.n))
        + (" *" if found.excludes_zero else "")
    )
