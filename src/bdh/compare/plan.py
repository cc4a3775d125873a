"""What is to be run, and its record, by which a comparison that was stopped goes on."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from bdh import files
from bdh.compare.peer import PeerTraining, make_peer
from bdh.compare.settings import Settings
from bdh.compare.variants import PEER_RATE, Variant
from bdh.config import TrainConfig
from bdh.data import Corpus, random_windows
from bdh.model import BDH
from bdh.ops.memory import keep_freed_memory
from bdh.train import NonFiniteError, Reporter, Run
from bdh.train.fit import Training

RECORD = "compare.json"
TIMED_STEPS = 5
WARM_UP_STEPS = 2
TIMED_SHARE = 0.05
"""Of the minutes of a run, spent on timing its steps: the neurons fall silent, and steps faster, as training begins."""
MOST_SECONDS = 60.0
"""Of timing; at least one step is timed."""


@dataclass(frozen=True)
class Entry:
    """A variant and how long it is trained."""

    variant: Variant
    train: TrainConfig
    """But for the seed."""
    parameters: int
    about: str
    """Its shape, in words."""
    seconds_per_step: float
    """As timed before the first run."""

    def record(self) -> dict[str, Any]:
        """Return what the record keeps."""
        return {
            "model": self.variant.model.to_dict(),
            "train": self.train.to_dict(),
            "seconds_per_step": self.seconds_per_step,
        }


def make_plan(
    settings: Settings, variants: list[Variant], corpus: Corpus, say: Callable[[str], object] = str
) -> list[Entry]:
    """Time what was not timed yet, set the steps, and write the record.

    Args:
        settings: what is asked for.
        variants: what takes part.
        corpus: the text.
        say: called with what is being done.

    Returns:
        One entry per variant.

    Raises:
        ValueError: a variant cannot be trained, or the directory holds another comparison.
    """
    file = settings.out_dir / RECORD
    terms = _terms(settings, corpus)
    known = _read(file, terms)
    entries = [_entry(settings, variant, corpus, known.get(variant.name), say) for variant in variants]
    known |= {entry.variant.name: entry.record() for entry in entries}
    try:
        settings.out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out-dir {settings.out_dir} cannot be made ({error.strerror}): choose another") from None
    files.write_text(file, json.dumps({"terms": terms, "variants": known}, indent=2) + "\n")
    return entries


def _terms(settings: Settings, corpus: Corpus) -> dict[str, Any]:
    """What all runs of a comparison share."""
    return {"text": list(corpus.hashes), "model_size": settings.model_size, "minutes": settings.minutes}


def _read(file: Path, terms: dict[str, Any]) -> dict[str, Any]:
    folder = file.parent
    other = "give another --out-dir, or the settings that it was begun with"
    if not file.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise ValueError(f"{folder} holds other files: expected a new directory, or one of a comparison")
        return {}
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        before, known = dict(stored["terms"]), dict(stored["variants"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} cannot be used ({error}): choose another --out-dir") from None
    different = [name for name in terms if before.get(name) != terms[name]]
    if different:
        raise ValueError(f"{folder} holds a comparison with another {', '.join(different)}: {other}")
    return known


def _entry(
    settings: Settings, variant: Variant, corpus: Corpus, known: dict[str, Any] | None, say: Callable[[str], object]
) -> Entry:
    overrides = ({"learning_rate": PEER_RATE} if variant.peer else {}) | variant.training
    steps = settings.max_steps
    if known is not None and settings.minutes is not None:
        steps = known["train"]["max_steps"]  # else each call would train for another number of steps
    train = settings.training(steps, overrides)
    if known is not None:
        now = {"model": variant.model.to_dict(), "train": train.to_dict()}
        different = [key for part in now for key in now[part] if known[part].get(key) != now[part][key]]
        if different:
            raise ValueError(
                f"{settings.out_dir} holds runs of {variant.name} with another {', '.join(different)}: "
                "give another --out-dir, or the settings that it was begun with"
            )
        seconds = float(known["seconds_per_step"])
    else:
        say(f"timing {variant.name}")
        seconds = _seconds_per_step(variant, train, corpus, TIMED_SHARE * 60 * (settings.minutes or 0.0))
        if settings.minutes is not None:
            train = settings.training(max(1, round(60 * settings.minutes / seconds)), overrides)
    if variant.peer:
        peer = make_peer(variant.model, train)
        return Entry(variant, train, sum(p.numel() for p in peer.module.parameters()), peer.about, seconds)
    shape = variant.model
    about = f"{shape.n_layer} levels, {shape.n_neurons:,} neurons in {shape.n_head} heads, width {shape.n_embd}"
    return Entry(variant, train, shape.n_parameters, about, seconds)


def _seconds_per_step(variant: Variant, train: TrainConfig, corpus: Corpus, at_least: float) -> float:
    """Train a throw-away model for a moment; the median of the last steps is what most of a run will take."""
    with tempfile.TemporaryDirectory(prefix="bdh-compare-") as folder:
        take_step = _stepper(variant, train, corpus, Path(folder))
        began = time.perf_counter()
        spent: list[float] = []
        while True:
            passed = time.perf_counter() - began
            enough = len(spent) >= WARM_UP_STEPS + TIMED_STEPS and passed >= at_least
            if enough or (passed > MOST_SECONDS and len(spent) > 1):
                break
            started = time.perf_counter()
            try:
                take_step()
            except NonFiniteError:
                if not spent:
                    raise
                break  # how fast it was is known; the run itself will tell that it diverges
            spent.append(time.perf_counter() - started)
    warm = spent[WARM_UP_STEPS:] or spent[-1:]
    return statistics.median(warm[-max(TIMED_STEPS, len(warm) // 4) :])


def _stepper(variant: Variant, train: TrainConfig, corpus: Corpus, folder: Path) -> Callable[[], object]:
    # the rate stays at its peak, where a run spends the time that counts
    train = replace(train, schedule="constant")
    if variant.peer:
        peer = PeerTraining(make_peer(variant.model, train), corpus, train)
        return peer.take_step
    model = BDH.from_seed(variant.model, train.seed)
    training = Training(model, corpus, train, Run(folder / "run"), Reporter(Console(quiet=True)))
    idx, _ = random_windows(
        corpus.train, seed=train.seed, step=0, batch_size=train.batch_size, block_size=train.block_size
    )
    model.calibrate(idx.to(training.device))
    if training.device.type == "cpu":
        keep_freed_memory()  # as in a run
    return lambda: training.update(training.accumulate()).item()
