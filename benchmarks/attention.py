"""Where the linear form of attention overtakes the quadratic one: forward and backward of one head, by length.

    python benchmarks/attention.py            a table
    python benchmarks/attention.py --json     one JSON document on the last line

Every figure is the median of interleaved repetitions in this one process, so ratios hold on a noisy machine. The rest
is measured by `bdh bench`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bdh.ops import parallel, reference
from bdh.ops.memory import keep_freed_memory

REPEATS = 7


def medians(
    candidates: dict[str, Callable[[], object]], clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Return the median milliseconds of each candidate, measured in turn."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(REPEATS + 1):
        for name, run in candidates.items():
            started = clock()
            run()
            if repeat:  # the first round warms up
                times[name].append(1e3 * (clock() - started))
    return {name: statistics.median(values) for name, values in times.items()}


def _both_ways(form: Callable[[Tensor, Tensor], Tensor], q: Tensor, v: Tensor) -> None:
    form(q, v).sum().backward()


def _chunked_read(q: Tensor, v: Tensor) -> Tensor:
    return parallel.chunked(q, v, None)[0]


def attention(D: int, K: int) -> dict[str, dict[str, float]]:
    """Forward and backward of one head's read, by length."""
    rows = {}
    for T in (D, 2 * D, 3 * D, 4 * D, 6 * D, 8 * D, 16 * D):
        q = torch.randn(1, 1, T, K).relu().requires_grad_()
        v = torch.randn(1, T, D, requires_grad=True)
        rows[f"D={D} K={K} T={T}"] = medians(
            {
                "reference": partial(_both_ways, reference.quadratic_attention, q, v),
                "dense": partial(_both_ways, parallel.dense, q, v),
                "chunked": partial(_both_ways, _chunked_read, q, v),
            }
        )
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="end with one JSON document")
    wants_json = parser.parse_args().json
    keep_freed_memory()
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; freed memory is kept; milliseconds")
    found = attention(64, 512) | attention(256, 8192)
    for name, row in found.items():
        print(f"  {name:22}" + "".join(f"{key:>14} {value:9.2f}" for key, value in row.items()), flush=True)
    if wants_json:
        print(json.dumps({"threads": torch.get_num_threads(), "torch": torch.__version__, "ms": found}))


if __name__ == "__main__":
    main()
