"""The C++ kernels of the CPU: whether they are there, and one token of generation through all levels.

Shapes: B batch, L levels, H heads, K neurons per head, D embedding.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bdh.config import Precision

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


Levels = Sequence[Mapping[str, Tensor]]
"""What each level carries, by name (`bdh.parts.Carried`)."""


@dataclass(frozen=True)
class SpikingStep:
    """Constants of spiking neurons (`ops.lif.Neurons`) for `step`; all levels but for the thresholds alike."""

    decay: Tensor
    """(H,) float32."""
    gain: Tensor
    """(H,) float32."""
    threshold: Tensor
    """(L, H) float32."""
    v_rest: float
    v_reset: float
    trace_decay: float
    reset: str
    refractory: int
    graded: bool

    def on(self, levels: Levels) -> Any:
        """Return the kernels' view of neurons with these states."""
        states = ([level[name] for level in levels] for name in ("membrane", "refractory", "trace"))
        more = self.v_rest, self.v_reset, self.trace_decay, self.reset, self.refractory, self.graded
        return kernels.Spikes(*states, self.decay, self.gain, self.threshold, *more)


@dataclass(frozen=True)
class FadingStep:
    """Constants of the fading memory (`bdh.mechanisms.KernelSTDP`) for `step`."""

    strength: Tensor
    """(H,) float32."""
    rate: Tensor
    """(H,) float32, 1 / tau."""

    def on(self, levels: Levels, position: int) -> Any:
        """Return the kernels' view of the memory with these states, `position` tokens after the beginning."""
        rows, at = ([level[name] for level in levels] for name in ("fading", "fading_at"))
        return kernels.Fades(rows, at, self.strength, self.rate, position)


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
    spiking: SpikingStep | None = None
    """None: the neurons are ReLUs."""
    fading: FadingStep | None = None
    """None: rho is the only memory."""


def step_weights(
    encoder: Tensor,
    encoder_v: Tensor,
    decoder: Tensor,
    precision: Precision = "float32",
    spiking: SpikingStep | None = None,
    fading: FadingStep | None = None,
) -> StepWeights:
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
    return StepWeights(rows[0], rows[1], rows[2], torch.stack(scales), spiking, fading)


def _quantise(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows in int8 and their scales; a row that is not finite gets a scale that is not."""
    scale = rows.abs().amax(-1) / 127
    # rows of zeros have scale 0, and those near the smallest float an inexact one
    steps = (rows / scale[..., None]).nan_to_num(0.0, 0.0, 0.0).round().clamp(-127, 127)
    return steps.to(torch.int8).contiguous(), scale.contiguous()


def step(v: Tensor, weights: StepWeights, levels: Levels, turn: Tensor, position: int = 0) -> Tensor:
    """Pass one token of each sequence through all levels; the states are updated in their own memory.

    Per level: the drive of every neuron, then reads and writes of the state at firing pairs, the gate where x fires,
    the decoder where the gate is open. All is computed in float32, whatever the weights and states are stored in. A
    state in bfloat16 is rounded to the nearest at each write.

    Args:
        v: (B, 1, D) float32 on the CPU.
        weights: from `step_weights`.
        levels: what each level carries, contiguous. `rho`, and `fading` if there is one, (B, H, K, D), all float32 or
            all bfloat16; of spiking neurons `membrane` and `trace` float32 and `refractory` int8, (B, H, K). A row of
            the fading memory is brought up to date when its neuron fires: it stands as it was after `fading_at` tokens,
            (B, H, K) int32.
        turn: (1, K/2) complex phases of the position.
        position: tokens read before, for the fading memory.

    Returns:
        (B, 1, D).
    """
    cosine, sine = turn[0].real.contiguous(), turn[0].imag.contiguous()
    v = v.detach()[:, 0].clone(memory_format=torch.contiguous_format)
    maps = weights.encoder, weights.encoder_v, weights.decoder, weights.scales
    spikes = weights.spiking and weights.spiking.on(levels)
    fades = weights.fading and weights.fading.on(levels, position)
    rho = [level["rho"] for level in levels]
    kernels.step(*maps, cosine, sine, rho, v, torch.get_num_threads(), spikes, fades)
    return v[:, None]
