"""Leaky integrate-and-fire neurons along the tokens of a text.

Shapes: B batch, H heads, T tokens, K neurons per head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import NormalDist
from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn

from bdh import ops
from bdh.mechanisms.rates import ThresholdController, firing_rates
from bdh.ops.lif import Neurons, Scan
from bdh.sections import Output, Reset, Surrogate

BISECTIONS = 20


class Fired(NamedTuple):
    """What leaves the neurons, (B, H, T, K) in the dtype of the current."""

    activity: Tensor
    """How strongly a neuron is felt: s relu(I), or s if the output is binary."""
    spikes: Tensor
    """s, 0 or 1, differentiable through the surrogate. A spike while I <= 0 has no graded activity: of independent
    normal currents that is one in 50 under the soft reset, none under the hard one, one in five without a reset."""


class LIFState(NamedTuple):
    """What the neurons carry from token to token: a value, never changed in place; 9 bytes per neuron in float32."""

    membrane: Tensor
    """(B, H, K), float32 at least."""
    refractory: Tensor
    """(B, H, K) int8, silent tokens that are left."""
    trace: Tensor
    """(B, H, K) decaying count of the spikes."""

    def detach(self) -> LIFState:
        """Return the same values without the graph behind them, to cut backpropagation between two texts' parts."""
        return LIFState(*(tensor.detach() for tensor in self))


