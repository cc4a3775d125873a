"""The running mean in any split, what a gain can and cannot do, and that the future stays out."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from bdh.mechanisms import Neuromodulation
from tolerances import CONTROL, SAME, error


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def part_with_weights(seed: int = 0, threshold: float = 0.1) -> Neuromodulation:
    part = Neuromodulation(16, 3, tau=20.0, threshold=threshold).double()
    with torch.no_grad():
        part.weight.copy_(normal(seed, 3, 16))
        part.bias.copy_(normal(seed + 1, 3))
    return part


def test_gains_follow_the_running_mean() -> None:
    part, v, mean = part_with_weights(), normal(2, 2, 100, 16), normal(3, 2, 16)
    gain, end = part(v, mean)
    decay = math.exp(-1 / 20)
    for t in range(100):
        mean = decay * mean + (1 - decay) * v[:, t]
        expected = 2 * torch.sigmoid(mean @ part.weight.T + part.bias)
        assert error(gain[:, :, t, 0].detach(), expected.detach()) <= SAME[torch.float64]
    assert error(end, mean) <= SAME[torch.float64]
    assert end.untyped_storage().nbytes() == end.nbytes  # the state holds no memory but its own


@given(st.lists(st.integers(1, 90), min_size=1, max_size=6))
def test_any_split_gives_the_same(lengths: list[int]) -> None:
    part, v = part_with_weights(), normal(2, 2, sum(lengths), 16)
    whole, end = part(v)
    state, pieces = None, []
    for piece in v.split(lengths, dim=1):
        before = None if state is None else state.clone()
        given_state = state
        gain, state = part(piece, state)
        assert given_state is None or torch.equal(given_state, before)  # a state is never changed
        pieces.append(gain)
    assert error(torch.cat(pieces, 2), whole) <= SAME[torch.float64]
    assert error(state, end) <= SAME[torch.float64]


def test_token_by_token_gives_the_same() -> None:
    part, v = part_with_weights(), normal(2, 2, 130, 16)
    whole, end = part(v)
    state, pieces = None, []
    for token in v.split(1, dim=1):
        gain, state = part(token, state)
        pieces.append(gain)
    assert error(torch.cat(pieces, 2), whole) <= SAME[torch.float64]
    assert state.shape == (2, 16)
    # forgetting the state is another gain
    assert error(torch.cat([part(token)[0] for token in v.split(1, dim=1)], 2), whole) > CONTROL
    assert error(state, end) <= SAME[torch.float64]


def test_later_tokens_change_nothing_before_them() -> None:
    part, v = part_with_weights(), normal(2, 2, 100, 16)
    other = v.clone()
    other[:, 70:] = 5.0
    assert torch.equal(part(v)[0][:, :, :70], part(other)[0][:, :, :70])
    assert error(part(other)[0][:, :, 70:], part(v)[0][:, :, 70:]) > CONTROL


def test_it_starts_at_one_and_learns_from_there() -> None:
    part, v, u = Neuromodulation(16, 3), normal(0, 2, 40, 16).float(), normal(1, 2, 3, 40, 8).float()
    gain, _ = part(v)
    assert (gain == 1).all()
    (part.gate(u, gain).relu().sum((1, 3)) * normal(2, 2, 40).float()).sum().backward()
    for parameter in part.parameters():
        assert (parameter.grad.abs() > 0).all()
    assert (part_with_weights()(v.double())[0] > 0).all()
    assert (part_with_weights()(v.double())[0] < 2).all()


def test_gradients_reach_the_tokens_before() -> None:
    part, v = part_with_weights(), normal(2, 1, 70, 16).requires_grad_()
    gain, state = part(v)
    gain[:, :, 69].sum().backward(retain_graph=True)
    first = v.grad.clone()
    # across the border of two chunks
    assert error(first[0, 60], first[0, 69] * math.exp(-9 / 20)) <= SAME[torch.float64]
    state.sum().backward()
    assert not torch.equal(v.grad, first)


def test_a_gain_before_a_norm_is_divided_out_and_against_a_threshold_it_is_not() -> None:
    u, decoder = normal(0, 2, 1, 30, 64), normal(1, 64, 16)

    def written(gated: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(gated.relu()[:, 0] @ decoder, (16,), eps=0.0)

    part = Neuromodulation(16, 1, threshold=0.5).double()
    gain, one = torch.rand(2, 1, 30, 1, dtype=torch.float64) + 0.5, torch.ones(2, 1, 30, 1, dtype=torch.float64)
    assert error(written(gain * u), written(u)) <= SAME[torch.float64]
    assert error(written(part.gate(u, gain)), written(part.gate(u, one))) > CONTROL
    # as the weight of one of two terms it counts too
    other = normal(3, 2, 1, 30, 64)
    assert error(written(u + gain * other), written(u + other)) > CONTROL


@pytest.mark.parametrize("wrong", [{"threshold": 0.0}, {"tau": 0.0}, {"tau": float("nan")}])
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected both > 0"):
        Neuromodulation(8, 2, **wrong)


def test_half_precision_in_and_out_with_a_wide_state() -> None:
    part = part_with_weights()
    v = normal(2, 2, 100, 16)
    exact, _ = part(v)
    half = Neuromodulation(16, 3, tau=20.0).to(torch.bfloat16)
    half.load_state_dict(part.state_dict())
    gain, state = half(v.bfloat16())
    assert (gain.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    assert error(gain, exact) <= SAME[torch.bfloat16]
    with torch.autocast("cpu", torch.bfloat16):
        assert part.float()(v.float())[1].dtype == torch.float32
