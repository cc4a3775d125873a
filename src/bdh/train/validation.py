"""What is measured of a model between training steps, on fixed windows: loss, densities, firing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bdh import lens
from bdh.data import scored_share
from bdh.data.streams import NOT_SCORED
from bdh.model import BDH, cross_entropy
from bdh.train.distributed import ALONE, World

DENSITY_WINDOWS = 4
FIRING_WINDOWS = 16
EVALUATED = 2**24
"""Activities (B, T, N) of a level that are evaluated at once: a few of these arrays must not outweigh training."""


@torch.no_grad()
def validation_loss(
    model: BDH, idx: Tensor, targets: Tensor, *, at_once: int, world: World = ALONE, separator: int | None = None
) -> float:
    """Return the mean loss of a model in eval mode over windows, nats per token.

    Args:
        model: the model.
        idx: (windows, T) token ids.
        targets: (windows, T) the tokens after them.
        at_once: windows of one pass, fewer where their activities would be large.
        world: the processes that share the windows out.
        separator: token that begins a document, before which nothing is seen; None: a window is read as one text.
    """
    device = model.encoder.device
    whole = scored_share(targets)
    if extra := -len(idx) % world.size:  # ranks that have a model together all make the same number of passes
        more = torch.arange(extra) % len(idx)
        idx, targets = torch.cat([idx, idx[more]]), torch.cat([targets, torch.full_like(targets[more], NOT_SCORED)])
    idx, targets = idx[world.rank :: world.size], targets[world.rank :: world.size]
    at_once = min(at_once, max(1, EVALUATED // (idx.shape[1] * model.config.n_neurons)))
    total = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(idx), at_once):
        rows = slice(start, start + at_once)
        tokens = idx[rows].to(device)
        # without separators no state is made
        logits = model(tokens)[0] if separator is None else model.advance(tokens, fresh=tokens == separator)[0]
        loss = cross_entropy(logits, targets[rows].to(device))
        weight = scored_share(targets[rows])
        total += loss.item() * weight if weight else 0.0
    world.add_up([total])
    return total.item() / whole


def activity(model: BDH, idx: Tensor, neurons: World = ALONE) -> dict[str, Any]:
    """Return densities on the first of the windows, and how neurons fire there if they spike.

    Args:
        model: the model, or the neurons of it that this process has.
        idx: (windows, T) token ids.
        neurons: the processes that have equal numbers of its neurons.
    """
    idx = idx[:FIRING_WINDOWS].to(model.encoder.device)
    density = lens.density(model, idx[:DENSITY_WINDOWS])
    shares = torch.tensor(list(density.values()), dtype=torch.float64) / neurons.size
    neurons.add_up([shares])
    found: dict[str, Any] = {"density": dict(zip(density, shares.tolist(), strict=True))}
    if model.config.lif.on:
        found["firing"] = lens.firing(model, idx)
        found["firing_target"] = model.config.lif.rate
    return found
