"""The planner: bytes counted against autograd and the kernels, and the way from a plan to a run."""

import json
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bdh import BDH, BDHConfig, ops, planning
from bdh.bench.planted import plant
from bdh.cli import main
from bdh.config import TrainConfig, preset, train_preset
from bdh.lens.density import density
from bdh.ops import native, native_levels
from bdh.planning import activations, work
from bdh.planning.work import AT_RANDOM, TRAINED

SMALL = BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=10, vocab_size=61, dropout=0.0)


class Box:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def saved_bytes(model: BDH, B: int, T: int, backend: ops.LevelsBackend) -> int:
    """Bytes that autograd keeps for a pass, each storage once, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    boxes: list[weakref.ref[Box]] = []

    def pack(tensor: torch.Tensor) -> Box:
        box = Box(tensor)
        boxes.append(weakref.ref(box))  # a part of the graph that is dropped again takes its box along
        return box

    idx = torch.zeros(B, T, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor), ops.using(backend):
        loss = model.train()(idx, idx.clone())[1]
    assert loss is not None
    storages = [box.tensor.untyped_storage() for ref in boxes if (box := ref()) is not None]
    return sum({s.data_ptr(): s.nbytes() for s in storages if s.data_ptr() not in own}.values())


@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("T", [24, 32, 70])
@pytest.mark.parametrize("change", [{}, {"n_head": 1}, {"dropout": 0.1}, {"sparsity": 0.5}])
def test_composed_activations_are_counted_exactly(B: int, T: int, change: dict) -> None:
    config = replace(SMALL, **change)
    model = BDH.from_seed(config, 0)
    assert activations.composed(config, B, T) == saved_bytes(model, B, T, "composed")


@pytest.mark.parametrize(("B", "T"), [(1, 24), (2, 32)])
def test_reference_activations_are_counted_exactly(B: int, T: int) -> None:
    found = saved_bytes(BDH.from_seed(SMALL, 0), B, T, "reference")
    assert activations.composed(SMALL, B, T, form="reference") == found


@pytest.mark.parametrize(("B", "T"), [(1, 24), (3, 32), (2, 70)])
def test_tiled_activations(B: int, T: int) -> None:
    found = saved_bytes(BDH.from_seed(SMALL, 0), B, T, "tiled")
    assert activations.tiled(SMALL, B, T) == pytest.approx(found, rel=0.02)


@pytest.mark.skipif(not native.available(), reason=native.why_not)
@pytest.mark.parametrize(("B", "T"), [(1, 64), (3, 33), (1, 150)])
def test_native_activations_follow_from_the_density(B: int, T: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=64, dropout=0.0)
    model, idx = BDH.from_seed(config, 0), torch.randint(0, 256, (B, T))
    kept = []
    backward = native_levels._backward_level
    monkeypatch.setattr(
        native_levels, "_backward_level", lambda plan, w, d_w, level, *rest: (
            kept.append(level.nbytes), backward(plan, w, d_w, level, *rest))[1]
    )  # fmt: skip
    with ops.using("native"):
        model.train()(idx, idx)[1].backward()
    levels = density(model, idx)["x"]
    expected = [activations.tiles(config, B, T).level_nbytes(x) for x in reversed(levels)]
    assert kept == pytest.approx(expected, rel=0.001)
    assert activations.native(config, B, T, density=0.0) < sum(kept)  # the density counts


def test_the_kernels_keep_a_tenth_of_what_autograd_keeps() -> None:
    per_token = {
        "reference": activations.composed(preset("25m"), 1, 256, form="reference") / 256,
        "tiled": activations.tiled(preset("25m"), 1, 256) / 256,
        "again": activations.native(preset("25m"), 1, 256, density=0.2, again=True) / 256,
    }
    assert per_token["reference"] > 3e6
    assert per_token["tiled"] < per_token["reference"] / 20
    assert per_token["again"] < per_token["reference"] / 10


def test_products_are_counted() -> None:
    config = replace(SMALL, n_layer=1)
    N, D, V, T = config.n_neurons, 16, 61, 8
    attention = T * (2 * N + 2 * 2 * D)
    assert work.forward(config, T, form="reference") == 6 * N * D + attention + 2 * D * V
    sizes = [work.native_training(preset("25m"), 256, a) for a in (TRAINED, AT_RANDOM)]
    assert sizes[0] < sizes[1] < work.training(preset("25m"), 256)


def test_a_plan_of_the_paper_size() -> None:
    plan = planning.make(preset("25m"), train_preset("25m", batch_size=8, device="cpu"))
    assert plan.weight_bytes == 4 * 25_296_896
    assert plan.state_bytes == 6 * 32_768 * 256 * 4
    assert plan.tokens == 2000 * 8 * 512
    assert plan.activation_bytes["reference"] > 10 * plan.activation_bytes["tiled"]
    assert plan.peak_bytes > plan.activation_bytes[plan.path]


def test_what_does_not_fit_says_so(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(planning.planner, "memory_of", lambda device: 2**20)
    assert not planning.make(SMALL, TrainConfig()).fits
    with pytest.raises(SystemExit) as stop:
        main(["plan", "--n-layer", "2"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "too much" in out
    assert "does not fit: lower --batch-size" in out
    assert "tokens/s" not in out  # nothing is measured that would not fit


def test_calibration_measures_both_activities() -> None:
    train = TrainConfig(batch_size=2, block_size=32, warmup_steps=1, grad_acc_steps=2)
    speeds = planning.calibrate(replace(SMALL, vocab_size=256, mlp_internal_dim_multiplier=32), train)
    assert set(speeds) == {"random", "trained"}
    for speed in speeds.values():
        assert speed.tokens_per_s == pytest.approx(128 / speed.seconds_per_step)
        assert 0 < speed.decode_ms < 1000
    assert speeds["trained"].activity.x == pytest.approx(0.2, abs=0.03)
    assert speeds["random"].activity.x == 0.5
    assert set(planning.calibrate(replace(SMALL, sparsity=0.9), train)) == {"random"}


def test_planting_for_a_plan_keeps_the_models_of_users_alone() -> None:
    model = BDH.from_seed(SMALL, 0)
    before = [p.clone() for p in model.parameters()]
    planning.calibrate(SMALL, TrainConfig(batch_size=1, block_size=8))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    plant(model, torch.zeros(1, 8, dtype=torch.long))
    assert not torch.equal(before[1], model.encoder)


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return int(stop.value.code or 0)


def test_from_a_plan_to_a_run(tmp_path: Path, capsys) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 400)
    shape = (
        "--n-layer",
        1,
        "--n-embd",
        16,
        "--mlp-mult",
        8,
        "--block-size",
        16,
        "--max-steps",
        12,
        "--warmup-steps",
        2,
    )
    assert run("plan", *shape, "--no-calibrate", "--json") == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["speed"] == {}
    assert sum(planned["plan"]["parameters"].values()) == 3 * 128 * 16 + 2 * 256 * 16
    words = ("--data", tmp_path / "text.txt", "--out-dir", tmp_path / "run", "--log-interval", 4, "--eval-windows", 2)
    assert run("train", *shape, *words) == 0
    capsys.readouterr()
    assert run("plan", "--run", tmp_path / "run", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["plan"] == planned["plan"] | {"tokens": found["plan"]["tokens"]}
    assert found["steps"] == 12
    assert found["tokens_per_s"] == pytest.approx(12 * 8 * 16 / found["seconds"], rel=0.01)
    assert found["peak_bytes"] > 50 * 2**20
    assert run("plan", "--run", tmp_path / "run") == 0
    assert "peak memory" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--run", "nowhere"), "no run.json there"),
        (("--model-size", "huge"), "model size 'huge'"),
        (("--batch-size", "0"), "batch_size=0"),
    ],
)
def test_mistakes_are_one_line(words: tuple[str, ...], message: str, capsys) -> None:
    assert run("plan", *words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
