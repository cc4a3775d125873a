"""How a pass of the native back end is cut into tiles, and what it keeps of a level for the backward pass.

Shapes: B batch, T tokens, H heads, K neurons per head, D embedding; in a tile J neurons, R rows of the batch with C
tokens each, M = R*C.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from bdh.ops.rotary import frequencies

TILE = 2**19
"""Entries of a tile: 2 MiB, the second-level cache of a core."""
MOST_TOKENS = 1024
"""Tokens of a tile at most; the kernels take up to 4,096."""
ROWS = 2**17
"""Entries of the (tokens x D) matrices that the kernels keep at hand: 512 KiB; short rows of a batch share a tile."""


@dataclass(frozen=True)
class Weights:
    """The three maps, or their gradients, neuron-major (H, K, D)."""

    encoder: Tensor
    encoder_v: Tensor
    decoder: Tensor


@dataclass(frozen=True)
class Fired:
    """What is kept of a tile, per firing entry, ordered by neuron and token."""

    start: Tensor  # (J+1,) int64
    token: Tensor  # (nnz,) uint16
    x: Tensor  # (nnz,)
    gate: Tensor  # (nnz,)

    @property
    def entries(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.start, self.token, self.x


Place = tuple[int, int, int]  # group of rows, chunk of tokens, head


@dataclass(frozen=True)
class Level:
    """What is kept of a level."""

    v: Tensor  # (B, T, D) at its entry
    rho: Tensor | None  # (B, H, K, D) memory at its entry, a constant; None is empty
    a: Tensor  # (H, B, T, D) read, before its norm
    write: Tensor  # (B, T, D) decoded, before its norm
    fired: dict[Place, list[Fired]] = field(default_factory=dict)
    scores: dict[Place, Tensor] = field(default_factory=dict)  # (R, C, C), strictly below the diagonal

    @classmethod
    def empty(cls, v: Tensor, rho: Tensor | None, H: int) -> Level:
        """With room for the reads of H heads; without heads it keeps nothing but what came in."""
        return cls(v, rho, v.new_empty(H, *v.shape), v.new_zeros(v.shape if H else 0))

    @property
    def nbytes(self) -> int:
        lists = sum(t.nbytes for tile in self.fired.values() for f in tile for t in (*f.entries, f.gate))
        return lists + sum(t.nbytes for t in (self.v, self.a, self.write, *self.scores.values()))


class Row(NamedTuple):
    """The texts of one row of a tile."""

    old: slice
    """Tokens of the tile that go on with the text before, and see its state."""
    new: slice
    """Tokens that the state after is of."""
    starts: list[int]
    """Places in the row where a text begins."""


@dataclass(frozen=True)
class Dropout:
    seed: int
    rate: float

    def of(self, place: Place, block: int) -> tuple[int, float]:
        """Seed of one tile, and the rate."""
        key = self.seed
        for part in (*place, block):
            key = (key * 0x9E3779B97F4A7C15 + part + 1) % 2**64
        return key, self.rate


class Plan:
    """How a call is cut into tiles, and the phases of a chunk."""

    def __init__(
        self,
        B: int,
        T: int,
        H: int,
        K: int,
        D: int,
        *,
        winners: int | None = None,
        position: int = 0,
        fresh: Tensor | None = None,
    ) -> None:
        self.B, self.H, self.K, self.D, self.winners = B, H, K, D, winners
        self.through_time = True
        """Whether gradients go to what tokens wrote."""
        # the quadratic form is the cheaper one up to about T = 4 D
        self.chunk = T if min(4 * D, MOST_TOKENS) >= T else min(2 * D, MOST_TOKENS)
        rows = max(1, min(MOST_TOKENS, ROWS // D) // T) if self.chunk == T else 1
        per_tile = max(2, TILE // (min(rows, B) * self.chunk))
        size = 2 * math.ceil(K / math.ceil(K / per_tile) / 2)
        self.rows = [slice(first, min(B, first + rows)) for first in range(0, B, rows)]
        self.tokens = [slice(first, min(T, first + self.chunk)) for first in range(0, T, self.chunk)]
        self.neurons = [slice(first, min(K, first + size)) for first in range(0, K, size)]
        self.threads = torch.get_num_threads()
        places = torch.arange(position, position + self.chunk, dtype=torch.float64)
        angle = (frequencies(K)[:, None] * places).frac() * (2 * math.pi)
        self._cosine, self._sine = angle.cos().float(), angle.sin().float()  # (K/2, C)
        none: list[list[int]] = [[]] * B
        self._starts = none if fresh is None else [row.nonzero().flatten().tolist() for row in fresh.cpu()]
        self._turns: dict[int, tuple[Tensor, Tensor]] = {}
        self._phases: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def level_nbytes(self, density: float) -> int:
        """Predict `Level.nbytes` for a share of x that fires."""
        tokens = sum(part.stop - part.start for part in self.tokens)
        lists = round(density * self.B * tokens * self.H * self.K) * (2 + 4 + 4)  # token, x, gate
        starts = 8 * len(self.rows) * len(self.tokens) * self.H * (self.K + len(self.neurons))
        scores = 4 * self.B * self.H * sum((part.stop - part.start) ** 2 for part in self.tokens)
        return lists + starts + scores + 4 * self.B * tokens * self.D * (self.H + 2)  # a, v, write

    def texts(self, group: int, chunk: int) -> list[Row]:
        """Return where texts begin in each row of a tile."""
        tokens, found = self.tokens[chunk], []
        C = tokens.stop - tokens.start
        for r, starts in enumerate(self._starts[self.rows[group]]):
            here = [start - tokens.start for start in starts if tokens.start <= start < tokens.stop]
            first, last = (here[0], here[-1]) if here else (C, 0)
            found.append(Row(slice(r * C, r * C + first), slice(r * C + last, (r + 1) * C), here))
        return found

    def phases(self, neurons: slice, C: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine (J/2, C) of a block of neurons."""
        if (neurons.start, C) not in self._phases:
            pairs = slice(neurons.start // 2, neurons.stop // 2)
            self._phases[neurons.start, C] = (
                self._cosine[pairs, :C].contiguous(),
                self._sine[pairs, :C].contiguous(),
            )
        return self._phases[neurons.start, C]

    def turned(self, rho: Tensor, chunks: int) -> Tensor:
        """Turn rho (..., K, D) from the frame of a chunk to that of the one so many behind it (below 0: before it)."""
        if chunks == 0:
            return rho
        if chunks not in self._turns:
            angle = (frequencies(self.K) * self.chunk * chunks).frac() * (2 * math.pi)
            self._turns[chunks] = angle.cos().float()[:, None], angle.sin().float()[:, None]
        (c, s), (even, odd) = self._turns[chunks], (rho[..., 0::2, :], rho[..., 1::2, :])
        return torch.stack((even * c + odd * s, odd * c - even * s), -2).flatten(-3, -2)
