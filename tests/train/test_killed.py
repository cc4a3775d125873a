"""Trainings killed by SIGKILL at random moments and gone on with: nothing is lost, and the curve is the same."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import bdh
from bdh import BDH, BDHConfig

KILLED_RUNS = Path(__file__).with_name("killed_runs.py")
KILLS = 14
"""Of each of four ways to train."""
TIMES = {"train_seconds", "tokens_per_s", "peak_bytes"}
"""What differs between two runs of the same numbers."""


def curve(run: Path) -> list[dict]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


def names(run: Path) -> list[str]:
    return sorted(str(path.relative_to(run)) for path in run.rglob("*"))


def tensors(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {str(file.relative_to(run)): load_file(file) for file in run.rglob("*.safetensors")}


def texts(run: Path) -> dict[str, bytes]:
    """What else a run holds that depends on its numbers only."""
    files = ("samples.txt", "checkpoints/last", "checkpoints/best")
    return {name: (run / name).read_bytes() for name in files}


def progress(run: Path) -> list[dict]:
    found = [json.loads(file.read_text()) for file in sorted(run.rglob("progress.json"))]
    return [{key: value for key, value in content.items() if key not in TIMES} for content in found]


def assert_same(run: Path, whole: Path) -> None:
    assert names(run) == names(whole)  # the same checkpoints, and nothing left behind
    assert curve(run) == curve(whole)
    assert progress(run) == progress(whole)
    assert texts(run) == texts(whole)
    mine, theirs = tensors(run), tensors(whole)
    for file in theirs:
        assert mine[file].keys() == theirs[file].keys()
        assert all(mine[file][name].equal(theirs[file][name]) for name in theirs[file]), file


@pytest.mark.slow
def test_kills_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, KILLED_RUNS, tmp_path, str(KILLS)], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert sum(case["kills"] for case in told.values()) >= 50
    for case, about in told.items():
        assert about["kills"] == KILLS
        assert len(set(about["starts"])) >= 3, "kills came too early to find anything to go on from"
        whole = tmp_path / case / "whole"
        assert len(curve(whole)) == 60 + 10  # each step, and each validation
        for number in range(about["runs"]):
            assert_same(tmp_path / case / str(number), whole)


TIMING = "--warmup-steps 2 --eval-interval 100 --save-every 30 --eval-windows 4 --max-steps 100 --log-interval 1"
COMMANDS = {
    "train": "train --data cats.txt --n-layer 2 --n-embd 16 --n-head 2 --mlp-mult 8 --block-size 16 --batch-size 4 "
    "--resume-from auto",
    "finetune": "finetune --model model --data asks.jsonl --template short --replay cats.txt --block-size 64 "
    "--batch-size 4 --lora-rank 2 --resume --json",
}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_kills_of_the_command_lose_nothing(tmp_path: Path, command: str) -> None:
    (tmp_path / "cats.txt").write_text("the cat sat on the mat. " * 60)
    rows = [{"instruction": f"{n}?", "output": f"{n}!"} for n in range(200)]
    (tmp_path / "asks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shape = BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=8)
    bdh.save(BDH.from_seed(shape, 0), tmp_path / "model")
    words = [*COMMANDS[command].split(), *TIMING.split(), "--out-dir"]

    def begin(out_dir: str) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-m", "bdh", *words, out_dir], cwd=tmp_path, stdout=subprocess.DEVNULL)

    assert begin("whole").wait(120) == 0
    dice, kills = random.Random(1), 0
    for step in (20, 70):
        process, metrics = begin("killed"), tmp_path / "killed" / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) > step):
            time.sleep(0.005)
        time.sleep(dice.uniform(0, 0.1))
        os.kill(process.pid, signal.SIGKILL)
        kills += process.wait(10) == -signal.SIGKILL
    assert kills == 2
    assert begin("killed").wait(120) == 0
    assert_same(tmp_path / "killed", tmp_path / "whole")
