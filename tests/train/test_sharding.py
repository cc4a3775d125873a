"""Weights cut over ranks train as whole ones, and their checkpoints become models."""

import errno
import pickle
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch

from bdh import BDH, BDHConfig, checkpoint
from bdh.checkpoint import CheckpointError
from bdh.cli import main
from bdh.data import Prompting, train_bpe
from bdh.train import Run, fit, joined, sharding
from ranks import on_ranks
from small_training import CURVE, SHAPE, TRAIN, corpus, curve, quiet, trained


@pytest.mark.parametrize("train", [{"grad_acc_steps": 2}, {"batches": "streams"}], ids=["windows", "streams"])
def test_the_curve_is_that_of_one_process(tmp_path: Path, train: dict[str, object]) -> None:
    trained(tmp_path / "one", {}, train)
    assert on_ranks(2, trained, tmp_path / "all", {}, train, "", 60.0, "fsdp") == [(8, None)] * 2
    assert curve(tmp_path / "all") == pytest.approx(curve(tmp_path / "one"), abs=CURVE, rel=0)


@pytest.mark.parametrize("order", ["windows", "streams"])
def test_a_checkpoint_is_resumed_by_more_ranks_and_becomes_a_model(tmp_path: Path, order: str) -> None:
    train = {"batches": order}
    trained(tmp_path / "one", {}, train)
    assert on_ranks(2, trained, tmp_path / "all", {}, train, "stop", 60.0, "fsdp") == [(3, "SIGTERM")] * 2
    assert on_ranks(4, trained, tmp_path / "all", {}, train, "", 60.0, "fsdp") == [(8, None)] * 4
    assert curve(tmp_path / "all") == pytest.approx(curve(tmp_path / "one"), abs=CURVE, rel=0)
    with pytest.raises(SystemExit) as end:
        main(["convert", str(tmp_path / "all"), str(tmp_path / "model")])
    assert end.value.code == 0
    for name, value in checkpoint.load(tmp_path / "one").state_dict().items():
        torch.testing.assert_close(
            checkpoint.load(tmp_path / "model").state_dict()[name], value, atol=CURVE, rtol=CURVE
        )


def taught(path: Path) -> None:
    """Train a model whose tokens are no bytes, and that is to be asked by a template."""
    model = BDH.from_seed(BDHConfig.from_dict(SHAPE | {"vocab_size": 300}), 0)
    words = train_bpe(iter([b"the cat sat on the mat. " * 40]), 270)
    text = replace(corpus(), tokenizer=words, prompting=Prompting("short", 0))
    with joined(parallel="fsdp") as world:
        fit(model, text, replace(TRAIN, max_steps=3), Run(path), quiet(), world=world)


def test_a_model_keeps_its_tokens_and_how_it_is_asked(tmp_path: Path) -> None:
    assert on_ranks(2, taught, tmp_path / "run") == [None] * 2
    with pytest.raises(SystemExit) as end:
        main(["convert", str(tmp_path / "run"), str(tmp_path / "model")])
    assert end.value.code == 0
    words = checkpoint.load_tokenizer(tmp_path / "model")
    assert words.encode("the cat").tolist() == checkpoint.load_tokenizer(tmp_path / "run").encode("the cat").tolist()
    assert len(words.encode("the cat")) < 7
    assert checkpoint.load_prompting(tmp_path / "model") == Prompting("short", 0)


def test_a_nan_in_the_gradient_of_one_rank_stops_all(tmp_path: Path) -> None:
    found = on_ranks(2, trained, tmp_path, {}, {"save_every": 1}, "gradient", 60.0, "fsdp")
    assert all(text.startswith("NonFiniteError: step 2: ") and "gradient norm nan: " in text for text in found), found


def test_the_index_of_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    checkpoint.write_config(BDHConfig.from_dict(SHAPE), tmp_path)
    (tmp_path / ".metadata").write_bytes(pickle.dumps(print))
    with pytest.raises(CheckpointError, match=r"names builtins\.print, which no checkpoint needs"):
        sharding.merge(tmp_path)


def test_what_needs_whole_tensors_is_refused(tmp_path: Path) -> None:
    for shape, train in (({"variant": "hatching"}, {}), ({}, {"clip": "adaptive"})):
        found = on_ranks(2, trained, tmp_path, shape, train, "", 60.0, "fsdp")
        assert all(text.startswith("ValueError: parallel=fsdp: expected") for text in found), found


@pytest.mark.parametrize("windows", [1, 5])
def test_ranks_validate_in_step(tmp_path: Path, windows: int) -> None:
    train = {"eval_windows": windows, "batch_size": 2, "max_steps": 4}
    trained(tmp_path / "one", {}, train)
    found = on_ranks(2, trained, tmp_path / "all", {}, train, "", 20.0, "fsdp", timeout=40)
    assert found == [(4, None)] * 2, found
    assert curve(tmp_path / "all") == pytest.approx(curve(tmp_path / "one"), abs=CURVE, rel=0)


def without_room(path: Path) -> object:
    """Train where no part of a checkpoint can be written."""
    full = OSError(errno.ENOSPC, "No space left on device")
    with mock.patch.object(sharding.FileSystemWriter, "write_data", side_effect=full):
        return trained(path, {}, {}, "", 20.0, "fsdp")


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    for text in on_ranks(2, without_room, tmp_path / "run"):
        assert text.startswith("SavingError: "), text
        assert "cannot be written ([Errno 28] No space left on device): make room or give rights, then" in text
