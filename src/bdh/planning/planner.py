"""What a model and its training will take, said before anything is trained, and compared with a run afterwards.

Bytes follow from the shapes (activations.py); speed is measured: a few steps of this very shape on this machine.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bdh import ops
from bdh.bench.planted import plant
from bdh.config import BDHConfig, TrainConfig
from bdh.generate import prefill, step, step_weights
from bdh.model import BDH
from bdh.ops.memory import keep_freed_memory
from bdh.planning import activations, work
from bdh.planning.work import AT_RANDOM, TRAINED, Activity
from bdh.train.fit import make_optimizer, pick_device, pick_dtype
from bdh.train.run import read_facts

CALIBRATION_SECONDS = 8.0
"""Per activity; a step that alone takes longer is calibrated on fewer windows."""
REPEATS = 5
PROCESS_BYTES = 300 * 2**20
"""Interpreter and libraries, before any model (measured: docs/LOG.md)."""


@dataclass(frozen=True)
class Plan:
    """What training takes; bytes and counts, exact where they follow from the shapes."""

    parameters: dict[str, int]
    """Numbers per tensor."""
    weight_bytes: int
    optimizer_bytes: int
    """Gradients and the two moments of AdamW."""
    checkpoint_bytes: int
    """Weights and moments on disk."""
    state_bytes: int
    """Synaptic state of one sequence in generation, whatever its length: L * N * D numbers."""
    activation_bytes: dict[str, int]
    """Kept between forward and backward of one batch, by path; the one that training takes is `path`."""
    path: str
    peak_bytes: int
    """Of the process, at random initialisation, when activity and so memory are highest."""
    memory_bytes: int | None
    """Of this machine or its GPU; None if unknown."""
    tokens: int
    """Read in the whole training."""
    flop_per_token: dict[str, float]
    """Multiply-adds counted twice: dense, and by the native kernels at random initialisation and when trained."""

    @property
    def fits(self) -> bool:
        """Whether the peak stays within the memory."""
        return self.memory_bytes is None or self.peak_bytes <= self.memory_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON takes it."""
        return asdict(self) | {"fits": self.fits}


def make(model: BDHConfig, train: TrainConfig) -> Plan:
    """Plan a training from its shapes alone, at once.

    Args:
        model: shape of the model.
        train: batches, precision and back end.

    Examples:
        >>> from bdh.config import preset, train_preset
        >>> plan = make(preset("25m"), train_preset("25m"))
        >>> plan.state_bytes / 2**20, sum(plan.parameters.values())
        (192.0, 25296896)
    """
    D, N, V, B, T = model.n_embd, model.n_neurons, model.vocab_size, train.batch_size, train.block_size
    parameters = {"embed": V * D, "encoder": N * D, "encoder_v": N * D, "decoder": N * D, "lm_head": D * V}
    weights = 4 * sum(parameters.values())
    path = _path(model, train)
    kept = activation_bytes(model, B, T)
    device = pick_device(train.device)
    at_work = _at_work(model, B, T) if path == "native" else 3 * 4 * B * T * N  # a level's own arrays
    return Plan(
        parameters=parameters,
        weight_bytes=weights,
        optimizer_bytes=3 * weights,
        checkpoint_bytes=3 * weights,
        state_bytes=4 * model.n_layer * N * D,
        activation_bytes=kept,
        path=path,
        peak_bytes=(PROCESS_BYTES if device.type == "cpu" else 0) + 4 * weights + kept[path] + at_work,
        memory_bytes=memory_of(device),
        tokens=train.max_steps * train.tokens_per_step,
        flop_per_token={
            "dense": work.training(model, T),
            "native, random": work.native_training(model, T, AT_RANDOM.of(model)),
            "native, trained": work.native_training(model, T, TRAINED.of(model)),
        },
    )


def activation_bytes(model: BDHConfig, B: int, T: int, activity: Activity = AT_RANDOM) -> dict[str, int]:
    """Return what each path keeps of one batch between forward and backward, in float32."""
    x = activity.of(model).x
    native = activations.native(model, B, T, density=x)
    if native > ops.native_levels.memory_budget():  # levels are then computed again
        native = activations.native(model, B, T, density=x, again=True)
    return {
        "reference": activations.composed(model, B, T, form="reference"),
        "composed": activations.composed(model, B, T),
        "tiled": activations.tiled(model, B, T),
        "native": native,
    }


def _at_work(model: BDHConfig, B: int, T: int) -> int:
    """Bytes that the native kernels use beside what they keep: weights and gradients neuron-major, and tiles."""
    maps = 4 * 3 * model.n_neurons * model.n_embd
    return 2 * maps + 4 * ops.native_plan.TILE * 4 + 4 * B * T * model.n_embd * 8


def _path(model: BDHConfig, train: TrainConfig) -> str:
    """Return how a training pass is computed on its device."""
    device = pick_device(train.device)
    like = torch.empty((), device=device)
    dtype = pick_dtype(train.dtype, device)
    tokens = train.batch_size * train.block_size
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32), ops.using(train.backend):
        return "composed" if train.compile else ops.levels_backend(like, activities=model.activities(tokens))


