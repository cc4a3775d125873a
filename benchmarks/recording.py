"""What `bdh.lens.record` costs: a pass with recording at the default names beside the same pass without.

python benchmarks/recording.py
"""

from __future__ import annotations

import resource
import statistics
import sys
import time

import torch

from bdh import BDH, BDHConfig, preset
from bdh.lens import record
from bdh.ops.memory import keep_freed_memory

ROUNDS = 25
SHAPES = {
    "nano": preset("nano"),
    "n=4,096": BDHConfig(n_layer=4, n_embd=128, n_head=4, mlp_internal_dim_multiplier=32),
}
SIZES = ((1, 1), (1, 256), (8, 128), (8, 256))


def main() -> None:
    """Print medians of the processor time of passes that take turns, which other work disturbs little."""
    torch.set_num_threads(1)
    if "--plain" not in sys.argv[1:]:
        keep_freed_memory()
    print("| model | batch x tokens | pass, ms | recorded, ms | quotient | page faults | recorded |")
    print("|---|---|---|---|---|---|---|")
    for name, config in SHAPES.items():
        model = BDH.from_seed(config, 0).eval()
        for batch, tokens in SIZES:
            idx = torch.randint(256, (batch, tokens), generator=torch.Generator().manual_seed(1))
            plain, recorded = [], []
            with torch.no_grad():
                for _ in range(ROUNDS):
                    plain.append(cost(model, idx, False))
                    recorded.append(cost(model, idx, True))
            (a, few), (b, many) = (map(statistics.median, zip(*costs[3:], strict=True)) for costs in (plain, recorded))
            print(f"| {name} | {batch} x {tokens} | {a:.2f} | {b:.2f} | {b / a:.3f} | {few:,.0f} | {many:,.0f} |")


def cost(model: BDH, idx: torch.Tensor, recorded: bool) -> tuple[float, int]:
    """Return the processor time of one pass in milliseconds, and the pages that it touched first."""
    faults, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.process_time()
    if recorded:
        record(model, idx)
    else:
        model(idx)
    return 1e3 * (time.process_time() - start), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults


if __name__ == "__main__":
    main()
