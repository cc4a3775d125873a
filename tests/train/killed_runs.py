"""Train small models in processes that are killed at random moments; run by test_killed.py, in a process of its own.

Usage: python killed_runs.py FOLDER KILLS

Processes are forked after torch was imported, which makes a start cheap. Writes FOLDER/CASE/whole, a run that nothing
disturbed, and FOLDER/CASE/0, 1, ..., runs that were killed and gone on with until they ended. Prints one JSON object.
"""

import io
import json
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from bdh import BDH, BDHConfig, TrainConfig
from bdh.data import Corpus
from bdh.lowrank import add_low_rank
from bdh.train import Reporter, Run, fit

TEXT = np.frombuffer(b"\0the cat sat on the mat\0a dog\0she sells sea shells by the sea shore" * 20, np.uint8)
CORPUS = Corpus("cats", TEXT, TEXT[:300], separator=0)
HATCHLING = {"n_layer": 2, "n_embd": 16, "n_head": 2, "mlp_internal_dim_multiplier": 4, "dropout": 0.1}
SHAPE = BDHConfig(**HATCHLING)
TRAIN = TrainConfig(
    block_size=16, batch_size=2, max_steps=60, learning_rate=1e-2, warmup_steps=2,
    eval_interval=7, log_interval=1, save_every=3, eval_windows=2, seed=5, dtype="float32",
)  # fmt: skip
CASES = {
    "windows": (SHAPE, TRAIN),
    "streams": (SHAPE, replace(TRAIN, batches="streams", grad_acc_steps=2)),
    "low rank": (SHAPE, TRAIN),
    "hatching": (
        BDHConfig(**HATCHLING, variant="hatching"),
        replace(TRAIN, batches="streams", rate_weight=0.1),
    ),
}


class Telling(Reporter):
    """Says through a pipe when the first step begins."""

    def __init__(self, pipe: int) -> None:
        super().__init__(Console(file=io.StringIO()))
        self.pipe = pipe

    def start(self, first_step: int, max_steps: int) -> None:
        os.write(self.pipe, first_step.to_bytes(4, "big"))


def begin(case: str, path: Path) -> tuple[int, int]:
    """Return the id of a process that trains, and where it says at which step it began."""
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        return child, read
    status = 1
    try:
        shape, train = CASES[case]
        model = BDH.from_seed(shape, 5)
        if case == "low rank":
            add_low_rank(model, 2)
        fit(model, CORPUS, train, Run(path), Telling(write))
        status = 0
    except BaseException as error:
        print(f"{path}: {error!r}", file=sys.stderr)
    finally:
        os._exit(status)


def end(child: int, read: int) -> bool:
    """Return whether the process ended by itself; it must not have failed."""
    os.close(read)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return False
    if os.WEXITSTATUS(status):
        sys.exit("a training failed")
    return True


def main(folder: Path, kills: int) -> None:
    """Kill each case so often, and print how often and at which steps it was gone on with."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)  # outside of a repository git has nothing to look through
    sys.modules["bdh.train.fit"].SAMPLE_TOKENS = 20
    dice = random.Random(1)
    told: dict[str, dict[str, object]] = {}
    for case in CASES:
        started = time.monotonic()
        child, read = begin(case, folder / case / "whole")
        os.read(read, 4)
        startup, started = time.monotonic() - started, time.monotonic()
        end(child, read)
        seconds = time.monotonic() - started
        done, starts, runs, kept = 0, [], 0, True
        while done < kills or kept:
            child, read = begin(case, folder / case / str(runs))
            kept = True
            if done < kills:
                # some are killed while they get ready, most while they train
                if dice.random() < 0.2:
                    time.sleep(dice.uniform(0, startup))
                else:
                    starts.append(int.from_bytes(os.read(read, 4), "big"))
                    time.sleep(dice.uniform(0, 5 * seconds / kills))
                os.kill(child, signal.SIGKILL)
            if end(child, read):
                kept = False
                runs += 1
            else:
                done += 1
        told[case] = {"kills": done, "runs": runs, "starts": starts}
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
