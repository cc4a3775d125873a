"""Changes of what the memory holds and passes on, among the interventions: tokens erased, synapses scaled.

Shapes: B batch, T tokens, H heads, K neurons per head, D embedding.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bdh import ops
from bdh.lens.interventions import Intervention, Walk, check_finite, check_levels, inside, integers, is_at, levels
from bdh.lens.memory import check_neurons, receivers, refuse_pairing, rows_read, spread
from bdh.mechanisms import KernelSTDP
from bdh.model import BDH, State, evaluating

_MEMORIES = {"rho", "fading", "paired"}
"""Parts of a level's state that have a row per neuron, which its synapses are linear in."""


@dataclass(frozen=True)
class EraseTokens(Intervention):
    """Let tokens leave nothing in the memory: rho_t = sum over the other tokens tau < t of q_tau^T v_tau.

    They are read as ever and do not write, so what comes later never sees them through the memory, at any level, and
    the state has nothing of them either. Only the memory of attention is meant: membranes, HiPPO and the mean of the
    neuromodulation keep what they took. The tokens must be read under the intervention; to take them out of a state
    that has read them already, see `erase_tokens`.

    Args:
        positions: of the tokens in the text.
        layers: levels; None is all.

    Raises:
        ValueError: no position, or one that is no integer >= 0; by `intervene` also levels that the model does not
            have, or STDP of the form "trace".

    Examples:
        >>> EraseTokens([1, 2])
        EraseTokens(positions=(1, 2), layers=None)
    """

    positions: Sequence[int]
    layers: Sequence[int] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "positions", integers("positions", self.positions))
        object.__setattr__(self, "layers", levels("layers", self.layers))

    def check(self, model: BDH) -> None:
        """Raise ValueError for levels that the model does not have, or a memory of pairs of tokens."""
        refuse_pairing(model, "EraseTokens")  # there the key of a token also pairs with the values of later ones
        check_levels(model, self.layers)

    def asked_positions(self) -> Collection[int]:
        """Return the positions to be erased."""
        return self.positions

    def begin(self, walk: Walk, read: Collection[int]) -> None:
        """Raise ValueError where a token was read before the intervention began."""
        if late := [at for at in self.positions if at < walk.position and at not in read]:
            raise ValueError(
                f"positions: token {late[0]} was read before the intervention began, and the state has it; "
                "read the text inside the with-block, or take it out of the state with erase_tokens"
            )

    def change(self, tensor: Tensor, level: int, place: str, walk: Walk) -> Tensor:
        """Return the values with nothing at the erased tokens."""
        if place != "value" or not is_at(level, self.layers):
            return tensor
        here, _ = inside(self.positions, walk)
        if not here:
            return tensor
        kept = torch.ones(walk.tokens, 1, dtype=torch.bool, device=tensor.device)
        kept[here] = False
        return tensor.masked_fill(~kept, 0.0)


