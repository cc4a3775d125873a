"""What can be changed inside a model, as plain values that can be written down: see `bdh.lens.intervene`.

Shapes: B batch, T tokens, H heads, K neurons per head, N neurons in all, D embedding.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from bdh.lens.memory import check_level, check_neurons
from bdh.lens.names import canonical, check_signal, near, places_of
from bdh.model import BDH, State


@dataclass
class Walk:
    """One pass of the model over some tokens, as interventions see it."""

    model: BDH
    tokens: int
    state: State | None
    seen: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    """By level and place what the model went on with."""
    rows: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    """By level and neuron the rows (B, T, D) of the memory that the tokens read."""

    @property
    def position(self) -> int:
        """Tokens read before."""
        return 0 if self.state is None else self.state.position


class Intervention(ABC):
    """A change of what a model computes, as a value that can be kept as JSON.

    Examples:
        >>> Intervention.from_dict({"kind": "Ablate", "neurons": [3, 5]})
        Ablate(neurons=(3, 5), layers=None, signal='x_sparse')
    """

    kinds: ClassVar[dict[str, type[Intervention]]] = {}

    def __init_subclass__(cls) -> None:
        if not cls.__name__.startswith("_"):
            Intervention.kinds[cls.__name__] = cls

    @abstractmethod
    def check(self, model: BDH) -> None:
        """Raise ValueError where the model does not have what is to be changed."""

    @abstractmethod
    def change(self, tensor: Tensor, level: int, place: str, walk: Walk) -> Tensor:
        """Return what the model shall go on with; the level is -1 outside the levels."""

    def asked_positions(self) -> Collection[int]:
        """Return the positions of tokens that this is about; empty where it is about all."""
        return ()

    def begin(self, walk: Walk, read: Collection[int]) -> None:  # noqa: B027 - most can act on any walk
        """Raise ValueError where this cannot act on a walk; `read` are its positions that were read under it before."""

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary that `json.dumps` takes and `from_dict` reads."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]  # every kind is a dataclass
        values = {entry.name: getattr(self, entry.name) for entry in fields}
        return {"kind": type(self).__name__} | {name: _plain(value) for name, value in values.items()}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Intervention:
        """Return the intervention that `to_dict` wrote.

        Raises:
            ValueError: an unknown kind or field, or a value that the intervention refuses.
        """
        kind, kinds = str(values.get("kind")), Intervention.kinds
        if kind not in kinds:
            raise ValueError(f"kind={kind!r}: expected one of {', '.join(kinds)}; {near(kind, tuple(kinds))}")
        try:
            return kinds[kind](**{name: value for name, value in values.items() if name != "kind"})
        except TypeError as error:  # a field too many or missing, or a value of another type
            raise ValueError(f"{kind}: expected what to_dict writes, got {dict(values)}: {error}") from None


@dataclass(frozen=True)
class _OnNeurons(Intervention):
    """What changes single neurons at every token."""

    neurons: Sequence[int]
    layers: Sequence[int] | None = field(default=None, kw_only=True)
    signal: str = field(default="x_sparse", kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "neurons", integers("neurons", self.neurons))
        object.__setattr__(self, "layers", levels("layers", self.layers))
        check_signal(self.signal)

    def check(self, model: BDH) -> None:
        """Raise ValueError for neurons or levels that the model does not have."""
        check_neurons(model, self.neurons)
        check_levels(model, self.layers)

    def change(self, tensor: Tensor, level: int, place: str, walk: Walk) -> Tensor:
        """Change the entries of the neurons, at the levels and in the signal that were asked for."""
        if place != self.signal or not is_at(level, self.layers):
            return tensor
        _, H, _, K = tensor.shape
        mask = torch.zeros(H * K, dtype=torch.bool, device=tensor.device)
        mask[list(self.neurons)] = True
        return self._changed(tensor, mask.view(H, 1, K))

    @abstractmethod
    def _changed(self, tensor: Tensor, mask: Tensor) -> Tensor:
        """Return the tensor (B, H, T, K) with other entries at the neurons of the mask (H, 1, K)."""


@dataclass(frozen=True)
class Ablate(_OnNeurons):
    """Silence neurons: x_j = 0 at every token (or the gate y_j, or the product x_j y_j).

    A neuron without x neither reads nor writes the memory nor passes its gate. Spiking neurons go on spiking inside,
    but nobody hears them.

    Args:
        neurons: global ids h*K + k.
        layers: levels; None is all.
        signal: x_sparse, y_sparse or xy_sparse.

    Raises:
        ValueError: no neuron, or something that is no id; unknown neurons and levels are refused by `intervene`.

    Examples:
        >>> Ablate([12, 47], layers=[0]).to_dict()
        {'kind': 'Ablate', 'neurons': [12, 47], 'layers': [0], 'signal': 'x_sparse'}
    """

    def _changed(self, tensor: Tensor, mask: Tensor) -> Tensor:
        return tensor.masked_fill(mask, 0.0)


@dataclass(frozen=True)
class Scale(_OnNeurons):
    """Multiply the activity of neurons: x_j <- factor x_j at every token.

    Args:
        neurons: global ids h*K + k.
        factor: any finite number.
        layers: levels; None is all.
        signal: x_sparse, y_sparse or xy_sparse.

    Raises:
        ValueError: as `Ablate`, or a factor that is not finite.

    Examples:
        >>> Scale([3], factor=2.0)
        Scale(neurons=(3,), layers=None, signal='x_sparse', factor=2.0)
    """

    factor: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite("factor", self.factor)

    def _changed(self, tensor: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, tensor * self.factor, tensor)


@dataclass(frozen=True)
class Clamp(_OnNeurons):
    """Hold the activity of neurons at a value: x_j = value at every token.

    Args:
        neurons: global ids h*K + k.
        value: any finite number.
        layers: levels; None is all.
        signal: x_sparse, y_sparse or xy_sparse.

    Raises:
        ValueError: as `Ablate`, or a value that is not finite.

    Examples:
        >>> Clamp([3], value=0.5, signal="y_sparse")
        Clamp(neurons=(3,), layers=None, signal='y_sparse', value=0.5)
    """

    value: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite("value", self.value)

    def _changed(self, tensor: Tensor, mask: Tensor) -> Tensor:
        return tensor.masked_fill(mask, self.value)


@dataclass(frozen=True, eq=False)
class Patch(Intervention):
    """Put recorded values in the place of what the model computes, at some tokens.

    Args:
        name: of a recorded tensor, "layers.2.attn_out"; names in the style of TransformerLens are understood.
        values: (..., P, width), the shape that `record` gives of P tokens; dimensions before may be 1 or left out.
        positions: which tokens of the text, P of them; None is 0..P-1.

    Raises:
        ValueError: numbers that do not fit each other; what does not fit the model is refused by `intervene`.

    Examples:
        >>> Patch("blocks.0.hook_resid_post", torch.zeros(1, 2, 16), positions=[4, 5]).name
        'layers.0.v'
    """

    name: str
    values: Tensor
    positions: Sequence[int] | None = None

    def __post_init__(self) -> None:
        values = _tensor(self.values)
        if values.ndim < 2 or values.numel() == 0:
            raise ValueError(f"values: expected a shape (..., P, width), got {tuple(values.shape)}")
        positions = range(values.shape[-2]) if self.positions is None else self.positions
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "name", canonical(self.name))
        object.__setattr__(self, "positions", integers("positions", positions))
        count = len(self.asked_positions())
        if count != values.shape[-2] or count != len(positions):
            raise ValueError(
                f"positions: expected {values.shape[-2]} different ones for values of shape {tuple(values.shape)}, "
                f"got {len(positions)}"
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Patch):
            return NotImplemented
        same = (self.name, self.positions, self.values.dtype) == (other.name, other.positions, other.values.dtype)
        return same and torch.equal(self.values, other.values.to(self.values.device))

    def __hash__(self) -> int:
        return hash((self.name, self.positions))

    def check(self, model: BDH) -> None:
        """Raise ValueError for a name that the model does not have, or that values of this shape do not fit."""
        known = places_of(model)
        if self.name not in known:
            raise ValueError(f"name: {self.name!r} is nothing in this model; {near(self.name, tuple(known))}")
        if self.name.endswith(".spikes"):
            raise ValueError(f"name: {self.name!r} can only be seen; patch x_sparse, which is what goes on from there")
        expected, got = known[self.name].shape(model.config, 1, self.values.shape[-2]), tuple(self.values.shape)
        # the batch is only known when the model reads
        inner = expected[1:-2]
        fits = got[-1] == expected[-1] and len(got) <= len(expected)
        if not fits or any(n not in (1, m) for n, m in zip(got[:-2][::-1], inner[::-1], strict=False)):
            raise ValueError(f"values: expected a shape like {expected} for {self.name!r}, got {got}")

    def asked_positions(self) -> Collection[int]:
        """Return the positions to be patched."""
        assert isinstance(self.positions, tuple)
        return self.positions

    def change(self, tensor: Tensor, level: int, place: str, walk: Walk) -> Tensor:
        """Return the tensor with the values in it."""
        if self.name != (place if level < 0 else f"layers.{level}.{place}"):
            return tensor
        here, which = inside(self.asked_positions(), walk)
        if not here:
            return tensor
        values = self.values[..., which, :].to(tensor)
        changed = tensor.clone()
        try:
            changed[..., here, :] = values
        except RuntimeError:
            raise ValueError(
                f"values: expected {self.values.shape[0]} sequences for {self.name!r}, the model reads {len(tensor)}"
            ) from None
        return changed


def inside(positions: Collection[int], walk: Walk) -> tuple[list[int], list[int]]:
    """Return which positions a walk reads, counted from its first token, and their places among the positions."""
    found = [(at - walk.position, n) for n, at in enumerate(positions) if 0 <= at - walk.position < walk.tokens]
    return [here for here, _ in found], [n for _, n in found]


def is_at(level: int, layers: Sequence[int] | None) -> bool:
    """Return whether a level is meant; -1 is none."""
    return level >= 0 and (layers is None or level in layers)


def integers(field: str, values: Any) -> tuple[int, ...]:
    """Return integers >= 0 without repetition, in the order in which they were given."""
    listed = values.tolist() if isinstance(values, Tensor) else values
    listed = [listed] if isinstance(listed, int) else listed
    good = isinstance(listed, Iterable) and not isinstance(listed, (str, bytes))
    ids = list(listed) if good else []
    if not ids or not all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in ids):
        raise ValueError(f"{field}: expected one or more integers >= 0, got {values!r}")
    return tuple(dict.fromkeys(ids))


def levels(field: str, layers: Any) -> tuple[int, ...] | None:
    """Return levels without repetition; None stays None."""
    return None if layers is None else integers(field, layers)


def check_levels(model: BDH, layers: Sequence[int] | None) -> None:
    """Raise ValueError for levels that the model does not have."""
    for level in layers or ():
        check_level(model, level, "layers")


def check_finite(field: str, value: Any) -> None:
    """Raise ValueError unless the value is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{field}: expected a finite number, got {value!r}")


def _tensor(values: Any) -> Tensor:
    if isinstance(values, Mapping):  # from JSON
        dtype = getattr(torch, str(values.get("dtype")), None)
        if not isinstance(dtype, torch.dtype) or "values" not in values:
            raise ValueError(f"values: expected a tensor, or dtype and values of one, got {sorted(values)}")
        values = torch.tensor(values["values"], dtype=dtype)
    tensor: Tensor = torch.as_tensor(values)
    return tensor.detach().to_dense() if tensor.is_sparse else tensor.detach()


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return {"dtype": str(value.dtype).removeprefix("torch."), "values": value.tolist()}
    return list(value) if isinstance(value, tuple) else value
