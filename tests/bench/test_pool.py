"""Contenders in processes of their own: what they answer, and what is said when they die."""

import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from bdh import BDH, checkpoint, process
from bdh.bench import Point, Settings
from bdh.bench.asking import Asking
from bdh.bench.loss import learn
from bdh.bench.pool import Failed, Pool, Worker
from bdh.bench.protocol import Declined
from bdh.bench.results import Timing
from bdh.bench.worker import Setup, windows
from bdh.config import BDHConfig, TrainConfig
from bdh.ops import reference

POINT = Point("train", 2, 16)
LARGE = Point("train", 1, 2**19)  # a score matrix of 2 TiB


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Shared, since a process takes seconds to begin: whoever ends a worker drops it."""
    folder = tmp_path_factory.mktemp("subject")
    config = BDHConfig(n_layer=3, n_embd=16, n_head=2, mlp_internal_dim_multiplier=8, dropout=0.0)
    checkpoint.write_model(BDH.from_seed(config, 0), folder)
    np.save(folder / "tokens.npy", np.arange(100, dtype=np.uint8))
    with Pool({name: Setup(name, folder, 1, 16, 0) for name in ("reference", "composed")}) as pool:
        yield pool


def asking(pool: Pool, **settings: object) -> Asking:
    return Asking(pool, Settings(repeats=3, **settings), turn=lambda name: None)


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_repetitions_are_timed(pool: Pool) -> None:
    cells = asking(pool).timings(("reference", "composed"), POINT)
    for cell in cells.values():
        assert isinstance(cell, Timing)
        assert len(cell.seconds) == 3
        assert 1e-5 < min(cell.seconds) <= max(cell.seconds) < 10
        assert cell.peak_bytes > 50 * 2**20  # torch alone


def test_workers_end_when_they_are_dropped(pool: Pool) -> None:
    pid = pool["composed"].pid
    assert exists(pid)
    pool.drop("composed")
    assert not exists(pid)


def test_a_killed_worker_is_reported_and_the_others_go_on(pool: Pool) -> None:
    pool["reference"].wait()
    os.kill(pool["reference"].pid, signal.SIGKILL)
    cells = asking(pool).timings(("reference", "composed"), POINT)
    assert cells["reference"] == "killed (SIGKILL), as the system does when memory runs out"
    assert isinstance(cells["composed"], Timing)
    assert pool["reference"].wait()["parameters"] > 0  # asked again, it begins anew


def test_other_ways_to_die_are_told(pool: Pool) -> None:
    worker = pool["reference"]
    worker.wait()
    os.kill(worker.pid, signal.SIGTERM)
    with pytest.raises(Failed, match="killed by SIGTERM"):
        worker.ask("warm_up", 10, point=POINT)
    pool.drop("reference")


def test_a_worker_that_cannot_begin_says_why(tmp_path: Path) -> None:
    worker = Worker(Setup("composed", tmp_path / "nothing", 1, 16, 0))
    with pytest.raises(Failed, match=r"FileNotFoundError.*nothing"):
        worker.wait()


def test_running_out_of_memory_is_a_result(pool: Pool) -> None:
    cells = asking(pool).memory(("reference",), LARGE)
    assert cells == {"reference": "out of memory"}


def test_a_contender_that_takes_too_long_is_ended(pool: Pool) -> None:
    worker = pool["composed"]
    worker.wait()
    with pytest.raises(Failed, match=r"no answer within 0 s \(--max-seconds\)"):
        worker.ask("warm_up", 0.0, point=Point("train", 8, 512))
    assert not exists(worker.pid)
    pool.drop("composed")


def test_declining_is_no_failure(pool: Pool) -> None:
    worker = pool["reference"]
    with pytest.raises(Declined, match="read the whole text again"):
        worker.ask("warm_up", 10, point=Point("decode", 1, 8, 100))
    assert worker.ask("warm_up", 10, point=POINT) >= 1


def test_memory_grows_with_the_tokens(pool: Pool) -> None:
    ask = asking(pool)
    small = ask.memory(("composed",), Point("train", 1, 64))["composed"]
    large = asking(pool).memory(("composed",), Point("train", 16, 512))["composed"]
    # 8,192 tokens; per token at least x, rotated x, y and xy of 3 levels with 128 neurons
    assert large.kept_bytes > 8192 * 3 * 4 * 128 * 4 > small.peak_bytes - small.before_bytes
    assert large.peak_bytes > large.before_bytes + large.kept_bytes


def test_peak_and_reset_are_of_this_process() -> None:
    before = process.peak()
    torch.ones(2**24)  # 64 MiB
    assert process.peak() >= before
    now = process.resident()
    if now is not None:
        process.reset_peak()
        pages = mmap.mmap(-1, 2**27)  # not from the allocator, which may have kept freed memory
        for at in range(0, len(pages), mmap.PAGESIZE):
            pages[at] = 1
        pages.close()
        assert process.peak() - now > 100 * 2**20


def test_windows_are_cut_from_the_tokens() -> None:
    idx, targets = windows(np.arange(10, dtype=np.uint8), Point("train", 2, 3))
    assert idx.tolist() == [[0, 1, 2], [4, 5, 6]]
    assert targets.tolist() == [[1, 2, 3], [5, 6, 7]]


class TestLearning:
    config = BDHConfig(n_layer=1, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4, dropout=0.0)
    train = TrainConfig(block_size=16, batch_size=8, max_steps=200, warmup_steps=2, eval_interval=10, eval_windows=4)

    @pytest.fixture
    def text(self, tmp_path: Path) -> Path:
        (tmp_path / "cats.txt").write_text("the cat sat on the mat. " * 60)
        return tmp_path / "cats.txt"

    def learn(self, text: Path, target_loss: float, max_seconds: float) -> dict:
        limits = {"target_loss": target_loss, "max_seconds": max_seconds}
        return learn("composed", config=self.config, train=self.train, data=text, **limits)

    def test_it_ends_at_the_target(self, text: Path) -> None:
        found = self.learn(text, 3.0, 60.0)
        losses = [loss for _, loss in found["curve"]]
        assert losses[0] == pytest.approx(5.5, abs=0.2)
        assert losses[-1] <= 3.0 < losses[-2]
        assert found["steps"] == 10 * (len(losses) - 1) < 200
        assert 0 < found["density"]["xy"] < found["density"]["x"] < 1

    def test_the_path_is_the_one_asked_for(self, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = []
        quadratic = reference.quadratic_attention
        monkeypatch.setattr(reference, "quadratic_attention", lambda q, v: (calls.append(q.shape), quadratic(q, v))[1])
        for backend, expected in (("composed", 0), ("reference", 10)):
            learn(backend, config=self.config, train=self.train, data=text, target_loss=0.01, max_seconds=1e-9)
            assert len(calls) == expected

    def test_it_ends_when_the_time_is_over(self, text: Path) -> None:
        found = self.learn(text, 0.01, 1e-9)
        assert found["steps"] == 10
        assert len(found["curve"]) == 2

    def test_it_ends_with_the_training(self, text: Path) -> None:
        assert self.learn(text, 0.001, 60.0)["steps"] == 200


def test_who_is_asked_to_end_ends_its_workers(tmp_path: Path) -> None:
    code = f"""
import os, signal, sys
from pathlib import Path
from bdh import BDH, BDHConfig, checkpoint
import numpy as np
from bdh.bench.pool import Pool
from bdh.bench.worker import Setup
folder = Path({str(tmp_path)!r})
checkpoint.write_model(BDH(BDHConfig(n_layer=1, n_embd=16, n_head=1, mlp_internal_dim_multiplier=4)), folder)
np.save(folder / "tokens.npy", np.arange(64, dtype=np.uint8))
with Pool({{"composed": Setup("composed", folder, 1, 8, 0)}}) as pool:
    pool["composed"].wait()
    print(pool["composed"].pid, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)
