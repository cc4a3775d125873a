"""What was measured: frozen values that go to JSON, to a terminal and to a chart."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from bdh.bench.contenders import BASELINE
from bdh.bench.settings import Case, Point

Density = dict[str, float]
"""Share of neurons that fire ("x") and of those whose gate is open too ("xy"): means over the levels."""


@dataclass(frozen=True)
class Timing:
    """One contender at one point, repeated."""

    seconds: tuple[float, ...]
    """Of one call, a number per repetition."""
    peak_bytes: int
    """Most memory of the process since this point began for it."""

    @property
    def cost(self) -> float:
        """Median of the repetitions."""
        return statistics.median(self.seconds)

    def to_dict(self, point: Point) -> dict[str, Any]:
        """Return the figures, the derived ones too."""
        return {
            "seconds": list(self.seconds),
            "median_seconds": self.cost,
            "tokens_per_second": point.tokens_per_call / self.cost,
            "peak_bytes": self.peak_bytes,
        }


@dataclass(frozen=True)
class Memory:
    """Memory of one training pass."""

    peak_bytes: int
    before_bytes: int | None
    """Held before the pass: libraries, weights, tokens; None where the system does not tell."""
    kept_bytes: int | None
    """Held between forward and backward pass, beyond that."""
    seconds: float

    @property
    def cost(self) -> float:
        """Peak of the process."""
        return self.peak_bytes

    def kept_per_token(self, point: Point) -> float | None:
        """Bytes of activations per token."""
        return None if self.kept_bytes is None else self.kept_bytes / point.tokens_per_call

    def to_dict(self, point: Point) -> dict[str, Any]:
        """Return the figures, the derived ones too."""
        return {
            "peak_bytes": self.peak_bytes,
            "before_bytes": self.before_bytes,
            "kept_bytes": self.kept_bytes,
            "kept_bytes_per_token": self.kept_per_token(point),
            "seconds": [self.seconds],
        }


@dataclass(frozen=True)
class Learning:
    """Training until a validation loss."""

    curve: tuple[tuple[float, float], ...]
    """(seconds of training, validation loss in nats per byte)."""
    target_loss: float
    steps: int
    density: Density

    @property
    def cost(self) -> float | None:
        """Seconds of training until the first validation at or below the target; None if it was not reached."""
        return next((seconds for seconds, loss in self.curve if loss <= self.target_loss), None)

    @property
    def best(self) -> float:
        """Lowest validation loss."""
        return min(loss for _, loss in self.curve)

    def to_dict(self, point: Point) -> dict[str, Any]:
        """Return the figures, the derived ones too."""
        return {
            "target_loss": self.target_loss,
            "seconds_to_target": self.cost,
            "best_loss": self.best,
            "steps": self.steps,
            "tokens": self.steps * point.tokens_per_call,
            "density": self.density,
            "curve": [list(pair) for pair in self.curve],
        }


Figures = Timing | Memory | Learning
Cell = Figures | str
"""Figures, or why there are none."""


@dataclass(frozen=True)
class Column:
    """One point, and what every contender did there."""

    point: Point
    density: Density | None
    """Measured on the tokens of this point; None in `loss`, where the training changes it."""
    cells: dict[str, Cell]

    def ratio(self, contender: str) -> float | None:
        """Return how many times less than the baseline a contender needs (time, or memory in `memory`).

        Examples:
            >>> cells = {"reference": Timing((5.0, 6.0, 4.0), 0), "native": Timing((1.0, 2.0, 9.0), 0), "x": "skipped"}
            >>> column = Column(Point("train", 1, 8), None, cells)
            >>> column.ratio("native"), column.ratio("x")
            (2.5, None)
        """
        this, base = self.cells[contender], self.cells[self.baseline]
        if isinstance(this, str) or isinstance(base, str) or not this.cost or not base.cost:
            return None
        return base.cost / this.cost

    @property
    def baseline(self) -> str:
        """What ratios are to: the reference, or the first contender where it was not asked for."""
        return BASELINE if BASELINE in self.cells else next(iter(self.cells))

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that goes into JSON."""
        return {
            "work": self.point.work,
            "batch_size": self.point.batch_size,
            "tokens": self.point.tokens,
            "position": self.point.position,
            "density": self.density,
            "baseline": self.baseline,
            "rows": [
                {"contender": name, "skipped": cell}
                if isinstance(cell, str)
                else {"contender": name, "ratio": self.ratio(name), **cell.to_dict(self.point)}
                for name, cell in self.cells.items()
            ],
        }


@dataclass(frozen=True)
class Table:
    """A case measured with a model: a column per point, a row per contender."""

    case: Case
    title: str
    model: str
    columns: tuple[Column, ...]
    about: dict[str, dict[str, Any]]
    """Number of parameters and shape of every contender that began."""

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that goes into JSON."""
        columns = [column.to_dict() for column in self.columns]
        return {"case": self.case, "model": self.model, "contenders": self.about, "points": columns}
