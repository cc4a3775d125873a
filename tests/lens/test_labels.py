"""Labels: planted neurons get theirs, and what fires by chance gets none."""

import json

import numpy as np
import pytest
import torch

from bdh import BDH, BDHConfig
from bdh.lens import labels
from bdh.lens.candidates import MOST_PARTS, Candidates, _partitions
from bdh.lens.labels import Labelled, _auroc, _pearson, _pearson_interval, label_activations, label_neurons
from bdh.lens.neuron_panels import labels_panel
from bdh.lens.rules import Grams, Place, Shape, WordList, rule_from_dict

CONFIG = BDHConfig(n_layer=1, n_embd=32, n_head=2, mlp_internal_dim_multiplier=2)
WORDS = (
    "quick queen quiet hut thus under run sun but upon love thin man moth he saw her other me of tree hats she here "
    "him path rat at drum it bus nut plum they"
)
T = 16


def text_of(n_words: int, seed: int = 0) -> bytes:
    rng = np.random.default_rng(seed)
    joints = rng.choice([" ", " ", " ", ", ", ".\n"], n_words)
    return "".join(
        word + joint for word, joint in zip(rng.choice(WORDS.split(), n_words), joints, strict=True)
    ).encode()


TEXT = text_of(3000)
WINDOWS = np.frombuffer(TEXT[: len(TEXT) // T * T], dtype=np.uint8).reshape(-1, T)


@torch.no_grad()
def planted() -> BDH:
    """Neuron 10 fires on q, 11 on vowels, 12 on u and is gated by a q just before; 40 has random weights.

    The gate reads the memory: neurons 0-5 fire on q and u, so that u recalls the q before it, and fast pairs make what
    is nearer stronger.
    """
    model = BDH.from_seed(CONFIG, 0)
    q, u, vowel = 4, 5, 6
    model.embed.weight.mul_(10)
    model.embed.weight[:, [q, u, vowel]] = 0
    model.embed.weight[list(b"aeiou"), vowel] = 4.0
    model.embed.weight[ord("q"), q] = model.embed.weight[ord("u"), u] = 4.0
    rest = model.encoder[1].clone()
    model.encoder.zero_()
    model.encoder_v.zero_()
    model.encoder[1, :, 8] = rest[:, 8]
    model.encoder[0, [q, u], :6] = 1.0
    for axis, neuron in ((q, 10), (vowel, 11), (u, 12)):
        model.encoder[0, axis, neuron] = 1.0
        model.encoder[0, 7, neuron] = 0.0
    model.encoder_v[0, q, 12] = 1.0
    return model


def test_planted_neurons_are_named_and_a_random_one_is_not() -> None:
    one_byte, vowels, random = label_neurons(planted(), TEXT, [10, 11, 40], window=T)
    assert one_byte.label == "on 'q'"
    assert one_byte.candidates[0].score.pearson > 0.95
    assert one_byte.candidates[0].score.auroc == pytest.approx(1, abs=1e-3)
    rule = vowels.candidates[0].rule
    assert isinstance(rule, Grams)
    assert {bytes(gram) for gram in rule.grams} == {b"a", b"e", b"i", b"o", b"u"}
    assert vowels.label == rule.words
    assert random.candidates
    assert random.label is None
    assert random.candidates[0].score.low <= random.needed


def test_a_neuron_that_needs_the_memory_is_named_by_what_came_before() -> None:
    (gated,) = label_neurons(planted(), TEXT, [12], signal="xy_sparse", window=T)
    assert gated.label == "at the end of 'qu'"
    # negative control: before the gate it fires on every u
    (open_to_all,) = label_neurons(planted(), TEXT, [12], window=T)
    assert open_to_all.label == "on 'u'"


def noise(rng: np.random.Generator, n: int, memory: float = 0.0) -> np.ndarray:
    """Activations (n, 1, W, T) that have nothing to do with the text; with memory they drift."""
    drive = rng.normal(size=(n, WINDOWS.size))
    for at in range(1, WINDOWS.size if memory else 0):
        drive[:, at] += memory * drive[:, at - 1]
    return np.maximum(drive, 0).reshape(n, 1, *WINDOWS.shape)


def label_of(rule, strength: float = 3.0, **options) -> Labelled:
    rng = np.random.default_rng(1)
    activation = noise(rng, 1) * 0.3 + strength * rule.matches(WINDOWS)
    return label_activations(WINDOWS, activation, [0], **options)[0]


@pytest.mark.parametrize(
    "rule",
    [
        WordList(("love",), "so far"),
        WordList(("of",), "after"),
        Grams((b"th",)),
        Shape("word end"),
        Shape("punctuation"),
        Place("window", 0, 3),
        Place("line", 0, 7),
        WordList(("me", "he", "she", "her", "him", "they", "it"), "inside"),
    ],
    ids=lambda rule: rule.words,
)
def test_each_kind_of_rule_is_found_again(rule) -> None:
    found = label_of(rule)
    assert found.label is not None
    expected, got = rule.matches(WINDOWS), found.candidates[0].rule.matches(WINDOWS)
    assert (expected == got).mean() > 0.98, found.label


def test_a_list_of_words_is_found_by_its_name() -> None:
    tools = ("hut", "drum", "bus", "hats")
    rule = WordList(tools, "inside")
    candidates = Candidates(WINDOWS[: len(WINDOWS) // 2], {"a thing made": tools})
    assert label_of(rule, candidates=candidates).label == "inside a thing made"
    other = Candidates(WINDOWS[: len(WINDOWS) // 2], {"a thing made": ("rat", "sun", "plum", "man")})
    assert label_of(rule, candidates=other).label != "inside a thing made"


@pytest.mark.parametrize("memory", [0.0, 0.98])
def test_what_fires_by_chance_gets_no_label(memory: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where positions are not independent: what drifts looks like a place or a list much more easily."""
    monkeypatch.setattr(labels, "LEAST", 0.0)  # without the floor, so that the null itself is tested
    found = label_activations(WINDOWS, noise(np.random.default_rng(2), 40, memory), range(40))
    assert sum(one.label is not None for one in found) <= 2
    # control: in training, the search does find something for each
    assert all(one.candidates for one in found)


def test_untrained_neurons_get_labels_in_about_one_case_of_twenty() -> None:
    model = BDH.from_seed(CONFIG, 5)
    found = label_neurons(model, TEXT, range(0, 64, 2), window=T)
    assert sum(one.label is not None for one in found) <= 5
    # control: rules describe them well, for at the first level they do depend on the byte alone
    assert np.median([one.candidates[0].score.pearson for one in found]) > 0.7


def test_a_rule_of_the_first_half_alone_is_no_label() -> None:
    """Found and tested on the same text, it would be a perfect one."""
    half = len(WINDOWS) // 2
    early, late = Grams((b"h",)).matches(WINDOWS), Grams((b"m",)).matches(WINDOWS)
    changed = np.where(np.arange(len(WINDOWS))[:, None] < half, early, late).astype(float)
    (found,) = label_activations(WINDOWS, changed[None, None], [0])
    assert found.candidates[0].rule.words == "on 'h'"
    assert found.candidates[0].score.pearson < 0.1
    assert found.label is None


def test_the_level_is_where_a_rule_fits_and_the_profile_tells_of_all() -> None:
    rng = np.random.default_rng(0)
    rule = Grams((b"th",))
    quiet, loud = noise(rng, 1), noise(rng, 1) * 0.1 + rule.matches(WINDOWS)
    (found,) = label_activations(WINDOWS, np.concatenate([quiet, loud, 0 * quiet], 1), [7])
    assert (found.neuron, found.level, found.label) == (7, 1, "at the end of 'th'")
    assert [round(at.pearson) for at in found.profile] == [0, 1, 0]
    assert [at.rate for at in found.profile] == pytest.approx([0.5, 0.5, 0], abs=0.1)
    (elsewhere,) = label_activations(WINDOWS, np.concatenate([quiet, loud], 1), [7], level=0)
    assert (elsewhere.level, elsewhere.label) == (0, None)


def test_a_silent_neuron_has_no_candidate() -> None:
    (found,) = label_activations(WINDOWS, np.zeros((1, 2, *WINDOWS.shape)), [0])
    assert (found.label, found.candidates, found.shifted) == (None, (), 0)


def test_correlations_from_sums_are_those_of_what_is_foretold() -> None:
    candidates = Candidates(WINDOWS)
    activation = noise(np.random.default_rng(3), 4).reshape(4, -1)
    activation[1] += Grams((b"e", b"u")).matches(WINDOWS).ravel()
    activation[2] += WordList(("love", "sun"), "so far").matches(WINDOWS).ravel()
    fitted = candidates.fit(activation, most=99)
    for row, rules in enumerate(fitted):
        assert len(rules) >= 6
        for one in rules:
            expected = np.corrcoef(one.simulate(WINDOWS).ravel(), activation[row])[0, 1]
            assert one.pearson == pytest.approx(expected, abs=1e-9), one.rule.words
    by_parts = candidates.by_parts(activation)
    assert by_parts.shape == (4, MOST_PARTS)
    assert (np.diff(by_parts, axis=1) >= 0).all()
    assert by_parts[:, -1] == pytest.approx([max(one.pearson for one in rules) for rules in fitted], abs=0.03)


def test_random_rules_hold_about_as_often_and_share_no_group() -> None:
    candidates = Candidates(WINDOWS)
    activation = Grams((b"th", b"qu")).matches(WINDOWS).astype(float).reshape(1, -1)
    fitted = candidates.fit(activation)[0][0]
    rng = np.random.default_rng(0)
    for _ in range(20):
        rule = candidates.random_like(fitted, rng)
        assert not set(rule.grams) & set(fitted.rule.grams)
        rate = rule.matches(WINDOWS).mean() / fitted.rule.matches(WINDOWS).mean()
        assert 0.7 < rate < 1.5


def test_a_partition_has_at_most_one_group_at_each_place() -> None:
    for partition in _partitions(WINDOWS):
        groups = partition.whole.which(WINDOWS)
        counts = np.bincount(groups[groups >= 0], minlength=len(partition.values))
        assert counts.min() >= 5
        for index in (0, len(partition.values) // 2):
            alone = partition.rule([partition.values[index]]).matches(WINDOWS)
            assert (alone == (groups == index)).all()


def test_scores_equal_their_definitions() -> None:
    rng = np.random.default_rng(0)
    a, holds = rng.integers(0, 4, 60).astype(float), rng.random(60) < 0.3
    pairs = np.sign(a[holds][:, None] - a[~holds])
    assert _auroc(a, holds) == pytest.approx((pairs.mean() + 1) / 2)
    p = rng.normal(size=(30, 8))
    b = p + rng.normal(size=(30, 8))
    assert _pearson(p.ravel(), b.ravel()) == pytest.approx(np.corrcoef(p.ravel(), b.ravel())[0, 1])
    assert _pearson(p.ravel(), np.full(240, 0.1)) == 0
    drawn = rng.multinomial(30, np.full(30, 1 / 30), size=1000).astype(float)
    low, high = _pearson_interval(p, b, drawn)
    assert low < _pearson(p.ravel(), b.ravel()) < high
    # windows are the unit: the same values in windows that repeat themselves are known less well
    again = np.repeat(p[:, :1], 8, 1), np.repeat(b[:, :1], 8, 1)
    wide = _pearson_interval(*again, drawn)
    assert wide[1] - wide[0] > 1.5 * (high - low)


def test_memory_is_bounded_by_reading_a_few_neurons_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = label_neurons(planted(), TEXT[:6000], [10, 11, 12], window=T)
    monkeypatch.setattr(labels, "CELLS", 1)
    done: list[int] = []
    single = label_neurons(planted(), TEXT[:6000], [10, 11, 12], window=T, progress=done.append)
    assert done == [1, 2, 3]
    assert [one.label for one in single] == [one.label for one in whole]
    assert [one.candidates[0].score.pearson for one in single] == pytest.approx(
        [one.candidates[0].score.pearson for one in whole]
    )


def test_what_a_neuron_promotes_is_read_from_its_decoder_row() -> None:
    model = planted()
    with torch.no_grad():
        model.lm_head[:, ord("z")] = model.decoder[10]
    assert label_neurons(model, TEXT[:3000], [10], window=T)[0].promotes[0] == "z"


def test_labels_go_to_json_and_to_a_panel() -> None:
    found = label_neurons(planted(), TEXT[:6000], [10, 40], window=T)
    values = json.loads(json.dumps([one.to_dict() for one in found], allow_nan=False))
    first = values[0]["candidates"][0]
    assert first["words"] == "on 'q'"
    assert rule_from_dict(first["rule"]) == found[0].candidates[0].rule
    panel = labels_panel(found, CONFIG.neurons_per_head)
    table = panel.tables["labels"]
    assert table.column("label") == ("on 'q'", "no label")
    assert table.column("head:index") == ("h0:10", "h1:8")
    assert "untrained" in panel.baseline


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neurons": [64]}, r"neuron 64: expected a global id in 0\.\.63"),
        ({"level": 1}, r"level=1: expected one of 0\.\.0"),
        ({"ids": TEXT[:100]}, "expected at least 8 windows"),
        ({"window": 0}, "expected at least 8 windows"),
        ({"signal": "z"}, "signal='z'"),
    ],
)
def test_mistakes_are_told_in_one_line(options: dict, message: str) -> None:
    given = {"ids": TEXT, "neurons": [1], "window": T} | options
    with pytest.raises(ValueError, match=message) as caught:
        label_neurons(planted(), **given)
    assert "\n" not in str(caught.value)
