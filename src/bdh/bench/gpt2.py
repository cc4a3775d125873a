"""The peer: GPT-2 with as many parameters and the same vocabulary, from `transformers`, with random weights.

Shapes: B batch, T tokens, V vocabulary; L layers, E width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bdh.bench.protocol import Declined
from bdh.config import BDHConfig

WINDOW = 1024
"""Positions of GPT-2, as released; more only if one training window needs them."""
TOLERANCE = 0.05
"""Largest difference in the number of parameters."""
ASPECT = 64
"""Width per layer of the released GPT-2 small (768 / 12); the shape nearest to it is taken."""


def n_parameters(layers: int, width: int, vocab_size: int, n_positions: int) -> int:
    """Return the size of a GPT-2 with tied embeddings: `(V + positions) E + L (12 E^2 + 13 E) + 2 E`.

    Examples:
        >>> n_parameters(12, 768, 50257, 1024)     # as released
        124439808
    """
    return (vocab_size + n_positions) * width + layers * (12 * width + 13) * width + 2 * width


def shape_of(target: int, vocab_size: int, n_positions: int = WINDOW) -> tuple[int, int]:
    """Return layers and width of a GPT-2 within `TOLERANCE` of `target` parameters.

    Widths are multiples of 64, or of the largest smaller power of two that has a shape at all.

    Raises:
        ValueError: there is none: the positions alone are too large a share of so small a model.

    Examples:
        >>> shape_of(25_296_896, 256)
        (8, 512)
    """
    for unit in (64, 32, 16, 8):
        fitting = []
        for width in range(unit, 4096 + unit, unit):
            fixed = n_parameters(0, width, vocab_size, n_positions)
            layers = round((target - fixed) / (n_parameters(1, width, vocab_size, n_positions) - fixed))
            if layers >= 1:
                off = abs(n_parameters(layers, width, vocab_size, n_positions) / target - 1)
                if off <= TOLERANCE:
                    fitting.append((abs(math.log(width / layers / ASPECT)), off, layers, width))
        if fitting:
            return min(fitting)[2:]
    raise ValueError(f"no GPT-2 with {n_positions:,} positions has {target:,} parameters (within {TOLERANCE:.0%})")


class GPT2:
    """GPT-2 as `transformers` runs it by default: fused attention, a cache of keys and values that grows.

    Args:
        config: the BDH whose number of parameters and vocabulary it takes.
        most_tokens: of one training window or context.
        seed: of the weights.
        positions: as released; more where `most_tokens` needs them. Fewer leave more parameters to the layers.
        dropout: everywhere where GPT-2 has one.

    Raises:
        Declined: transformers is not installed, or no shape fits.
    """

    def __init__(
        self, config: BDHConfig, most_tokens: int, seed: int, *, positions: int = WINDOW, dropout: float = 0.0
    ) -> None:
        try:
            from transformers import GPT2Config, GPT2LMHeadModel
        except ImportError:
            raise Declined('skipped: pip install "bdh[bench]" for transformers') from None
        self.window = max(positions, most_tokens)
        try:
            layers, width = shape_of(config.n_parameters, config.vocab_size, self.window)
        except ValueError as error:
            raise Declined(str(error)) from None
        heads = width // next(size for size in (64, 32, 16, 8) if width % size == 0)
        shape = GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=self.window,
            n_embd=width,
            n_layer=layers,
            n_head=heads,
            embd_pdrop=dropout,
            resid_pdrop=dropout,
            attn_pdrop=dropout,
            bos_token_id=None,
            eos_token_id=None,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.module: Any = GPT2LMHeadModel(shape)
        self.about = f"{layers} layers x {width} wide, {heads} heads, {self.window:,} positions"

    def loss(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of a batch."""
        self._check(idx)
        logits = self.module.train()(idx, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    @torch.no_grad()
    def read(self, idx: Tensor) -> Any:
        """Read a prompt and return the cache; only the last logits are computed, as in generation."""
        self._check(idx)
        return self.module.eval()(idx, use_cache=True, logits_to_keep=1).past_key_values

    def reader(self, idx: Tensor, position: int | None) -> Callable[[Tensor], Tensor]:
        """Return what reads one more token after `idx`, again and again after the same context."""
        T = idx.shape[1] if position is None else position
        context = idx.repeat(1, math.ceil(T / idx.shape[1]))[:, :T]
        self._check(context, more=1)
        cache = self.read(context)

        @torch.no_grad()
        def read_one(token: Tensor) -> Tensor:
            logits: Tensor = self.module(token, past_key_values=cache, use_cache=True).logits
            cache.crop(-1)  # minus one token
            return logits

        return read_one

    def _check(self, idx: Tensor, more: int = 0) -> None:
        if idx.shape[1] + more > self.window:
            raise Declined(f"its window ends at {self.window:,} tokens")
