"""Every numeric tolerance of the tests, in one place. They are never loosened to make a test pass."""

import torch

# against the released code's golden numbers (which carry float32 rotation tables), relative to the largest entry
GOLDEN_LOGITS = 5e-6
GOLDEN_ACTIVATION = 5e-6
GOLDEN_LOSS = 1e-6
GOLDEN_GRADIENT = 1e-5
# what a negative control must exceed: far beyond any rounding
CONTROL = 1e-3

# two ways of computing the same thing, relative to the largest entry
SAME = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference relative to the largest expected entry."""
    scale = expected.double().abs().max().clamp_min(1e-30)
    return ((got.double() - expected.double()).abs().max() / scale).item()
