"""Pair-based spike-timing dependent plasticity as causal attention: the trace form (stdp.py says what it is part of).

Shapes: B batch, H heads, T tokens, K neurons per head, D embedding, n tokens of one block. Times are in tokens.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bdh.mechanisms.decay import Taus, inverse_softplus, past_powers, powers, raw_rates
from bdh.mechanisms.stdp import STDPAttention, TraceState, at_least_float32
from bdh.ops import parallel

TRACE_BLOCK = 64
"""Tokens that a filter takes at once; its cost per token grows with them."""


class _Rule(NamedTuple):
    """What is learned, (H,) each."""

    c: Tensor
    balance: Tensor
    plus: Tensor
    """1 / tau+"""
    minus: Tensor
    """1 / tau-"""
    weight: Tensor
    """1 / tau_weight"""

    @property
    def gains(self) -> tuple[Tensor, Tensor]:
        """A+ lam+ and A- lam-: what a pair one token apart changes."""
        return -torch.expm1(-self.plus), -self.balance * torch.expm1(-self.minus)


class TraceSTDP(STDPAttention[TraceState]):
    """Linear attention plus a memory that pair-based STDP writes, potentiation and depression, strictly causal.

        a_t = q_t (S_t + c W_t)                                                  read first
        S_{t+1} = S_t + q_t^T v_t
        W_{t+1} = mu W_t + A+ lam+ p_t^T v_t - A- lam- q_t^T r_t                 lam = exp(-1 / tau), mu alike
        p_{t+1} = lam+ p_t + q_t,    r_{t+1} = lam- r_t + v_t                    traces of the keys and the values

    With mu = 1, W_t is the sum of `stdp_kernel(s - j)` q_j^T v_s over all pairs of tokens j, s < t (all-to-all pairing;
    Morrison, Diesmann & Gerstner 2008). Depression is causal: of a pair whose value came first, both are past when W
    is read. The key and the value of the same token change nothing.

    The areas under the window do not depend on the time constants: A+ = (1 - lam+) / lam+ makes potentiation as large
    as S, and A- = balance (1 - lam-) / lam-; with balance > 1 uncorrelated activity depresses. Learned, per head, are
    c [`strength`], and through softplus the balance and the rates 1 / tau+, 1 / tau-, 1 / tau_weight.

    Args:
        n_head: H.
        tau_plus: time constant of potentiation in tokens: one number, one per head, or None for a bank from 5 to 80.
        tau_minus: time constant of depression.
        tau_weight: time constant of forgetting, mu = exp(-1 / tau_weight).
        balance: area of depression by area of potentiation.
        strength: c at the start.

    Raises:
        ValueError: a time constant or balance that is not positive, or time constants not one per head.

    Examples:
        >>> part = TraceSTDP(n_head=1, tau_weight=1e6)
        >>> first, second = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
        >>> _, state = part(first.view(1, 1, 2, 1), second.view(1, 2, 1))       # the key first: 1 - exp(-1/20)
        >>> round(state.W.item(), 4)
        0.0488
        >>> _, state = part(second.view(1, 1, 2, 1), first.view(1, 2, 1))       # the value first
        >>> round(state.W.item(), 4)
        -0.0512
    """

    def __init__(
        self,
        n_head: int,
        *,
        tau_plus: Taus = None,
        tau_minus: Taus = None,
        tau_weight: Taus = 500.0,
        balance: float = 1.05,
        strength: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 < balance < math.inf:
            raise ValueError(f"balance {balance}: expected a positive number; 1.05 is usual")
        self.strength = nn.Parameter(torch.full((n_head,), float(strength)))
        self.raw_balance = nn.Parameter(torch.full((n_head,), inverse_softplus(balance)))
        self.raw_rate_plus = nn.Parameter(raw_rates(tau_plus, n_head))
        self.raw_rate_minus = nn.Parameter(raw_rates(tau_minus, n_head))
        self.raw_rate_weight = nn.Parameter(raw_rates(tau_weight, n_head))

    def window(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return tau+, tau-, A+, A- of `stdp_kernel`, (H,) each, strength included."""
        rule = self._learned(self.strength.dtype)
        plus, minus = (gain * rate.exp() for gain, rate in zip(rule.gains, (rule.plus, rule.minus), strict=True))
        return 1 / rule.plus, 1 / rule.minus, rule.c * plus, rule.c * minus

    def _learned(self, dtype: torch.dtype) -> _Rule:
        raw = self.raw_balance, self.raw_rate_plus, self.raw_rate_minus, self.raw_rate_weight
        return _Rule(self.strength.to(dtype), *(F.softplus(parameter.to(dtype)) for parameter in raw))

    def _dense(self, q: Tensor, v: Tensor) -> Tensor:
        """Quadratic form, block row by block row.

        Traces of keys are only ever seen through a query, so the scores are traced over their columns instead.
        """
        T = q.shape[2]
        rule = self._learned(at_least_float32(q.dtype))
        r, _ = _traces(v.mT[:, None], rule.minus)  # (B, H, D, T)
        rows = []
        for start in range(0, T, parallel.BLOCK):
            stop = min(start + parallel.BLOCK, T)
            forgotten = past_powers(rule.weight, start, stop)  # (H, n, stop)
            mine, seen = q[:, :, start:stop], None
            row: Tensor | None = None
            if start:
                scores = mine @ q[:, :, :start].mT
                traced, seen = _traces(scores, rule.plus)
                row = _pairs(scores, scores, traced, forgotten[..., :start], rule, v[:, None, :start], r[..., :start])
            scores = parallel.own_scores(mine)
            traced, _ = _traces(scores, rule.plus, seen)
            here = slice(start, stop)
            own = _pairs(scores.tril(-1), scores, traced, forgotten[..., here], rule, v[:, None, here], r[..., here])
            rows.append(own if row is None else own + row)
        return torch.cat(rows, dim=2)

    def _chunked(self, q: Tensor, v: Tensor, state: TraceState | None) -> tuple[Tensor, TraceState]:
        """Linear form: quadratic inside a block, both memories and both traces between blocks."""
        rule = self._learned(q.dtype)
        up, down = (gain[:, None, None] for gain in rule.gains)
        rows = []
        for start in range(0, q.shape[2], parallel.BLOCK):
            q_b, v_b = q[:, :, start : start + parallel.BLOCK], v[:, None, start : start + parallel.BLOCK]
            n = q_b.shape[2]
            steps = torch.arange(n, device=q.device)
            scores = parallel.own_scores(q_b)
            traced, _ = _traces(scores, rule.plus, None if state is None else (q_b @ state.p[..., None])[..., 0])
            r, r_after = _traces(v_b.mT, rule.minus, None if state is None else state.r)
            row = _pairs(scores.tril(-1), scores, traced, past_powers(rule.weight, 0, n), rule, v_b, r)
            left = powers(rule.weight, n - 1 - steps)[..., None]  # of what each token writes, at the end of the block
            post = left * v_b
            # every pair of the block, sorted by its key: the values that come after it, less those before
            S, W = q_b.mT @ v_b, q_b.mT @ (up * (past_powers(rule.plus, 0, n).mT @ post) - down * left * r.mT)
            p = (powers(rule.plus, n - 1 - steps)[:, None] @ q_b)[:, :, 0]
            if state is not None:
                row = row + q_b @ state.S
                row = row + (rule.c[:, None] * powers(rule.weight, steps))[..., None] * (q_b @ state.W)
                W = W + state.p[..., None] * (up * powers(rule.plus, steps)[:, None] @ post)
                S, W = state.S + S, torch.exp(-rule.weight * n)[:, None, None] * state.W + W
                p = torch.exp(-rule.plus * n)[:, None] * state.p + p
            state = TraceState(S, W, p, r_after)
            rows.append(row)
        assert state is not None
        return torch.cat(rows, dim=2), state

    def _step(self, q: Tensor, v: Tensor, state: TraceState, owns_state: bool) -> tuple[Tensor, TraceState]:
        """One token: read, then write W from the traces of the past, then update the traces."""
        rule = self._learned(q.dtype)
        up, down = rule.gains[0][:, None], rule.gains[1][:, None, None]
        a = q @ state.S + rule.c[:, None, None] * (q @ state.W)
        mu = torch.exp(-rule.weight)[:, None, None]
        S, W = (state.S, state.W.mul_(mu)) if owns_state else (state.S.clone(), mu * state.W)
        S = S.addcmul_(q.mT, v[:, None])
        W = W.addcmul_((up * state.p)[..., None], v[:, None]).addcmul_(-down * q.mT, state.r[:, :, None])
        p = torch.exp(-rule.plus)[:, None] * state.p + q[:, :, 0]
        r = torch.exp(-rule.minus)[:, None] * state.r + v
        return a, TraceState(S, W, p, r)


