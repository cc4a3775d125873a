"""A plan: its sizes against the tensors and files themselves, its peak against a process."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bdh import BDH, BDHConfig, planning
from bdh.config import TrainConfig, preset, train_preset
from bdh.data import Corpus
from bdh.ops import native, native_levels
from bdh.planning import activations, memory
from bdh.planning.work import AT_RANDOM
from bdh.train import Reporter, Run, fit
from bdh.train.fit import Training

SMALL = BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=10, dropout=0.0)
TRAIN = TrainConfig(batch_size=2, block_size=16, max_steps=3, warmup_steps=1, eval_windows=2, device="cpu")


def test_sizes_are_those_of_the_tensors_and_files(tmp_path: Path) -> None:
    model, plan = BDH.from_seed(SMALL, 0), planning.make(SMALL, TRAIN)
    assert plan.parameters == {name: p.numel() for name, p in model.named_parameters()}
    assert plan.weight_bytes == plan.gradient_bytes == sum(p.nbytes for p in model.parameters())
    assert plan.state_bytes == model.advance(torch.zeros(1, 3, dtype=torch.long))[1].nbytes
    text = np.arange(400, dtype=np.uint8) % 100
    fit(model, Corpus("numbers", text, text), TRAIN, Run(tmp_path), Reporter())
    (checkpoint,) = (tmp_path / "checkpoints").glob("step-00000003")
    on_disk = sum(file.stat().st_size for file in checkpoint.iterdir())
    assert plan.checkpoint_bytes <= on_disk < plan.checkpoint_bytes + 5000  # headers and settings
    assert plan.tokens == 3 * 2 * 16


def test_a_plan_of_the_paper_size() -> None:
    plan = planning.make(preset("25m"), train_preset("25m", batch_size=8, device="cpu"))
    assert plan.weight_bytes == 4 * 25_296_896
    assert plan.state_bytes == 6 * 32_768 * 256 * 4
    assert plan.tokens == 2000 * 8 * 512
    kept = plan.activation_bytes
    assert kept["reference"] > 2 * kept["native, random weights"] > 4 * kept["native, trained"] > 8 * kept["tiled"]
    assert plan.peak_bytes > 4 * plan.weight_bytes + kept[plan.kept]


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"backend": "tiled"}, "tiled"),
        ({"backend": "reference"}, "reference"),
        ({"backend": "composed"}, "composed"),
        ({"compile": True}, "composed"),
    ],
)
def test_the_path_is_the_one_that_training_takes(change: dict, path: str) -> None:
    plan = planning.make(SMALL, replace(TRAIN, **change))
    assert plan.path == plan.kept == path


@pytest.mark.skipif(not native.available(), reason=native.why_not)
def test_what_does_not_fit_between_the_passes_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = preset("nano")
    roomy = planning.make(shape, replace(TRAIN, batch_size=64, block_size=128))
    assert roomy.kept == "native, random weights"
    monkeypatch.setattr(native_levels, "memory_budget", lambda: roomy.activation_bytes[roomy.kept] / 2)
    lean = planning.make(shape, replace(TRAIN, batch_size=64, block_size=128))
    assert lean.kept == "native, levels computed again"
    saved = roomy.activation_bytes[roomy.kept] - roomy.activation_bytes[lean.kept]
    assert roomy.peak_bytes - lean.peak_bytes == pytest.approx(memory.HELD["native"] * saved, rel=0.01)


def test_half_precision_halves_what_composed_operations_keep() -> None:
    wide, narrow = (planning.make(SMALL, replace(TRAIN, dtype=dtype)) for dtype in ("float32", "bfloat16"))
    assert narrow.activation_bytes["composed"] < 0.7 * wide.activation_bytes["composed"]
    assert narrow.activation_bytes["native, trained"] == pytest.approx(
        wide.activation_bytes["native, trained"], rel=0.1
    )
    assert narrow.weight_bytes == wide.weight_bytes


CODE = """
import json, sys
import numpy as np
import torch
from pathlib import Path
from rich.console import Console
import bdh.cli
from bdh import BDH, BDHConfig, TrainConfig, planning
from bdh.data import Corpus
from bdh.train import Reporter, Run, fit
from bdh.train.fit import Training

