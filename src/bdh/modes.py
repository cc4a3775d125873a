"""Modes that a model is in for a while."""

from __future__ import annotations

import torch
from torch import nn


class evaluating:  # noqa: N801 - used as a verb, like torch.no_grad
    """Switch dropout and gradients off inside a `with`; afterwards every part is in the mode that it came in.

    Examples:
        >>> from bdh import BDH, BDHConfig
        >>> model = BDH(BDHConfig(n_layer=1, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4))
        >>> with evaluating(model):
        ...     model.training
        False
        >>> model.training
        True
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._no_grad = torch.no_grad()

    def __enter__(self) -> None:
        self._modes = [(module, module.training) for module in self._model.modules()]
        self._model.eval()
        self._no_grad.__enter__()

    def __exit__(self, *error: object) -> None:
        self._no_grad.__exit__(*error)
        # one by one: the caller may have put a part into another mode than the whole
        for module, mode in self._modes:
            module.training = mode
