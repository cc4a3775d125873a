"""A model whose neurons are shared out over processes, for models and states that do not fit one device.

Everything that is large has n in its shape and is cut along it: the maps (n d each), the state (n d per level and
sequence), the activity (n per token and level). What the processes tell each other has not: with v, the residual
stream, on all of them,

    read    a = sum over ranks of rho_r x_r                    (B, T, D) per head, only where heads are cut
    write   (x * y) E = sum over ranks of (x_r * y_r) E_r      (B, T, D)

Shapes: B batch, T tokens, H heads, N neurons in all, K = N/H neurons per head, D embedding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bdh import ops
from bdh.config import BDHConfig
from bdh.model import BDH, MAPS, State, Tap
from bdh.train.distributed import World


@dataclass(frozen=True)
class Share:
    """Which neurons belong to a rank: those of whole heads, or a part of one head.

    Raises:
        ValueError: they cannot be shared out.

    Examples:
        >>> config = BDHConfig(n_layer=1, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4)    # 32 per head
        >>> Share(config, World(1, 2)).heads, Share(config, World(1, 2)).neurons
        (slice(1, 2, None), slice(0, 32, None))
        >>> Share(config, World(1, 4)).heads, Share(config, World(1, 4)).neurons
        (slice(0, 1, None), slice(16, 32, None))
    """

    config: BDHConfig
    """Of the whole model."""
    world: World

    def __post_init__(self) -> None:
        c, size = self.config, self.world.size
        if not c.released:
            raise ValueError("neurons are shared out of a model without mechanisms: expected variant bdh")
        if c.n_head % size and size % c.n_head:
            raise ValueError(f"{size} processes: expected a divisor or a multiple of n_head={c.n_head}, to share out")
        if c.mlp_internal_dim_multiplier % size or c.neurons_per_head % (2 * self.ranks_per_head):
            raise ValueError(
                f"{size} processes: expected a divisor of mlp_internal_dim_multiplier={c.mlp_internal_dim_multiplier} "
                "that leaves each an even number of neurons; start fewer"
            )
        if c.sparsity is not None and self.ranks_per_head > 1:
            raise ValueError(
                f"sparsity={c.sparsity}: expected at most n_head={c.n_head} processes, since the winners of a head "
                "are found among all its neurons"
            )

    @property
    def ranks_per_head(self) -> int:
        """How many ranks share a head; 1 if each has whole heads."""
        return max(1, self.world.size // self.config.n_head)

    @property
    def heads(self) -> slice:
        """The heads of this rank."""
        count = max(1, self.config.n_head // self.world.size)
        first = self.world.rank // self.ranks_per_head * count
        return slice(first, first + count)

    @property
    def neurons(self) -> slice:
        """Which neurons of each of these."""
        count = self.config.neurons_per_head // self.ranks_per_head
        first = self.world.rank % self.ranks_per_head * count
        return slice(first, first + count)

    @property
    def local(self) -> BDHConfig:
        """The model that these neurons are by themselves."""
        multiplier = self.config.mlp_internal_dim_multiplier // self.world.size
        return replace(self.config, n_head=self.heads.stop - self.heads.start, mlp_internal_dim_multiplier=multiplier)

    def cut(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return this rank's part of the weights of the whole model, by name."""
        c, part = self.config, (self.heads, slice(None), self.neurons)
        by_head = tensors["decoder"].view(c.n_head, c.neurons_per_head, c.n_embd)
        return {
            **tensors,
            "encoder": tensors["encoder"][part],
            "encoder_v": tensors["encoder_v"][part],
            "decoder": by_head[self.heads, self.neurons].flatten(0, 1),
        }

    def cut_state(self, state: State) -> State:
        """Return this rank's part of the memory of the whole model."""
        return state.each(lambda rho: rho[:, self.heads, self.neurons])


class NeuronShard(BDH):
    """One rank's neurons, with the residual stream of all: its passes return what the whole model returns.

    Each rank computes the loss; what is minimised is the mean of these equal losses. So a sum over ranks has the sum
    over ranks as its derivative, and after `share_gradients` every gradient is that of the whole model.

    All ranks must read the same tokens, with the same calls in the same order.

    Args:
        config: of the whole model; whatever its size, a rank makes only its own part.
        world: from `bdh.train.joined`.

    Raises:
        ValueError: the neurons cannot be shared out.
    """

    def __init__(self, config: BDHConfig, world: World) -> None:
        self.share, self.world = Share(config, world), world
        super().__init__(self.share.local)
        self.told: Counter[str] = Counter()
        """Bytes of what was summed over ranks, by name: read, write, and their gradients."""
        self._across, self._head = world.split(self.share.ranks_per_head)
        # an edit, so that no path is taken that computes whole levels
        self.edits = (self._sum_reads,)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "edits": (self._sum_reads,)}  # a copy is a shard, too

    @classmethod
    def of(cls, model: BDH, world: World) -> NeuronShard:
        """Return this rank's part of a model that all ranks have."""
        shard = cls(model.config, world).to(model.encoder.device, model.encoder.dtype)
        shard.load_state_dict(shard.share.cut(model.state_dict()))
        shard.edits += model.edits
        return shard.train(model.training)

    def share_gradients(self) -> None:
        """Make the gradients those of the whole model; call it once per step, after the last backward pass."""
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.grad is not None:
                    parameter.grad /= self.world.size
            common = [p.grad for name, p in self.named_parameters() if name not in MAPS and p.grad is not None]
            self.world.add_up(common)

    def whole_state(self, state: State) -> State:
        """Return the memory of the whole model from the parts of all ranks, which call this together."""
        return state.each(lambda rho: self._across.joined(self._head.joined(rho, dim=2), dim=1))

    def _turn(self, position: int, tokens: int) -> Tensor:
        whole = ops.rotation(self.share.config.neurons_per_head, position, tokens, like=self.encoder)
        pairs = self.share.neurons
        return whole[:, pairs.start // 2 : pairs.stop // 2]

    def _write(self, xy: Tensor) -> Tensor:
        return self._sum("write", super()._write(xy), self.world)

    def _sum_reads(self, idx: Tensor, state: State | None) -> Tap:
        def tap(name: str, tensor: Tensor) -> Tensor:
            return self._sum("read", tensor, self._head) if name.endswith(".attn_out") else tensor

        return tap

    def _sum(self, name: str, part: Tensor, world: World) -> Tensor:
        if world.size == 1:
            return part
        total: Tensor = _Sum.apply(part, world, self.told, name)  # type: ignore[no-untyped-call]
        return total


class _Sum(torch.autograd.Function):
    """Sum over ranks; of a sum of the ranks' losses, the gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, *to_sum: Any) -> Tensor:
        ctx.to_sum = to_sum
        return _summed(part, *to_sum)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor | None, ...]:
        world, told, name = ctx.to_sum
        return _summed(gradient[0], world, told, f"{name} gradient"), None, None, None


def _summed(part: Tensor, world: World, told: Counter[str], name: str) -> Tensor:
    total = part.clone(memory_format=torch.contiguous_format)
    told[name] += total.nbytes
    world.add_up([total])
    return total
