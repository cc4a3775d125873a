"""What the mechanisms of a model do with a text, and what they have learned: values only, `panels.py` draws them.

Shapes: B batch, T tokens, L levels, H heads, K neurons per head, N = H*K, D embedding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bdh.config import BDHConfig
from bdh.lens.firing import firing
from bdh.lens.inspection import Pair, plain
from bdh.lens.membranes import MembraneTrace, Reading, Series, worth_following
from bdh.lens.raster import SHOWN_NEURONS, SHOWN_TOKENS, SpikeRaster, spike_raster
from bdh.mechanisms import (
    BCMHomeostasis,
    CriticalityRegulator,
    ei_balance,
    graph_purity,
    sign_purity,
    stdp_window,
)
from bdh.model import BDH
from bdh.parts import Parts
from bdh.sections import SECTIONS

_FIRING = 16, 256
"""Most texts, and tokens of each, from which rates and branching are measured."""
_PURITY_ROWS = 512


@dataclass(frozen=True)
class Spiking:
    """Spiking neurons."""

    raster: SpikeRaster
    membranes: tuple[MembraneTrace, ...]


@dataclass(frozen=True)
class Rates:
    """How the neurons of each level fire on validation text, one entry per level."""

    n_tokens: int
    target: float | None
    """Share that should fire, of spiking neurons."""
    rate: Series
    dead: Series
    saturated: Series
    branching: tuple[Series | None, ...]
    """Branching ratio with its 95 % interval (m, low, high); None where it cannot be measured."""


@dataclass(frozen=True)
class Window:
    """Weight of a pair of tokens by their distance."""

    form: str
    dt: Series
    """Time of the value minus time of the key, tokens."""
    learned: tuple[Series, ...]
    """Per head."""
    initial: tuple[Series, ...]
    """Per head, where training started."""


@dataclass(frozen=True)
class Signs:
    """Dale's law in the weights."""

    excitatory: float
    """Share of the neurons that excite."""
    balance: Series
    """Inhibition relative to excitation at each entry of the residual stream (D,), ascending, finite ones."""
    purity: float
    """Mean sign purity of the decoder's rows."""
    graph: float
    """Mean sign purity of the neuron graph as the model uses it, norm included, over some evenly spaced neurons."""
    centred: bool
    """Whether the norm centres, so that without masks the law is only a choice of coordinates."""


@dataclass(frozen=True)
class Degrees:
    """Connections per neuron: shares of neurons with at least so many."""

    gamma: float
    k_min: int
    degree: tuple[int, ...]
    """Degrees that occur, ascending."""
    share: Series
    """Share of neurons with at least this degree."""
    law: Series
    """The same of the truncated power law from which the degrees were drawn."""


@dataclass(frozen=True)
class Recall:
    """HiPPO memory."""

    measure: str
    order: int
    channels: int
    gate: float
    """Weight of what is remembered beside the residual stream; training starts at 0.1."""


@dataclass(frozen=True)
class Gains:
    """Gain of each head over the tokens of the text: values[level][head][token]; 1 is neutral."""

    tau: float
    values: tuple[tuple[Series, ...], ...]


@dataclass(frozen=True)
class Thresholds:
    """Sliding thresholds of each level: the quantiles 0, 25, 50, 75 and 100 % over its neurons."""

    quantiles: tuple[Series, ...]


@dataclass(frozen=True)
class Regulated:
    """Gain on the gate's drive of each level, held for a branching ratio."""

    target: float
    gain: Series


