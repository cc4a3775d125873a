"""Measure this machine: forms of attention, training steps, and generation, each against the naive way.

    python benchmarks/core.py            a table
    python benchmarks/core.py --json     one JSON document on the last line

Every figure is the median of interleaved repetitions in this one process, so ratios hold on a noisy machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor

from bdh import BDH, BDHConfig, ops, preset
from bdh.generate import step, step_weights
from bdh.ops import parallel, reference
from bdh.ops.memory import keep_freed_memory
from planted import plant

REPEATS = 7


def medians(candidates: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return the median milliseconds of each candidate, measured in turn."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(REPEATS + 1):
        for name, run in candidates.items():
            started = time.perf_counter()
            run()
            if repeat:  # the first round warms up
                times[name].append(1e3 * (time.perf_counter() - started))
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


def training(model: BDH, batch_size: int, block_size: int) -> dict[str, float]:
    """Forward and backward of one batch: written naively, composed of PyTorch operations, by the native kernels."""
    idx = torch.randint(0, 256, (batch_size, block_size))
    model.train()

    def pass_both_ways(backend: ops.LevelsBackend) -> None:
        model.zero_grad()
        with ops.using(backend):
            loss = model(idx, idx)[1]
        assert loss is not None
        loss.backward()

    def naive_step() -> None:
        with patch.object(ops, "attention_read", reference.quadratic_attention):
            pass_both_ways("composed")

    candidates: dict[str, Callable[[], object]] = {"naive": naive_step, "composed": partial(pass_both_ways, "composed")}
    if ops.native.available():
        candidates["native"] = partial(pass_both_ways, "native")
    ms = medians(candidates)
    return ms | {"naive/best": ms["naive"] / min(ms.values())}


@torch.no_grad()
def decoding(model: BDH) -> dict[str, dict[str, float]]:
    """One more token after a context: by reading everything again, by state composed, by state native."""
    rows = {}
    model.eval()
    for T in (64, 256, 512):
        idx = torch.randint(0, 256, (1, T))
        _, state = model.advance(idx)
        weights, token = step_weights(model, state), torch.tensor([[32]])
        candidates: dict[str, Callable[[], object]] = {
            "re-read": partial(model, idx),
            "state": partial(step, model, token, state),
        }
        if weights is not None:
            candidates["native"] = partial(step, model, token, state, weights)
        rows[f"context {T}"] = medians(candidates)
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="end with one JSON document")
    wants_json = parser.parse_args().json
    keep_freed_memory()
    torch.manual_seed(0)
    print(f"{ops.levels_path()}; torch {torch.__version__}; freed memory is kept for all candidates")
    nano, large = BDH(preset("nano")), BDH(preset("25m", dropout=0.0))
    middle = BDH(BDHConfig(n_layer=4, n_embd=128, n_head=4, mlp_internal_dim_multiplier=32, dropout=0.0))
    found: dict[str, dict[str, dict[str, float]]] = {
        "attention of one head, forward and backward, ms": attention(64, 512) | attention(256, 8192),
        "training step at random initialisation, ms": {
            "nano B=8 T=128": training(nano, 8, 128),
            "4096x128x4 B=8 T=256": training(middle, 8, 256),
            "25m B=1 T=256": training(large, 1, 256),
        },
    }
    idx = torch.randint(0, 256, (1, 128))
    sizes = {"nano": nano, "4096x128x4": middle, "25m": large}
    found["planted density"] = {name: plant(model, idx) for name, model in sizes.items()}
    found["training step at planted density, ms"] = {
        "nano B=8 T=128": training(nano, 8, 128),
        "4096x128x4 B=8 T=256": training(middle, 8, 256),
        "25m B=1 T=256": training(large, 1, 256),
    }
    found["one more token at planted density, ms"] = decoding(large)
    for title, rows in found.items():
        print(title)
        for name, row in rows.items():
            print(f"  {name:22}" + "".join(f"{key:>14} {value:9.2f}" for key, value in row.items()), flush=True)
    if wants_json:
        print(json.dumps({"threads": torch.get_num_threads(), "torch": torch.__version__} | found))


if __name__ == "__main__":
    main()
