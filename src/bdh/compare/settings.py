"""What a comparison is asked for on the command line."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bdh.checks import check_one_text
from bdh.config import TrainConfig, preset, train_preset

EVALUATIONS = 20
"""Points of a curve, besides the one before training."""
LEAST_INTERVAL = 10
"""Steps between evaluations that a short run still takes: evaluating must not outweigh training."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is compared, for how long and on what.

    Raises:
        ValueError: a value is out of range, or both lengths are given.
    """

    variants: str = "bdh,hatching,advanced"
    """Comma list of bdh, hatching, advanced and gpt; the others are compared with the first. Settings may follow:
    bdh+lif.tau=10, hatching+stdp.form=off, gpt+learning_rate=2e-3."""
    seeds: str = "0,1,2"
    """Comma list of seeds; each is the weights' and the data order's of one run of every variant."""
    minutes: float | None = None
    """Equal time: train each run for about so many minutes; its steps are set by timing some first."""
    max_steps: int | None = None
    """Equal tokens: train each run for so many steps; by default those of the model size."""
    dataset: str | None = None
    """Text to learn: shakespeare (the plays) or, by default, tiny-shakespeare."""
    data: Path | None = None
    """A text file or a directory of text files to learn instead."""
    model_size: str = "nano"
    """Named size of all variants: nano, 1m, 2m, 25m or 100m."""
    batch_size: int | None = None
    """Windows of one step; by default the model size's."""
    block_size: int | None = None
    """Tokens of one window; by default the model size's."""
    learning_rate: float | None = None
    """Peak learning rate of all but gpt, which has 1e-3; by default the model size's."""
    eval_interval: int | None = None
    """Steps between validations; by default a twentieth of the run."""
    eval_windows: int | None = None
    """Fixed validation windows; by default the model size's."""
    device: str = "auto"
    """cpu, cuda, cuda:N, mps, or auto (the fastest one present)."""
    out_dir: Path = Path("runs/compare")
    """Where runs, figures and report go; the same command there goes on with a comparison that was stopped."""

    def __post_init__(self) -> None:
        check_one_text(self.data, self.dataset)
        if self.minutes is not None and self.max_steps is not None:
            raise ValueError("--minutes and --max-steps: expected one of them; leave the other away")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise ValueError(f"--minutes {self.minutes}: expected a number > 0")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"--max-steps {self.max_steps}: expected an integer >= 1")
        preset(self.model_size)  # refuses a name that is none

    @property
    def corpus_name(self) -> str:
        """Name that the text is loaded by; with files of the user's it is a mere label."""
        return self.dataset or ("shakespeare" if self.data else "tiny-shakespeare")

    @property
    def seed_list(self) -> tuple[int, ...]:
        """The seeds.

        Raises:
            ValueError: not a comma list of different integers >= 0.

        Examples:
            >>> Settings(seeds="3,1").seed_list
            (3, 1)
        """
        words = [word.strip() for word in self.seeds.split(",")]
        if not all(word.isascii() and word.isdigit() for word in words):
            raise ValueError(f"--seeds {self.seeds}: expected a comma list of integers >= 0, for example 0,1,2")
        found = tuple(int(word) for word in words)
        if len(set(found)) < len(found):
            raise ValueError(f"--seeds {self.seeds}: expected each seed once, since equal seeds give equal runs")
        return found

    def training(self, max_steps: int | None, overrides: dict[str, Any]) -> TrainConfig:
        """Return how a variant is trained, but for the seed.

        Args:
            max_steps: of a run; None: as many as the model size has.
            overrides: fields of `TrainConfig` that are the variant's own.

        Raises:
            ValueError: a value is out of range.

        Examples:
            >>> Settings().training(60, {}).warmup_steps
            6
        """
        given = {
            "batch_size": self.batch_size,
            "block_size": self.block_size,
            "learning_rate": self.learning_rate,
            "eval_windows": self.eval_windows,
        }
        usual = train_preset(self.model_size)
        steps = max_steps or usual.max_steps
        # a short run has a short warm-up and a curve of as many points
        interval = max(min(LEAST_INTERVAL, steps), math.ceil(steps / EVALUATIONS))
        schedule = {
            "max_steps": steps,
            "warmup_steps": min(usual.warmup_steps, steps // 10),
            "eval_interval": interval if self.eval_interval is None else self.eval_interval,
            "log_interval": min(usual.log_interval, math.ceil(steps / EVALUATIONS)),
            "device": self.device,
            "seed": 0,
        }
        chosen = {name: value for name, value in given.items() if value is not None}
        return TrainConfig.from_dict(usual.to_dict() | chosen | schedule | overrides)
