"""Dale's law: all outgoing synapses of a neuron have one sign.

A neuron of the model is one of its N = H*K latent units; its outgoing synapses are its row of the decoder. The graph
from neuron to neuron is `G = decoder @ encoder` (rows: from, columns: to), and its rows have one sign when the encoders
are nonnegative and every decoder row has one sign.

Where the law binds, and where it is only a choice of coordinates (a gauge). In the released model an encoder reads a
LayerNorm's output, whose entries sum to zero, so a constant added to an encoder column changes nothing; and what the
decoder writes goes into a LayerNorm, so a constant added to a decoder row changes nothing either. With these constants
alone every trained model obeys the law exactly (`to_dale`). There it costs no quality and does nothing: the LayerNorm
puts the centring `P = I - 11'/D` between decoder and encoder, and the graph that the computation uses,
`decoder @ P @ encoder`, is as mixed in sign as before. Masks forbid the shift (`ScaleFree`), so there the law
constrains what can be learned; the graph in use is still mixed, because P is still there. Only with a norm that does
not centre (RMSNorm) is the graph in use the one whose rows have one sign. `graph_purity` measures both.

Shapes: H heads, K neurons per head, N = H*K neurons, D embedding.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from bdh.mechanisms.dendrites import Dendrites
from bdh.mechanisms.scale_free import ScaleFree

Model = TypeVar("Model", bound=nn.Module)

_BLOCK = 1024


def neuron_signs(n_head: int, neurons_per_head: int, excitatory: float = 0.8, seed: int = 0) -> Tensor:
    """Draw which neurons excite (+1) and which inhibit (-1), with the same numbers of both in every head.

    They are scattered over the head, because the place in a head decides the speed of rotation.

    Args:
        n_head: H.
        neurons_per_head: K.
        excitatory: share of a head's neurons that excite, rounded to whole neurons.
        seed: decides which.

    Returns:
        (H*K,) int8, which no cast of a model to another precision changes.

    Raises:
        ValueError: the share leaves no neuron of one kind.

    Examples:
        >>> neuron_signs(2, 5).unflatten(0, (2, 5)).sum(1).tolist()
        [3, 3]
    """
    count = round(excitatory * neurons_per_head)
    if not 0 < count < neurons_per_head:
        raise ValueError(
            f"excitatory={excitatory}: expected a share that leaves some of {neurons_per_head} neurons of both kinds; "
            "0.8 is usual"
        )
    generator = torch.Generator("cpu").manual_seed(seed)
    # on the CPU wherever the weights are: the same seed gives the same neurons
    order = torch.rand(n_head, neurons_per_head, generator=generator, device="cpu").argsort(1)
    return torch.where(order < count, 1, -1).to(torch.int8).flatten()


class DaleLawLinear(nn.Module):
    """A linear map whose inputs are neurons that each either excite or inhibit.

        y_j = sum_i s_i w_ij x_i + b_j        s_i = +1 or -1 fixed, w_ij >= 0 learned

    The magnitudes start exponentially distributed, inhibition stronger by the ratio of the numbers, so that both cancel
    in the mean and y has unit variance where x is a rectified standard normal (Cornford et al. 2021, "ColEI").
    The gradient steps freely and `project` then puts the magnitudes back above zero ("projected"): unlike with a
    softplus, a synapse can be exactly zero, come back, and shrink under weight decay.

    Args:
        in_features: neurons that send.
        out_features: targets.
        excitatory: share of the senders that excite.
        bias: whether to add b.
        seed: decides which senders excite.

    Raises:
        ValueError: the share leaves no sender of one kind.

    Examples:
        >>> layer = DaleLawLinear(10, 3)
        >>> optimizer = torch.optim.AdamW(layer.parameters())
        >>> hook = optimizer.register_step_post_hook(lambda *_: layer.project())
        >>> layer(torch.rand(4, 10)).sum().backward()
        >>> optimizer.step()
        >>> sign_purity(layer.weight()).min().item()
        1.0
    """

    signs: Tensor

    def __init__(
        self, in_features: int, out_features: int, excitatory: float = 0.8, *, bias: bool = True, seed: int = 0
    ) -> None:
        super().__init__()
        self.register_buffer("signs", neuron_signs(1, in_features, excitatory, seed))
        n_e = int((self.signs > 0).sum())
        n_i = in_features - n_e
        # a rectified standard normal has mean square 1/2 and mean 1/sqrt(2 pi); E[w^2] = 2 sd^2 for an exponential
        sd_e = ((1 - 1 / (2 * math.pi)) * (n_e + n_e**2 / n_i)) ** -0.5
        sd = torch.where(self.signs > 0, sd_e, sd_e * n_e / n_i)
        self.magnitude = nn.Parameter(torch.empty(in_features, out_features).exponential_() * sd[:, None])
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def weight(self) -> Tensor:
        """Return the signed synapses (in_features, out_features)."""
        return self.signs[:, None] * self.magnitude

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        y = x @ self.weight()
        return y if self.bias is None else y + self.bias

    @torch.no_grad()
    def project(self) -> None:
        """Put magnitudes that a step took below zero back to zero; call it after every optimiser step."""
        self.magnitude.clamp_(min=0)


class DaleLaw(nn.Module):
    """The law for a model's own weights: nonnegative encoders and decoder rows of one sign.

    The weights keep their names and meaning; this part holds the signs and changes the weights in place.

    Args:
        n_head: H.
        neurons_per_head: K.
        excitatory: share of a head's neurons that excite.
        seed: decides which.

    Examples:
        >>> law = DaleLaw(1, 4, excitatory=0.5)
        >>> encoder, decoder = torch.randn(1, 8, 4), torch.randn(4, 8)
        >>> law.project([encoder], decoder)
        >>> bool((encoder >= 0).all()), sign_purity(decoder).tolist()
        (True, [1.0, 1.0, 1.0, 1.0])
    """

    signs: Tensor

    def __init__(self, n_head: int, neurons_per_head: int, excitatory: float = 0.8, seed: int = 0) -> None:
        super().__init__()
        self.register_buffer("signs", neuron_signs(n_head, neurons_per_head, excitatory, seed))

    @torch.no_grad()
    def shift(self, encoders: list[Tensor], decoder: Tensor) -> None:
        """Bring dense weights between LayerNorms under the law without changing what they compute.

            E_dk <- E_dk - min_d E_dk,      W_id <- W_id + s_i max_d |W_id|

        Args:
            encoders: tensors (H, D, K).
            decoder: (H*K, D).
        """
        for encoder in encoders:
            encoder.sub_(encoder.amin(1, keepdim=True))
        decoder.add_(self.signs[:, None] * decoder.abs().amax(1, keepdim=True))

    @torch.no_grad()
    def fold(self, encoders: list[Tensor], decoder: Tensor) -> None:
        """Bring random weights under the law by their magnitudes, for masked weights, which cannot be shifted.

            E <- |E|,      W_id <- s_i |W_id|, inhibition stronger by the ratio of the numbers

        Zeros stay zeros. Without the ratio the majority would push every target in one direction.

        Args:
            encoders: tensors (H, D, K).
            decoder: (H*K, D).
        """
        for encoder in encoders:
            encoder.abs_()
        ratio = (self.signs > 0).sum() / (self.signs < 0).sum()
        decoder.abs_().mul_(torch.where(self.signs > 0, 1.0, -ratio)[:, None])

    @torch.no_grad()
    def project(self, encoders: list[Tensor], decoder: Tensor) -> None:
        """Put weights that a step took to the other sign to zero; call it after every optimiser step.

        Args:
            encoders: tensors (H, D, K).
            decoder: (H*K, D).
        """
        for encoder in encoders:
            encoder.clamp_(min=0)
        decoder.masked_fill_(decoder * self.signs[:, None] < 0, 0.0)


def to_dale(model: Model, excitatory: float = 0.8, seed: int = 0) -> Model:
    """Return a copy of a trained model that obeys Dale's law and computes the same.

    Exact for the released model, dropout included, because both ends of each shift meet a LayerNorm (see the head of
    this page for what that says about the law). Not for masked weights, and not for models with an RMSNorm. The
    shifted weights share a large common part, which costs some of bfloat16's few digits.

    Args:
        model: has `encoder`, `encoder_v` (H, D, K) and `decoder` (H*K, D), as `bdh.BDH`.
        excitatory: share of a head's neurons that excite.
        seed: decides which; `neuron_signs` with the same arguments returns them.

    Raises:
        ValueError: the share leaves no neuron of one kind, or a part of the model forbids the shift.

    Examples:
        >>> import bdh
        >>> model = bdh.BDH(bdh.BDHConfig(n_layer=1, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4))
        >>> bool((to_dale(model).encoder >= 0).all())
        True
    """
    for part in model.modules():
        if isinstance(part, (Dendrites, ScaleFree)):
            raise ValueError(
                f"a model with {type(part).__name__} cannot be converted exactly: expected dense weights that read a "
                "whole LayerNorm; train it with DaleLaw instead"
            )
    norm = getattr(getattr(model, "config", None), "norm", "layer")
    if norm != "layer":
        raise ValueError(
            f"norm={norm!r}: expected 'layer', whose centring makes the shift free; train with Dale's law on"
        )
    changed = copy.deepcopy(model)
    encoder, encoder_v, decoder = (changed.get_parameter(name) for name in ("encoder", "encoder_v", "decoder"))
    law = DaleLaw(encoder.shape[0], encoder.shape[2], excitatory, seed).to(encoder.device)
    law.shift([encoder, encoder_v], decoder)
    return changed


def sign_purity(weight: Tensor) -> Tensor:
    """Return how far the outgoing synapses of each neuron agree in sign.

        purity_i = |sum_j W_ij| / sum_j |W_ij|        1: one sign;  about 0: as many of both

    Args:
        weight: (N, M), a row per sending neuron.

    Returns:
        (N,); 1 for a neuron without synapses, which breaks no law.
    """
    whole = weight.abs().sum(1)
    return torch.where(whole > 0, weight.sum(1).abs() / whole, 1.0)


def ei_balance(weight: Tensor) -> Tensor:
    """Return inhibition relative to excitation at each target: `sum_i |W_ij|` of negative over positive synapses.

    Args:
        weight: (N, M), a row per sending neuron.

    Returns:
        (M,); 1 is balanced, infinite where nothing excites.
    """
    return weight.clamp(max=0).sum(0).neg() / weight.clamp(min=0).sum(0)


class GraphPurity(NamedTuple):
    """Sign purity of each neuron's row in the graph from neuron to neuron."""

    raw: Tensor
    """(N,) in `decoder @ encoder`."""
    effective: Tensor
    """(N,) in `decoder @ P @ encoder`, with the centring P of the LayerNorm between them."""


