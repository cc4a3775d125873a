"""What the memory holds while a text is read, and where in two states it differs.

    E_t[l, k] = ||rho_t[2k]||^2 + ||rho_t[2k + 1]||^2          rows of a neuron pair at level l after token t

A pair and not a neuron: the two rows turn into each other with every token, and only their sum stays while nothing is
written. Energies are sums over pairs of tokens, so no state has to be kept at any token to know them:

    E_t - E_{t-1} = sum over both neurons j of   2 q_t[j] sum_{tau<t} q_tau[j] <v_tau, v_t>  +  q_t[j]^2 ||v_t||^2

with q the rotated activity and v what is written. The second term alone is what the write would add if it overlapped
with nothing that the pair holds: more energy than that is repetition, less is cancelling.

Shapes: B batch, T tokens, H heads, K neurons per head, P = K/2 pairs of a head, N neurons in all, D embedding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bdh import ops
from bdh.generate import prefill
from bdh.lens.inspection import plain
from bdh.lens.timescales import bands, periods
from bdh.model import BDH, State, evaluating


@dataclass(frozen=True)
class LevelEnergy:
    """Energy of one level's memory after each token."""

    total: tuple[float, ...]
    apart: tuple[float, ...]
    """What the same writes would add up to if none overlapped with another."""
    bands: dict[str, tuple[float, ...]]
    """By band of the rotation's period; sums to `total`."""
    pairs: tuple[int, ...]
    """Pairs with most energy after the last token, by the global id of their first neuron."""
    of_pairs: tuple[tuple[float, ...], ...]
    """Their energy after each token."""


@dataclass(frozen=True)
class MemoryEnergy:
    """What the memory holds after each token of a text."""

    levels: tuple[LevelEnergy, ...]
    ids: tuple[int, ...]
    """The tokens."""

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that goes into JSON."""
        values: dict[str, Any] = plain(dataclasses.asdict(self))
        return values


def memory_energy(model: BDH, text_or_idx: str | bytes | Tensor, top: int = 12) -> MemoryEnergy:
    """Return the energy of the memory after each token, level by level; the plain memory rho, without STDP's.

    Args:
        model: the model; dropout is off.
        text_or_idx: text (read as UTF-8 bytes) or token ids (1, T).
        top: how many pairs to follow one by one at each level.

    Raises:
        ValueError: more than one text, token ids that the model refuses, or top < 1.

    Examples:
        >>> from bdh import BDHConfig
        >>> model = BDH.from_seed(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4), 0).eval()
        >>> found = memory_energy(model, "one euro", top=3)
        >>> _, state = model.advance(model.as_ids("one euro"))
        >>> round(found.levels[1].total[-1] / state.rho[1].square().sum().item(), 4)
        1.0
    """
    idx = model.as_ids(text_or_idx)
    check_one(idx)
    if top < 1:
        raise ValueError(f"top={top}: expected an integer >= 1")
    levels: list[LevelEnergy] = []
    seen: dict[str, Tensor] = {}

    def sum_up(name: str, tensor: Tensor) -> Tensor:
        if name.endswith(".x_sparse"):
            seen["x"] = tensor
        elif name.endswith(".value"):
            levels.append(_level(model, seen.pop("x")[0], tensor[0], top))
        return tensor

    with evaluating(model):
        model(idx, tap=sum_up)
    return MemoryEnergy(tuple(levels), tuple(idx[0].tolist()))


def _level(model: BDH, x: Tensor, v: Tensor, top: int) -> LevelEnergy:
    """From the activity x (H, T, K) and what was written v (T, D)."""
    q = ops.rotate(x, ops.rotation(x.shape[-1], 0, x.shape[1], like=x)).double()
    overlap = v.double() @ v.double().mT  # (T, T)
    alone = q.square() * overlap.diagonal()[:, None]
    grown = 2 * q * (overlap.tril(-1) @ q) + alone
    pairs = grown.unflatten(-1, (-1, 2)).sum(-1).cumsum(1)  # (H, T, P)
    last = pairs[:, -1].flatten()
    best = last.topk(min(top, len(last))).indices
    return LevelEnergy(
        total=tuple(pairs.sum((0, 2)).tolist()),
        apart=tuple(alone.sum((0, 2)).cumsum(0).tolist()),
        bands={name: tuple(pairs[..., of.to(x.device)].sum((0, 2)).tolist()) for name, of in bands(model).items()},
        pairs=tuple((2 * best).tolist()),
        of_pairs=tuple(map(tuple, pairs.transpose(1, 2).flatten(0, 1)[best].tolist())),
    )


def snapshots(model: BDH, text_or_idx: str | bytes | Tensor, after: Sequence[int]) -> tuple[State, ...]:
    """Return the states after so many tokens of a text; each is a value that can be saved, compared and gone on from.

    Args:
        model: the model; dropout is off.
        text_or_idx: text (read as UTF-8 bytes) or token ids (B, T).
        after: numbers of tokens, ascending.

    Raises:
        ValueError: numbers that are not ascending or not in the text, or token ids that the model refuses.

    Examples:
        >>> from bdh import BDHConfig
        >>> model = BDH(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4))
        >>> [state.position for state in snapshots(model, "one euro", [3, 8])]
        [3, 8]
    """
    idx = model.as_ids(text_or_idx)
    ends = list(after)
    if not ends or ends != sorted(set(ends)) or not 1 <= ends[0] <= ends[-1] <= idx.shape[-1]:
        raise ValueError(f"after={ends}: expected ascending numbers of tokens in 1..{idx.shape[-1]}")
    states: list[State] = []
    for start, stop in zip([0, *ends[:-1]], ends, strict=True):
        states.append(prefill(model, idx[:, start:stop], states[-1] if states else None)[1])
    return tuple(states)


@dataclass(frozen=True)
class PairChange:
    """How one pair's rows differ between two states."""

    pair: int
    """Global id of its first neuron."""
    period: float
    """Tokens per turn."""
    first: float
    """Energy in the first state."""
    second: float
    """Energy in the second state."""
    distance: float
    """Energy of the difference of the rows."""


