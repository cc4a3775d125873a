"""STDP: the window against published values, both attention forms against their equations, token by token."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bdh import ops
from bdh.mechanisms import KernelSTDP, TraceSTDP, stdp_kernel, stdp_window
from bdh.mechanisms.decay import powers, timescales
from bdh.ops import parallel
from tolerances import CONTROL, SAME, error

Part = KernelSTDP | TraceSTDP
FORMS = (KernelSTDP, TraceSTDP)


def example(T: int, dtype: torch.dtype = torch.float64, B: int = 2, H: int = 3, K: int = 6, D: int = 5):
    generator = torch.Generator().manual_seed(T)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    return draw(B, H, T, K), draw(B, T, D)


def made(form: type[Part], strength: float = 0.7) -> Part:
    """A part in float64 whose heads all differ."""
    if form is KernelSTDP:
        return KernelSTDP(3, tau=[0.5, 4, 30], strength=strength).double()
    taus = {"tau_plus": [3, 1, 20], "tau_minus": [0.5, 9, 30], "tau_weight": [2, 40, 900]}
    return TraceSTDP(3, **taus, balance=1.3, strength=strength).double()


def reference(part: Part, q: Tensor, v: Tensor) -> Tensor:
    """Both forms as their equations say, with the constants of `stdp_kernel`, one token at a time."""
    B, H, T, K = q.shape
    tau_plus, tau_minus, a_plus, a_minus = (value.view(H, 1, 1) for value in part.window())
    S = W = q.new_zeros(B, H, K, v.shape[-1])
    p, r, reads = q.new_zeros(B, H, K, 1), q.new_zeros(B, H, 1, v.shape[-1]), []
    for t in range(T):
        q_t, v_t = q[:, :, t : t + 1], v[:, None, t : t + 1]
        reads.append(q_t @ (S + W))
        p, r = torch.exp(-1 / tau_plus) * p, torch.exp(-1 / tau_minus) * r
        if isinstance(part, TraceSTDP):
            mu = torch.exp(-torch.nn.functional.softplus(part.raw_rate_weight)).view(H, 1, 1)
            W = mu * W + a_plus * (p @ v_t) - a_minus * (q_t.mT @ r)
        else:
            W = torch.exp(-1 / tau_plus) * (W + a_plus * (q_t.mT @ v_t))
        S, p, r = S + q_t.mT @ v_t, p + q_t.mT, r + v_t
    return torch.cat(reads, dim=2)


def gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return list(torch.autograd.grad(output, inputs, weight))


def train_of(spikes: list[int], T: int) -> Tensor:
    train = torch.zeros(T, dtype=torch.float64)
    train[spikes] = 1
    return train


def classic(**options: float) -> TraceSTDP:
    """One head whose window is the default of `stdp_kernel`, A+ = 0.01 and A- = 0.0105, without forgetting."""
    lam = math.exp(-1 / 20)
    part = TraceSTDP(1, tau_plus=20, tau_minus=20, tau_weight=1e12, strength=0.01 * lam / (1 - lam), **options)
    return part.double()


def weight(part: TraceSTDP, pre: Tensor, post: Tensor) -> Tensor:
    """Weight after spike trains (T,) or (B, T) of one pre and one post neuron."""
    _, state = part(pre.view(-1, 1, pre.shape[-1], 1), post.view(-1, post.shape[-1], 1))
    return (part.strength * state.W).flatten().detach()


# --- the window


def test_window_of_bi_and_poo() -> None:
    dt = torch.tensor([1.0, -1.0, 20.0, -20.0, 0.0], dtype=torch.float64)
    expected = [0.00951229, -0.00998791, 0.00367879, -0.00386273, 0.0]
    assert stdp_kernel(dt).tolist() == pytest.approx(expected, abs=1e-8)


def test_window_has_no_overflow_and_a_gradient_on_the_side_taken() -> None:
    dt = torch.tensor([-1e30, -4096.0, 4096.0, 1e30], requires_grad=True)
    change = stdp_kernel(dt)
    change.sum().backward()
    assert change.isfinite().all()
    assert dt.grad.isfinite().all()
    tau = torch.tensor(20.0, requires_grad=True)
    stdp_kernel(torch.tensor([5.0, -5.0]), tau_plus=tau).sum().backward()
    assert tau.grad.item() == pytest.approx(0.01 * math.exp(-0.25) * 5 / 400)


@pytest.mark.parametrize("dt", [1, -1, 20, -20, 0, 45])
def test_one_pair_of_spikes_changes_the_weight_as_the_window_says(dt: int) -> None:
    pre, post = train_of([100], 300), train_of([100 + dt], 300)
    expected = stdp_kernel(torch.tensor(float(dt), dtype=torch.float64)).item()
    assert weight(classic(), pre, post).item() == pytest.approx(expected, abs=1e-8)
    # half of the rule, as a mask over the future leaves it, has no depression
    if dt < 0:
        assert weight(classic(balance=1e-9), pre, post).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("dt", [-10, -3, 4, 12])
def test_sixty_pairs_at_a_period(dt: int) -> None:
    n, period = 60, 100
    times = [50 + period * i for i in range(n)]
    got = weight(classic(), train_of(times, 6100), train_of([t + dt for t in times], 6100)).item()
    single = n * stdp_kernel(torch.tensor(float(dt))).item()
    neighbours = n * 0.0205 * math.exp(-(period - abs(dt)) / 20) / (1 - math.exp(-period / 20))
    assert abs(got - single) <= neighbours < 0.6 * abs(single)
    assert got != pytest.approx(single, rel=1e-6)  # pairs of neighbouring periods do count


def test_uncorrelated_spikes_drift_as_computed() -> None:
    generator = torch.Generator().manual_seed(0)
    B, T, burn_in = 32, 2048, 200
    pre = (torch.rand(B, T, generator=generator) < 0.1).double()
    post = (torch.rand(B, T, generator=generator) < 0.15).double()
    drift = (weight(classic(), pre, post) - weight(classic(), pre[:, :burn_in], post[:, :burn_in])) / (T - burn_in)
    lam = math.exp(-1 / 20)
    expected = 0.1 * 0.15 * (0.01 - 0.0105) * lam / (1 - lam)
    assert expected == pytest.approx(-1.4628e-4, rel=1e-4)
    uncertain = drift.std().item() / math.sqrt(B)
    assert uncertain < 0.25e-4
    assert abs(drift.mean().item() - expected) < 4 * uncertain


def test_learned_window_for_plots() -> None:
    dt, height = stdp_window(classic(), reach=30)
    assert (dt.shape, height.shape) == ((61,), (1, 61))
    assert error(height[0], stdp_kernel(dt)) <= 1e-6  # parameters are made in float32
    part = KernelSTDP(2, tau=[5, 50], strength=0.8)
    dt, height = stdp_window(part, reach=3)
    assert height[1].tolist() == pytest.approx([0, 0, 0, 0, *(0.8 * math.exp(-d / 50) for d in (1, 2, 3))])


def test_areas_do_not_depend_on_time_constants() -> None:
    dt, height = stdp_window(TraceSTDP(3, balance=1.2).double(), reach=4000)
    assert height[:, dt > 0].sum(1).tolist() == pytest.approx([1] * 3)
    assert height[:, dt < 0].sum(1).tolist() == pytest.approx([-1.2] * 3)


# --- every way of computing against the equations


@pytest.mark.parametrize("block", [1, 4, 256])
@pytest.mark.parametrize("T", [1, 2, 4, 11])
@pytest.mark.parametrize("form", FORMS)
def test_quadratic_and_linear_forms_match_the_equations(
    form: type[Part], T: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "BLOCK", block)
    monkeypatch.setattr("bdh.mechanisms.stdp_trace.TRACE_BLOCK", 3)
    q, v = example(T)
    part = made(form)
    inputs = [q, v, *part.parameters()]
    expected = reference(part, q, v)
    wanted = gradients(expected, inputs) if T > 2 else []
    for got in (part.read(q, v), part._dense(q, v), part(q, v)[0]):
        assert error(got, expected) <= SAME[torch.float64]
        if T > 2:
            for mine, theirs in zip(gradients(got, inputs), wanted, strict=True):
                assert error(mine, theirs) <= SAME[torch.float64]


@pytest.mark.parametrize("form", FORMS)
def test_gradients_pass_through_the_state(form: type[Part], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "BLOCK", 4)
    q, v = example(13)
    part = made(form)
    inputs = [q, v, *part.parameters()]
    reads, state = [], None
    for piece in torch.arange(13).split([5, 1, 1, 6]):
        a, state = part(q[:, :, piece], v[:, piece], state)
        reads.append(a)
    expected = reference(part, q, v)
    got = torch.cat(reads, dim=2)
    assert error(got, expected) <= SAME[torch.float64]
    for mine, theirs in zip(gradients(got, inputs), gradients(expected, inputs), strict=True):
        assert error(mine, theirs) <= SAME[torch.float64]


@pytest.mark.parametrize("form", FORMS)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), block=st.sampled_from([3, 256]))
def test_any_split_gives_the_same(form: type[Part], lengths: list[int], block: int) -> None:
    q, v = (t.detach() for t in example(sum(lengths)))
    part = made(form)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        whole, last = part(q, v)
        patch.setattr(parallel, "BLOCK", block)
        reads, state = [], None
        for piece in torch.arange(sum(lengths)).split(lengths):
            a, state = part(q[:, :, piece], v[:, piece], state)
            reads.append(a)
    assert error(torch.cat(reads, 2), whole) <= SAME[torch.float64]
    for mine, theirs in zip(state, last, strict=True):
        assert error(mine, theirs) <= SAME[torch.float64]


@pytest.mark.parametrize("form", FORMS)
def test_a_forgotten_trace_is_caught(form: type[Part]) -> None:
    """The comparison above sees a state that lost what only this form carries."""
    q, v = (t.detach() for t in example(12))
    part = made(form)
    whole, _ = part(q, v)
    _, state = part(q[:, :, :6], v[:, :6])
    for name in state._fields:
        lost = state._replace(**{name: torch.zeros_like(getattr(state, name))})
        a, _ = part(q[:, :, 6:], v[:, 6:], lost)
        assert error(a, whole[:, :, 6:]) > CONTROL


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("T", [1, 7, 300, 700])
@pytest.mark.parametrize("form", FORMS)
def test_without_strength_it_is_plain_attention_bit_for_bit(form: type[Part], T: int, dtype: torch.dtype) -> None:
    part, other = form(3, strength=0.0), form(3, strength=0.1)
    q, v = (t.detach() for t in example(T, dtype))
    plain, rho = ops.linear_attention(q, v)
    a, state = part(q, v)
    assert torch.equal(a, plain)
    assert torch.equal(state.S, rho)
    assert torch.equal(part._dense(q, v), ops.attention_read(q, v, backend="dense"))
    plain, rho = ops.linear_attention(q[:, :, -1:], v[:, -1:], rho)
    a, after = part(q[:, :, -1:], v[:, -1:], state)
    assert torch.equal(a, plain)
    assert torch.equal(after.S, rho)
    if T > 2:
        assert not torch.equal(other(q, v)[0], part(q, v)[0])
        assert not torch.equal(other._dense(q, v), part._dense(q, v))


@pytest.mark.parametrize("form", FORMS)
def test_later_tokens_change_nothing_before(form: type[Part], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "BLOCK", 16)
    part = form(3)
    q, v = (t.detach() for t in example(50, torch.float32))
    other_q, other_v = q.clone(), v.clone()
    other_v[:, 29] = 9.0  # the value of a token is not read by the token itself
    other_q[:, :, 30:], other_v[:, 30:] = -q[:, :, 30:], 7.0
    for compute in (part._dense, lambda q, v: part(q, v)[0]):
        one, two = compute(q, v), compute(other_q, other_v)
        assert torch.equal(one[:, :, :30], two[:, :, :30])
        assert not torch.equal(one[:, :, 30], two[:, :, 30])


# --- numbers


@pytest.mark.parametrize(("tau", "T"), [(20.0, 4096), (0.01, 1500), (1e9, 1500)])
@pytest.mark.parametrize("form", FORMS)
def test_long_texts_give_finite_numbers(form: type[Part], tau: float, T: int) -> None:
    taus = {"tau": tau} if form is KernelSTDP else {"tau_plus": tau, "tau_minus": tau, "tau_weight": tau}
    part = form(1, **taus)
    q, v = example(T, torch.float32, B=1, H=1, K=4, D=2)
    exact = part.double()(q.detach().double(), v.detach().double())[0]
    part.float()
    for compute in (part._dense, lambda q, v: part(q, v)[0]):
        a = compute(q, v)
        grads = torch.autograd.grad(a.square().mean(), [q, v, *part.parameters()])
        assert all(tensor.isfinite().all() for tensor in (a, *grads))
        assert error(a, exact) <= SAME[torch.float32]


def test_the_quotient_of_two_powers_would_not_be_finite() -> None:
    """The usual short cut, lam^t / lam^s, at the length and time constant of the test above."""
    t = torch.arange(4096.0)
    lam = torch.tensor(math.exp(-1 / 20))
    assert not ((lam**t)[:, None] / lam**t).tril(-1).isfinite().all()
    assert powers(torch.tensor([1 / 20]), t[:, None] - t).isfinite().all()


def test_powers_never_leave_the_normal_range() -> None:
    rate = torch.tensor([0.0, 1e-9, 0.05, 3.0, 1e30])
    got = powers(rate, torch.arange(5000))
    assert got[:2].min() > 0.99
    assert ((got == 0) | (got > torch.finfo(torch.float32).tiny)).all()
    assert got[:, 0].tolist() == [1.0] * 5


@pytest.mark.parametrize("form", FORMS)
def test_every_parameter_learns_from_the_start(form: type[Part]) -> None:
    part = form(4)
    q, v = example(64, torch.float32, H=4)
    for a in (part.read(q, v), part(q, v)[0]):
        part.zero_grad()
        a.square().mean().backward()
        for name, parameter in part.named_parameters():
            assert parameter.grad.isfinite().all(), name
            assert (parameter.grad.abs() > 1e-8).all(), name


def test_a_step_changes_long_and_short_time_constants_by_the_same_share() -> None:
    part = KernelSTDP(2, tau=[20, 2000])
    before = part.window()[0].detach()
    with torch.no_grad():
        part.raw_rate += 0.01
    assert (part.window()[0] / before).tolist() == pytest.approx([0.99, 0.99], abs=1e-3)
    # had softplus(raw) been tau, the same step would not have been felt
    assert pytest.approx(1, abs=1e-5) == (2000 + 0.01) / 2000


@pytest.mark.parametrize("T", [1, 5])
@pytest.mark.parametrize("form", FORMS)
def test_state_is_a_value_unless_given_away(form: type[Part], T: int) -> None:
    part = made(form)
    q, v = (t.detach() for t in example(8 + T))
    with torch.no_grad():
        _, state = part(q[:, :, :8], v[:, :8])
        copy = [tensor.clone() for tensor in state]
        kept = part(q[:, :, 8:], v[:, 8:], state)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(state, copy, strict=True))
        a, after = part(q[:, :, 8:], v[:, 8:], state, owns_state=True)
    assert torch.equal(a, kept[0])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(after, kept[1], strict=True))
    if T == 1:
        assert after.S.data_ptr() == state.S.data_ptr()
        assert after[1].data_ptr() == state[1].data_ptr()


@pytest.mark.parametrize("form", FORMS)
def test_with_gradients_a_state_given_away_is_kept(form: type[Part]) -> None:
    part = made(form)
    q, v = example(9)
    _, state = part(q[:, :, :8], v[:, :8])
    a, _ = part(q[:, :, 8:], v[:, 8:], state, owns_state=True)
    a.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in part.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_half_precision_in_and_out_sums_in_float32(form: type[Part]) -> None:
    q, v = (t.detach() for t in example(40, torch.bfloat16))
    part = form(3)
    exact = part.double()(q.double(), v.double())[0]
    part.float()
    once = error(exact.bfloat16(), exact)
    a, state = part(q, v)
    assert a.dtype == torch.bfloat16
    assert {tensor.dtype for tensor in state} == {torch.float32}
    assert error(a, exact) <= 1.01 * once
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(part(q.float(), v.float())[1].S, state.S)
        assert error(part.read(q.float(), v.float()), exact) <= SAME[torch.bfloat16]
    assert part.read(q, v).dtype == torch.bfloat16
    assert error(part.read(q, v), exact) <= SAME[torch.bfloat16]
    assert part.bfloat16()(q, v)[0].dtype == torch.bfloat16


@pytest.mark.parametrize(("beyond", "expected"), [(0, "_dense"), (1, "_chunked")])
@pytest.mark.parametrize("form", FORMS)
def test_the_form_that_is_faster_at_this_length_reads(
    form: type[Part], beyond: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []
    for name in ("_dense", "_chunked"):
        compute = getattr(form, name)

        def spy(*args: object, name: str = name, compute=compute):
            taken.append(name)
            return compute(*args)

        monkeypatch.setattr(form, name, spy)
    made(form).read(*example(5 * 5 + beyond))  # D = 5
    assert taken == [expected]


def test_a_bank_of_timescales_is_the_default() -> None:
    assert timescales(1) == [20.0]
    assert KernelSTDP(3).window()[0].tolist() == pytest.approx([5, 20, 80])
    assert TraceSTDP(3).window()[1].tolist() == pytest.approx([5, 20, 80])
    assert KernelSTDP(2, tau=7).window()[0].tolist() == pytest.approx([7, 7])


@pytest.mark.parametrize("tau", [0.0, -1.0, math.inf, math.nan, [1.0], [1.0, 2.0, 3.0]])
def test_impossible_time_constants_are_refused(tau: float | list[float]) -> None:
    with pytest.raises(ValueError, match=r"expected one positive number of tokens, or one for each of 2 heads"):
        KernelSTDP(2, tau=tau)
    with pytest.raises(ValueError, match=r"expected one positive number"):
        TraceSTDP(2, tau_minus=tau)


@pytest.mark.parametrize("balance", [0.0, -1.0, math.inf, math.nan])
def test_impossible_balance_is_refused(balance: float) -> None:
    with pytest.raises(ValueError, match="balance"):
        TraceSTDP(2, balance=balance)
