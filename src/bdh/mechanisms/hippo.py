"""HiPPO: the past of a signal as coefficients of Legendre polynomials, kept up to date token by token.

Gu, Dao, Ermon, Rudra & Re (2020, arXiv 2008.07669). Two measures say which past is kept:

    legs   all of it, scaled to [0, 1]:     dc/dt = (A c + B u) / t
    legt   the last `theta` tokens:         dc/dt = A c + B u

The signal is held constant over each token (zero-order hold), for which every form here is exact. All tables are
functions of measure, order and position, built in float64 and never stored with the weights.

Shapes: B batch, T tokens, D embedding, C channels, N order (coefficients per channel).
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Measure = Literal["legs", "legt"]

BLOCK = 64
"""Tokens per block: inside it one product with a table, between blocks the state."""


class HiPPOState(NamedTuple):
    """What `HiPPO` carries from token to token: C N numbers per sequence."""

    coefficients: Tensor
    """(B, C, N), float32 at least."""
    position: int
    """Number of tokens read (k of the equations)."""


def hippo_matrices(measure: Measure, order: int, theta: float = 256.0) -> tuple[Tensor, Tensor]:
    """Return A (N, N) and B (N,) of the differential equation, float64; r_n = sqrt(2n + 1).

        legs   A_nk = -r_n r_k  for k < n,   -(n + 1) for k = n,   0 for k > n;         B_n = r_n
        legt   A_nk = -r_n r_k / theta  for k <= n,   -(-1)^(n-k) r_n r_k / theta for k > n;   B_n = r_n / theta

    Raises:
        ValueError: unknown measure, or an order or window that is not positive.

    Examples:
        >>> A, B = hippo_matrices("legs", 3)
        >>> torch.linalg.eigvals(A).real.sort().values.round(decimals=6).tolist()
        [-3.0, -2.0, -1.0]
    """
    if measure not in get_args(Measure):
        raise ValueError(f"measure {measure!r}: expected one of {', '.join(get_args(Measure))}")
    if order < 1 or not 0 < theta < math.inf:
        raise ValueError(f"order {order}, theta {theta}: expected positive numbers")
    n, r = torch.arange(order, dtype=torch.float64), _roots(order)
    products = torch.outer(r, r)
    if measure == "legs":
        return -(products.tril(-1) + torch.diag(n + 1)), r
    signs = (-1) ** (n[:, None] - n)
    return -(products.tril() + (signs * products).triu(1)) / theta, r / theta


def hippo_reconstruct(coefficients: Tensor, x: Tensor) -> Tensor:
    """Return the past that coefficients remember, sum_n c_n sqrt(2n + 1) P_n(2x - 1).

    Args:
        coefficients: (..., N).
        x: (P,) places in [0, 1]: 0 is the start of the text (legs) or of the window (legt), 1 the present.

    Returns:
        (..., P).

    Examples:
        >>> hippo_reconstruct(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 0.5, 1.0])).tolist()
        [2.0, 2.0, 2.0]
    """
    order = coefficients.shape[-1]
    return coefficients @ (_roots(order) * _legendre(order, x.cpu().double())).to(coefficients).mT


class HiPPO(nn.Module):
    """A memory of the residual stream in C channels, and what is read from it.

        u = LN(x) W_in;    c_t = HiPPO(u_1 .. u_t);    y = gate * c W_out

    The caller adds y to the residual stream before a LayerNorm. Token t sees itself and what came before. The gate
    starts at 0.1: at 0 the maps would get no gradient. W_out starts so that y / gate is no larger than u, by Parseval's
    theorem: the squared coefficients of a channel sum to at most the mean square of its past.

    Args:
        n_embd: D.
        measure: "legs" (the whole past) or "legt" (a window).
        order: N. More coefficients remember faster changes.
        channels: C.
        theta: window of "legt" in tokens.

    Raises:
        ValueError: unknown measure, or a size that is not positive.

    Examples:
        >>> part = HiPPO(n_embd=8, order=4, channels=2)
        >>> x = torch.randn(1, 5, 8)
        >>> y, state = part(x)
        >>> y.shape, state.coefficients.shape, state.position
        (torch.Size([1, 5, 8]), torch.Size([1, 2, 4]), 5)
        >>> first, state = part(x[:, :2])
        >>> second, _ = part(x[:, 2:], state)
        >>> torch.allclose(torch.cat((first, second), dim=1), y, atol=1e-6)
        True
    """

    def __init__(
        self, n_embd: int, *, measure: Measure = "legs", order: int = 32, channels: int = 16, theta: float = 256.0
    ) -> None:
        super().__init__()
        _let_a_compiler_keep_the_tables()
        if channels < 1:
            raise ValueError(f"channels {channels}: expected a positive number")
        hippo_matrices(measure, order, theta)  # refuses what cannot be
        # one window for "legs", so that equal tables are made once
        self.kind = _Kind(measure, order, float(theta) if measure == "legt" else 1.0)
        self.W_in = nn.Parameter(torch.empty(n_embd, channels))
        self.W_out = nn.Parameter(torch.empty(channels * order, n_embd))
        self.gate = nn.Parameter(torch.tensor(0.1))
        nn.init.normal_(self.W_in, std=n_embd**-0.5)
        nn.init.normal_(self.W_out, std=channels**-0.5)

    def extra_repr(self) -> str:
        """Return what `print` shows."""
        window = f", theta={self.kind.theta}" if self.kind.measure == "legt" else ""
        return f"measure={self.kind.measure}, order={self.kind.order}, channels={self.W_in.shape[1]}{window}"

    def forward(self, x: Tensor, state: HiPPOState | None = None) -> tuple[Tensor, HiPPOState]:
        """Read any number of tokens after those that `state` has read.

        Args:
            x: (B, T, D) residual stream.
            state: what an earlier call returned; None starts from nothing. It is not changed.

        Returns:
            y (B, T, D) to be added to the residual stream, and the state after the last token.
        """
        u = F.layer_norm(x, x.shape[-1:]) @ self.W_in
        c, after = self.remember(u, state)
        y = self.gate * (c.to(u.dtype).flatten(2) @ self.W_out)
        return y.to(x.dtype), after

    def remember(self, u: Tensor, state: HiPPOState | None = None) -> tuple[Tensor, HiPPOState]:
        """Return the coefficients after each token.

        Args:
            u: (B, T, C) signals.
            state: what an earlier call returned; None starts from nothing. It is not changed.

        Returns:
            c (B, T, C, N), for `hippo_reconstruct`, in float32 at least, and the state after the last token. A new
            state has the dtype of c; a given one keeps its own.
        """
        B, T, C = u.shape
        stored = torch.promote_types(u.dtype, torch.float32) if state is None else state.coefficients.dtype
        wide = torch.promote_types(stored, torch.float32)
        if state is None:
            state = HiPPOState(u.new_zeros(B, C, self.kind.order, dtype=wide), 0)
        c, k = state.coefficients.to(wide), state.position
        rows = []
        with torch.autocast(u.device.type, enabled=False):
            u = u.to(wide)
            for start in range(0, T, BLOCK):
                u_b = u[:, start : start + BLOCK]
                n = u_b.shape[1]
                if n == 1:
                    keep, write = (table.to(c) for table in _step(self.kind, k))
                    row = (c @ keep.mT + u_b.mT * write)[:, None]
                else:
                    keep, write = _block(self.kind, k, n, c.dtype, c.device)
                    row = torch.einsum("ijn,bjc->bicn", write, u_b)
                    if k:
                        row = row + torch.einsum("inm,bcm->bicn", keep, c)
                rows.append(row)
                c, k = row[:, -1], k + n
        # a copy: as a view the state would keep its whole block alive
        return torch.cat(rows, dim=1), HiPPOState(c.to(stored, copy=True), k)


class _Kind(NamedTuple):
    """Which memory: what all tables are functions of."""

    measure: Measure
    order: int
    theta: float

    def age(self, k: int) -> int:
        """How much of k tokens the tables depend on: a window is the same at any age."""
        return k if self.measure == "legs" else 0


@cache
def _let_a_compiler_keep_the_tables() -> None:
    """A compiler would otherwise make them anew at every call. Not a decorator: to mark a function takes a second."""
    for table in (_step, _block):
        torch.compiler.assume_constant_result(table)


def _step(kind: _Kind, k: int) -> tuple[Tensor, Tensor]:
    """Ab (N, N) and Bb (N,) of the token after k: c_{k+1} = Ab c_k + Bb u_{k+1}, float64."""
    first, place = divmod(kind.age(k), BLOCK)
    keep, write = _steps(kind, first * BLOCK)
    return keep[place], write[place]


def _block(kind: _Kind, k: int, n: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tables of n tokens after k: c_{k+1+i} = keep[i] c_k + sum_{j<=i} write[i, j] u_{k+1+j}; (n, N, N), (n, n, N)."""
    return _blocks(kind, kind.age(k), n, dtype, device)


