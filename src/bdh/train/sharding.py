"""Checkpoints that each rank writes its part of.

A sharded checkpoint is a directory of torch.distributed.checkpoint, with config.json, progress.json and the tokenizer
beside; `merge` makes a model of it. It does not depend on the number of ranks that wrote it, nor on how they shared
the model out.
"""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from bdh import checkpoint, files, manifest
from bdh.checkpoint import SHARDS, CheckpointError
from bdh.config import BDHConfig
from bdh.model import BDH
from bdh.train.distributed import World
from bdh.train.run import Run
from bdh.train.saving import PROGRESS, PROGRESS_KEYS, Snapshot, differences
from bdh.train.sharing import Copies

_KNOWN = {
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.distributed.checkpoint.filesystem", "_StoragePrefix"),
    *(("torch", name) for name in ("float64", "float32", "bfloat16", "float16", "int64", "int32", "uint8", "bool")),
    *(
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
            "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
        )
    ),
}  # fmt: skip


def save(run: Run, snapshot: Snapshot, tensors: dict[str, Tensor], world: World) -> None:
    """Write a sharded checkpoint, each rank its part; all ranks call this together and see the same directory.

    Args:
        run: where to.
        snapshot: all but weights and moments.
        tensors: the part of this rank of these, see `bdh.train.sharing`.
        world: the ranks.

    Raises:
        SavingError: a rank could not write; the checkpoints before are as they were.
    """
    directory = run.directory(snapshot.progress["step"])
    with run.explained(directory):
        _save(run, directory, snapshot, tensors, world)


def _save(run: Run, directory: Path, snapshot: Snapshot, tensors: dict[str, Tensor], world: World) -> None:
    work = directory.with_name(f".{directory.name}.parts")
    if world.first:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        checkpoint.write_config(snapshot.config, work, snapshot.tokenizer, snapshot.asked)
        snapshot.write_progress(work)
    world.wait()
    try:
        with world.together():
            state_dict_saver.save(tensors, storage_writer=FileSystemWriter(work))
    except CheckpointException as error:  # torch wraps what went wrong on any rank
        raise OSError(str(next(iter(error.failures.values()))[0])) from None
    if world.first:
        run.sync_logs()
        manifest.write(work)
        for file in (*work.iterdir(), work):
            files.sync(file)
        if directory.exists():
            shutil.rmtree(directory)
        work.replace(directory)
        files.sync(directory.parent)
        run.point(directory, best=snapshot.progress["best"])
    world.wait()


def restore(directory: Path, sharing: Copies, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load weights and moments into what this rank has of them, parts or all, and return the progress.

    Raises:
        CheckpointError: files are missing, damaged or of another model.
    """
    progress = _progress(directory, sharing.config)
    for parameter in sharing.model.parameters() if progress["step"] else ():
        zeros = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": torch.zeros(()), **zeros}
    _load(directory, sharing.tensors(optimizer), alone=sharing.world.size == 1)
    return progress


def merge(directory: Path) -> BDH:
    """Return the whole model of a sharded checkpoint; one process, no code in the files is run.

    Raises:
        CheckpointError: files are missing or damaged.
    """
    model = BDH(checkpoint.read_config(directory))
    _load(directory, dict(model.state_dict()), alone=True)
    return model.eval()


def is_sharded(directory: Path) -> bool:
    """Whether a directory is a sharded checkpoint."""
    return (directory / SHARDS).is_file()


def _progress(directory: Path, config: BDHConfig) -> dict[str, Any]:
    if not is_sharded(directory):
        raise CheckpointError(f"{directory} is whole, not in parts: go on with --parallel data")
    if (stored := checkpoint.read_config(directory)) != config:
        raise CheckpointError(f"{directory} is of another model: {differences(stored, config)}")
    try:
        progress: dict[str, Any] = json.loads((directory / PROGRESS).read_text(encoding="utf-8"))
        if missing := PROGRESS_KEYS - progress.keys():
            raise ValueError(f"{PROGRESS} lacks {', '.join(sorted(missing))}")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{directory} cannot be resumed from ({error}): expected a training checkpoint") from None
    return progress


def _load(directory: Path, tensors: dict[str, Tensor], *, alone: bool) -> None:
    try:
        reader = _Reader(directory)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # so it is meant, if alone
            state_dict_loader.load(tensors, storage_reader=reader, no_dist=alone)
    # torch wraps what went wrong on any rank in an exception of its own
    except (OSError, ValueError, EOFError, AttributeError, pickle.UnpicklingError, CheckpointException) as error:
        cause = str(error).strip().splitlines()[-1]
        raise CheckpointError(f"{directory} cannot be read ({cause}): the checkpoint is damaged") from None


class _Reader(FileSystemReader):
    """Reads the index of a checkpoint without running code: torch's own reader would unpickle anything."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        with (directory / SHARDS).open("rb") as file:
            self._index: Metadata = _Unpickler(file).load()
        if not isinstance(self._index, Metadata):
            raise ValueError(f"{SHARDS} is no index of a checkpoint")

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        self._index.storage_meta = self._index.storage_meta or StorageMeta()
        self._index.storage_meta.load_id = self.load_id
        return self._index


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"{SHARDS} names {module}.{name}, which no checkpoint needs")
        return super().find_class(module, name)
