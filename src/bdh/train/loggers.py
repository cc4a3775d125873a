"""Where metrics go besides metrics.jsonl, if asked for: TensorBoard, and Weights & Biases (extra `log`)."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol


class Logger(Protocol):
    """Takes the records of metrics.jsonl."""

    def log(self, record: dict[str, Any]) -> None:
        """Take one record; it has a "step"."""

    def close(self) -> None:
        """Write what is left."""


def scalars(record: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a record by path.

    Examples:
        >>> scalars({"step": 5, "val_loss": 1.5, "best": True, "density": {"x": [0.25, 0.5]}, "branching": [None]})
        {'val_loss': 1.5, 'density/x/0': 0.25, 'density/x/1': 0.5}
    """
    found: dict[str, float] = {}

    def walk(name: str, value: Any) -> None:
        if isinstance(value, dict | list):
            for key, part in value.items() if isinstance(value, dict) else enumerate(value):
                walk(f"{name}/{key}" if name else str(key), part)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = value

    walk("", {key: value for key, value in record.items() if key != "step"})
    return found


class TensorBoard:
    """Writes event files to a directory, the first when there is something to write.

    Args:
        path: `tensorboard --logdir` shows it.

    Raises:
        ValueError: tensorboard is not installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            import tensorboard  # noqa: F401 - what torch's writer is made of
        except ImportError:
            raise ValueError('--tensorboard needs tensorboard: pip install "bdh[log]"') from None
        self.path = path
        self._writer: Any = None

    def log(self, record: dict[str, Any]) -> None:
        """Write the numbers of a record."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # a run that goes on writes the steps after its checkpoint again: those of before are not shown
            self._writer = SummaryWriter(self.path, purge_step=record["step"])
        for name, value in scalars(record).items():
            self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()


class WandB:
    """Sends metrics, configs, versions and hardware to Weights & Biases, or keeps them in the run directory for later.

    Without a login, or where its server does not answer, one line says so and the run goes on offline.

    Args:
        path: the run directory; offline data are in `wandb/` there.
        project: where the run is shown.
        entity: user or team; None: the user's default.
        name: of the run; None: the name of the directory.
        mode: online or offline.
        say: takes one line for the user.

    Raises:
        ValueError: wandb is not installed.
    """

    def __init__(
        self, path: Path, project: str, entity: str | None, name: str | None, mode: str, say: Callable[[str], None]
    ) -> None:
        try:
            import wandb
        except ImportError:
            raise ValueError('--wandb-project needs wandb: pip install "bdh[log]"') from None
        self.path, self.mode, self.say = path, mode, say
        self._about = {"project": project, "entity": entity, "name": name or path.resolve().name}
        self._wandb: Any = wandb
        self._run: Any = None

    def log(self, record: dict[str, Any]) -> None:
        """Send the numbers of a record."""
        if self._run is None:
            self._run = self._begin()
        self._run.log({**scalars(record), "step": record["step"]})

    def close(self) -> None:
        """Send what is left."""
        if self._run is not None:
            self._run.finish()

    def _begin(self) -> Any:
        if self.mode == "online":
            try:
                if not self._wandb.login(prompt=False):
                    raise self._wandb.Error("no login: wandb login, or WANDB_API_KEY")
                run = self._init("online")
                self.say(f"Weights & Biases: {run.url}")
                return run
            except self._wandb.Error as error:
                why = " ".join(str(error).split())[:160]
                self.say(f"Weights & Biases: {why}; goes on offline, send later with: wandb sync {self.path}/wandb/...")
        return self._init("offline")

    def _init(self, mode: str) -> Any:
        facts = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        commands = facts.pop("commands")
        run = self._wandb.init(
            **self._about,
            id=self._id(),
            resume="allow",
            mode=mode,
            dir=self.path,
            config={**facts, **commands[-1]},
            settings=self._wandb.Settings(silent=True, init_timeout=30),
        )
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        return run

    def _id(self) -> str:
        """Return the name that a run keeps when it goes on."""
        file = self.path / "wandb" / "id"
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            file.write_text(secrets.token_hex(4), encoding="utf-8")
        return file.read_text(encoding="utf-8").strip()
