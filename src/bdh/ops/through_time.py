"""How far gradients go back in time: through all that a pass has written to its memory, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_through_time: ContextVar[bool] = ContextVar("gradient through what was written", default=True)


def is_through_time() -> bool:
    """Whether a token learns from what it wrote for later ones."""
    return torch.compiler.is_compiling() or _through_time.get()  # the compiler cannot read the choice


@contextmanager
def without_gradient_through_time() -> Iterator[None]:
    """Let a token learn only from what it reads, not from what it wrote for later ones, inside a `with`.

        a_t = sum_{tau < t} (q_t . sg(q_tau)) sg(v_tau)            sg: no gradient

    It is what the paper calls training without backpropagation through time (arXiv 2509.26507): gradients need nothing
    of the tokens before but the memory. Values are unchanged. Attention of the plain memory only.

    Examples:
        >>> from bdh import ops
        >>> v = torch.ones(1, 3, 1, requires_grad=True)
        >>> with ops.without_gradient_through_time():
        ...     ops.attention_read(torch.ones(1, 1, 3, 2), v).requires_grad
        False
    """
    token = _through_time.set(False)
    try:
        yield
    finally:
        _through_time.reset(token)
