"""What the weights alone say of a neuron: which tokens it speaks for, and which neurons it is wired to.

Neuron j writes row j of the decoder to the residual stream, E_j. LayerNorm takes the mean of what is written away, so

    logit effect of j on token t:    (E_j - mean(E_j)) . lm_head[:, t]
    wire from j to neuron i:         G(i, j) = (E_j - mean(E_j)) . encoder[:, i]
    wire from j to gate i:           the same with encoder_v, once the memory hands on what was written

each per unit of activation and before what LayerNorm divides by. G is never built: its rows and columns come in blocks.

Shapes: N neurons, D embedding, V vocabulary, p partners, t tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from bdh.model import BDH

PARTNERS = 10
TOKENS = 10
KINDS = ("x in", "x out", "y in", "y out")
"""Wires to this neuron and from it: to neurons through encoder, and to gates through encoder_v."""

_ROWS = 1024

Array = npt.NDArray[Any]


def written(model: BDH) -> Tensor:
    """Return what each neuron writes to the stream per unit of activation, (N, D), float32 on the CPU."""
    rows = model.decoder.detach().float().cpu()
    # only LayerNorm takes the mean away
    return rows - rows.mean(1, keepdim=True) if model.config.norm == "layer" else rows


def logit_effects(model: BDH) -> Tensor:
    """Return the effect of each neuron on each token, (N, V).

    Examples:
        >>> from bdh import BDHConfig
        >>> model = BDH(BDHConfig(n_layer=1, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4))
        >>> logit_effects(model).shape
        torch.Size([64, 256])
    """
    return written(model) @ model.lm_head.detach().float().cpu()


def strongest(values: Tensor, count: int) -> tuple[Array, Array]:
    """Return the columns of largest absolute value in each row, and their values, strongest first."""
    best = values.abs().topk(min(count, values.shape[1]), dim=1).indices
    return best.numpy(), values.gather(1, best).numpy()


def partners(model: BDH, progress: Callable[[int, int], None] | None = None) -> tuple[Array, Array]:
    """Return the strongest wires of each neuron, by absolute value, of each of `KINDS`.

    Args:
        model: the model.
        progress: called with how many neurons are done, and of how many.

    Returns:
        global ids (N, 4, p) and weights (N, 4, p).
    """
    rows, N = written(model), model.config.n_neurons
    columns = [weight.detach().float().cpu().movedim(1, 0).flatten(1) for weight in (model.encoder, model.encoder_v)]
    p = min(PARTNERS, N)
    ids, weights = np.zeros((N, len(KINDS), p), np.uint32), np.zeros((N, len(KINDS), p), np.float32)
    for start in range(0, N, _ROWS):
        some = slice(start, start + _ROWS)
        for encoder, column in enumerate(columns):  # (D, N)
            for kind, block in enumerate((column[:, some].T @ rows.T, rows[some] @ column)):
                ids[some, 2 * encoder + kind], weights[some, 2 * encoder + kind] = strongest(block, p)
        if progress:
            progress(min(start + _ROWS, N), N)
    return ids, weights
