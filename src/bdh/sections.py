"""The mechanism sections of a model's config, one per file of `bdh.mechanisms`.

The first field of a section switches the mechanism: None, or "off", is the released model. The others are refused
while the mechanism is off, since they would do nothing.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from bdh.checks import Json, check_choice, check_int, check_number, fail

Reset = Literal["soft", "hard", "none"]
Surrogate = Literal["fast_sigmoid", "arctan", "triangular"]
Output = Literal["graded", "binary"]
Form = Literal["off", "kernel", "trace"]
Memory = Literal["off", "legs", "legt"]


@dataclass(frozen=True, kw_only=True)
class _Section(Json):
    NAME: ClassVar[str]
    """Of the field of `BDHConfig`."""
    USUAL: ClassVar[Any]
    """A value of the switch to start from."""

    @property
    def on(self) -> bool:
        """Whether the mechanism is part of the model."""
        return getattr(self, self._switch().name) not in (None, "off")

    @classmethod
    def _switch(cls) -> dataclasses.Field[Any]:
        return dataclasses.fields(cls)[0]

    def __post_init__(self) -> None:
        switch = self._switch().name
        if not self.on:
            for field in dataclasses.fields(self)[1:]:
                value = getattr(self, field.name)
                if value != field.default:
                    remedy = f"set {self.NAME}.{switch} ({self.USUAL} is usual), or leave it away"
                    fail(f"{self.NAME}.{field.name}", value, f"{self.NAME} to be on", remedy)
        else:
            self._check()

    def _check(self) -> None:
        raise NotImplementedError

    def _number(self, name: str, low: float, high: float = math.inf, *, open_low: bool = True) -> None:
        check_number(self, name, low, high, open_low=open_low, prefix=f"{self.NAME}.")

    def _int(self, name: str, low: int = 1) -> None:
        check_int(self, name, low, prefix=f"{self.NAME}.")

    def _choice(self, name: str, choices: tuple[str, ...]) -> None:
        check_choice(self, name, choices, prefix=f"{self.NAME}.")


@dataclass(frozen=True, kw_only=True)
class LIF(_Section):
    """Leaky integrate-and-fire neurons in place of the ReLU of x (`LeakyIntegrateFire`)."""

    NAME: ClassVar = "lif"
    USUAL: ClassVar = 10

    tau: float | None = None
    """Membrane time constant in tokens; None: plain ReLU."""
    rate: float = 0.1
    """Share of tokens at which a neuron should fire."""
    reset: Reset = "soft"
    """What a spike does to the membrane."""
    output: Output = "graded"
    """What a spike is felt as: the drive behind it, or 1."""
    refractory: int = 0
    """Silent tokens after a spike."""
    detach_reset: bool = True
    """No gradient through the reset."""
    surrogate: Surrogate = "fast_sigmoid"
    """Derivative of a spike."""
    gate: bool = False
    """Let the gate y spike too."""

    def _check(self) -> None:
        self._number("tau", 0)
        self._int("refractory", 0)
        if self.refractory > 127:
            fail("lif.refractory", self.refractory, "at most 127 tokens", "lower it")
        self._number("rate", 0, 1 / (1 + self.refractory))
        self._choice("reset", get_args(Reset))
        self._choice("output", get_args(Output))
        self._choice("surrogate", get_args(Surrogate))


@dataclass(frozen=True, kw_only=True)
class STDP(_Section):
    """Spike-timing dependent plasticity in the memory (`KernelSTDP`, `TraceSTDP`)."""

    NAME: ClassVar = "stdp"
    USUAL: ClassVar = "kernel"

    form: Form = "off"
    """kernel: the near past counts more; trace: pairs of past tokens strengthen or weaken a second memory."""
    tau: float | None = None
    """Time constant in tokens where training starts; None: one per head, from 5 to 80."""
    strength: float = 1.0
    """Weight of the added term where training starts."""

    def _check(self) -> None:
        self._choice("form", get_args(Form))
        if self.tau is not None:
            self._number("tau", 0)
        self._number("strength", -math.inf)


@dataclass(frozen=True, kw_only=True)
class Dale(_Section):
    """Dale's law: nonnegative encoders, decoder rows of one sign (`DaleLaw`)."""

    NAME: ClassVar = "dale"
    USUAL: ClassVar = 0.8

    excitatory: float | None = None
    """Share of the neurons that excite; None: signs are free."""

    def _check(self) -> None:
        self._number("excitatory", 0, 1)


