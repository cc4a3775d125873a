"""What a model and its training will take, by formula, said before anything is computed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from bdh import ops
from bdh.config import BDHConfig, TrainConfig
from bdh.model import BDH
from bdh.planning import activations, memory, work
from bdh.planning.activations import WIDE
from bdh.planning.work import AT_RANDOM, TRAINED, Activity
from bdh.train import pick_device, pick_dtype

LEFT_OUT = (
    "the mechanisms of the model keep tensors of their own and compute more than the plain pass counted here; "
    "what is timed is the whole"
)


@dataclass(frozen=True)
class Plan:
    """What training takes; counts are exact where they follow from the shapes."""

    parameters: dict[str, int]
    """Numbers per tensor."""
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    """Two moments of AdamW per parameter, and a count of steps per tensor."""
    checkpoint_bytes: int
    """Weights, moments and what rows carry on disk, without the few lines of text about them."""
    state_bytes: int
    """State of one sequence in generation, whatever its length: L * N * D numbers, and what the mechanisms add."""
    carried_bytes: int
    """With streams, the states of all rows of a step, which are kept for the next; else 0."""
    path: str
    """How training passes are computed: native, tiled, composed or reference."""
    activation_bytes: dict[str, int]
    """Kept between forward and backward of one pass over `batch_size` windows, by path."""
    kept: str
    """Which of them the training begins with."""
    phase_bytes: dict[str, int]
    """Most memory of the process in each phase; activity, and so memory, are highest at random weights."""
    memory_bytes: int | None
    """Of this machine or its GPU; None if unknown."""
    tokens_per_pass: int
    tokens: int
    """Read in the whole training."""
    flop_per_token: dict[str, float]
    """Of training; a multiply-add counts as two. Dense, and by the native kernels with random and trained weights."""
    left_out: str = ""
    """What the figures do not count, in one line; empty if nothing."""

    @property
    def n_parameters(self) -> int:
        """Numbers in all."""
        return sum(self.parameters.values())

    @property
    def peak_bytes(self) -> int:
        """Most memory that the training holds."""
        return max(self.phase_bytes.values())

    @property
    def fits(self) -> bool:
        """Whether the peak stays within the memory."""
        return self.memory_bytes is None or self.peak_bytes <= self.memory_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON takes it."""
        return asdict(self) | {"n_parameters": self.n_parameters, "peak_bytes": self.peak_bytes, "fits": self.fits}


def make(model: BDHConfig, train: TrainConfig, *, trained: Activity = TRAINED) -> Plan:
    """Plan a training from its shapes alone, at once.

    Args:
        model: shape of the model.
        train: batches, precision and back end.
        trained: activity that the weights come to.

    Raises:
        ValueError: the device, the precision or the back end is not there.

    Examples:
        >>> from bdh.config import preset, train_preset
        >>> plan = make(preset("25m"), train_preset("25m"))
        >>> plan.state_bytes / 2**20, plan.n_parameters
        (192.0, 25296896)
    """
    device = pick_device(train.device)
    dtype = pick_dtype(train.dtype, device)
    e, path = min(WIDE, dtype.itemsize), path_of(model, train, device, dtype)
    map_, vocabulary = model.n_neurons * model.n_embd, model.vocab_size * model.n_embd
    parameters = {
        "embed.weight": vocabulary,
        "encoder": map_,
        "encoder_v": map_,
        "decoder": map_,
        "lm_head": vocabulary,
    }
    if more := model.n_parameters - sum(parameters.values()):
        parameters["mechanisms"] = more
    weights = WIDE * model.n_parameters
    with torch.device("meta"):
        hatchling = BDH(model)
        level = hatchling.parts.silence(1, position=0)
    state = model.n_layer * sum(part.nbytes for part in level.values())
    streams = train.batches == "streams"
    carried = train.batch_size * train.grad_acc_steps * state if streams else 0
    moments = 2 * weights + WIDE * len(list(hatchling.parameters()))
    random, trained = AT_RANDOM.of(model), trained.of(model)
    kept = _kept(model, train, random, trained, e)
    flop = {
        "dense": work.training(model, train.block_size, form="chunked" if streams else None),
        "native, random weights": work.native_training(model, train.block_size, random),
        "native, trained": work.native_training(model, train.block_size, trained),
    }
    if not model.released:  # of the paths that are left, one
        kept, flop = {path: kept[path]}, {"dense": flop["dense"]}
    elif not _tiles(train):
        del kept["tiled"]
    again = activations.computed_again(model, train.batch_size, train.block_size, density=random.x)
    native = f"native, {'levels computed again' if again else 'random weights'}"
    return Plan(
        parameters=parameters,
        weight_bytes=weights,
        gradient_bytes=weights,
        optimizer_bytes=moments,
        checkpoint_bytes=weights + moments + carried,
        state_bytes=state,
        carried_bytes=carried,
        path=path,
        activation_bytes=kept,
        kept=native if path == "native" else path,
        phase_bytes=memory.phases(model, train, path, device, density=random.x, carried=carried, bytes_per_number=e),
        memory_bytes=memory.of_device(device),
        tokens_per_pass=train.batch_size * train.block_size,
        tokens=train.max_steps * train.tokens_per_step,
        flop_per_token=flop,
        left_out="" if model.released else LEFT_OUT,
    )


def path_of(model: BDHConfig, train: TrainConfig, device: torch.device, dtype: torch.dtype) -> str:
    """Return how `fit` computes a training pass."""
    if train.compile or train.backend == "reference":
        return "composed" if train.compile else "reference"
    if not model.released:
        return "composed"
    activities = model.activities(train.batch_size * train.block_size)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32), ops.using(train.backend):
        path = ops.levels_backend(torch.empty((), device=device), activities=activities)
    return "composed" if path == "tiled" and not _tiles(train) else path


def _tiles(train: TrainConfig) -> bool:
    """Whether the tiled path can be taken: it carries no memory and cuts no gradients."""
    return train.batches == "windows" and train.bptt == "window"


def _kept(model: BDHConfig, train: TrainConfig, random: Activity, trained: Activity, e: int) -> dict[str, int]:
    B, T = train.batch_size, train.block_size
    carried = train.batches == "streams"
    native = {"random weights": (random, False), "trained": (trained, False), "levels computed again": (random, True)}
    return {
        "reference": activations.composed(model, B, T, form="reference", carried=carried, bytes_per_number=e),
        "composed": activations.composed(model, B, T, carried=carried, bytes_per_number=e),
        "tiled": activations.tiled(model, B, T, bytes_per_number=e),
        **{
            f"native, {name}": activations.native(
                model, B, T, density=at.x, again=again, carried=carried, bytes_per_number=e
            )
            for name, (at, again) in native.items()
        },
    }
