"""Dendrites: inputs that arrive together on one branch count for more than the same inputs spread out.

Shapes: B batch, H heads, T tokens, K neurons per head, D inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Dendrites(nn.Module):
    """The drive of neurons whose input reaches them over branches with a quadratic term of their own.

        b_g = sum_{d in branch g} v_d W_dk,      u_k = sum_g b_g + strength relu(b_g)^2

    The D inputs are cut into neighbouring branches of equal size. A positive strength favours inputs on one branch, as
    the spikes of real dendrites do (Poirazi, Brannon and Mel 2003), a negative one inputs that are spread out. At
    strength 0 the drive is the plain `v W`, and weight decay pulls there. Each token is taken by itself.

    A branch sees part of a normalised vector, whose entries need not sum to zero. So a constant added to an encoder
    column matters here, and Dale's law is no longer a mere choice of coordinates.

    What a branch computes is computed once more in the backward pass, else every branch would keep a tensor of the
    drive's size. Forward and backward, four branches take about four and a half times as long as the plain drive
    (docs/LOG.md).

    Args:
        n_head: H; every head learns its strength.
        branches: per neuron.
        strength: where the strength starts. At the weights' initialisation the quadratic term is then below a tenth of
            the drive.

    Raises:
        ValueError: no branch.

    Examples:
        >>> dendrites, weight = Dendrites(n_head=1, branches=2, strength=0.5), torch.ones(1, 4, 1)
        >>> together, apart = torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([1.0, 0.0, 1.0, 0.0])
        >>> [dendrites(v.view(1, 1, 1, 4), weight).item() for v in (together, apart)]
        [4.0, 3.0]
    """

    def __init__(self, n_head: int, branches: int = 4, strength: float = 0.1) -> None:
        super().__init__()
        if branches < 1:
            raise ValueError(f"branches={branches}: expected at least 1; 4 is usual")
        self.branches = branches
        self.strength = nn.Parameter(torch.full((n_head,), strength))

    def forward(self, v: Tensor, weight: Tensor) -> Tensor:
        """Return the drive.

        Args:
            v: (B, H, T, D), or (B, 1, T, D) read by every head.
            weight: (H, D, K).

        Returns:
            u (B, H, T, K).
        """
        parts = zip(v.tensor_split(self.branches, -1), weight.tensor_split(self.branches, 1), strict=True)
        linear, squares = zip(
            *(checkpoint(_branch, *part, use_reentrant=False, preserve_rng_state=False) for part in parts), strict=True
        )
        plain: Tensor = sum(linear[1:], linear[0])
        bonus: Tensor = sum(squares[1:], squares[0])
        return plain + self.strength[:, None, None].to(bonus.dtype) * bonus


def _branch(v: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    b = v @ weight
    return b, b.relu().square()
