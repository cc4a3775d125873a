"""What is counted and kept of every neuron, against the same computed from whole recordings."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bdh import BDH, BDHConfig
from bdh.lens import record, texts
from bdh.lens.index.kept import NONE, Kept, keys, strongest_first
from bdh.lens.index.ngrams import LEAST, frequent, log_odds
from bdh.lens.index.plan import Plan
from bdh.lens.index.tally import EDGES, N_BINS, Desk, Tally, bins
from bdh.lens.sums import ROWS
from bdh.model import evaluating
from tolerances import SAME, error

CONFIG = BDHConfig(n_layer=2, n_embd=32, n_head=2, mlp_internal_dim_multiplier=2, dropout=0.0)
TEXT = np.frombuffer(b"the quick ones ask the queen; no iraq\n" * 11 + b"q and a quart", dtype=np.uint8)
WINDOW = 150
"""More than one piece of tokens, and a rest at the end of the text."""


def model_of(config: BDHConfig = CONFIG) -> BDH:
    model = BDH.from_seed(config, 0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10)
    return model


def tally_of(model: BDH, signal: str = "x_sparse", **settings: int) -> Tally:
    plan = Plan.of(model, TEXT, signal=signal, window=WINDOW, **settings)
    tally = Tally(plan, frequent(TEXT, WINDOW, plan.ngrams))
    with evaluating(model):
        for start, idx in texts.blocks(model, TEXT, WINDOW):
            tally.begin(start, *idx.shape)
            model(idx, tap=tally)
            tally.finish()
    return tally


def activations(model: BDH, signal: str = "x_sparse") -> np.ndarray:
    """All activations (L, S, N), one window after the other."""
    levels = []
    for level in range(model.config.n_layer):
        parts = [
            record(model, torch.from_numpy(TEXT[at : at + WINDOW].astype(np.int64))[None], f"layers.*.{signal}")[1]
            for at in range(0, len(TEXT), WINDOW)
        ]
        levels.append(torch.cat([part.neurons(signal, level)[0] for part in parts]))
    return torch.stack(levels).numpy()


@pytest.mark.parametrize(("signal", "every"), [("x_sparse", 1), ("xy_sparse", 1), ("x_sparse", 7)])
def test_sums_and_histogram_are_those_of_all_activations(
    signal: str, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of()
    monkeypatch.setattr("bdh.lens.index.tally.IN_HISTOGRAM", len(TEXT) // every)
    tally, a = tally_of(model, signal), activations(model, signal)
    mean, std, largest, fires = tally.sums.result(len(TEXT))
    np.testing.assert_array_equal(fires, (a > 0).sum(1))
    for got, expected in ((mean, a.mean(1, dtype=np.float64)), (std, a.std(1, dtype=np.float64)), (largest, a.max(1))):
        assert error(torch.from_numpy(got), torch.from_numpy(expected)) < SAME[torch.float32]
    a = a[:, ::every]
    above = np.array([[(a > 0).sum(1) if edge == 0 else (a >= edge).sum(1)] for edge in EDGES])[:, 0]
    # a sum of two roundings could move an activation over an edge; none does here
    np.testing.assert_array_equal(tally.above, above.transpose(1, 0, 2))
    assert (tally.above[:, 5:-5].astype(int) != above.transpose(1, 0, 2)[:, 6:-4]).any()  # other edges are other counts


def test_contexts_are_the_strongest_of_all_windows_and_levels() -> None:
    model = model_of()
    tally, a = tally_of(model, top=3), activations(model)
    event = np.arange(a.shape[1])[:, None] * 2 + np.arange(2)  # (S, L)
    for neuron in range(CONFIG.n_neurons):
        best = []
        for start in range(0, len(TEXT), WINDOW):
            values = a[:, start : start + WINDOW, neuron].T  # (T, L)
            if values.max() > 0:
                best.append((-values.max(), int(event[start : start + WINDOW][values == values.max()].min())))
        expected = sorted(best)[:3]
        found = tally.top.key[neuron] != NONE
        assert tally.top.events()[neuron][found].tolist() == [place for _, place in expected]
        np.testing.assert_allclose(tally.top.activation[neuron][found], [-v for v, _ in expected], rtol=1e-5)


def test_strips_are_the_activations_around_a_place() -> None:
    model = model_of()
    tally, a = tally_of(model), activations(model)
    before = tally.plan.before
    for kept in (tally.top, tally.drawn):
        for neuron in range(0, CONFIG.n_neurons, 7):
            there = kept.key[neuron] != NONE
            for place, strip in zip(kept.events()[neuron][there], kept.strip[neuron][there], strict=True):
                position, level = divmod(int(place), 2)
                window = position // WINDOW * WINDOW
                for offset, value in enumerate(strip.tolist(), position - before):
                    inside = window <= offset < min(window + WINDOW, len(TEXT))
                    expected = float(a[level, offset, neuron]) if inside else 0.0
                    assert value == pytest.approx(expected, rel=2e-3, abs=1e-6)


def test_the_sample_is_drawn_by_lot_from_all_fires() -> None:
    model = model_of()
    tally, a = tally_of(model, samples=6, seed=5), activations(model)
    block = texts.BLOCK_CELLS // (WINDOW * CONFIG.n_neurons) * WINDOW
    assert block > len(TEXT)  # whole windows are one block, the rest another
    whole = len(TEXT) // WINDOW * WINDOW
    lots = np.zeros((2, len(TEXT)), np.uint64)
    for start, stop in ((0, whole), (whole, len(TEXT))):
        words = np.random.Philox(key=5, counter=start << 128).random_raw(2 * (stop - start))
        lots[:, start:stop] = (words >> np.uint64(32)).reshape(2, -1)
    for neuron in range(CONFIG.n_neurons):
        level, position = np.nonzero(a[:, :, neuron] > 0)
        order = np.argsort(lots[level, position])[:6]
        found = tally.drawn.key[neuron] != NONE
        assert tally.drawn.events()[neuron][found].tolist() == (position * 2 + level)[order].tolist()
        values = a[level[order], position[order], neuron]
        np.testing.assert_allclose(tally.drawn.activation[neuron][found], values, rtol=1e-5)


def test_ngrams_and_places_are_counted_exactly() -> None:
    model = model_of()
    tally, a = tally_of(model), activations(model)
    firing = (a > 0).sum(0)  # (S, N)
    place = np.arange(len(TEXT)) % WINDOW
    np.testing.assert_array_equal(tally.place, (place[:, None] * firing).sum(0))
    text = TEXT.tobytes()
    assert {len(gram) for gram in tally.ngrams.grams} == {1, 2, 3, 4}
    for number, gram in enumerate(tally.ngrams.grams):
        ends = [p for p in range(len(text)) if text[: p + 1].endswith(gram) and place[p] >= len(gram) - 1]
        assert tally.ngrams.counts[number] == len(ends)
        np.testing.assert_array_equal(tally.at_ngram[number], firing[ends].sum(0))


def test_only_the_most_frequent_ngrams_are_counted() -> None:
    found = frequent(TEXT, WINDOW, 3)
    assert [sum(len(gram) == n for gram in found.grams) for n in (1, 2, 3, 4)] == [len(set(TEXT.tolist())), 3, 3, 3]
    rare = frequent(TEXT, WINDOW, 9999)
    assert min(n for gram, n in zip(rare.grams, rare.counts, strict=True) if len(gram) > 1) >= LEAST


def test_threads_and_slices_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    one = tally_of(model).arrays()
    monkeypatch.setattr("bdh.lens.index.tally.SLICE", 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    for name, array in tally_of(model).arrays().items():
        np.testing.assert_array_equal(array, one[name], err_msg=name)


@given(st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=3 * ROWS // 2))
def test_bins_are_right_for_any_number(values: list[float]) -> None:
    a = np.array(values[:ROWS], np.float32)[:, None]
    expected = np.where(a > 0, np.searchsorted(EDGES, a, side="right"), 0)
    found = bins(a, a > 0, Desk(1))
    np.testing.assert_array_equal(found, expected)
    assert found.max() <= N_BINS
    assert all(low < high for low, high in itertools.pairwise(EDGES))


@given(st.permutations(range(24)), st.integers(1, 6))
def test_what_is_kept_does_not_depend_on_the_order(order: list[int], size: int) -> None:
    ranks = np.arange(24, dtype=np.uint32) // 2  # ties are broken by the place
    parts, kept = np.array_split(np.array(order), 5), Kept(1, size, 1)
    other = Kept(1, size, 1)
    for number, part in enumerate(parts):
        some = keys(ranks[part], part)[None]
        store = kept if number % 2 else other
        store.offer(np.array([0]), some, ranks[part].astype(np.float32)[None], part[None, :, None].astype(np.float16))
    kept.merge(other)
    assert kept.events()[0].tolist() == list(range(size))
    assert kept.strip[0, :, 0].tolist() == list(range(size))


@given(st.floats(0, 2.0**120, width=32), st.floats(0, 2.0**120, width=32))
def test_strength_ranks_as_numbers_do(a: float, b: float) -> None:
    first, second = strongest_first(np.array([a, b], np.float32)).tolist()
    assert (first < second) == (a > b)


def test_log_odds_tell_a_neuron_from_chance() -> None:
    generator = np.random.default_rng(0)
    counts, cells, rate = np.array([50, 500, 5000]), 20_000, 0.2
    total = np.full(400, rate * cells)
    chance = generator.binomial(counts[:, None], rate, (3, 400))
    _, z = log_odds(chance, total, counts, cells)
    assert abs(z.mean()) < 0.2
    assert abs(z).max() < 5
    twice = np.repeat(0.4 * counts[:, None], 400, 1)
    delta, z = log_odds(twice, total, counts, cells)
    assert delta.min() > 0
    assert z[1].min() > 5 > z[0].max() > 0  # the same lift is surer where there is more of it
    by_hand = math.log(22 / 98) - math.log(2 / 1078)
    assert log_odds(np.array([[20]]), np.array([20]), np.array([20]), 1000)[0].item() == pytest.approx(by_hand)


def test_a_plan_refuses_what_it_cannot_number() -> None:
    plan = Plan.of(model_of(), TEXT)
    with pytest.raises(ValueError, match="at most 2,147,483,647"):
        dataclasses.replace(plan, n_bytes=2**31)
    with pytest.raises(ValueError, match="window=0"):
        dataclasses.replace(plan, window=0)
    assert plan.differs(dataclasses.replace(plan, seed=1, window=9)) == "window, seed"
