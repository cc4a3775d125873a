"""Gradient clipping: of the whole gradient, or of each unit against its weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bdh.config import TrainConfig

FLOOR = 1e-3
"""Least weight norm of a unit, so that weights which are still zero can grow."""


def clip_gradients(parameters: Iterable[tuple[str, nn.Parameter]], config: TrainConfig, norm: Tensor) -> None:
    """Clip gradients as configured.

    Args:
        parameters: by name.
        config: how.
        norm: of all gradients together.
    """
    named = list(parameters)
    if not config.grad_clip:
        return
    if config.clip == "norm":
        torch.nn.utils.clip_grads_with_norm_([p for _, p in named], config.grad_clip, norm)
    else:
        clip_adaptively(named, config.grad_clip)


@torch.no_grad()
def clip_adaptively(named: Iterable[tuple[str, nn.Parameter]], share: float) -> None:
    """Shrink the gradient of each unit to a share of the norm of its weights (Brock et al. 2021, arXiv 2102.06171).

        g_i <- g_i share max(|w_i|, 1e-3) / |g_i|     where |g_i| is larger than share max(|w_i|, 1e-3)

    A unit is what belongs to one neuron or one token: a column of an encoder (H, D, K) or of the readout (D, V), a row
    of the decoder (N, D) or the embedding (V, D); a vector of a mechanism is one unit.

    Examples:
        >>> weight = nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        >>> weight.grad = torch.tensor([[0.0, 10.0], [0.3, 0.4]])
        >>> clip_adaptively([("decoder", weight)], 0.1)
        >>> [f"{value:.1e}" for value in weight.grad.norm(dim=1)]      # 0.1 times 5, and times the least norm
        ['5.0e-01', '1.0e-04']
    """
    for name, parameter in named:
        if parameter.grad is None:
            continue
        inside = None if parameter.ndim < 2 else -1 if name in ("decoder", "embed.weight") else -2
        largest = share * _norm(parameter, inside).clamp_min(FLOOR)
        found = _norm(parameter.grad, inside)
        parameter.grad.mul_(torch.where(found > largest, largest / found, 1.0))


def _norm(x: Tensor, dim: int | None) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dim=dim, keepdim=dim is not None)
    return norm
