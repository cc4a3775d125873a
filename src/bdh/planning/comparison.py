"""What was planned for a run against what it has measured."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from bdh import checkpoint
from bdh.config import BDHConfig, TrainConfig
from bdh.planning import activations
from bdh.planning.planner import make
from bdh.planning.speed import Speed
from bdh.planning.work import TRAINED, Activity
from bdh.train.run import read_facts


@dataclass(frozen=True)
class Row:
    """One figure, planned and measured; None for what is not known."""

    name: str
    unit: str
    planned: float | None
    measured: float | None

    @property
    def ratio(self) -> float | None:
        """Measured over planned."""
        return self.measured / self.planned if self.planned and self.measured is not None else None


@dataclass(frozen=True)
class Comparison:
    """A run, finished or not, as it was planned and as it went."""

    model: BDHConfig
    train: TrainConfig
    plan: dict[str, Any]
    """What run.json keeps of the plan; made now where it keeps none."""
    steps: int
    """Optimiser steps taken."""
    seconds: float
    """In these."""
    tokens_per_s: float
    peak_bytes: int | None
    """Most memory that the process held."""
    activity: Activity | None
    """At the last evaluation."""
    n_parameters: int | None
    """Numbers in the newest checkpoint."""
    checkpoint_bytes: int | None
    """Of that on disk."""

    @property
    def trained(self) -> Activity:
        """Activity to measure this machine's speed at: that of the run."""
        return self.activity or TRAINED

    def rows(self, speed: Speed | None = None) -> list[Row]:
        """Return the figures side by side.

        Args:
            speed: of this machine at the activity of the run; None leaves time unplanned.
        """
        plan, per_step = self.plan, speed.seconds_per_step if speed else None
        tokens_per_s = None if per_step is None else self.train.tokens_per_step / per_step
        return [
            Row("parameters", "", plan["n_parameters"], self.n_parameters),
            Row("checkpoint", "bytes", plan["checkpoint_bytes"], self.checkpoint_bytes),
            Row("activations kept", "bytes", plan["activation_bytes"][plan["kept"]], self._kept()),
            Row("peak memory", "bytes", plan["peak_bytes"], self.peak_bytes),
            Row("tokens/s", "", tokens_per_s, self.tokens_per_s),
            Row(f"{self.steps:,} steps", "s", None if per_step is None else self.steps * per_step, self.seconds),
        ]

    def _kept(self) -> int | None:
        """Bytes that a pass keeps at the activity of the run."""
        if self.plan["kept"] != "native, random weights" or self.activity is None:
            return None
        shape = self.train.batch_size, self.train.block_size
        carried = self.train.batches == "streams"
        return activations.native(self.model, *shape, density=self.activity.x, carried=carried)

    def to_dict(self, speed: Speed | None = None) -> dict[str, Any]:
        """Return the comparison as JSON takes it."""
        fields = {name: value for name, value in asdict(self).items() if name not in ("model", "train")}
        rows = [asdict(row) | {"ratio": row.ratio} for row in self.rows(speed)]
        return fields | {"speed": asdict(speed) if speed else None, "compared": rows}


def compare(run: Path) -> Comparison:
    """Read what was planned for a run, and what it took so far.

    Raises:
        ValueError: no run is there, or it has not logged a step yet.
    """
    facts = read_facts(run)
    if facts is None:
        raise ValueError(f"--run {run}: no run.json there; expected the directory of a training run")
    if (processes := facts.get("shared", {}).get("processes", 1)) > 1:
        raise ValueError(
            f"--run {run}: was trained by {processes} processes; expected one of a single process, "
            "whose memory was measured (for several: bdh plan --devices)"
        )
    records = _records(run / "metrics.jsonl")
    steps = [record for record in records if "tokens_per_s" in record]
    if not steps:
        raise ValueError(f"--run {run}: nothing logged yet; wait for the first --log-interval steps")
    densities = [record["density"] for record in records if "density" in record]
    model, train = BDHConfig.from_dict(facts["model"]), TrainConfig.from_dict(facts["train"])
    newest = checkpoint.pointed(run, "last")
    return Comparison(
        model=model,
        train=train,
        plan=facts.get("plan") or make(model, train).to_dict(),
        steps=steps[-1]["step"],
        seconds=steps[-1]["train_seconds"],
        tokens_per_s=steps[-1]["tokens"] / max(steps[-1]["train_seconds"], 1e-3),
        peak_bytes=max((record["peak_bytes"] for record in steps if "peak_bytes" in record), default=None),
        activity=_activity(densities[-1]) if densities else None,
        n_parameters=_numbers(newest / checkpoint.WEIGHTS) if newest else None,
        checkpoint_bytes=sum(file.stat().st_size for file in newest.iterdir()) if newest else None,
    )


def _records(log: Path) -> list[dict[str, Any]]:
    records = []
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else ():
        try:
            records.append(json.loads(line))
        except ValueError:  # the line that is being written, or was when the run died
            break
    return records


def _activity(density: dict[str, list[float]]) -> Activity:
    return Activity(statistics.fmean(density["x"]), statistics.fmean(density["xy"]))


def _numbers(weights: Path) -> int:
    with safe_open(weights, framework="pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 - no dict
