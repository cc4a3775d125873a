"""Arguments of the commands that train or plan, and the defaults of these, which depend on what is asked for."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from bdh.checks import check_one_text
from bdh.config import FINETUNING, PRETRAINING, BDHConfig, Parallel, TrainConfig, preset, train_preset
from bdh.data import Corpus, Template
from bdh.data.corpora import prepared_vocabulary

FLAT = tyro.conf.arg(name="")
"""Flags without the name of the field they are in; its sections keep theirs: --n-layer, --lif.tau."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model, its training and its text; the defaults of the first two depend on --model-size."""

    model: Annotated[BDHConfig, FLAT] = field(default_factory=lambda: preset("nano"))
    train: Annotated[TrainConfig, FLAT] = field(default_factory=lambda: train_preset("nano"))
    model_size: str = "nano"
    """Named size that the other defaults come from: nano, 1m, 2m, 25m or 100m."""
    dataset: str = "shakespeare"
    """Text to learn: shakespeare (the plays), tiny-shakespeare, or NAME after bdh prepare NAME."""
    data: Path | None = None
    """A text file, a directory of text files, or a directory that bdh prepare wrote, to learn instead."""
    max_epochs: float | None = None
    """Train for this many times the length of the training text, instead of max_steps."""
    max_tokens: int | None = None
    """Train for this many tokens, rounded up to whole steps, instead of max_steps."""
    parallel: Parallel = "data"
    """What processes started by torchrun share out: rows of the batch; with fsdp also weights and moments, in pieces;
    or with neurons the neurons, with their weights and memory."""
    ranks_per_model: int | None = None
    """With neurons: how many consecutive processes have one model together; by default all of them."""

    def __post_init__(self) -> None:
        if self.ranks_per_model is not None and self.parallel != "neurons":
            raise ValueError("--ranks-per-model: expected --parallel neurons beside it; add that, or leave it away")

    @property
    def size_name(self) -> str:
        """The named size where the model has its shape."""
        named = preset(self.model_size, variant=self.model.variant, vocab_size=self.model.vocab_size)
        return self.model_size if self.model == named else "own shape"

    def training(self, corpus: Callable[[], Corpus]) -> TrainConfig:
        """Return how it is trained, with the number of steps that was asked for.

        Args:
            corpus: gives the text; called only where its length counts.

        Raises:
            ValueError: the length of the training makes no sense.
        """
        per_step = self.train.tokens_per_step
        if self.max_epochs is not None and self.max_tokens is not None:
            raise ValueError("--max-epochs and --max-tokens: expected one of them; leave the other away")
        if self.max_tokens is not None:
            if self.max_tokens < 1:
                raise ValueError(f"--max-tokens {self.max_tokens}: expected an integer >= 1")
            return replace(self.train, max_steps=math.ceil(self.max_tokens / per_step))
        if self.max_epochs is None:
            return self.train
        if not 0 < self.max_epochs < math.inf:
            raise ValueError(f"--max-epochs {self.max_epochs}: expected a number > 0")
        return replace(self.train, max_steps=max(1, round(self.max_epochs * len(corpus().train) / per_step)))


@dataclass(frozen=True, kw_only=True)
class TrainArgs(Shape):
    """Settings of `bdh train`."""

    out_dir: Path | None = None
    """Run directory; by default runs/DATASET-SIZE, with the variant behind if it is not bdh."""
    resume_from: str | None = None
    """Go on from the newest checkpoint: of this run directory, or with auto of the out_dir if it has one."""
    json: bool = False
    """Print the result as one JSON line; progress goes to stderr."""
    tensorboard: bool = False
    """Write metrics for TensorBoard too, to tensorboard/ in the run directory."""
    wandb_project: str | None = None
    """Send metrics to this project of Weights & Biases too."""
    wandb_entity: str | None = None
    """User or team of the project; by default the user's own choice there."""
    wandb_run_name: str | None = None
    """Name of the run there; by default that of the run directory."""
    wandb_mode: Literal["online", "offline", "disabled"] | None = None
    """Send at once, keep in the run directory for wandb sync, or neither; by default WANDB_MODE, else online."""

    @property
    def run_dir(self) -> Path:
        """Where the run is kept."""
        if self.resume_from not in (None, "auto"):
            return Path(self.resume_from)
        name = self.data.resolve().stem if self.data else self.dataset
        variant = "" if self.model.variant == "bdh" else f"-{self.model.variant}"
        return self.out_dir or Path("runs") / f"{name}-{self.model_size}{variant}"


@dataclass(frozen=True, kw_only=True)
class PlanArgs(Shape):
    """Settings of `bdh plan`."""

    run: Path | None = None
    """Compare the plan of this run directory with what was measured there; the run has all other settings."""
    devices: int = 1
    """Plan for so many equal devices: what each holds, and sends per step."""
    calibrate: bool = True
    """Time some steps on this machine; --no-calibrate answers at once."""
    json: bool = False
    """Print as JSON."""


