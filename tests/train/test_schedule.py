import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdh import TrainConfig
from bdh.train import learning_rate


def config(schedule: str, steps: int = 101, warmup: int = 10) -> TrainConfig:
    return TrainConfig(learning_rate=2.0, warmup_steps=warmup, max_steps=steps + warmup, schedule=schedule)


@pytest.mark.parametrize(
    ("schedule", "middle", "end"), [("cosine", 1.1, 0.2), ("linear", 1.1, 0.2), ("constant", 2.0, 2.0)]
)
def test_warm_up_middle_and_end(schedule: str, middle: float, end: float) -> None:
    c = config(schedule)
    rates = [learning_rate(step, c) for step in (0, 4, 9, 10, 60, 110)]
    assert rates == pytest.approx([0.2, 1.0, 2.0, 2.0, middle, end])


def test_cosine_at_a_quarter() -> None:
    assert learning_rate(35, config("cosine")) == pytest.approx(0.2 + 1.8 * (1 + 2**-0.5) / 2)


@given(st.sampled_from(["cosine", "linear"]), st.integers(1, 300), st.integers(0, 50))
def test_the_rate_never_leaves_its_bounds_and_falls_after_the_warm_up(schedule: str, steps: int, warmup: int) -> None:
    c = config(schedule, steps, warmup)
    rates = [learning_rate(step, c) for step in range(c.max_steps)]
    assert all(0 < rate <= 2.0 for rate in rates)
    rise = min(warmup, c.max_steps // 2)
    assert rates[:rise] == sorted(rates[:rise])
    decay = rates[max(0, rise - 1) :]
    assert decay[0] == pytest.approx(2.0)
    assert decay == sorted(decay, reverse=True)