@dataclass(frozen=True)
class ScaleSynapse(Intervention):
    """Scale what neuron j passes on through the memory, to one gate i or to all of its head.

        all:  a_t <- a_t + (factor - 1) x_t[j] rho_t[j]                        row j of rho, as the token reads it
        one:  u_t[i] <- u_t[i] + (factor - 1) sigma_t(i, j) x_t[j] / s(a_t)    sigma as in `bdh.lens.sigma`

    u is the drive of the gate (`y_pre`), s what the norm divides the read a_t by. What neuron j writes, and its own
    product with the gate, stay as they are. Several act on the memory as it is: their changes add up.

    Args:
        target: gate i, by global id; None is all.
        source: neuron j, by global id; of the same head as i, since heads have a memory each.
        factor: 0 cuts the synapse, 1 changes nothing.
        layers: levels; None is all.

    Raises:
        ValueError: something that is no id, a factor that is not finite; by `intervene` also neurons and levels that
            the model does not have, two neurons of different heads, or STDP of the form "trace".

    Examples:
        >>> ScaleSynapse(None, 5, factor=0.0)
        ScaleSynapse(target=None, source=5, factor=0.0, layers=None)
    """

    target: int | None
    source: int
    factor: float
    layers: Sequence[int] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", integers("source", [self.source])[0])
        if self.target is not None:
            object.__setattr__(self, "target", integers("target", [self.target])[0])
        object.__setattr__(self, "layers", levels("layers", self.layers))
        check_finite("factor", self.factor)

    def check(self, model: BDH) -> None:
        """Raise ValueError where the model has no such synapse."""
        refuse_pairing(model, "ScaleSynapse")
        check_neurons(model, [self.source], "source")
        check_levels(model, self.layers)
        self.check_heads(model)

    def check_heads(self, model: BDH) -> None:
        """Raise ValueError for a target that the model does not have, or has in another head."""
        if self.target is not None:
            check_neurons(model, [self.target], "target")
            heads = self.target // (K := model.config.neurons_per_head), self.source // K
            if heads[0] != heads[1]:
                raise ValueError(
                    f"target, source: expected neurons of one head, got heads {heads[0]} and {heads[1]}; "
                    "a gate reads the memory of its own head only"
                )

    def asked_rows(self, level: int) -> tuple[int, ...]:
        """Return the source, at the levels that are meant."""
        return (self.source,) if is_at(level, self.layers) else ()

    def change(self, tensor: Tensor, level: int, place: str, walk: Walk) -> Tensor:
        """Return the read, or the drive of the gate, with the synapse scaled."""
        if place != ("attn_out" if self.target is None else "y_pre") or not is_at(level, self.layers):
            return tensor
        head, k = divmod(self.source, walk.model.config.neurons_per_head)
        rows = walk.rows[level, self.source]  # (B, T, D)
        passed = (self.factor - 1) * walk.seen[level, "x_sparse"][:, head, :, k, None].to(rows) * rows
        changed = tensor.clone()
        if self.target is None:
            changed[:, head] += passed.to(tensor)
            return changed
        receiver = receivers(walk.model, torch.tensor([self.target], device=rows.device))[0].to(rows)
        read = walk.seen[level, "attn_out"][:, head].to(rows)
        drive = (passed @ receiver) / spread(walk.model, read)[..., 0]  # (B, T)
        changed[:, head, :, self.target % walk.model.config.neurons_per_head] += drive.to(tensor)
        return changed


@torch.no_grad()
def erase_tokens(
    model: BDH,
    idx: Tensor,
    positions: Sequence[int],
    state: State | None = None,
    *,
    layers: Sequence[int] | None = None,
) -> State:
    """Read tokens, then take out of the state what some of them wrote: rho_T - sum over the erased of q_tau^T v_tau.

    What the other tokens wrote stays as it was, though at deeper levels it depends on the erased ones: this is the
    direct effect. `EraseTokens` has the whole effect, since there nobody ever sees them; at level 0, where what a token
    writes depends on that token alone, both are the same.

    Args:
        model: the model; dropout is off.
        idx: (B, T) token ids.
        positions: of tokens in the text, all of them in `idx`.
        state: what was read before; it is not changed.
        layers: levels; None is all.

    Returns:
        The state after the tokens.

    Raises:
        ValueError: positions outside the tokens, levels that the model does not have, or STDP of the form "trace".

    Examples:
        >>> from bdh import BDHConfig
        >>> model = BDH(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4))
        >>> state = erase_tokens(model, torch.tensor([[5, 6]]), [0, 1])
        >>> state.position, state.rho[0].abs().max().item() < 1e-6
        (2, True)
    """
    erased = EraseTokens(positions, layers)
    erased.check(model)
    walk = Walk(model, idx.shape[-1], state)
    here, _ = inside(erased.positions, walk)
    if len(here) < len(erased.positions):
        last = walk.position + walk.tokens - 1
        raise ValueError(f"positions: expected {walk.position}..{last}, got {list(erased.positions)}")
    seen: dict[str, Tensor] = {}

    def keep(name: str, tensor: Tensor) -> Tensor:
        if name.endswith((".x_sparse", ".value")):
            seen[name] = tensor[..., here, :]
        return tensor

    with evaluating(model):
        _, after = model.advance(idx, state, tap=keep)
    turn = ops.rotation(model.config.neurons_per_head, walk.position, walk.tokens, like=model.encoder)[here]
    at = torch.tensor(here, device=idx.device) + walk.position
    levels = [after.level(level) for level in range(model.config.n_layer)]
    for level in range(model.config.n_layer):
        if is_at(level, erased.layers):
            x, value = seen[f"layers.{level}.x_sparse"], seen[f"layers.{level}.value"]
            levels[level] |= _without(model, levels[level], ops.rotate(x, turn), value, at)
    return State.of_levels(levels, after.position)


