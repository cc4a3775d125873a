"""Phases against exact integer arithmetic."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bdh.ops import rotary
from tolerances import CONTROL, SAME, error

K = 8


def exact_turn(position: int, pair: int) -> complex:
    """The phase with the product and the modulo done without rounding."""
    frequency = Fraction(rotary.frequencies(K)[pair].item())
    part = (frequency * position) % 1
    return complex(math.cos(2 * math.pi * part), math.sin(2 * math.pi * part))


@given(st.integers(0, 10**8))
def test_phases_are_exact_at_any_position(position: int) -> None:
    turn = rotary.rotation(K, position, 1, like=torch.zeros((), dtype=torch.float64))
    for pair in range(K // 2):
        # float64 holds a phase of 1e7 turns to 2e-9 of a turn
        assert abs(turn[0, pair].item() - exact_turn(position, pair)) < 2e-8


def test_only_tables_that_are_asked_for_again_are_kept() -> None:
    like = torch.zeros(())
    rotary._rotation.cache_clear()
    training = rotary.rotation(K, 0, 64, like)
    for position in range(1, 20):  # a generation between two steps
        rotary.rotation(K, position, 1, like)
    rotary.rotation(K, 0, 5, like)
    assert rotary.rotation(K, 0, 64, like) is training
    for length in range(6, 20):
        rotary.rotation(K, 0, length, like)
    assert rotary._rotation.cache_info().currsize <= 2


def test_float32_phases_would_be_wrong_there() -> None:
    position = 10**8 + 1
    rounded = (torch.tensor(float(position)) * rotary.frequencies(K).float()).frac() * 2 * math.pi
    assert abs(complex(math.cos(rounded[0]), math.sin(rounded[0])) - exact_turn(position, 0)) > CONTROL


def test_frequencies_by_hand() -> None:
    assert rotary.frequencies(4).tolist() == pytest.approx([1 / (2 * math.pi), 2**-8 / (2 * math.pi)])


def test_rotation_by_hand() -> None:
    quarter = torch.tensor([[1j]], dtype=torch.complex64)
    assert rotary.rotate(torch.tensor([[3.0, 4.0]]), quarter).tolist() == [[-4.0, 3.0]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_precision_of_the_input_is_kept(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 5, K, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turn = rotary.rotation(K, 10**6, 5, like=x)
    rotated = rotary.rotate(x.to(dtype), rotary.rotation(K, 10**6, 5, like=x.to(dtype)))
    assert rotated.dtype == dtype
    assert error(rotated, rotary.rotate(x, turn)) <= SAME[dtype]


def test_compiled_form_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 5, K, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turn = rotary.rotation(K, 3, 5, like=x)
    eager = rotary.rotate(x, turn)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    turn = rotary.rotation(K, 3, 5, like=x)
    assert error(rotary.rotate(x, turn), eager) <= SAME[torch.float64]


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 10**6))
def test_products_depend_on_distance_only(i: int, j: int, shift: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 1, K, generator=generator, dtype=torch.float64)

    def product(a: int, b: int) -> torch.Tensor:
        return (rotary.rotate(x, rotary.rotation(K, a, 1, x)) * rotary.rotate(y, rotary.rotation(K, b, 1, y))).sum()

    assert torch.allclose(product(i, j), product(i + shift, j + shift), atol=1e-8)
