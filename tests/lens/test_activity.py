"""Codes of all neurons lose no spike, fit their budget, and pool neighbours in a head by their maximum."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bdh.lens.activity import STEPS, pack_activity
from bdh.ops import frequencies


def levels_of(seed: int, L: int = 2, T: int = 7, N: int = 16) -> list[torch.Tensor]:
    values = torch.randn(L, T, N, generator=torch.Generator().manual_seed(seed)).clamp(min=0)
    return list(values * values)


@given(st.integers(0, 1000))
def test_a_code_is_the_shade_rounded_up(seed: int) -> None:
    levels = levels_of(seed)
    found = pack_activity(levels, 8)
    assert (found.pooled, found.rows, found.columns) == (1, 16, 7)
    for level, exact in enumerate(levels):
        codes, share = found.codes(level), (exact.T / found.largest).sqrt().numpy() * STEPS
        assert ((codes > 0) == (exact.T.numpy() > 0)).all()
        assert (codes >= share - 1e-4).all()
        assert (codes < share + 1).all()
        assert codes.max() <= STEPS


@given(st.integers(0, 1000), st.integers(0, 300))
def test_a_row_is_the_maximum_of_its_neurons(seed: int, budget: int) -> None:
    levels = levels_of(seed)
    whole, pooled = pack_activity(levels, 8), pack_activity(levels, 8, budget)
    assert pooled.pooled in (1, 2, 4, 8)  # rows never cross a head
    for level in range(2):
        expected = whole.codes(level).reshape(-1, pooled.pooled, 7).max(1)
        assert (pooled.codes(level) == expected).all()
    assert sum(map(len, pooled.levels)) <= budget or pooled.pooled == 8
    assert pooled.periods == pytest.approx(
        [1 / frequencies(8)[row * pooled.pooled // 2].item() for row in range(8 // pooled.pooled)]
    )


def test_a_single_spike_survives_pooling() -> None:
    levels = [torch.zeros(20, 64) for _ in range(2)]
    levels[1][3, 21] = 1e-9
    levels[0][0, 0] = 5.0
    found = pack_activity(levels, 32, budget=1)
    assert found.pooled == 32
    assert np.argwhere(found.codes(1)).tolist() == [[0, 3]]


def test_silence_is_packed_too() -> None:
    found = pack_activity([torch.zeros(3, 8)], 4)
    assert found.largest == 0
    assert not found.codes(0).any()
