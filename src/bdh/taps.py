"""Where a pass of the model is listened to and changed: functions of (name, tensor), composed for one walk."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from bdh.state import State

Tap = Callable[[str, Tensor], Tensor]
"""Called with (name, tensor) at each named place of the walk; what it returns is used instead."""

Edit = Callable[[Tensor, State | None], Tap]
"""Called at the start of each walk with the ids (B, T) and the state before them; returns the tap of that walk."""


def no_tap(name: str, tensor: Tensor) -> Tensor:
    """Change nothing."""
    return tensor


def composed(edits: Sequence[Edit], tap: Tap | None, idx: Tensor, state: State | None) -> Tap:
    """Return the one tap that a walk over these tokens calls: the edits in their order, then the caller's tap.

    Examples:
        >>> double = lambda idx, state: lambda name, tensor: 2 * tensor
        >>> composed([double], lambda name, seen: seen + 1, Tensor(), None)("v", Tensor([3])).item()
        7.0
    """
    taps = [edit(idx, state) for edit in edits] + ([] if tap is None else [tap])
    if len(taps) < 2:
        return taps[0] if taps else no_tap

    def all_of_them(name: str, tensor: Tensor) -> Tensor:
        for one in taps:
            tensor = one(name, tensor)
        return tensor

    return all_of_them


def at_level(tap: Tap, level: int, name: str, tensor: Tensor) -> Tensor:
    """Call a tap with the name of a place inside a level."""
    return tap(f"layers.{level}.{name}", tensor)
