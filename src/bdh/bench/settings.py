"""What to measure: cases, models, and the points at which a case is measured.

Shapes: B sequences (`batch_size`), T tokens of each (`block_size`).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import tyro

from bdh.config import PRESETS, BDHConfig, TrainConfig, train_preset

Case = Literal["train", "prefill", "decode", "length", "memory", "loss"]
Work = Literal["train", "prefill", "decode"]

CASES: tuple[Case, ...] = get_args(Case)
TIMED: tuple[Case, ...] = ("train", "prefill", "decode", "length")
"""Cases that are answered by seconds per call."""

SMALL = 5_000_000
"""Models below this many parameters are measured with 8 x 128 tokens, larger ones with 1 x 256."""
CONTEXTS = (64, 512)
"""Tokens that were read before the one that `decode` measures."""
POSITIONS = (1_000, 100_000)
"""Positions at which `decode` is measured too, after the first of CONTEXTS; a cache holds all the tokens before."""
LENGTHS = (1, 2, 4, 16, 64)
"""Lengths of a text in `length`, in blocks."""
EVAL_INTERVAL = 50
"""Steps between validations in `loss`: how finely the time is told."""


@dataclass(frozen=True)
class Point:
    """One thing that is measured, by every contender in turn."""

    work: Work
    """A training pass, reading a prompt, or one more token."""
    batch_size: int
    """Sequences (B)."""
    tokens: int
    """Tokens of each sequence (T); in decode, those that were read before."""
    position: int | None = None
    """Where in a text the token of decode stands; `tokens` are those right before it. None: they are all there is."""

    @property
    def tokens_per_call(self) -> int:
        """Tokens that one call reads, or makes."""
        return self.batch_size if self.work == "decode" else self.batch_size * self.tokens

    @property
    def label(self) -> str:
        """A few words for the head of a column.

        Examples:
            >>> Point("decode", 1, 512).label, Point("decode", 1, 512, position=100_000).label
            ('after 512', 'at 100,000')
            >>> Point("train", 8, 128).label
            'B=8 T=128'
        """
        if self.work != "decode":
            return f"B={self.batch_size} T={self.tokens:,}"
        return f"after {self.tokens:,}" if self.position is None else f"at {self.position:,}"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a user asked `bdh bench` for; None and () stand for what suits the case and the model.

    Raises:
        ValueError: a value is out of range, or two do not go together.

    Examples:
        >>> from bdh.config import preset
        >>> Settings(cases=("train",), model_size=("nano",)).points("train", preset("25m"))[0].label
        'B=1 T=256'
    """

    cases: tyro.conf.Positional[tuple[Case, ...]] = ("train", "prefill", "decode")
    """train: a forward and backward pass (the optimiser's share is the same for all);
    prefill: a prompt;
    decode: one more token;
    length: time per token by length of a text;
    memory: of a training pass;
    loss: seconds of training to a validation loss."""
    model_size: tuple[str, ...] = ()
    """nano, 1m, 2m, 25m or 100m, one or more; by default nano and 25m, and nano alone for length and loss."""
    density: str = "planted"
    """Which neurons fire: planted (x 20 %, gated 5 %, as in a trained model), init (random weights), or the directory
    of a trained model."""
    batch_size: int | None = None
    """Sequences at once; by default 1, and 8 where nano trains."""
    block_size: int | None = None
    """Tokens of each; by default 256, and 128 where nano trains."""
    contenders: tuple[str, ...] = ()
    """Rows to measure, by the names in the tables; by default all."""
    repeats: int = 5
    """Repetitions, whose median counts."""
    data: Path | None = None
    """Text for loss (by default tiny-shakespeare) and for a trained model (by default what it was trained on)."""
    target_loss: float = 1.9
    """Validation loss that loss trains to, in nats per byte."""
    max_seconds: float = 120.0
    """A contender that takes longer for an answer is ended; for loss, seconds of training."""
    seed: int = 1337
    """Seed of weights, tokens and training."""

    def __post_init__(self) -> None:
        for case in self.cases:
            choose("case", case, CASES)
        for size in self.model_size:
            choose("--model-size", size, tuple(PRESETS))
        for name, value in (("--batch-size", self.batch_size), ("--block-size", self.block_size)):
            if value is not None and value < 1:
                raise ValueError(f"{name} {value}: expected an integer >= 1")
        if self.repeats < 1:
            raise ValueError(f"--repeats {self.repeats}: expected an integer >= 1; a median wants 5 or more")
        if not 0 < self.max_seconds < float("inf"):
            raise ValueError(f"--max-seconds {self.max_seconds}: expected a number > 0")
        if not 0 < self.target_loss < float("inf"):
            raise ValueError(f"--target-loss {self.target_loss}: expected a number > 0, in nats per byte")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"--seed {self.seed}: expected an integer in 0..2**63-1")
        if self.run is not None and self.model_size:
            raise ValueError(f"--density {self.density} is a model with a size of its own: leave --model-size away")
        if self.run is not None and "loss" in self.cases:
            raise ValueError(f"loss trains from random weights: leave --density {self.density} away")

    @property
    def run(self) -> Path | None:
        """The trained model to measure with, if `density` names one."""
        return None if self.density in ("planted", "init") else Path(self.density)

    def models(self) -> dict[str, tuple[Case, ...]]:
        """Return the models to measure, by name, each with its cases."""
        asked = tuple(dict.fromkeys(self.cases))
        if self.run is not None:
            return {self.run.resolve().name: asked}
        # what takes minutes is left to the small model unless the large one is asked for
        usual = {case: ("nano",) if case in ("length", "loss") else ("nano", "25m") for case in CASES}
        cases = {size: tuple(c for c in asked if size in (self.model_size or usual[c])) for size in PRESETS}
        return {size: chosen for size, chosen in cases.items() if chosen}

    def points(self, case: Case, config: BDHConfig) -> tuple[Point, ...]:
        """Return the points of a timed case, or of `memory`, for a model."""
        small = config.n_parameters < SMALL
        rows = self.batch_size or (8 if small and case in ("train", "memory") else 1)
        block = self.block_size or (128 if small and case in ("train", "prefill", "memory") else 256)
        if case == "decode":
            return (
                *(Point("decode", self.batch_size or 1, tokens) for tokens in CONTEXTS),
                *(Point("decode", self.batch_size or 1, CONTEXTS[0], position) for position in POSITIONS),
            )
        if case == "length":
            works: tuple[Work, ...] = ("train", "prefill")
            return tuple(Point(work, rows, block * times) for work in works for times in LENGTHS)
        return (Point("prefill" if case == "prefill" else "train", rows, block),)

    def training(self, size: str) -> TrainConfig:
        """Return how `loss` trains a size: as `bdh train` does, validating more often."""
        asked = {"batch_size": self.batch_size, "block_size": self.block_size}
        given = {name: value for name, value in asked.items() if value is not None}
        return train_preset(size, seed=self.seed, eval_interval=EVAL_INTERVAL, device="cpu", **given)


def choose(what: str, got: str, known: tuple[str, ...]) -> None:
    """Raise ValueError unless `got` is one of `known`."""
    if got not in known:
        near = difflib.get_close_matches(got, known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{what} {got!r}: expected one of {', '.join(known)}{hint}")
