"""The table of contenders: to add one, add a line to `CONTENDERS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from bdh import ops
from bdh.bench.gpt2 import GPT2
from bdh.bench.protocol import Contestant, Declined
from bdh.bench.settings import Case
from bdh.config import BDHConfig
from bdh.generate import prefill, step, step_weights
from bdh.model import BDH, State, evaluating
from bdh.ops import native_levels
from bdh.sections import SECTIONS

CALIBRATION = 8, 128
"""Random tokens that thresholds are calibrated on."""


def read_until(model: BDH, idx: Tensor, position: int | None) -> State:
    """Return the state after the tokens (B, T), which stand right before `position` (None: at the beginning).

    What was before them is taken to be silence: an empty state, turned to where they begin.
    """
    if position is None:
        return prefill(model, idx)[1]
    start = position - idx.shape[1]
    silence = [model.parts.silence(idx.shape[0], start) for _ in range(model.config.n_layer)]
    return prefill(model, idx, State.of_levels(silence, start))[1]


class Hatchling:
    """This package's model, computed by one of the choices of `ops.using`.

    Args:
        model: the model.
        backend: see `ops.using`; one that this machine does not have declines when it is first used.
        precision: of the weights that decoding reads, see `bdh.generate.stream`.
    """

    about = ""

    def __init__(self, model: BDH, backend: ops.LevelsBackend, precision: ops.Precision = "float32") -> None:
        self.module, self.backend, self.precision = model, backend, precision
        reason = ops.why_not_native(model.encoder) if backend == "native" else None
        if reason:
            raise Declined(f"not here: {reason}")

    def loss(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of a batch."""
        with ops.using(self.backend):
            loss: Tensor = self.module.train()(idx, targets)[1]
        return loss

    def read(self, idx: Tensor) -> object:
        """Read a prompt into a state."""
        with ops.using(self.backend):
            return prefill(self.module, idx)[1]

    def reader(self, idx: Tensor, position: int | None) -> Callable[[Tensor], Tensor]:
        """Return what reads one more token into the state, whose size does not depend on the position."""
        state = read_until(self.module, idx, position)
        with ops.using(self.backend):
            try:
                weights = step_weights(self.module, state, self.precision)
            except ValueError as reason:
                raise Declined(str(reason)) from None
        if self.precision != "float32":
            state = state.to(dtype=torch.bfloat16)

        def read_one(token: Tensor) -> Tensor:
            nonlocal state
            with ops.using(self.backend):
                logits, state = step(self.module, token, state, weights)
            return logits

        return read_one


class Released(Hatchling):
    """The model as the released code runs it: full score matrix, no state, so all is read again for each token."""

    def __init__(self, model: BDH) -> None:
        super().__init__(model, "reference")

    def read(self, idx: Tensor) -> object:
        """Read a prompt; nothing is kept of it."""
        return self._logits(idx)

    def reader(self, idx: Tensor, position: int | None) -> Callable[[Tensor], Tensor]:
        """Return what reads the context and one more token."""
        if position is not None:
            raise Declined("it would read the whole text again")

        return lambda token: self._logits(torch.cat([idx, token], 1))[:, -1:]

    def _logits(self, idx: Tensor) -> Tensor:
        with ops.using("reference"), evaluating(self.module):
            logits: Tensor = self.module(idx)[0]
            return logits


class Lean(Hatchling):
    """The native kernels, keeping nothing of a level but its input; the backward pass computes the rest again."""

    def __init__(self, model: BDH) -> None:
        super().__init__(model, "native")

    def loss(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of a batch."""
        before = native_levels.memory_budget
        native_levels.memory_budget = lambda: 0.0
        try:
            return super().loss(idx, targets)
        finally:
            native_levels.memory_budget = before


class Variant(Hatchling):
    """Another member of the family in the same shape, with random weights and calibrated thresholds."""

    def __init__(self, of: Maker, variant: Literal["hatching", "advanced"]) -> None:
        c = of.model.config
        shape = {f.name: getattr(c, f.name) for f in fields(c) if f.name not in SECTIONS}
        model = BDH.from_seed(BDHConfig(**shape | {"variant": variant, "sparsity": None}), of.seed)
        generator = torch.Generator().manual_seed(of.seed)
        model.calibrate(torch.randint(0, c.vocab_size, CALIBRATION, generator=generator))
        super().__init__(model, "auto")
        self.about = f"random weights, {model.config.lif.rate:.0%} of the neurons spike"


@dataclass(frozen=True)
class Maker:
    """What a contender is made from."""

    model: BDH
    most_tokens: int
    """Of one sequence, over all that will be asked."""
    seed: int


@dataclass(frozen=True)
class Contender:
    """A row of the tables."""

    note: str
    """One line for the legend."""
    cases: tuple[Case, ...]
    """In which it has a form of its own."""
    make: Callable[[Maker], Contestant]
    keeps_memory: bool = True
    """Whether the C allocator keeps freed memory (`ops.memory`); False: as the system has it."""


CONTENDERS: dict[str, Contender] = {
    "reference": Contender(
        "as released: full score matrix, and all is read again for each new token",
        ("train", "prefill", "decode", "length", "memory"),
        lambda of: Released(of.model),
        keeps_memory=False,
    ),
    "reference-kept": Contender(
        "as reference, with freed memory kept by the allocator",
        ("train", "prefill", "decode", "length", "memory", "loss"),
        lambda of: Released(of.model),
    ),
    "composed": Contender(
        "this package in PyTorch operations",
        ("train", "prefill", "decode", "length", "memory", "loss"),
        lambda of: Hatchling(of.model, "composed"),
    ),
    "native": Contender(
        "this package's C++ kernels",
        ("train", "decode", "length", "memory", "loss"),
        lambda of: Hatchling(of.model, "native"),
    ),
    "tiled": Contender(
        "this package in PyTorch operations on tiles, which keeps little",
        ("train", "length", "memory", "loss"),
        lambda of: Hatchling(of.model, "tiled"),
    ),
    "native-bfloat16": Contender(
        "as native, from weights rounded to bfloat16, the state in bfloat16",
        ("decode",),
        lambda of: Hatchling(of.model, "native", "bfloat16"),
    ),
    "native-int8": Contender(
        "as native, from weights rounded to int8, the state in bfloat16",
        ("decode",),
        lambda of: Hatchling(of.model, "native", "int8"),
    ),
    "native-lean": Contender(
        "as native, with levels computed again in the backward pass",
        ("memory",),
        lambda of: Lean(of.model),
    ),
    "recurrent": Contender(
        "the recurrence as its equation says: a dense state in PyTorch",
        ("decode",),
        lambda of: Hatchling(of.model, "reference"),
    ),
    "hatching": Contender(
        "the variant hatching: spiking neurons, STDP, Dale's law, scale-free wiring",
        ("train", "prefill", "decode"),
        lambda of: Variant(of, "hatching"),
    ),
    "advanced": Contender(
        "the variant advanced: all mechanisms",
        ("train", "prefill", "decode"),
        lambda of: Variant(of, "advanced"),
    ),
    "gpt2": Contender(
        "GPT-2 of as many parameters (transformers), with its cache",
        ("train", "prefill", "decode", "length", "memory"),
        lambda of: GPT2(of.model.config, of.most_tokens, of.seed),
    ),
}
BASELINE = "reference"
"""Ratios are to this one, where it takes part."""
