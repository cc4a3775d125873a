"""What the processes of a training share out: rows of the batch, and with them pieces of weights, or neurons.

data       each rank has the whole model and reads its own rows
fsdp       the same, with weights, gradients and moments in pieces between the passes (FSDP2)
neurons    each rank has its own neurons, with their rows of the maps and of the memory, see `bdh.train.neurons`; groups
           of ranks that have a model together read their own rows
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from bdh.config import TrainConfig
from bdh.model import BDH, MAPS, State
from bdh.train.distributed import ALONE, World
from bdh.train.neurons import NeuronShard

CPU = torch.device("cpu")


class Copies:
    """Each rank has the whole model; also what one process alone does.

    Args:
        model: whole, on all ranks.
        train: how it is trained.
        world: the ranks.
        device: where to.

    Raises:
        ValueError: the model or the training cannot be shared out so.
    """

    in_parts = False
    """Whether a rank has a part of the model: all take part in its passes, and write its checkpoints together."""

    def __init__(self, model: BDH, train: TrainConfig, world: World = ALONE, device: torch.device = CPU) -> None:
        self.world, self.device = world, device
        self.config = model.config
        """Of the whole model."""
        self.rows, self.neurons = self._worlds()
        self.model = self._placed(model, train)

    def _worlds(self) -> tuple[World, World]:
        """Return the ranks that share rows out, and those that share neurons out."""
        return self.world, ALONE

    def _placed(self, model: BDH, train: TrainConfig) -> BDH:
        """Return what this rank has of the model."""
        return model.to(self.device)

    def add_up(self, loss: Tensor, *told: Tensor) -> Tensor:
        """Replace gradients, loss, what slow parts observed, and what is only told, by the sums over the ranks.

        Returns:
            (W,) 1 for every rank whose loss or gradient was no finite number.
        """
        gradients = self._gradients()
        unsound = self._marked(loss.isfinite() & get_total_norm(gradients).isfinite())
        self.world.add_up([*gradients, loss, unsound, *told, *self.model.parts.observed()])
        return unsound

    def norm(self) -> Tensor:
        """Return the norm of the gradient of the whole model."""
        return get_total_norm(self._gradients())

    def whole(self, state: State) -> State:
        """Return what the rows of all ranks remember."""
        return state.each(self.rows.joined)

    def part(self, state: State, batch_size: int) -> State:
        """Return what is remembered here, of a memory of all rows."""
        return state.rows(self.rows.rows(batch_size))

    def tensors(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Return weights by name, and AdamW's numbers by name and kind: the parts of this rank, as parts."""
        found = dict(self.model.state_dict())
        for name, parameter in self.model.named_parameters():
            found |= {f"{name}|{key}": value for key, value in optimizer.state.get(parameter, {}).items()}
        return found

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]

    def _marked(self, sound: Tensor) -> Tensor:
        unsound = torch.zeros(self.world.size, device=self.device)
        unsound[self.world.rank] = ~sound
        return unsound


class Pieces(Copies):
    """Weights, gradients and moments are in pieces between the passes (FSDP2).

    Between steps a rank holds 1/W of everything; for a pass the weights are gathered whole. All levels share these, so
    there is one piece to gather, where a transformer has one per layer: what is saved are moments and gradients.
    """

    in_parts = True

    def _placed(self, model: BDH, train: TrainConfig) -> BDH:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

        c = self.config
        if not c.released or c.dale.on or c.scale_free.on:
            raise ValueError("parallel=fsdp: expected variant bdh, since mechanisms change whole weights; use data")
        if train.clip != "norm" or train.compile:
            raise ValueError("parallel=fsdp: expected clip=norm and no compile, which takes whole tensors; use data")
        _refuse_float16(train)
        fully_shard(model.to(self.device), mesh=init_device_mesh(self.device.type, (self.world.size,)))
        assert isinstance(model, FSDPModule)
        # losses are weighted already: their gradients are to be added, by the one kind of sum that gloo has
        model.set_gradient_divide_factor(1.0)
        model.set_force_sum_reduction_for_comms(True)
        register_fsdp_forward_method(model, "advance")
        return model

    def add_up(self, loss: Tensor, *told: Tensor) -> Tensor:
        unsound = self._marked(loss.isfinite())
        self.world.add_up([loss, unsound, *told])  # gradients are added up as they are made
        return unsound

    def norm(self) -> Tensor:
        norm: Tensor = super().norm().full_tensor()  # type: ignore[attr-defined]
        return norm


class Neurons(Copies):
    """Each rank has its own neurons; groups of `World.ranks_per_model` consecutive ranks have one model."""

    in_parts = True

    def _worlds(self) -> tuple[World, World]:
        return self.world.split(self.world.ranks_per_model or self.world.size)

    def _placed(self, model: BDH, train: TrainConfig) -> BDH:
        from torch.distributed.device_mesh import init_device_mesh

        _refuse_float16(train)
        if train.compile or train.backend in ("native", "tiled"):
            raise ValueError(
                "parallel=neurons: expected no compile and backend auto, composed or reference, which let ranks speak "
                "inside a level; leave --compile and --backend away"
            )
        self._shard = NeuronShard.of(model, self.neurons).to(self.device)
        each = self._shard.share.ranks_per_head
        grid = (self.rows.size, self.neurons.size // each, each)
        self._mesh = init_device_mesh(self.device.type, grid)
        return self._shard

    def add_up(self, loss: Tensor, *told: Tensor) -> Tensor:
        unsound = self._marked(loss.isfinite())
        self._shard.share_gradients()
        self.rows.add_up([*self._gradients(), loss])
        for mean in told:  # over the neurons of each
            mean /= self.neurons.size
        self.world.add_up([unsound, *told])
        return unsound

    def norm(self) -> Tensor:
        by_name = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        own = get_total_norm([gradient for name, gradient in by_name.items() if name in MAPS]) ** 2
        common = get_total_norm([gradient for name, gradient in by_name.items() if name not in MAPS]) ** 2
        self.neurons.add_up([own])
        return (own + common).sqrt()

    def whole(self, state: State) -> State:
        return super().whole(self._shard.whole_state(state))

    def part(self, state: State, batch_size: int) -> State:
        return self._shard.share.cut_state(super().part(state, batch_size))

    def tensors(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        from torch.distributed.tensor import DTensor, Replicate, Shard

        cut = {"encoder": (0, 2), "encoder_v": (0, 2), "decoder": (0, 0)}  # by heads, and by neurons inside heads
        found = super().tensors(optimizer)
        for name, tensor in found.items():
            dims = cut.get(name.partition("|")[0], ())
            if dims and tensor.ndim:
                where = (Replicate(), *map(Shard, dims))
                found[name] = DTensor.from_local(tensor, self._mesh, where, run_check=False)
        return found


def _refuse_float16(train: TrainConfig) -> None:
    # each rank would find the overflow of its own part alone, and skip a step that the others take
    if train.dtype == "float16":
        raise ValueError("dtype=float16: expected float32 or bfloat16 where ranks have parts; or use --parallel data")


SHARINGS: dict[str, type[Copies]] = {"data": Copies, "fsdp": Pieces, "neurons": Neurons}
"""By what is shared out."""
