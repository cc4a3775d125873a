"""Spike-timing dependent plasticity (STDP) as causal attention, with a state of constant size.

Two parts take the place of `ops.attention_read` and `ops.linear_attention`. Both add a term that depends on timing to
the plain memory S of linear attention, and both give plain attention bit for bit where their strength is 0:

    KernelSTDP   what was read d tokens ago counts 1 + c exp(-d / tau)
    TraceSTDP    pairs of a key and a value, both read before, strengthen (key first) or weaken (value first) a second
                 memory W: the pair-based rule with traces (stdp_trace.py)

Shapes: B batch, H heads, T tokens, K neurons per head, D embedding. Tokens t, s and times are in tokens. `q` is queries
and keys in one, already rotated; `v` are the values, shared by the heads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bdh.mechanisms.decay import Taus, distances, powers, raw_rates
from bdh.ops import parallel

CROSSOVER = 5
"""The quadratic form is the faster one up to T = CROSSOVER * D (docs/LOG.md): two states cost twice as much as one."""


class KernelState(NamedTuple):
    """What `KernelSTDP` carries from token to token: 2 H K D numbers per sequence."""

    S: Tensor
    """(B, H, K, D) plain memory."""
    E: Tensor
    """(B, H, K, D) fading memory."""


class TraceState(NamedTuple):
    """What `TraceSTDP` carries from token to token: 2 H K D + H (K + D) numbers per sequence."""

    S: Tensor
    """(B, H, K, D) plain memory."""
    W: Tensor
    """(B, H, K, D) weights written by the pair rule, without the strength c."""
    p: Tensor
    """(B, H, K) trace of the keys (pre)."""
    r: Tensor
    """(B, H, D) trace of the values (post)."""


StateT = TypeVar("StateT", KernelState, TraceState)


def stdp_kernel(
    dt: Tensor,
    tau_plus: float | Tensor = 20.0,
    tau_minus: float | Tensor = 20.0,
    a_plus: float | Tensor = 0.01,
    a_minus: float | Tensor = 0.0105,
) -> Tensor:
    """Weight change that one pair of spikes makes (Bi & Poo 1998; Song, Miller & Abbott 2000).

        dw = A+ exp(-dt / tau+)  if dt > 0,   -A- exp(dt / tau-)  if dt < 0,   0  if dt = 0

    Args:
        dt: time of the post spike minus time of the pre spike, any shape.
        tau_plus: time constant of potentiation, in the unit of `dt`.
        tau_minus: time constant of depression.
        a_plus: largest potentiation.
        a_minus: largest depression.

    Returns:
        The shape of `dt`, broadcast against the other arguments.

    Examples:
        >>> stdp_kernel(torch.tensor([-20.0, 0.0, 20.0])).mul(1e5).round().tolist()
        [-386.0, 0.0, 368.0]
    """
    size = dt.abs()  # no exponential of a positive number, not even on the side that is not taken
    up, down = torch.exp(-size / tau_plus), torch.exp(-size / tau_minus)
    return (dt > 0) * a_plus * up - (dt < 0) * a_minus * down


class HasWindow(Protocol):
    """An attention part whose pairs of tokens count by their distance."""

    def window(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return tau+, tau-, A+, A- of `stdp_kernel`, (H,) each."""


def stdp_window(part: HasWindow, reach: int = 60) -> tuple[Tensor, Tensor]:
    """Return the window that a part has learned, for a plot beside `stdp_kernel`.

    Args:
        part: `KernelSTDP`, which has no depressing side (0 there), or `TraceSTDP`.
        reach: how far to look to both sides, in tokens.

    Returns:
        dt (2 reach + 1,) in tokens, and the weight of a pair at that distance (H, 2 reach + 1), strength included.

    Examples:
        >>> from bdh.mechanisms import TraceSTDP
        >>> dt, weight = stdp_window(TraceSTDP(2), reach=1)
        >>> dt.tolist(), weight.sign().tolist()
        ([-1.0, 0.0, 1.0], [[-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]])
    """
    with torch.no_grad():
        shape = part.window()
        dt = torch.arange(-reach, reach + 1, dtype=shape[0].dtype, device=shape[0].device)
        return dt, stdp_kernel(dt, *(value[:, None] for value in shape))


