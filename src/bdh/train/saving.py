"""What a training needs to go on: taken from the running objects, written beside them, and put back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bdh import checkpoint, manifest
from bdh.checkpoint import CheckpointError
from bdh.config import BDHConfig
from bdh.data.templates import Prompting
from bdh.data.tokenizers import Tokenizer
from bdh.lowrank import FILE as ADAPTER
from bdh.lowrank import Adapter, restore_adapter
from bdh.model import BDH, State

OPTIMIZER = "optimizer.safetensors"
STATE = "state-{}.safetensors"
"""What the rows of a pass remember, where training carries it on."""
PROGRESS = "progress.json"
PROGRESS_KEYS = {"step", "best", "best_val_loss", "val_loss", "train_seconds", "train_config", "corpus", "scaler"}


@dataclass(frozen=True)
class Snapshot:
    """All that a checkpoint holds, in memory of its own: training may go on while it is written."""

    config: BDHConfig
    tokenizer: Tokenizer | None
    asked: Prompting | None
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    """AdamW's numbers by parameter name."""
    states: tuple[State | None, ...]
    """What the rows of each pass remember; a state is never changed, so that it needs no copy."""
    progress: dict[str, Any]
    adapter: Adapter | None = None
    """The changes apart, where a model of low rank is trained."""

    @classmethod
    def take(
        cls,
        model: BDH,
        optimizer: torch.optim.Optimizer,
        progress: dict[str, Any],
        *,
        tokenizer: Tokenizer | None = None,
        asked: Prompting | None = None,
        states: Sequence[State | None] = (),
    ) -> Snapshot:
        """Copy what training will change."""
        weights = {name: _copy(tensor) for name, tensor in model.state_dict().items()}
        moments = {
            f"{name}|{key}": _copy(torch.as_tensor(value))
            for name, parameter in model.named_parameters()
            for key, value in optimizer.state[parameter].items()
        }
        adapter = Adapter.of(model)
        if adapter:
            adapter = Adapter({name: _copy(tensor) for name, tensor in adapter.tensors.items()}, adapter.about)
        return cls(model.config, tokenizer, asked, weights, moments, tuple(states), progress, adapter)

    def write(self, directory: Path) -> None:
        """Write the files of a checkpoint, their manifest last."""
        checkpoint.write_weights(self.weights, self.config, directory, self.tokenizer, self.asked)
        save_file(self.moments, directory / OPTIMIZER)
        if self.adapter:
            self.adapter.write(directory, self.asked)
        self.write_progress(directory)
        manifest.write(directory)

    def write_progress(self, directory: Path) -> None:
        """Write what is neither weights nor moments."""
        for number, state in enumerate(self.states):
            if state is not None:
                checkpoint.save_state(state, directory / STATE.format(number))
        (directory / PROGRESS).write_text(json.dumps(self.progress, indent=2) + "\n", encoding="utf-8")


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


class Background:
    """Does one piece of work at a time in a thread beside the caller; what it raises comes with the next call.

    Examples:
        >>> done = []
        >>> with Background() as background:
        ...     background.start(done.append, 1)
        ...     background.wait()
        >>> done
        [1]
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bdh-saving")
        self._running: Future[Any] | None = None

    def start(self, work: Callable[..., Any], *args: Any) -> None:
        """Wait for the work before, and begin this."""
        self.wait()
        self._running = self._pool.submit(work, *args)

    def wait(self) -> None:
        """Return when nothing is being done any more.

        Raises:
            Exception: what the work raised.
        """
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def __enter__(self) -> Background:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown(wait=True)
        if kind is None:
            self.wait()  # an error that ended the block is told instead of one of saving


def restore(directory: Path, model: BDH, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load weights, optimiser moments and progress of a checkpoint into `model` and `optimizer`.

    A model of low rank brings the weights that are changed, and is given the changes alone.

    Returns:
        The progress: step, best validation loss and so on.

    Raises:
        CheckpointError: files are missing, damaged or of another model.
    """
    stored = checkpoint.load(directory)
    if stored.config != model.config:
        raise CheckpointError(f"{directory} is of another model: {differences(stored.config, model.config)}")
    if not restore_adapter(model, directory / ADAPTER):
        model.load_state_dict(stored.state_dict())
    try:
        moments = load_file(directory / OPTIMIZER)
        progress: dict[str, Any] = json.loads((directory / PROGRESS).read_text(encoding="utf-8"))
        missing = PROGRESS_KEYS - progress.keys()
        if missing:
            raise ValueError(f"{PROGRESS} lacks {', '.join(sorted(missing))}")
        # before the first step the optimiser has no moments
        learning = [named for named in model.named_parameters() if named[1].requires_grad and progress["step"]]
        for name, parameter in learning:
            state = {key: moments[f"{name}|{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            if state["exp_avg"].shape != parameter.shape or state["exp_avg_sq"].shape != parameter.shape:
                raise ValueError(f"optimiser moments of {name} do not fit the model")
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in state.items()
            }
    except (OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"{directory} cannot be resumed from ({error}): expected a training checkpoint") from None
    return progress


def differences(stored: BDHConfig, asked: BDHConfig) -> str:
    """Say in which settings a stored model differs from the one that was asked for."""
    pairs = zip(_flat(stored.to_dict()), _flat(asked.to_dict()), strict=True)
    found = [f"{name} was {before}, not {now}" for (name, before), (_, now) in pairs if before != now]
    return f"{', '.join(found)}; keep these to resume"


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def restore_states(directory: Path, passes: int, device: torch.device) -> list[State | None]:
    """Load what the rows of each pass remembered when the checkpoint was made.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    return [checkpoint.load_state(directory / STATE.format(number), device=device) for number in range(passes)]
