"""A plan as a person reads it."""

from __future__ import annotations

import os
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from bdh.planning.comparison import Comparison, Row
from bdh.planning.devices import DevicePlan
from bdh.planning.planner import Plan
from bdh.planning.speed import Speed


def print_plan(plan: Plan, speeds: Mapping[str, Speed], console: Console) -> None:
    """Print what training takes, and how fast it would go where that was measured.

    Args:
        plan: what was predicted.
        speeds: what was timed, by name of the activity; may be empty.
        console: where to.
    """
    for table in (_sizes(plan), _activations(plan), _peak(plan), _work(plan)):
        console.print(table)
    if plan.left_out:
        console.print(f"\nnot counted: {plan.left_out}", markup=False, soft_wrap=True)
    if not plan.fits:
        remedy = "lower --batch-size and raise --grad-acc-steps, lower --block-size, or choose --backend tiled"
        console.print(f"does not fit: {remedy}", markup=False, soft_wrap=True)
    if speeds:
        console.print(_speed(plan, speeds))
        load, cores = os.getloadavg()[0], os.cpu_count() or 1
        if load > 1.5 * cores:
            console.print(f"this machine is busy (load {load:.0f} on {cores} cores): alone it is faster", markup=False)


def print_comparison(found: Comparison, speed: Speed | None, console: Console) -> None:
    """Print a run beside its plan.

    Args:
        found: the run.
        speed: of this machine at the activity of the run, if it was timed.
        console: where to.
    """
    table = _table("", "planned", "measured", "ratio")
    for row in found.rows(speed):
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        table.add_row(row.name, _figure(row, row.planned), _figure(row, row.measured), ratio)
    if found.activity:
        table.add_row("x active", "50 % at first", f"{found.activity.x:.1%}", "")
        table.add_row("xy active", "25 % at first", f"{found.activity.xy:.1%}", "")
        if any(row.name == "activations kept" and row.measured for row in found.rows()):
            table.caption = "activations: planned at random weights; beside it by formula, for what is active now"
    console.print(table)


def print_devices(plan: DevicePlan, console: Console) -> None:
    """Print what each of several devices holds and sends.

    Args:
        plan: what was predicted.
        console: where to.
    """
    held = _table(f"each of {plan.devices} devices holds ({plan.parallel} shared out)", "")
    for name, count in plan.held_bytes.items():
        held.add_row(name, size(count))
    held.add_row("in all", size(plan.peak_bytes))
    held.add_row("synaptic state, one sequence of any length", size(plan.state_bytes))
    told = _table("\nmessages of a step", "\nranks", "\nhanded in", "\nsent by each")
    for name, message in plan.messages.items():
        told.add_row(name, f"{message.ranks}", size(message.payload_bytes), size(message.sent_bytes))
    told.add_row("in all", "", "", size(plan.sent_bytes))
    console.print(held)
    console.print(told)


def _figure(row: Row, value: float | None) -> str:
    if value is None:
        return "-"
    if row.unit == "bytes":
        return size(value)
    return duration(value) if row.unit == "s" else f"{value:,.0f}"


def _sizes(plan: Plan) -> Table:
    table = _table("parameters", "")
    for name, count in plan.parameters.items():
        table.add_row(name, f"{count:,}")
    table.add_row("in all", f"{plan.n_parameters:,}")
    table.add_row("weights", size(plan.weight_bytes))
    table.add_row("gradients", size(plan.gradient_bytes))
    table.add_row("AdamW's moments", size(plan.optimizer_bytes))
    table.add_row("checkpoint on disk", size(plan.checkpoint_bytes))
    table.add_row("synaptic state, one sequence of any length", size(plan.state_bytes))
    if plan.carried_bytes:
        table.add_row("states of all rows, carried from step to step", size(plan.carried_bytes))
    return table


def _activations(plan: Plan) -> Table:
    table = _table("\nkept between forward and backward", "\nin all", "\nper token", "")
    for path, kept in plan.activation_bytes.items():
        mark = "<- this training" if path == plan.kept else ""
        table.add_row(path, size(kept), size(kept / plan.tokens_per_pass), mark)
    return table


def _peak(plan: Plan) -> Table:
    table = _table("\nmost memory", "")
    for phase, count in plan.phase_bytes.items():
        table.add_row(phase, size(count))
    memory = f" of {size(plan.memory_bytes)}: " + ("fits" if plan.fits else "too much") if plan.memory_bytes else ""
    table.add_row("peak of the run", size(plan.peak_bytes) + memory)
    return table


def _work(plan: Plan) -> Table:
    table = _table("\noperations per trained token", "")
    for name, flop in plan.flop_per_token.items():
        table.add_row(name, f"{flop / 1e6:,.0f} MFLOP")
    return table


def _speed(plan: Plan, speeds: Mapping[str, Speed]) -> Table:
    table = _table("\ntimed here", *("\n" + {"random": "random weights"}.get(name, name) for name in speeds))
    for_all = speeds.values()
    table.add_row("x / xy active", *(f"{s.activity.x:.0%} / {s.activity.xy:.0%}" for s in for_all))
    table.add_row("one step", *(duration(s.seconds_per_step) for s in for_all))
    table.add_row("tokens/s", *(f"{s.tokens_per_s:,.0f}" for s in for_all))
    table.add_row(f"{plan.tokens:,} tokens", *(duration(plan.tokens / s.tokens_per_s) for s in for_all))
    table.add_row("one more token, generating", *(f"{s.decode_ms:.2f} ms" for s in for_all))
    table.caption = "without evaluations and samples"
    if scaled := next((s.scaled for s in for_all if s.scaled), None):
        table.caption += f"; timed: {scaled}"
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
        ('3.00 GiB', '2 KiB')
    """
    for unit, least, digits in (("GiB", 1024**3, 2), ("MiB", 1024**2, 1), ("KiB", 1024, 0)):
        if count >= least:
            return f"{count / least:,.{digits}f} {unit}"
    return f"{count:,.0f} B"


def duration(seconds: float) -> str:
    """Return seconds as a person says them.

    Examples:
        >>> duration(0.04), duration(7), duration(130), duration(9000), duration(10**6)
        ('40 ms', '7 s', '2 min 10 s', '2.5 h', '11.6 days')
    """
    if seconds < 10:
        return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
