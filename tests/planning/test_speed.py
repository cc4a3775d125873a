"""Timing steps: that the real ones are timed, and what is made of a part of them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bdh import BDH, BDHConfig, planning
from bdh.bench.planted import plant
from bdh.config import TrainConfig
from bdh.planning import planner, speed
from bdh.planning.work import TRAINED, Activity
from bdh.train.fit import Training

SHAPE = BDHConfig(n_layer=3, n_embd=16, n_head=2, mlp_internal_dim_multiplier=32, dropout=0.0)
TRAIN = TrainConfig(batch_size=2, block_size=32, warmup_steps=1, grad_acc_steps=2, device="cpu")


def test_calibration_measures_both_activities() -> None:
    speeds = planning.calibrate(SHAPE, TRAIN)
    assert list(speeds) == ["random", "trained"]
    for found in speeds.values():
        assert found.tokens_per_s == pytest.approx(128 / found.seconds_per_step)
        assert 0 < found.update_seconds < found.seconds_per_step
        assert 0 < found.decode_ms < 1000
        assert found.scaled is None
    assert speeds["random"].activity.x == pytest.approx(0.5, abs=0.05)
    assert speeds["trained"].activity.x == pytest.approx(0.2, abs=0.03)
    assert speeds["trained"].activity.xy == pytest.approx(0.05, abs=0.02)


def test_another_activity_is_planted_where_a_run_has_one() -> None:
    found = planning.calibrate(SHAPE, TRAIN, trained=Activity(0.3, 0.1))
    assert found["trained"].activity.x == pytest.approx(0.3, abs=0.03)


def test_winners_have_one_activity() -> None:
    assert set(planning.calibrate(replace(SHAPE, sparsity=0.9), TRAIN)) == {"random"}


class Clock:
    """Stands still but for training: a call that makes ready, and a price per level and window."""

    ONCE, LEVEL, UPDATE = 0.5, 0.25, 0.125

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.asked = 0.0, []
        monkeypatch.setattr(speed.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(Training, "accumulate", lambda training: self._accumulate(training))
        monkeypatch.setattr(Training, "update", lambda training, loss: self._update(loss))

    def _accumulate(self, training: Training) -> torch.Tensor:
        part = training.model.config.n_layer, training.config.batch_size
        self.asked.append(part)
        self.now += self.ONCE + self.LEVEL * part[0] * part[1]
        return torch.zeros(())

    def _update(self, loss: torch.Tensor) -> torch.Tensor:
        self.now += self.UPDATE
        return loss


def test_a_part_tells_the_price_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    config, train = replace(SHAPE, n_layer=6, vocab_size=8), replace(TRAIN, batch_size=16, grad_acc_steps=3)
    found = planning.calibrate(config, train)["random"]
    assert found.scaled == "2 of 6 levels, 1 of 16 windows"
    assert set(clock.asked) == {(1, 1), (2, 1)}
    whole = clock.ONCE + clock.LEVEL * 6 * 16
    assert found.update_seconds == clock.UPDATE
    # all but the readout, which is told from the levels by its share of the products
    assert found.seconds_per_step == pytest.approx(3 * whole + clock.UPDATE, rel=0.02)
    assert found.tokens_per_s == pytest.approx(3 * 16 * 32 / found.seconds_per_step)


def test_what_is_quick_is_timed_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    clock.ONCE, clock.LEVEL = 0.0, 2**-6
    found = planning.calibrate(SHAPE, TRAIN)["random"]
    assert found.scaled is None
    assert set(clock.asked) == {(1, 1), (3, 2)}
    assert found.seconds_per_step == 2 * 6 * 2**-6 + clock.UPDATE


def test_what_does_not_fit_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner.memory, "of_device", lambda device: 2**20)
    assert planning.why_not(SHAPE, TRAIN) == "not even one level of one window fits into the memory"
    with pytest.raises(ValueError, match="--no-calibrate"):
        planning.calibrate(SHAPE, TRAIN)
    one = planning.make(replace(SHAPE, n_layer=1), replace(TRAIN, batch_size=1)).peak_bytes
    monkeypatch.setattr(planner.memory, "of_device", lambda device: one)
    assert planning.why_not(SHAPE, TRAIN) is None


def test_timing_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, state = BDH.from_seed(SHAPE, 0), torch.random.get_rng_state()
    before = [p.clone() for p in model.parameters()]
    planning.calibrate(SHAPE, TRAIN)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert torch.equal(state, torch.random.get_rng_state())
    assert list(tmp_path.iterdir()) == []
    plant(model, torch.zeros(1, 8, dtype=torch.long), x=TRAINED.x)
    assert not torch.equal(before[1], model.encoder)
