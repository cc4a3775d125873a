"""What one token read, as plain values: which tokens wrote it, and through which neurons."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bdh.lens.energy import check_one
from bdh.lens.inspection import plain
from bdh.lens.memory import receivers, spread
from bdh.lens.synapses import Ledger, write_ledger
from bdh.model import BDH


@dataclass(frozen=True)
class Through:
    """What came of one past token through one neuron of the reading token."""

    position: int
    """Of the past token."""
    neuron: int
    """Global id of x_t[j]."""
    part: float


@dataclass(frozen=True)
class Reading:
    """What one token read from the memory of one level."""

    level: int
    position: int
    gate: int | None
    """Global id of the gate whose drive is split; None: the scores themselves are."""
    ids: tuple[int, ...]
    """The tokens, up to the reading one."""
    parts: tuple[tuple[float, ...], ...]
    """By head, of each past token: its score, or (one row, the gate's head) its part of the gate's drive."""
    total: float
    """Sum of all parts: the drive of the gate (`y_pre`), or the sum of the scores."""
    through: tuple[Through, ...]
    """The largest single contributions, by past token and neuron."""

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that goes into JSON."""
        values: dict[str, Any] = plain(dataclasses.asdict(self))
        return values


def explain_reading(
    model: BDH, text_or_idx: str | bytes | Tensor, level: int, position: int, gate: int | None = None, top: int = 12
) -> Reading:
    """Say which past tokens a token read, and through which of its neurons: `write_ledger` in plain values.

    With a gate, the parts of its drive: u_t[i] = sum_{tau, j} through(tau, j) <Dy[:, i] - mean, v_tau> / s(a_t).

    Args:
        model: the model; dropout is off.
        text_or_idx: text (read as UTF-8 bytes) or token ids (1, T).
        level: the level.
        position: of the reading token, 1 or later.
        gate: by global id; None splits the scores of all heads.
        top: how many single contributions to name.

    Raises:
        ValueError: more than one text, the first token, which reads nothing, or as `write_ledger`.

    Examples:
        >>> from bdh import BDHConfig
        >>> model = BDH.from_seed(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4), 0)
        >>> found = explain_reading(model, "one euro", level=1, position=7, gate=3)
        >>> round(sum(found.parts[0]) - found.total, 6) + 0.0, len(found.through)
        (0.0, 12)
    """
    idx = model.as_ids(text_or_idx)
    check_one(idx)
    if position == 0:
        raise ValueError("position=0: expected 1 or later, the first token finds an empty memory")
    if top < 1:
        raise ValueError(f"top={top}: expected an integer >= 1")
    ledger = write_ledger(model, idx, level, position)
    if gate is None:
        parts, through, first = ledger.scores[0], ledger.through[0], 0
    else:
        parts = ledger.to_gate(gate)
        through, first = _to_gate(model, ledger, gate)
    _, t, K = through.shape
    best = through.abs().flatten().topk(min(top, int((through != 0).sum()))).indices.tolist()
    return Reading(
        level, position, gate, tuple(idx[0, : position + 1].tolist()), tuple(map(tuple, parts.tolist())),
        parts.sum().item(),
        tuple(
            Through(at // K % t, (first + at // (t * K)) * K + at % K, through.flatten()[at].item()) for at in best
        ),
    )  # fmt: skip


@torch.no_grad()
def _to_gate(model: BDH, ledger: Ledger, gate: int) -> tuple[Tensor, int]:
    """What each past token passed through each neuron to a gate (1, t, K), and the gate's head."""
    head = gate // model.config.neurons_per_head
    receiver = receivers(model, torch.tensor([gate], device=ledger.read.device))[0].to(ledger.values)
    written = ledger.values[0] @ receiver / spread(model, ledger.read[0, head])  # (t,)
    return (ledger.through[0, head] * written[:, None])[None], head
