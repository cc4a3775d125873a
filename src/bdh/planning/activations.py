"""Bytes that a training pass keeps between forward and backward, by formula, for each way of computing it.

Shapes: B batch, T tokens, H heads, N neurons in all, K = N/H neurons per head, D embedding, V vocabulary, L levels.
"""

from __future__ import annotations

from typing import Literal

from bdh.config import BDHConfig
from bdh.ops import CROSSOVER, native_levels
from bdh.ops.native_plan import Plan as Tiles
from bdh.ops.parallel import BLOCK
from bdh.ops.tiled import chunks

Form = Literal["reference", "dense", "chunked"]
"""How attention is written; see `bdh.ops`."""
WIDE = 4
"""Bytes of a float32."""


def form_of(config: BDHConfig, T: int) -> Form:
    """Return the form of attention that the composed path takes for windows of T tokens."""
    return "dense" if CROSSOVER * config.n_embd >= T else "chunked"


def blocks_of(T: int) -> list[tuple[int, int]]:
    """Cut T tokens into the blocks of `ops.parallel`: (tokens before, tokens inside)."""
    return [(start, min(BLOCK, T - start)) for start in range(0, T, BLOCK)]


def composed(
    config: BDHConfig,
    B: int,
    T: int,
    *,
    form: Form | None = None,
    carried: bool = False,
    bytes_per_number: int = WIDE,
) -> int:
    """Count the tensors that autograd saves when a pass is composed of PyTorch operations on a CPU.

    Exact; a storage that is saved twice counts once, parameters do not count.

    Args:
        config: shape of the model.
        B: windows.
        T: tokens of a window.
        form: of attention; None is the one that the pass takes by itself.
        carried: the pass goes on from a memory, which is kept too.
        bytes_per_number: 4 in float32; 2 under autocast to bfloat16.

    Returns:
        Bytes.

    Examples:
        >>> composed(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=10, vocab_size=61), 2, 24)
        498756
    """
    e, D, N = bytes_per_number, config.n_embd, config.n_neurons
    form = form or ("chunked" if carried else form_of(config, T))
    total = config.n_layer * _composed_level(config, B, T, form, carried, e)
    total += outside(config, B, T, bytes_per_number=e)
    total += 4 * T * N // config.n_head  # the table of rotations
    if e < WIDE:
        # the weights rounded; the encoders only where they are not copied anyway
        total += e * N * D * (1 if _copies(config, B) else 3)
    return total


def _composed_level(config: BDHConfig, B: int, T: int, form: Form, carried: bool, e: int) -> int:
    H, D, N = config.n_head, config.n_embd, config.n_neurons
    neurons, width = B * T * N, B * T * D  # numbers in (B, H, T, K) and (B, T, D)
    wide = carried or form == "chunked"  # a state is read and written in float32
    # x, y and x * y laid out for the decoder; the rotated x as attention takes it
    total = 3 * e * neurons + (WIDE if wide else e) * neurons
    if config.dropout:
        total += e * neurons
    if config.winners_per_head not in (None, config.neurons_per_head):
        total += (e + 1) * neurons  # the positive drive, and who lost
    # a and what its norm makes of it; the write and the residual; the statistics of three norms
    total += 2 * e * H * width + (e + WIDE) * width + 2 * B * T * (e * H + e + WIDE)
    if _copies(config, B):
        total += 2 * e * B * N * D + e * H * width  # both encoders and v, as the products have them
    else:
        total += WIDE * width if e == WIDE or wide else 0  # v itself
        total += e * width if e < WIDE else 0  # v rounded for the drive
    return total + _attention(config, B, T, form, carried, e)


def _copies(config: BDHConfig, B: int) -> bool:
    """Whether a product over heads and windows copies what one of the two shares: else a view does."""
    return B > 1 and config.n_head > 1


