"""What `bdh.lens.record` costs: a pass with recording at the default names beside the same pass without.

python benchmarks/recording.py
"""

from __future__ import annotations

import statistics
import time

import torch

from bdh import BDH, BDHConfig, preset
from bdh.lens import record

ROUNDS = 21
SHAPES = {
    "nano": preset("nano"),
    "n=4,096": BDHConfig(n_layer=4, n_embd=128, n_head=4, mlp_internal_dim_multiplier=32),
}
SIZES = ((1, 1), (1, 256), (8, 128), (8, 256))


def main() -> None:
    """Print medians of the processor time of passes that take turns, which other work disturbs little."""
    torch.set_num_threads(1)
    print("| model | batch x tokens | pass, ms of processor time | recorded | quotient |\n|---|---|---|---|---|")
    for name, config in SHAPES.items():
        model = BDH.from_seed(config, 0).eval()
        for batch, tokens in SIZES:
            idx = torch.randint(256, (batch, tokens), generator=torch.Generator().manual_seed(1))
            plain, recorded = [], []
            with torch.no_grad():
                for _ in range(ROUNDS):
                    plain.append(seconds(model, idx, False))
                    recorded.append(seconds(model, idx, True))
            a, b = (1e3 * statistics.median(times[3:]) for times in (plain, recorded))
            print(f"| {name} | {batch} x {tokens} | {a:.2f} | {b:.2f} | {b / a:.3f} |")


def seconds(model: BDH, idx: torch.Tensor, recorded: bool) -> float:
    """Return the processor time of one pass."""
    start = time.process_time()
    if recorded:
        record(model, idx)
    else:
        model(idx)
    return time.process_time() - start


if __name__ == "__main__":
    main()