# one by one these cost more than what is done with them
@lru_cache(maxsize=8)
def _steps(kind: _Kind, first: int) -> tuple[Tensor, Tensor]:
    """Ab (BLOCK, N, N) and Bb (BLOCK, N) of the tokens after k = first .. first + BLOCK - 1.

    Zero-order hold: exp([[A, B], [0, 0]] dt) = [[Ab, Bb], [0, 1]], with dt = 1 for "legt", and for "legs" the step of
    log time, ln((k + 1) / k); there the first token is the whole past, c_1 = (u, 0, ...).
    """
    N = kind.order
    with torch.inference_mode(False):  # inference tensors could not be used in training
        A, B = hippo_matrices(*kind)
        generator = A.new_zeros(N + 1, N + 1)
        generator[:N, :N], generator[:N, N] = A, B
        k = torch.arange(first, first + BLOCK, dtype=torch.float64)
        dt = torch.log1p(1 / k.clamp_min(1)) if kind.measure == "legs" else torch.ones_like(k)
        moved = torch.linalg.matrix_exp(generator * dt[:, None, None])
        keep, write = moved[:, :N, :N].contiguous(), moved[:, :N, N].contiguous()
        if kind.measure == "legs" and first == 0:
            keep[0], write[0] = 0, torch.eye(N, dtype=torch.float64)[0]
        return keep, write


