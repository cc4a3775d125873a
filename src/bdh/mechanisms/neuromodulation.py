"""Neuromodulation: a slow summary of what was read sets how easily each head fires.

Shapes: B batch, H heads, T tokens, D embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bdh import ops


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
        mean, _ = ops.leaky_integrate(v[:, None], [self.tau], None if state is None else state[:, None])
        mean = mean[:, 0]  # (B, T, D)
        gain = 2 * torch.sigmoid(nn.functional.linear(mean, self.weight.to(mean), self.bias.to(mean)))  # (B, T, H)
        # a view would keep the means of all tokens in memory as long as the state
        return gain.mT[..., None].to(v.dtype), mean[:, -1].clone()

    def gate(self, drive: Tensor, gain: Tensor) -> Tensor:
        """Return `g u - threshold` of a drive (B, H, T, K)."""
        return gain * drive - self.threshold
