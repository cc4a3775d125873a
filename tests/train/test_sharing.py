"""Neurons that processes share out train as one model, alone or with rows shared out too."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from bdh import checkpoint
from bdh.cli import main
from bdh.train import World
from bdh.train.sharing import Neurons
from ranks import on_ranks
from small_training import CURVE, curve, trained

WINDOWS = {"grad_acc_steps": 2}
STREAMS = {"batches": "streams", "clip": "adaptive", "grad_clip": 0.1}


def shared(
    path: Path, shape: dict[str, Any], train: dict[str, Any], ranks_per_model: int | None, spoil: str = ""
) -> Any:
    return trained(path, shape, train, spoil, 60.0, "neurons", ranks_per_model)


def densities(path: Path) -> list[float]:
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [
        share for record in records if "density" in record for shares in record["density"].values() for share in shares
    ]


@pytest.mark.parametrize("train", [WINDOWS, STREAMS], ids=["windows", "streams"])
@pytest.mark.parametrize(
    ("size", "ranks_per_model", "heads"), [(2, None, 2), (2, None, 1), (4, None, 2), (4, 2, 2)],
    ids=["a head each", "half a head each", "half of two heads each", "two models"],
)  # fmt: skip
def test_the_curve_is_that_of_one_process(
    tmp_path: Path, train: dict[str, Any], size: int, ranks_per_model: int | None, heads: int
) -> None:
    shape = {"n_head": heads}
    trained(tmp_path / "one", shape, train)
    assert on_ranks(size, shared, tmp_path / "all", shape, train, ranks_per_model) == [(8, None)] * size
    assert curve(tmp_path / "all") == pytest.approx(curve(tmp_path / "one"), abs=CURVE, rel=0)
    assert densities(tmp_path / "all") == pytest.approx(densities(tmp_path / "one"), abs=2e-4)  # a neuron at a token


def clipped_alone(path: Path, train: dict[str, Any]) -> Any:
    """Train with gradients that each rank clips by the norm of its own."""
    with mock.patch.object(Neurons, "norm", lambda self: torch.nn.utils.get_total_norm(self._gradients())):
        return shared(path, {}, train, None)


def test_norms_of_parts_give_another_curve(tmp_path: Path) -> None:
    train = WINDOWS | {"grad_clip": 0.05}
    trained(tmp_path / "one", {}, train)
    on_ranks(2, clipped_alone, tmp_path / "all", train)
    assert max(abs(a - b) for a, b in zip(curve(tmp_path / "all"), curve(tmp_path / "one"), strict=True)) > 10 * CURVE


def losses(path: Path) -> list[float]:
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [record["train_loss"] for record in records if "train_loss" in record]


@pytest.mark.parametrize("order", ["windows", "streams"])
def test_a_run_goes_on_in_other_parts_and_as_a_whole(tmp_path: Path, order: str) -> None:
    train = {"batches": order, "schedule": "constant"}
    trained(tmp_path / "one", {}, train)
    path = tmp_path / "all"
    assert on_ranks(2, shared, path, {}, train, None, "stop") == [(3, "SIGTERM")] * 2
    assert on_ranks(4, shared, path, {}, train | {"max_steps": 5}, 2) == [(5, None)] * 4
    assert on_ranks(2, trained, path, {}, train | {"max_steps": 6}, "", 60.0, "fsdp") == [(6, None)] * 2
    with pytest.raises(SystemExit) as end:
        main(["convert", str(path), str(tmp_path / "model")])
    assert end.value.code == 0
    assert trained(path, {}, train) == (8, None)
    assert losses(path) == pytest.approx(losses(tmp_path / "one"), abs=CURVE, rel=0)
    assert checkpoint.load(tmp_path / "model").config == checkpoint.load(path).config
    found = on_ranks(2, shared, path, {}, train | {"max_steps": 9}, None)
    assert all("is whole, not in parts: go on with --parallel data" in text for text in found), found


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_a_nan_stops_all(tmp_path: Path, how: str) -> None:
    found = on_ranks(2, shared, tmp_path, {}, {"save_every": 1}, None, how)
    assert all(text.startswith("NonFiniteError: step 2: ") for text in found), found
    assert ("on rank 1 of 2" in found[0]) == (how == "loss")


def test_a_rank_that_dies_is_noticed(tmp_path: Path) -> None:
    found = on_ranks(2, shared, tmp_path, {}, {}, None, "death", timeout=6)
    assert found[0].startswith("LostRankError: rank 0 of 2: another process died or does not answer ("), found


def test_what_cannot_be_shared_out_is_refused(tmp_path: Path) -> None:
    for shape, train, each, said in (
        ({"variant": "hatching"}, {}, None, "neurons are shared out of a model without mechanisms"),
        ({}, {"backend": "native"}, None, "parallel=neurons: expected no compile and backend auto"),
        ({}, {}, 3, "groups of 3 processes: expected a divisor of the 2 that were started"),
    ):
        found = on_ranks(2, shared, tmp_path / "run", shape, train, each)
        assert all(text.startswith(f"ValueError: {said}") for text in found), found
        assert not (tmp_path / "run").exists()


def test_alone_there_is_nothing_to_split() -> None:
    rows, neurons = World(2, 4).split(1)
    assert (rows, neurons.size) == (World(2, 4), 1)
    rows, neurons = World(2, 4).split(4)
    assert (rows.size, neurons) == (1, World(2, 4))


def test_commands_say_what_to_do_with_a_checkpoint_in_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert on_ranks(2, shared, tmp_path / "run", {}, {}, None) == [(8, None)] * 2
    for command, said in (
        (["generate", "--model"], "is in parts: make a model of it by bdh convert, or go on by --parallel fsdp"),
        (["train", "--resume-from"], "was not begun by bdh train: go on with bdh.train.fit"),
    ):
        with pytest.raises(SystemExit) as end:
            main([*command, str(tmp_path / "run")])
        assert end.value.code == 2
        assert said in capsys.readouterr().err
