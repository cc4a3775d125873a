"""Measure the scan of leaky integrate-and-fire neurons: native kernels, PyTorch, and a loop that autograd records.

    OMP_NUM_THREADS=1 python benchmarks/lif.py            nanoseconds per neuron and token

Every figure is the smallest of interleaved repetitions in this one process, so that a busy machine disturbs it least.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch
from torch import Tensor

from bdh import ops
from bdh.mechanisms import LeakyIntegrateFire
from bdh.ops import reference
from bdh.ops.memory import keep_freed_memory
from bdh.sections import Reset

SHAPES = {"nano": (8, 2, 128, 512), "25m": (1, 4, 256, 8192)}
REPEATS = 15

Ways = Callable[[Tensor], Tensor]


def timed(run: Ways, current: Tensor) -> tuple[float, float, float]:
    """Seconds of the forward pass without a graph, with one, and of the backward pass."""
    with torch.no_grad():
        started = time.perf_counter()
        run(current)
        inference = time.perf_counter() - started
    started = time.perf_counter()
    activity = run(current)
    forward = time.perf_counter() - started
    pull = torch.ones_like(activity)
    started = time.perf_counter()
    torch.autograd.grad(activity, current, pull)
    return inference, forward, time.perf_counter() - started


def measure(shape: tuple[int, ...], reset: Reset) -> dict[str, tuple[float, ...]]:
    """Nanoseconds per element of each way: (inference, forward, backward)."""
    neurons = LeakyIntegrateFire((shape[1], 1), reset=reset)
    current = (0.32 * torch.randn(shape)).requires_grad_()
    neurons.calibrate(current)
    state, constants = neurons.initial_state(current), neurons.constants()

    def by(backend: ops.LevelsBackend) -> Ways:
        def run(current: Tensor) -> Tensor:
            with ops.using(backend):
                return ops.lif_scan(current, state.membrane, state.refractory, constants).activity

        return run

    def recorded(current: Tensor) -> Tensor:
        return reference.lif_scan(current, state.membrane, state.refractory, constants, graded=True)[1]

    ways: dict[str, Ways] = {"recorded loop": recorded, "PyTorch": by("composed")}
    if ops.native.available():
        ways["native"] = by("native")
    seconds: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}
    for repeat in range(REPEATS + 1):
        for name, run in ways.items():
            found = timed(run, current)
            if repeat:  # the first round warms up
                seconds[name].append(found)
    per_element = 1e9 / current.numel()
    return {name: tuple(per_element * min(part) for part in zip(*rows, strict=True)) for name, rows in seconds.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="end with one JSON document")
    wants_json = parser.parse_args().json
    keep_freed_memory()
    torch.manual_seed(0)
    print(f"{ops.levels_path()}; torch {torch.__version__}; nanoseconds per neuron and token")
    resets: tuple[Reset, ...] = ("soft", "hard", "none")
    results = {}
    for size, shape in SHAPES.items():
        for reset in resets:
            results[f"{size} {shape} {reset}"] = found = measure(shape, reset)
            for name, (inference, forward, backward) in found.items():
                figures = f"inference {inference:7.2f}   forward {forward:7.2f}   backward {backward:7.2f}"
                print(f"{size + ' ' + str(shape):24} {reset:5} {name:14} {figures}", flush=True)
    if wants_json:
        print(json.dumps({"threads": torch.get_num_threads(), "torch": torch.__version__, "ns": results}))


if __name__ == "__main__":
    main()
