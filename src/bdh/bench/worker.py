"""A process that holds one contender and answers questions about it, one at a time.

It reads (name of a question, arguments) from a pipe, answers (kind, value), and ends when the pipe does. Settings of
the allocator and pools of threads belong to a process, so contenders must not share one.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bdh import checkpoint, process
from bdh.bench.contenders import CONTENDERS, Maker
from bdh.bench.loss import learn
from bdh.bench.protocol import Contestant, Declined
from bdh.bench.settings import Point
from bdh.ops.memory import keep_freed_memory

SHORTEST = 0.05
"""Seconds that one repetition takes at least: short calls are repeated within it."""
WARM_TOKENS = 16


@dataclass(frozen=True)
class Setup:
    """What a worker is made from."""

    contender: str
    directory: Path
    """Holds the model and tokens.npy."""
    threads: int
    most_tokens: int
    seed: int


class Server:
    """Answers questions: its public methods."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._call: Callable[[], object] = lambda: None
        self._calls = 1

    def begin(self) -> dict[str, Any]:
        """Make the contender; return its size and shape. To be asked first."""
        setup = self._setup
        contender = CONTENDERS[setup.contender]
        torch.set_num_threads(setup.threads)
        process.limit_to_what_is_free()
        if contender.keeps_memory:
            keep_freed_memory()
        self._tokens = np.load(setup.directory / "tokens.npy")
        model = checkpoint.load(setup.directory)
        self._contestant: Contestant = contender.make(Maker(model, setup.most_tokens, setup.seed))
        del model
        gc.collect()  # a peer has taken no more than the size of the model
        module = self._contestant.module
        return {"parameters": sum(p.numel() for p in module.parameters()), "about": self._contestant.about}

    def warm_up(self, point: Point) -> int:
        """Make ready for `measure`: call once, and find how many calls make a repetition."""
        self._call = lambda: None
        gc.collect()
        process.give_back()
        process.reset_peak()
        self._call = call_of(self._contestant, point, self._tokens)
        self._calls = 1
        if _seconds(self._call, 1) < 10 * SHORTEST:  # a first call takes longer than those after it
            while _seconds(self._call, self._calls) < SHORTEST:
                self._calls *= 2
        return self._calls

    def measure(self) -> dict[str, Any]:
        """Return the seconds of one call (the mean of one repetition) and the peak of memory since `warm_up`."""
        if self._calls > 1:
            self._call()  # the others had the caches meanwhile
        return {"seconds": _seconds(self._call, self._calls) / self._calls, "peak": process.peak()}

    def memory(self, point: Point) -> dict[str, Any]:
        """Return what one training pass takes, in bytes; asked of a fresh process, before anything else."""
        c = self._contestant
        idx, targets = windows(self._tokens, point)
        # libraries load parts of themselves at the first pass
        c.loss(idx[:1, :WARM_TOKENS], targets[:1, :WARM_TOKENS]).backward()
        c.module.zero_grad(set_to_none=True)
        process.give_back()
        process.reset_peak()
        before = process.resident()
        started = time.perf_counter()
        c.loss(idx, targets).backward()
        seconds, peak = time.perf_counter() - started, process.peak()
        # what is kept for the backward pass, in a second forward pass, since counting it disturbs the allocator
        c.module.zero_grad(set_to_none=True)
        process.give_back()
        empty = process.resident()
        loss = c.loss(idx, targets)
        process.give_back()
        full = process.resident()
        del loss
        kept = None if empty is None or full is None else full - empty
        return {"peak": peak, "before": before, "kept": kept, "seconds": seconds}

    def learn(self, **task: Any) -> dict[str, Any]:
        """Train until a validation loss; see `bdh.bench.loss.learn`."""
        return learn(getattr(self._contestant, "backend", "auto"), **task)


def call_of(contestant: Contestant, point: Point, tokens: Any) -> Callable[[], object]:
    """Return the call that is timed at a point."""
    idx, targets = windows(tokens, point)
    if point.work == "prefill":
        return lambda: contestant.read(idx)
    if point.work == "train":

        def train() -> None:
            contestant.module.zero_grad(set_to_none=True)
            contestant.loss(idx, targets).backward()

        return train
    read_one, following = contestant.reader(idx, point.position), _columns(targets)
    return lambda: read_one(next(following))


def windows(tokens: Any, point: Point) -> tuple[Tensor, Tensor]:
    """Return inputs and targets (B, T) of a point, cut from the given tokens (again from the start if they end)."""
    rows = np.resize(tokens, (point.batch_size, point.tokens + 1))
    both = torch.from_numpy(rows.astype(np.int64))
    return both[:, :-1].contiguous(), both[:, 1:].contiguous()


def _columns(idx: Tensor) -> Iterator[Tensor]:
    """Tokens (B, 1) one after another, without end."""
    while True:
        for at in range(idx.shape[1]):
            yield idx[:, at : at + 1]


def _seconds(call: Callable[[], object], calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        call()
    return time.perf_counter() - started


def _answer(work: Callable[..., Any], arguments: dict[str, Any]) -> tuple[str, Any]:
    """Return what to send: the value, or why there is none."""
    try:
        return "done", work(**arguments)
    except Declined as reason:
        return "declined", str(reason)
    except Exception as error:
        traceback.print_exc()
        # torch reports it as a RuntimeError, the kernels as std::bad_alloc
        full = isinstance(error, MemoryError) or "allocate memory" in str(error) or "bad_alloc" in str(error)
        return "failed", "out of memory" if full else f"{type(error).__name__}: " + " ".join(str(error).split())


def main(handle: int) -> None:
    """Serve until the other end of the pipe closes."""
    os.dup2(2, 1)
    with Connection(handle) as pipe, contextlib.suppress(EOFError, ConnectionError):
        server = Server(pipe.recv())
        pipe.send(_answer(server.begin, {}))
        while True:
            question, arguments = pipe.recv()
            pipe.send(_answer(getattr(server, question), arguments))
