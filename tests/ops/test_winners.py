"""Winners remembered against winners chosen again."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bdh.mechanisms import k_winners
from bdh.ops.winners import _without_last, recall, remember

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def both(drive: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = k_winners(drive, k)
    return recall(drive, *remember(x)), x


@given(
    seed=st.integers(0, 1000),
    K=st.integers(1, 40),
    share=st.floats(0.01, 1.0),
    levels=st.sampled_from([1, 3, 50, 10**6]),
    dtype=st.sampled_from(DTYPES),
)
def test_the_same_as_choosing_again(seed: int, K: int, share: float, levels: int, dtype: torch.dtype) -> None:
    """With few different drives most lines cut through equals."""
    drive = torch.randn(30, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    drive = (drive * levels).round().div(levels).to(dtype)
    got, expected = both(drive, max(1, round(share * K)))
    assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_extremes(dtype: torch.dtype) -> None:
    drive = torch.tensor([[-1.0, -2, -3], [0, 0, 0], [1, 1, 1], [1e-7, 2e-7, 0], [torch.inf, 1, torch.inf]]).to(dtype)
    for k in (1, 2, 3):
        got, expected = both(drive, k)
        assert torch.equal(got, expected)


def test_neighbouring_drives_are_told_apart() -> None:
    drive = torch.tensor([[1.0, torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))]])
    assert both(drive, 1)[0].count_nonzero() == 1


def test_the_form_for_accelerators_is_the_same() -> None:
    drive = torch.randn(50, 40, generator=torch.Generator().manual_seed(0)).mul(3).round()
    x = k_winners(drive, 10)
    line, count = remember(x)
    above = drive * (drive > line)
    excess = above.sign().sum(-1, keepdim=True) - count
    assert (excess > 0).any()
    assert torch.equal(_without_last(above, line, excess), x)


def test_without_the_ties_it_would_be_another_function() -> None:
    """Control: equals of the least winner must be told apart."""
    drive = torch.tensor([[2.0, 1.0, 1.0]])
    line, count = remember(k_winners(drive, 2))
    assert torch.equal(recall(drive, line, count), torch.tensor([[2.0, 1.0, 0.0]]))
    assert torch.equal(recall(drive, line, count + 1), drive)
