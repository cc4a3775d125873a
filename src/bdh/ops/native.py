"""The C++ kernels of the CPU: whether they are there, and one token of generation through all levels.

Shapes: B batch, L levels, H heads, K neurons per head, D embedding.
"""

from __future__ import annotations

import importlib
from typing import Any

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


NeuronMajor = tuple[Tensor, Tensor]
"""Copies of the encoders (H, K, D), which `step` reads row by row."""


def neuron_major(encoder: Tensor, encoder_v: Tensor) -> NeuronMajor:
    """Copy the encoders (H, D, K) for `step`; to be made again when they change."""
    return encoder.detach().mT.contiguous(), encoder_v.detach().mT.contiguous()


def step(v: Tensor, encoders: NeuronMajor, decoder: Tensor, rho: tuple[Tensor, ...], turn: Tensor) -> Tensor:
    """Pass one token of each sequence through all levels; the states are updated in their own memory.

    Per level: the drive of every neuron, then reads and writes of the state at firing pairs, the gate where x fires,
    the decoder where the gate is open.

    Args:
        v: (B, 1, D) float32 on the CPU.
        encoders: from `neuron_major`.
        decoder: (H*K, D).
        rho: L contiguous states (B, H, K, D).
        turn: (1, K/2) complex phases of the position.

    Returns:
        (B, 1, D).
    """
    maps = *encoders, decoder.detach().view(encoders[0].shape)
    cosine, sine = turn[0].real.contiguous(), turn[0].imag.contiguous()
    v = v.detach()[:, 0].clone(memory_format=torch.contiguous_format)
    for state in rho:
        kernels.step(*maps, cosine, sine, state, v, torch.get_num_threads())
    return v[:, None]
