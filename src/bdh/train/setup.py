"""What a training is set up with: device, precision, optimiser."""

from __future__ import annotations

import torch

from bdh.config import TrainConfig
from bdh.model import BDH


def pick_device(name: str) -> torch.device:
    """Return the named device, or the fastest one present for "auto"."""
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    present |= {f"cuda:{i}": True for i in range(torch.cuda.device_count())}
    if name == "auto":
        return torch.device("cuda" if present["cuda"] else "mps" if present["mps"] else "cpu")
    if not present.get(name, False):
        usable = ", ".join(kind for kind, there in present.items() if there)
        raise ValueError(f"device {name!r} is not present: expected auto or one of {usable}")
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the precision of the matrix products on `device`; "auto" is float32 except on a GPU with bfloat16."""
    if name == "auto":
        has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has_bfloat16 else torch.float32
    if name == "float16" and device.type != "cuda":
        raise ValueError(f"dtype float16 needs a GPU, the device is {device.type}: use float32 or bfloat16")
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def make_optimizer(model: BDH, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW that decays every matrix but the embedding, whose rows are of rare tokens, and nothing smaller."""
    decayed = {name for name, parameter in model.named_parameters() if parameter.ndim > 1} - {"embed.weight"}
    groups = [
        {"params": [p for name, p in model.named_parameters() if (name in decayed) == chosen], "weight_decay": decay}
        for chosen, decay in ((True, config.weight_decay), (False, 0.0))
    ]
    fused = model.encoder.device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=fused)