def _traces(x: Tensor, rate: Tensor, before: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Trace that each token finds, y_s = sum_{j<s} lam^(s-1-j) x_j, and the one left after the last.

    Args:
        x: (B, H or 1, ..., T), time last.
        rate: (H,).
        before: (B, H, ...) trace before the first token; None is zero.

    Returns:
        (B, H, ..., T) and (B, H, ...).
    """
    out = []
    for block in x.split(TRACE_BLOCK, dim=-1):
        n = block.shape[-1]
        steps = torch.arange(n, device=x.device)
        y = block @ past_powers(rate, 0, n).mT.to(x.dtype)
        after = (block @ powers(rate, n - 1 - steps)[..., None].to(x.dtype))[..., 0]
        if before is not None:
            y = y + before[..., None] * powers(rate, steps)[:, None].to(x.dtype)
            after = after + before * torch.exp(-rate * n)[:, None].to(x.dtype)
        before = after
        out.append(y)
    assert before is not None
    return torch.cat(out, dim=-1), before


def _pairs(
    plain: Tensor, scores: Tensor, traced: Tensor, forgotten: Tensor, rule: _Rule, v: Tensor, r: Tensor
) -> Tensor:
    """Read what the tokens of some columns have written: plain memory, potentiation by their value, depression.

    Args:
        plain: (B, H, R, C) scores of past tokens, else 0.
        scores: (B, H, R, C).
        traced: (B, H, R, C) their traces over the columns.
        forgotten: (H, R, C) mu^(t-1-s), 0 from the present on.
        rule: what is learned.
        v: (B, 1, C, D) values.
        r: (B, H, D, C) traces that these tokens found.

    Returns:
        (B, H, R, D).
    """
    up, down = ((rule.c * gain)[:, None, None] * forgotten for gain in rule.gains)
    a = torch.addcmul(plain, traced, up.to(scores.dtype)) @ v
    return a - scores * down.to(scores.dtype) @ r.mT
