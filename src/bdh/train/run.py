"""The run directory: what was run, on what, what came out, and what is needed to go on.

run.json                 exact command, configs, data, versions, git hash, hardware
metrics.jsonl            one JSON object per logged step and per evaluation
samples.txt              what the model said at each checkpoint
checkpoints/step-N/      a model as `bdh.load` reads it, plus optimiser, progress, and what rows remember
checkpoints/last, best   names of the newest and of the best of them
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bdh import checkpoint, files
from bdh.checkpoint import CheckpointError
from bdh.data.tokenizers import Tokenizer
from bdh.model import BDH, State

OPTIMIZER = "optimizer.safetensors"
STATE = "state-{}.safetensors"
"""What the rows of a pass remember, where training carries it on."""
PROGRESS = "progress.json"
PROGRESS_KEYS = {"step", "best_val_loss", "val_loss", "train_seconds", "train_config", "corpus", "scaler"}
KEEP = 2
"""Newest checkpoints that stay besides the best one."""


def environment() -> dict[str, Any]:
    """Return versions, git hash and hardware, for the record."""
    packages = ("bdh", "torch", "numpy", "safetensors")
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "python": platform.python_version(),
        "packages": versions,
        "git": _git_hash(),
        "platform": platform.platform(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _git_hash() -> str | None:
    """Return the commit of the directory the command runs in, with "-dirty" if files differ from it."""
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


class Run:
    """One training run on disk. Nothing is written before `describe`.

    Args:
        path: the directory.

    Raises:
        ValueError: it holds checkpoints, but not the pointer to the last one.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        if self.last is None and any(self.checkpoints.glob("step-*")):
            raise ValueError(
                f"{self.checkpoints / 'last'} does not name a checkpoint beside it: write the name of the newest "
                "step-... directory into it, or choose another directory"
            )

    def describe(self, **facts: Any) -> None:
        """Write run.json: every command that worked on this run with its environment, and `facts` as they are now."""
        before = read_facts(self.path)
        command = [Path(sys.argv[0]).name, *sys.argv[1:]]
        history = (before["commands"] if before else []) + [{"command": command, "environment": environment()}]
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"--out-dir {self.path} cannot be made ({error.strerror}): choose another") from None
        files.write_text(self.path / "run.json", json.dumps({**facts, "commands": history}, indent=2) + "\n")

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def add_sample(self, step: int, text: str) -> None:
        """Append what the model said at `step` to samples.txt."""
        with (self.path / "samples.txt").open("a", encoding="utf-8") as file:
            file.write(f"--- step {step}\n{text}\n\n")

    def rewind(self, step: int) -> None:
        """Drop the metrics after `step`, which a resumed run writes again."""
        file = self.path / "metrics.jsonl"
        if file.exists():
            lines = [line for line in file.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
            files.write_text(file, "".join(line + "\n" for line in lines))

    def save(
        self,
        model: BDH,
        optimizer: torch.optim.Optimizer,
        progress: dict[str, Any],
        *,
        best: bool,
        tokenizer: Tokenizer | None = None,
        states: Sequence[State | None] = (),
    ) -> None:
        """Write checkpoints/step-N and point `last` (and `best`) at it; older ones beyond `KEEP` go."""
        directory = self.directory(progress["step"])
        with files.replacing_directory(directory) as work:
            checkpoint.write_model(model, work, tokenizer)
            save_file(_optimizer_tensors(model, optimizer), work / OPTIMIZER)
            for number, state in enumerate(states):
                if state is not None:
                    checkpoint.save_state(state, work / STATE.format(number))
            (work / PROGRESS).write_text(json.dumps(progress, indent=2) + "\n", encoding="utf-8")
        self.point(directory, best=best)

    def directory(self, step: int) -> Path:
        """Return where the checkpoint of a step goes."""
        return self.checkpoints / f"step-{step:08d}"

    def point(self, directory: Path, *, best: bool) -> None:
        """Point `last` (and `best`) at a checkpoint; older ones beyond `KEEP` go."""
        files.write_text(self.checkpoints / "last", directory.name + "\n")
        if best:
            files.write_text(self.checkpoints / "best", directory.name + "\n")
        pointed = {checkpoint.pointed(self.path, pointer) for pointer in ("last", "best")}
        for old in sorted(self.checkpoints.glob("step-*"))[:-KEEP]:
            if old not in pointed:
                shutil.rmtree(old, ignore_errors=True)

    @property
    def last(self) -> Path | None:
        """The newest checkpoint."""
        return checkpoint.pointed(self.path, "last")


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a line cut off by a crash
        return float("inf")


def _optimizer_tensors(model: BDH, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return AdamW's moments by parameter name."""
    tensors = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            tensors[f"{name}|{key}"] = torch.as_tensor(value).detach().cpu().contiguous()
    return tensors


def restore(directory: Path, model: BDH, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load weights, optimiser moments and progress of a checkpoint into `model` and `optimizer`.

    Returns:
        The progress: step, best validation loss and so on.

    Raises:
        CheckpointError: files are missing, damaged or of another model.
    """
    stored = checkpoint.load(directory)
    if stored.config != model.config:
        raise CheckpointError(f"{directory} is of another model ({stored.config}): keep its shape to resume")
    model.load_state_dict(stored.state_dict())
    try:
        moments = load_file(directory / OPTIMIZER)
        progress: dict[str, Any] = json.loads((directory / PROGRESS).read_text(encoding="utf-8"))
        missing = PROGRESS_KEYS - progress.keys()
        if missing:
            raise ValueError(f"{PROGRESS} lacks {', '.join(sorted(missing))}")
        # before the first step the optimiser has no moments
        for name, parameter in model.named_parameters() if progress["step"] else ():
            state = {key: moments[f"{name}|{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            if state["exp_avg"].shape != parameter.shape or state["exp_avg_sq"].shape != parameter.shape:
                raise ValueError(f"optimiser moments of {name} do not fit the model")
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in state.items()
            }
    except (OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"{directory} cannot be resumed from ({error}): expected a training checkpoint") from None
    return progress


def restore_states(directory: Path, passes: int, device: torch.device) -> list[State | None]:
    """Load what the rows of each pass remembered when the checkpoint was made.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    return [checkpoint.load_state(directory / STATE.format(number), device=device) for number in range(passes)]


def read_facts(path: Path) -> dict[str, Any] | None:
    """Return run.json of a run directory; None if there is none.

    Raises:
        ValueError: it is not what `Run.describe` writes.
    """
    file = path / "run.json"
    if not file.is_file():
        return None
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        missing = {"model", "train", "data", "commands"} - facts.keys()
        if missing:
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{file} cannot be used ({error}): the run directory is damaged") from None
    return dict(facts)
