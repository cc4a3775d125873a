"""Ranks, tests and intervals are those of the definitions, and of scipy."""

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from bdh.lens.probing.ranks import (
    MOST_SWAPS,
    Ranked,
    all_swaps,
    dominance,
    false_discovery_rates,
    interval,
    midranks,
    random_swaps,
)


def values(seed: int, W: int = 6, T: int = 3, U: int = 5, kinds: int = 4) -> np.ndarray:
    """With so few different values that most are tied."""
    return np.random.default_rng(seed).integers(0, kinds, (2, W, T, U)).astype(np.float64)


def test_u_by_hand() -> None:
    # concept 5 3 0, contrast 3 0 0: 5 beats three; 3 beats two and ties one; 0 ties two
    column = np.array([5.0, 3.0, 0.0, 3.0, 0.0, 0.0]).reshape(2, 3, 1, 1)
    ranked = Ranked(midranks(column))
    assert ranked.u().tolist() == [3 + 2.5 + 1]
    assert ranked.effect(ranked.u())[0] == pytest.approx(2 * 6.5 / 9 - 1)


def test_the_effect_is_what_follows_from_the_papers_u() -> None:
    ranked = Ranked(np.zeros((2, 10, 5, 1)))  # 50 + 50 sentences
    assert ranked.effect(np.array([2368.0]))[0] == pytest.approx(0.8944)


@given(st.integers(0, 10**6), st.integers(1, 6))
def test_u_and_p_are_those_of_scipy_with_ties(seed: int, kinds: int) -> None:
    v = values(seed, kinds=kinds)
    ranked = Ranked(midranks(v))
    for unit in range(v.shape[-1]):
        one = scipy.stats.mannwhitneyu(
            v[0, ..., unit].ravel(), v[1, ..., unit].ravel(), alternative="greater", method="asymptotic"
        )
        assert ranked.u()[unit] == one.statistic
        if np.ptp(v[..., unit]):  # scipy divides by zero where nothing varies
            assert ranked.p(ranked.u())[unit] == pytest.approx(one.pvalue, rel=1e-9)
        else:
            assert ranked.p(ranked.u())[unit] == 1


def test_without_the_correction_for_ties_p_would_differ() -> None:
    v = values(1, kinds=2)
    ranked = Ranked(midranks(v))
    n = ranked.n
    naive = scipy.stats.norm.sf((ranked.u() - n * n / 2 - 0.5) / np.sqrt(n * n * (2 * n + 1) / 12))
    assert np.abs(naive - ranked.p(ranked.u())).max() > 1e-3


@given(st.integers(0, 10**6))
def test_swapped_u_is_the_u_of_swapped_sentences(seed: int) -> None:
    v, signs = values(seed), random_swaps(7, 6, np.random.default_rng(seed))
    ranked = Ranked(midranks(v))
    for row, sign in zip(ranked.u(signs), signs, strict=True):
        swapped = v.copy()
        swapped[:, sign < 0] = v[::-1][:, sign < 0]
        assert np.allclose(row, Ranked(midranks(swapped)).u())


def test_p_of_swaps_is_the_share_of_all_of_them() -> None:
    v = values(3, W=4)
    ranked = Ranked(midranks(v))
    swaps = all_swaps(4, np.random.default_rng(0))
    expected = np.zeros(v.shape[-1])
    for sign in itertools.product((1, -1), repeat=4):
        swapped = v.copy()
        swapped[:, np.array(sign) < 0] = v[::-1][:, np.array(sign) < 0]
        expected += Ranked(midranks(swapped)).u() >= ranked.u()
    assert np.allclose(ranked.p_of_swaps(ranked.u(), swaps), expected / 16)


def test_many_pairs_are_swapped_in_a_sample_that_has_the_data_itself() -> None:
    swaps = all_swaps(30, np.random.default_rng(0))
    assert swaps.shape == (MOST_SWAPS, 30)
    assert (swaps[0] == 1).all()
    v = np.stack((np.ones((30, 2, 1)), np.zeros((30, 2, 1))))
    ranked = Ranked(midranks(v))
    assert ranked.p_of_swaps(ranked.u(), swaps)[0] == 1 / MOST_SWAPS


@given(st.integers(0, 10**6))
def test_the_mean_dominance_is_the_effect(seed: int) -> None:
    v = values(seed)
    ranked = Ranked(midranks(v))
    assert np.allclose(dominance(*v).mean((0, 1)), ranked.effect(ranked.u()))


def test_intervals_of_words_are_wider_than_those_that_take_sentences_as_independent() -> None:
    generator = np.random.default_rng(0)
    word = generator.normal(size=(2, 12, 1, 40))
    v = np.repeat(word, 5, axis=2)  # five sentences that say the same about their word
    low, high = interval(dominance(*v), np.random.default_rng(1), paired=True, resamples=500)
    alone = v.reshape(2, 60, 1, 40)
    close_low, close_high = interval(dominance(*alone), np.random.default_rng(1), paired=True, resamples=500)
    assert (high - low).mean() > 1.8 * (close_high - close_low).mean()
    assert ((low <= 0) & (high >= 0)).mean() > 0.8  # nothing there: 95 % of intervals of 12 words, roughly


def test_false_discovery_rates_by_hand() -> None:
    assert false_discovery_rates(np.array([0.01, 0.04, 0.03])).tolist() == pytest.approx([0.03, 0.04, 0.04])
