"""What each level would predict, and which neurons made a prediction.

The residual stream v is normalised after every level, so the readout can be put to any of them (the logit lens):

    logits_l = v_l W,      v_0 the embedding, W = lm_head, logits_L the prediction

and since v_{l+1} = LN(v_l + LN(w_l) + h_l) with w_l = sum_n xy_l[n] E[n], a logit is a sum over all neurons of all
levels once the divisors of the norms are taken as they were (h is what HiPPO recalls, 0 without):

    <v_L, u> = <v_0, u> / S_0 + sum_l sum_n xy_l[n] <P E[n], u> / (s(w_l) S_l) + sum_l <P h_l, u> / S_l
    S_l = prod_{m >= l} s(z_m),    z_m = v_m + LN(w_m) + h_m

with s what the norm divides by and P z = z - mean(z) (under RMSNorm P z = z). This is exact, and it is the direct part
only: what a neuron makes later levels do is counted there.

Shapes: T tokens, L levels, N neurons in all, D embedding, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bdh.lens.energy import check_one
from bdh.lens.inspection import plain
from bdh.lens.memory import spread
from bdh.lens.record import record
from bdh.model import BDH, evaluating
from bdh.parts import Carried


@dataclass(frozen=True)
class Guess:
    """What one depth predicts after one token."""

    top: tuple[tuple[int, float], ...]
    """Most likely tokens with their probabilities."""
    rank: int | None
    """Of the true next token, 1 is the most likely; None after the last token."""
    kl: float
    """From the prediction of the last level to this one, KL(p_L || p_l) in nats; 0 at the last level."""


@dataclass(frozen=True)
class LogitLens:
    """What each depth predicts after each token."""

    ids: tuple[int, ...]
    """The tokens."""
    depths: tuple[tuple[Guess, ...], ...]
    """By depth, 0 for the embedding alone, l for the stream after l levels, then by token."""
    uniform_kl: float
    """Mean KL from the last prediction to one that knows nothing: ln V less the mean entropy."""
    vocab_size: int

    def mean_kl(self, depth: int) -> float:
        """Return the mean over tokens."""
        return sum(guess.kl for guess in self.depths[depth]) / len(self.ids)

    def mean_rank(self, depth: int) -> float | None:
        """Return the mean rank of the true next token; None for a text of one token."""
        ranks = [guess.rank for guess in self.depths[depth] if guess.rank is not None]
        return sum(ranks) / len(ranks) if ranks else None

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that goes into JSON."""
        values: dict[str, Any] = plain(dataclasses.asdict(self))
        return values


def logit_lens(model: BDH, text_or_idx: str | bytes | Tensor, top: int = 3) -> LogitLens:
    """Read out every level as if it were the last.

    Args:
        model: the model; dropout is off.
        text_or_idx: text (read as UTF-8 bytes) or token ids (1, T).
        top: how many tokens to name.

    Raises:
        ValueError: more than one text, token ids that the model refuses, or top outside 1..V.

    Examples:
        >>> from bdh import BDHConfig
        >>> model = BDH.from_seed(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4), 0)
        >>> found = logit_lens(model, "euro")
        >>> len(found.depths), found.depths[2][0].kl
        (3, 0.0)
    """
    idx = model.as_ids(text_or_idx)
    check_one(idx)
    if not 1 <= top <= model.config.vocab_size:
        raise ValueError(f"top={top}: expected 1..{model.config.vocab_size}")
    with evaluating(model):
        logits, trace = record(model, idx, ("embed", "layers.*.v"))
        streams = torch.stack(list(trace.values()))[:, 0]  # (L+1, T, D)
        read = [*(v @ model.lm_head for v in streams[:-1]), logits[0]]
    log_p = torch.stack(read).double().log_softmax(-1).cpu()  # (L+1, T, V)
    kl = (log_p[-1].exp() * (log_p[-1] - log_p)).sum(-1)
    likely, tokens = log_p.exp().topk(top)
    true = idx[0, 1:].cpu()
    ahead = log_p[:, :-1] > log_p[:, :-1].gather(-1, true.expand(len(log_p), -1)[..., None])
    ranks = (ahead.sum(-1) + 1).tolist()
    T = idx.shape[1]
    depths = tuple(
        tuple(
            Guess(
                tuple(zip(tokens[depth, t].tolist(), likely[depth, t].tolist(), strict=True)),
                ranks[depth][t] if t < T - 1 else None,
                max(0.0, kl[depth, t].item()),
            )
            for t in range(T)
        )
        for depth in range(len(log_p))
    )
    uniform = torch.tensor(model.config.vocab_size).double().log() + (log_p[-1].exp() * log_p[-1]).sum(-1).mean()
    return LogitLens(tuple(idx[0].tolist()), depths, uniform.item(), model.config.vocab_size)


@dataclass(frozen=True)
class NeuronPart:
    """What one neuron at one level adds to a logit directly."""

    level: int
    neuron: int
    """Global id."""
    activation: float
    """xy of the neuron."""
    part: float


