"""A training of some seconds that any number of ranks take part in, and what may go wrong on one of them."""

import io
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from bdh import BDH, BDHConfig, TrainConfig
from bdh.config import Parallel
from bdh.data import Corpus
from bdh.train import Reporter, Run, fit, joined

CURVE = 1e-5
SHAPE = {"n_layer": 2, "n_embd": 16, "n_head": 2, "mlp_internal_dim_multiplier": 8, "dropout": 0.0}
TRAIN = TrainConfig(
    block_size=16,
    batch_size=4,
    max_steps=8,
    learning_rate=1e-2,
    warmup_steps=2,
    eval_interval=4,
    log_interval=1,
    save_every=4,
    eval_windows=7,
    seed=5,
)


def corpus() -> Corpus:
    # documents of unequal lengths, so that ranks have unequal numbers of scored tokens
    text = b"".join(b"\0the cat sat on the mat. "[: 5 + 7 * n % 20] * (1 + n % 3) for n in range(60))
    tokens = np.frombuffer(text, dtype=np.uint8)
    cut = int(0.7 * len(tokens))
    return Corpus("cats", tokens[:cut], tokens[cut:], {"source": "test"})


def trained(
    path: Path,
    shape: dict[str, Any],
    train: dict[str, Any],
    spoil: str = "",
    patience: float = 60.0,
    parallel: Parallel = "data",
    ranks_per_model: int | None = None,
) -> tuple[int, str | None]:
    """Train on this rank, and return its steps and what interrupted it."""
    model = BDH.from_seed(BDHConfig.from_dict({**SHAPE, **shape}), 0)
    with joined(patience, parallel=parallel, ranks_per_model=ranks_per_model) as world:
        if spoil and world.rank == world.size - 1:
            model.edits = (lambda idx, state: Spoiled(spoil),)
        result = fit(model, corpus(), replace(TRAIN, **train), Run(path), quiet(), world=world)
    return result.step, result.interrupted


def quiet() -> Reporter:
    return Reporter(Console(file=io.StringIO()))


class Spoiled:
    """From the third training pass on: a loss or a gradient that is NaN, the end of the process, a signal."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __call__(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        global passes
        if name != "logits" or not tensor.requires_grad:
            return tensor
        passes += 1
        if passes != 3:
            return tensor
        if self.how == "loss":
            return tensor * float("nan")
        if self.how == "gradient":
            tensor.register_hook(lambda gradient: gradient * float("nan"))
        if self.how == "death":
            os._exit(9)
        if self.how == "hang":
            signal.pause()
        if self.how == "stop":
            os.kill(os.getpid(), signal.SIGTERM)
        return tensor


passes = 0


def curve(path: Path) -> list[float]:
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [record.get("train_loss", record.get("val_loss")) for record in records]
