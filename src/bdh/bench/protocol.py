"""What takes part in a benchmark must be able to do this."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn


class Declined(Exception):  # noqa: N818 - not an error: a contender has no answer to a question
    """A contender cannot take part, or not at this point; the text says why in one line."""


class Contestant(Protocol):
    """A model that can be measured. Shapes: B sequences, T tokens, V vocabulary."""

    about: str
    """Its shape, where that is its own; else empty."""

    @property
    def module(self) -> nn.Module:
        """The weights."""

    def loss(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Forward pass of training on (B, T) tokens: the mean cross-entropy, to be differentiated."""

    def read(self, idx: Tensor) -> object:
        """Read a prompt (B, T) into what generation goes on from."""

    def reader(self, idx: Tensor, position: int | None) -> Callable[[Tensor], Tensor]:
        """Return a function from one more token (B, 1) to the logits (B, 1, V) after it.

        Args:
            idx: (B, T) the tokens before.
            position: where the token stands; a contender that keeps all tokens has read as many. None: T.

        Raises:
            Declined: not at this position.
        """
