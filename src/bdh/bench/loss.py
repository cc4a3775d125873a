"""How long training takes to a validation loss."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from bdh.config import BDHConfig, LevelsBackend, TrainConfig
from bdh.data import Corpus, load_corpus
from bdh.model import BDH
from bdh.train import Reporter, Run, fit


def corpus_of(data: Path | None) -> Corpus:
    """Return the text to learn: the user's, else tiny-shakespeare."""
    return load_corpus("shakespeare" if data else "tiny-shakespeare", data=data)


def learn(
    backend: LevelsBackend,
    *,
    config: BDHConfig,
    train: TrainConfig,
    data: Path | None,
    target_loss: float,
    max_seconds: float,
) -> dict[str, Any]:
    """Train until the validation loss is at most `target_loss`, or `max_seconds` of training have passed.

    Args:
        backend: the path of training.
        config: the model, from the seed of `train`.
        train: as `fit` takes it, but for the path; the schedule is that of the whole run.
        data: see `corpus_of`.
        target_loss: nats per byte.
        max_seconds: of training, evaluations left out.

    Returns:
        {"curve": [[seconds of training, validation loss], ...], "steps", "density": {"x", "xy"} at the end}.
    """
    watch = _Watch(target_loss, max_seconds)
    train = replace(train, backend=backend)
    with tempfile.TemporaryDirectory(prefix="bdh-bench-") as path, contextlib.suppress(_Enough):
        fit(BDH.from_seed(config, train.seed), corpus_of(data), train, Run(Path(path) / "run"), watch)
    last = watch.records[-1]
    density = {key: sum(levels) / len(levels) for key, levels in last["density"].items() if key != "y"}
    curve = [[record["train_seconds"], record["val_loss"]] for record in watch.records]
    return {"curve": curve, "steps": last["step"], "density": density}


class _Enough(Exception):  # noqa: N818 - not an error
    """The target is reached, or the time is over."""


class _Watch(Reporter):
    """Keeps the evaluations, shows nothing, and stops the training when it has seen enough."""

    def __init__(self, target_loss: float, max_seconds: float) -> None:
        super().__init__(Console(quiet=True))
        self.records: list[dict[str, Any]] = []
        self._target_loss, self._max_seconds = target_loss, max_seconds

    def evaluation(self, record: dict[str, Any], init: dict[str, list[float]]) -> None:
        self.records.append(record)
        if record["val_loss"] <= self._target_loss or record["train_seconds"] >= self._max_seconds:
            raise _Enough