@dataclass(frozen=True, kw_only=True)
class ScaleFreeWiring(_Section):
    """Few neurons with many connections, many with few (`ScaleFree`)."""

    NAME: ClassVar = "scale_free"
    USUAL: ClassVar = 2.5

    gamma: float | None = None
    """Exponent of the degrees; None: all connections exist."""
    k_min: int | None = None
    """Smallest degree; None: a quarter of the width."""

    def _check(self) -> None:
        self._number("gamma", 1)
        if self.k_min is not None:
            self._int("k_min")

    def smallest(self, width: int) -> int:
        """Smallest degree in a model of this width."""
        return max(1, width // 4) if self.k_min is None else self.k_min


@dataclass(frozen=True, kw_only=True)
class HiPPOMemory(_Section):
    """The past of the residual stream as Legendre coefficients (`HiPPO`)."""

    NAME: ClassVar = "hippo"
    USUAL: ClassVar = "legs"

    measure: Memory = "off"
    """legs: all of the past; legt: a window."""
    order: int = 16
    """Coefficients per channel."""
    channels: int = 16
    """Channels that are remembered."""
    theta: float = 256.0
    """Window of legt in tokens."""

    def _check(self) -> None:
        self._choice("measure", get_args(Memory))
        self._int("order")
        self._int("channels")
        self._number("theta", 0)


@dataclass(frozen=True, kw_only=True)
class BCM(_Section):
    """A sliding threshold per neuron (`BCMHomeostasis`)."""

    NAME: ClassVar = "bcm"
    USUAL: ClassVar = 1.0

    kappa: float | None = None
    """Feedback of the deviation from the mean of the head; None: no threshold."""
    tau: float = 100.0
    """Time constant of the threshold in optimiser steps."""

    def _check(self) -> None:
        self._number("kappa", 0)
        self._number("tau", 1, open_low=False)


@dataclass(frozen=True, kw_only=True)
class Criticality(_Section):
    """A gain on the drive of the gate that holds a branching ratio (`CriticalityRegulator`)."""

    NAME: ClassVar = "criticality"
    USUAL: ClassVar = 0.98

    target: float | None = None
    """Branching ratio to hold; None: no gain."""
    threshold: float = 0.1
    """What the gained drive must exceed."""
    eta: float = 0.05
    """Step of the regulator."""
    steps: int = 30
    """Largest distance in tokens of the regression; training windows must be longer."""

    def _check(self) -> None:
        self._number("target", 0, 1)
        self._number("threshold", 0)
        self._number("eta", 0)
        self._int("steps", 2)


@dataclass(frozen=True, kw_only=True)
class Branches(_Section):
    """Branches of the neurons' input with a quadratic term (`Dendrites`)."""

    NAME: ClassVar = "dendrites"
    USUAL: ClassVar = 4

    branches: int | None = None
    """Per neuron; None: the drive is linear."""

    def _check(self) -> None:
        self._int("branches")


@dataclass(frozen=True, kw_only=True)
class Modulation(_Section):
    """A slow summary of what was read sets how easily each head's gate opens (`Neuromodulation`)."""

    NAME: ClassVar = "neuromodulation"
    USUAL: ClassVar = 50

    tau: float | None = None
    """Time constant in tokens; None: no modulation."""
    threshold: float = 0.1
    """What the modulated drive must exceed."""

    def _check(self) -> None:
        self._number("tau", 0)
        self._number("threshold", 0)


SECTIONS: dict[str, type[_Section]] = {
    section.NAME: section
    for section in (LIF, STDP, Dale, ScaleFreeWiring, HiPPOMemory, BCM, Criticality, Branches, Modulation)
}
"""By their field of `BDHConfig`."""

_HATCHING: dict[str, _Section] = {
    # the shortest memory of the membrane that is still one: longer ones cost loss (docs/LOG.md)
    "lif": LIF(tau=2.0),
    "stdp": STDP(form="kernel"),
    "dale": Dale(excitatory=0.8),
    "scale_free": ScaleFreeWiring(gamma=2.5),
}
_ADVANCED: dict[str, _Section] = {
    **_HATCHING,
    "hippo": HiPPOMemory(measure="legs"),
    "bcm": BCM(kappa=1.0),
    "criticality": Criticality(target=0.98),
    "dendrites": Branches(branches=4),
    "neuromodulation": Modulation(tau=50.0),
}
VARIANTS: dict[str, dict[str, _Section]] = {"bdh": {}, "hatching": _HATCHING, "advanced": _ADVANCED}
"""What each member of the model family switches on."""
