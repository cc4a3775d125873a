"""Branches favour inputs that come together, change little at first, and cost no memory per branch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from bdh import BDH
from bdh.mechanisms import Dendrites, to_dale
from tolerances import CONTROL, SAME, error


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow(v: torch.Tensor, weight: torch.Tensor, branches: int, strength: torch.Tensor) -> torch.Tensor:
    B, H, T, K = len(v), len(weight), v.shape[2], weight.shape[2]
    u = torch.zeros(B, H, T, K, dtype=v.dtype)
    for h in range(H):
        for part in torch.arange(v.shape[3]).tensor_split(branches):
            b = torch.einsum("btd,dk->btk", v[:, h % v.shape[1], :, part], weight[h, part])
            u[:, h] += b + strength[h] * torch.where(b > 0, b**2, 0.0)
    return u


@given(st.integers(1, 3), st.sampled_from([False, True]), st.integers(1, 6), st.integers(6, 13), st.integers(0, 99))
def test_equals_the_equation(n_head: int, own_input: bool, branches: int, width: int, seed: int) -> None:
    v, weight = normal(seed, 2, n_head if own_input else 1, 3, width), normal(seed + 1, n_head, width, 5)
    part = Dendrites(n_head, branches).double()
    with torch.no_grad():
        part.strength.copy_(normal(seed + 2, n_head))
    assert error(part(v, weight).detach(), slow(v, weight, branches, part.strength.detach())) <= SAME[torch.float64]


def test_inputs_on_one_branch_count_for_more() -> None:
    part, weight = Dendrites(1, branches=4, strength=0.5), torch.ones(1, 8, 1)

    def drive(*places: int) -> float:
        v = torch.zeros(1, 1, 1, 8)
        v[..., list(places)] = 2.0
        return part(v, weight).item()

    # 4 on one branch, or 2 on each of two: 4 + a 16 or 4 + a 8
    assert drive(0, 1) == pytest.approx(4 + 0.5 * 16)
    assert drive(0, 2) == pytest.approx(4 + 0.5 * 8)
    with torch.no_grad():
        part.strength.zero_()
    assert drive(0, 1) == drive(0, 2) == 4
    # inhibition is not amplified
    with torch.no_grad():
        part.strength.fill_(0.5)
    assert part(-torch.ones(1, 1, 1, 8), weight).item() == -8


def test_at_strength_zero_it_is_the_plain_drive() -> None:
    v, weight = normal(0, 2, 1, 5, 32), normal(1, 3, 32, 7)
    assert error(Dendrites(3, strength=0.0).double()(v, weight), v @ weight) <= SAME[torch.float64]
    assert error(Dendrites(3).double()(v, weight), v @ weight) > CONTROL


def test_at_initialisation_it_is_near_the_plain_drive() -> None:
    v = F.layer_norm(normal(0, 4, 1, 50, 256), (256,))
    weight = 0.02 * normal(1, 2, 256, 500)
    plain = v @ weight
    change = Dendrites(2).double()(v, weight) - plain
    assert 0.005 < (change.square().mean() / plain.square().mean()).sqrt() < 0.1


def test_gradients() -> None:
    part = Dendrites(2, branches=3, strength=0.3).double()
    v, weight = normal(0, 2, 1, 3, 8).requires_grad_(), normal(1, 2, 8, 4).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda v, w, s: torch.func.functional_call(part, {"strength": s}, (v, w)), (v, weight, part.strength)
    )
    # the strength learns from zero as well
    start = Dendrites(2, strength=0.0).double()
    start(v, weight).square().sum().backward()
    assert (start.strength.grad.abs() > 1e-3).all()


def test_no_branch_keeps_a_tensor_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    v, weight = normal(0, 1, 1, 50, 16), normal(1, 1, 16, 300).requires_grad_()

    def kept() -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            Dendrites(1, branches=8).double()(v, weight)
        return sizes.count(50 * 300)

    # the strength's gradient needs the sum of the squares, once
    assert kept() == 1
    monkeypatch.setattr("bdh.mechanisms.dendrites.checkpoint", lambda part, *args, **_: part(*args))
    assert kept() > 8


def test_tokens_are_taken_one_by_one_and_types_kept() -> None:
    part, v, weight = Dendrites(2), normal(0, 2, 1, 6, 16).float(), normal(1, 2, 16, 5).float()
    whole = part(v, weight)
    assert error(torch.cat([part(t, weight) for t in v.split(1, 2)], 2), whole) <= SAME[torch.float32]
    assert part(v.bfloat16(), weight.bfloat16()).dtype == torch.bfloat16
    assert error(part(v.bfloat16(), weight.bfloat16()), whole) <= SAME[torch.bfloat16]
    with pytest.raises(ValueError, match="at least 1"):
        Dendrites(1, branches=0)


def test_dales_law_binds(tiny: BDH) -> None:
    v = F.layer_norm(normal(0, 2, 1, 5, 16), (16,))
    weight = normal(1, 2, 16, 5)
    shifted = weight + 0.5
    assert error(v @ shifted, v @ weight) <= SAME[torch.float64]
    assert error(Dendrites(2).double()(v, shifted), Dendrites(2).double()(v, weight)) > CONTROL
    tiny.dendrites = Dendrites(2)
    with pytest.raises(ValueError, match="Dendrites"):
        to_dale(tiny)