@torch.no_grad()
def scale_pair(
    model: BDH,
    state: State,
    source: int,
    factor: float,
    target: int | None = None,
    *,
    layers: Sequence[int] | None = None,
) -> State:
    """Scale the synapses of a neuron pair in a state, to all gates of its head or to one; then go on from it.

        all:  rho[j] <- factor rho[j]
        one:  rho[j] <- rho[j] + (factor - 1) <r_i, rho[j]> r_i / ||r_i||^2,      r_i = Dy[:, i] - mean(Dy[:, i])

    for both neurons j of the pair, in every memory that the level keeps. Both turn together, so a change of one alone
    would be another change at the next token; of the pair it is the same at every later one, and what is written later
    adds to it. "one" makes sigma(i, j) the factor times what it was with the smallest change of rho there is; gates
    whose r is not at a right angle to r_i change with it, sigma(i', j) by (factor - 1) sigma(i, j) <r_i', r_i> over
    ||r_i||^2. `ScaleSynapse` leaves the others alone, but acts only as long as its block lasts.

    Args:
        model: the model.
        state: what was read; it is not changed.
        source: either neuron of the pair, by global id.
        factor: 0 forgets, 1 changes nothing.
        target: gate i, by global id, of the same head; None is all.
        layers: levels; None is all.

    Returns:
        The changed state, to be saved or gone on from.

    Raises:
        ValueError: neurons or levels that the model does not have, neurons of two heads, a factor that is not finite,
            or a state of another model.

    Examples:
        >>> from bdh import BDHConfig
        >>> from bdh.lens import sigma
        >>> model = BDH(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4))
        >>> _, state = model.advance(torch.tensor([[1, 2, 3]]))
        >>> changed = scale_pair(model, state, source=5, factor=0.5, target=3)
        >>> torch.allclose(sigma(model, changed, 1, 3, [4, 5]), 0.5 * sigma(model, state, 1, 3, [4, 5]))
        True
    """
    meant = ScaleSynapse(target, source, factor, layers)
    check_neurons(model, [source], "source")
    check_levels(model, meant.layers)
    meant.check_heads(model)
    state.require(model.config.n_layer, model.parts.state_shapes(state.batch_size))
    head, k = divmod(source, model.config.neurons_per_head)
    pair = slice(k // 2 * 2, k // 2 * 2 + 2)
    levels = [state.level(level) for level in range(model.config.n_layer)]
    for level, parts in enumerate(levels):
        if not is_at(level, meant.layers):
            continue
        for name in _MEMORIES & parts.keys():
            rows = parts[name][:, head, pair]  # (B, 2, D)
            passed = rows
            if target is not None:
                receiver = receivers(model, torch.tensor([target], device=rows.device))[0].to(rows)
                passed = (rows @ receiver)[..., None] * receiver / receiver.square().sum()
            changed = parts[name].clone()
            changed[:, head, pair] = rows + (factor - 1) * passed
            levels[level] = levels[level] | {name: changed}
    return State.of_levels(levels, state.position)


def _without(model: BDH, now: Mapping[str, Tensor], q: Tensor, v: Tensor, at: Tensor) -> dict[str, Tensor]:
    """The memories of a level less what tokens at these positions wrote, from their q (B, H, P, K) and v (B, P, D)."""
    rho, part = now["rho"], model.parts.stdp
    left: dict[str, Tensor] = {"rho": rho - (q.mT @ v[:, None]).to(rho)}
    if isinstance(part, KernelSTDP):
        rate = part.rate().to(q.dtype)[:, None, None]
        late = now["fading_at"][:, :, None] - 1 - at[:, None]  # (B, H, P, K)
        left["fading"] = now["fading"] - ((q * torch.exp(-rate * late)).mT @ v[:, None]).to(now["fading"])
    return left


def remember(walk: Walk, level: int, place: str, tensor: Tensor, asked: Iterable[Intervention]) -> None:
    """Keep what synapses need, and find their rows before the memory is written to."""
    if place not in ("x_sparse", "value", "attn_out"):
        return
    rows = sorted({row for one in asked if isinstance(one, ScaleSynapse) for row in one.asked_rows(level)})
    if not rows:
        return
    walk.seen[level, place] = tensor
    if place == "value":
        found = rows_read(walk.model, level, walk.seen[level, "x_sparse"], tensor, walk.state, rows)
        walk.rows |= {(level, row): found[:, :, n] for n, row in enumerate(rows)}
