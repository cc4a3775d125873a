"""Does carrying the memory from step to step help beyond the length of a training window?

Two models see equally many tokens in windows of 64: one of random windows, each read from an empty memory, one of
streams, whose memory is carried on over 8 windows. Both then read held-out text 512 bytes at a time; the loss is told
by position.

    python benchmarks/positions.py --data input.txt [--seeds 0 1] [--steps 3000] [--svg docs/figures/positions.svg]
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path

import torch
from torch.nn import functional as F

from bdh.config import BDHConfig, TrainConfig, preset
from bdh.data import fixed_windows, load_corpus
from bdh.lens.svg import Picture, Plot, Scale, picture, span, text
from bdh.model import BDH, evaluating
from bdh.train import Reporter, Run, fit

BLOCK, READ = 64, 512
EDGES = [0, 16, 32, 64, 128, 192, 256, 320, 384, 448, 512]


def losses_by_position(model: BDH, tokens: object) -> torch.Tensor:
    """Mean loss at each of the positions of `READ` bytes, in nats."""
    idx, targets = fixed_windows(tokens, block_size=READ)  # type: ignore[arg-type]
    total = torch.zeros(READ, dtype=torch.float64)
    with evaluating(model):
        for rows in range(0, len(idx), 16):
            logits, _ = model(idx[rows : rows + 16])
            loss = F.cross_entropy(logits.transpose(1, 2), targets[rows : rows + 16], reduction="none")
            total += loss.double().sum(0)
    return total / len(idx)


def trained(config: BDHConfig, train: TrainConfig, data: str) -> BDH:
    """Train with these settings and return the model as it is at the end."""
    model = BDH.from_seed(config, train.seed)
    with tempfile.TemporaryDirectory() as folder:
        fit(model, load_corpus("shakespeare", data=data), train, Run(Path(folder) / "run"), Reporter())
    return model


def main() -> None:
    """Train, read, print the table, draw the curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--svg", type=Path)
    given = parser.parse_args()
    held_out = load_corpus("shakespeare", data=given.data).validation
    curves: dict[str, torch.Tensor] = {}
    for batches in ("windows", "streams"):
        found = []
        for seed in given.seeds:
            train = TrainConfig(
                block_size=BLOCK, batch_size=16, batches=batches, max_steps=given.steps,
                carry=READ // BLOCK if batches == "streams" else None, seed=seed, dtype="float32",
                eval_interval=given.steps, save_every=given.steps, log_interval=500, backend="composed",
            )  # fmt: skip
            found.append(losses_by_position(trained(preset("nano"), train, given.data), held_out))
        curves[batches] = torch.stack(found)  # (seeds, READ)
    print("| bytes read before | " + " | ".join(f"{name}, by seed" for name in curves) + " | difference |")
    print("|---|---|---|---|")
    for low, high in itertools.pairwise(EDGES):
        means = {name: curve[:, low:high].mean(1) for name, curve in curves.items()}
        shown = " | ".join(" ".join(f"{value:.4f}" for value in mean) for mean in means.values())
        difference = (means["streams"] - means["windows"]).mean()
        print(f"| {low} to {high - 1} | {shown} | {difference:+.4f} |")
    if given.svg:
        draw(curves).save(given.svg)


def draw(curves: dict[str, torch.Tensor]) -> Picture:
    """The loss by how many bytes were read before, in bins, a line for each way of training."""
    middles = [(low + high) / 2 for low, high in itertools.pairwise(EDGES)]
    binned = {
        name: [curve[:, low:high].mean().item() for low, high in itertools.pairwise(EDGES)]
        for name, curve in curves.items()
    }
    low, high = span([value for line in binned.values() for value in line], zero=False)
    plot = Plot(Scale(0, READ, 60, 620), Scale(low, high, 260, 30))
    plot.axes("validation loss, nats per byte", "bytes read before; training windows have 64")
    plot.line(middles, binned["windows"], "two").line(middles, binned["streams"], "one")
    plot.points(middles, binned["streams"])
    label = "Loss by position: " + "; ".join(f"{name} {line[-1]:.3f} at the end" for name, line in binned.items())
    words = [text(500, 66, "random windows"), text(440, 188, "streams, memory carried")]
    return picture(640, 310, label, [plot, *words])


if __name__ == "__main__":
    main()
