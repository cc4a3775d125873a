"""Rates: losses, measures, and the controller of thresholds."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bdh import ops
from bdh.mechanisms import (
    ThresholdController,
    dead_fraction,
    firing_rates,
    gini,
    hoyer,
    rate_band_loss,
    rate_loss,
    saturated_fraction,
    sparsity_loss,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# losses


def test_rates_are_shares_of_tokens_and_learn_through_the_surrogate() -> None:
    h = normal(4, 2, 50, 3).requires_grad_()
    rates = firing_rates(ops.spike_function(h - 0.5))
    assert rates.shape == (2, 3)
    assert torch.equal(rates, (h >= 0.5).float().mean(dim=(0, 2)))
    rate_loss(rates, 0.9).backward()
    assert (h.grad < 0).all()  # every potential should rise
    assert firing_rates(torch.ones(1, 1, 3, 1, dtype=torch.bfloat16)).dtype == torch.float32


def test_the_rate_loss_is_per_neuron() -> None:
    """Half of the neurons dead, half at twice the target: the mean is on target, the neurons are not."""
    rates = torch.tensor([[0.0, 0.2]], requires_grad=True)
    loss = rate_loss(rates, 0.1)
    assert (rates.mean() - 0.1).abs() < 1e-7
    assert loss.item() == pytest.approx(0.01)
    loss.backward()
    assert rates.grad.tolist() == [pytest.approx([-0.1, 0.1])]


def test_the_band_loss_is_free_within_the_band_and_revives_the_dead() -> None:
    rates = torch.tensor([0.0, 0.05, 0.12, 0.2, 0.5], requires_grad=True)
    rate_band_loss(rates, 0.05, 0.2).backward()
    assert rates.grad.tolist() == pytest.approx([-0.02, 0.0, 0.0, 0.0, 0.12])


def test_the_sparsity_loss_is_the_mean_size() -> None:
    activity = torch.tensor([0.0, 1.0, -3.0], requires_grad=True)
    loss = sparsity_loss(activity)
    loss.backward()
    assert loss.item() == pytest.approx(4 / 3)
    assert activity.grad.tolist() == pytest.approx([0.0, 1 / 3, -1 / 3])


# measures


def test_dead_and_saturated_neurons_are_counted() -> None:
    rates = torch.tensor([[0.0, 5e-5, 1e-4, 0.1], [0.5, 0.9, 0.95, 1.0]])
    assert dead_fraction(rates).item() == 2 / 8
    assert saturated_fraction(rates).item() == 2 / 8
    assert saturated_fraction(rates, above=0.4).item() == 4 / 8


@given(st.lists(st.integers(0, 50), min_size=2, max_size=20).filter(any), st.floats(0.1, 10))
def test_gini_is_half_the_mean_difference(values: list[int], scale: float) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    n = len(values)
    expected = (x[:, None] - x[None, :]).abs().sum() / (2 * n * n * x.mean())
    assert gini(x * scale).item() == pytest.approx(expected.item(), abs=1e-12)


def test_gini_and_hoyer_of_known_distributions() -> None:
    exponential = -torch.log1p(-(torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000)
    assert gini(exponential).item() == pytest.approx(0.5, abs=1e-4)
    assert hoyer(exponential).item() == pytest.approx(1 - 1 / math.sqrt(2), abs=3e-3)  # E|x| / sqrt(E x^2) = 1/sqrt 2
    k_of_n = torch.zeros(64).index_fill(0, torch.arange(16), 2.0)
    assert gini(k_of_n).item() == pytest.approx(1 - 16 / 64)
    assert hoyer(k_of_n).item() == pytest.approx((8 - 4) / (8 - 1))
    assert gini(torch.zeros(4)).isnan()
    assert hoyer(torch.zeros(4)).isnan()


# the controller


def test_thresholds_find_the_quantile() -> None:
    control = ThresholdController((1, 1), rate=0.1)
    for step in range(400):
        potentials = normal(4, 1, 250, 1, seed=step)
        control.observe((potentials >= control.threshold).float())
        control.homeostasis_step()
    assert control.threshold.item() == pytest.approx(1.2816, abs=0.05)


def test_thresholds_per_head_and_per_neuron_follow_their_own() -> None:
    scale = torch.tensor([1.0, 3.0])
    for shape in ((2, 1), (2, 5)):
        control = ThresholdController(shape, rate=0.2, eta=1.0)
        for step in range(600):
            potentials = normal(4, 2, 100, 5, seed=step) * scale[:, None, None]
            control.observe((potentials >= control.threshold[:, None]).float())
            control.homeostasis_step()
        assert (control.threshold / scale[:, None] - 0.8416).abs().max() < 0.2
        assert (control.threshold.mean(1) / scale - 0.8416).abs().max() < 0.05


@given(eta=st.floats(0.05, 3.0), spread=st.floats(0.1, 5.0), steps=st.integers(1, 30))
def test_the_mean_error_is_the_way_of_the_threshold(eta: float, spread: float, steps: int) -> None:
    """mean_t r_t - r* = (theta_T - theta_0) / (eta spread T), exactly."""
    control = ThresholdController((1, 1), rate=0.1, eta=eta, spread=spread, threshold=0.3).double()
    rates, start = [], control.threshold.item()
    for step in range(steps):
        spikes = (normal(1, 1, 40, 1, seed=step) >= control.threshold).double()
        rates.append(spikes.mean().item())
        control.observe(spikes)
        control.homeostasis_step()
    moved = (control.threshold.item() - start) / (eta * control.spread.item() * steps)
    assert sum(rates) / steps - 0.1 == pytest.approx(moved, abs=1e-12)


def test_batches_of_one_step_count_by_their_tokens() -> None:
    """Gradient accumulation: three small batches are one large batch."""
    one, three = ThresholdController((2, 3)), ThresholdController((2, 3))
    spikes = (normal(6, 2, 10, 3) > 1).float()
    one.observe(spikes)
    for part in (spikes[:1], spikes[1:3], spikes[3:]):
        three.observe(part)
    one.homeostasis_step()
    three.homeostasis_step()
    assert one.threshold.std() > 0
    assert torch.allclose(one.threshold, three.threshold, atol=1e-7)


def test_nothing_moves_in_eval_mode_or_without_observations() -> None:
    control = ThresholdController((1, 1), threshold=0.5)
    control.homeostasis_step()
    assert control.threshold.item() == 0.5
    control.eval()
    control.observe(torch.ones(1, 1, 4, 1))
    control.homeostasis_step()
    assert control.threshold.item() == 0.5
    control.train()
    control.observe(torch.ones(1, 1, 4, 1))
    control.homeostasis_step()
    assert control.threshold.item() == pytest.approx(0.5 + 0.3 * 0.9)


def test_no_threshold_falls_below_the_floor() -> None:
    control = ThresholdController((1, 1), eta=10.0, threshold=0.5, floor=0.0)
    for _ in range(5):
        control.observe(torch.zeros(1, 1, 4, 1))
        control.homeostasis_step()
    assert control.threshold.item() == 0


def test_casts_leave_float32_at_least() -> None:
    control = ThresholdController((1, 1), threshold=1.0).half()
    assert {t.dtype for t in control.buffers()} == {torch.float32, torch.int64}
    assert control.double().threshold.dtype == torch.float64


@pytest.mark.parametrize("settings", [{"rate": 0.0}, {"rate": 1.0}, {"eta": 0.0}, {"spread": -1.0}])
def test_impossible_settings_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match="expected"):
        ThresholdController((1, 1), **settings)
