"""How fast this machine trains a shape: a few steps of the real training loop, or of a part of the shape."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from rich.console import Console

from bdh import lens
from bdh.bench.planted import plant
from bdh.config import BDHConfig, TrainConfig
from bdh.data import ByteTokenizer, Corpus
from bdh.generate import prefill, step, step_weights
from bdh.model import BDH
from bdh.ops.memory import keep_freed_memory
from bdh.planning import work
from bdh.planning.planner import make
from bdh.planning.work import TRAINED, Activity
from bdh.train import Reporter, Run
from bdh.train.fit import Training

PASS_SECONDS = 1.0
"""A pass of the whole shape that takes longer is timed in part."""
REPEATS = 5
TOKENS = 32
"""On which an activity is planted and measured."""
DECODED = 12


@dataclass(frozen=True)
class Speed:
    """Measured on this machine, at one activity."""

    activity: Activity
    """Of the timed model."""
    seconds_per_step: float
    """Of an optimiser step of the whole shape, with its update."""
    tokens_per_s: float
    update_seconds: float
    """Of the optimiser's update alone."""
    scaled: str | None
    """What was timed instead, if not the whole step."""
    decode_ms: float
    """One more token of one sequence, through all levels."""


def why_not(model: BDHConfig, train: TrainConfig) -> str | None:
    """Return why a training cannot be timed here; None where it can."""
    if train.compile:
        return "compiling takes longer than the steps that would be timed"
    if not make(replace(model, n_layer=1), replace(train, batch_size=1)).fits:
        return "not even one level of one window fits into the memory"
    return None


class _FirstBytes(ByteTokenizer):
    """Bytes for any model: one that knows few tokens is timed on the first of them."""

    vocab_size: ClassVar[int] = 1


def calibrate(
    model: BDHConfig, train: TrainConfig, *, trained: Activity = TRAINED, progress: Callable[[str], object] = str
) -> dict[str, Speed]:
    """Time training steps and one more token of generation, in a few seconds.

    The steps are those of `fit`, on random bytes: with random weights, and with weights moved to the activity of a
    trained model, which a training comes to in its first few hundred steps. Where a pass of the whole shape would take
    longer than `PASS_SECONDS`, or not fit, one and two levels of fewer windows are timed: what the second level adds
    is the price of each level, and what is left is paid once per pass.

    Args:
        model: shape of the model.
        train: batches, precision and back end.
        trained: activity to plant.
        progress: called with what is being done.

    Returns:
        Speeds under "random" and "trained"; the first alone where `sparsity` sets the activity.

    Raises:
        ValueError: see `why_not`.
    """
    reason = why_not(model, train)
    if reason:
        raise ValueError(f"the training cannot be timed: {reason}; use --no-calibrate")
    with tempfile.TemporaryDirectory(prefix="bdh-plan-") as folder:
        timing = _Timing(model, train, Path(folder))
        progress("timing steps with random weights")
        found = {"random": timing.speed()}
        if model.winners_per_head is None:
            progress("planting the activity of a trained model")
            timing.plant(trained)
            progress("timing steps with the activity of a trained model")
            found["trained"] = timing.speed()
    return found