class STDPAttention(nn.Module, ABC, Generic[StateT]):
    """What both forms share: when which way of computing is taken, and in which precision."""

    def read(self, q: Tensor, v: Tensor) -> Tensor:
        """Read from an empty state when no state is wanted afterwards (training); cf. `ops.attention_read`.

        Args:
            q: (B, H, T, K) rotated activations.
            v: (B, T, D) values.

        Returns:
            a (B, H, T, D).
        """
        if q.shape[2] <= CROSSOVER * v.shape[-1]:
            return self._dense(q, v)
        a: Tensor = self(q, v)[0]
        return a

    def forward(
        self, q: Tensor, v: Tensor, state: StateT | None = None, *, owns_state: bool = False
    ) -> tuple[Tensor, StateT]:
        """Read any number of tokens after those that `state` has read; cf. `ops.linear_attention`.

        Args:
            q: (B, H, T, K) rotated activations.
            v: (B, T, D) values.
            state: what an earlier call returned; None starts from nothing.
            owns_state: the caller gives its state away, so its memory may be written to. Otherwise it is not touched.

        Returns:
            a (B, H, T, D) in the dtype of `q`, and the state after the last token. All is computed in float32 at least,
            under autocast too. A new state has that dtype; a given one keeps its own.
        """
        stored = at_least_float32(q.dtype) if state is None else state[0].dtype
        wide = at_least_float32(stored)
        with torch.autocast(q.device.type, enabled=False):
            args = q.to(wide), v.to(wide)
            before = None if state is None else _to(state, wide)
            if q.shape[2] == 1 and before is not None:
                # in place only where no gradient could ask for what stood there
                a, after = self._step(*args, before, owns_state and not torch.is_grad_enabled())
            else:
                a, after = self._chunked(*args, before)
        return a.to(q.dtype), _to(after, stored)

    @abstractmethod
    def _dense(self, q: Tensor, v: Tensor) -> Tensor:
        """Quadratic form from an empty state."""

    @abstractmethod
    def _chunked(self, q: Tensor, v: Tensor, state: StateT | None) -> tuple[Tensor, StateT]:
        """Linear form: quadratic inside a block, the state between blocks."""

    @abstractmethod
    def _step(self, q: Tensor, v: Tensor, state: StateT, owns_state: bool) -> tuple[Tensor, StateT]:
        """One token."""