def _attention(config: BDHConfig, B: int, T: int, form: Form, carried: bool, e: int) -> int:
    """Scores, v as the products have it where that is not v itself, and the states that are read."""
    H, D, N = config.n_head, config.n_embd, config.n_neurons
    wide = carried or form == "chunked"
    copied = B * H * D if _copies(config, B) else B * D if e < WIDE and not wide else 0  # numbers per token
    if form == "reference":
        if carried:  # token by token: each reads a state, and all but the last write one that is read
            return WIDE * (T * B * N * D + (T - 1) * copied)
        return e * (B * H * T * T + copied * T)
    blocks = blocks_of(T)
    if form == "dense":
        return e * sum(B * H * inside * (before + inside) + copied * (before + inside) for before, inside in blocks)
    scores = sum(B * H * inside**2 + copied * inside for _, inside in blocks)
    written = sum(copied * inside + B * N * D for _, inside in blocks[:-1])
    return WIDE * (scores + written + carried * B * N * D)


def outside(config: BDHConfig, B: int, T: int, *, bytes_per_number: int = WIDE) -> int:
    """Bytes kept before and after the levels: the ids, the norm of the embedding, v at the readout, the loss."""
    e, D, V = bytes_per_number, config.n_embd, config.vocab_size
    ids, embedded, loss = 2 * 8, WIDE * (D + 2), WIDE * V
    rounded = e * D * V if e < WIDE else 0  # the readout's weights
    return B * T * (ids + embedded + e * D + loss) + rounded + WIDE


def native(
    config: BDHConfig,
    B: int,
    T: int,
    *,
    density: float,
    again: bool = False,
    carried: bool = False,
    bytes_per_number: int = WIDE,
) -> int:
    """Count what the native kernels keep: per level lists of the entries that fire, scores and vectors per token.

    Args:
        config: shape of the model.
        B: windows.
        T: tokens of a window.
        density: share of x that fires, averaged over levels.
        again: levels are computed again in the backward pass, so that one of them at a time keeps its lists.
        carried: the pass goes on from a memory, which is kept too.
        bytes_per_number: 4 in float32; 2 under autocast to bfloat16, which leaves what the levels keep as it is.

    Returns:
        Bytes; exact for a given number of entries.

    Examples:
        >>> config = BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=10, vocab_size=61)
        >>> native(config, 2, 24, density=0.2) < native(config, 2, 24, density=0.5) < composed(config, 2, 24)
        True
    """
    level = tiles(config, B, T).level_nbytes(density)
    before_and_after = outside(config, B, T, bytes_per_number=bytes_per_number)
    before_and_after += carried * WIDE * B * config.n_layer * config.n_neurons * config.n_embd
    if again:
        return config.n_layer * WIDE * B * T * config.n_embd + level + before_and_after
    return config.n_layer * level + before_and_after


def computed_again(config: BDHConfig, B: int, T: int, *, density: float) -> bool:
    """Whether the native kernels find that the lists of all levels would take too much memory."""
    return config.n_layer * tiles(config, B, T).level_nbytes(density) > native_levels.memory_budget()


def tiled(config: BDHConfig, B: int, T: int, *, bytes_per_number: int = WIDE) -> int:
    """Count what the tiled path keeps: no tensor with a neuron index, but scores inside chunks.

    Args:
        config: shape of the model.
        B: windows.
        T: tokens of a window.
        bytes_per_number: 4 in float32; 2 under autocast to half precision.

    Returns:
        Bytes, exact.
    """
    e, H, D = bytes_per_number, config.n_head, config.n_embd
    n, C = chunks(T, D)
    tokens = B * n * C
    winners = (e + 4) * H if config.winners_per_head is not None else 0
    level = tokens * (WIDE * D + e * D + e * H * D + e * H * C + winners)  # v, the write, a, scores
    padding = e * D * (tokens - T) if B == 1 and e == WIDE else 0  # the readout reads v where the levels wrote it
    return config.n_layer * level + padding + outside(config, B, T, bytes_per_number=e)


def tiles(config: BDHConfig, B: int, T: int) -> Tiles:
    """Return how the native kernels cut a pass."""
    return Tiles(B, T, config.n_head, config.neurons_per_head, config.n_embd, winners=config.winners_per_head)
