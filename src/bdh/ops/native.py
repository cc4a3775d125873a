"""The C++ kernels of the CPU: whether they are there, and one token of generation through all levels.

Shapes: B batch, L levels, H heads, K neurons per head, D embedding.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

try:
    kernels: Any = importlib.import_module("bdh._native")
    why_not = ""
except ImportError as error:
    kernels = None
    why_not = f"not built ({error}); install with a C++ compiler at hand"


def available() -> bool:
    """Whether the kernels are built."""
    return kernels is not None


def instruction_set() -> str:
    """Name of the instruction set that the kernels use on this processor."""
    return str(kernels.instruction_set())


Precision = Literal["float32", "bfloat16", "int8"]
"""How the copies of the weights that `step` reads are stored."""


@dataclass(frozen=True)
class StepWeights:
    """Copies of the maps of a level, neuron-major (H, K, D), as `step` reads them row by row.

    In int8 each row has a scale of its own: entry d of neuron n stands for scale_n q_nd, q_nd = -127..127.
    """

    encoder: Tensor
    encoder_v: Tensor
    decoder: Tensor
    scales: Tensor
    """(3, H, K) float32, of the three maps in turn; empty in the other precisions."""


def step_weights(encoder: Tensor, encoder_v: Tensor, decoder: Tensor, precision: Precision = "float32") -> StepWeights:
    """Copy the encoders (H, D, K) and the decoder (H*K, D) for `step`; to be made again when they change.

    Rounding is to the nearest: in bfloat16 of each entry, in int8 to a multiple of the row's largest entry / 127.
    """
    H, D, K = encoder.shape
    maps = encoder.detach().mT, encoder_v.detach().mT, decoder.detach().view(H, K, D)
    if precision == "int8":
        rows, scales = zip(*map(_quantise, maps), strict=True)
    else:
        rows = tuple(map_.to(getattr(torch, precision)).contiguous() for map_ in maps)
        scales = (torch.empty(0, 0),) * 3
    return StepWeights(rows[0], rows[1], rows[2], torch.stack(scales))


def _quantise(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows in int8 and their scales; a row that is not finite gets a scale that is not."""
    scale = rows.abs().amax(-1) / 127
    # rows of zeros have scale 0, and those near the smallest float an inexact one
    steps = (rows / scale[..., None]).nan_to_num(0.0, 0.0, 0.0).round().clamp(-127, 127)
    return steps.to(torch.int8).contiguous(), scale.contiguous()


def step(v: Tensor, weights: StepWeights, rho: tuple[Tensor, ...], turn: Tensor) -> Tensor:
    """Pass one token of each sequence through all levels; the states are updated in their own memory.

    Per level: the drive of every neuron, then reads and writes of the state at firing pairs, the gate where x fires,
    the decoder where the gate is open. All is computed in float32, whatever the weights and states are stored in. A
    state in bfloat16 is rounded to the nearest at each write.

    Args:
        v: (B, 1, D) float32 on the CPU.
        weights: from `step_weights`.
        rho: L contiguous states (B, H, K, D), all float32 or all bfloat16.
        turn: (1, K/2) complex phases of the position.

    Returns:
        (B, 1, D).
    """
    cosine, sine = turn[0].real.contiguous(), turn[0].imag.contiguous()
    v = v.detach()[:, 0].clone(memory_format=torch.contiguous_format)
    maps = weights.encoder, weights.encoder_v, weights.decoder, weights.scales
    kernels.step(*maps, cosine, sine, list(rho), v, torch.get_num_threads())
    return v[:, None]
