"""Training that carries memory beside training that does not: time of a step, native kernels and composed operations.

    python benchmarks/streams.py --data input.txt [--model runs/demo] [--model-size nano] [--rounds 7]

Freed memory is kept by all, rounds alternate, medians are told. The kernels gain by what does not fire, so a trained
model shows more than one at initialisation.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console

import bdh
from bdh import BDH
from bdh.config import LevelsBackend, Order, preset, train_preset
from bdh.data import load_corpus
from bdh.ops.memory import keep_freed_memory
from bdh.train import Reporter, Run
from bdh.train.fit import Training

ORDERS: tuple[Order, ...] = ("windows", "streams")
BACKENDS: tuple[LevelsBackend, ...] = ("native", "composed")
WAYS = [(batches, backend) for batches in ORDERS for backend in BACKENDS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a text file, or what bdh prepare wrote")
    parser.add_argument("--model", type=Path, help="trained weights to begin from; by default random ones")
    parser.add_argument("--model-size", default="nano")
    parser.add_argument("--block-size", type=int, help="tokens of a window; by default that of the size")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="steps of a round")
    args = parser.parse_args()
    keep_freed_memory()
    given = {name: value for name in ("block_size", "batch_size") if (value := getattr(args, name)) is not None}
    train = replace(train_preset(args.model_size), **given)
    corpus = load_corpus(data=args.data)
    with tempfile.TemporaryDirectory() as folder:
        trainings = {}
        for batches, backend in WAYS:
            config = replace(train, batches=batches, backend=backend)
            model = bdh.load(args.model) if args.model else BDH.from_seed(preset(args.model_size), 0)
            quiet = Reporter(Console(quiet=True))
            trainings[batches, backend] = Training(model, corpus, config, Run(folder), quiet)
        times: dict[tuple[Order, LevelsBackend], list[float]] = {way: [] for way in WAYS}
        for turn in range(args.rounds + 1):
            for way, training in trainings.items():
                started = time.perf_counter()
                for _ in range(args.steps):
                    training.update(training.accumulate())
                if turn:  # the first one makes room
                    times[way].append((time.perf_counter() - started) / args.steps)
    print(f"{args.model_size}, batch {train.batch_size}, windows of {train.block_size}: ms per step, tokens per second")
    for way, found in times.items():
        middle = statistics.median(found)
        print(f"{' '.join(way):18} {1e3 * middle:8.1f} {train.tokens_per_step / middle:10,.0f}")


if __name__ == "__main__":
    main()
