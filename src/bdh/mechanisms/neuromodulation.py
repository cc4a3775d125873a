"""Neuromodulation: a slow summary of what was read sets how easily each head fires.

Shapes: B batch, H heads, T tokens, D embedding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_CHUNK = 64


def causal_mean(x: Tensor, tau: float, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Exponential running mean over tokens.

        m_t = lambda m_{t-1} + (1 - lambda) x_t        lambda = exp(-1 / tau)

    Within a chunk of tokens it is one product with a triangular matrix; a loop goes over chunks only.

    Args:
        x: (B, T, D).
        tau: time constant in tokens.
        state: m before the first token (B, D); None is zero.

    Returns:
        m (B, T, D) and the last m (B, D), in float32 at least. Reading in pieces gives the same.

    Examples:
        >>> m, last = causal_mean(torch.ones(1, 3, 1), tau=1 / math.log(2))
        >>> m.flatten().tolist(), last.item()
        ([0.5, 0.75, 0.875], 0.875)
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    state = x.new_zeros(x.shape[0], x.shape[2]) if state is None else state.to(x.dtype)
    steps = torch.arange(min(_CHUNK, x.shape[1]) + 1, dtype=torch.float64)
    powers = torch.exp(-steps / tau).to(x)  # (C + 1,)
    distance = (steps[:-1, None] - steps[:-1]).to(x.device)
    # distances above the diagonal are negative: their powers would overflow before they are masked
    mixing = (-math.expm1(-1 / tau) * torch.exp(-distance.clamp_min(0) / tau)).tril().to(x)
    means = []
    with torch.autocast(x.device.type, enabled=False):
        for chunk in x.split(_CHUNK, dim=1):
            C = chunk.shape[1]
            m = mixing[:C, :C] @ chunk + powers[1 : C + 1, None] * state[:, None]
            means.append(m)
            state = m[:, -1]
    return torch.cat(means, 1), state


class Neuromodulation(nn.Module):
    """A gain per head and token from the running mean of the residual stream.

        m_t = lambda m_{t-1} + (1 - lambda) v_t,      g_t = 2 sigmoid(W m_t + c)        lambda = exp(-1 / tau)
        gated drive u' = g_t u - threshold

    The LayerNorm behind the decoder divides out whatever scales all that is written, so a gain must work against
    something: against a threshold, as `gate` does, or as the weight of one of two terms that are added up. The gain
    starts at 1 everywhere; a token's gain depends on it and the tokens before it.

    The state of a text is one (B, D) tensor in float32, whatever was read.

    Args:
        width: D.
        n_head: H.
        tau: time constant in tokens.
        threshold: what the gained drive must exceed, > 0.

    Raises:
        ValueError: `tau` or `threshold` is not positive.

    Examples:
        >>> part = Neuromodulation(width=8, n_head=2)
        >>> v, u = torch.randn(3, 5, 8), torch.randn(3, 2, 5, 4)
        >>> gain, state = part(v)
        >>> part.gate(u, gain).relu().shape, state.shape
        (torch.Size([3, 2, 5, 4]), torch.Size([3, 8]))
        >>> gain, state = part(torch.randn(3, 1, 8), state)      # one more token
    """

    def __init__(self, width: int, n_head: int, *, tau: float = 50.0, threshold: float = 0.1) -> None:
        super().__init__()
        if not (tau > 0 and threshold > 0):
            raise ValueError(
                f"tau={tau}, threshold={threshold}: expected both > 0; without a threshold the LayerNorm behind "
                "removes what the heads' gains have in common"
            )
        self.tau, self.threshold = tau, threshold
        self.weight = nn.Parameter(torch.zeros(n_head, width))
        self.bias = nn.Parameter(torch.zeros(n_head))

    def forward(self, v: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the gains.

        Args:
            v: (B, T, D) residual stream.
            state: running mean before the first token (B, D); None at the start of a text.

        Returns:
            g (B, H, T, 1) between 0 and 2 in the dtype of `v`, and the running mean after the last token.
        """
        mean, state = causal_mean(v, self.tau, state)
        gain = 2 * torch.sigmoid(nn.functional.linear(mean, self.weight.to(mean), self.bias.to(mean)))  # (B, T, H)
        return gain.mT[..., None].to(v.dtype), state

    def gate(self, drive: Tensor, gain: Tensor) -> Tensor:
        """Return `g u - threshold` of a drive (B, H, T, K)."""
        return gain * drive - self.threshold
