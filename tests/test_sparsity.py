"""Exact sparsity by k winners, as a function and in the model."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bdh import BDH, BDHConfig
from bdh.mechanisms import k_winners


def slow_k_winners(row: list[float], k: int) -> list[float]:
    ranked = sorted(range(len(row)), key=lambda i: (-row[i], i))
    return [value if i in ranked[:k] and value > 0 else 0.0 for i, value in enumerate(row)]


@given(st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12), st.data())
def test_matches_sorting_with_ties_by_index(row: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(row)))
    assert k_winners(torch.tensor(row), k).tolist() == slow_k_winners(row, k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("compiling", [False, True])  # the form for accelerators and the compiler
def test_rows_with_and_without_ties_together(
    dtype: torch.dtype, compiling: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[0, 1].round_()
    x[1, 2] = 1.0
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    for k in (1, 13, 63, 64):
        rows = [slow_k_winners(row, k) for row in x.flatten(0, 1).tolist()]
        assert k_winners(x, k).flatten(0, 1).tolist() == rows


@pytest.mark.parametrize("compiling", [False, True])
def test_nan_is_not_hidden(compiling: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    nan = float("nan")
    x = torch.tensor([[1.0, nan, 2.0, 3.0], [nan] * 4, [nan, nan, 0.0, 1.0], [1.0, 4.0, 2.0, 3.0]])
    for k in (1, 2, 3, 4):
        y = k_winners(x, k)
        assert torch.equal(y.isnan(), x.isnan())
        assert y[3].tolist() == slow_k_winners(x[3].tolist(), k)


def test_gradient_flows_through_the_winners_only() -> None:
    x = torch.tensor([3.0, -1.0, 2.0, 2.0, 5.0], requires_grad=True)
    k_winners(x, 3).sum().backward()
    assert x.grad.tolist() == [1.0, 0.0, 1.0, 0.0, 1.0]


@pytest.mark.parametrize("k", [0, 6])
def test_impossible_counts_are_refused(k: int) -> None:
    with pytest.raises(ValueError, match="expected 1 <= k <= 5"):
        k_winners(torch.zeros(5), k)


def activity(model: BDH, idx: torch.Tensor) -> torch.Tensor:
    return torch.stack([level.to_dense() for level in model.get_sparse_activations(idx)])  # (L, B, T, N)


@pytest.mark.parametrize("sparsity", [0.7, 0.8, 0.9])
def test_exactly_the_asked_share_fires_per_token_and_head(sparsity: float) -> None:
    config = BDHConfig(n_layer=2, n_embd=32, n_head=2, mlp_internal_dim_multiplier=16, sparsity=sparsity)
    model = BDH.from_seed(config, 0).eval()
    fired = (activity(model, torch.arange(50)[None]) > 0).unflatten(-1, (2, -1)).sum(-1)
    # about half of the drive is positive, so at these targets every winner fires
    assert (fired == round((1 - sparsity) * config.neurons_per_head)).all()


def test_without_a_target_about_half_fire_at_random_init() -> None:
    config = BDHConfig(n_layer=2, n_embd=32, n_head=2, mlp_internal_dim_multiplier=16)
    share = (activity(BDH.from_seed(config, 0).eval(), torch.arange(50)[None]) > 0).float().mean().item()
    assert 0.45 < share < 0.55


def test_later_tokens_do_not_change_who_wins() -> None:
    config = BDHConfig(n_layer=2, n_embd=32, n_head=2, mlp_internal_dim_multiplier=16, sparsity=0.8)
    model = BDH.from_seed(config, 0).eval()
    one, two = torch.arange(20)[None], torch.arange(20)[None].clone()
    two[0, 12:] = 7
    assert torch.equal(activity(model, one)[:, :, :12] > 0, activity(model, two)[:, :, :12] > 0)


def test_every_parameter_learns() -> None:
    config = BDHConfig(n_layer=2, n_embd=32, n_head=2, mlp_internal_dim_multiplier=16, sparsity=0.8, dropout=0.0)
    model = BDH.from_seed(config, 0)
    idx = torch.arange(50)[None]
    model(idx[:, :-1], idx[:, 1:])[1].backward()
    for parameter in model.parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.norm() > 0
