"""What a person sees while a model trains: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


def unit(record: dict[str, Any]) -> str:
    """Return what a validation loss is per: byte or token."""
    per_byte = record["val_bits_per_byte"] * math.log(2)
    return "byte" if math.isclose(per_byte, record["val_loss"], rel_tol=1e-9) else "token"


class Reporter:
    """Shows progress on a console.

    Args:
        console: where to; its being a terminal decides between a bar and lines.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=False, highlight=False)
        self._progress: Progress | None = None
        self._started = self._last_line = 0.0

    def start(self, first_step: int, max_steps: int) -> None:
        """Begin at `first_step` of `max_steps`."""
        self._started = time.monotonic()
        if self.console.is_terminal:
            self._progress = Progress(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._task = self._progress.add_task("train", total=max_steps, completed=first_step, text="")
            self._progress.start()

    def step(self, record: dict[str, Any], steps_done: int, max_steps: int) -> None:
        """Show a logged training step, `steps_done` since the start of this call."""
        text = f"loss {record['train_loss']:.3f}  {record['tokens_per_s']:,.0f} tokens/s"
        if self._progress is not None:
            self._progress.update(self._task, completed=record["step"], text=text)
        elif time.monotonic() - self._last_line > 5:
            # a log file wants a sign of life now and then, not every step
            self._last_line = time.monotonic()
            per_step = (time.monotonic() - self._started) / steps_done
            left = per_step * (max_steps - record["step"])
            self.console.print(f"step {record['step']}/{max_steps}  {text}  about {left:.0f} s left")

    def evaluation(self, record: dict[str, Any], init: dict[str, list[float]]) -> None:
        """Show a validation: loss, and the share of active neurons per level now and at random initialisation."""
        mark = "  best" if record["best"] else ""
        per, bits = unit(record), record["val_bits_per_byte"]
        # where tokens are not bytes, the two measures are not one number in two units
        loss = f"{record['val_loss']:.4f} nats/{per} ({bits:.4f} bits{'' if per == 'byte' else '/byte'})"
        self.console.print(f"[bold]step {record['step']}: validation {loss}{mark}[/bold]")
        for name, now in record["density"].items():
            levels = " ".join(f"{100 * value:5.1f}" for value in now)
            start = " ".join(f"{100 * value:5.1f}" for value in init[name])
            self.console.print(f"    {name:>2} active per level %  {levels}   (random init {start})")
        if "firing" in record:
            self._firing(record["firing"], record["firing_target"])

    def _firing(self, firing: dict[str, list[Any]], target: float) -> None:
        for name in ("rate", "dead", "saturated"):
            levels = " ".join(f"{100 * value:5.1f}" for value in firing[name])
            aim = f"   (target {100 * target:.1f})" if name == "rate" else ""
            self.console.print(f"    {'spiking' if name == 'rate' else name:>9} per level %  {levels}{aim}")
        ratios = [f"{m[0]:.2f} [{m[1]:.2f}, {m[2]:.2f}]" if m else "-" for m in firing["branching"]]
        self.console.print(f"    branching ratio per level, 95 %:  {'  '.join(ratios)}", markup=False)

    def note(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, markup=False, soft_wrap=True)

    def stop(self) -> None:
        """End the live display."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
