"""Compare composed and tiled training passes: processor time, what autograd keeps per token, peak memory.

    python benchmarks/activations.py                        all sizes, natural sparsity
    python benchmarks/activations.py --sizes nano --dropout 0.1 --sparsity 0.8 --dtype bfloat16

Times are the median processor time of interleaved repetitions on one thread, which other work on the machine disturbs
little. The peak is that of a process of its own, less what it held before the pass.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from bdh import BDH, BDHConfig, ops, preset
from bdh.ops.memory import keep_freed_memory

MIDDLE = BDHConfig(n_layer=4, n_embd=128, n_head=4, mlp_internal_dim_multiplier=32, dropout=0.0)
SIZES: dict[str, tuple[BDHConfig, int, int]] = {
    "nano": (preset("nano"), 8, 128),
    "4096x128x4": (MIDDLE, 8, 256),
    "25m": (preset("25m"), 1, 256),
    "25m-long": (preset("25m"), 1, 1024),
    "nano-long": (preset("nano"), 1, 16384),
}
BACKENDS: tuple[ops.LevelsBackend, ...] = ("composed", "tiled")


class Pass:
    """One training pass of a size, to be run either way."""

    def __init__(self, size: str, dropout: float, sparsity: float | None, dtype: str) -> None:
        config, batch_size, block_size = SIZES[size]
        self.model = BDH.from_seed(replace(config, dropout=dropout, sparsity=sparsity), 0).train()
        self.idx = torch.randint(0, 256, (batch_size, block_size), generator=torch.Generator().manual_seed(0))
        self.dtype = getattr(torch, dtype)

    def forward(self, backend: ops.LevelsBackend) -> Tensor:
        """Return the loss."""
        with ops.using(backend), torch.autocast("cpu", dtype=self.dtype, enabled=self.dtype != torch.float32):
            loss = self.model(self.idx, self.idx)[1]
        assert isinstance(loss, Tensor)
        return loss

    def seconds(self, backend: ops.LevelsBackend) -> float:
        """Processor time of forward and backward."""
        self.model.zero_grad()
        started = time.process_time()
        self.forward(backend).backward()
        return time.process_time() - started

    def kept(self, backend: ops.LevelsBackend) -> float:
        """Bytes per token that autograd keeps beside the weights, each storage counted once."""
        weights = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        storages: dict[int, torch.UntypedStorage] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self.forward(backend)
        return sum(s.nbytes() for place, s in storages.items() if place not in weights) / self.idx.numel()

    def peak(self, backend: ops.LevelsBackend) -> float:
        """Bytes that this process holds at most during a pass, more than before."""
        Path("/proc/self/clear_refs").write_text("5")  # the peak of Linux's books falls to what is held now
        before = _peak_now()
        self.forward(backend).backward()
        return _peak_now() - before


def _peak_now() -> float:
    return 1024 * float(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--sparsity", type=float)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak", choices=BACKENDS, help="print the peak of one pass in bytes, and nothing else")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    for size in given.sizes:
        one = Pass(size, given.dropout, given.sparsity, given.dtype)
        if given.peak:
            print(one.peak(given.peak))
            continue
        times = [[one.seconds(backend) for backend in BACKENDS] for _ in range(given.repeats + 1)][1:]
        again = [sys.executable, *sys.argv, "--sizes", size, "--peak"]
        print(f"{size}, B={one.idx.shape[0]} T={one.idx.shape[1]}")
        for backend, seconds in zip(BACKENDS, zip(*times, strict=True), strict=True):
            peak = float(subprocess.run([*again, backend], check=True, capture_output=True, text=True).stdout)
            print(
                f"  {backend:10} {1e3 * statistics.median(seconds):9.1f} ms  kept {one.kept(backend) / 1024:8.1f} "
                f"KiB/token  peak {peak / 2**20:8.1f} MiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