def memory_of(device: torch.device) -> int | None:
    """Return the bytes of memory of a device; None if it does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    half = ops.native_levels.memory_budget()
    return int(2 * half) if half != float("inf") else None


@dataclass(frozen=True)
class Speed:
    """Measured on this machine."""

    activity: Activity
    seconds_per_step: float
    tokens_per_s: float
    scaled: str | None
    """What was measured instead, if not the step itself."""
    decode_ms: float
    """One more token of one sequence."""


def calibrate(model: BDHConfig, train: TrainConfig) -> dict[str, Speed]:
    """Measure a training step with its optimiser update, and one more token of generation.

    Both at random initialisation and with weights moved to the activity of a trained model, between which a training
    goes in its first few hundred steps.

    Returns:
        Speeds under "random" and "trained".
    """
    device = pick_device(train.device)
    if device.type == "cpu":
        keep_freed_memory()
    found = {}
    for name, activity in (("random", AT_RANDOM), ("trained", TRAINED)):
        hatchling = BDH.from_seed(model, train.seed)
        if name == "trained":
            if model.winners_per_head is not None:
                continue  # the share of neurons that fire is the same at all times
            idx = torch.randint(0, model.vocab_size, (1, 128), generator=torch.Generator().manual_seed(0))
            shares = plant(hatchling, idx, x=activity.x, xy=activity.xy)
            activity = Activity(shares["x"], shares["xy"])
        found[name] = _speed(hatchling.to(device), train, activity.of(model))
    return found


def _speed(model: BDH, train: TrainConfig, activity: Activity) -> Speed:
    B, one = train.batch_size, _step_seconds(model, train, 1, 1)
    # windows cost alike: where a whole batch takes long, fewer of them tell
    windows = max(1, min(B, int(CALIBRATION_SECONDS / REPEATS / one)))
    passes = _step_seconds(model, train, windows, REPEATS if one * REPEATS < 4 * CALIBRATION_SECONDS else 1)
    update = _update_seconds(model, train)
    per_step = max(passes - update, 0.0) * B / windows * train.grad_acc_steps + update
    return Speed(
        activity=activity,
        seconds_per_step=per_step,
        tokens_per_s=train.tokens_per_step / per_step,
        scaled=None if windows == B else f"measured on {windows} of {B} windows",
        decode_ms=_decode_ms(model),
    )


def _step_seconds(model: BDH, train: TrainConfig, windows: int, repeats: int) -> float:
    """Median seconds of a training step on so many windows."""
    device = model.encoder.device
    dtype, optimizer = pick_dtype(train.dtype, device), make_optimizer(model, replace(train, learning_rate=1e-9))
    idx = torch.randint(0, model.config.vocab_size, (windows, train.block_size), device=device)
    model.train()

    def run() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32), ops.using(train.backend):
            loss = model(idx, idx)[1]
        assert loss is not None
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # waits for an accelerator

    return _median_seconds(run, repeats)


def _update_seconds(model: BDH, train: TrainConfig) -> float:
    """Median seconds of the optimiser's update alone."""
    optimizer = make_optimizer(model, replace(train, learning_rate=1e-9))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    seconds = _median_seconds(optimizer.step, 3)
    optimizer.zero_grad(set_to_none=True)
    return seconds


def _decode_ms(model: BDH) -> float:
    _, state = prefill(model, torch.zeros(1, 16, dtype=torch.long, device=model.encoder.device))
    weights, token = step_weights(model, state), torch.zeros(1, 1, dtype=torch.long, device=model.encoder.device)
    return 1e3 * _median_seconds(lambda: step(model, token, state, weights), 10)


def _median_seconds(run: Any, repeats: int) -> float:
    run()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


@dataclass(frozen=True)
class Comparison:
    """A run's plan beside what was measured."""

    plan: Plan
    steps: int
    seconds: float
    tokens_per_s: float
    peak_bytes: int | None
    density: dict[str, float] | None
    """Mean over levels at the last evaluation."""


def compare(run: Path) -> Comparison:
    """Return the plan of a run and what it took so far.

    Raises:
        ValueError: no run is there, or it has not logged a step yet.
    """
    facts = read_facts(run)
    if facts is None:
        raise ValueError(f"--run {run}: no run.json there; expected the directory of a training run")
    log = run / "metrics.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    records = [json.loads(line) for line in lines if line.endswith("}")]
    steps = [record for record in records if "tokens_per_s" in record]
    if not steps:
        raise ValueError(f"--run {run}: nothing logged yet; wait for the first --log-interval steps")
    last = steps[-1]
    densities = [record["density"] for record in records if "density" in record]
    density = {key: sum(levels) / len(levels) for key, levels in densities[-1].items()} if densities else None
    return Comparison(
        plan=make(BDHConfig.from_dict(facts["model"]), TrainConfig.from_dict(facts["train"])),
        steps=last["step"],
        seconds=last["train_seconds"],
        tokens_per_s=last["tokens"] / last["train_seconds"],
        peak_bytes=max((record["peak_bytes"] for record in steps if record.get("peak_bytes")), default=None),
        density=density,
    )
