"""HiPPO: the equations against independent ones, what is remembered, and the same result for any split of a text."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.polynomial import legendre
from torch import Tensor

from bdh.mechanisms import HiPPO, HiPPOState, hippo_matrices, hippo_reconstruct
from bdh.mechanisms import hippo as hippo_module
from tolerances import CONTROL, SAME, error

MEASURES = ("legs", "legt")
L = 1024
MIDDLES = (torch.arange(L, dtype=torch.float64) + 0.5) / L
TURN = 2 * math.pi


def memory(measure: str = "legs", order: int = 32, **options: float) -> HiPPO:
    return HiPPO(4, measure=measure, order=order, channels=1, **options).double()


def coefficients(signal: Tensor, part: HiPPO) -> Tensor:
    """(T, N) of one signal (T,)."""
    return part.remember(signal.view(1, -1, 1))[0][0, :, 0]


def stepped(u: Tensor, part: HiPPO) -> Tensor:
    rows, state = [], None
    for t in range(u.shape[1]):
        c, state = part.remember(u[:, t : t + 1], state)
        rows.append(c)
    return torch.cat(rows, dim=1)


@pytest.mark.parametrize("measure", MEASURES)
def test_a_compiler_takes_the_tables_as_constants(measure: str) -> None:
    part, x = memory(measure, order=4, theta=16.0), torch.randn(1, 70, 4, dtype=torch.float64)
    graphs: list[str] = []

    def keep(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph.code)
        return graph.forward

    y, _ = torch.compile(part, backend=keep, fullgraph=True)(x)
    assert error(y, part(x)[0]) <= SAME[x.dtype]
    assert len(graphs) == 1
    assert "arange" not in graphs[0]
    torch.compile(lambda: hippo_matrices(measure, 4), backend=keep)()  # what it would see otherwise
    assert "arange" in graphs[1]


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def signals(T: int, C: int = 3, B: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(B, T, C, generator=torch.Generator().manual_seed(T), dtype=torch.float64).to(dtype)


# --- the equations


def test_matrices_by_hand() -> None:
    A, B = hippo_matrices("legs", 3)
    s3, s5, s15 = 3**0.5, 5**0.5, 15**0.5
    torch.testing.assert_close(A, torch.tensor([[-1, 0, 0], [-s3, -2, 0], [-s5, -s15, -3]], dtype=torch.float64))
    assert B.tolist() == pytest.approx([1, s3, s5])
    A, B = hippo_matrices("legt", 3, theta=2.0)
    expected = torch.tensor([[-1, s3, -s5], [-s3, -3, s15], [-s5, -s15, -5]], dtype=torch.float64) / 2
    torch.testing.assert_close(A, expected)
    assert B.tolist() == pytest.approx([1 / 2, s3 / 2, s5 / 2])


@pytest.mark.parametrize("order", [4, 16, 64])
def test_spectra(order: int) -> None:
    A, _ = hippo_matrices("legs", order)
    assert A.diagonal().tolist() == list(range(-1, -order - 1, -1))
    for k in (1, 9, 63):
        keep, _ = hippo_module._step(memory(order=order).kind, k)
        norm, limit = torch.linalg.matrix_norm(keep, 2).item(), math.sqrt(k / (k + 1))
        assert norm <= limit + 1e-12  # a step never amplifies, at any order: this is what makes float32 safe
        if order >= 16:
            assert norm == pytest.approx(limit, abs=1e-11)


def test_the_window_forgets() -> None:
    keep, _ = hippo_module._step(memory("legt", 32, theta=128.0).kind, 0)
    assert torch.linalg.eigvals(keep).abs().max().item() == pytest.approx(0.934, abs=1e-3)


@pytest.mark.parametrize(("order", "T"), [(1, 5), (2, 70), (16, 200), (64, 130)])
def test_legs_is_the_projection_of_the_piecewise_constant_past(order: int, T: int) -> None:
    """An oracle without differential equation: integrals of the polynomials over each token, by quadrature."""
    u = signals(T, C=1, B=1)
    nodes, weights = legendre.leggauss(order + 1)
    x = (np.arange(T)[:, None] + (nodes + 1) / 2) / T
    basis = legendre.legvander(2 * x - 1, order - 1) * np.sqrt(2 * np.arange(order) + 1)
    pieces = torch.from_numpy(np.einsum("tqn,q->tn", basis, weights / 2) / T)
    expected = u[0, :, 0] @ pieces
    part = memory(order=order)
    assert error(part.remember(u)[0][0, -1, 0], expected) <= SAME[torch.float64]
    assert error(stepped(u, part)[0, -1, 0], expected) <= SAME[torch.float64]


def test_legt_is_the_zero_order_hold() -> None:
    A, B = hippo_matrices("legt", 16, theta=40.0)
    keep = torch.linalg.matrix_exp(A)
    write = torch.linalg.solve(A, (keep - torch.eye(16, dtype=torch.float64)) @ B)
    u = signals(150, C=1, B=1)
    c, rows = torch.zeros(16, dtype=torch.float64), []
    for value in u[0, :, 0]:
        c = keep @ c + write * value
        rows.append(c)
    part = memory("legt", 16, theta=40.0)
    assert error(part.remember(u)[0][0, :, 0], torch.stack(rows)) <= SAME[torch.float64]
    assert error(stepped(u, part)[0, :, 0], torch.stack(rows)) <= SAME[torch.float64]
    # the scale of another convention, twice the rates, is another memory
    assert error(coefficients(u[0, :, 0], memory("legt", 16, theta=20.0)), torch.stack(rows)) > CONTROL


def test_constant_input_is_its_own_first_coefficient() -> None:
    u = torch.full((1, 300, 1), 2.5, dtype=torch.float64)
    expected = 2.5 * torch.eye(12, dtype=torch.float64)[0].expand(300, 12)
    part = memory(order=12)
    for c in (part.remember(u)[0], stepped(u, part)):
        assert (c[0, :, 0] - expected).abs().max() <= 1e-13


# --- what is remembered


@pytest.mark.parametrize(
    ("signal", "order", "expected"),
    [
        (MIDDLES**3, 4, 9.0e-7),
        (torch.sin(TURN * MIDDLES), 8, 1.6e-4),
        (torch.sin(TURN * MIDDLES), 16, 1.2e-5),
        (torch.sin(3 * TURN * MIDDLES), 16, 2.9e-4),
        (torch.sin(3 * TURN * MIDDLES), 32, 6.8e-5),
        (torch.sin(3 * TURN * MIDDLES), 4, 0.64),  # too few coefficients: this must fail
    ],
    ids=["cubic", "sine-8", "sine-16", "three-sines-16", "three-sines-32", "three-sines-4"],
)
def test_reconstruction_of_the_whole_past(signal: Tensor, order: int, expected: float) -> None:
    c = coefficients(signal, memory(order=order))[-1]
    assert rms(hippo_reconstruct(c, MIDDLES) - signal) == pytest.approx(expected, rel=0.04)


def test_reconstruction_at_every_time_not_only_the_last() -> None:
    c = coefficients(torch.sin(TURN * MIDDLES), memory(order=16))
    for k in (64, 100, 517):
        past = torch.sin(TURN * MIDDLES[:k])
        assert rms(hippo_reconstruct(c[k - 1], (torch.arange(k) + 0.5) / k) - past) < 4e-4


def test_reconstruction_of_the_window() -> None:
    signal = torch.sin(TURN * torch.arange(L, dtype=torch.float64) / 100)
    c = coefficients(signal, memory("legt", 32, theta=128.0))
    x = (torch.arange(128) + 0.5) / 128
    worst = max(rms(hippo_reconstruct(c[k - 1], x) - signal[k - 128 : k]) for k in range(400, L))
    assert worst == pytest.approx(2.8e-4, rel=0.04)
    assert rms(hippo_reconstruct(c[-1], x.flip(0)) - signal[-128:]) > 0.5  # 1 is the present


@pytest.mark.parametrize(("length", "expected"), [(1024, 1.7e-3), (128, 1.4e-2)])
def test_zero_order_hold_beats_the_bilinear_rule(length: int, expected: float) -> None:
    A, B = hippo_matrices("legs", 4)
    eye, c = torch.eye(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    x = (torch.arange(length, dtype=torch.float64) + 0.5) / length
    signal = (2 * x - 1) ** 3
    for k, value in enumerate(signal, start=1):
        c = torch.linalg.solve(eye - A / (2 * k), (eye + A / (2 * k)) @ c + B / k * value)
    bilinear = rms(hippo_reconstruct(c, x) - signal)
    exact = rms(hippo_reconstruct(coefficients(signal, memory(order=4))[-1], x) - signal)
    assert bilinear == pytest.approx(expected, rel=0.5)
    assert exact < bilinear / 50


# --- one result for every way of reading


@pytest.mark.parametrize("measure", MEASURES)
@given(lengths=st.lists(st.integers(1, 70) | st.just(1), min_size=1, max_size=6))
def test_any_split_gives_the_same(measure: str, lengths: list[int]) -> None:
    part = HiPPO(6, measure=measure, order=16, channels=3, theta=30.0).double()
    x = torch.randn(2, sum(lengths), 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole, last = part(x)
    rows, state = [], None
    for piece in x.split(lengths, dim=1):
        y, state = part(piece, state)
        rows.append(y)
    assert error(torch.cat(rows, dim=1), whole) <= SAME[torch.float64]
    assert error(state.coefficients, last.coefficients) <= SAME[torch.float64]
    assert state.position == last.position == sum(lengths)


@pytest.mark.parametrize("measure", MEASURES)
def test_token_by_token_is_the_same_forward_and_gradient(measure: str) -> None:
    part = memory(measure, 16, theta=30.0)
    u = signals(150, C=1).requires_grad_()
    weight = torch.linspace(-1, 1, 2 * 150 * 16, dtype=torch.float64).view(2, 150, 1, 16)
    blocks, tokens = part.remember(u)[0], stepped(u, part)
    assert error(tokens, blocks) <= SAME[torch.float64]
    assert error(*(torch.autograd.grad(c, u, weight)[0] for c in (tokens, blocks))) <= SAME[torch.float64]


def test_a_wrong_position_is_caught() -> None:
    u, part = signals(40), memory()
    whole, _ = part.remember(u)
    _, state = part.remember(u[:, :20])
    c, _ = part.remember(u[:, 20:], HiPPOState(state.coefficients, 19))
    assert error(c, whole[:, 20:]) > CONTROL


@pytest.mark.parametrize("measure", MEASURES)
def test_later_tokens_change_nothing_before(measure: str) -> None:
    part = HiPPO(6, measure=measure)
    x = torch.randn(2, 150, 6, generator=torch.Generator().manual_seed(0))
    for t in (30, 64, 149):
        other = x.clone()
        other[:, t:] = torch.randn(2, 150 - t, 6, generator=torch.Generator().manual_seed(1))
        one, two = part(x)[0], part(other)[0]
        assert torch.equal(one[:, :t], two[:, :t])
        assert not torch.equal(one[:, t], two[:, t])


def test_a_fourier_transform_would_not_be_causal_to_the_bit() -> None:
    """Why windows are not computed as a convolution by FFT: equal in value, but rounding spreads over all tokens."""
    part = memory("legt", 16, theta=30.0)
    keep, write = hippo_module._step(part.kind, 0)
    impulse = [write]
    for _ in range(149):
        impulse.append(keep @ impulse[-1])
    kernel = torch.stack(impulse, dim=-1)  # (N, T)

    def convolved(u: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(u.mT[:, :, None], n=300) * torch.fft.rfft(kernel.to(u.dtype), n=300)
        return torch.fft.irfft(spectrum, n=300)[..., :150].permute(0, 3, 1, 2)

    u = signals(150)
    assert error(part.remember(u)[0], convolved(u)) <= SAME[torch.float64]
    other = u.clone()
    other[:, -1] += 1
    assert torch.equal(part.remember(u)[0][:, :-1], part.remember(other)[0][:, :-1])
    assert not torch.equal(convolved(u)[:, :-1], convolved(other)[:, :-1])


# --- numbers and the module


@pytest.mark.parametrize(("measure", "order", "T"), [("legs", 32, 4096), ("legs", 64, 500), ("legt", 32, 4096)])
def test_long_texts_in_float32(measure: str, order: int, T: int) -> None:
    u = signals(T, C=1, B=1, dtype=torch.float32).requires_grad_()
    part = memory(measure, order)
    exact = part.remember(u.detach().double())[0]
    c, _ = part.remember(u)
    c.square().sum().backward()
    assert u.grad.isfinite().all()
    assert error(c, exact) <= SAME[torch.float32]
    with torch.no_grad():
        assert error(stepped(u, part), exact) <= SAME[torch.float32]


@pytest.mark.parametrize("measure", MEASURES)
def test_every_parameter_learns_from_the_start(measure: str) -> None:
    part = HiPPO(12, measure=measure)
    x = torch.randn(2, 40, 12, generator=torch.Generator().manual_seed(0))

    def learn() -> dict[str, Tensor]:
        part.zero_grad()
        torch.nn.functional.layer_norm(x + part(x)[0], (12,)).pow(3).mean().backward()
        return {name: parameter.grad.clone() for name, parameter in part.named_parameters()}

    grads = learn()
    assert grads.keys() == {"W_in", "W_out", "gate"}
    for name, grad in grads.items():
        assert grad.isfinite().all(), name
        assert (grad != 0).all(), name
    with torch.no_grad():
        part.gate.zero_()
    assert not learn()["W_in"].any()  # why the gate does not start closed


def test_output_starts_no_larger_than_the_input() -> None:
    x = torch.sin(torch.arange(500)[:, None] / 80 + torch.arange(64)).expand(1, 500, 64)  # smooth: all is remembered
    torch.manual_seed(0)
    part = HiPPO(64)
    y, _ = part(x)
    u = torch.nn.functional.layer_norm(x, (64,)) @ part.W_in
    ratio = rms(y / part.gate) / rms(u)
    assert 0.5 < ratio < 1.1


@pytest.mark.parametrize("measure", MEASURES)
def test_half_precision_in_and_out_remembers_in_float32(measure: str) -> None:
    torch.manual_seed(0)
    part = HiPPO(6, measure=measure).bfloat16()
    x = torch.randn(2, 100, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    y, state = part(x)
    assert (y.dtype, state.coefficients.dtype) == (torch.bfloat16, torch.float32)
    u = signals(100, dtype=torch.bfloat16)
    exact, _ = part.remember(u.double())  # tables are not weights: the cast did not round them
    assert error(part.remember(u)[0], exact) <= SAME[torch.float32]
    part.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast, state = part(x.float())
    assert (under_autocast.dtype, state.coefficients.dtype) == (torch.float32, torch.float32)
    assert error(under_autocast, part(x.float())[0]) <= SAME[torch.bfloat16]


def test_state_is_a_value() -> None:
    part, u = memory(), signals(30)
    _, state = part.remember(u)
    before = state.coefficients.clone()
    for T in (1, 5):
        _, after = part.remember(u[:, :T], state)
        assert after.coefficients.untyped_storage().nbytes() == after.coefficients.nbytes  # holds nothing else alive
    assert torch.equal(state.coefficients, before)
    half = HiPPOState(before.bfloat16(), state.position)
    assert part.remember(u, half)[1].coefficients.dtype == torch.bfloat16


@pytest.mark.parametrize("measure", MEASURES)
def test_tables_made_in_inference_serve_training(measure: str) -> None:
    part = memory(measure, 7, theta=33.0)
    u = signals(70).requires_grad_()
    with torch.inference_mode():
        part.remember(u)
        stepped(u[:, :2], part)
    part.remember(u)[0].sum().backward()
    stepped(u[:, :2], part).sum().backward()
    assert u.grad.isfinite().all()


def test_compiled_code_holds_the_tables_instead_of_making_them() -> None:
    graphs: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: object):
        graphs.append(graph.code)
        return graph.forward

    part, u = memory(order=9), signals(90, C=1)
    c, _ = torch.compile(part.remember, backend=backend, fullgraph=True)(u)
    assert torch.equal(c, part.remember(u)[0])
    assert len(graphs) == 1
    assert "einsum" in graphs[0]
    assert "matrix_exp" not in graphs[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measure": "lagt"}, "expected one of legs, legt"),
        ({"order": 0}, "order 0"),
        ({"measure": "legt", "theta": 0.0}, "theta 0.0"),
        ({"channels": 0}, "channels 0"),
    ],
)
def test_impossible_sizes_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HiPPO(8, **options)
