"""Scale-free connectivity: few neurons with many connections, many with few.

One mask (N, D) says which entries of the residual stream a neuron is connected to. It belongs to the neuron: its
column of the encoders and its row of the decoder share it.

Shapes: H heads, K neurons per head, N = H*K neurons, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_BLOCK = 4096


def scale_free_degrees(n_neurons: int, width: int, gamma: float = 2.5, k_min: int = 8, seed: int = 0) -> Tensor:
    """Draw the number of connections of each neuron from a truncated power law.

        P(k) = k^-gamma / sum_j j^-gamma        k = k_min .. width

    Args:
        n_neurons: N.
        width: D, the largest possible degree. A fit must know it (`xmax`): without it the exponent comes out too large.
        gamma: exponent.
        k_min: smallest degree.
        seed: decides the draw.

    Returns:
        (N,) int64.

    Raises:
        ValueError: `k_min` or `gamma` is out of range.

    Examples:
        >>> degrees = scale_free_degrees(1000, 256)
        >>> degrees.min().item(), degrees.median().item() < degrees.float().mean().item()
        (8, True)
    """
    if not 1 <= k_min <= width:
        raise ValueError(f"k_min={k_min}: expected 1 <= k_min <= {width}, the width; choose a smaller one")
    if not gamma > 0:
        raise ValueError(f"gamma={gamma}: expected a number > 0; 2.5 is usual")
    k = torch.arange(k_min, width + 1, device="cpu")  # wherever the weights are: the same seed gives the same mask
    probability = k.double() ** -gamma
    cumulative = (probability / probability.sum()).cumsum(0)
    u = torch.rand(n_neurons, dtype=torch.float64, device="cpu", generator=torch.Generator("cpu").manual_seed(seed))
    # rounding may leave the last sum just below one
    return k[torch.searchsorted(cumulative, u, right=True).clamp(max=len(k) - 1)]


def scale_free_mask(n_neurons: int, width: int, gamma: float = 2.5, k_min: int = 8, seed: int = 0) -> Tensor:
    """Draw which connections exist: row `i` has exactly the degree of neuron `i`, at places chosen uniformly.

    Args:
        n_neurons: N.
        width: D.
        gamma: exponent of the degrees.
        k_min: smallest degree.
        seed: decides the draw.

    Returns:
        (N, D) bool.

    Raises:
        ValueError: `k_min` or `gamma` is out of range.

    Examples:
        >>> mask = scale_free_mask(100, 64)
        >>> torch.equal(mask.sum(1), scale_free_degrees(100, 64))
        True
    """
    degrees = scale_free_degrees(n_neurons, width, gamma, k_min, seed)
    # another stream than the degrees': the same one would tie the places to the degrees
    generator = torch.Generator("cpu").manual_seed(seed ^ 0x5CA1EF4EE)
    blocks = []
    for block in degrees.split(_BLOCK):
        rank = torch.rand(len(block), width, generator=generator, device="cpu").argsort(1)
        blocks.append(rank < block[:, None])
    return torch.cat(blocks)


def pack_mask(mask: Tensor) -> Tensor:
    """Store eight entries of a mask in a byte, the first one in the lowest bit.

    Args:
        mask: (N, D) bool.

    Returns:
        (N, ceil(D / 8)) uint8.

    Examples:
        >>> pack_mask(torch.tensor([[True, False, True]])).tolist()
        [[5]]
    """
    padded = nn.functional.pad(mask.to(torch.uint8), (0, -mask.shape[1] % 8))
    bits: Tensor = padded.unflatten(1, (-1, 8)) << _bits(mask)
    return bits.sum(-1, dtype=torch.uint8)


def unpack_mask(packed: Tensor, width: int) -> Tensor:
    """Undo `pack_mask`.

    Args:
        packed: (N, ceil(D / 8)) uint8.
        width: D.

    Returns:
        (N, D) bool.
    """
    bits: Tensor = packed[:, :, None] >> _bits(packed) & 1
    return bits.bool().flatten(1)[:, :width]


def _bits(like: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=like.device)


class ScaleFree(nn.Module):
    """Scale-free masks for a model's weights, at no cost in the forward pass.

    A weight that was given to `attach` is masked once, and its gradient whenever one is accumulated: AdamW, weight
    decay and gradient clipping then see exact zeros and keep them. The products stay dense: at a density of 7 % sparse
    ones gain nothing on a CPU (docs/LOG.md).

    The checkpoint holds the mask, not the seed, because random streams change between versions: N*D/8 bytes (1 MB for
    32,768 neurons of width 256). In memory it takes 2 N*D bytes more.

    Args:
        n_head: H.
        neurons_per_head: K.
        width: D.
        gamma: exponent of the degrees.
        k_min: smallest degree.
        seed: decides the draw.

    Raises:
        ValueError: `k_min` or `gamma` is out of range.

    Examples:
        >>> part = ScaleFree(n_head=2, neurons_per_head=50, width=32)
        >>> encoder = nn.Parameter(0.02 * torch.randn(2, 32, 50))
        >>> part.equalize(encoder)
        >>> part.attach(encoder)
        >>> torch.equal((encoder != 0).sum(1).flatten(), part.degrees())
        True
    """

    packed: Tensor
    _present: Tensor
    _present_encoder: Tensor

    def __init__(
        self,
        n_head: int,
        neurons_per_head: int,
        width: int,
        gamma: float = 2.5,
        k_min: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.n_head, self.width = n_head, width
        mask = scale_free_mask(n_head * neurons_per_head, width, gamma, k_min, seed)
        self.register_buffer("packed", pack_mask(mask))
        self._unpack()
        self.register_load_state_dict_post_hook(lambda part, _: part._unpack())  # type: ignore[no-untyped-call]

    @property
    def mask(self) -> Tensor:
        """Which connections exist, (N, D) bool."""
        return self._present

    def degrees(self) -> Tensor:
        """Return the number of connections of each neuron, (N,) int64."""
        return self.mask.sum(1)

    @torch.no_grad()
    def equalize(self, encoder: Tensor) -> None:
        """Multiply the column of neuron i by `sqrt(D / k_i)`, in place.

        At initialisation: every neuron's drive then has the variance that it has without a mask; otherwise the hubs
        alone would fire.

        Args:
            encoder: (H, D, K).
        """
        gain = (self.width / self.degrees()).sqrt()
        encoder.mul_(gain.to(encoder.dtype).unflatten(0, (self.n_head, 1, -1)))

    def attach(self, weight: nn.Parameter) -> None:
        """Mask a weight now, and every gradient that it gets from now on.

        The hook belongs to the parameter. PyTorch gives it neither to a copy (`copy.deepcopy`) nor to another
        parameter that takes its place: attach those again.

        Args:
            weight: (N, D) as the decoder, or (H, D, K) as an encoder.

        Raises:
            ValueError: another shape.
        """
        self.apply_to([weight])
        weight.register_post_accumulate_grad_hook(self._mask_gradient)

    @torch.no_grad()
    def apply_to(self, weights: Sequence[Tensor]) -> None:
        """Set the absent entries of weights to zero once, in place; for weights whose gradients are not masked too.

        Args:
            weights: (N, D) or (H, D, K) each.
        """
        for weight in weights:
            weight.mul_(self._present_in(weight))

    def _mask_gradient(self, weight: Tensor) -> None:
        assert weight.grad is not None
        weight.grad.mul_(self._present_in(weight))

    def _present_in(self, weight: Tensor) -> Tensor:
        if weight.shape == self._present.shape:
            return self._present
        if weight.shape == self._present_encoder.shape:
            return self._present_encoder
        raise ValueError(
            f"weight {tuple(weight.shape)}: expected a decoder {tuple(self._present.shape)} or an encoder "
            f"{tuple(self._present_encoder.shape)}; give the part the shape of the model"
        )

    def _unpack(self) -> None:
        present = unpack_mask(self.packed, self.width)
        self.register_buffer("_present", present, persistent=False)
        # a strided mask would take four times as long at every step, and masked_fill_ five times
        encoder = present.unflatten(0, (self.n_head, -1)).transpose(1, 2).contiguous()
        self.register_buffer("_present_encoder", encoder, persistent=False)
