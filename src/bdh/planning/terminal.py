"""A plan as a person reads it."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from bdh.planning.planner import Comparison, Plan, Speed


def print_plan(plan: Plan, speeds: Mapping[str, Speed], console: Console) -> None:
    """Print what training takes, and how fast it would go where that was measured."""
    console.print(_memory(plan))
    if speeds:
        console.print(_speed(plan, speeds))
    if not plan.fits:
        console.print("does not fit: lower --batch-size or --block-size, or choose --backend tiled", markup=False)


def print_comparison(found: Comparison, console: Console) -> None:
    """Print a run beside its plan."""
    table = _table("", "planned", "measured")
    plan = found.plan
    table.add_row("steps", "", f"{found.steps:,}")
    table.add_row("training", "", duration(found.seconds))
    table.add_row("tokens/s", "", f"{found.tokens_per_s:,.0f}")
    table.add_row("peak memory", size(plan.peak_bytes), size(found.peak_bytes) if found.peak_bytes else "not logged")
    table.add_row(f"of it kept by the {plan.path} path", size(plan.activation_bytes[plan.path]), "")
    if found.density:
        table.add_row("x active", "50 % at first", f"{found.density['x']:.1%} at the last evaluation")
        table.add_row("xy active", "25 % at first", f"{found.density['xy']:.1%}")
    console.print(table)


def _memory(plan: Plan) -> Table:
    table = _table("training", "")
    for name, count in plan.parameters.items():
        table.add_row(f"parameters of {name}", f"{count:,}")
    table.add_row("parameters", f"{sum(plan.parameters.values()):,}")
    table.add_row("weights", size(plan.weight_bytes))
    table.add_row("gradients and AdamW's moments", size(plan.optimizer_bytes))
    table.add_row("checkpoint on disk", size(plan.checkpoint_bytes))
    table.add_row("synaptic state, one sequence of any length", size(plan.state_bytes))
    for path, kept in plan.activation_bytes.items():
        mark = "  <- this training" if path == plan.path else ""
        table.add_row(f"activations kept, {path} path", size(kept) + mark)
    memory = f" of {size(plan.memory_bytes)}: " + ("fits" if plan.fits else "too much") if plan.memory_bytes else ""
    table.add_row("peak of the process", size(plan.peak_bytes) + memory)
    for name, flop in plan.flop_per_token.items():
        table.add_row(f"flop per trained token, {name}", f"{flop / 1e6:,.0f} M")
    return table


def _speed(plan: Plan, speeds: Mapping[str, Speed]) -> Table:
    table = _table("measured here", *speeds)
    for_all = speeds.values()
    table.add_row("x / xy active", *(f"{s.activity.x:.0%} / {s.activity.xy:.0%}" for s in for_all))
    table.add_row("one step", *(f"{1e3 * s.seconds_per_step:,.0f} ms" for s in for_all))
    table.add_row("tokens/s", *(f"{s.tokens_per_s:,.0f}" for s in for_all))
    table.add_row(f"{plan.tokens:,} tokens", *(duration(plan.tokens / s.tokens_per_s) for s in for_all))
    table.add_row("one more token, generating", *(f"{s.decode_ms:.2f} ms" for s in for_all))
    if scaled := next((s.scaled for s in for_all if s.scaled), None):
        table.caption = f"steps {scaled}"
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, caption_justify="left")
    for at, column in enumerate(columns):
        table.add_column(column, justify="left" if at == 0 else "right")
    return table


def size(count: float) -> str:
    """Return bytes as a person says them.

    Examples:
        >>> size(3 * 2**30), size(2048)
        ('3.0 GiB', '2 KiB')
    """
    for unit, least, digits in (("GiB", 1024**3, 1), ("MiB", 1024**2, 0), ("KiB", 1024, 0)):
        if count >= least:
            return f"{count / least:,.{digits}f} {unit}"
    return f"{count:,.0f} B"


def duration(seconds: float) -> str:
    """Return seconds as a person says them.

    Examples:
        >>> duration(7), duration(130), duration(9000), duration(10**6)
        ('7 s', '2 min 10 s', '2.5 h', '11.6 days')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