# training asks for the same blocks at every step: 64 of them are 4,096 tokens, 0.8 MB each at N = 32 in float32
@lru_cache(maxsize=64)
def _blocks(kind: _Kind, k: int, n: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):
        keep, write = _legs_block(kind.order, k, n) if kind.measure == "legs" else _legt_block(kind, n)
        return keep.to(device, dtype), write.to(device, dtype)


def _legs_block(order: int, k: int, n: int) -> tuple[Tensor, Tensor]:
    """From k to K tokens the whole past shrinks by k / K: keep = exp(A ln(K / k)); a token is a piece of an integral.

    The projection of a signal that is u on [(j-1)/K, j/K] and 0 elsewhere is u (Q_n(j/K) - Q_n((j-1)/K)), where Q_n is
    the integral of sqrt(2n + 1) P_n(2x - 1): Q_0 = x, Q_n = (P_{n+1} - P_{n-1})(2x - 1) / (2 sqrt(2n + 1)).
    """
    A, _ = hippo_matrices("legs", order)
    ends = torch.arange(k + 1, k + n + 1, dtype=torch.float64)
    keep = torch.linalg.matrix_exp(A * (ends / k).log()[:, None, None]) if k else A.new_zeros(n, order, order)
    x = (torch.arange(k, k + n + 1, dtype=torch.float64) / ends[:, None]).clamp_max(1)  # later tokens: nothing, exactly
    P = _legendre(order + 1, x)  # (n, n + 1, N + 1)
    Q = torch.cat((x[..., None], (P[..., 2:] - P[..., :-2]) / (2 * _roots(order)[1:])), dim=-1)
    return keep, Q.diff(dim=1)


def _legt_block(kind: _Kind, n: int) -> tuple[Tensor, Tensor]:
    """Powers of one step: keep[i] = Ab^(i+1), write[i, j] = Ab^(i-j) Bb."""
    Ab, Bb = _step(kind, 0)
    keep = [Ab]
    for _ in range(n - 1):
        keep.append(Ab @ keep[-1])
    impulse = torch.stack([Bb, *(power @ Bb for power in keep[:-1])])  # (n, N)
    lag = torch.arange(n)[:, None] - torch.arange(n)
    return torch.stack(keep), impulse[lag.clamp_min(0)] * (lag >= 0)[..., None]


def _roots(order: int) -> Tensor:
    """sqrt(2n + 1), which makes the polynomials orthonormal on [0, 1]."""
    return (2 * torch.arange(order, dtype=torch.float64) + 1).sqrt()


def _legendre(count: int, x: Tensor) -> Tensor:
    """P_0 .. P_{count-1} at 2x - 1, in a new last dimension."""
    z = 2 * x - 1
    P = [torch.ones_like(z), z]
    for n in range(1, count - 1):
        P.append(((2 * n + 1) * z * P[n] - n * P[n - 1]) / (n + 1))
    return torch.stack(P[:count], dim=-1)
