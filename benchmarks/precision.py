"""Measure what rounded weights and a rounded state cost: validation loss of a trained model, read token by token.

    python benchmarks/precision.py --model RUN --data TEXT [--bytes 20480] [--json]

The text is read twice: in windows as long as those of the training, each from an empty state, and as one stream from
its first byte to its last, where errors of the state add up. Differences are paired: the same bytes at every precision.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

import bdh
from bdh import BDH, State, ops
from bdh.data import load_corpus
from bdh.generate import step
from bdh.train.run import read_facts

CASES: dict[str, tuple[ops.Precision, torch.dtype]] = {
    "float32": ("float32", torch.float32),
    "bfloat16": ("bfloat16", torch.bfloat16),
    "int8": ("int8", torch.bfloat16),
    "bfloat16, state float32": ("bfloat16", torch.float32),
    "int8, state float32": ("int8", torch.float32),
    "float32, state bfloat16": ("float32", torch.bfloat16),
}
"""Precision of the weights and of the state: the three that generation offers, then one cause at a time."""

BLOCK = 256
"""Bytes of a stream that count as one observation: losses of neighbouring bytes are not independent."""


@torch.no_grad()
def losses(model: BDH, idx: Tensor, precision: ops.Precision, stored: torch.dtype) -> Tensor:
    """Return the loss at each byte but the first, read through the native step from an empty state.

    Args:
        model: the model.
        idx: (B, T) bytes.
        precision: of the weights.
        stored: of the state.

    Returns:
        (B, T-1) nats.
    """
    c = model.config
    rho = (torch.zeros(idx.shape[0], c.n_head, c.neurons_per_head, c.n_embd, dtype=stored) for _ in range(c.n_layer))
    state = State(tuple(rho))
    weights = ops.step_weights(model.encoder, model.encoder_v, model.decoder, precision)
    found = []
    for t in range(idx.shape[1] - 1):
        logits, state = step(model, idx[:, t : t + 1], state, weights)
        found.append(F.cross_entropy(logits[:, 0], idx[:, t + 1], reduction="none"))
    return torch.stack(found, 1)


def paired(loss: Tensor, truth: Tensor) -> tuple[float, float]:
    """Return the mean difference of two sets of observations (n,) and its standard error."""
    difference = (loss - truth).double()
    return difference.mean().item(), difference.std().item() / math.sqrt(len(difference))


def compare(model: BDH, idx: Tensor, block: int) -> dict[str, dict[str, float]]:
    """Return loss, difference to float32, its standard error, and the difference in the last quarter, per case."""
    rows: dict[str, dict[str, float]] = {}
    truth = None
    for name, (precision, stored) in CASES.items():
        found = losses(model, idx, precision, stored)
        observed = torch.stack([piece.mean(1) for piece in found.split(block, 1)], 1).flatten()
        truth = observed if truth is None else truth
        difference, deviation = paired(observed, truth)
        late, late_deviation = paired(observed[-len(observed) // 4 :], truth[-len(observed) // 4 :])
        rows[name] = {"loss": found.mean().item(), "difference": difference, "standard error": deviation}
        rows[name] |= {"last quarter": late, "its standard error": late_deviation}
        print(f"  {name:26}" + "".join(f"{key:>20} {value:9.6f}" for key, value in rows[name].items()), flush=True)
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="run directory")
    parser.add_argument("--data", type=Path, help="text; its last tenth is read. By default that of the run")
    parser.add_argument("--bytes", type=int, default=20_480, help="how much of it")
    parser.add_argument("--json", action="store_true", help="end with one JSON document")
    given = parser.parse_args()
    model, facts = bdh.load(given.model).eval(), read_facts(given.model)
    block = facts["train"]["block_size"] if facts else 128
    data = given.data or (facts["text"]["data"] if facts else None)
    text = torch.from_numpy(load_corpus(data=data).validation[: given.bytes + 1].copy()).long()
    if len(text) <= given.bytes:
        raise SystemExit(f"the validation text has {len(text)} bytes: expected more than --bytes {given.bytes}")
    windows = text[: given.bytes // block * block].view(-1, block)
    print(f"{len(windows)} windows of {block} bytes", flush=True)
    found = {"windows": compare(model, windows, block)}
    print(f"one stream of {len(text)} bytes", flush=True)
    found["stream"] = compare(model, text[None], BLOCK)
    if given.json:
        print(json.dumps({"model": str(given.model), "bytes": given.bytes} | found))


if __name__ == "__main__":
    main()
