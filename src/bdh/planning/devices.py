"""What each of several devices holds and sends, by formula.

Shapes: P parameters, W devices, B rows of a pass on all of them, T tokens, L levels, D embedding, V vocabulary.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from bdh.config import BDHConfig, Parallel, TrainConfig
from bdh.planning.activations import WIDE
from bdh.planning.planner import Plan, make
from bdh.train import World, pick_device, pick_dtype
from bdh.train.neurons import Share


@dataclass(frozen=True)
class Message:
    """One kind of message of a step."""

    payload_bytes: int
    """What each rank hands in, summed over the messages of this kind in one step."""
    ranks: int
    """How many ranks take part."""
    passes: int
    """2: the sum goes to all (all-reduce). 1: parts are gathered from all, or a part of the sum goes to each."""

    @property
    def sent_bytes(self) -> int:
        """What each device sends where a ring carries it: passes (W - 1)/W payload."""
        return self.passes * (self.ranks - 1) * self.payload_bytes // self.ranks


@dataclass(frozen=True)
class DevicePlan:
    """One of several equal devices."""

    devices: int
    parallel: Parallel
    held_bytes: dict[str, int]
    """At the most, in training, by what it is."""
    state_bytes: int
    """Synaptic state of one sequence, the part of this device."""
    messages: dict[str, Message]
    """Of one optimiser step."""

    @property
    def peak_bytes(self) -> int:
        """All that is held."""
        return sum(self.held_bytes.values())

    @property
    def sent_bytes(self) -> int:
        """What the device sends per step, and receives."""
        return sum(message.sent_bytes for message in self.messages.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON takes it."""
        messages = {
            name: asdict(message) | {"sent_bytes": message.sent_bytes} for name, message in self.messages.items()
        }
        return asdict(self) | {"messages": messages, "peak_bytes": self.peak_bytes, "sent_bytes": self.sent_bytes}


def on_devices(
    model: BDHConfig, train: TrainConfig, devices: int, parallel: Parallel, ranks_per_model: int | None = None
) -> DevicePlan:
    """Plan a training on several equal devices.

        data      weights, gradients and moments whole on each, B/W rows    4 P summed per step
        fsdp      these cut to P/W, gathered whole for each pass, B/W rows  4 P gathered, 4 P summed in parts, per pass
        neurons   the maps, the activity and the state cut along n over    (B', T, D) summed per level and pass, there
                  w devices, B' = B w/W rows                                and back, again where heads are cut, and
                                                                            8 V D per step, all among w; what a device
                                                                            holds of P summed among W/w

    Args:
        model: shape of the model.
        train: batches and precision; `batch_size` is that of all devices together.
        devices: W, 2 or more.
        parallel: what is shared out.
        ranks_per_model: w, with neurons; None: all.

    Raises:
        ValueError: rows or neurons cannot be shared out evenly.

    Examples:
        >>> from bdh.config import preset, train_preset
        >>> few, many = (on_devices(preset("25m"), train_preset("25m"), count, "neurons") for count in (2, 4))
        >>> few.messages["write"].payload_bytes == many.messages["write"].payload_bytes, few.state_bytes // 2**20
        (True, 96)
    """
    if devices < 2:
        raise ValueError(f"devices={devices}: expected at least 2 to share a training")
    each = ranks_per_model or devices
    if parallel == "neurons":
        if each < 2 or devices % each:
            raise ValueError(f"ranks_per_model={each}: expected 2 or more that divide the {devices} devices")
        return _neurons(model, _rows_of(train, devices // each), Share(model, World(0, each)), devices // each)
    own = make(model, _rows_of(train, devices))
    P = WIDE * own.n_parameters
    kept = _kept(own)
    if parallel == "data":
        held = {"weights": P, "gradients": P, "moments": 2 * P, "message": P, **kept}
        messages = {
            "gradients": Message(P, devices, 2),
            "loss and marks": Message(WIDE * (1 + devices), devices, 2),
            "stop": Message(8, devices, 2),
        }
        return DevicePlan(devices, parallel, held, own.state_bytes, messages)
    # every level uses all weights, so there is one piece to gather: the whole
    part = -(-P // devices)
    held = {
        "weights": part + P,
        "gradients": part + P,
        "moments": 2 * part,
        "message": P,
        **kept,
    }
    passes = train.grad_acc_steps * P
    messages = {"weights": Message(passes, devices, 1), "gradients": Message(passes, devices, 1)}
    return DevicePlan(devices, parallel, held, own.state_bytes, messages)


def _neurons(model: BDHConfig, train: TrainConfig, share: Share, models: int) -> DevicePlan:
    own = make(share.local, replace(train, backend="composed"))
    P, ranks = WIDE * own.n_parameters, share.world.size
    devices = ranks * models
    dtype = pick_dtype(train.dtype, pick_device(train.device))
    vocabulary = 2 * WIDE * model.vocab_size * model.n_embd
    message = vocabulary if models == 1 else P
    held = {"weights": P, "gradients": P, "moments": 2 * P, "message": message, **_kept(own)}
    width = min(WIDE, dtype.itemsize) * train.batch_size * train.block_size * model.n_embd  # (B', T, D)
    there_and_back = 2 * train.grad_acc_steps * model.n_layer * width
    messages = {"write": Message(there_and_back, ranks, 2)}
    if share.ranks_per_head > 1:
        messages["read"] = Message(there_and_back, share.ranks_per_head, 2)
    messages["embedding and readout"] = Message(vocabulary, ranks, 2)
    messages["norm"] = Message(WIDE, ranks, 2)
    if models > 1:
        messages["gradients and loss"] = Message(P + WIDE, models, 2)
    messages["marks and stop"] = Message(WIDE * devices + 8, devices, 2)
    return DevicePlan(devices, "neurons", held, own.state_bytes, messages)


def _rows_of(train: TrainConfig, ranks: int) -> TrainConfig:
    """Return the training that one of so many ranks sees that share rows out."""
    here = World(0, ranks).rows(train.batch_size)
    return replace(train, batch_size=here.stop - here.start)


def _kept(own: Plan) -> dict[str, int]:
    """Return what there is of each row: what a pass keeps, and what the rows of streams carry."""
    carried = {"states of the rows": own.carried_bytes} if own.carried_bytes else {}
    return {"activations": own.activation_bytes[own.kept], **carried}
