"""The model as it was before it learned anything: what a finding has to differ from."""

from __future__ import annotations

from torch import Tensor

from bdh.model import BDH


def untrained(model: BDH, idx: Tensor, seed: int) -> BDH:
    """Return a model of the same config with random weights, its spiking thresholds set on these tokens (B, T).

    Spiking neurons get their thresholds on a first batch when a training begins; without them none would fire.

    Examples:
        >>> import torch
        >>> from bdh import BDHConfig
        >>> model = BDH(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4))
        >>> untrained(model, torch.tensor([[1, 2, 3]]), seed=0).config == model.config
        True
    """
    random = BDH.from_seed(model.config, seed).to(idx.device)
    random.calibrate(idx)
    return random.eval()
