"""What the passes of a training step read, and what is remembered from step to step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from bdh import ops
from bdh.config import BDHConfig, TrainConfig
from bdh.data import Batch, Corpus
from bdh.data.streams import NOT_SCORED
from bdh.model import State, cross_entropy
from bdh.train.sharing import Copies


def check_reading(model: BDHConfig, config: TrainConfig) -> None:
    """Refuse orders and gradients that the mechanisms of a model do not allow.

    Raises:
        ValueError: see there.
    """
    if config.batches == "streams" and model.hippo.measure == "legs":
        raise ValueError(
            "batches='streams': expected no hippo.measure='legs', which counts tokens from the beginning of a text, "
            "and rows begin theirs at different steps; use --hippo.measure legt, or --batches windows"
        )
    carried = [name for name in ("lif", "stdp", "hippo", "neuromodulation") if getattr(model, name).on]
    if config.bptt == "none" and carried:
        raise ValueError(
            f"bptt='none': expected a model that carries nothing through time but its plain memory, got "
            f"{', '.join(carried)}; switch them off, or leave --bptt away"
        )


class Reading:
    """The passes of each step with their losses; with streams also the memory of every row.

    Args:
        sharing: the model that reads, and which rows it reads here.
        corpus: its training split is read.
        config: order and shape of the batches.
    """

    def __init__(self, sharing: Copies, corpus: Corpus, config: TrainConfig) -> None:
        check_reading(sharing.config, config)
        self.sharing, self.model, self.config = sharing, sharing.model, config
        sharing.rows.rows(config.batch_size)  # what cannot be shared out is refused here
        self.order = corpus.order(config)
        self.states: list[State | None] = [None] * config.grad_acc_steps
        """Of the rows of each pass that are read here, after the last step; None before and where none is carried."""
        self.tokens = 0
        """Read so far by all ranks, padding included."""
        self._loss_of: Any = torch.compile(self.model) if config.compile else self.model

    def first(self) -> Tensor:
        """Return the tokens of the first pass, (B, T), those of all ranks."""
        return next(iter(self.order.passes(0))).idx

    def losses(self, step: int, tap: dict[str, Any]) -> Iterator[tuple[Tensor, float]]:
        """Yield the loss of each pass of a step, and its weight: the share of the scored tokens that it has here."""
        batches = list(self.order.passes(step))
        self.tokens += sum(batch.idx.numel() for batch in batches)
        scored = [int((batch.targets != NOT_SCORED).sum()) for batch in batches]
        for number, batch in enumerate(batches):
            weight = scored[number] / sum(scored) if batch.weight is None else batch.weight
            here = batch.rows(self.sharing.rows.rows(len(batch.idx)))  # beside replay there are fewer
            # never nothing, of which there is no mean: every row of every order has a target
            share = int((here.targets != NOT_SCORED).sum()) / scored[number]
            yield self._loss(number, here, tap), weight * share

    def remembered(self) -> list[State | None]:
        """Return what the rows of all ranks remember, by pass."""
        return [None if state is None else self.sharing.whole(state) for state in self.states]

    def remember(self, states: list[State | None]) -> None:
        """Take over what the rows of all ranks remember, by pass."""
        self.states = [None if state is None else self.sharing.part(state, self.config.batch_size) for state in states]

    def _loss(self, number: int, batch: Batch, tap: dict[str, Any]) -> Tensor:
        device = self.model.encoder.device
        idx, targets = batch.idx.to(device), batch.targets.to(device)
        cut = ops.without_gradient_through_time() if self.config.bptt == "none" else contextlib.nullcontext()
        with cut, ops.using(self.config.backend):
            return self._read(number, idx, targets, batch.fresh, tap)

    def _read(self, number: int, idx: Tensor, targets: Tensor, fresh: Tensor | None, tap: dict[str, Any]) -> Tensor:
        if fresh is None:
            loss: Tensor = self._loss_of(idx, targets, **tap)[1]
            return loss
        state = self.states[number]
        if self.model.parts.forgets:
            begins = fresh.to(idx.device) if bool(fresh.any()) else None
            logits, after = self.model.advance(idx, state, constant=True, fresh=begins, **tap)
        else:
            logits, after = self._in_pieces(idx, state, fresh, tap)
        self.states[number] = after.detach()
        return cross_entropy(logits, targets)

    def _in_pieces(self, idx: Tensor, state: State | None, fresh: Tensor, tap: dict[str, Any]) -> tuple[Tensor, State]:
        """Read from one beginning of a text to the next one, of whichever row; between, that row falls silent.

        Exact for every mechanism, and slow where many texts begin.
        """
        cuts = sorted({0, *fresh.any(0).nonzero().flatten().tolist(), idx.shape[1]})
        logits = []
        for start, stop in pairwise(cuts):
            begins = fresh[:, start].to(idx.device)
            if state is not None and bool(begins.any()):
                empty = self.model.parts.silence(len(idx), state.position)
                levels = [{name: part.to(idx.device) for name, part in empty.items()}] * self.model.config.n_layer
                state = state.where(begins, State.of_levels(levels, state.position))
            part, state = self.model.advance(idx[:, start:stop], state, **tap)
            logits.append(part)
        assert state is not None
        return torch.cat(logits, 1), state
