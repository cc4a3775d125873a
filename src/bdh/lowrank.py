"""Low-rank changes of the three maps (LoRA, Hu et al. 2021, arXiv 2106.09685), on the neurons' rows.

Shapes: H heads, D embedding, K neurons per head, r rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bdh.model import BDH

MAPS = ("encoder", "encoder_v", "decoder")


class LowRank(nn.Module):
    """A change of a map that moves the weights of every neuron along r directions, which its head shares.

        W_n = W_n(0) + (alpha / r) sum_j c_jn d_j        for neuron n, d_j in R^D

    The directions begin at random and the coefficients at zero, so that nothing is changed at first.

    Args:
        shape: H, D, K.
        rank: r.
        alpha: strength; twice the strength is twice the step of an optimiser.
    """

    def __init__(self, shape: tuple[int, int, int], rank: int, alpha: float) -> None:
        super().__init__()
        H, D, K = shape
        self.scale = alpha / rank
        self.directions = nn.Parameter(torch.randn(H, D, rank) * D**-0.5)
        self.coefficients = nn.Parameter(torch.zeros(H, rank, K))

    def forward(self, weight: Tensor) -> Tensor:
        """Change an encoder (H, D, K) or the decoder (H*K, D)."""
        change = self.scale * (self.directions @ self.coefficients)  # (H, D, K)
        return weight + (change if weight.ndim == 3 else change.transpose(1, 2).flatten(0, 1))


def add_low_rank(model: BDH, rank: int, alpha: float = 16.0, *, seed: int = 0) -> int:
    """Freeze a model and give its encoders and decoder changes of low rank, which alone are trained.

    The model computes and is saved with the maps as they are changed, under their released names: a checkpoint of it
    is a plain model.

    Args:
        model: changed in place.
        rank: r; the maps have rank D at most.
        alpha: see `LowRank`.
        seed: of the directions; the caller's random state is untouched.

    Returns:
        How many parameters are trained.

    Raises:
        ValueError: the rank is out of range, or the weights are under masks or signs, which a sum would break.

    Examples:
        >>> from bdh import BDHConfig
        >>> model = BDH(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4))
        >>> add_low_rank(model, rank=2), sorted(model.state_dict())[1:3]
        (576, ['embed.weight', 'encoder'])
    """
    c = model.config
    if not 1 <= rank <= c.n_embd or alpha <= 0:
        raise ValueError(f"lora_rank={rank}, lora_alpha={alpha:g}: expected 1 <= rank <= n_embd={c.n_embd}, alpha > 0")
    held = [name for name in ("dale", "scale_free") if getattr(c, name).on]
    if held:
        raise ValueError(f"lora_rank={rank}: expected free weights, {held[0]} holds them; leave --lora-rank away")
    model.requires_grad_(False)
    added = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in MAPS:
            added.append(LowRank((c.n_head, c.n_embd, c.neurons_per_head), rank, alpha))
            parametrize.register_parametrization(model, name, added[-1].to(model.embed.weight))
    nn.Module.register_state_dict_post_hook(model, _as_changed)
    return sum(parameter.numel() for part in added for parameter in part.parameters())


def _as_changed(model: nn.Module, tensors: dict[str, Any], prefix: str, _metadata: Any) -> None:
    for name in [name for name in tensors if name.startswith(f"{prefix}parametrizations.")]:
        del tensors[name]
    tensors |= {prefix + name: getattr(model, name).detach() for name in MAPS}