@torch.no_grad()
def graph_purity(encoder: Tensor, decoder: Tensor) -> GraphPurity:
    """Return the sign purity of the neuron graph as it is written and as a model with LayerNorms uses it.

    The (N, N) graph is never held, only a block of its rows at a time; N^2 D multiply-adds, twice.

    Args:
        encoder: (H, D, K).
        decoder: (H*K, D).

    Examples:
        >>> encoder, decoder = torch.rand(1, 8, 64), torch.rand(64, 8)
        >>> purity = graph_purity(encoder, decoder)
        >>> purity.raw.min().item(), bool(purity.effective.mean() < 0.5)
        (1.0, True)
    """
    targets = encoder.transpose(0, 1).flatten(1)  # (D, N)
    centred = targets - targets.mean(0)
    raw, effective = (
        torch.cat([sign_purity(rows @ columns) for rows in decoder.split(_BLOCK)]) for columns in (targets, centred)
    )
    return GraphPurity(raw, effective)


def singular_value_entropy(weight: Tensor) -> float:
    """Return how evenly a map uses its directions (Li et al. 2023): `-sum p ln p / ln r` with p = values / their sum.

    Args:
        weight: (N, M).

    Returns:
        1 where all r = min(N, M) singular values are equal, 0 at rank one.
    """
    values: Tensor = torch.linalg.svdvals(weight.detach().double())
    return float(torch.special.entr(values / values.sum()).sum()) / math.log(len(values))
