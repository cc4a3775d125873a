"""What an inspection is made of: frozen values that go to JSON, and bytes that can be read.

Pure data: no tensors here, so that a report, a terminal or a server needs nothing else.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bdh.lens.activity import Activity
from bdh.lens.density import Density

if TYPE_CHECKING:  # it stands above this page: it reads models
    from bdh.lens.mechanisms import Mechanisms

Pair = tuple[int, int]
"""(level, global neuron id)."""


@dataclass(frozen=True)
class Firing:
    """One neuron at one level, where it is strongest in a span of the text."""

    level: int
    head: int
    index: int
    """k, the neuron inside its head."""
    neuron: int
    """Global id, head*K + index."""
    position: int
    """Byte of the text at which the activation is largest in the span."""
    activation: float
    z: float | None
    """(activation - mean) / standard deviation on the validation text; None if it never varies there."""
    rate: float
    """Fraction of the validation text at which it fires at this level."""


@dataclass(frozen=True)
class ByteView:
    """One byte of the text, and what the model does when it has read it."""

    byte: int
    shown: str
    surprisal: float | None
    """-ln p(byte | bytes before), nats; None for the first byte, which nothing predicts."""
    next_shown: str
    """The byte that the model then finds most likely."""
    next_probability: float
    activity: tuple[float, ...]
    """Fraction of neurons that fire, per level."""
    strongest: tuple[Firing, ...]


@dataclass(frozen=True)
class Word:
    """A maximal run of non-space bytes, neurons pooled by their maximum over its bytes."""

    start: int
    stop: int
    shown: str
    strongest: tuple[Firing, ...]


@dataclass(frozen=True)
class Context:
    """A place of the validation text that drives a neuron."""

    position: int
    left: str
    shown: str
    """The driving byte."""
    right: str
    activation: float


@dataclass(frozen=True)
class Telling:
    """A neuron that this text drives far above what the validation text does."""

    firing: Firing
    mean: float
    std: float
    largest: float
    """Mean, standard deviation and maximum on the validation text at this level."""
    contexts: tuple[Context, ...]
    text_profile: tuple[float, ...]
    """Mean activation in the text, per level."""
    baseline_profile: tuple[float, ...]
    """Mean activation in the validation text, per level."""


@dataclass(frozen=True)
class Raster:
    """Activations of some neurons (rows) at every byte of the text (columns)."""

    rows: tuple[Pair, ...]
    """(level, global id), by level, then by where the neuron peaks."""
    values: tuple[tuple[float, ...], ...]
    baseline: tuple[tuple[float, float, float], ...]
    """Mean, standard deviation and firing rate of each row on the validation text."""
    n_pairs: int
    """How many (level, neuron) rows there are in all."""


@dataclass(frozen=True)
class Inspection:
    """What `inspect_text` found."""

    model: dict[str, Any]
    """Config fields, with n_neurons and n_parameters."""
    signal: str
    rank: str
    text: bytes
    n_baseline: int
    min_fires: int
    density: Density
    density_init: Density
    """The same text read by the same model freshly initialised: measured, the line to compare with."""
    density_baseline: Density
    bytes: tuple[ByteView, ...]
    words: tuple[Word, ...]
    telling: tuple[Telling, ...]
    raster: Raster
    activity: Activity
    """All neurons at all bytes, for a picture; not in the JSON."""
    n_unseen: int
    """(level, neuron) pairs that fire here but fewer than `min_fires` times in the validation text: not ranked."""
    mechanisms: Mechanisms | None = None
    """What the mechanisms do with the text, and what they learned; None for a model without any."""

    @property
    def surprisal(self) -> float | None:
        """Mean surprisal in nats per byte, the first byte left out; None for a single byte."""
        values = [view.surprisal for view in self.bytes if view.surprisal is not None]
        return sum(values) / len(values) if values else None

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that goes into JSON (no NaN; numbers with six digits; the text as a list of bytes)."""
        whole = dataclasses.asdict(self)
        del whole["activity"]
        values: dict[str, Any] = plain(whole)
        values["surprisal"] = plain(self.surprisal)
        values["mechanisms"] = None if self.mechanisms is None else self.mechanisms.to_dict()
        return values


def readable(data: bytes, space: str = " ") -> list[str]:
    r"""Return one string per byte: ASCII as it is, a character on its first byte (then ""), the rest as 0xNN.

    Args:
        data: any bytes, valid UTF-8 or not.
        space: what a space is shown as.

    Examples:
        >>> readable("a é\n".encode() + bytes([0xFF, 0]), "␣")
        ['a', '␣', 'é', '', '␊', '0xFF', '0x00']
    """
    shown: list[str] = []
    while len(shown) < len(data):
        at = len(shown)
        if data[at] < 0x80:
            char = chr(data[at])
            named = {" ": space, "\n": "␊"}.get(char)
            shown.append(named or (char if char.isprintable() else f"0x{data[at]:02X}"))
        else:
            char = _character(data[at : at + 4])
            # what does not print (a change of writing direction, say) would alter the text around it
            length = len(char.encode()) if char.isprintable() else 0
            shown += [char, *[""] * (length - 1)] if length else [f"0x{data[at]:02X}"]
    return shown


def token_names(ids: Sequence[int]) -> list[str]:
    """Return one string per token of a byte vocabulary; ids beyond the bytes, of one that was grown, as #id.

    Examples:
        >>> token_names([104, 105, 32, 300])
        ['h', 'i', '␣', '#300']
    """
    if all(token < 256 for token in ids):
        return readable(bytes(ids), "␣")
    return [readable(bytes([token]), "␣")[0] if token < 256 else f"#{token}" for token in ids]


def _character(data: bytes) -> str:
    """The UTF-8 character that `data` starts with; empty if there is none."""
    for length in range(2, len(data) + 1):
        try:
            return data[:length].decode()
        except UnicodeDecodeError:
            continue
    return ""


def plain(value: Any) -> Any:
    """Tuples and bytes as lists, floats with six digits, and never a NaN or an infinity."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, bytes)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
