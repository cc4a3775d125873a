"""What a batch of sequences carries from token to token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class State:
    """Everything that one batch of sequences carries from token to token: a value, never changed in place.

    Its size does not depend on how many tokens were read. A state may be kept, reused and handed to several
    continuations ("forked") at no cost.
    """

    rho: tuple[Tensor, ...]
    """Synaptic state of each level, L tensors (B, H, K, D), in the rotated frame of position 0."""
    position: int = 0
    """Number of tokens read."""
    mechanisms: tuple[Mapping[str, Tensor], ...] = ()
    """What the switched-on mechanisms of each level add (`bdh.parts.Carried` has the names); empty without any."""

    @property
    def batch_size(self) -> int:
        """Number of sequences (B)."""
        return self.rho[0].shape[0]

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return sum(tensor.nbytes for level in range(len(self.rho)) for tensor in self.level(level).values())

    def level(self, level: int) -> dict[str, Tensor]:
        """Return all that a level carries, by name."""
        return {"rho": self.rho[level], **(self.mechanisms[level] if self.mechanisms else {})}

    @classmethod
    def of_levels(cls, levels: list[dict[str, Tensor]], position: int) -> State:
        """Return the state whose levels carry these, each with a `rho`.

        Examples:
            >>> State.of_levels([{"rho": torch.zeros(1, 1, 2, 3), "mean": torch.zeros(1, 3)}], 5).mechanisms[0].keys()
            dict_keys(['mean'])
        """
        more = tuple({name: part for name, part in level.items() if name != "rho"} for level in levels)
        return cls(tuple(level["rho"] for level in levels), position, more if any(more) else ())

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> State:
        """Return a copy on another device or in another precision (counters stay integers)."""
        return self.each(lambda part: part.to(device=device, dtype=dtype if part.is_floating_point() else None))

    def rows(self, index: slice | list[int] | Tensor) -> State:
        """Return the chosen sequences of the batch as a state of their own.

        Examples:
            >>> state = State((torch.zeros(1, 1, 2, 3),))
            >>> state.rows([0, 0]).batch_size     # one context, two continuations
            2
        """
        return self.each(lambda part: part[index])

    def detach(self) -> State:
        """Return the same values without the graph of what was read, so that no gradient goes back beyond here."""
        return self.each(lambda part: part.detach())

    def where(self, fresh: Tensor, other: State) -> State:
        """Return `other`'s rows where `fresh` (B,) is true, else these.

        Examples:
            >>> mine, other = (State((torch.full((2, 1, 1, 1), value),)) for value in (1.0, 0.0))
            >>> mine.where(torch.tensor([False, True]), other).rho[0].flatten().tolist()
            [1.0, 0.0]
        """
        levels = []
        for number in range(len(self.rho)):
            level, instead = self.level(number), other.level(number)
            rows = {name: fresh.view(-1, *[1] * (part.ndim - 1)) for name, part in level.items()}
            levels.append({name: torch.where(rows[name], instead[name], part) for name, part in level.items()})
        return State.of_levels(levels, self.position)

    def each(self, change: Callable[[Tensor], Tensor]) -> State:
        """Return the state with every tensor changed."""
        more = tuple({name: change(part) for name, part in level.items()} for level in self.mechanisms)
        return replace(self, rho=tuple(map(change, self.rho)), mechanisms=more)

    def require(self, n_layer: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise ValueError unless there are this many levels, each with tensors of these shapes."""
        levels = [self.level(level) for level in range(len(self.rho))]
        found = [{name: tuple(part.shape) for name, part in level.items()} for level in levels]
        wrong = next((level for level in found if level != shapes), None)
        if len(found) != n_layer or wrong is not None:
            got = f"{len(found)} of {_described(wrong or {})}" if wrong else f"{len(found)}"
            raise ValueError(
                f"state: expected {n_layer} levels of {_described(shapes)}, got {got}; "
                "use a state of this model and batch (State.rows changes it)"
            )


def _described(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items())