@dataclass(frozen=True)
class Attribution:
    """A logit as the sum of what made it."""

    position: int
    """Token after which the prediction is made."""
    token: int
    against: int | None
    """The logit is that of `token` less that of this one; None: less the mean of all tokens."""
    logit: float
    embedding: float
    """Part of the embedding of the token that was read."""
    levels: tuple[float, ...]
    """Parts of the levels' neurons, all of them; with `embedding` and `recalled` they sum to `logit`."""
    recalled: tuple[float, ...]
    """Parts of what HiPPO recalled, by level; zeros without it."""
    neurons: tuple[NeuronPart, ...]
    """The largest parts, of either sign."""
    firing: int
    """(level, neuron) pairs with a part that is not zero."""
    absolute: float
    """Sum of the sizes of all neurons' parts."""

    @property
    def share(self) -> float:
        """Of `absolute`, what the named neurons hold."""
        return sum(abs(one.part) for one in self.neurons) / self.absolute if self.absolute else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that goes into JSON."""
        return {**plain(dataclasses.asdict(self)), "share": plain(self.share)}


def attribute_logit(
    model: BDH,
    text_or_idx: str | bytes | Tensor,
    position: int,
    token: int | None = None,
    against: int | None = None,
    top: int = 20,
) -> Attribution:
    """Split a logit, or the difference of two, exactly by the neurons that wrote it; the direct part of each.

    Args:
        model: the model; dropout is off.
        text_or_idx: text (read as UTF-8 bytes) or token ids (1, T).
        position: token after which the prediction is made.
        token: whose logit; None is the token that is then most likely.
        against: the token whose logit is subtracted. None subtracts the mean of all tokens, since a logit says
            nothing but by its difference to others.
        top: how many neurons to name.

    Raises:
        ValueError: a position that there is not, tokens that the model does not know, or top < 1.

    Examples:
        >>> from bdh import BDHConfig
        >>> model = BDH.from_seed(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4), 0)
        >>> found = attribute_logit(model, "one euro", 7, token=ord("s"))
        >>> round(found.embedding + sum(found.levels) - found.logit, 5) + 0.0
        0.0
    """
    idx = model.as_ids(text_or_idx)
    check_one(idx)
    if not 0 <= position < idx.shape[1]:
        raise ValueError(f"position={position}: expected 0..{idx.shape[1] - 1}")
    if top < 1:
        raise ValueError(f"top={top}: expected an integer >= 1")
    for field, value in (("token", token), ("against", against)):
        if value is not None and not 0 <= value < model.config.vocab_size:
            raise ValueError(f"{field}={value}: expected 0..{model.config.vocab_size - 1}")
    idx = idx[:, : position + 1]
    with evaluating(model):
        logits = model(idx)[0][0, -1]
        chosen = int(logits.argmax()) if token is None else token
        head = model.lm_head
        direction = head[:, chosen] - (head.mean(1) if against is None else head[:, against])
        parts = split_stream(model, idx, direction)
    value = logits[chosen] - (logits.mean() if against is None else logits[against])
    size = parts.neurons.abs().flatten()
    best = size.topk(min(top, int((size > 0).sum()))).indices.tolist()
    N = model.config.n_neurons
    return Attribution(
        position, chosen, against, value.item(), parts.embedding.item(),
        tuple(parts.neurons.sum(1).tolist()), tuple(parts.recalled.tolist()),
        tuple(
            NeuronPart(at // N, at % N, parts.activation.flatten()[at].item(), parts.neurons.flatten()[at].item())
            for at in best
        ),
        int((size > 0).sum()), size.sum().item(),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Parts:
    """What the last token's stream v_L has along a direction, by what wrote it; all of it sums to <v_L, u>."""

    embedding: Tensor
    """()"""
    neurons: Tensor
    """(L, N)"""
    recalled: Tensor
    """(L,)"""
    activation: Tensor
    """(L, N) xy of the neurons."""


@torch.no_grad()
def split_stream(model: BDH, idx: Tensor, direction: Tensor) -> Parts:
    """Split <v_L, u> after the last token of a text (1, T) along a direction u (D,); see the equation above.

    Raises:
        ValueError: more than one text, or token ids that the model refuses.
    """
    check_one(idx)
    levels = range(model.config.n_layer)
    with evaluating(model):
        _, trace = record(model, idx, ("embed", "layers.*.value", "layers.*.xy_sparse"), limit=None)
        recalled = [model.parts.recall(trace[f"layers.{level}.value"], Carried()) for level in levels]
    wide = torch.promote_types(direction.dtype, torch.float32)
    active = torch.stack([trace.neurons("xy_sparse", level)[0, -1] for level in levels]).to(wide)  # (L, N)
    h = torch.stack([r[0, -1] if isinstance(r, Tensor) else torch.zeros_like(direction) for r in recalled]).to(wide)
    entering = torch.stack([trace[f"layers.{level}.value"][0, -1] for level in levels]).to(wide)  # (L, D)
    decoder, u = model.decoder.to(wide), direction.to(wide)
    centred = model.config.norm == "layer"
    if centred:
        u = u - u.mean()  # <P z, u> = <z, P u>
    written = active @ decoder  # (L, D)
    inner = spread(model, written)  # (L, 1)
    normed = (written - written.mean(-1, keepdim=True) if centred else written) / inner
    outer = spread(model, entering + normed + h)[:, 0]
    through = outer.flip(0).cumprod(0).flip(0)  # S_l
    return Parts(
        embedding=trace["embed"][0, -1].to(wide) @ u / through[0],
        neurons=active * (decoder @ u) / (inner * through[:, None]),
        recalled=h @ u / through,
        activation=active,
    )
