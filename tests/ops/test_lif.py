"""The scan of leaky integrate-and-fire neurons: kernels and PyTorch against the loop written as the equation."""

from itertools import product
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bdh import ops
from bdh.ops import leaky, native
from bdh.ops.lif import Neurons, Reset
from bdh.ops.surrogate import Surrogate, surrogate_slope
from tolerances import CONTROL, SAME, error

needs_kernels = pytest.mark.skipif(not native.available(), reason=f"native back end {native.why_not}")
KINDS = list(product(get_args(Reset), [0, 2], [True, False]))


def neurons(
    reset: Reset = "soft", refractory: int = 0, detach: bool = True, H: int = 2, K: int = 1, **other
) -> Neurons:
    generator = torch.Generator().manual_seed(H * 100 + K)
    threshold, spread = (0.05 + 0.1 * torch.rand(2, H, K, dtype=torch.float64, generator=generator)).unbind()
    return Neurons(
        tuple(2.0 + 5 * h for h in range(H)),
        threshold,
        spread,
        v_rest=0.01,
        v_reset=-0.02,
        reset=reset,
        refractory=refractory,
        detach_reset=detach,
        **other,
    )


def inputs(
    B: int, H: int, T: int, K: int, dtype: torch.dtype, refractory: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Currents, and membranes and refractory periods in midst of something."""
    g = torch.Generator().manual_seed(B * 1000 + T)
    current = (0.5 * torch.randn(B, H, T, K, generator=g, dtype=torch.float64)).to(dtype).requires_grad_()
    membrane = (0.1 * torch.randn(B, H, K, generator=g, dtype=torch.float64)).to(dtype).requires_grad_()
    return current, membrane, torch.randint(0, 1 + refractory, (B, H, K), generator=g).to(torch.int8)


def results(way: str, n: Neurons, given: tuple[torch.Tensor, ...], wants: str = "syv") -> list[torch.Tensor]:
    """Spikes, activity, membrane, refractory, and the gradients of what is wanted of them."""
    with ops.using(way):
        spikes, activity, membrane, waiting = ops.lif_scan(*given, n)
    g = torch.Generator().manual_seed(7)
    parts = {"s": spikes, "y": activity, "v": membrane}
    loss = sum(
        (part * torch.randn(part.shape, generator=g, dtype=torch.float64).to(part.dtype)).sum()
        for name, part in parts.items()
        if name in wants
    )
    gradients = torch.autograd.grad(loss, given[:2])
    return [spikes, activity, membrane, waiting, *gradients]


@pytest.mark.parametrize(("reset", "refractory", "detach"), KINDS)
@pytest.mark.parametrize("surrogate", get_args(Surrogate))
def test_backward_is_the_gradient_of_the_loop(
    reset: Reset, refractory: int, detach: bool, surrogate: Surrogate
) -> None:
    n = neurons(reset, refractory, detach, K=9, surrogate=surrogate)
    given = inputs(2, 2, 70, 9, torch.float64, refractory)
    got, expected = results("composed", n, given), results("reference", n, given)
    assert 0.05 < expected[0].mean() < 0.4
    for mine, truth in zip(got, expected, strict=True):
        assert error(mine, truth) < SAME[torch.float64]
    # control: with the other treatment of the reset the gradient is another one, where there is a reset
    other = results("composed", neurons(reset, refractory, not detach, K=9, surrogate=surrogate), given)
    assert (error(other[4], expected[4]) > CONTROL) == (reset != "none")


@needs_kernels
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize(("reset", "refractory", "detach"), KINDS)
def test_kernels_give_the_spikes_of_pytorch(isa: str, reset: Reset, refractory: int, detach: bool) -> None:
    before = native.instruction_set()
    if not native.kernels.choose(isa):
        pytest.skip(f"{isa} does not run here")
    try:
        for surrogate, K in zip(get_args(Surrogate), (1, 37, 1030), strict=True):
            n = neurons(reset, refractory, detach, K=K, surrogate=surrogate)
            given = inputs(2, 2, 50, K, torch.float32, refractory)
            got, expected = results("native", n, given), results("composed", n, given)
            exact = slice(4) if reset != "none" else slice(0, 2)
            for mine, plain in zip(got[exact], expected[exact], strict=True):
                assert torch.equal(mine, plain)
            for mine, plain in zip(got[2:], expected[2:], strict=True):
                assert error(mine, plain) < SAME[torch.float32]
    finally:
        native.kernels.choose(before)


@needs_kernels
@given(
    B=st.integers(1, 3),
    H=st.integers(1, 3),
    T=st.integers(1, 40),
    K=st.integers(1, 40),
    kind=st.sampled_from(KINDS),
    per_neuron=st.booleans(),
    wants=st.sampled_from(["s", "y", "v", "sy", "syv"]),
)
def test_any_shape_and_any_gradient(B, H, T, K, kind, per_neuron, wants) -> None:
    n = neurons(*kind, H=H, K=K if per_neuron else 1)
    wide, narrow = (inputs(B, H, T, K, dtype, kind[1]) for dtype in (torch.float64, torch.float32))
    truth, composed = results("reference", n, wide, wants), results("composed", n, wide, wants)
    for mine, expected in zip(composed, truth, strict=True):
        assert error(mine, expected) < SAME[torch.float64]
    for mine, expected in zip(results("native", n, narrow, wants), truth, strict=True):
        assert (mine.double() - expected.double()).abs().max() < SAME[torch.float32] * max(1, expected.abs().max())


@needs_kernels
def test_a_threshold_per_head_is_one_per_neuron() -> None:
    n = neurons(K=1)
    spread = {"threshold": n.threshold.expand(2, 20), "spread": n.spread.expand(2, 20)}
    given = inputs(2, 2, 30, 20, torch.float32)
    one, many = results("native", n, given), results("native", Neurons(**{**vars(n), **spread}), given)
    assert all(torch.equal(a, b) for a, b in zip(one, many, strict=True))


@pytest.mark.parametrize("way", ["composed", pytest.param("native", marks=needs_kernels)])
@pytest.mark.parametrize("reset", get_args(Reset))
@pytest.mark.parametrize("refractory", [0, 3])
def test_nan_reaches_the_output(way: str, reset: Reset, refractory: int) -> None:
    current, membrane, waiting = (t.detach() for t in inputs(1, 2, 20, 5, torch.float32))
    current[0, 1, 8, 3] = float("nan")
    with ops.using(way):
        for graded in (True, False):
            scan = ops.lif_scan(current, membrane, waiting, neurons(reset, refractory), graded=graded)
            hit = scan.activity.isnan()
            assert hit[0, 1, 8:, 3].all()
            # products of matrices spread it over the chunk
            assert hit.sum() == (20 if (way, reset, refractory) == ("composed", "none", 0) else 12)


def test_native_is_not_taken_where_it_cannot_be() -> None:
    given = inputs(1, 2, 5, 4, torch.float64)
    with ops.using("native"), pytest.raises(ValueError, match="float32"):
        ops.lif_scan(*given, neurons())


@pytest.mark.parametrize("kind", get_args(Surrogate))
@pytest.mark.parametrize("beta", [0.5, 2.0, 10.0])
def test_surrogates_have_integral_one_and_their_peak(kind: Surrogate, beta: float) -> None:
    # x = sinh(u) reaches far enough for tails like 1/x^2
    u = torch.linspace(-20, 20, 400_001, dtype=torch.float64)
    x = u.sinh()
    integral = torch.trapezoid(surrogate_slope(x, kind, beta) * u.cosh(), u).item()
    assert abs(integral - 1) < 1e-6
    assert surrogate_slope(x, kind, beta).max().item() == pytest.approx(beta / 2)
    # control: SuperSpike as it is usually written has integral 2/k
    assert abs(torch.trapezoid(u.cosh() / (1 + beta * x.abs()) ** 2, u).item() - 1) > CONTROL or beta == 2.0


def test_spike_function_steps_forward_and_slopes_backward() -> None:
    x = torch.tensor([-0.3, -1e-9, 0.0, 0.2, float("nan")], requires_grad=True)
    s = ops.spike_function(x, "triangular", 4.0, scale=0.5)
    assert s[:4].tolist() == [0.0, 0.0, 1.0, 1.0]
    assert s[4].isnan()
    s[:4].sum().backward()
    expected = [4.0 * max(0.0, 1 - 4.0 * abs(v)) for v in x.tolist()[:4]]  # slope 2 (1 - 2 |x/0.5|) / 0.5
    assert x.grad[:4].tolist() == pytest.approx(expected)


def test_an_unknown_surrogate_is_refused() -> None:
    with pytest.raises(ValueError, match="'fast_sigmoid', 'arctan' or 'triangular'"):
        surrogate_slope(torch.zeros(1), "step", 1.0)


@pytest.mark.parametrize("T", [1, 31, 32, 33, 100])
@pytest.mark.parametrize("reverse", [False, True])
def test_chunks_are_the_recurrence(T: int, reverse: bool) -> None:
    x = torch.randn(2, 3, T, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(T))
    carry, tau = x[:, :, 0] + 1, (2.0, 10.0, 50.0)
    alpha = (-1 / torch.tensor(tau, dtype=torch.float64))[:, None].exp()
    expected, last = torch.empty_like(x), carry
    for t in reversed(range(T)) if reverse else range(T):
        last = expected[:, :, t] = x[:, :, t] + alpha * last
    got = leaky.accumulate(x.clone(), tau, carry, reverse=reverse)
    assert error(got, expected) < SAME[torch.float64]
    assert error(leaky.accumulate(x.clone(), tau, carry, reverse=not reverse), expected) > CONTROL or T == 1


def test_smoothing_and_a_linear_map_commute() -> None:
    """L_a(x W) = (L_a x) W: without reset the filter costs D channels instead of K neurons."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1, 50, 6, dtype=torch.float64, generator=g, requires_grad=True)
    W = torch.randn(3, 6, 20, dtype=torch.float64, generator=g)
    tau, start = (3.0, 10.0, 40.0), torch.randn(2, 3, 6, dtype=torch.float64, generator=g)
    narrow, _ = ops.leaky_integrate(x, tau, start)
    wide, last = ops.leaky_integrate(x @ W, tau, (start[:, :, None] @ W)[:, :, 0])
    assert error(narrow @ W, wide) < SAME[torch.float64]
    assert torch.equal(last, wide[:, :, -1])
    pull = torch.randn(wide.shape, dtype=torch.float64, generator=g)
    one, other = torch.autograd.grad(narrow @ W, x, pull), torch.autograd.grad(wide, x, pull)
    assert error(one[0], other[0]) < SAME[torch.float64]


def test_smoothing_has_the_gradient_of_finite_differences() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, 5, 2, dtype=torch.float64, generator=g, requires_grad=True)
    start = torch.randn(1, 2, 2, dtype=torch.float64, generator=g, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, start: ops.leaky_integrate(x, (2.0, 5.0), start), (x, start))
