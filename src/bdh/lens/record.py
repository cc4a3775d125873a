"""See what the model computes: named tensors of one forward pass, exactly as the model made them.

Shapes: B batch, T tokens, L levels, H heads, N neurons in all, K = N/H neurons per head.
Neuron k of head h has the global id h*K + k.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from bdh.model import BDH

SIGNALS = ("x_sparse", "y_sparse", "xy_sparse")
"""What is recorded per neuron: activity, gate, gated activity (the paper's y)."""

_IN_LEVEL = ("x_sparse", "attn_out", "y_sparse", "xy_sparse", "v")


@dataclass(frozen=True, eq=False, repr=False)
class Trace(Mapping[str, Tensor]):
    """What `record` saw: a read-only mapping from name to tensor.

    Examples:
        >>> trace = Trace({"layers.0.x_sparse": torch.ones(1, 2, 3, 4)})
        >>> trace["layers.0.x_sparse"].shape, trace.neurons("x_sparse", 0).shape
        (torch.Size([1, 2, 3, 4]), torch.Size([1, 3, 8]))
    """

    tensors: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self.tensors[name]
        except KeyError:
            raise KeyError(f"{name!r} was not recorded; {_near(name, self.names)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __repr__(self) -> str:
        return "Trace(" + ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in self.items()) + ")"

    @property
    def names(self) -> tuple[str, ...]:
        """Recorded names, in the order in which the model made the tensors."""
        return tuple(self.tensors)

    def neurons(self, signal: str, layer: int) -> Tensor:
        """Return one level of x_sparse, y_sparse or xy_sparse by global neuron id.

        Args:
            signal: one of `SIGNALS`.
            layer: the level, 0..L-1.

        Returns:
            (B, T, N); entry h*K + k is neuron k of head h.

        Raises:
            ValueError: the signal is not one of neurons, or was not recorded at this level.
        """
        check_signal(signal)
        name = f"layers.{layer}.{signal}"
        if name not in self.tensors:
            raise ValueError(f"{name!r} was not recorded; {_near(name, self.names)}; add it to names=")
        return self.tensors[name].transpose(1, 2).flatten(2)

    def to(self, device: torch.device | str) -> Trace:
        """Return a copy on another device."""
        return Trace({name: tensor.to(device) for name, tensor in self.items()})


def names_of(model: BDH) -> tuple[str, ...]:
    """Return all names that `record` knows for this model, in the order in which it makes the tensors.

    Examples:
        >>> from bdh import BDHConfig
        >>> names_of(BDH(BDHConfig(n_layer=1, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4)))[:3]
        ('embed', 'layers.0.x_sparse', 'layers.0.attn_out')
    """
    levels = range(model.config.n_layer)
    return ("embed", *(f"layers.{level}.{name}" for level in levels for name in _IN_LEVEL), "logits")


@torch.no_grad()
def record(model: BDH, idx: Tensor, names: str | Sequence[str] = ("layers.*.x_sparse",)) -> tuple[Tensor, Trace]:
    """Run the model once, without gradients, and keep the named tensors; the logits are those of `model(idx)`.

    The model runs in the mode it is in: in training mode the dropout is on, and `model(idx)` may take fast kernels
    whose rounding differs; in eval mode the logits are the same bit for bit.

    Args:
        model: the model; it is not changed.
        idx: (B, T) token ids.
        names: patterns (`*`, `?`, `[...]`) of the names to keep; `names_of(model)` lists them.

    Returns:
        logits (B, T, V) and the trace.

    Raises:
        ValueError: a pattern that matches no name, or token ids that the model refuses.

    Examples:
        >>> from bdh import BDHConfig
        >>> model = BDH(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4))
        >>> logits, trace = record(model, torch.tensor([[1, 2, 3]]), "layers.*.x_sparse")
        >>> trace.names
        ('layers.0.x_sparse', 'layers.1.x_sparse')
    """
    wanted = _matching(names_of(model), (names,) if isinstance(names, str) else tuple(names))
    seen: dict[str, Tensor] = {}

    def keep(name: str, tensor: Tensor) -> Tensor:
        if name in wanted:
            seen[name] = tensor.detach()
        return tensor

    logits, _ = model(idx, tap=keep)
    assert seen.keys() == wanted, f"the model never made {sorted(wanted - seen.keys())}"
    return logits, Trace(seen)


def check_signal(signal: str) -> None:
    """Raise ValueError unless `signal` is one of `SIGNALS`."""
    if signal not in SIGNALS:
        raise ValueError(f"signal={signal!r}: expected one of {', '.join(SIGNALS)}; {_near(signal, SIGNALS)}")


def _matching(known: tuple[str, ...], patterns: tuple[str, ...]) -> set[str]:
    """Names that match any pattern; a pattern without a match is an error, so that no trace is silently empty."""
    if not patterns:
        raise ValueError("names=(): expected at least one name or pattern; for example 'layers.*.x_sparse'")
    wanted: set[str] = set()
    for pattern in patterns:
        found = {name for name in known if fnmatchcase(name, pattern)}
        if not found:
            raise ValueError(f"names: {pattern!r} matches nothing in this model; {_near(pattern, known)}")
        wanted |= found
    return wanted


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 3, cutoff=0.5)
    return "did you mean " + " or ".join(map(repr, near)) + "?" if near else "known: " + ", ".join(known)
