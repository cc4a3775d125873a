"""Density is a count, and the random-initialisation line is a measurement that disturbs nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bdh import BDH, BDHConfig
from bdh.lens import density, init_density, record

CONFIG = BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=8, dropout=0.5)


def ids(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed))


def model_of(config: BDHConfig, seed: int = 0) -> BDH:
    torch.manual_seed(seed)
    return BDH(config)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(1, 8), st.integers(0, 5))
def test_density_is_the_direct_count(batch: int, length: int, seed: int) -> None:
    model, idx = model_of(CONFIG, seed).eval(), ids(batch, length, seed=seed)
    _, trace = record(model, idx, "*")
    expected = {
        key: [(trace[f"layers.{level}.{key}_sparse"] > 0).double().mean().item() for level in range(2)]
        for key in ("x", "y", "xy")
    }
    measured = density(model, idx)
    assert measured.keys() == expected.keys()
    for key, levels in expected.items():
        assert measured[key] == pytest.approx(levels, abs=1e-12)


def test_the_first_token_reads_an_empty_memory() -> None:
    measured = density(model_of(CONFIG), ids(3, 1))
    assert measured["y"] == measured["xy"] == [0.0, 0.0]
    assert min(measured["x"]) > 0.2


def test_exact_sparsity_is_seen_exactly() -> None:
    config = BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=8, sparsity=0.875)
    assert density(model_of(config), ids(2, 6))["x"] == [0.125, 0.125]


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_and_the_mode_comes_back(training: bool) -> None:
    model, idx = model_of(CONFIG), ids(2, 6)
    expected = density(model.eval(), idx)
    model.train(training)
    assert density(model, idx) == density(model, idx) == expected
    assert model.training is training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_random_initialisation_is_what_a_fresh_model_measures() -> None:
    idx = ids(2, 16)
    assert init_density(CONFIG, idx, seed=7) == density(model_of(CONFIG, seed=7), idx)
    assert init_density(CONFIG, idx, seed=7) != init_density(CONFIG, idx, seed=8)


def test_random_initialisation_leaves_the_global_random_state() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    init_density(CONFIG, ids(1, 4), seed=11)
    assert torch.equal(torch.rand(4), expected)
