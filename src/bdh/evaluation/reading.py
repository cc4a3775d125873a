"""What a model thinks of tokens that it reads: -log p of each, in memory that does not grow with the text.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from bdh.config import BDHConfig
from bdh.generate import PREFILL_BLOCK, prefill
from bdh.model import BDH, State, evaluating

ROWS_BYTES = 1 << 28
"""Memory that rows read side by side may take; their number changes no result beyond rounding."""

Cut = Callable[[int, int], npt.NDArray[np.int64]]
"""Gives the tokens (B, end - start) of a range."""


def surprisals(model: BDH, length: int, cut: Cut) -> Iterator[tuple[int, npt.NDArray[np.float64]]]:
    """Read rows from an empty state, in chunks, and yield `-log p(token t+1 | tokens 0..t)` in nats.

    Args:
        model: the model.
        length: T, tokens that are read; the rows have one more, which is only predicted.
        cut: the rows.

    Yields:
        Where a chunk begins, and the nats (B, t) of the tokens after those that were read in it.

    Raises:
        ValueError: the model's logits are not finite.
    """
    state: State | None = None
    for start in range(0, length, PREFILL_BLOCK):
        end = min(start + PREFILL_BLOCK, length)
        ids = torch.from_numpy(cut(start, end + 1)).to(model.encoder.device)
        with evaluating(model):
            if length <= PREFILL_BLOCK:
                logits, _ = model.walk(ids[:, :-1], wants_state=False)
            else:
                logits, state = model.walk(ids[:, :-1], state, wants_state=True, owns_state=state is not None)
        yield start, _nats(logits, ids[:, 1:]).cpu().numpy()


def rows_at_once(config: BDHConfig, length: int) -> int:
    """Return how many rows fit `ROWS_BYTES`: of each the state, and some activities of a chunk."""
    state = config.n_layer * config.n_neurons * config.n_embd
    activities = 6 * config.n_neurons * min(length, PREFILL_BLOCK)
    return max(1, ROWS_BYTES // (4 * (state + activities)))


def loglikelihoods(model: BDH, requests: Iterable[tuple[Sequence[int], Sequence[int]]]) -> Iterator[tuple[float, bool]]:
    """Tell how likely continuations are; of requests in a row with the same context it is read once.

    Args:
        model: the model.
        requests: token ids of context and continuation, neither empty.

    Yields:
        log p(continuation | context) in nats, and whether each of its tokens is the most likely one.

    Raises:
        ValueError: an empty context, or the model's logits are not finite.

    Examples:
        >>> from bdh import BDHConfig
        >>> model = BDH.from_seed(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4), 0)
        >>> for nats, greedy in loglikelihoods(model, [([1, 2], [3]), ([1, 2], [3, 4])]):
        ...     print(round(nats, 1), greedy)
        -5.6 False
        -11.0 False
    """
    device, known = model.encoder.device, list[int]()
    for context, continuation in requests:
        if not len(context):
            raise ValueError("the context is empty: expected at least one token before what is scored")
        if not len(continuation):
            yield 0.0, True
            continue
        if known != list(context):
            known = list(context)
            first, state = prefill(model, torch.tensor([known], dtype=torch.int64, device=device))
        ids = torch.tensor([list(continuation)], dtype=torch.int64, device=device)
        logits = first[:, None]
        if len(continuation) > 1:
            with evaluating(model):
                logits = torch.cat([logits, model.advance(ids[:, :-1], state)[0]], dim=1)
        yield -float(_nats(logits, ids).sum()), bool((logits.argmax(-1) == ids).all())


def _nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Return -log p of the targets (B, T) in float64."""
    nats = F.cross_entropy(logits.transpose(1, 2).double(), targets, reduction="none")
    if not bool(nats.isfinite().all()):
        raise ValueError("logits are not finite: the model's weights are broken")
    return nats
