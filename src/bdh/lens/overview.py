"""What a model is and how well it predicts, beside what it has to beat."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from bdh.data import fixed_windows
from bdh.lens.neurons import NeuronStatistics
from bdh.lens.panel import Panel, Table
from bdh.lens.svg import Picture, Plot, Scale, picture, text
from bdh.lens.texts import Ids
from bdh.model import BDH, evaluating

OFTEN = 0.5
"""A neuron that fires at more than this share of the bytes is called dense."""


@dataclass(frozen=True)
class Overview:
    """How well a model predicts a text, and how its neurons are used there."""

    settings: dict[str, str]
    """Of the model."""
    n_bytes: int
    """Bytes that were predicted."""
    window: int
    """Bytes of a window, read from an empty memory."""
    bits: float
    """Bits per byte of the model."""
    farther: float | None
    """In windows twice as long; None where the text is shorter than one."""
    untrained: float
    """Of the same model with random weights."""
    frequencies: float
    """Entropy of the text's own byte frequencies: what is to be had without any context, at best."""
    silent: tuple[float, ...]
    """Share of neurons that never fire, per level."""
    dense: tuple[float, ...]
    """Share of neurons that fire at more than half of the bytes, per level."""

    @property
    def trained(self) -> bool:
        """Whether the model predicts better than byte frequencies, so that it has learned to use context."""
        return self.bits < self.frequencies


def overview(model: BDH, ids: Ids, statistics: NeuronStatistics, *, window: int = 256, seed: int = 0) -> Overview:
    """Measure bits per byte on windows of a text that start from an empty state, and count neurons that never fire.

    Args:
        model: a model of bytes; it is not changed.
        ids: (S,) bytes, at least two.
        statistics: of the same text, from `neuron_statistics`.
        window: bytes of one window; a shorter text is one window.
        seed: of the weights of the untrained model.

    Examples:
        >>> from bdh import BDHConfig
        >>> from bdh.lens import neuron_statistics
        >>> model = BDH(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4))
        >>> found = overview(model, b"to be or not to be", neuron_statistics(model, b"to be or not to be"))
        >>> found.n_bytes, found.trained
        (17, False)
    """
    data = np.frombuffer(ids, np.uint8) if isinstance(ids, bytes) else np.asarray(ids)
    window = min(window, len(data) - 1)
    idx, targets = fixed_windows(data, block_size=window)
    counts = np.bincount(data, minlength=256)
    share = counts[counts > 0] / len(data)
    c = model.config
    on = ", ".join(name for name, value in c.to_dict().items() if isinstance(value, dict) and getattr(c, name).on)
    return Overview(
        settings={
            "variant": c.variant,
            "levels": f"{c.n_layer}",
            "neurons": f"{c.n_neurons:,} in {c.n_head} heads",
            "width": f"{c.n_embd}",
            "vocabulary": f"{c.vocab_size}",
            "parameters": f"{c.n_parameters:,}",
            "mechanisms": on or "none",
        },
        n_bytes=targets.numel(),
        window=window,
        bits=_bits(model, idx, targets),
        farther=_bits(model, *fixed_windows(data, block_size=2 * window)) if len(data) > 2 * window else None,
        untrained=_bits(BDH.from_seed(c, seed).to(model.encoder.device), idx, targets),
        frequencies=float(-(share * np.log2(share)).sum()),
        silent=tuple((statistics.fires == 0).double().mean(1).tolist()),
        dense=tuple((statistics.rate > OFTEN).double().mean(1).tolist()),
    )


def _bits(model: BDH, idx: torch.Tensor, targets: torch.Tensor) -> float:
    total, device = 0.0, model.encoder.device
    with evaluating(model):
        for rows, wanted in zip(idx.split(8), targets.split(8), strict=True):
            loss = model(rows.to(device), wanted.to(device))[1]
            assert loss is not None
            total += loss.item() * len(rows)
    return total / len(idx) / math.log(2)


def overview_panel(found: Overview, provenance: Mapping[str, str], command: str = "") -> Panel:
    """Show an overview.

    Args:
        found: what `overview` measured.
        provenance: where the model comes from, names and values.
        command: the command line that makes it.
    """
    banner = (
        "Trained: it predicts better than byte frequencies do."
        if found.trained
        else "Not trained, as far as this text tells: byte frequencies predict as well. What follows is of a model "
        "that has learned nothing of it."
    )
    bits = {
        "this model": found.bits, "byte frequencies": found.frequencies, "random weights": found.untrained,
        "all bytes alike": 8.0,
    }  # fmt: skip
    levels = range(len(found.silent))
    farther = "" if found.farther is None else f"; in windows twice as long {found.farther:.3f}"
    return Panel(
        key="overview",
        title="The model",
        note=f"{banner} Bits per byte on {found.n_bytes:,} bytes of validation text, in windows of {found.window} "
        f"bytes read from an empty memory{farther}.",
        baseline=f"{found.frequencies:.2f} bits per byte by the text's own byte frequencies, {found.untrained:.2f} "
        f"with random weights, 8 when all bytes are alike; this model {found.bits:.3f}",
        pictures=(_bars(bits),),
        tables={
            "Settings and origin": Table(("name", "value"), tuple({**found.settings, **provenance}.items())),
            "Bits per byte": Table(("predicted by", "bits per byte"), tuple(bits.items())),
            "Neurons that never fire, and that fire at more than half of the bytes": Table(
                ("level", "never", "more than half"), tuple(zip(levels, found.silent, found.dense, strict=True))
            ),
        },
        python="bdh.lens.overview(model, VALIDATION, bdh.lens.neuron_statistics(model, VALIDATION))",
        command=command,
    )


def _bars(bits: Mapping[str, float]) -> Picture:
    most = max(*bits.values(), 8.0)
    plot = Plot(Scale(0, most, 116, 316), Scale(0, len(bits), 24 * len(bits), 0))
    marks = []
    for n, (name, value) in enumerate(bits.items()):
        y, wide = 24 * n, plot.x(value) - plot.x(0)
        look = 'class="fill"' if n == 0 else 'fill-opacity="0.35"'
        marks.append(f'<rect {look} x="116" y="{y + 5}" width="{wide:.1f}" height="15"/>')
        marks.append(text(108, y + 17, name, "" if n else "name", "end"))
        marks.append(text(122 + wide, y + 17, f"{value:.2f}", "" if n else "name"))
    label = "bits per byte: " + ", ".join(f"{name} {value:.2f}" for name, value in bits.items())
    return picture(356, 24 * len(bits) + 4, label, marks)