@dataclass(frozen=True)
class LevelChange:
    """How one level's memory differs between two states."""

    cosine: float | None
    """Of the two memories as vectors; None where one is empty."""
    first: float
    """Energy in the first state."""
    second: float
    """Energy in the second state."""
    distance: float
    """Energy of the difference."""
    bands: dict[str, float]
    """Share of that difference by band of the period; empty where there is none."""
    pairs: tuple[PairChange, ...]
    """The pairs that differ most."""


@dataclass(frozen=True)
class StateDiff:
    """Where two states differ."""

    levels: tuple[LevelChange, ...]
    positions: tuple[int, int]
    """Tokens that each had read."""

    @property
    def words(self) -> str:
        """The difference in one sentence per level.

        Examples:
            >>> StateDiff((LevelChange(1.0, 2.0, 2.0, 0.0, {}, ()),), (3, 3)).words
            'level 0: the same in both states.'
        """
        return " ".join(f"level {number}: {_said(level)}" for number, level in enumerate(self.levels))

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that goes into JSON."""
        return {**plain(dataclasses.asdict(self)), "words": self.words}


@torch.no_grad()
def diff_states(model: BDH, first: State, second: State, top: int = 12) -> StateDiff:
    """Compare the memories rho of two states, level by level; both are kept in the frame of position 0.

    Where the second goes on from the first, the difference is what was written between.

    Args:
        model: whose states they are.
        first: one text.
        second: one text.
        top: how many pairs to name at each level.

    Raises:
        ValueError: states of another model or of several texts, or top < 1.

    Examples:
        >>> from bdh import BDHConfig
        >>> model = BDH.from_seed(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4), 0)
        >>> early, late = snapshots(model, "one euro", [3, 8])
        >>> diff_states(model, early, late).levels[0].cosine < 1
        True
    """
    if top < 1:
        raise ValueError(f"top={top}: expected an integer >= 1")
    for state in (first, second):
        state.require(model.config.n_layer, model.parts.state_shapes(1))
    period, of_band = periods(model), bands(model)
    levels = []
    for one, other in zip(first.rho, second.rho, strict=True):
        a, b = one[0].double().cpu(), other[0].double().cpu()  # (H, K, D)
        energies = [_pairs(memory) for memory in (a, b, b - a)]  # (H, P) each
        before, after, changed = (energy.sum().item() for energy in energies)
        both = (before * after) ** 0.5
        best = energies[2].flatten().topk(min(top, energies[2].numel())).indices.tolist()
        rows = [(2 * at, period[2 * at].item(), *(energy.flatten()[at].item() for energy in energies)) for at in best]
        levels.append(
            LevelChange(
                (a * b).sum().item() / both if both else None, before, after, changed,
                {name: energies[2][:, of].sum().item() / changed for name, of in of_band.items()} if changed else {},
                tuple(PairChange(*row) for row in rows),
            )
        )  # fmt: skip
    return StateDiff(tuple(levels), (first.position, second.position))


def check_one(idx: Tensor) -> None:
    """Raise ValueError unless this is one text (1, T)."""
    if idx.ndim != 2 or idx.shape[0] != 1 or not idx.numel():
        raise ValueError(f"token ids: expected one text of shape (1, T), got {tuple(idx.shape)}")


def _pairs(rows: Tensor) -> Tensor:
    """Energies (H, P) of the pairs of a memory (H, K, D)."""
    energies: Tensor = rows.unflatten(1, (-1, 2)).square().sum((-1, -2))
    return energies


def _said(level: LevelChange) -> str:
    if not level.distance:
        return "the same in both states."
    near = "one of them is empty" if level.cosine is None else f"cosine {level.cosine:.3f}"
    band, share = max(level.bands.items(), key=lambda item: item[1])
    most = level.pairs[0]
    return (
        f"{near}, energy {level.first:.3g} and {level.second:.3g}, of their difference {level.distance:.3g}; "
        f"{share:.0%} of it in pairs that turn once in {band} tokens, most in neurons {most.pair} and {most.pair + 1} "
        f"({most.period:,.0f} tokens, {most.distance / level.distance:.1%})."
    )
