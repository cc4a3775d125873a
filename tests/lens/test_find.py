"""Neurons for a word: found where they are, not where a byte, one half of the text or chance would do."""

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import false_discovery_control, mannwhitneyu

from bdh import BDH, BDHConfig
from bdh.lens import find, find_neurons
from bdh.lens.find import Found, _at_ends, _effect, _p
from bdh.lens.neuron_panels import find_panel, wording
from bdh.lens.record import record

CONFIG = BDHConfig(n_layer=2, n_embd=32, n_head=2, mlp_internal_dim_multiplier=2)
WORDS = "love give have fine tree that with from this your lore dove much home gold king"


def text_of(n_words: int, seed: int = 0) -> bytes:
    rng = np.random.default_rng(seed)
    return (" ".join(rng.choice(WORDS.split(), n_words)) + ".").encode()


TEXT = text_of(2000)


@pytest.fixture
def model() -> BDH:
    return BDH.from_seed(CONFIG, 0)


Plant = Callable[[np.ndarray, np.random.Generator, bytes, np.ndarray], None]


def found_with(plant: Plant, monkeypatch: pytest.MonkeyPatch, words="love", text: bytes = TEXT, **options) -> Found:
    """Find neurons in activations that are chance, but for what `plant` changes (U, P) given the ends of the units."""
    rng = np.random.default_rng(options.pop("chance", 0))

    def activations(model: BDH, data: np.ndarray, ends: np.ndarray, context: int, signal: str) -> np.ndarray:
        a = np.maximum(rng.normal(size=(len(ends), CONFIG.n_layer * CONFIG.n_neurons)), 0)
        plant(a, rng, data.tobytes(), ends)
        return a

    monkeypatch.setattr(find, "_at_ends", activations)
    return find_neurons(BDH.from_seed(CONFIG, 0), text, words, **{"context": 16, "shuffles": 3} | options)


def before(data: bytes, ends: np.ndarray, suffix: bytes) -> np.ndarray:
    return np.array([data[: end + 1].endswith(suffix) for end in ends])


def nothing(a, rng, data, ends) -> None:
    pass


def test_planted_neurons_are_found_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    N = CONFIG.n_neurons

    def plant(a, rng, data, ends) -> None:
        is_love = before(data, ends, b"love")
        a[is_love, 5] += 2  # level 0
        a[is_love, N + 5] += 4  # the same neuron at level 1, clearer
        a[is_love, N + 9] += 3

    found = found_with(plant, monkeypatch)
    assert {(one.neuron, one.level) for one in found.neurons} == {(5, 1), (9, 1)}
    assert (found.n_passing, found.n_tested) == (3, 2 * N)
    best = found.neurons[0]
    assert best.other.low > 0.9
    assert best.ending is not None
    assert best.ending.low > 0.9
    assert best.profile[1] > best.profile[0] > 0.5
    assert best.fires == 1
    assert best.other.fires == pytest.approx(0.5, abs=0.15)
    assert {context.shown for context in best.contexts} == {"e"}
    assert all(context.left.endswith("lov") for context in best.contexts)
    assert found.by_chance == 0


def test_a_neuron_of_the_last_byte_is_not_one_of_the_word(monkeypatch: pytest.MonkeyPatch) -> None:
    def plant(a, rng, data, ends) -> None:
        a[before(data, ends, b"e"), 7] += 4

    found = found_with(plant, monkeypatch)
    assert found.neurons == ()
    assert wording(found).startswith("None passes")
    # control: without the comparison with words that end alike, it passes
    monkeypatch.setattr(find, "_alike", _only_length(find._alike))
    found = found_with(plant, monkeypatch)
    assert [one.neuron for one in found.neurons] == [7]
    assert found.neurons[0].ending is None
    assert "Too few other words end alike" in wording(found)


def _only_length(alike):
    calls = []

    def wrapped(mine, trait, rest, rng):
        calls.append(1)
        return alike(mine, trait, rest, rng)[: None if len(calls) % 2 else 0]

    return wrapped