class _Timing:
    """A model whose number of levels can be changed, since they share their weights, and its training."""

    def __init__(self, config: BDHConfig, train: TrainConfig, folder: Path) -> None:
        self.config, self.train, self.folder = config, train, folder
        self.model = BDH.from_seed(config, train.seed)
        rng = np.random.default_rng(train.seed)
        size = max(2**16, (train.batch_size + 1) * train.block_size + 1)  # streams take a window of it for each row
        self.text = rng.integers(0, min(256, config.vocab_size), size, dtype=np.uint8)
        self.known: dict[tuple[int, int], float] = {}
        self.updates: list[float] = []
        self.levels, self.windows = self._part()

    def _part(self) -> tuple[int, int]:
        """Return how many levels and windows are timed: all of both, else two levels at most."""
        L, B = self.config.n_layer, self.train.batch_size
        one = self._pass_seconds(1, 1)
        if one * L * B <= PASS_SECONDS and make(*self._settings(L, B)).fits:
            return L, B
        levels, windows = min(2, L), max(1, min(B, int(PASS_SECONDS / one)))
        while windows > 1 and not make(*self._settings(levels, windows)).fits:
            windows //= 2
        return (levels if make(*self._settings(levels, windows)).fits else 1), windows

    def _settings(self, levels: int, windows: int) -> tuple[BDHConfig, TrainConfig]:
        # a rate of next to nothing: the steps must not change the activity that they are timed at
        changes: dict[str, Any] = {"grad_acc_steps": 1, "eval_windows": 1, "learning_rate": 1e-12}
        return replace(self.config, n_layer=levels), replace(self.train, batch_size=windows, **changes)

    def plant(self, activity: Activity) -> None:
        """Move the weights until so many neurons fire, averaged over the levels that are timed."""
        self.model.config = replace(self.config, n_layer=self.levels)
        plant(self.model, self._ids(TOKENS), x=activity.x, xy=activity.xy)
        self.known.clear()

    def speed(self) -> Speed:
        """Time the part, and return what follows for the whole."""
        L, B = self.config.n_layer, self.train.batch_size
        self.model.config = replace(self.config, n_layer=self.levels)
        density = lens.density(self.model, self._ids(TOKENS))
        activity = Activity(statistics.fmean(density["x"]), statistics.fmean(density["xy"]))
        seconds = self._pass_seconds(self.levels, self.windows)
        whole = (self.levels, self.windows) == (L, B)
        if not whole:
            seconds = self._extrapolated(seconds, activity)
        update = statistics.median(self.updates)
        step_seconds = self.train.grad_acc_steps * seconds + update
        return Speed(
            activity=activity,
            seconds_per_step=step_seconds,
            tokens_per_s=self.train.tokens_per_step / step_seconds,
            update_seconds=update,
            scaled=None if whole else f"{self.levels} of {L} levels, {self.windows} of {B} windows",
            decode_ms=self._decode_ms(),
        )

    def _extrapolated(self, seconds: float, activity: Activity) -> float:
        """Return the seconds of a whole pass from those of the part."""
        share = self.train.batch_size / self.windows
        if self.levels == 1:
            return share * self.config.n_layer * seconds
        level = max(0.0, seconds - self._pass_seconds(1, self.windows))
        # the readout grows with the tokens as the levels do; tables and turned weights are made once per pass
        readout = work.readout(self.config)
        one = work.native_training(replace(self.config, n_layer=1), self.train.block_size, activity) - readout
        outside = min(level * readout / one, seconds - level)
        once = max(0.0, seconds - 2 * level - outside)
        return once + share * (self.config.n_layer * level + outside)

    def _pass_seconds(self, levels: int, windows: int) -> float:
        """Median seconds of a forward and backward pass, after a step that warms up."""
        if (levels, windows) in self.known:
            return self.known[levels, windows]
        self.model.config, train = self._settings(levels, windows)
        text = Corpus("random bytes", self.text, self.text, tokenizer=_FirstBytes())
        training = Training(self.model, text, train, Run(self.folder), Reporter(Console(quiet=True)))
        if training.device.type == "cpu":
            keep_freed_memory()
        passes: list[float] = []
        updates: list[float] = []
        began = time.perf_counter()
        while len(passes) < 2 or (len(passes) <= REPEATS and time.perf_counter() - began < 2 * PASS_SECONDS):
            started = time.perf_counter()
            loss = training.accumulate()
            loss.item()  # waits for an accelerator
            middle = time.perf_counter()
            training.update(loss).item()
            passes.append(middle - started)
            updates.append(time.perf_counter() - middle)
        self.updates = updates[1:]
        self.known[levels, windows] = statistics.median(passes[1:])
        return self.known[levels, windows]

    def _decode_ms(self) -> float:
        self.model.config = self.config
        idx = self._ids(DECODED)
        _, state = prefill(self.model, idx)
        weights = step_weights(self.model, state)
        times = []
        for place in range(DECODED):
            started = time.perf_counter()
            logits, state = step(self.model, idx[:, place : place + 1], state, weights)
            logits[0, 0, 0].item()  # waits for an accelerator
            times.append(time.perf_counter() - started)
        return 1e3 * statistics.median(times[1:])

    def _ids(self, count: int) -> torch.Tensor:
        return torch.from_numpy(self.text[:count].astype(np.int64))[None].to(self.model.encoder.device)