torch.set_num_threads(1)
config, train = BDHConfig(**json.loads(sys.argv[1])), TrainConfig(**json.loads(sys.argv[2]))
text = np.random.default_rng(0).integers(0, 256, 20_000, dtype=np.uint8)
fit(BDH.from_seed(config, 0), Corpus("noise", text, text), train, Run(sys.argv[3]), Reporter(Console(quiet=True)))
"""
MIDDLE = {"n_layer": 2, "n_embd": 128, "n_head": 4, "mlp_internal_dim_multiplier": 32}


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of a process is Linux's")
@pytest.mark.parametrize("backend", ["native", "tiled"])
def test_the_peak_is_that_of_the_process(backend: str, tmp_path: Path) -> None:
    if backend == "native" and not native.available():
        pytest.skip(native.why_not)
    settings = {"batch_size": 8, "block_size": 256, "max_steps": 3, "warmup_steps": 1, "log_interval": 1}
    settings |= {"eval_interval": 3, "eval_windows": 8, "backend": backend, "device": "cpu"}
    words = [sys.executable, "-c", CODE, json.dumps(MIDDLE), json.dumps(settings), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    measured = max(record.get("peak_bytes", 0) for record in records)
    plan = planning.make(BDHConfig(**MIDDLE), TrainConfig(**settings))
    assert plan.peak_bytes == pytest.approx(measured, rel=0.15)
    bare = memory.PROCESS + 4 * plan.weight_bytes
    assert bare < 0.85 * measured  # the control: the passes are most of what is left


def test_a_model_with_mechanisms_is_composed_and_says_what_is_not_counted() -> None:
    config = preset("nano", variant="advanced")
    found = planning.make(config, train_preset("nano", device="cpu"))
    assert (found.path, found.kept, list(found.activation_bytes)) == ("composed", "composed", ["composed"])
    assert found.n_parameters == sum(p.numel() for p in BDH(config).parameters())
    assert "mechanisms" in found.left_out
    plain = planning.make(preset("nano"), train_preset("nano", device="cpu"))
    assert plain.left_out == ""
    assert found.state_bytes > 2 * plain.state_bytes


def test_what_is_sent_to_disk_is_counted_with_mechanisms(tmp_path: Path) -> None:
    config = preset("nano", variant="hatching")
    model = BDH(config)
    _, state = model.advance(torch.tensor([[1, 2]]))
    found = planning.make(config, train_preset("nano", device="cpu"))
    assert found.state_bytes == state.nbytes


@pytest.mark.parametrize("variant", ["bdh", "hatching"])
def test_what_the_rows_of_streams_carry_is_counted(variant: str, tmp_path: Path) -> None:
    shape = {"n_layer": 2, "n_embd": 16, "n_head": 2, "mlp_internal_dim_multiplier": 10, "dropout": 0.0}
    config = BDHConfig(variant=variant, **shape)
    assert config.released == (variant == "bdh")
    train = replace(TRAIN, batches="streams", grad_acc_steps=2, block_size=24)
    plan = planning.make(config, train)
    text = np.arange(400, dtype=np.uint8) % 100
    training = Training(BDH.from_seed(config, 0), Corpus("numbers", text, text), train, Run(tmp_path), Reporter())
    training.fit()
    states = [state for state in training.reading.states if state is not None]
    assert len(states) == 2
    assert plan.carried_bytes == sum(state.nbytes for state in states) == 4 * plan.state_bytes
    files = list((tmp_path / "checkpoints" / "step-00000003").glob("*"))
    assert plan.checkpoint_bytes <= sum(file.stat().st_size for file in files) < plan.checkpoint_bytes + 9000  # headers
    assert plan.path == ("native" if variant == "bdh" and native.available() else "composed")
    assert "tiled" not in plan.activation_bytes
    if plan.path == "native":  # the pass also keeps what it goes on from
        shape = train.batch_size, train.block_size
        bare = activations.native(config, *shape, density=AT_RANDOM.of(config).x)
        assert plan.activation_bytes[plan.kept] - bare == states[0].nbytes
    windows = planning.make(config, replace(train, batches="windows"))
    assert windows.carried_bytes == 0
    assert plan.phase_bytes["evaluation"] - windows.phase_bytes["evaluation"] == plan.carried_bytes


@pytest.mark.parametrize("change", [{"bptt": "none"}, {"batches": "streams"}])
def test_without_kernels_what_is_not_tiled_is_composed(change: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "available", lambda: False)
    monkeypatch.setattr(native, "why_not", "not built")
    assert planning.make(SMALL, TRAIN).path == "tiled"  # the control
    assert planning.make(SMALL, replace(TRAIN, **change)).path == "composed"


def test_a_plan_for_devices_names_the_rows_states() -> None:
    each = planning.on_devices(SMALL, replace(TRAIN, batches="streams"), 2, "data")
    assert each.held_bytes["states of the rows"] == planning.make(SMALL, TRAIN).state_bytes
    assert "states of the rows" not in planning.on_devices(SMALL, TRAIN, 2, "data").held_bytes
