"""Measures of criticality on processes whose answer is known, and the gain that follows one of them."""

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import power_law
from bdh.mechanisms import (
    Avalanches,
    CriticalityRegulator,
    avalanches,
    branching_ratio,
    jacobian_gain,
    spike_counts,
)
from tolerances import CONTROL, SAME, error


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def driven(m: float, h: float, trials: int, length: int, seed: int = 0, *, at_most: int = 10**9) -> np.ndarray:
    """Branching with input: A' ~ Poisson(m A + h)."""
    rng = np.random.default_rng(seed)
    A, rows = np.full(trials, min(h / max(1 - m, 0.01), at_most)).astype(np.int64), []
    for _ in range(length + 100):
        A = np.minimum(rng.poisson(m * A + h), at_most)
        rows.append(A)
    return np.stack(rows[100:], 1)


def saturating(
    m: float, neurons: int, trials: int, length: int, seed: int = 0, drive: float = 1.0, start: float = 0.0
) -> torch.Tensor:
    """Branching among neurons that fire once per token at most."""
    rng = np.random.default_rng(seed)
    A, rows = np.full(trials, start), []
    for _ in range(length + 50):
        A = rng.binomial(neurons, 1 - np.exp(-(m * A + drive) / neurons))
        rows.append(A)
    return torch.from_numpy(np.stack(rows[50:], 1))


NINE = driven(0.9, 10.0, trials=50, length=2000)


def test_the_process_is_the_one_with_the_known_answer() -> None:
    assert NINE.mean() == pytest.approx(10 / (1 - 0.9), rel=0.02)
    assert NINE.var() == pytest.approx(100 / (1 - 0.9**2), rel=0.05)


@pytest.mark.parametrize("seen", [1.0, 0.1, 0.02])
def test_branching_ratio_of_a_process_seen_in_part(seen: float) -> None:
    counts = torch.from_numpy(np.random.default_rng(1).binomial(NINE, seen))
    found = branching_ratio(counts)
    # where few neurons are seen, every slope is weaker by the same factor
    b = 1 / (1 + (1 - seen) / seen * (1 - 0.9**2))
    assert found.m == pytest.approx(0.9, abs=0.015)
    assert found.low < 0.9 < found.high
    assert found.high - found.low < 0.05
    assert found.b == pytest.approx(b, rel=0.05)
    assert found.slopes[0].item() == pytest.approx(0.9 * b, rel=0.05)
    # what is left in random order is that the means of the trials differ by chance
    assert found.shuffled.abs().max() < 0.03
    assert found.slopes[0] > 5 * found.shuffled.abs().max()
    if seen < 1:
        assert found.slopes[0] < 0.4  # what the first slope alone would have called the ratio


def test_slow_branching() -> None:
    counts = np.random.default_rng(1).binomial(driven(0.98, 10.0, trials=50, length=3000), 0.02)
    assert branching_ratio(torch.from_numpy(counts), steps=150, bootstrap=100).m == pytest.approx(0.98, abs=0.005)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    # 95 % of 40: fewer than 33 has a probability below 1 %
    inside = 0
    for seed in range(40):
        found = branching_ratio(torch.from_numpy(driven(0.8, 5.0, 30, 300, seed)), steps=12, bootstrap=200)
        inside += found.low < 0.8 < found.high
    assert inside >= 33


