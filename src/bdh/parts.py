"""The optional mechanisms as the one layer skeleton of the model takes them: encode, fire, attend, gate, recall.

Each method has a plain form, which is the released model, and a form per mechanism. What learns is shared by all
levels, like the maps; what adapts to the activity of a level (thresholds, gains) belongs to that level.

Shapes: B batch, H heads, T tokens, K neurons per head, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bdh import ops
from bdh.config import BDHConfig
from bdh.mechanisms import (
    BCMHomeostasis,
    CriticalityRegulator,
    DaleLaw,
    Dendrites,
    HiPPO,
    HiPPOState,
    Homeostatic,
    KernelState,
    KernelSTDP,
    LeakyIntegrateFire,
    LIFState,
    Neuromodulation,
    ScaleFree,
    ThresholdController,
    TraceState,
    TraceSTDP,
    k_winners,
)

_TRACED = ("membrane", "refractory", "trace")
_SECOND_MEMORY = {"off": (), "kernel": ("fading", "fading_at"), "trace": ("paired", "key_trace", "value_trace")}


@dataclass
class Carried:
    """What a level finds from the tokens before, and leaves for those after; lives as long as one pass.

    A state has, by name, B rows each: `rho` (H, K, D), the plain memory; of the neurons `membrane`, `refractory` and
    `trace` (H, K), and the same of the gate with `gate_` before the name; of STDP `fading` (H, K, D), whose rows stand
    as they were after `fading_at` (H, K) tokens, or `paired` (H, K, D), `key_trace` (H, K) and `value_trace` (H, D); of
    HiPPO `coefficients` (C, N); of the neuromodulation
    `mean` (D).
    """

    before: Mapping[str, Tensor] = field(default_factory=dict)
    """Empty at the start of a text."""
    position: int = 0
    """Tokens read before."""
    wanted: bool = False
    """Whether `after` will be asked for."""
    owned: bool = False
    """Whether the memory of `before` may be written to."""
    fresh: Tensor | None = None
    """(B, T) tokens with which a text begins, see `Parts.forgets`."""
    after: dict[str, Tensor] = field(default_factory=dict)


class Parts(nn.Module):
    """The mechanisms that a config switches on.

    Args:
        config: of the model.
        drive_std: standard deviation of a neuron's drive at random initialisation.
    """

    def __init__(self, config: BDHConfig, drive_std: float) -> None:
        super().__init__()
        self.config = c = config
        self.plain = c.released
        H, K, D = c.n_head, c.neurons_per_head, c.n_embd
        self.lif = _per_level(c, c.lif.on, lambda: _neurons(c, drive_std))
        self.lif_gate = _per_level(c, c.lif.on and c.lif.gate, lambda: _neurons(c, drive_std))
        self.stdp = _stdp(c)
        self.dale = DaleLaw(H, K, c.dale.excitatory) if c.dale.excitatory else None
        k_min = c.scale_free.smallest(D)
        self.scale_free = ScaleFree(H, K, D, c.scale_free.gamma, k_min) if c.scale_free.gamma else None
        h = c.hippo
        self.hippo = (
            None
            if h.measure == "off"
            else HiPPO(D, measure=h.measure, order=h.order, channels=h.channels, theta=h.theta)
        )
        self.bcm = _per_level(
            c, c.bcm.on, lambda: BCMHomeostasis(H, K, target=None, kappa=c.bcm.kappa or 0.0, tau=c.bcm.tau)
        )
        self.criticality = _per_level(c, c.criticality.on, lambda: _regulator(c))
        self.dendrites = Dendrites(H, c.dendrites.branches) if c.dendrites.branches else None
        m = c.neuromodulation
        self.neuromodulation = Neuromodulation(D, H, tau=m.tau, threshold=m.threshold) if m.tau else None

    @property
    def forgets(self) -> bool:
        """Whether a text may begin inside a pass: nothing but the plain memory goes from token to token."""
        return self.state_shapes(1).keys() == {"rho"}

    # --- the steps of a level, in their order -------------------------------------------------------------------

    def drive(self, v: Tensor, encoder: Tensor) -> Tensor:
        """Drive of the neurons (B, H, T, K) from v (B, T, D)."""
        if self.dendrites is None:
            return v[:, None] @ encoder
        branched: Tensor = self.dendrites(v[:, None], encoder)
        return branched

    def fire(self, level: int, drive: Tensor, carried: Carried) -> tuple[Tensor, Tensor | None]:
        """Activity of the neurons (B, H, T, K), and their spikes where they spike."""
        if self.bcm is not None:
            drive = self.bcm[level](drive)
        spikes = None
        if self.lif is not None:
            x, spikes = _spike(self.lif[level], drive, carried, "")
        elif (k := self.config.winners_per_head) is not None:
            x = k_winners(drive, k)
        else:
            x = F.relu(drive)
        if self.bcm is not None:
            _homeostatic(self.bcm[level]).observe(x)
        return x, spikes

    def attend(self, q: Tensor, v: Tensor, carried: Carried) -> Tensor:
        """Read of the memory (B, H, T, D) by rotated activities q, then what v (B, T, D) writes to it."""
        if not carried.wanted:
            return ops.attention_read(q, v) if self.stdp is None else self.stdp.read(q, v)
        if self.stdp is None:
            rho = carried.before.get("rho")
            a: Tensor
            a, carried.after["rho"] = ops.linear_attention(q, v, rho, owns_rho=carried.owned, fresh=carried.fresh)
            return a
        if isinstance(self.stdp, TraceSTDP):
            names = "rho", *_SECOND_MEMORY["trace"]
            pairs = TraceState(*(carried.before[name] for name in names)) if carried.before else None
            a, pairs = self.stdp(q, v, pairs, owns_state=carried.owned)
            carried.after.update(zip(names, pairs, strict=True))
            return a
        state = None
        if carried.before:
            late = carried.position - carried.before["fading_at"]
            state = KernelState(carried.before["rho"], self.stdp.faded(carried.before["fading"], late))
        a, after = self.stdp(q, v, state, owns_state=carried.owned)
        now = carried.position + q.shape[2]
        at = torch.full(q.shape[:2] + q.shape[3:], now, dtype=torch.int32, device=q.device)
        carried.after |= {"rho": after.S, "fading": after.E, "fading_at": at}
        return a

    def gate(self, level: int, v: Tensor, drive: Tensor, carried: Carried) -> Tensor:
        """Activity of the gates (B, H, T, K) from their drive; v (B, T, D) is what entered the level."""
        if self.neuromodulation is not None:
            gain, carried.after["mean"] = self.neuromodulation(v, carried.before.get("mean"))
            # the regulator brings a threshold of its own
            drive = gain * drive if self.criticality is not None else self.neuromodulation.gate(drive, gain)
        if self.criticality is not None:
            drive = self.criticality[level](drive)
        y = F.relu(drive) if self.lif_gate is None else _spike(self.lif_gate[level], drive, carried, "gate_")[0]
        # a few tokens tell nothing of how firing spreads; training windows that are too short are refused
        if self.criticality is not None and y.shape[2] > self.config.criticality.steps:
            _homeostatic(self.criticality[level]).observe(y)
        return y

    def recall(self, v: Tensor, carried: Carried) -> Tensor | float:
        """What is remembered of the residual stream (B, T, D), to be added to it; 0 without a memory."""
        if self.hippo is None:
            return 0.0
        before = carried.before.get("coefficients")
        state = None if before is None else HiPPOState(before, carried.position)
        remembered: Tensor
        remembered, after = self.hippo(v, state)
        carried.after["coefficients"] = after.coefficients
        return remembered

    # --- around the steps -----------------------------------------------------------------------------------------

    def state_shapes(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        """Return name and shape of all that a level carries."""
        c = self.config
        B, H, K, D = batch_size, c.n_head, c.neurons_per_head, c.n_embd
        shapes: dict[str, tuple[int, ...]] = {"rho": (B, H, K, D)}
        for part, prefix in ((self.lif, ""), (self.lif_gate, "gate_")):
            if part is not None:
                shapes |= {prefix + name: (B, H, K) for name in _TRACED}
        of_stdp = {
            "fading": (B, H, K, D),
            "fading_at": (B, H, K),
            "paired": (B, H, K, D),
            "key_trace": (B, H, K),
            "value_trace": (B, H, D),
        }
        shapes |= {name: of_stdp[name] for name in _SECOND_MEMORY[c.stdp.form]}
        if self.hippo is not None:
            shapes["coefficients"] = (B, c.hippo.channels, c.hippo.order)
        if self.neuromodulation is not None:
            shapes["mean"] = (B, D)
        return shapes

    def silence(self, batch_size: int, position: int) -> dict[str, Tensor]:
        """Return what a level carries `position` tokens after the beginning if nothing was written meanwhile."""
        whole = {"refractory": torch.int8, "gate_refractory": torch.int8, "fading_at": torch.int32}
        shapes = self.state_shapes(batch_size)
        level = {name: torch.zeros(shape, dtype=whole.get(name, torch.float32)) for name, shape in shapes.items()}
        if "fading_at" in level:
            level["fading_at"] += position
        return level

    def why_no_native_step(self) -> str | None:
        """Why the kernels have no step of one token for these mechanisms, if they have none."""
        c = self.config
        wanted = [
            name for name in ("hippo", "bcm", "criticality", "dendrites", "neuromodulation") if getattr(c, name).on
        ]
        wanted += ["lif.gate"] * c.lif.gate + ["stdp.form trace"] * (c.stdp.form == "trace")
        wanted += ["norm rms"] * (c.norm == "rms") + ["sparsity"] * (c.sparsity is not None)
        return f"in decoding the kernels know no {' and no '.join(wanted)}" if wanted else None

    def step_constants(self) -> tuple[ops.SpikingStep | None, ops.FadingStep | None]:
        """Return the mechanisms as the kernels' step of one token takes them, as they are now."""
        spiking = fading = None
        if self.lif is not None:
            parts = [part for part in self.lif if isinstance(part, LeakyIntegrateFire)]
            spiking = ops.spiking_step([part.constants() for part in parts], parts[0].tau_trace, parts[0].output)
        if isinstance(self.stdp, KernelSTDP):
            fading = ops.FadingStep(self.stdp.strength.detach().clone(), self.stdp.rate().detach().clone())
        return spiking, fading

    def constrain(self, encoders: list[nn.Parameter], decoder: nn.Parameter) -> None:
        """Bring random weights under the masks and the law."""
        if self.scale_free is not None:
            for encoder in encoders:
                self.scale_free.equalize(encoder.data)
            self.mask([*encoders, decoder])
        if self.dale is not None:
            self.dale.fold([e.data for e in encoders], decoder.data)

    def mask(self, weights: list[nn.Parameter]) -> None:
        """Hold the synapses that do not exist at zero, and their gradients too."""
        if self.scale_free is not None:
            for weight in weights:
                self.scale_free.attach(weight)

    def observed(self) -> list[Tensor]:
        """Return the sums of what was observed since the last step; those of two batches, added, are those of both."""
        adapting = [part for part in self.modules() if isinstance(part, (Homeostatic, ThresholdController))]
        return [getattr(part, name) for part in adapting for name in part.SUMS]

    @torch.no_grad()
    def after_step(self, encoders: list[nn.Parameter], decoder: nn.Parameter) -> None:
        """Put the weights back under masks and law after an optimiser step, and let what adapts slowly adapt."""
        if self.scale_free is not None:
            self.scale_free.apply_to([*encoders, decoder])
        if self.dale is not None:
            self.dale.project([e.data for e in encoders], decoder.data)
        for part in self.modules():
            if isinstance(part, (Homeostatic, ThresholdController)):
                part.homeostasis_step()


