"""Measure how far the model reaches: cost per token over the length of a text, and memory of one training pass.

    python benchmarks/reach.py length --model RUN
    python benchmarks/reach.py memory --batch-size 1 --block-size 1024 --backend native [--planted] [--recompute]

The memory is the peak of this process, so measure one case per process.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import torch

import bdh
from bdh import BDH, State, ops
from bdh.generate import prefill, step, step_weights
from bdh.ops import native_levels
from bdh.ops.memory import keep_freed_memory
from planted import plant


def median_us(run: Callable[[], object], tokens: int, repeats: int = 3) -> float:
    """Microseconds per token, after a warm-up."""
    run()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return 1e6 * statistics.median(times) / tokens


def length(model: BDH) -> None:
    """Print training and reading cost per token over text lengths, and of one more token at two positions."""
    for T in (256, 512, 1024, 4096, 16384):
        idx = torch.randint(0, 256, (1, T))

        def train(idx: torch.Tensor = idx) -> None:
            model.train().zero_grad()
            loss = model(idx, idx)[1]
            assert loss is not None
            loss.backward()

        def read(idx: torch.Tensor = idx) -> None:
            prefill(model, idx)

        print(f"T={T:<6} training {median_us(train, T):7.1f}  reading {median_us(read, T):7.1f} us/token", flush=True)
    _, state = prefill(model, idx[:, :200])
    weights = step_weights(model, state)
    times: dict[int, list[float]] = {1000: [], 100_000: []}
    for _ in range(60):
        for position, found in times.items():
            started = time.perf_counter()
            step(model, torch.tensor([[32]]), State(state.rho, position), weights)
            found.append(time.perf_counter() - started)
    for position, found in times.items():
        print(f"one more token at position {position}: {1e3 * statistics.median(found):.3f} ms")


def memory(batch_size: int, block_size: int, backend: ops.LevelsBackend, planted: bool, recompute: bool) -> None:
    """Print time and peak memory of one training pass of the 25m preset."""
    model = BDH.from_seed(bdh.preset("25m", dropout=0.0), 0)
    if planted:
        print(plant(model, torch.randint(0, 256, (1, 128))))
    if recompute:
        native_levels.memory_budget = lambda: 0.0
    idx = torch.randint(0, 256, (batch_size, block_size))
    started = time.perf_counter()
    with ops.using(backend):
        loss = model.train()(idx, idx)[1]
    loss.backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    print(f"{backend} B={batch_size} T={block_size}: {time.perf_counter() - started:.1f} s, peak {peak:.2f} GiB")


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("length").add_argument("--model", required=True, help="run or model directory")
    asked = commands.add_parser("memory")
    asked.add_argument("--batch-size", type=int, default=1)
    asked.add_argument("--block-size", type=int, default=1024)
    asked.add_argument("--backend", choices=("native", "composed"), default="native")
    asked.add_argument("--planted", action="store_true", help="with the activity of a trained model")
    asked.add_argument("--recompute", action="store_true", help="keep no lists between the passes")
    given = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    if given.command == "length":
        length(bdh.load(given.model))
    else:
        memory(given.batch_size, given.block_size, given.backend, given.planted, given.recompute)


if __name__ == "__main__":
    main()