@dataclass(frozen=True)
class Mechanisms:
    """What `inspect_mechanisms` found; a field is None where its mechanism is off."""

    variant: str
    lif: Spiking | None = None
    firing: Rates | None = None
    stdp: Window | None = None
    dale: Signs | None = None
    scale_free: Degrees | None = None
    hippo: Recall | None = None
    bcm: Thresholds | None = None
    criticality: Regulated | None = None
    dendrites: Series | None = None
    """Strength of the quadratic term per head."""
    neuromodulation: Gains | None = None

    @property
    def on(self) -> tuple[str, ...]:
        """Names of the mechanisms that are on, those of the config's sections."""
        return tuple(name for name in SECTIONS if getattr(self, name) is not None)

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that goes into JSON, without what is off (no NaN; numbers with six digits)."""
        values = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        found: dict[str, Any] = plain(values | {"on": self.on})
        return found


def inspect_mechanisms(
    model: BDH,
    idx: Tensor,
    validation: Tensor | None = None,
    *,
    neurons: Sequence[Pair] = (),
    tokens: int = SHOWN_TOKENS,
    rows: int = SHOWN_NEURONS,
) -> Mechanisms | None:
    """Read a text token by token, and look at each mechanism that is on.

    Args:
        model: the model; it is not changed.
        idx: (1, T) ids of the text.
        validation: (S,) ids from which rates and branching are measured; None: the text itself.
        neurons: (level, global id) whose membranes to follow; others instead where they spike less than three times.
        tokens: how much of the text to follow, from its start.
        rows: neurons per level of the raster.

    Returns:
        None for a model without mechanisms.

    Raises:
        ValueError: not one text, or token ids that the model refuses.

    Examples:
        >>> config = BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4, variant="hatching")
        >>> found = inspect_mechanisms(BDH(config), torch.tensor([list(b"The dragon")]))
        >>> found.on
        ('lif', 'stdp', 'dale', 'scale_free')
        >>> inspect_mechanisms(BDH(BDHConfig(n_layer=1, n_embd=16)), torch.tensor([[1]])) is None
        True
    """
    c, parts = model.config, model.parts
    if idx.ndim != 2 or len(idx) != 1 or not idx.shape[1]:
        raise ValueError(f"idx: expected one text (1, T), got {tuple(idx.shape)}")
    if not any(getattr(c, name).on for name in SECTIONS):
        return None
    idx, text = idx[:, :tokens], idx
    reading = None
    if c.lif.on or c.neuromodulation.on:
        reading = Reading(model, idx, worth_following(model, idx, neurons) if c.lif.on else ())
    counted = c.lif.on or c.bcm.on or c.criticality.on
    with torch.no_grad():
        return Mechanisms(
            variant=c.variant,
            lif=_spiking(reading, text, rows) if reading and c.lif.on else None,
            firing=_rates(model, text[0] if validation is None else validation) if counted else None,
            stdp=_window(c, parts) if parts.stdp is not None else None,
            dale=_signs(model) if c.dale.on else None,
            scale_free=_degrees(c, parts) if parts.scale_free is not None else None,
            hippo=Recall(c.hippo.measure, c.hippo.order, c.hippo.channels, parts.hippo.gate.item())
            if parts.hippo is not None
            else None,
            bcm=Thresholds(tuple(map(_quantiles, parts.bcm))) if parts.bcm is not None else None,
            criticality=Regulated(c.criticality.target or 0.0, tuple(map(_gain, parts.criticality)))
            if parts.criticality is not None
            else None,
            dendrites=tuple(parts.dendrites.strength.tolist()) if parts.dendrites is not None else None,
            neuromodulation=Gains(c.neuromodulation.tau or 0.0, reading.gains)
            if reading and c.neuromodulation.on
            else None,
        )


def _spiking(reading: Reading, idx: Tensor, rows: int) -> Spiking:
    T = reading.spikes[0].shape[1]
    read = idx[0, :T].tolist()
    # tokens beyond the bytes belong to a vocabulary that was grown, they have no character
    raster = spike_raster(reading.spikes, neurons=rows, tokens=T, text=bytes(read) if max(read) < 256 else None)
    return Spiking(dataclasses.replace(raster, n_tokens=idx.shape[1]), reading.membranes)


def _rates(model: BDH, ids: Tensor) -> Rates:
    most, size = _FIRING
    size = min(size, len(ids))
    count = min(most, len(ids) // size)
    # spread over the text: one stretch of it may be of one kind
    starts = torch.linspace(0, len(ids) - size, count).long().tolist()
    idx = torch.stack([ids[start : start + size] for start in starts]).to(model.encoder.device)
    found = firing(model, idx)
    return Rates(
        n_tokens=idx.numel(),
        target=model.config.lif.rate if model.config.lif.on else None,
        rate=tuple(found["rate"]),
        dead=tuple(found["dead"]),
        saturated=tuple(found["saturated"]),
        branching=tuple(None if m is None else tuple(m) for m in found["branching"]),
    )


def _window(c: BDHConfig, parts: Parts) -> Window:
    assert parts.stdp is not None
    # a model of two neurons per head with this part alone: where training started
    start = Parts(BDHConfig(n_embd=2 * c.n_head, n_head=c.n_head, mlp_internal_dim_multiplier=1, stdp=c.stdp), 1.0)
    assert start.stdp is not None
    dt, learned = stdp_window(parts.stdp)
    _, initial = stdp_window(start.stdp)
    return Window(c.stdp.form, tuple(dt.tolist()), *(tuple(map(tuple, w.tolist())) for w in (learned, initial)))


def _signs(model: BDH) -> Signs:
    decoder = model.decoder.detach().float()
    signs = model.parts.dale.signs if model.parts.dale is not None else decoder.sum(1).sign()
    balance = ei_balance(decoder)
    some = torch.linspace(0, len(decoder) - 1, min(_PURITY_ROWS, len(decoder))).long()
    purity = graph_purity(model.encoder.detach().float(), decoder[some.to(decoder.device)])
    centred = model.config.norm == "layer"
    return Signs(
        excitatory=(signs > 0).float().mean().item(),
        balance=tuple(balance[balance.isfinite()].sort().values.tolist()),
        purity=sign_purity(decoder).mean().item(),
        graph=(purity.effective if centred else purity.raw).mean().item(),
        centred=centred,
    )


def _degrees(c: BDHConfig, parts: Parts) -> Degrees:
    assert parts.scale_free is not None
    assert c.scale_free.gamma is not None
    degrees = parts.scale_free.degrees().cpu()
    k_min = c.scale_free.smallest(c.n_embd)
    occurring, counts = degrees.unique(return_counts=True)
    at_least = counts.flip(0).cumsum(0).flip(0) / len(degrees)
    power = torch.arange(k_min, c.n_embd + 1).double() ** -c.scale_free.gamma
    law = power.flip(0).cumsum(0).flip(0) / power.sum()
    return Degrees(
        c.scale_free.gamma, k_min, tuple(occurring.tolist()), tuple(at_least.tolist()),
        tuple(law[occurring - k_min].tolist()),
    )  # fmt: skip


def _quantiles(part: torch.nn.Module) -> Series:
    assert isinstance(part, BCMHomeostasis)
    q = torch.linspace(0, 1, 5, dtype=part.theta.dtype, device=part.theta.device)
    return tuple(part.threshold().flatten().quantile(q).tolist())


def _gain(part: torch.nn.Module) -> float:
    assert isinstance(part, CriticalityRegulator)
    return part.gain().item()