def _homeostatic(part: nn.Module) -> Homeostatic:
    assert isinstance(part, Homeostatic)
    return part


def _per_level(config: BDHConfig, on: bool, make: Callable[[], nn.Module]) -> nn.ModuleList | None:
    return nn.ModuleList(make() for _ in range(config.n_layer)) if on else None


def _neurons(c: BDHConfig, drive_std: float) -> LeakyIntegrateFire:
    s = c.lif
    assert s.tau is not None
    return LeakyIntegrateFire(
        (c.n_head, 1), tau=s.tau, rate=s.rate, drive_std=drive_std, output=s.output, reset=s.reset,
        refractory=s.refractory, detach_reset=s.detach_reset, surrogate=s.surrogate,
    )  # fmt: skip


def _stdp(c: BDHConfig) -> KernelSTDP | TraceSTDP | None:
    s = c.stdp
    if s.form == "kernel":
        return KernelSTDP(c.n_head, tau=s.tau, strength=s.strength)
    if s.form == "trace":
        return TraceSTDP(c.n_head, tau_plus=s.tau, tau_minus=s.tau, strength=s.strength)
    return None


def _regulator(c: BDHConfig) -> CriticalityRegulator:
    s = c.criticality
    assert s.target is not None
    return CriticalityRegulator(threshold=s.threshold, target=s.target, eta=s.eta, steps=s.steps)


def _spike(part: nn.Module, drive: Tensor, carried: Carried, prefix: str) -> tuple[Tensor, Tensor]:
    assert isinstance(part, LeakyIntegrateFire)
    if not carried.wanted:
        fired = part.read(drive)
        return fired.activity, fired.spikes
    names = [prefix + name for name in _TRACED]
    before = LIFState(*(carried.before[name] for name in names)) if carried.before else None
    fired, after = part.sequence(drive, before)
    carried.after.update(zip(names, after, strict=True))
    return fired.activity, fired.spikes
