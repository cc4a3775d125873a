"""Processes that share each batch out take the steps of one process, and stop together."""

import json
from pathlib import Path

import pytest
import torch

from bdh import checkpoint
from bdh.train import LostRankError, World
from ranks import command, on_ranks
from small_training import CURVE, curve, trained

MODELS = {
    "bdh": {},
    "hatching": {"variant": "hatching"},
    "bcm": {"bcm": {"kappa": 1.0, "tau": 2.0}},
}
ORDERS = {
    "windows": {"grad_acc_steps": 2},
    "streams": {"batches": "streams", "clip": "adaptive", "grad_clip": 0.1},
}


@pytest.mark.parametrize(("model", "size"), [("bdh", 2), ("bdh", 4), ("hatching", 2), ("bcm", 2)])
@pytest.mark.parametrize("order", ORDERS)
def test_the_curve_is_that_of_one_process(tmp_path: Path, model: str, order: str, size: int) -> None:
    assert trained(tmp_path / "one", MODELS[model], ORDERS[order]) == (8, None)
    assert on_ranks(size, trained, tmp_path / "all", MODELS[model], ORDERS[order]) == [(8, None)] * size
    one, several = curve(tmp_path / "one"), curve(tmp_path / "all")
    assert len(one) == 11
    assert several == pytest.approx(one, abs=CURVE, rel=0)
    # every buffer that adapts saw the rows of all ranks
    of_one, of_all = (checkpoint.load(tmp_path / name).state_dict() for name in ("one", "all"))
    for name, value in of_one.items():
        torch.testing.assert_close(of_all[name], value, atol=CURVE, rtol=CURVE)


def test_other_rows_give_another_curve(tmp_path: Path) -> None:
    trained(tmp_path / "one", {}, {})
    trained(tmp_path / "half", {}, {"batch_size": 2})
    assert max(abs(a - b) for a, b in zip(curve(tmp_path / "one"), curve(tmp_path / "half"), strict=True)) > 1e-3


def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    streams = ORDERS["streams"]
    trained(tmp_path / "one", {}, streams)
    assert on_ranks(2, trained, tmp_path / "all", {}, streams, "stop") == [(3, "SIGTERM")] * 2
    assert on_ranks(4, trained, tmp_path / "all", {}, streams) == [(8, None)] * 4
    assert curve(tmp_path / "all") == pytest.approx(curve(tmp_path / "one"), abs=CURVE, rel=0)


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_a_nan_on_one_rank_stops_all(tmp_path: Path, how: str) -> None:
    found = on_ranks(2, trained, tmp_path / "run", {}, {"save_every": 1}, how)
    assert [text.split(":")[0] for text in found] == ["NonFiniteError"] * 2
    assert "gradient norm nan on rank 1 of 2: expected finite numbers" in found[0]
    assert "step 2: " in found[0]
    assert checkpoint.load(tmp_path / "run").decoder.isfinite().all()


@pytest.mark.parametrize(
    ("how", "patience", "parallel"), [("death", 60.0, "data"), ("death", 60.0, "fsdp"), ("hang", 3.0, "data")]
)
def test_a_rank_that_is_gone_is_noticed(tmp_path: Path, how: str, patience: float, parallel: str) -> None:
    found = on_ranks(2, trained, tmp_path / "run", {}, {}, how, patience, parallel, timeout=6)
    assert found[1] is None
    assert found[0].startswith("LostRankError: rank 0 of 2: another process died or does not answer ("), found
    assert found[0].count("\n") == 0


def test_an_error_of_its_own_is_no_lost_rank() -> None:
    with pytest.raises(RuntimeError, match="shapes") as found, World().together():
        raise RuntimeError("shapes")
    assert not isinstance(found.value, LostRankError)


def test_one_rank_that_is_asked_to_stop_stops_all(tmp_path: Path) -> None:
    assert on_ranks(2, trained, tmp_path / "run", {}, {}, "stop") == [(3, "SIGTERM")] * 2
    assert (tmp_path / "run" / "checkpoints" / "last").read_text() == "step-00000003\n"


def test_the_command_speaks_once(tmp_path: Path) -> None:
    text = tmp_path / "cats.txt"
    text.write_bytes(b"the cat sat on the mat. " * 400)
    shape = "--n-layer 1 --n-embd 16 --n-head 2 --mlp-mult 4 --block-size 16 --max-steps 3 --warmup-steps 1"
    arguments = ["train", "--data", str(text), *shape.split(), "--eval-windows", "4", "--json"]
    first, second = on_ranks(2, command, [*arguments, "--out-dir", str(tmp_path / "run"), "--batch-size", "4"])
    assert first[0] == second[0] == 0, first
    assert json.loads(first[1])["step"] == 3
    assert "step 3 of 3 done" in first[2]
    assert second[1:] == ("", "")
    wrong = on_ranks(2, command, [*arguments, "--out-dir", str(tmp_path / "odd"), "--batch-size", "3"])
    assert wrong[0][0] == 2
    assert wrong[0][2].splitlines()[-1].startswith("bdh: batch_size=3: expected a multiple of the 2 processes")
    too_fast = ["--batch-size", "4", "--learning-rate", "1e30", "--grad-clip", "0"]
    nan = on_ranks(2, command, [*arguments, "--out-dir", str(tmp_path / "nan"), *too_fast])
    assert [code for code, _, _ in nan] == [1, 1]
    assert nan[1][1:] == ("", "")


def test_rows_must_be_shared_out_evenly() -> None:
    with pytest.raises(ValueError, match="batch_size=4: expected a multiple of the 3 processes"):
        World(0, 3).rows(4)
