"""Leaky integrate-and-fire neurons: known answers, splits into calls, calibration, a model that learns with them."""

import math

import pytest
import snntorch
import torch
from hypothesis import given
from hypothesis import strategies as st

from bdh import BDH, BDHConfig, ops
from bdh.mechanisms import LeakyIntegrateFire, LIFState
from bdh.sections import LIF
from tolerances import CONTROL, SAME, error


def lif(threshold: float, **settings) -> LeakyIntegrateFire:
    """Neurons in float64 with a threshold that is given."""
    neurons = LeakyIntegrateFire(**settings).double()
    neurons.control.threshold.fill_(threshold)
    return neurons


def noise(*shape: int, std: float = 0.32, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return std * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# (a) intervals


@pytest.mark.parametrize(("drive", "interval"), [(1.05, 31), (1.5, 11), (2.0, 7), (5.0, 3)])
@pytest.mark.parametrize("refractory", [0, 3])
def test_a_constant_current_fires_at_the_intervals_of_theory(drive: float, interval: int, refractory: int) -> None:
    """ISI = ceil(ln((I - v_reset)/(I - theta)) / -ln alpha), and the refractory period in addition."""
    assert interval == math.ceil(10 * math.log(drive / (drive - 1)))
    neurons = lif(1.0, tau=10.0, reset="hard", refractory=refractory)
    fired, _ = neurons.sequence(torch.full((1, 1, 500, 1), drive, dtype=torch.float64))
    times = fired.spikes.flatten().nonzero().flatten()
    assert len(times) > 5
    assert (times.diff() == interval + refractory).all()
    assert times[0] == interval - 1  # the first charge starts at rest


def test_a_soft_reset_keeps_what_exceeds_the_threshold() -> None:
    """Per spike theta is taken away, per token (1 - alpha)(I - v) flows in, so the mean v gives the rate exactly."""
    neurons = lif(1.0, tau=10.0, reset="soft")
    current = torch.full((1, 1, 1000, 1), 3.0, dtype=torch.float64)
    fired, state = neurons.sequence(current)
    v, membranes = None, []
    for t in range(1000):
        before = torch.zeros(1, 1, 1, dtype=torch.float64) if v is None else v
        membranes.append(before.item())
        _, v, _ = neurons(current[:, :, t], v, None)
    gain = 1 - math.exp(-0.1)
    inflow = gain * sum(3.0 - m for m in membranes)
    assert fired.spikes.sum().item() == pytest.approx(inflow - state.membrane.item(), abs=1e-9)


# (b) decay


def test_below_threshold_the_membrane_decays_exponentially() -> None:
    neurons = lif(1.0, tau=7.0)
    start = LIFState(
        torch.full((1, 1, 1), 0.9, dtype=torch.float64),
        torch.zeros(1, 1, 1, dtype=torch.int8),
        torch.full((1, 1, 1), 2.0, dtype=torch.float64),
    )
    for T in (1, 5, 100):
        fired, state = neurons.sequence(torch.zeros(1, 1, T, 1, dtype=torch.float64), start)
        assert fired.spikes.sum() == 0
        assert state.membrane.item() == pytest.approx(0.9 * math.exp(-T / 7), rel=1e-12)
        assert state.trace.item() == pytest.approx(2.0 * math.exp(-T / 20), rel=1e-12)


def test_the_trace_of_steady_spikes_is_their_rate_times_its_memory() -> None:
    """Mean of the trace = r / (1 - lambda): about 20 r, so a trace is not a rate."""
    neurons = lif(1.0, tau=10.0, reset="hard", output="binary")
    _, state = neurons.sequence(torch.full((1, 1, 500, 1), 5.0, dtype=torch.float64))  # fires every third token
    traces = []
    for _ in range(3):
        _, state = neurons.sequence(torch.full((1, 1, 1, 1), 5.0, dtype=torch.float64), state)
        traces.append(state.trace.item())
    assert sum(traces) / 3 == pytest.approx(1 / 3 / (1 - math.exp(-1 / 20)), rel=1e-9)


# (c) splits


@given(
    cuts=st.lists(st.integers(1, 39), max_size=6),
    reset=st.sampled_from(["soft", "hard", "none"]),
    refractory=st.sampled_from([0, 2]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_any_split_gives_the_same(cuts: list[int], reset: str, refractory: int, dtype: torch.dtype) -> None:
    neurons = LeakyIntegrateFire((2, 5), tau=(4.0, 30.0), reset=reset, refractory=refractory).to(dtype)
    current = noise(2, 2, 40, 5, dtype=dtype).requires_grad_()
    whole, end = neurons.sequence(current)
    parts, state = [], None
    for part in current.tensor_split(sorted(set(cuts)), dim=2):
        fired, state = neurons.sequence(part, state)
        parts.append(fired)
    assert whole.spikes.sum() > 10
    assert torch.equal(torch.cat([p.spikes for p in parts], 2), whole.spikes)
    assert torch.equal(torch.cat([p.activity for p in parts], 2), whole.activity)
    for mine, expected in zip(state, end, strict=True):
        assert error(mine, expected) < SAME[dtype]
    # gradients flow through the carried state as within one call
    split = torch.cat([p.activity for p in parts], 2).square().sum() + state.trace.sum() + state.membrane.sum()
    one = whole.activity.square().sum() + end.trace.sum() + end.membrane.sum()
    got, expected = (torch.autograd.grad(loss, current)[0] for loss in (split, one))
    assert error(got, expected) < SAME[dtype]


def test_one_step_at_a_time_is_the_sequence() -> None:
    neurons = LeakyIntegrateFire((2, 1))
    current = noise(3, 2, 60, 5, dtype=torch.float32)
    fired, state = neurons.sequence(current)
    membrane = trace = None
    for t in range(60):
        spikes, membrane, trace = neurons(current[:, :, t], membrane, trace)
        assert torch.equal(spikes, fired.activity[:, :, t])
    assert torch.equal(membrane, state.membrane)
    assert error(trace, state.trace) < SAME[torch.float32]
    # with one threshold for all, any shape will do
    spikes, membrane, trace = LeakyIntegrateFire()(torch.ones(7))
    assert spikes.shape == membrane.shape == trace.shape == (7,)


def test_state_is_not_changed_and_the_past_not_by_the_future() -> None:
    neurons = LeakyIntegrateFire(reset="hard", refractory=2)
    current = noise(1, 1, 60, 5, dtype=torch.float32)
    _, state = neurons.sequence(current[:, :, :20])
    kept = LIFState(*(t.clone() for t in state))
    one, _ = neurons.sequence(current[:, :, 20:], state)
    assert all(torch.equal(a, b) for a, b in zip(state, kept, strict=True))
    current[:, :, 40:] = 7.0
    two, _ = neurons.sequence(current[:, :, 20:], state)
    assert torch.equal(one.activity[:, :, :20], two.activity[:, :, :20])
    assert not torch.equal(one.activity[:, :, 20:], two.activity[:, :, 20:])


# (d) another library


def snntorch_spikes(current: torch.Tensor, mechanism: str) -> tuple[torch.Tensor, float]:
    """Spikes of snnTorch's neuron, which has no factor (1 - alpha), and its highest membrane."""
    alpha = math.exp(-1 / 10)
    neuron = snntorch.Leaky(beta=alpha, threshold=1.0, reset_mechanism=mechanism, reset_delay=False)
    membrane, spikes, highest = torch.zeros_like(current[0]), [], 0.0
    for drive in (1 - alpha) * current:
        charged = alpha * membrane + drive
        highest = max(highest, charged.max().item())
        spike, membrane = neuron(drive, membrane)
        spikes.append(spike)
    return torch.stack(spikes), highest


@pytest.mark.parametrize(("mechanism", "reset", "std"), [("zero", "hard", 3.0), ("subtract", "soft", 1.5)])
def test_spikes_are_those_of_snntorch(mechanism: str, reset: str, std: float) -> None:
    current = noise(1000, 100, std=std, dtype=torch.float32) + 0.5
    expected, highest = snntorch_spikes(current, mechanism)
    assert mechanism == "zero" or highest <= 2.0  # beyond twice the threshold "subtract" takes it away twice
    neurons = LeakyIntegrateFire(reset=reset, output="binary")
    neurons.control.threshold.fill_(1.0)
    fired, _ = neurons.sequence(current[None, None])
    assert expected.sum() > 1000
    assert (fired.spikes[0, 0] != expected).sum() == 0
    neurons.reset = "soft" if reset == "hard" else "hard"
    assert (neurons.sequence(current[None, None])[0].spikes[0, 0] != expected).sum() > 100


# (e) is in tests/ops/test_lif.py


def test_without_memory_and_threshold_it_is_a_relu() -> None:
    neurons = LeakyIntegrateFire(tau=1e-3)
    neurons.control.threshold.zero_()
    current = noise(2, 1, 30, 8, dtype=torch.float32)
    assert torch.equal(neurons.sequence(current)[0].activity, current.relu())


@pytest.mark.parametrize(("reset", "felt"), [("soft", 0.98), ("hard", 1.0), ("none", 0.79)])
def test_graded_activity_has_the_size_of_the_drive(reset: str, felt: float) -> None:
    """What h exceeds the threshold by would be several times smaller, and products of two activities much more."""
    neurons = LeakyIntegrateFire(reset=reset)
    current = noise(4, 1, 500, 64, dtype=torch.float32)
    neurons.calibrate(current)
    fired, _ = neurons.sequence(current)
    mean = fired.activity[fired.activity > 0].mean().item()
    assert 1 < mean / current[current > 0].mean().item() < 2
    # a spike on a token whose own drive is negative is not felt; after a reset only a positive drive makes one
    assert ((fired.activity > 0).sum() / fired.spikes.sum()).item() == pytest.approx(felt, abs=0.02)
    if reset == "none":
        h, _ = ops.leaky_integrate(current, neurons.tau)
        assert torch.equal(fired.spikes, (h >= neurons.threshold).float())
        assert mean / (h - neurons.threshold)[h > neurons.threshold].mean().item() > 5


# calibration


@pytest.mark.parametrize("reset", ["soft", "hard", "none"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (3, 20)])
def test_calibration_reaches_the_rate_per_threshold(reset: str, shape: tuple[int, int]) -> None:
    scale = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)[:, None, None]
    current = noise(8, 3, 400, 20) * scale
    neurons = LeakyIntegrateFire(shape, reset=reset, rate=0.1).double()
    reached = neurons.calibrate(current)
    fired, _ = neurons.sequence(current)
    rates = fired.spikes.mean(dim=(0, 2))
    assert torch.allclose(neurons.control.pool(rates), reached)
    assert (reached - 0.1).abs().max() <= 1 / 3200 + 1e-9  # one spike among the tokens of a neuron
    if shape[0] == 3:  # thresholds and spread follow the scale of their head
        ratio = neurons.threshold.mean(1) / scale.flatten()
        assert (ratio / ratio[1] - 1).abs().max() < 0.1
        assert (neurons.control.spread.mean(1) / scale.flatten() - 0.0715).abs().max() < 0.005
    if reset == "none":  # the plain quantile
        h, _ = ops.leaky_integrate(current, neurons.tau)
        if shape == (1, 1):
            assert neurons.threshold.item() == pytest.approx(h.quantile(0.9).item(), rel=1e-3)


@pytest.mark.parametrize("reset", ["soft", "hard", "none"])
def test_the_first_threshold_is_about_that_of_theory(reset: str) -> None:
    neurons = LeakyIntegrateFire(tau=10.0, rate=0.1, drive_std=0.32, reset=reset)
    assert neurons.control.spread.item() == pytest.approx(0.0715, abs=1e-4)
    current = noise(2, 1, 4000, 100, dtype=torch.float32)
    rate = neurons.sequence(current)[0].spikes.mean().item()
    if reset == "none":
        assert neurons.threshold.item() == pytest.approx(0.0917, abs=1e-4)
        assert rate == pytest.approx(0.1, abs=0.005)
    else:
        assert 0.05 < rate < 0.1
        neurons.control.threshold.fill_(0.0917)  # the plain quantile forgets that a reset lowers the membrane
        assert neurons.sequence(current)[0].spikes.mean() < 0.025


def test_rates_that_cannot_be_reached_are_told() -> None:
    neurons = LeakyIntegrateFire()
    assert neurons.calibrate(torch.full((1, 1, 50, 4), -1.0)).item() == 0
    assert neurons.threshold.isfinite().all()
    with pytest.raises(ValueError, match=r"with 4 refractory tokens expected 0 < rate < 0\.2"):
        LeakyIntegrateFire(rate=0.3, refractory=4)


# homeostasis


def test_the_controller_holds_the_rate_when_the_drive_changes() -> None:
    neurons = LeakyIntegrateFire(rate=0.1, eta=0.5)
    neurons.calibrate(noise(4, 1, 100, 50, dtype=torch.float32))
    louder = [noise(4, 1, 100, 50, std=0.64, seed=seed, dtype=torch.float32) for seed in range(1, 100)]
    first = neurons.sequence(louder[0])[0].spikes.mean().item()
    for current in louder:
        neurons.sequence(current)
        neurons.homeostasis_step()
    neurons.eval()
    before = {name: value.clone() for name, value in neurons.state_dict().items()}
    last = neurons.sequence(noise(4, 1, 100, 50, std=0.64, seed=1000, dtype=torch.float32))[0].spikes.mean().item()
    neurons.homeostasis_step()
    assert first > 0.15
    assert abs(last - 0.1) < 0.01
    assert all(torch.equal(value, before[name]) for name, value in neurons.state_dict().items())


# (f) a model; tests/test_variants.py has the rest


def test_a_threshold_of_one_by_fiat_kills_the_model() -> None:
    """The control of the calibrated start: a common choice leaves no spike and no gradient."""
    config = BDHConfig(n_layer=2, n_embd=32, n_head=2, mlp_internal_dim_multiplier=16, dropout=0.0, lif=LIF(tau=10.0))
    model = BDH.from_seed(config, 0)
    for part in model.parts.lif:
        part.control.threshold.fill_(1.0)
    idx = torch.randint(0, 256, (8, 65), generator=torch.Generator().manual_seed(0))
    model(idx[:, :-1], idx[:, 1:])[1].backward()
    assert all(spikes.values().numel() == 0 for spikes in model.get_spikes(idx))
    assert model.encoder_v.grad.norm() == 0


# (g) precision


def test_bfloat16_in_bfloat16_out_with_a_wide_state() -> None:
    neurons = LeakyIntegrateFire().bfloat16()
    assert neurons.threshold.dtype == torch.float32  # small steps of a threshold would be lost
    current = noise(1, 2, 40, 8, dtype=torch.bfloat16).requires_grad_()
    fired, state = neurons.sequence(current)
    assert fired.activity.dtype == fired.spikes.dtype == torch.bfloat16
    assert state.membrane.dtype == state.trace.dtype == torch.float32
    fired.activity.sum().backward()
    assert current.grad.dtype == torch.bfloat16
    wide, _ = neurons.sequence(current.detach().float())
    assert torch.equal(fired.spikes.float(), wide.spikes)
    with torch.autocast("cpu", torch.bfloat16):
        under, after = neurons.sequence(current.detach().float())
    assert torch.equal(under.spikes, wide.spikes)
    assert error(after.trace, state.trace) < SAME[torch.float32]


# use


def test_two_passes_and_a_step_between_forward_and_backward() -> None:
    neurons = LeakyIntegrateFire((2, 8))
    current = noise(2, 2, 40, 8, dtype=torch.float32).requires_grad_()
    losses = [neurons.sequence(current)[0].activity.sum() for _ in range(2)]
    neurons.homeostasis_step()
    gradients = [torch.autograd.grad(loss, current)[0] for loss in losses]
    assert torch.equal(*gradients)
    assert gradients[0].norm() > 0


def test_resumed_is_uninterrupted() -> None:
    batches = [noise(2, 2, 40, 8, seed=seed, dtype=torch.float32) for seed in range(6)]

    def run(neurons: LeakyIntegrateFire, some: list[torch.Tensor]) -> None:
        for current in some:
            neurons.sequence(current)
            neurons.homeostasis_step()

    straight, first, second = (LeakyIntegrateFire((2, 8), eta=1.0) for _ in range(3))
    run(straight, batches)
    run(first, batches[:3])
    first.sequence(batches[3])  # stopped between the pass and the step
    second.load_state_dict(first.state_dict())
    second.homeostasis_step()
    run(second, batches[4:])
    assert torch.equal(second.threshold, straight.threshold)
    assert not torch.equal(first.threshold, straight.threshold)


def test_a_spiking_neuron_below_threshold_still_learns() -> None:
    """A positive drive that does not suffice: the ReLU of h - theta would have no gradient."""
    neurons = lif(1.0, tau=10.0)
    current = torch.full((1, 1, 5, 1), 0.5, dtype=torch.float64, requires_grad=True)
    fired, _ = neurons.sequence(current)
    assert fired.activity.sum() == 0
    fired.activity.sum().backward()
    assert (current.grad > 0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tau": 0.0}, "expected all positive"),
        ({"tau": ()}, "expected all positive"),
        ({"rate": 1.0}, "expected 0 < rate < 1"),
        ({"reset": "medium"}, "expected one of soft, hard, none"),
        ({"output": "analog"}, "expected one of graded, binary"),
        ({"surrogate": "box"}, "expected one of fast_sigmoid, arctan, triangular"),
        ({"refractory": 128}, "expected whole tokens, 0 to 127"),
        ({"refractory": 1.5}, "expected whole tokens, 0 to 127"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LeakyIntegrateFire(**settings)


def test_misuse_is_told() -> None:
    with pytest.raises(ValueError, match=r"expected \(B, 2, T, 8\), got \(1, 3, 5, 8\)"):
        LeakyIntegrateFire((2, 8)).sequence(torch.zeros(1, 3, 5, 8))
    with pytest.raises(ValueError, match="expected refractory=0"):
        LeakyIntegrateFire(refractory=1)(torch.zeros(1, 1, 4))


def test_controls_exceed_the_tolerance() -> None:
    """Neurons with another time constant are not the same neurons."""
    current = noise(1, 1, 50, 8)
    one, two = (LeakyIntegrateFire(tau=tau).double().sequence(current)[1].membrane for tau in (10.0, 10.5))
    assert error(one, two) > CONTROL
