"""Rotary positions whose phase is exact at any position and under any cast.

Frequencies are a function of the number of neurons per head, never a stored tensor, so `.half()` cannot
round them; phases are taken modulo one turn in float64 from integer positions, so position 1e8 is as
exact as position 0.

Shapes: B batch, H heads, T tokens, K neurons per head.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

THETA = 2.0**16
"""Base of the frequencies, as in the released code."""


def frequencies(neurons_per_head: int) -> Tensor:
    """Return the turns per token of each neuron pair: f_j = THETA^(-2j/K) / (2 pi), j = 0..K/2-1.

    Neurons 2j and 2j+1 of a head rotate together (paper, Def. 4: U = RoPE).

    Returns:
        (K/2,) float64.

    Examples:
        >>> round(1 / frequencies(8192)[0].item(), 4)   # the fastest pair: one turn in 2 pi tokens
        6.2832
    """
    j = torch.arange(0, neurons_per_head, 2, dtype=torch.float64)
    return THETA ** (-j / neurons_per_head) / (2 * math.pi)


def rotation(neurons_per_head: int, start: int, length: int, like: Tensor) -> Tensor:
    """Return the unit complex numbers exp(2 pi i f_j t) of positions start .. start+length-1.

    Args:
        neurons_per_head: K.
        start: position of the first token (any integer up to 2**53).
        length: T.
        like: a tensor whose device the result lives on; float64 input gives complex128, any other
            precision complex64.

    Returns:
        (T, K/2) complex; under torch.compile (T, K/2, 2), real and imaginary parts.
    """
    dtype = torch.complex128 if like.dtype == torch.float64 else torch.complex64
    if torch.compiler.is_compiling():  # no code is generated for complex numbers, and a cache is looked through
        angle = _angles(neurons_per_head, start, length)
        pairs = torch.stack((angle.cos(), angle.sin()), dim=-1)
        return pairs.to(device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))
    if start == 0:
        return _rotation(neurons_per_head, length, like.device, dtype)
    # inside a text no table is asked for twice: keeping it would only push out one that is
    return _table(neurons_per_head, start, length, like.device, dtype)


# training asks for the same table at every step, validation between them for another length at most; each may be
# large (128 MiB at K = 8192, T = 4096)
@lru_cache(maxsize=2)
def _rotation(neurons_per_head: int, length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return _table(neurons_per_head, 0, length, device, dtype)


def _table(neurons_per_head: int, start: int, length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    # built on the CPU: some accelerators have no float64. Inference tensors could not be reused in training
    with torch.inference_mode(False):
        angle = _angles(neurons_per_head, start, length)
        return torch.polar(torch.ones_like(angle), angle).to(device=device, dtype=dtype)


def _angles(neurons_per_head: int, start: int, length: int) -> Tensor:
    positions = torch.arange(start, start + length, dtype=torch.float64)[:, None]
    return (positions * frequencies(neurons_per_head)).frac() * (2 * math.pi)


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Rotate each neuron pair of `x` by its phase: (x_2j + i x_2j+1) * turn_j.

    Computed in at least float32; the result has the dtype of `x`.

    Args:
        x: (..., T, K).
        turn: from `rotation`.

    Returns:
        (..., T, K).

    Examples:
        >>> x = torch.randn(1, 2, 5, 8)
        >>> y = rotate(x, rotation(8, 1000, 5, x))
        >>> torch.allclose(x.norm(dim=-1), y.norm(dim=-1))   # a rotation keeps lengths
        True
    """
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    pairs = wide.unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():
        (real, imag), (cos, sin) = pairs.unbind(-1), turn.unbind(-1)
        out = torch.stack((real * cos - imag * sin, imag * cos + real * sin), dim=-1)
    else:
        out = torch.view_as_real(torch.view_as_complex(pairs) * turn)
    return out.flatten(-2).to(x.dtype)
