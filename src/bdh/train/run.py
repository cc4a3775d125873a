"""The run directory: what was run, on what, what came out, and what is needed to go on.

run.json                 exact command, configs, data, versions, git hash, hardware
metrics.jsonl            one JSON object per logged step and per evaluation
samples.txt              what the model said at each checkpoint
checkpoints/step-N/      a model as `bdh.load` reads it, plus optimiser, progress, what rows remember, and a manifest
checkpoints/damaged-N/   what stood there as step-N and was found damaged when the run went on
checkpoints/last, best   names of the newest and of the best of them
lock                     held by the process that trains here, and its number
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bdh import checkpoint, files, manifest
from bdh.train.loggers import Logger
from bdh.train.saving import Snapshot

METRICS = "metrics.jsonl"
SAMPLES = "samples.txt"
_SAMPLE = re.compile(rb"^--- step (\d+)\n", re.MULTILINE)
KEEP = 2
"""Newest checkpoints that stay besides the best one."""


class SavingError(OSError):
    """Something of a run could not be written; what was there before is as it was."""


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
        "git": _git_hash(Path.cwd()),
        "git_of_bdh": _git_hash(Path(__file__).parent, Path(__file__).name),
        "platform": platform.platform(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _git_hash(directory: Path, file: str = ".") -> str | None:
    """Return the commit that a directory is of, with "-dirty" if files differ from it; None if it has not that file."""
    try:
        if not _git(directory, "ls-files", file):
            return None
        return _git(directory, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(directory: Path, *words: str) -> str:
    command = ["git", *words]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


class Run:
    """One training run on disk. Nothing is written before `alone` and `describe`.

    Args:
        path: the directory.
        loggers: what else takes the metrics.
    """

    def __init__(self, path: str | Path, loggers: Sequence[Logger] = ()) -> None:
        self.path, self.loggers = Path(path), loggers
        self.checkpoints = self.path / "checkpoints"

    def kept(self) -> list[Path]:
        """Return the checkpoints that are there, oldest first."""
        return checkpoint.kept(self.path)

    def newest(self) -> Path | None:
        """Return the newest checkpoint whose files are as they were written, and warn of every newer one.

        Raises:
            CheckpointError: there are checkpoints, and all are damaged.
        """
        kept = self.kept()
        return checkpoint.first_whole(kept[::-1], manifest.damage) if kept else None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let no other process train in this directory, which is made.

        Raises:
            ValueError: one does, or it cannot be written to.
        """
        with ExitStack() as stack:
            with self._made():
                stack.enter_context(files.alone(self.path, "give another --out-dir"))
            yield

    def describe(self, **facts: Any) -> None:
        """Write run.json: every command that worked on this run with its environment, and `facts` as they are now."""
        before = read_facts(self.path)
        command = [Path(sys.argv[0]).name, *sys.argv[1:]]
        history = (before["commands"] if before else []) + [{"command": command, "environment": environment()}]
        with self._made():
            files.write_text(self.path / "run.json", json.dumps({**facts, "commands": history}, indent=2) + "\n")

    @contextmanager
    def _made(self) -> Iterator[None]:
        """Make the directory, and say so if something cannot be written to it."""
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            raise ValueError(f"--out-dir {self.path} cannot be written to ({error.strerror}): choose another") from None

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl, and hand the record to the loggers."""
        self._append(METRICS, json.dumps(record) + "\n")
        for logger in self.loggers:
            logger.log(record)

    def add_sample(self, step: int, text: str) -> None:
        """Append what the model said at `step` to samples.txt."""
        self._append(SAMPLES, f"--- step {step}\n{text}\n\n")

    def _append(self, name: str, text: str) -> None:
        with self.explained(self.path / name), (self.path / name).open("a", encoding="utf-8") as file:
            file.write(text)

    def rewind(self, step: int, *, best: bool = False) -> None:
        """Make the directory what it was when the checkpoint of `step` had been written (-1: nothing yet).

        Metrics and samples after it are dropped, since the resumed run writes them again. Newer checkpoints, which
        are damaged, are set aside; what a killed process left half written goes, and what it had not come to is done:
        `last`, and `best` if it is the best, name that checkpoint, and older ones go.
        """
        for directory in self.kept():
            if _number(directory) > step:
                aside = directory.with_name(directory.name.replace("step-", "damaged-"))
                shutil.rmtree(aside, ignore_errors=True)
                directory.rename(aside)
        for name in ("run.json", METRICS, SAMPLES, "checkpoints/step-*", "checkpoints/last", "checkpoints/best"):
            where, _, last = name.rpartition("/")
            for unfinished in (self.path / where).glob(f".{last}.*"):
                shutil.rmtree(unfinished) if unfinished.is_dir() else unfinished.unlink()
        metrics, samples = self.path / METRICS, self.path / SAMPLES
        if metrics.exists():
            lines = metrics.read_text(encoding="utf-8", errors="replace").splitlines()
            files.write_text(metrics, "".join(line + "\n" for line in lines if _step_of(line) <= step))
        if samples.exists():
            text = samples.read_bytes()
            later = (sample.start() for sample in _SAMPLE.finditer(text) if int(sample[1]) > step)
            os.truncate(samples, next(later, text.rfind(b"\n\n") + 2 if b"\n\n" in text else 0))
        if step >= 0:
            self.point(self.directory(step), best=best)

    def save(self, snapshot: Snapshot) -> None:
        """Write checkpoints/step-N and point `last` (and `best`) at it; older ones beyond `KEEP` go.

        Raises:
            SavingError: it cannot be written; the checkpoints before are as they were.
        """
        directory = self.directory(snapshot.progress["step"])
        with self.explained(directory):
            self.sync_logs()
            with files.replacing_directory(directory) as work:
                snapshot.write(work)
            self.point(directory, best=snapshot.progress["best"])

    def sync_logs(self) -> None:
        """Bring metrics and samples to the disk: what is before a checkpoint is there before it."""
        for log in (METRICS, SAMPLES):
            if (self.path / log).exists():
                files.sync(self.path / log)

    def directory(self, step: int) -> Path:
        """Return where the checkpoint of a step goes."""
        return self.checkpoints / f"step-{step:08d}"

    def point(self, directory: Path, *, best: bool) -> None:
        """Let `last` (and `best`) name a checkpoint; older ones beyond `KEEP` go."""
        for pointer in ("last", "best") if best else ("last",):
            files.write_text(self.checkpoints / pointer, directory.name + "\n")
        pointed = {checkpoint.pointed(self.path, pointer) for pointer in ("last", "best")}
        for old in self.kept()[:-KEEP]:
            if old not in pointed:
                shutil.rmtree(old, ignore_errors=True)

    @contextmanager
    def explained(self, path: Path) -> Iterator[None]:
        """Say in one line what could not be written, why, and what is left."""
        try:
            yield
        except OSError as error:
            why = error.strerror or str(error)
            raise SavingError(
                f"{path} cannot be written ({why}): make room or give rights, then go on with --resume-from "
                f"{self.path}; last good checkpoint: {self.last or 'none yet'}"
            ) from None

    @property
    def last(self) -> Path | None:
        """The checkpoint that was written last."""
        return checkpoint.pointed(self.path, "last")


def _number(directory: Path) -> int:
    return int(directory.name.removeprefix("step-"))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a line cut off by a crash
        return float("inf")


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
