"""Print how far the model is from the numbers of the released code (tests/golden), path by path.

    python benchmarks/parity.py

Logits and activations: largest difference relative to the largest entry; loss: relative; gradients: norm of the
difference relative to the norm, the worst tensor.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from bdh import BDH, BDHConfig, ops

GOLDEN = Path(__file__).parent.parent / "tests" / "golden"


def distance(got: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest expected entry."""
    return float((got.double() - expected.double()).abs().max() / expected.double().abs().max())


def compare(name: str, dtype: torch.dtype, backend: ops.LevelsBackend) -> dict[str, float]:
    """Run one golden case."""
    numbers = load_file(GOLDEN / f"{name}.safetensors")
    model = BDH(BDHConfig.from_dict(json.loads((GOLDEN / f"{name}.json").read_text()))).to(dtype)
    model.load_state_dict({key: numbers[f"weights.{key}"] for key in model.state_dict()})
    with ops.using(backend):
        logits, loss = model(numbers["idx"], numbers["targets"])
    assert loss is not None
    loss.backward()
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    return {
        "logits": distance(logits.detach(), numbers["logits"]),
        "loss": distance(loss.detach(), numbers["loss"]),
        "gradients": max(
            float((gradient.double() - numbers[f"grads.{key}"]).norm() / numbers[f"grads.{key}"].norm())
            for key, gradient in gradients.items()
            if gradient is not None
        ),
    }


def main() -> None:
    """Print a line per case, precision and path."""
    cases: list[tuple[torch.dtype, ops.LevelsBackend]] = [(torch.float64, "composed"), (torch.float32, "composed")]
    if ops.native.available():
        cases.append((torch.float32, "native"))
    for name in ("bdh_small", "bdh_one_head"):
        for dtype, backend in cases:
            found = compare(name, dtype, backend)
            shown = "".join(f"{key:>11} {value:.1e}" for key, value in found.items())
            print(f"{name:13} {str(dtype).removeprefix('torch.'):8} {backend:9}{shown}")


if __name__ == "__main__":
    main()
