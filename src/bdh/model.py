"""The Baby Dragon Hatchling: tokens -> embed -> L passes over one shared layer -> logits.

The names are those of the released code; in the paper (arXiv 2509.26507) the same things are called:

    released                 paper    what it is
    encoder    (H, D, K)     Dx       residual stream -> neurons x
    encoder_v  (H, D, K)     Dy       memory read -> gate y
    decoder    (H*K, D)      E        neurons -> residual stream
    x_sparse                 x        activity of the neurons, sparse and nonnegative
    y_sparse                 (none)   gate before the product
    xy_sparse                y        gated activity; what the decoder reads
    attn_out                 a*       memory read, rho_{t-1} x_t
    v                        v*       residual stream
    rho        (H, K, D)     rho      synaptic state per level, in the rotated frame
    (a view)                 sigma    synapse (i, j) = sum over past tokens of y_i x_j; rho = E sigma

Shapes: B batch, T tokens, L levels, H heads, N neurons in all, K = N/H neurons per head, D embedding, V vocabulary.
Neuron k of head h has the global id h*K + k, its row in `decoder`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bdh import ops
from bdh.config import BDHConfig
from bdh.ids import byte_ids, check_ids
from bdh.mechanisms import calibrating
from bdh.modes import evaluating
from bdh.parts import Carried, Parts
from bdh.state import State
from bdh.taps import Edit, Tap, at_level, composed, no_tap

__all__ = ["BDH", "MAPS", "State", "Tap", "cross_entropy", "evaluating"]

INIT_STD = 0.02
MAPS = ("encoder", "encoder_v", "decoder")
"""The weights with a neuron index."""


class BDH(nn.Module):
    """A Baby Dragon Hatchling language model, equal to the released one.

    Per level (paper, Def. 4 / Eq. 8, with the residual kept in v as the released code does):

        x   = relu(v Dx)                         neurons that fire
        a_t = sum_{tau<t} <R_t x_t, R_tau x_tau> v_tau       memory read, R = rotary position
        y   = relu(LN(a) Dy)                     gate
        v   = LN(v + LN((x * y) E))              write back

    LN is LayerNorm without parameters. The weights Dx, Dy, E are shared by all levels. The mechanisms that the config
    switches on take the place of single steps, see `bdh.parts`; without any this is the released model.

    Args:
        config: the shape and the mechanisms, see `BDHConfig`.

    Examples:
        >>> model = BDH.from_seed(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4), seed=0)
        >>> logits, loss = model(torch.tensor([[72, 105]]), targets=torch.tensor([[105, 33]]))
        >>> logits.shape, round(loss.item(), 1)
        (torch.Size([1, 2, 256]), 5.5)
    """

    def __init__(self, config: BDHConfig) -> None:
        super().__init__()
        self.config = config
        self.edits: tuple[Edit, ...] = ()
        """What acts on every walk, whoever begins it; `bdh.lens.intervene` puts it here and takes it away."""
        H, D, K = config.n_head, config.n_embd, config.neurons_per_head
        self.embed = nn.Embedding(config.vocab_size, D)
        self.encoder = nn.Parameter(torch.empty(H, D, K))
        self.encoder_v = nn.Parameter(torch.empty(H, D, K))
        self.decoder = nn.Parameter(torch.empty(H * K, D))
        self.lm_head = nn.Parameter(torch.empty(D, config.vocab_size))
        self.drop = nn.Dropout(config.dropout)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=INIT_STD)
        self._norm = F.layer_norm if config.norm == "layer" else F.rms_norm
        self.parts = Parts(config, drive_std=INIT_STD * D**0.5)
        if not self.encoder.is_meta:  # there are no weights yet, they bring their own order
            self.parts.to(self.encoder.device).constrain([self.encoder, self.encoder_v], self.decoder)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "edits": ()}  # a copy is a model of its own: what acts on this one stays here

    @classmethod
    def from_seed(cls, config: BDHConfig, seed: int) -> BDH:
        """Return a model whose random weights depend on `seed` alone; the caller's random state is untouched."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(config)

    def forward(
        self, idx: Tensor, targets: Tensor | None = None, *, tap: Tap | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Read whole sequences from an empty state.

        Args:
            idx: (B, T) token ids.
            targets: (B, T) ids to predict; -100 is left out of the loss.
            tap: see `bdh.lens.record`.

        Returns:
            logits (B, T, V), and the mean cross-entropy in nats per token (None without targets).

        Raises:
            ValueError: wrong shape, type or token id.
        """
        logits, _ = self.walk(idx, None, tap, wants_state=False)
        if targets is None:
            return logits, None
        return logits, cross_entropy(logits, targets)

    def advance(
        self,
        idx: Tensor,
        state: State | None = None,
        *,
        tap: Tap | None = None,
        constant: bool = False,
        fresh: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Read any number of tokens after those that `state` has read.

        Splitting a text into calls in any way gives the same logits and the same final state as one call.

        Args:
            idx: (B, T) token ids.
            state: what an earlier call returned; None starts from nothing. It is not changed.
            tap: see `bdh.lens.record`.
            constant: no gradient goes through the state, before or after, as where training carries it from step to
                step; then native kernels compute all levels in one call, as without a state.
            fresh: (B, T) true where a text begins: that token and those after it see nothing before it.

        Returns:
            logits (B, T, V) and the state after the last token.

        Raises:
            ValueError: wrong shape, type or token id, or a state of another model or batch size.

        Examples:
            >>> model = BDH(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4))
            >>> _, state = model.advance(torch.tensor([[1, 2, 3]]))
            >>> logits, state = model.advance(torch.tensor([[4]]), state)
            >>> state.position
            4
        """
        logits, after = self.walk(idx, state, tap, wants_state=True, constant=constant, fresh=fresh)
        assert after is not None
        return logits, after

    def walk(
        self,
        idx: Tensor,
        state: State | None = None,
        tap: Tap | None = None,
        *,
        wants_state: bool,
        owns_state: bool = False,
        constant: bool = False,
        fresh: Tensor | None = None,
    ) -> tuple[Tensor, State | None]:
        """Embed, pass L times, read out: shared by `forward` and `advance`. `owns_state`: its memory is written to."""
        assert wants_state or (state is None and fresh is None), "a pass that hands no state on reads none"
        check_ids(idx, self.config.vocab_size)
        if fresh is not None and not self.parts.forgets:
            raise ValueError("fresh: expected a model that carries nothing but its plain memory; cut the text there")
        if fresh is not None and (fresh.shape, fresh.dtype) != (idx.shape, torch.bool):
            raise ValueError(
                f"fresh: expected bool {tuple(idx.shape)} as the ids, got {fresh.dtype} {tuple(fresh.shape)}"
            )
        if state is not None:
            state.require(self.config.n_layer, self.parts.state_shapes(idx.shape[0]))
            state = state.detach() if constant else state
        position = state.position if state is not None else 0
        listen = composed(self.edits, tap, idx, state)
        v = listen("embed", self._normed(self.embed(idx)))  # (B, T, D)
        # what is looked at is always composed, and so is eval mode: recording changes not even the rounding
        unseen = self.training and listen is no_tap and (constant or not wants_state)
        found = self._all_levels(v, state, position, wants_state, fresh) if unseen else None
        if found is None:
            levels = []
            turn = self._turn(position, idx.shape[1])
            for level in range(self.config.n_layer):
                before = state.level(level) if state is not None else {}
                carried = Carried(before, position, wanted=wants_state, owned=owns_state, fresh=fresh)
                v = self._layer(level, v, turn, carried, partial(at_level, listen, level))
                levels.append(carried.after)
        else:
            v, levels = found
        logits = listen("logits", v @ self.lm_head)  # (B, T, V)
        after = State.of_levels(levels, position + idx.shape[1]) if wants_state else None
        return logits, after.detach() if after and constant else after

    def _all_levels(
        self, v: Tensor, state: State | None, position: int, wants_state: bool, fresh: Tensor | None
    ) -> tuple[Tensor, list[dict[str, Tensor]]] | None:
        """Pass all levels in one call, without gradients through a state; None where they are to be composed."""
        rho = state.rho if state is not None else ()
        path = self._path(v.shape[0] * v.shape[1], v, *rho)
        if path == "composed" or (path == "tiled" and wants_state):
            return None
        c, maps = self.config, (self.encoder, self.encoder_v, self.decoder)
        how: dict[str, Any] = {"n_layer": c.n_layer, "dropout": self.drop.p, "winners": c.winners_per_head}
        if not wants_state:
            return ops.levels(path, v, *maps, **how), []
        v, after = ops.levels_from(ops.Memory(rho, position, fresh), v, *maps, **how)
        return v, [{"rho": each} for each in after]

    def step(self, idx: Tensor, state: State, weights: ops.StepWeights) -> tuple[Tensor, State]:
        """Read one token of each sequence with the native kernels, without dropout or gradients.

        Args:
            idx: (B, 1) token ids.
            state: given away, its memory is written to.
            weights: from `bdh.generate.step_weights`.

        Returns:
            logits (B, 1, V) and the state.
        """
        check_ids(idx, self.config.vocab_size)
        state.require(self.config.n_layer, self.parts.state_shapes(idx.shape[0]))
        turn = self._turn(state.position, 1)
        with torch.no_grad():
            levels = [state.level(level) for level in range(self.config.n_layer)]
            v = ops.step_levels(self._normed(self.embed(idx)), weights, levels, turn, state.position)
            return v @ self.lm_head, replace(state, position=state.position + 1)

    def _layer(self, level: int, v: Tensor, turn: Tensor, carried: Carried, tap: Tap) -> Tensor:
        """One level: encode -> fire -> attend -> gate -> decode -> residual."""
        parts = self.parts
        x, spikes = parts.fire(level, tap("x_pre", parts.drive(v, self.encoder)), carried)  # (B, H, T, K)
        if spikes is not None:
            tap("spikes", spikes)
        x = tap("x_sparse", x)
        a = tap("attn_out", parts.attend(ops.rotate(x, turn), tap("value", v), carried))  # (B, H, T, D)
        y = parts.gate(level, v, tap("y_pre", self._normed(a) @ self.encoder_v), carried)  # (B, H, T, K)
        y = tap("y_sparse", y)
        xy = tap("xy_sparse", ops.product(x, y))
        return tap("v", self._normed(v + self._normed(self._write(xy)) + parts.recall(v, carried)))

    def _turn(self, position: int, tokens: int) -> Tensor:  # this and the next are others in `bdh.train.neurons`
        return ops.rotation(self.config.neurons_per_head, position, tokens, like=self.encoder)

    def _write(self, xy: Tensor) -> Tensor:
        stays: Tensor = self.drop(xy)
        return stays.transpose(1, 2).flatten(2) @ self.decoder  # (B, T, D)

    def _normed(self, x: Tensor) -> Tensor:
        return self._norm(x, x.shape[-1:])

    def _path(self, tokens: int, *tensors: Tensor) -> ops.LevelsPath:
        if not self.parts.plain:
            return "composed"
        return ops.levels_backend(*tensors, activities=self.config.activities(tokens))

    # what training calls beside the pass

    def calibrate(self, idx: Tensor) -> None:
        """Set the thresholds of spiking neurons, level after level, so that on these tokens their target share fires.

        Does nothing to a model without such neurons.

        Args:
            idx: (B, T) token ids, a first batch.
        """
        with evaluating(self), calibrating(self):
            self(idx)

    def after_step(self) -> None:
        """Keep what an optimiser step must not break (masks, signs), and let what adapts slowly adapt.

        Call it after every step of an optimiser; it does nothing to the released model.
        """
        self.parts.after_step([self.encoder, self.encoder_v], self.decoder)

    # what users reach for from the model; the work is done in the rooms that these methods name

    def generate(self, idx: Tensor, max_new_tokens: int, **sampling: Any) -> Tensor:
        """Continue each sequence by `max_new_tokens` tokens; see `bdh.generate.generate` for the options.

        Returns:
            (B, T + max_new_tokens) token ids.
        """
        from bdh.generate import generate

        return generate(self, idx, max_new_tokens, **sampling)

    def stream(self, idx: Tensor, max_new_tokens: int, **sampling: Any) -> Iterator[Tensor]:
        """Yield the new tokens (B,) of `generate` one at a time, as they come."""
        from bdh.generate import stream

        return stream(self, idx, max_new_tokens, **sampling)

    def get_spikes(self, text_or_idx: str | bytes | Tensor) -> list[Tensor]:
        """Return which neurons spike at each token of each level; dropout is off.

        Args:
            text_or_idx: text (read as UTF-8 bytes) or token ids (B, T).

        Returns:
            Spikes, 0 or 1, of each level as a sparse tensor (B, T, N), N by global neuron id.

        Raises:
            ValueError: the neurons of this model do not spike.

        Examples:
            >>> config = BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4, variant="hatching")
            >>> spikes = BDH(config).get_spikes("The dragon")
            >>> spikes[0].shape
            torch.Size([1, 10, 64])
        """
        if not self.config.lif.on:
            raise ValueError("lif.tau=None: expected spiking neurons, variant hatching; see get_sparse_activations")
        return self._collect("spikes", text_or_idx)

    def get_sparse_activations(self, text_or_idx: str | bytes | Tensor) -> list[Tensor]:
        """Return which neurons fire, and how strongly, at each token of each level; dropout is off.

        Args:
            text_or_idx: text (read as UTF-8 bytes) or token ids (B, T).

        Returns:
            x_sparse of each level as a sparse tensor (B, T, N), N by global neuron id.

        Examples:
            >>> model = BDH(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4))
            >>> levels = model.get_sparse_activations("The dragon")
            >>> strength, neuron = levels[0].to_dense().amax(dim=(0, 1)).topk(10)
        """
        return self._collect("x_sparse", text_or_idx)

    def _collect(self, signal: str, text_or_idx: str | bytes | Tensor) -> list[Tensor]:
        idx = self.as_ids(text_or_idx)
        seen: list[Tensor] = []

        def keep(name: str, tensor: Tensor) -> Tensor:
            if name.endswith(f".{signal}"):
                seen.append(tensor.transpose(1, 2).flatten(2).to_sparse())
            return tensor

        with evaluating(self):
            self(idx, tap=keep)
        return seen

    def resize_vocab(self, new_size: int) -> None:
        """Grow or shrink the vocabulary in place; rows that exist in both sizes keep their weights.

        Frozen parameters stay frozen, their new rows too.
        An optimiser made before this call holds the old parameters: make a new one.
        """
        config = replace(self.config, vocab_size=new_size)
        kept = min(new_size, self.config.vocab_size)
        embed, lm_head = self.embed.weight, self.lm_head
        self.embed = nn.Embedding(new_size, config.n_embd, device=embed.device, dtype=embed.dtype)
        self.lm_head = nn.Parameter(lm_head.data.new_empty(config.n_embd, new_size))
        for new, old in ((self.embed.weight, embed), (self.lm_head, lm_head)):
            nn.init.normal_(new, std=INIT_STD)
            new.requires_grad_(old.requires_grad)
        self.embed.weight.data[:kept] = embed.data[:kept]
        self.lm_head.data[:, :kept] = lm_head.data[:, :kept]
        self.config = config

    def as_ids(self, text_or_idx: str | bytes | Tensor) -> Tensor:
        """Return the UTF-8 bytes of a text as token ids (1, T) on the model's device; ids pass through.

        Bytes of a command line that are not UTF-8, which Python holds as surrogates, count as the bytes they were.

        Raises:
            ValueError: no byte vocabulary, or a lone surrogate, which has no bytes.
        """
        if isinstance(text_or_idx, Tensor):
            return text_or_idx
        return byte_ids(text_or_idx, self.config.vocab_size).to(self.encoder.device)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean loss in nats per token of logits (B, T, V), in float32 at least; targets of -100 do not count."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.flatten(0, 1).to(wide), targets.flatten())
