"""What came out, read from the run directories: curves, speeds, rates, and estimates over the seeds."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bdh.compare.statistics import Estimate, estimate, paired

FINISHED = "finished.json"
"""Stands in a run's directory when nothing is left to do there."""


@dataclass(frozen=True)
class Evaluation:
    """One validation of one run."""

    step: int
    seconds: float
    """Of training so far, validations left out."""
    loss: float
    """Nats per byte."""
    x: float | None
    """Share of active neurons, mean over levels; None where there are no such neurons."""
    xy: float | None
    """The same of the gated activity."""


@dataclass(frozen=True)
class SeedRun:
    """One finished run."""

    seed: int
    evaluations: tuple[Evaluation, ...]
    tokens_per_s: float | None
    """Median over the stretches between logged steps."""
    seconds: float
    """Of training in all."""
    failed: str | None = None
    """Why it ended early, if loss or gradient were not finite; such a run has no part in the means."""

    @property
    def best(self) -> float:
        """Lowest validation loss."""
        return min(e.loss for e in self.evaluations)


@dataclass(frozen=True)
class Point:
    """A curve at one step, over the seeds."""

    step: int
    seconds: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Contender:
    """A variant with all its finished runs."""

    name: str
    parameters: int
    about: str
    train: dict[str, Any]
    """How it was trained, but for the seed."""
    planned_seconds_per_step: float
    runs: tuple[SeedRun, ...]

    @property
    def sound(self) -> tuple[SeedRun, ...]:
        """The runs that came to their end."""
        return tuple(run for run in self.runs if run.failed is None)

    @property
    def losses(self) -> dict[int, float]:
        """Best validation loss by seed."""
        return {run.seed: run.best for run in self.sound}

    @property
    def best(self) -> Estimate | None:
        """Of the best validation loss."""
        return estimate(self.losses.values()) if self.sound else None

    def mean(self, name: str) -> float | None:
        """Return the mean over seeds of x or xy at the last evaluation, or of tokens_per_s or seconds."""
        values = [getattr(run.evaluations[-1] if name in ("x", "xy") else run, name) for run in self.sound]
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if known else None

    def curve(self, name: str = "loss") -> list[Point]:
        """Return mean, lowest and highest of loss, x or xy at every step that all seeds were evaluated at."""
        if not self.sound:
            return []
        by_step = [{e.step: e for e in run.evaluations} for run in self.sound]
        shared = sorted(set.intersection(*(set(found) for found in by_step)))
        points = []
        for step in shared:
            here = [found[step] for found in by_step]
            values = [getattr(e, name) for e in here]
            if None not in values:
                seconds = statistics.fmean(e.seconds for e in here)
                points.append(Point(step, seconds, statistics.fmean(values), min(values), max(values)))
        return points


@dataclass(frozen=True)
class Comparison:
    """Everything that a comparison found."""

    contenders: tuple[Contender, ...]
    """The first is what the others are compared with."""
    minutes: float | None
    """Training time of each run, where times were made equal; None where tokens were."""
    settings: dict[str, Any]
    """Text, model size and seeds."""
    machine: dict[str, Any]
    machines: int
    """Different machines, or numbers of threads, that the runs were made on."""
    command: str

    def difference(self, contender: Contender) -> Estimate | None:
        """Return by how much the best loss of a contender is above that of the first, paired by seed."""
        return paired(contender.losses, self.contenders[0].losses)

    @property
    def equality(self) -> str:
        """What was made equal, in a few words."""
        if self.minutes is not None:
            return f"equal time: about {self.minutes:g} min of training per run"
        train = self.contenders[0].train
        tokens = train["max_steps"] * train["batch_size"] * train["grad_acc_steps"] * train["block_size"]
        return f"equal tokens: {train['max_steps']:,} steps, {tokens:,} tokens per run"

    @property
    def notes(self) -> list[str]:
        """What a reader must know before believing the figures."""
        found = []
        for c in self.contenders:
            found += [f"{c.name}, seed {run.seed}: {run.failed}" for run in c.runs if run.failed]
        sizes = [c.parameters for c in self.contenders]
        if max(sizes) > 1.05 * min(sizes):
            found.append(f"the sizes differ by more than 5 %: {min(sizes):,} to {max(sizes):,} parameters")
        if self.machines > 1:
            found.append("runs were made on different machines or numbers of threads: seconds cannot be compared")
        if len({len(c.runs) for c in self.contenders}) > 1:
            found.append("not all runs are there yet: the same command goes on")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return all of it with every figure of every run, for JSON."""
        rows = []
        for c in self.contenders:
            difference = None if c is self.contenders[0] else self.difference(c)
            figures = {name: c.mean(name) for name in ("x", "xy", "tokens_per_s", "seconds")}
            rows.append(
                asdict(c)
                | {
                    "best_val_loss": asdict(c.best) if c.best else None,
                    "difference": asdict(difference) if difference else None,
                    "means": figures,
                    "curve": [asdict(point) for point in c.curve()],
                }
            )
        own = {"equality": self.equality, "notes": self.notes, "contenders": rows}
        return {k: v for k, v in asdict(self).items() if k != "contenders"} | own


def read_run(path: Path, seed: int) -> SeedRun | None:
    """Return what a run directory holds; None if the run has not come to its end.

    Args:
        path: the directory.
        seed: of the run.

    Raises:
        ValueError: files are damaged.
    """
    if not (path / FINISHED).is_file():
        return None
    try:
        end = json.loads((path / FINISHED).read_text(encoding="utf-8"))
        lines = (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        evaluations = tuple(
            Evaluation(r["step"], r["train_seconds"], r["val_loss"], _mean(r, "x"), _mean(r, "xy"))
            for r in records
            if "val_loss" in r
        )
        logged = [(r["tokens"], r["train_seconds"]) for r in records if "train_loss" in r]
        return SeedRun(seed, evaluations, median_speed(logged), end["seconds"], end["failed"])
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} cannot be read ({error}): delete it, and the run is made again") from None


def median_speed(logged: Sequence[tuple[int, float]]) -> float | None:
    """Return the median tokens per second over the stretches between log lines, so that a pause does not count.

    Args:
        logged: tokens and seconds of training so far, at each line.

    Examples:
        >>> median_speed([(100, 1.0), (200, 2.0), (300, 12.0)])
        100.0
    """
    stretches = itertools.pairwise([(0, 0.0), *logged])
    speeds = [(more - tokens) / (later - at) for (tokens, at), (more, later) in stretches if later > at]
    return statistics.median(speeds) if speeds else None


def _mean(record: dict[str, Any], name: str) -> float | None:
    levels = record["density"].get(name)
    return statistics.fmean(levels) if levels else None