class KernelSTDP(STDPAttention[KernelState]):
    """Linear attention whose near past counts more: plain plus exponentially fading memory.

        a_t = sum_{s<t} (1 + c lam^(t-s)) <q_t, q_s> v_s = q_t (S_t + c lam E_t),       lam = exp(-1 / tau)
        S_{t+1} = S_t + q_t^T v_t,    E_{t+1} = lam E_t + q_t^T v_t                      (c, lam per head)

    The fading memory is the retention of Sun et al. (arXiv 2307.08621). Learned, per head, are c [`strength`] and the
    rate 1 / tau = softplus(`raw_rate`).

    Args:
        n_head: H.
        tau: time constant in tokens: one number, one per head, or None for a bank from 5 to 80.
        strength: c at the start.

    Raises:
        ValueError: a time constant that is not positive, or not one per head.

    Examples:
        >>> part = KernelSTDP(n_head=1, tau=1.0)
        >>> a, state = part(torch.ones(1, 1, 3, 1), torch.ones(1, 3, 1))
        >>> [round(x, 3) for x in a.flatten().tolist()]      # 0, 1 + 1/e, 2 + 1/e + 1/e^2
        [0.0, 1.368, 2.503]
    """

    def __init__(self, n_head: int, *, tau: Taus = None, strength: float = 1.0) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.full((n_head,), float(strength)))
        self.raw_rate = nn.Parameter(raw_rates(tau, n_head))

    def window(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return tau+, tau-, A+, A- of `stdp_kernel`, (H,) each; A- is 0."""
        c, rate = self._learned(self.strength.dtype)
        return 1 / rate, 1 / rate, c, torch.zeros_like(c)

    def rate(self) -> Tensor:
        """Return 1 / tau, (H,)."""
        return F.softplus(self.raw_rate)

    def faded(self, E: Tensor, steps: Tensor) -> Tensor:
        """Return what is left of a fading memory (B, H, K, D) whose rows are so many tokens late (B, H, K)."""
        if steps.device.type == "cpu" and not steps.any():  # elsewhere looking would take longer than the product
            return E
        return E * torch.exp(-self.rate().to(E.dtype)[:, None] * steps)[..., None]

    def _learned(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return self.strength.to(dtype), F.softplus(self.raw_rate.to(dtype))

    def _dense(self, q: Tensor, v: Tensor) -> Tensor:
        """Quadratic form, block row by block row: the scores, weighted by distance, times the values."""
        T = q.shape[2]
        c, rate = self._learned(at_least_float32(q.dtype))
        rows = []
        for start in range(0, T, parallel.BLOCK):
            stop = min(start + parallel.BLOCK, T)
            weight = _weights(c, rate, start, stop).to(q.dtype)  # (H, n, stop)
            mine = q[:, :, start:stop]
            row = (parallel.own_scores(mine) * weight[..., start:]) @ v[:, None, start:stop]
            if start:
                row = row + (mine @ q[:, :, :start].mT * weight[..., :start]) @ v[:, None, :start]
            rows.append(row)
        return torch.cat(rows, dim=2)

    def _chunked(self, q: Tensor, v: Tensor, state: KernelState | None) -> tuple[Tensor, KernelState]:
        """Linear form: quadratic inside a block, both memories between blocks."""
        c, rate = self._learned(q.dtype)
        rows = []
        for start in range(0, q.shape[2], parallel.BLOCK):
            q_b, v_b = q[:, :, start : start + parallel.BLOCK], v[:, None, start : start + parallel.BLOCK]
            n = q_b.shape[2]
            steps = torch.arange(n, device=q.device)
            row = (parallel.own_scores(q_b) * _weights(c, rate, 0, n)) @ v_b
            S, E = q_b.mT @ v_b, q_b.mT @ (powers(rate, n - 1 - steps)[..., None] * v_b)
            if state is not None:
                row = row + q_b @ state.S
                row = row + (c[:, None] * powers(rate, steps + 1))[..., None] * (q_b @ state.E)
                S, E = state.S + S, torch.exp(-rate * n)[:, None, None] * state.E + E
            state = KernelState(S, E)
            rows.append(row)
        assert state is not None
        return torch.cat(rows, dim=2), state

    def _step(self, q: Tensor, v: Tensor, state: KernelState, owns_state: bool) -> tuple[Tensor, KernelState]:
        """One token: read both memories, then write."""
        c, rate = self._learned(q.dtype)
        lam = torch.exp(-rate)[:, None, None]
        a = q @ state.S + c[:, None, None] * lam * (q @ state.E)
        S, E = (state.S, state.E.mul_(lam)) if owns_state else (state.S.clone(), lam * state.E)
        return a, KernelState(S.addcmul_(q.mT, v[:, None]), E.addcmul_(q.mT, v[:, None]))


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Return the type that decay and sums are computed in."""
    return torch.promote_types(dtype, torch.float32)


def _weights(c: Tensor, rate: Tensor, start: int, stop: int) -> Tensor:
    """1 + c lam^(t-s) for tokens t = start..stop-1 and s < t; 0 for t <= s < stop."""
    return (1 + c[:, None, None] * powers(rate, distances(start, stop, rate))).tril(start - 1)


def _to(state: StateT, dtype: torch.dtype) -> StateT:
    return type(state)(*(part.to(dtype) for part in state))