@pytest.mark.parametrize(("m", "looks_like"), [(1.2, 0.83), (1.5, 0.62)])
def test_saturation_hides_that_a_network_is_supercritical(m: float, looks_like: float) -> None:
    counts = saturating(m, neurons=1000, trials=40, length=1500, start=300)
    assert branching_ratio(counts, steps=20, bootstrap=10).m == pytest.approx(looks_like, abs=0.02)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (torch.zeros(3, 200), "counts that vary"),
        (torch.arange(200.0)[None], "M >= 2 trials"),
        (torch.rand(3, 100), "T > 2 steps"),
    ],
)
def test_counts_that_say_nothing_are_refused(counts: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        branching_ratio(counts)


def test_spikes_are_counted_per_token() -> None:
    activity = torch.zeros(2, 3, 4, 5)
    activity[1, :, 2, :2] = 0.5
    assert spike_counts(activity).tolist() == [[0, 0, 0, 0], [0, 0, 6, 0]]


def trees(count: int, length: int, m: float = 1.0) -> np.ndarray:
    """Offspring per generation of Galton-Watson trees with Poisson offspring, a silent token before each."""
    rng = np.random.default_rng(0)
    generations = np.zeros((count, length + 1), dtype=np.int64)
    alive, A = np.arange(count), np.ones(count, dtype=np.int64)
    for t in range(1, length + 1):
        generations[alive, t] = A
        A = rng.poisson(m * A)
        alive, A = alive[A > 0], A[A > 0]
    return generations


@pytest.fixture(scope="module")
def critical() -> Avalanches:
    return avalanches(torch.from_numpy(trees(10_000, 600)), threshold=0)


def borel(s: int, m: float) -> float:
    return (m * s) ** (s - 1) * math.exp(-m * s) / math.factorial(s)


def test_sizes_of_critical_trees_are_borel(critical: Avalanches) -> None:
    sizes = critical.sizes
    for s, expected in ((1, 0.3679), (2, 0.1353), (3, 0.0747)):
        assert borel(s, 1.0) == pytest.approx(expected, abs=1e-4)
        sigma = (expected * (1 - expected) / len(sizes)) ** 0.5
        assert abs((sizes == s).double().mean().item() - expected) < 4 * sigma


def test_the_tail_of_critical_sizes_has_exponent_three_halves(critical: Avalanches) -> None:
    tau, sigma = power_law.fit(critical.sizes.long(), 10, 20_000)
    assert abs(tau - 1.5) < 3 * sigma
    assert sigma < 0.02
    # in random order nothing of the tail is left
    shuffled, sigma = power_law.fit(critical.shuffled_sizes.long(), 10, 20_000)
    assert abs(shuffled - 1.5) > 10 * sigma


def test_critical_trees_survive_as_long_as_the_recursion_says(critical: Avalanches) -> None:
    q = [1.0]
    for _ in range(599):
        q.append(1 - math.exp(-q[-1]))
    assert q[100] == pytest.approx(0.019353, abs=1e-6)
    # trees that outlive the recording are cut off and left out
    expected = (q[100] - q[599]) / (1 - q[599])
    share = (critical.durations > 100).double().mean().item()
    assert share == pytest.approx(expected, abs=4 * (expected / 10_000) ** 0.5)


def test_subcritical_trees_have_the_expected_mean_size() -> None:
    sizes = avalanches(torch.from_numpy(trees(10_000, 400, m=0.9)), threshold=0).sizes
    # Borel: mean 1 / (1 - m), variance m / (1 - m)^3
    assert sizes.mean().item() == pytest.approx(10, abs=4 * (0.9 / 0.1**3 / 10_000) ** 0.5)
    assert power_law.fit(sizes.long(), 10, 20_000)[0] > 1.7


def test_excursions_are_cut_where_they_cross_the_threshold() -> None:
    counts = torch.tensor([[9, 1, 5, 6, 1, 1, 7, 2], [1, 4, 1, 1, 3, 1, 1, 9]])
    found = avalanches(counts, threshold=2)
    # 9 at the start and 9 at the end are cut off by the recording
    assert (found.sizes.tolist(), found.durations.tolist()) == ([3.0 + 4.0, 5.0, 2.0, 1.0], [2, 1, 1, 1])
    median = avalanches(counts)  # the lower median of the 16 counts is 1
    assert median.durations.tolist() == [2, 1, 1]
    assert avalanches(torch.zeros(2, 5)).sizes.tolist() == []
    with pytest.raises(ValueError, match=r"counts\[None\]"):
        avalanches(torch.zeros(5))


def orthogonal(seed: int, n: int) -> torch.Tensor:
    return torch.linalg.qr(normal(seed, n, n)).Q


@pytest.mark.parametrize("c", [0.5, 1.0, 2.0])
def test_a_scaled_rotation_has_gain_c_squared(c: float) -> None:
    W = c * orthogonal(0, 32)
    gains = jacobian_gain(lambda v: v @ W, normal(1, 2, 5, 32), tangent=False)
    assert (gains - c**2).abs().max() < 1e-12
    # rotations that keep the sum keep the sphere of normalised vectors: the same answer along it
    basis = torch.linalg.qr(torch.cat([torch.ones(32, 1, dtype=torch.float64), normal(2, 32, 31)], 1)).Q
    turn = torch.block_diag(torch.eye(1, dtype=torch.float64), orthogonal(3, 31))
    kept = c * basis @ turn @ basis.mT
    assert (jacobian_gain(lambda v: v @ kept, normal(1, 2, 5, 32)) - c**2).abs().max() < 1e-12


def test_gain_equals_the_norm_of_the_whole_jacobian() -> None:
    W = normal(0, 12, 12) / 12**0.5

    def step(v: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(v + (v @ W).relu(), (12,))

    v = F.layer_norm(normal(1, 12), (12,))
    jacobian = torch.autograd.functional.jacobian(step, v)

    def basis(at: torch.Tensor) -> torch.Tensor:
        span = torch.stack([torch.ones(12, dtype=torch.float64), at], 1)
        return torch.linalg.qr(torch.cat([span, normal(2, 12, 10)], 1)).Q[:, 2:]

    exact = (basis(step(v)).mT @ jacobian @ basis(v)).square().sum() / 10
    gains = jacobian_gain(step, v, probes=2000)
    assert gains.mean().item() == pytest.approx(exact.item(), abs=4 * gains.std().item() / 2000**0.5)
    # what points off the sphere would count otherwise
    all_directions = jacobian_gain(step, v, probes=2000, tangent=False).mean()
    assert abs(all_directions - exact) > 10 * gains.std() / 2000**0.5


def test_a_residual_gain_scales_the_deviation_from_one() -> None:
    """LN(x + g y): chi - 1 = g^2 (chi_y - 1) / (1 + g^2) for a y that is independent of x."""
    W = normal(0, 400, 400) / 20

    def branch(v: torch.Tensor, g: float) -> torch.Tensor:
        return g * F.layer_norm((v @ W).pow(3), (400,))

    v = F.layer_norm(normal(2, 8, 400), (400,))
    chi_y = jacobian_gain(lambda v: branch(v, 1.0), v, 20).mean()
    assert chi_y > 1.5
    for g in (0.5, 1.0, 2.0):
        # what x and y still have in common changes its sign with g
        both = [jacobian_gain(lambda v, g=g: F.layer_norm(v + branch(v, g), (400,)), v, 20).mean() for g in (g, -g)]
        assert (sum(both) / 2 - 1).item() == pytest.approx((g**2 * (chi_y - 1) / (1 + g**2)).item(), rel=0.05)


def test_the_gain_of_a_step_that_changes_the_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="keep the shape"):
        jacobian_gain(lambda v: v[..., :3], normal(0, 5, 4))


Network = Callable[[float, int], torch.Tensor]


def crowded(m: float, seed: int) -> torch.Tensor:
    """300 neurons, independent until all of them fire."""
    return torch.from_numpy(driven(m, 0.5, trials=40, length=150, seed=seed, at_most=300))


def filling(m: float, seed: int) -> torch.Tensor:
    """300 neurons, of which those that fire cannot be recruited once more."""
    return saturating(m, 300, trials=40, length=150, seed=seed, drive=0.2)


def regulate(part: CriticalityRegulator, network: Network, m0: float, steps: int) -> float:
    """Close the loop on a network with branching ratio g m0; return the ratio's mean over the last third."""
    ratios = []
    for step in range(steps):
        ratios.append(part.gain().item() * m0)
        part.observe((torch.arange(300) < network(ratios[-1], step)[..., None])[:, None])
        part.homeostasis_step()
    return sum(ratios[-steps // 3 :]) / (steps // 3)


@pytest.mark.parametrize(("m0", "start"), [(1.3, 0.5), (0.6, 0.5), (1.3, 1.0)])
def test_the_regulator_finds_its_target(m0: float, start: float) -> None:
    part = CriticalityRegulator(target=0.95, gain=start, eta=0.3)
    assert regulate(part, crowded, m0, steps=45) == pytest.approx(0.95, abs=0.01)


def test_a_saturated_network_is_left_through_the_ceiling() -> None:
    # 42 % active, and a slope of 0.75: it looks subcritical
    assert regulate(CriticalityRegulator(target=0.95, gain=1.0, eta=0.3), filling, 1.3, steps=45) < 1
    # without a ceiling the gain is driven further up
    part = CriticalityRegulator(target=0.95, gain=1.0, eta=0.3, ceiling=1.0)
    assert regulate(part, filling, 1.3, steps=15) > 1.5


def test_the_gain_acts_against_a_threshold_only() -> None:
    drive, decoder = normal(0, 2, 1, 5, 64), normal(1, 64, 16)

    def written(gain: float, threshold: float) -> torch.Tensor:
        part = CriticalityRegulator(threshold=threshold, gain=gain)
        return F.layer_norm(part(drive).relu() @ decoder, (16,), eps=0.0)

    assert error(written(2.0, 0.5), written(1.0, 0.5)) > CONTROL
    # without one it would be divided out, so that is refused
    assert error(written(2.0, 1e-300), written(1.0, 1e-300)) <= SAME[torch.float32]
    with pytest.raises(ValueError, match="LayerNorm behind removes the gain"):
        CriticalityRegulator(threshold=0.0)


def test_ratio_in_the_loop_is_the_measure() -> None:
    counts = torch.from_numpy(np.random.default_rng(1).binomial(driven(0.9, 2.0, 40, 300), 0.5))
    part = CriticalityRegulator(steps=20).double()
    activity = (torch.arange(60) < counts[..., None])[:, None]
    part.observe(activity)
    whole = branching_ratio(spike_counts(activity), steps=20, bootstrap=2)
    assert part.ratio().item() == pytest.approx(whole.m, abs=1e-9)
    # micro-batches add up; each is centred on its own mean
    halves = CriticalityRegulator(steps=20)
    for piece in activity.split(20):
        halves.observe(piece)
    assert halves.ratio().item() == pytest.approx(whole.m, abs=0.01)
    assert halves.ratio() != part.ratio()


@pytest.mark.parametrize("fired", [False, True])
def test_activity_that_never_varies(fired: bool) -> None:
    part = CriticalityRegulator()
    part.observe(torch.full((2, 1, 50, 8), float(fired)))
    part.homeostasis_step()
    # silence is subcritical, everybody firing is the ceiling
    assert part.gain().item() == pytest.approx(0.25 if fired else 0.5 * math.exp(0.05 * 0.98))


def test_independent_tokens_do_not_branch() -> None:
    part = CriticalityRegulator(largest=2.0)
    for step in range(40):
        part.observe(normal(step, 4, 1, 100, 50).relu() > 1)
        assert part.ratio() < 0.9
        part.homeostasis_step()
    # no gain makes them branch, so it stays at its bound
    assert part.gain().item() == pytest.approx(2.0)


def test_it_moves_between_steps_only_and_not_in_eval() -> None:
    part = CriticalityRegulator()
    drive = normal(0, 2, 1, 50, 8).requires_grad_()
    before = part(drive)
    part.observe(before.relu())
    assert torch.equal(part(drive), before)
    part.homeostasis_step()
    assert error(part(drive), before) > CONTROL
    before.sum().backward()  # the graph of the pass before the step is intact
    assert drive.grad.flatten()[0].item() == pytest.approx(0.5)
    assert not part.log_gain.requires_grad
    part.eval()
    saved = copy.deepcopy(part.state_dict())
    part.observe(part(drive).relu())
    part.homeostasis_step()
    assert all(torch.equal(value, saved[name]) for name, value in part.state_dict().items())


def test_a_resumed_regulator_goes_on_as_if_it_had_not_stopped() -> None:
    def run(part: CriticalityRegulator, steps: range) -> CriticalityRegulator:
        for step in steps:
            part.observe(part(normal(step, 2, 1, 40, 16)).relu())
            if step % 2:
                part.homeostasis_step()
        return part

    whole = run(CriticalityRegulator(), range(10))
    first, second = run(CriticalityRegulator(), range(5)), CriticalityRegulator()
    second.load_state_dict(first.state_dict())
    assert torch.equal(run(second, range(5, 10)).log_gain, whole.log_gain)


def test_casts_and_refusals() -> None:
    part = CriticalityRegulator().to(torch.bfloat16)
    assert part.log_gain.dtype == torch.float32
    assert part(torch.ones(3, dtype=torch.bfloat16)).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="texts of 30 tokens"):
        part.observe(torch.ones(1, 1, 30, 4))
    for wrong in ({"target": 1.0}, {"gain": 0.0}, {"gain": 5.0}, {"ceiling": 0.0}, {"steps": 0}, {"eta": 0.0}):
        with pytest.raises(ValueError, match="expected 0 < target < 1"):
            CriticalityRegulator(**wrong)
