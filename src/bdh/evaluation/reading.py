"""What a model thinks of tokens that it reads: -log p of each, in memory that does not grow with the text.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

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
FORKS_BYTES = 1 << 24
"""The same for continuations on a CPU, whose states are copied, and only pay inside the caches (docs/LOG.md)."""

Told = Callable[[int, int], None]
"""Told how much is done, and of how much."""
T = TypeVar("T")

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


def rows_at_once(config: BDHConfig, length: int, size: int = ROWS_BYTES) -> int:
    """Return how many rows fit so many bytes: of each the state, and some activities of a chunk."""
    state = config.n_layer * config.n_neurons * config.n_embd
    activities = 6 * config.n_neurons * min(length, PREFILL_BLOCK)
    return max(1, size // (4 * (state + activities)))


def loglikelihoods(
    model: BDH, requests: Iterable[tuple[Sequence[int], Sequence[int]]], told: Told | None = None
) -> list[tuple[float, bool]]:
    """Tell how likely continuations are; each context is read once, side by side with others of its length.

    Args:
        model: the model.
        requests: token ids of context and continuation.
        told: progress, in requests.

    Returns:
        log p(continuation | context) in nats, and whether each of its tokens is the most likely one, by request.

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
    asked = [(tuple(context), tuple(continuation)) for context, continuation in requests]
    if not all(context for context, _ in asked):
        raise ValueError("the context is empty: expected at least one token before what is scored")
    continued: dict[tuple[int, ...], list[int]] = {}  # an empty continuation is certain: nothing is read for it
    for number, (context, continuation) in enumerate(asked):
        if continuation:
            continued.setdefault(context, []).append(number)
    device, found, done = model.encoder.device, [(0.0, True)] * len(asked), 0
    at_once = functools.partial(rows_at_once, model.config)
    fork_at_once = functools.partial(at_once, size=FORKS_BYTES if device.type == "cpu" else ROWS_BYTES)
    for contexts in _alike(continued, tuple, at_once):
        logits, state = prefill(model, torch.tensor(contexts, dtype=torch.int64, device=device))
        forks = [(row, number) for row, context in enumerate(contexts) for number in continued[context]]
        for some in _alike(forks, lambda fork: asked[fork[1]][1], fork_at_once):
            rows, numbers = zip(*some, strict=True)
            ids = torch.tensor([asked[number][1] for number in numbers], dtype=torch.int64, device=device)
            nats, greedy = _continued(model, logits[list(rows)], state.rows(list(rows)), ids)
            for number, score, said in zip(numbers, nats.tolist(), greedy.tolist(), strict=True):
                found[number] = -score, said
            done += len(numbers)
            if told:
                told(done, len(asked))
    return found


def _alike(
    things: Iterable[T], tokens_of: Callable[[T], Sequence[int]], at_once: Callable[[int], int]
) -> Iterator[list[T]]:
    """Yield together what has equally many tokens, so many things at once as that length allows."""
    lengths: dict[int, list[T]] = {}
    for thing in things:
        lengths.setdefault(len(tokens_of(thing)), []).append(thing)
    for length, same in lengths.items():
        for first in range(0, len(same), at_once(length)):
            yield same[first : first + at_once(length)]


def _continued(model: BDH, logits: Tensor, state: State, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return -log p (B,) of ids (B, T), the first of which the logits (B, V) predict, and whether each is the best.

    The state is given away.
    """
    parts = [logits[:, None]]
    for start in range(0, ids.shape[1] - 1, PREFILL_BLOCK):
        block = ids[:, start : min(start + PREFILL_BLOCK, ids.shape[1] - 1)]
        with evaluating(model):
            more, after = model.walk(block, state, wants_state=True, owns_state=True)
        parts.append(more)
        assert after is not None
        state = after
    found = torch.cat(parts, dim=1)
    return _nats(found, ids).sum(1), (found.argmax(-1) == ids).all(1)


def _nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Return -log p of the targets (B, T) in float64."""
    if logits.device.type == "mps":  # which has no float64
        logits, targets = logits.cpu(), targets.cpu()
    nats = F.cross_entropy(logits.transpose(1, 2).double(), targets, reduction="none")
    if not bool(nats.isfinite().all()):
        raise ValueError("logits are not finite: the model's weights are broken")
    return nats
