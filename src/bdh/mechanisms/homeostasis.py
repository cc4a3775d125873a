"""What parts that adapt slowly have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn


class Homeostatic(nn.Module):
    """A part that adapts between the steps of an optimiser, not within them.

    A forward pass reads buffers as the last step left them, so nothing in it depends on later tokens or other texts of
    the batch. In training mode `observe` adds up statistics without gradients, any number of times; `homeostasis_step`,
    called once per optimiser step, moves the buffers and clears the sums. In eval mode nothing changes. All of it is
    saved in the state dict, the sums too, so that a resumed run goes on as if it had not stopped.
    """

    SUMS: tuple[str, ...] = ()
    """Buffers that `observe` adds to: those of two batches, added, are those of both."""

    def observe(self, activity: Tensor) -> None:
        """Add up what fired; does nothing in eval mode.

        Args:
            activity: (B, H, T, K), nonnegative.
        """
        if self.training:
            with torch.no_grad(), torch.autocast(activity.device.type, enabled=False):
                self._add_up(activity.detach())

    def homeostasis_step(self) -> None:
        """Adapt to what was observed since the last call; call it once per optimiser step."""
        raise NotImplementedError

    def _add_up(self, activity: Tensor) -> None:
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # small steps are lost in half precision: a cast of the model leaves slow buffers in float32 at least
        def keep_wide(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            return tensor.to(new.device) if new.is_floating_point() and new.dtype.itemsize < 4 else new

        super()._apply(keep_wide, recurse)  # type: ignore[no-untyped-call]
        return self