def test_what_holds_in_the_first_half_alone_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Selected and tested on the same occurrences, it would."""

    def plant(a, rng, data, ends) -> None:
        a[before(data, ends, b"love") & (ends < len(data) // 2), 3] += 4

    found = found_with(plant, monkeypatch)
    assert found.n_selected >= 1
    assert found.neurons == ()


def test_chance_passes_less_often_than_the_rate_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [found_with(nothing, monkeypatch, chance=seed, shuffles=1) for seed in range(20)]
    assert sum(bool(one.neurons) for one in found) <= 2  # 5 % of 20 is 1
    # control: without a correction, several of the 128 pairs would be called neurons of the word each time
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(30, 128)), rng.normal(size=(90, 128))
    p = mannwhitneyu(a, b, alternative="greater", axis=0).pvalue
    assert (p <= 0.05).sum() >= 2
    assert (false_discovery_control(p) <= 0.05).sum() == 0


def test_the_unit_is_the_occurrence() -> None:
    """128 bytes of each are read, and none counts but the last: the sizes are those of the words."""
    text = text_of(900, 3)
    loves = text.decode().split().count("love")
    found = find_neurons(BDH.from_seed(CONFIG, 0), text, "love", context=128, shuffles=0)
    used = found.n_selection[0] + found.n_report[0]
    assert loves - 4 <= used <= loves
    assert found.n_report[1] <= 3 * found.n_report[0]
    # a text that says everything twice holds no more evidence per occurrence, but as many units as it has words
    assert sum(find_neurons(BDH.from_seed(CONFIG, 0), text, "love", context=16, shuffles=0, most=20).n_report[:1]) == 10


def test_activations_are_those_of_a_recording(model: BDH) -> None:
    model.eval()
    data = np.frombuffer(TEXT, dtype=np.uint8)
    ends = np.array([40, 77, 200])
    for signal in ("x_sparse", "xy_sparse"):
        got = _at_ends(model, data, ends, 24, signal)
        for row, end in enumerate(ends):
            idx = torch.tensor([list(TEXT[end - 23 : end + 1])])
            _, trace = record(model, idx, f"layers.*.{signal}")
            expected = torch.cat([trace.neurons(signal, level)[0, -1] for level in range(2)])
            torch.testing.assert_close(torch.from_numpy(got[row]), expected, rtol=1e-5, atol=1e-7)
    # control: the bytes before it matter
    assert not np.allclose(_at_ends(model, data, ends, 24, "x_sparse"), _at_ends(model, data, ends, 8, "x_sparse"))


def test_p_is_the_larger_of_both_comparisons_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 3, (60, 11)).astype(float)  # many ties
    a[:, 4] = 1.0
    groups = np.arange(20), np.arange(20, 40), np.arange(40, 60)
    monkeypatch.setattr(find, "COLUMNS", 3)
    expected = [
        mannwhitneyu(a[:20], a[rows], alternative="greater", method="asymptotic", axis=0).pvalue
        for rows in (slice(20, 40), slice(40, 60))
    ]
    varies = np.arange(11) != 4
    assert _p(a, groups)[varies] == pytest.approx(np.maximum(*expected)[varies])
    assert _p(a, groups)[4] == 1
    assert _p(a, (groups[0], groups[1], groups[2][:0]))[varies] == pytest.approx(expected[0][varies])


def test_the_effect_is_two_auroc_less_one_and_its_interval_covers() -> None:
    rng = np.random.default_rng(0)
    c, r = rng.normal(0.8, 1, 40), rng.normal(0, 1, 60)
    effect = _effect(c, r, rng)
    u = mannwhitneyu(c, r).statistic
    assert effect.rank_biserial == pytest.approx(2 * u / (40 * 60) - 1)
    assert effect.fires == (r > 0).mean()
    truth = 2 * 0.7142 - 1  # P(normal(0.8, sqrt 2) > 0)
    hits = 0
    for _ in range(100):
        one = _effect(rng.normal(0.8, 1, 40), rng.normal(0, 1, 60), rng)
        hits += one.low <= truth <= one.high
    assert 88 <= hits <= 100


def test_case_is_told_apart_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["Love" if at % 3 == 0 else "love" if at % 3 == 1 else "have" for at in range(600)]
    text = " ".join(words).encode()
    both = found_with(nothing, monkeypatch, text=text, most=1000)
    assert (both.words, both.n_selection[0] + both.n_report[0]) == (("love",), pytest.approx(400, abs=4))
    upper = found_with(nothing, monkeypatch, "Love", text=text, most=1000, case=True)
    assert (upper.words, upper.n_selection[0] + upper.n_report[0]) == (("Love",), pytest.approx(200, abs=3))


def test_a_concept_is_all_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def plant(a, rng, data, ends) -> None:
        a[before(data, ends, b"king") | before(data, ends, b"gold"), 2] += 4

    found = found_with(plant, monkeypatch, ["king", "gold", "king"])
    assert found.words == ("king", "gold")
    assert [one.neuron for one in found.neurons] == [2]


def test_the_same_call_gives_the_same_findings_and_leaves_the_model_alone(model: BDH) -> None:
    model.train()
    told: list[str] = []
    first = find_neurons(model, TEXT, "love", context=16, shuffles=2, progress=told.append)
    assert first == find_neurons(model, TEXT, "love", context=16, shuffles=2)
    assert first != find_neurons(model, TEXT, "love", context=16, shuffles=2, seed=1)
    assert model.training
    assert told[0].startswith("reading")
    # both are untrained: what they find is no knowledge of a word, and is told beside each finding
    assert f"{first.untrained} in an untrained model" in find_panel(first, 32).baseline


def test_findings_go_to_json_and_to_a_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    def plant(a, rng, data, ends) -> None:
        a[before(data, ends, b"love"), CONFIG.n_neurons + 40] += 4

    found = found_with(plant, monkeypatch)
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert values["neurons"][0]["neuron"] == 40
    panel = find_panel(found, CONFIG.neurons_per_head)
    (table,) = panel.tables.values()
    assert table.column("head:index") == ("h1:8",)
    assert table.column("level") == (1,)
    assert panel.note.startswith("1 neuron is more active")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"words": "my love"}, "word 'my love': expected letters only"),
        ({"words": []}, "expected at least one word"),
        ({"words": ""}, "expected letters only"),
        ({"words": "zebra"}, r"word 'zebra': expected at least 20 occurrences .* got 0 in .* bytes; give more text"),
        ({"words": ["zebra", "gnu"]}, "word 'zebra' and 1 others: expected at least 20"),
        ({"ids": b"love " * 100}, "expected at least 10 other words of the same length"),
        ({"most": 10}, "most=10: expected"),
        ({"signal": "x"}, "signal='x'"),
        ({"ids": b""}, "expected a non-empty sequence"),
    ],
)
def test_mistakes_are_told_in_one_line(model: BDH, options: dict, message: str) -> None:
    given = {"ids": TEXT, "words": "love", "context": 16} | options
    with pytest.raises(ValueError, match=message) as caught:
        find_neurons(model, **given)
    assert "\n" not in str(caught.value)
