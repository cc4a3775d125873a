"""Most memory that a run holds, by formula: what is there all the time, and what each of its phases adds.

Shapes: B batch, T tokens, H heads, N neurons in all, K = N/H neurons per head, D embedding, L levels.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from bdh.config import BDHConfig, TrainConfig
from bdh.ops import native_plan, tiled
from bdh.planning import activations
from bdh.planning.activations import WIDE
from bdh.train.validation import EVALUATED

PROCESS = 330 * 2**20
"""Bytes of interpreter and libraries, with what these load at the first steps (measured: docs/LOG.md)."""
COMPOSED_WORK = 1.75
"""Arrays (B, T, N) that the backward pass of composed operations holds beside what was kept (measured)."""
HELD = {"native": 1.1, "tiled": 1.3, "composed": 1.6, "reference": 1.6}
"""What the C allocator takes over what is asked of it, for the holes between the blocks (measured)."""


def of_device(device: torch.device) -> int | None:
    """Return the bytes of memory that a device has: the machine, or the container; None where it does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type != "cpu":
        return None
    try:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
    try:
        return min(found, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    except (OSError, ValueError):  # no container, or one without a limit
        return found


def phases(
    config: BDHConfig,
    train: TrainConfig,
    path: str,
    device: torch.device,
    *,
    density: float,
    carried: int,
    bytes_per_number: int,
) -> dict[str, int]:
    """Return the most that a run holds in each phase.

    Args:
        config: shape of the model.
        train: batches.
        path: how training passes are computed.
        device: where; on a CPU the libraries count too.
        density: share of x that fires; a run begins with the most.
        carried: bytes that the rows remember from step to step.
        bytes_per_number: 4 in float32; 2 under autocast to half precision.

    Returns:
        Bytes, by phase.
    """
    e, T, weights = bytes_per_number, train.block_size, WIDE * config.n_parameters
    # AdamW holds two numbers per parameter
    always = (PROCESS if device.type == "cpu" else 0) + 3 * weights + carried
    held = HELD[path] if device.type == "cpu" else 1.0
    windows = max(1, min(train.batch_size, EVALUATED // (T * config.n_neurons)))
    if train.eval_windows is not None:
        windows = min(train.eval_windows, windows)
    training = always + round(held * _training(config, train, path, density, e))
    return {
        "training": training,
        "evaluation": always + _reading(config, windows, T, e),
        "sampling": always + (config.n_layer + 2) * WIDE * config.n_neurons * config.n_embd,  # states, turned encoders
        # a copy of weights and moments, in the machine's memory, is written while training goes on, and the memories
        "training while a checkpoint is written": training + (3 * weights if device.type == "cpu" else 0) + carried,
    }


def _kept(config: BDHConfig, train: TrainConfig, path: str, density: float, e: int) -> int:
    """Bytes that a pass keeps."""
    B, T, carried = train.batch_size, train.block_size, train.batches == "streams"
    if path == "native":
        again = activations.computed_again(config, B, T, density=density)
        return activations.native(config, B, T, density=density, again=again, carried=carried, bytes_per_number=e)
    if path == "tiled":
        return activations.tiled(config, B, T, bytes_per_number=e)
    form: activations.Form | None = "reference" if path == "reference" else None
    return activations.composed(config, B, T, form=form, carried=carried, bytes_per_number=e)


def _training(config: BDHConfig, train: TrainConfig, path: str, density: float, e: int) -> int:
    """Bytes that a pass takes beside the weights and the optimiser's numbers."""
    B, T, D = train.batch_size, train.block_size, config.n_embd
    maps, width = WIDE * config.n_neurons * D, WIDE * B * T * D  # of one of the three maps; of an array (B, T, D)
    pass_ = _kept(config, train, path, density, e) + (2 * WIDE + e) * B * T * config.vocab_size  # logits, two gradients
    if path == "native":
        # two maps neuron-major and three gradients; at the end two of these turned back
        return max(5 * maps + pass_ + 8 * width + _native_work(config, B, T, density), 7 * maps)
    if path == "tiled":
        # three gradients, and the maps rounded
        return 3 * maps + (3 * maps * e // WIDE if e < WIDE else 0) + pass_ + 8 * width + _tiled_work(config, B, T, e)
    return pass_ + round(COMPOSED_WORK * e * B * T * config.n_neurons)


def _native_work(config: BDHConfig, B: int, T: int, density: float) -> int:
    """One head's gradients, states between chunks, phases, and tiles."""
    tiles = activations.tiles(config, B, T)
    rows = max(part.stop - part.start for part in tiles.rows)
    head = WIDE * rows * tiles.chunk * config.neurons_per_head  # x of a head at all its tokens
    chunks = len(tiles.tokens)
    states = chunks * WIDE * config.n_neurons * config.n_embd if chunks > 1 else 0
    winners = head if config.winners_per_head is not None else 0
    phases = 2 * WIDE * config.neurons_per_head * tiles.chunk
    return round(density * head) + winners + states + phases + 3 * WIDE * native_plan.TILE


def _tiled_work(config: BDHConfig, B: int, T: int, e: int) -> int:
    """One head's activity and its gradient, phases, and tiles."""
    rows = min(B, max(1, tiled.CPU.tokens // T))
    head = e * rows * T * config.neurons_per_head
    return 2 * head + 2 * WIDE * config.neurons_per_head * T + 4 * WIDE * tiled.CPU.entries


def _reading(config: BDHConfig, B: int, T: int, e: int) -> int:
    """Bytes that a composed pass without gradients takes: x, rotated x, y, x * y, and that laid out for the decoder."""
    H, D, N = config.n_head, config.n_embd, config.n_neurons
    neurons, widths = e * B * T * N, e * B * T * H * D
    copied = e * B * N * D if B > 1 and H > 1 else 0  # a map, for every window
    laid_out = neurons if H > 1 else 0
    table = WIDE * T * N // H
    return max(4 * neurons + laid_out, 3 * neurons + copied) + 2 * widths + e * B * H * T * T + table
