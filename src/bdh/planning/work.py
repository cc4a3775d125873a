"""Floating-point operations per token, by formula: one multiply-add counts as two.

Shapes: T tokens of a window, H heads, N neurons in all, K = N/H neurons per head, D embedding, V vocabulary, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass

from bdh.config import BDHConfig
from bdh.ops.native_attention import CAUSAL, DENSE_ABOVE
from bdh.planning.activations import Form, blocks_of, form_of, tiles


@dataclass(frozen=True)
class Activity:
    """Shares of neurons that are active, averaged over tokens and levels.

    Examples:
        >>> round(AT_RANDOM.of(BDHConfig(sparsity=0.9)).x, 3)
        0.1
    """

    x: float
    """Fires."""
    xy: float
    """Fires and passes the gate."""

    def of(self, config: BDHConfig) -> Activity:
        """Return what is left of it where `sparsity` limits how many may fire."""
        if config.winners_per_head is None:
            return self
        x = min(self.x, config.winners_per_head / config.neurons_per_head)
        return Activity(x, self.xy * x / self.x)


AT_RANDOM = Activity(0.5, 0.25)
"""Of a model with random weights."""
TRAINED = Activity(0.2, 0.05)
"""Of a trained one, about (docs/LOG.md); reached in the first few hundred steps."""


def forward(config: BDHConfig, T: int, *, form: Form | None = None) -> float:
    """Count the products of a forward pass as composed of PyTorch operations, per token.

        3 2ND per level (drive, gate, decoder), scores and their read, 2DV for the readout

    Args:
        config: shape of the model.
        T: tokens of a window.
        form: of attention; None is the one that the composed path takes by itself.
    """
    D, N, L = config.n_embd, config.n_neurons, config.n_layer
    pairs, states = _attention(T, form or form_of(config, T))
    attention = pairs / T * (2 * N + 2 * config.n_head * D) + states / T * 2 * N * D
    return L * (6 * N * D + attention) + 2 * D * config.vocab_size


def _attention(T: int, form: Form) -> tuple[int, int]:
    """Return how many scores are computed, and how many tokens read or write a state, each counted."""
    if form == "reference":
        return T * T, 0
    blocks = blocks_of(T)
    if form == "dense":
        return sum(inside * (before + inside) for before, inside in blocks), 0
    return sum(inside**2 for _, inside in blocks), T + sum(inside for _, inside in blocks[1:])


def training(config: BDHConfig, T: int, *, form: Form | None = None) -> float:
    """Count the products of a training step, per token: backward takes two for each of the forward pass.

    But one for the scores inside a block, whose tokens are queries and keys in one (`ops.parallel.own_scores`).

    Examples:
        >>> from bdh.config import preset
        >>> round(training(preset("25m"), 512) / 1e9, 2)
        1.27
    """
    form = form or form_of(config, T)
    own = 0 if form == "reference" else sum(inside**2 for _, inside in blocks_of(T))
    return 3 * forward(config, T, form=form) - config.n_layer * own / T * 2 * config.n_neurons


def native_training(config: BDHConfig, T: int, activity: Activity) -> float:
    """Count the products of a training step by the native kernels, per token: most of them only where neurons fire.

    Args:
        config: shape of the model.
        T: tokens of a window.
        activity: shares of neurons that are active.
    """
    D, N = config.n_embd, config.n_neurons
    map_, HD = 2 * N * D, config.n_head * D
    cut = tiles(config, 1, T)
    last = len(cut.tokens) - 1
    entries = activity.x * (map_ + (2 * map_ if activity.x <= DENSE_ABOVE else 0)) + activity.xy * 5 * map_
    dense = map_ + (0 if activity.x <= DENSE_ABOVE else 2 * map_)
    total = 0.0
    for c, part in enumerate(cut.tokens):
        C = part.stop - part.start
        causal = sum(min(CAUSAL, C - first) * min(C, first + CAUSAL) for first in range(0, C, CAUSAL))
        scores = causal * 2 * N + C * C * 2 * N + C * C * 3 * 2 * HD  # forward; backward; three products with v or d_a
        # the state: written, written again, read; backward of the read (two products) and of the write (two)
        states = (4 if c < last else 0) + (3 if c > 0 else 0)
        total += scores + C * states * map_
    return config.n_layer * (dense + entries + total / T) + readout(config)


def readout(config: BDHConfig) -> float:
    """Count the products of the readout in a training step, per token."""
    return 6 * config.n_embd * config.vocab_size
