"""One synapse while a text is read, and what the search for the synapses that grew is compared with."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bdh.lens.energy import check_one, snapshots
from bdh.lens.inspection import plain
from bdh.lens.memory import check_level, check_neurons, receivers, refuse_pairing, rows_read
from bdh.lens.record import record
from bdh.lens.synapses import pair_strength
from bdh.lens.timescales import periods
from bdh.lens.untrained import untrained
from bdh.model import BDH, State, evaluating


@dataclass(frozen=True)
class SynapseCourse:
    """A synapse as each token of a text finds it."""

    level: int
    target: int
    """Gate i."""
    source: int
    """Neuron j."""
    period: float
    """Tokens that the pair of j takes for one turn."""
    ids: tuple[int, ...]
    """The tokens."""
    sigma: tuple[float, ...]
    """sigma_t(i, j), before token t is written; it swings with the period though nothing is written."""
    strength: tuple[float, ...]
    """sqrt(sigma(i, 2k)^2 + sigma(i, 2k + 1)^2), which does not."""
    init: tuple[float, ...]
    """Strength of the same synapse at random initialisation, on the same text."""

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that goes into JSON."""
        values: dict[str, Any] = plain(dataclasses.asdict(self))
        return values


def synapse_course(
    model: BDH, text_or_idx: str | bytes | Tensor, level: int, i: int, j: int, *, seed: int = 0
) -> SynapseCourse:
    """Return a synapse from neuron j to gate i as each token of a text finds it, exactly; the cost of one row of rho.

    Args:
        model: the model; dropout is off.
        text_or_idx: text (read as UTF-8 bytes) or token ids (1, T).
        level: the level.
        i: gate, by global id.
        j: neuron, by global id, of the same head.
        seed: of the random weights to compare with.

    Raises:
        ValueError: neurons of two heads, or a level or neurons that the model does not have; more than one text; or
            STDP of the form "trace".

    Examples:
        >>> from bdh import BDHConfig
        >>> model = BDH.from_seed(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4), 0)
        >>> found = synapse_course(model, "one euro", level=1, i=3, j=5)
        >>> len(found.sigma), found.sigma[0]
        (8, 0.0)
    """
    refuse_pairing(model, "synapse_course")
    check_level(model, level)
    check_neurons(model, [i], "i")
    check_neurons(model, [j], "j")
    K = model.config.neurons_per_head
    if i // K != j // K:
        raise ValueError(f"i={i}, j={j}: expected neurons of one head of {K}; heads have a memory each")
    idx = model.as_ids(text_or_idx)
    check_one(idx)
    sigma, strength = _course(model, idx, level, i, j)
    init = _course(untrained(model, idx, seed), idx, level, i, j)[1]
    return SynapseCourse(
        level,
        i,
        j,
        periods(model)[j].item(),
        tuple(idx[0].tolist()),
        *(tuple(v.tolist()) for v in (sigma, strength, init)),
    )


@torch.no_grad()
def _course(model: BDH, idx: Tensor, level: int, i: int, j: int) -> tuple[Tensor, Tensor]:
    """Sigma and strength (T,)."""
    first = j // 2 * 2
    with evaluating(model):
        _, trace = record(model, idx, [f"layers.{level}.{place}" for place in ("x_sparse", "value")], limit=None)
    x, value = trace.values()
    rows = rows_read(model, level, x, value, None, [first, first + 1])[0]  # (T, 2, D)
    both = rows @ receivers(model, torch.tensor([i], device=idx.device))[0].to(rows)  # (T, 2)
    return both[:, j - first], both.norm(dim=-1)


def typical_growth(
    model: BDH, text_or_idx: str | bytes | Tensor, span: tuple[int, int], level: int, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return median and largest growth of synapses drawn at random, to see how far the strongest ones stand out.

    Args:
        model: the model; dropout is off.
        text_or_idx: text (read as UTF-8 bytes) or token ids (1, T).
        span: first token, and the one after the last.
        level: the level.
        draws: how many synapses.
        seed: of the draw.

    Raises:
        ValueError: a span outside the text, or a level that the model does not have.

    Examples:
        >>> from bdh import BDHConfig
        >>> model = BDH.from_seed(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4), 0)
        >>> median, most = typical_growth(model, "one euro, two euros", (4, 8), level=1)
        >>> median < most
        True
    """
    K, H = model.config.neurons_per_head, model.config.n_head
    generator = torch.Generator().manual_seed(seed)
    i, j = (torch.randint(K, (draws,), generator=generator) for _ in range(2))
    head = torch.randint(H, (draws,), generator=generator) * K
    states: list[State] = list(snapshots(model, text_or_idx, [end for end in span if end]))
    after, *before = [pair_strength(model, state, level, i + head, j + head)[0] for state in reversed(states)]
    grown = after - before[0] if before else after
    return grown.median().item(), grown.max().item()