class LeakyIntegrateFire(nn.Module):
    """Leaky integrate-and-fire neurons with a trace of their spikes.

        h_t = alpha v_{t-1} + (1 - alpha) (v_rest + I_t)         alpha = exp(-1/tau)
        s_t = 1 if h_t >= theta else 0
        v_t = h_t - s_t (theta - v_reset)                        soft reset; hard: v_reset after a spike; none: h_t
        p_t = exp(-1/tau_trace) p_{t-1} + s_t                    trace

    `sequence` reads any number of tokens, calling the module reads one.

    The graded output is s_t relu(I_t): the membrane decides who speaks, the drive how loud. So activities have the
    size that they have in a network of ReLUs, products of two of them too, while h - theta would be about seven
    times smaller; silent neurons whose drive is positive still get a gradient through the surrogate; and with
    alpha -> 0 and theta = 0 the neuron is a ReLU.

    A threshold means nothing without the spread of the membrane. It starts near where independent normal currents of
    standard deviation `drive_std` make `rate` of the neurons fire (`_expected_threshold`); `calibrate` sets it from
    currents as they are; a `ThresholdController` (`control`) then holds the rate in training, one step per
    `homeostasis_step`. The surrogate derivative is as wide as the spread.

    Args:
        shape: of the thresholds: (H, 1) one per head, (H, K) one per neuron, (1, 1) one for all.
        tau: membrane time constant in tokens, one for all or one per head.
        rate: share of tokens at which a neuron should fire.
        drive_std: standard deviation of the current; at random initialisation 0.02 sqrt(D), 0.32 for D = 256.
        output: what `activity` is.
        reset: what a spike does to the membrane.
        refractory: silent tokens after a spike, during which the membrane stays at v_reset; 0 to 127.
        detach_reset: no gradient through the reset. The way back is then a filter, and spikes do not fight over it.
        surrogate: see `bdh.ops.spike_function`.
        beta: sharpness of the surrogate, in units of the spread.
        v_rest: where the membrane goes without current.
        v_reset: where a spike puts it.
        tau_trace: time constant of the trace in tokens.
        eta: step of the controller.

    Raises:
        ValueError: a time constant that is not positive, a rate that cannot be reached, an unknown name.

    Examples:
        >>> neurons = LeakyIntegrateFire(drive_std=1.0)
        >>> current = torch.randn(1, 4, 16, 8, generator=torch.Generator().manual_seed(0))
        >>> fired, state = neurons.sequence(current)
        >>> fired.activity.shape, state.membrane.shape
        (torch.Size([1, 4, 16, 8]), torch.Size([1, 4, 8]))
        >>> spikes, membrane, trace = neurons(current[:, :, 0], None, None)      # one token, one step
        >>> spikes, membrane, trace = neurons(current[:, :, 1], membrane, trace)
    """

    def __init__(
        self,
        shape: tuple[int, int] = (1, 1),
        *,
        tau: float | Sequence[float] = 10.0,
        rate: float = 0.1,
        drive_std: float = 0.32,
        output: Output = "graded",
        reset: Reset = "soft",
        refractory: int = 0,
        detach_reset: bool = True,
        surrogate: Surrogate = "fast_sigmoid",
        beta: float = 2.0,
        v_rest: float = 0.0,
        v_reset: float = 0.0,
        tau_trace: float = 20.0,
        eta: float = 0.3,
    ) -> None:
        super().__init__()
        self.tau = (float(tau),) if isinstance(tau, (int, float)) else tuple(float(t) for t in tau)
        for name, value, known in (
            ("output", output, Output),
            ("reset", reset, Reset),
            ("surrogate", surrogate, Surrogate),
        ):
            if value not in get_args(known):
                raise ValueError(f"{name}={value!r}: expected one of {', '.join(get_args(known))}")
        if not self.tau or min(*self.tau, tau_trace, beta, drive_std) <= 0:
            raise ValueError(
                f"tau={tau}, tau_trace={tau_trace}, beta={beta}, drive_std={drive_std}: expected all positive"
            )
        if not (isinstance(refractory, int) and 0 <= refractory < 128):
            raise ValueError(f"refractory={refractory}: expected whole tokens, 0 to 127")
        if not 0 < rate < 1 / (1 + refractory):
            raise ValueError(
                f"rate={rate}: with {refractory} refractory tokens expected 0 < rate < {1 / (1 + refractory):.3g}"
            )
        self.output, self.reset, self.refractory, self.detach_reset = output, reset, refractory, detach_reset
        self.surrogate, self.beta, self.v_rest, self.v_reset = surrogate, beta, v_rest, v_reset
        self.tau_trace = float(tau_trace)
        spread, threshold = self._expected_threshold(drive_std, rate)
        self.control = ThresholdController(
            shape,
            rate=rate,
            eta=eta,
            threshold=max(threshold, v_reset),
            spread=spread,
            floor=v_reset,  # below it a soft reset would push the membrane up
        )
        self._calibrating = False

    @property
    def threshold(self) -> Tensor:
        """Where the neurons fire, in the shape given; a buffer of `control`."""
        return self.control.threshold

    def forward(
        self, current: Tensor, membrane: Tensor | None = None, trace: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Take one step.

        Args:
            current: (..., H, K), or any shape with one threshold for all.
            membrane: v of the same shape; None is v_rest.
            trace: of the same shape; None is zero.

        Returns:
            activity, and membrane and trace after it.

        Raises:
            ValueError: a refractory period, which has a state of its own: use `sequence`.
        """
        if self.refractory:
            raise ValueError("one step at a time: expected refractory=0; with a refractory period use sequence()")
        heads = self._heads
        rows = (-1, 1, current.shape[-1]) if heads == 1 else (-1, *current.shape[-2:])
        state = self.initial_state(current.reshape(rows)[:, :, None])
        if membrane is not None:
            state = state._replace(membrane=membrane.reshape(rows))
        if trace is not None:
            state = state._replace(trace=trace.reshape(rows))
        fired, state = self.sequence(current.reshape(rows)[:, :, None], state)
        back = current.shape
        return fired.activity.view(back), state.membrane.view(back), state.trace.view(back)

    def sequence(self, current: Tensor, state: LIFState | None = None) -> tuple[Fired, LIFState]:
        """Read any number of tokens; splitting them into calls in any way gives the same.

        Args:
            current: (B, H, T, K).
            state: after the tokens before; None starts at rest.

        Returns:
            activity and spikes (B, H, T, K), and the state after the last token.
        """
        state = self.initial_state(current) if state is None else state
        scan = self._scan(current, state)
        after = LIFState(scan.membrane, scan.refractory, self._traced(state.trace, scan.spikes))
        return Fired(scan.activity, scan.spikes), after

    def read(self, current: Tensor) -> Fired:
        """Read whole texts from rest when no state is wanted afterwards (training).

        Args:
            current: (B, H, T, K).

        Returns:
            activity and spikes (B, H, T, K).
        """
        scan = self._scan(current, self.initial_state(current))
        return Fired(scan.activity, scan.spikes)

    def _scan(self, current: Tensor, state: LIFState) -> Scan:
        self._check(current)
        if self._calibrating:
            self.calibrate(current, state)
        scan = ops.lif_scan(current, state.membrane, state.refractory, self.constants(), graded=self.output == "graded")
        self.control.observe(scan.spikes)
        return scan

    def initial_state(self, current: Tensor) -> LIFState:
        """Return the state of neurons at rest, for currents like these (B, H, T, K)."""
        shape = *current.shape[:2], current.shape[3]
        wide = torch.promote_types(current.dtype, torch.float32)
        return LIFState(
            current.new_full(shape, self.v_rest, dtype=wide),
            current.new_zeros(shape, dtype=torch.int8),
            current.new_zeros(shape, dtype=wide),
        )

    @torch.no_grad()
    def calibrate(self, current: Tensor, state: LIFState | None = None) -> Tensor:
        """Set spread and thresholds from currents as they are, such that the target share fires.

        The spread is the standard deviation of the membrane when it is never reset. The threshold is the
        (1 - rate) quantile of h. Since h depends on the threshold by way of the reset, it is found by bisection; the
        quantile of a membrane that is never reset would let a fifth of the share fire (tau = 10, rate = 10 %).

        Args:
            current: (B, H, T, K), a whole batch. The result depends on all of its tokens: call it before training.
            state: before the first token.

        Returns:
            The rate reached on this batch, in the shape of the thresholds: lower than asked for where even v_reset
            is a threshold too high.

        Examples:
            >>> neurons = LeakyIntegrateFire(rate=0.1)
            >>> current = torch.randn(8, 1, 64, 32, generator=torch.Generator().manual_seed(0))
            >>> round(neurons.calibrate(current).item(), 3)
            0.1
        """
        self._check(current)
        state = self.initial_state(current) if state is None else state
        free, _ = ops.leaky_integrate(current + self.v_rest, self.tau, state.membrane)
        pool, kind = self.control.pool, self.control.threshold
        mean = pool(free.mean(dim=(0, 2)))
        spread = pool((free - mean[:, None]).square().mean(dim=(0, 2))).sqrt()
        # a constant current has no spread; any width serves it
        self.control.spread = spread.clamp_min(torch.finfo(torch.float32).tiny ** 0.5).to(kind)

        def rates() -> Tensor:
            scan = ops.lif_scan(current, state.membrane, state.refractory, self.constants(), graded=False)
            return pool(firing_rates(scan.spikes))

        low = torch.full_like(kind, self.v_reset)
        high = torch.full_like(kind, free.max().clamp_min(self.v_reset).item())
        for _ in range(BISECTIONS):
            self.control.threshold = (low + high) / 2
            too_many = rates() > self.control.rate
            low = torch.where(too_many, self.threshold, low)
            high = torch.where(too_many, high, self.threshold)
        self.control.threshold = high
        return rates()

    def homeostasis_step(self) -> None:
        """Let the thresholds follow the rates observed in training; call it once per optimiser step."""
        self.control.homeostasis_step()

    def _expected_threshold(self, drive_std: float, rate: float) -> tuple[float, float]:
        """Spread of a membrane that is never reset, and the quantile of one that is, for independent normal currents.

        sigma = drive_std sqrt((1 - alpha)/(1 + alpha)). Every spike takes theta - v_reset away, which lowers the mean
        of h by c (theta - v_reset), c = rate alpha/(1 - alpha); hence theta = mean + sigma Phi^-1(1 - rate) is
        theta = (v_rest + c v_reset + sigma Phi^-1(1 - rate)) / (1 + c), about half as high as without a reset.
        """
        tau = sum(self.tau) / len(self.tau)
        sigma = drive_std * math.sqrt(math.tanh(0.5 / tau))
        c = 0.0 if self.reset == "none" else -rate * math.exp(-1 / tau) / math.expm1(-1 / tau)
        above = sigma * NormalDist().inv_cdf(1 - rate)
        return sigma, (self.v_rest + c * self.v_reset + above) / (1 + c)

    @property
    def _heads(self) -> int:
        return max(self.threshold.shape[0], len(self.tau))

    def constants(self) -> Neurons:
        """Return the constants of the neurons as they are now, for `bdh.ops.lif_scan`."""
        return Neurons(
            self.tau,
            self.control.threshold,
            self.control.spread,
            v_rest=self.v_rest,
            v_reset=self.v_reset,
            reset=self.reset,
            refractory=self.refractory,
            detach_reset=self.detach_reset,
            surrogate=self.surrogate,
            beta=self.beta,
        )

    def _traced(self, trace: Tensor, spikes: Tensor) -> Tensor:
        """p_T = lam^T p_0 + sum_t lam^(T-1-t) s_t, as one product."""
        T = spikes.shape[2]
        lag = torch.arange(T - 1, -1, -1, dtype=torch.float64)
        weight = (-lag / self.tau_trace).exp().to(trace)
        with torch.autocast(spikes.device.type, enabled=False):
            new = weight @ spikes.to(trace.dtype)
        return trace * math.exp(-T / self.tau_trace) + new

    def _check(self, current: Tensor) -> None:
        heads, (rows, neurons) = self._heads, self.threshold.shape
        if current.ndim != 4 or heads not in (1, current.shape[1]) or neurons not in (1, current.shape[3]):
            raise ValueError(
                f"current: expected (B, {'H' if heads == 1 else heads}, T, {'K' if neurons == 1 else neurons}), got "
                f"{tuple(current.shape)}; thresholds are {rows, neurons}, time constants {len(self.tau)}"
            )


@contextmanager
def calibrating(model: nn.Module) -> Iterator[None]:
    """Inside the `with`, every `LeakyIntegrateFire` of a model calibrates itself on what it is given, then reads it.

    So one pass over a first batch calibrates level after level, each on the output of calibrated ones.

    Examples:
        >>> neurons = LeakyIntegrateFire(rate=0.2)
        >>> current = torch.randn(4, 1, 64, 32, generator=torch.Generator().manual_seed(0))
        >>> with calibrating(neurons):
        ...     fired, state = neurons.sequence(current)
        >>> round(fired.spikes.mean().item(), 2)
        0.2
    """
    parts = [part for part in model.modules() if isinstance(part, LeakyIntegrateFire)]
    for part in parts:
        part._calibrating = True
    try:
        yield
    finally:
        for part in parts:
            part._calibrating = False
