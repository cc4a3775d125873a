"""Synapses of the memory, one at a time and exactly: how strong, since when, and which tokens wrote what is read.

The memory is kept as rho (N, D), not as N x N synapses. What neuron j passes on to gate i through it is

    sigma_t(i, j) = <Dy[:, i] - mean(Dy[:, i]), rho_t[j]>,       u_t[i] = sum_j sigma_t(i, j) x_t[j] / s(a_t)

with u the drive of the gate (`y_pre`), s what LayerNorm divides the read a_t by, and rho_t[j] the row of neuron j in
the frame of the reading token (`bdh.lens.memory`). In the paper (arXiv 2509.26507, Def. 4) rho = E sigma with the
Hebbian sigma = sum of y x^T, which has more entries than rho and cannot be had back from it; what is measured here is
Dy E sigma, the synapse as it acts, and it needs no other numbers than the model's.

Shapes: B batch, T tokens, H heads, K neurons per head, N neurons in all, D embedding, P pairs, t past tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bdh import ops
from bdh.generate import prefill
from bdh.lens.memory import (
    check_level,
    check_neurons,
    receivers,
    refuse_pairing,
    rows_now,
    spread,
    stored_rows,
    weights,
)
from bdh.lens.record import record
from bdh.model import BDH, State, evaluating

Neurons = int | Sequence[int] | Tensor

_BLOCK = 256
"""Neuron pairs whose synapses are looked at together."""


@torch.no_grad()
def sigma(model: BDH, state: State, level: int, i: Neurons, j: Neurons) -> Tensor:
    """Return synapses from neurons j to gates i, as the next token finds them; each costs O(D).

        sigma_t(i, j) = sum_{tau<t} <Dy[:, i] - mean, v_tau> <R_t e_j, R_tau x_tau>

    The rotary position makes sigma swing with t though nothing is written; see `pair_strength`. Heads have a memory
    each, so between neurons of different heads there is no synapse: 0.

    Args:
        model: the model.
        state: what was read.
        level: the level.
        i: global ids of gates, P of them, or one for all j.
        j: global ids of neurons, P of them, or one for all i.

    Returns:
        (B, P).

    Raises:
        ValueError: a level or neurons that the model does not have, arrays of different lengths, or a state of another
            model.

    Examples:
        >>> from bdh import BDHConfig
        >>> model = BDH(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4))
        >>> _, state = model.advance(torch.tensor([[1, 2, 3]]))
        >>> sigma(model, state, level=1, i=[3, 3, 40], j=[5, 50, 50]).shape
        torch.Size([1, 3])
    """
    targets, sources, same_head = _pairs(model, state, level, i, j)
    rows = rows_now(model, state, level, sources)
    return (receivers(model, targets).to(rows) * rows).sum(-1) * same_head


@torch.no_grad()
def pair_strength(model: BDH, state: State, level: int, i: Neurons, j: Neurons) -> Tensor:
    """Return how strong the synapses to gates i are from the pairs of neurons that j belong to, whatever the phase.

        strength(i, k) = sqrt(sigma(i, 2k)^2 + sigma(i, 2k + 1)^2),    k = floor(j / 2)

    Neurons 2k and 2k + 1 rotate together, so the root does not change while nothing is written.

    Args:
        model: the model.
        state: what was read.
        level: the level.
        i: as in `sigma`.
        j: as in `sigma`; either neuron of a pair.

    Returns:
        (B, P).

    Raises:
        ValueError: as `sigma`.

    Examples:
        >>> from bdh import BDHConfig
        >>> model = BDH(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4))
        >>> _, state = model.advance(torch.tensor([[1, 2, 3]]))
        >>> even, odd = pair_strength(model, state, level=1, i=7, j=[10, 11])[0]
        >>> bool(even == odd)
        True
    """
    targets, sources, same_head = _pairs(model, state, level, i, j)
    first, received = sources // 2 * 2, receivers(model, targets)
    both = [(received.to(rows) * rows).sum(-1) for rows in _both(model, state, level, first)]
    return torch.hypot(*both) * same_head


@dataclass(frozen=True)
class Growth:
    """A synapse, from a pair of neurons to a gate, before and after a span of text."""

    target: int
    """Gate, by global id."""
    source: int
    """First neuron of the pair, by global id; the other one is `source + 1`."""
    before: float
    """`pair_strength` before the span."""
    after: float
    """`pair_strength` after it."""

    @property
    def growth(self) -> float:
        """By how much it grew."""
        return self.after - self.before


@torch.no_grad()
def strongest_growth(
    model: BDH, text_or_idx: str | bytes | Tensor, span: tuple[int, int], level: int, top: int = 20
) -> list[Growth]:
    """Return the synapses that grew most while the model read a span of a text.

    All N K / 2 pairs of a gate and a neuron pair are compared by `pair_strength`, in blocks: never N x N at once.

    Args:
        model: the model; dropout is off.
        text_or_idx: text (read as UTF-8 bytes) or token ids (1, T).
        span: first token, and the one after the last.
        level: the level.
        top: how many to return.

    Returns:
        The synapses, the one that grew most first.

    Raises:
        ValueError: a span outside the text, more than one text, a level that the model does not have, or top < 1.

    Examples:
        >>> from bdh import BDHConfig
        >>> model = BDH(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4))
        >>> grown = strongest_growth(model, "one euro, two euros", span=(4, 8), level=1, top=3)
        >>> len(grown), grown[0].growth >= grown[1].growth
        (3, True)
    """
    idx = model.as_ids(text_or_idx)
    start, stop = span
    check_level(model, level)
    if idx.ndim != 2 or len(idx) != 1 or not 0 <= start < stop <= idx.shape[1]:
        raise ValueError(
            f"span={span}: expected 0 <= first < end <= T in token ids (1, T), got ids of shape {tuple(idx.shape)}"
        )
    if top < 1:
        raise ValueError(f"top={top}: expected an integer >= 1")
    before = prefill(model, idx[:, :start])[1] if start else None
    after = prefill(model, idx[:, start:stop], before)[1]
    H, K = model.config.n_head, model.config.neurons_per_head
    best = torch.empty(0, 5, dtype=torch.float64)  # growth, target, source, before, after
    for head in range(H):
        targets = torch.arange(head * K, (head + 1) * K, device=idx.device)
        received = receivers(model, targets)  # (K, D)
        for first in range(head * K, (head + 1) * K, 2 * _BLOCK):
            sources = torch.arange(first, min(first + 2 * _BLOCK, (head + 1) * K), 2, device=idx.device)
            strong = _strengths(model, after, level, received, sources)  # (K, n)
            weak = torch.zeros_like(strong) if before is None else _strengths(model, before, level, received, sources)
            growth, at = (strong - weak).flatten().topk(min(top, strong.numel()))
            i, j = at // len(sources), at % len(sources)
            found = growth, targets[i], sources[j], weak.flatten()[at], strong.flatten()[at]
            best = torch.cat((best, torch.stack([column.cpu().double() for column in found], dim=1)))
            best = best[best[:, 0].sort(descending=True, stable=True).indices[:top]]
    return [Growth(int(i), int(j), weak, strong) for _, i, j, weak, strong in best.tolist()]


@dataclass(frozen=True, eq=False, repr=False)
class Ledger:
    """What one token read from the memory of a level, token by token: see `write_ledger`."""

    scores: Tensor
    """(B, H, t) how much of each past token was read; of any sign."""
    values: Tensor
    """(B, t, D) what each past token wrote."""
    read: Tensor
    """(B, H, D) the whole read, `attn_out` of the token."""
    through: Tensor
    """(B, H, t, K) the scores by the neurons x_t[j] of the reading token that they came through; sums to `scores`."""
    model: BDH

    def __repr__(self) -> str:
        return f"Ledger(token {self.scores.shape[-1]}, {tuple(self.scores.shape)} scores)"

    @property
    def contributions(self) -> Tensor:
        """What each past token contributed to the read, (B, H, t, D); sums to `read` over the tokens."""
        return self.scores[..., None] * self.values[:, None]

    def to_gate(self, neuron: int) -> Tensor:
        """Return what each past token contributed to the drive of a gate, (B, t); sums to its `y_pre`.

        The norm of the read is divided by the same number for all tokens, the one that it really had.

        Raises:
            ValueError: a neuron that the model does not have.
        """
        check_neurons(self.model, [neuron], "neuron")
        head = neuron // self.model.config.neurons_per_head
        received = receivers(self.model, torch.tensor([neuron], device=self.read.device))[0].detach()
        parts = self.scores[:, head] * (self.values @ received.to(self.values))
        return parts / spread(self.model, self.read[:, head])


@torch.no_grad()
def write_ledger(model: BDH, idx: Tensor, level: int, position: int) -> Ledger:
    """Split what a token reads from the memory by the past tokens that wrote it, exactly.

        a_t = sum_{tau<t} score(t, tau) v_tau,       score(t, tau) = sum_j x_t[j] (R_t^T R_tau x_tau)[j]

    Args:
        model: the model; dropout is off.
        idx: (B, T) token ids; those after the position are not read.
        level: the level.
        position: t, of the reading token.

    Returns:
        The ledger, of tokens 0..t-1. It shows interventions that are active, but not what `ScaleSynapse` adds to the
        read, which no token wrote.

    Raises:
        ValueError: a level or a position that there is not, token ids that the model refuses, or STDP of the form
            "trace", where pairs of tokens write.

    Examples:
        >>> from bdh import BDHConfig
        >>> model = BDH(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4))
        >>> ledger = write_ledger(model, torch.tensor([[1, 2, 3, 4]]), level=1, position=3)
        >>> torch.allclose(ledger.contributions.sum(2), ledger.read)
        True
    """
    refuse_pairing(model, "write_ledger")
    check_level(model, level)
    if idx.ndim == 2 and not 0 <= position < idx.shape[1]:
        raise ValueError(f"position={position}: expected 0..{idx.shape[1] - 1}")
    names = [f"layers.{level}.{place}" for place in ("x_sparse", "value", "attn_out")]
    with evaluating(model):
        _, trace = record(model, idx[..., : position + 1], names, limit=None)
    x, value, read = trace.values()
    wide = torch.promote_types(x.dtype, torch.float32)
    x, value, read = x.to(wide), value[:, :position].to(wide), read[:, :, position].to(wide)
    # keys as the reading token sees them: turned by how long ago they were, and back
    turn = ops.rotation(model.config.neurons_per_head, 0, position + 1, like=model.encoder)
    keys = ops.rotate(x[:, :, :position], turn[:position] * turn[position].conj())
    through = x[:, :, position, None] * keys * weights(model, position + 1, like=x)[:, position, :position, None]
    return Ledger(through.sum(-1), value, read, through, model)


def _pairs(model: BDH, state: State, level: int, i: Neurons, j: Neurons) -> tuple[Tensor, Tensor, Tensor]:
    """Targets (P,), sources (P,) and whether they are of one head, checked."""
    check_level(model, level)
    state.require(model.config.n_layer, model.parts.state_shapes(state.batch_size))
    device = state.rho[level].device
    targets, sources = (torch.as_tensor(one, device=device).reshape(-1) for one in (i, j))
    for field, neurons in (("i", targets), ("j", sources)):
        if neurons.is_floating_point() or neurons.numel() == 0:
            raise ValueError(f"{field}: expected global neuron ids, got {neurons.tolist()}")
        check_neurons(model, neurons.tolist(), field)
    if 1 not in (len(targets), len(sources)) and len(targets) != len(sources):
        raise ValueError(f"i, j: expected as many ids, or one, got {len(targets)} and {len(sources)}")
    targets, sources = torch.broadcast_tensors(targets, sources)
    K = model.config.neurons_per_head
    return targets, sources, targets // K == sources // K


def _both(model: BDH, state: State, level: int, first: Tensor) -> list[Tensor]:
    """Rows (B, n, D) of both neurons of pairs; in any frame, since only their root sum of squares is meant."""
    return [stored_rows(model, state, level, first + n) for n in (0, 1)]


def _strengths(model: BDH, state: State, level: int, received: Tensor, first: Tensor) -> Tensor:
    """Strengths (K, n) of the synapses of the first sequence from pairs to the gates of their head."""
    both = _both(model, state, level, first)
    return torch.hypot(*(received.to(rows) @ rows[0].mT for rows in both))