@dataclass(frozen=True, kw_only=True)
class FinetuneArgs:
    """Settings of `bdh finetune`."""

    model: Path
    """Run directory, checkpoint directory or .pt file of the model to start from."""
    train: Annotated[TrainConfig, FLAT] = field(default_factory=lambda: TrainConfig(**FINETUNING))
    dataset: str | None = None
    """Instructions to learn: alpaca, dolly, or NAME after bdh prepare NAME; prepared if they are not yet."""
    data: Path | None = None
    """A directory that bdh prepare wrote, or a jsonl, csv or parquet file of instructions, to learn instead."""
    template: Template | None = None
    """Words around an instruction: as the data is prepared, else newline."""
    max_examples: int | None = None
    """Learn from the first so many examples only."""
    replay: str | None = None
    """Text that the model was trained on (a path or a name), mixed in so that it is not forgotten."""
    replay_share: float | None = None
    """Share of the rows of a batch, and of the loss, that replay gets; by default half."""
    lora_rank: int | None = None
    """Train changes of this rank instead of all weights."""
    lora_alpha: float | None = None
    """Strength of these changes, divided by their rank; by default 16."""
    out_dir: Path | None = None
    """Run directory; by default runs/MODEL-DATA."""
    resume: bool = False
    """Go on with the run in the out_dir if there is one."""
    json: bool = False
    """Print the result as one JSON line; progress goes to stderr."""

    def __post_init__(self) -> None:
        if self.max_examples is not None and self.max_examples < 1:
            raise ValueError(f"--max-examples {self.max_examples}: expected an integer >= 1")
        for flag, value, of, base in (
            ("--replay-share", self.replay_share, "--replay", self.replay),
            ("--lora-alpha", self.lora_alpha, "--lora-rank", self.lora_rank),
        ):
            if value is not None and base is None:
                raise ValueError(f"{flag}: expected {of} beside it; add that, or leave it away")
        if self.replay_share is not None and not 0 < self.replay_share < 1:
            raise ValueError(f"--replay-share {self.replay_share}: expected a number between 0 and 1")

    @property
    def run_dir(self) -> Path:
        """Where the run is kept."""
        name = self.data.resolve().stem if self.data else self.dataset
        return self.out_dir or Path("runs") / f"{self.model.resolve().stem}-{name}"


@dataclass(frozen=True, kw_only=True)
class SftArgs(FinetuneArgs):
    """Settings of `bdh sft`: those of `bdh finetune`, for a first impression."""

    train: Annotated[TrainConfig, FLAT] = field(default_factory=lambda: TrainConfig(**FINETUNING | {"max_steps": 250}))
    max_examples: int | None = 2000
    """Learn from the first so many examples only."""


def train_defaults(argv: Sequence[str]) -> TrainArgs:
    """Return the settings that hold where no flag is given: those of the run to resume, else of the model size."""
    return _defaults(argv)[0]


def _defaults(argv: Sequence[str]) -> tuple[TrainArgs, bool]:
    """Return the same, and whether they are those of a run.

    Args:
        argv: the words after the program's name.

    Raises:
        ValueError: unknown model size, or a damaged run directory.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("model-size", "variant", "resume-from", "out-dir", "data", "dataset", "parallel"):
        parser.add_argument(f"--{name}", f"--{name.replace('-', '_')}")
    try:
        given, _ = parser.parse_known_args(argv[1:])
    except SystemExit:
        return TrainArgs(), False  # the full parser will say what is wrong
    check_one_text(given.data, given.dataset)
    size = given.model_size or "nano"
    model = preset(size, variant=given.variant, vocab_size=prepared_vocabulary(given.dataset, given.data))
    named = TrainArgs(
        model=model,
        model_size=size,
        resume_from=given.resume_from,
        dataset=given.dataset or "shakespeare",
        out_dir=Path(given.out_dir) if given.out_dir else None,
        data=Path(given.data) if given.data else None,
    )
    stored = _stored(named.run_dir) if given.resume_from else None
    if stored is None:
        return TrainArgs(model=model, train=train_preset(size), model_size=size), False
    if "tuned_from" in stored:
        raise ValueError(f"{named.run_dir} is a run of bdh finetune: go on with bdh finetune and --resume")
    if "text" not in stored:
        raise ValueError(f"{named.run_dir} was not begun by bdh train: go on with bdh.train.fit, which began it")
    text, shared = stored["text"], stored.get("shared", {})
    found = TrainArgs(
        model=model if given.model_size or given.variant else BDHConfig.from_dict(stored["model"]),
        train=TrainConfig.from_dict(stored["train"]),
        model_size=stored["model_size"],
        dataset=text["dataset"],
        data=Path(text["data"]) if text["data"] else None,
        parallel=given.parallel or shared.get("parallel", "data"),
        ranks_per_model=shared.get("ranks_per_model") if given.parallel in (None, "neurons") else None,
    )
    return found, True


def _stored(run: Path) -> dict[str, Any] | None:
    from bdh.train.run import read_facts  # with torch, which takes a second

    return read_facts(run)


def pretrain_defaults(argv: Sequence[str]) -> TrainArgs:
    """Return the settings of `bdh pretrain` that hold where no flag is given: the paper's, or those of a run."""
    chosen, of_run = _defaults(argv)
    if of_run:
        return chosen  # it keeps what it began with
    return replace(chosen, train=replace(chosen.train, **PRETRAINING))


def plan_defaults(argv: Sequence[str]) -> PlanArgs:
    """Return the settings of `bdh plan` that hold where no flag is given: those of the model size."""
    chosen = train_defaults(argv)
    return PlanArgs(model=chosen.model, train=chosen.train, model_size=chosen.model_size)
