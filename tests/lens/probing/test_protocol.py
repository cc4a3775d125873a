"""A planted neuron passes everything; where there is nothing to find, as little is found as was promised."""

import json
import string
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bdh import BDH, BDHConfig
from bdh.lens import Ablate, Concept, Probe, Protocol, intervene, pair_strength, probe, probe_panel, probe_together
from bdh.lens.probing.ablation import Predictions
from bdh.lens.probing.concept import Half
from bdh.lens.probing.ranks import Ranked, all_swaps, midranks
from bdh.lens.probing.units import Neurons, Synapses
from bdh.lens.record import record

CONFIG = BDHConfig(n_layer=1, n_embd=32, n_head=2, mlp_internal_dim_multiplier=2)
PLANTED = 37
VOWELS, CONSONANTS = "aeiou", "bcdfghklmnprst"
QUICK = Protocol(candidates=10, shuffles=50, inits=2, matched=30, ablated=2, resamples=200)
FEWEST = Protocol(candidates=10, shuffles=1, inits=1, matched=1, ablated=1, controls=1, resamples=10)


@torch.no_grad()
def planted() -> BDH:
    """A random model in which neuron 37 fires on vowels alone, and matters."""
    model = BDH.from_seed(CONFIG, 1).eval()
    for parameter in model.parameters():
        parameter.mul_(10)
    own, other, (head, k) = 3, 4, divmod(PLANTED, CONFIG.neurons_per_head)
    vowels = [ord(vowel) for vowel in VOWELS]
    for dimension, value in ((own, 4.0), (other, -4.0)):  # mean and norm of an embedding stay as they are
        model.embed.weight[:, dimension] = -value
        model.embed.weight[vowels, dimension] = value
        model.encoder[:, dimension] = 0.0  # to all other neurons vowels are letters
    model.encoder[head, :, k] = 0.0
    model.encoder[head, own, k] = 1.0
    return model


def words(ends: str, n: int, generator: np.random.Generator, letters: str = string.ascii_lowercase) -> list[str]:
    """Different words of four letters of which the last is one of `ends`."""
    found: dict[str, None] = {}
    while len(found) < n:
        found["".join(generator.choice(list(letters), 3)) + str(generator.choice(list(ends)))] = None
    return list(found)


def concept(folder: Path, ends: tuple[str, str, str], seed: int = 0, letters: str = string.ascii_lowercase) -> Concept:
    """Words by their last letters: of the concept, of the contrast, of the control; 12 pairs in 5 templates."""
    generator = np.random.default_rng(seed)
    if ends[0] == ends[1]:  # no difference at all: shares between the sides are drawn from one heap
        heap = words(ends[0], 48, generator, letters)
        sides = heap[:24], heap[24:]
    else:
        sides = words(ends[0], 24, generator, letters), words(ends[1], 24, generator, letters)
    pairs = json.dumps([list(pair) for pair in zip(*sides, strict=True)][:12])
    more = json.dumps([list(pair) for pair in zip(*sides, strict=True)][12:])
    control = [word for word in words(ends[2], 20, generator, letters) if word not in {*sides[0], *sides[1]}][:10]
    path = folder / f"planted{seed}.toml"
    path.write_text(
        f'description = "last letters"\ncontrol = {json.dumps(control)}\n'
        f'[a]\ntemplates = ["I saw {{}}.", "Here is {{}}.", "My {{}}.", "To {{}}!", "Ask {{}}."]\npairs = {pairs}\n'
        f'[b]\ntemplates = ["We met {{}}.", "Not {{}}.", "Your {{}}.", "O {{}}!", "By {{}}."]\npairs = {more}\n'
    )
    return Concept.load(path)


def test_a_planted_neuron_passes_the_whole_protocol(tmp_path: Path) -> None:
    asked = concept(tmp_path, (VOWELS, CONSONANTS, CONSONANTS))
    found = probe(planted(), asked, protocol=QUICK)
    (finding,) = found.passing
    assert (finding.unit.level, finding.unit.neuron) == (0, PLANTED)
    assert finding.effect == finding.effect_a == 1
    assert (finding.low, finding.high) == pytest.approx((1, 1))
    assert finding.u == 60 * 60
    assert finding.p_words == 2.0**-12
    assert finding.causal is not None
    assert finding.causal.effect > 0.9 > finding.causal.largest_control
    assert finding.causal.divergence > 0
    assert found.n_discovered >= 1
    assert found.nulls.shuffled < 0.5
    assert f"neuron {PLANTED}, level 0 (r = 1.00)" in probe_panel(found).note


@pytest.mark.parametrize(
    ("ends", "change", "fails"),
    [
        ((VOWELS, CONSONANTS, VOWELS), None, "lexical"),  # the control has what the neuron really detects
        ((VOWELS, CONSONANTS, CONSONANTS), "mute", "causal"),  # fires, but nothing reads it
        ((VOWELS + CONSONANTS, VOWELS + CONSONANTS, CONSONANTS), None, "effect"),  # no concept
    ],
)
def test_a_planted_neuron_fails_what_it_should(
    ends: tuple[str, str, str], change: str | None, fails: str, tmp_path: Path
) -> None:
    model = planted()
    if change == "mute":
        with torch.no_grad():
            model.decoder[PLANTED] = 0
            model.encoder_v.zero_()  # nobody's writing is read: no gate opens
    found = probe(model, concept(tmp_path, ends), neurons=[PLANTED], protocol=QUICK)
    (finding,) = found.findings
    assert fails in finding.failed(QUICK)
    assert not found.passing
    if fails != "effect":
        assert set(finding.failed(QUICK)) <= {fails, "causal"}  # all that was not changed is as before


def test_untrained_models_with_shipped_concepts_pass_nothing() -> None:
    config = replace(CONFIG, n_layer=2)
    for seed in range(3, 7):
        for name in ("kinship", "negation"):
            found = probe(BDH.from_seed(config, seed), Concept.load(name), protocol=FEWEST)
            assert not found.passing
            assert found.n_discovered == 0


def test_the_false_positive_rate_where_sentences_share_words() -> None:
    """Random words on both sides, every neuron: what swaps words keeps its level, what takes sentences does not."""
    model = BDH.from_seed(replace(CONFIG, n_layer=2), 5)
    generator = np.random.default_rng(0)
    swaps = all_swaps(12, generator)
    p, p_words = [], []
    for _ in range(200):
        heap = words(string.ascii_lowercase, 24, generator)
        half = Half(
            ("We met {}.", "Not {}.", "Your {}.", "O {}!", "By {}."), tuple(zip(heap[:12], heap[12:], strict=True))
        )
        units = Neurons(model, half.sentences(), (0, 1), "x_sparse")
        values = units.values(np.arange(0, 128, 4)).reshape(2, 12, 5, -1)
        ranked = Ranked(midranks(values))
        p.append(ranked.p(ranked.u()) <= 0.05)
        p_words.append(ranked.p_of_swaps(ranked.u(), swaps) <= 0.05)
    assert 0.035 < np.mean(p_words) < 0.065
    assert np.mean(p) > 0.15  # the control: twelve words are not sixty sentences


def test_what_is_found_where_there_is_nothing(tmp_path: Path) -> None:
    """The false positive rate of the whole: selection on half a, tests on half b; and of shuffled and matched nulls."""
    model, ends, rules = planted(), VOWELS + CONSONANTS, replace(QUICK, ablated=1, controls=1)
    probes = [probe(model, concept(tmp_path, (ends, ends, ends), seed), protocol=rules) for seed in range(20)]
    assert sum(found.n_discovered > 0 for found in probes) <= 3  # 5 % of 20 is 1; more than 3 has probability 0.016
    assert not any(found.passing for found in probes)
    assert np.mean([found.nulls.shuffled for found in probes]) < 0.1  # units of 10 tested, over 1,000 shuffles
    assert np.mean([found.nulls.matched for found in probes]) < 0.1
    assert np.mean([found.nulls.init for found in probes]) < 0.1


def test_values_of_neurons_are_the_largest_from_the_word_on(tiny: BDH) -> None:
    sentences = Concept.load("kinship").a.sentences()[:7]
    got = Neurons(tiny, sentences, (0, 2), "xy_sparse")
    for row, sentence in enumerate(sentences):
        _, trace = record(tiny, torch.tensor([list(sentence.data)]), "layers.*.xy_sparse")
        for level in (0, 2):
            seen = trace.neurons("xy_sparse", level)[0, sentence.end :].detach().amax(0)
            at = np.arange(level * 128, (level + 1) * 128)
            assert np.allclose(got.values(at)[row], seen, rtol=1e-5, atol=1e-7)
    assert [first for first, _ in got.blocks()] == [0, 2 * 128]
    assert str(got.unit(2 * 128 + 5)) == "neuron 5, level 2"
    assert got.level_of(130) == range(128, 256)


def test_values_of_synapses_are_what_was_written_from_the_word_on(tiny: BDH) -> None:
    """At an empty memory that is the pair strength; else the same of the difference of two states."""
    sentences = Concept.load("kinship").a.sentences()[:6]
    got = Synapses(tiny, sentences, (1,))
    numbers = np.array([(1 * 128 + 70) * 32 + 3, (1 * 128 + 2) * 32 + 31])
    assert str(got.unit(numbers[0])) == "synapse 70,71 -> 70, level 1"
    for row, sentence in enumerate(sentences):
        idx = torch.tensor([list(sentence.data)])
        _, before = tiny.advance(idx[:, : sentence.start])
        _, after = tiny.advance(idx[:, sentence.start :], before)
        written = replace(after, rho=tuple(a - b for a, b in zip(after.rho, before.rho, strict=True)))
        units = [got.unit(int(number)) for number in numbers]
        expected = pair_strength(tiny, written, 1, [u.neuron for u in units], [u.source or 0 for u in units])[0]
        assert np.allclose(got.values(numbers)[row], expected.detach(), rtol=1e-4)
    blocks = np.concatenate([values for _, values in got.blocks()], axis=1)
    assert blocks.shape[1] == got.count == 128 * 32
    assert np.allclose(blocks[:, numbers - 128 * 32], got.values(numbers), rtol=1e-5)


def test_what_is_taken_away_is_compared_at_the_right_bytes(tiny: BDH) -> None:
    sentences = Concept.load("kinship").b.sentences()[:4]
    removal = [Ablate(neurons=range(40), layers=[1])]
    change = Predictions(tiny, sentences).without(removal)
    for row, sentence in enumerate(sentences):
        idx = torch.tensor([list(sentence.data)])
        with torch.no_grad():
            whole = tiny(idx)[0][0, sentence.end :].double().log_softmax(-1)
            with intervene(tiny, removal):
                without = tiny(idx)[0][0, sentence.end :].double().log_softmax(-1)
        divergence = (whole.exp() * (whole - without)).sum(-1).mean().item()
        following = torch.tensor([*sentence.data[sentence.end + 1 :], ord("\n")])
        loss = (whole - without)[torch.arange(len(following)), following].mean().item()
        assert change.divergence[row] == pytest.approx(divergence, rel=1e-4)
        assert change.loss[row] == pytest.approx(loss, rel=1e-3, abs=1e-7)
    assert change.divergence.min() > 1e-6


def test_synapses_are_probed_and_cut(tiny: BDH) -> None:
    found = probe(tiny, Concept.load("kinship"), "synapses", levels=[1, 2], protocol=FEWEST)
    assert found.n_units == 2 * 128 * 32
    assert found.findings[0].unit.source is not None
    assert any(finding.causal is not None for finding in found.findings)
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_neuron_that_is_asked_for_is_tested_at_each_level(tiny: BDH) -> None:
    found = probe(tiny, Concept.load("love"), neurons=[45, 45], levels=[2, 0], protocol=FEWEST)
    assert {(finding.unit.level, finding.unit.neuron) for finding in found.findings} == {(0, 45), (2, 45)}
    assert found.n_units == found.n_tests == 2


def test_the_same_seed_gives_the_same_probe(tiny: BDH) -> None:
    def ask(seed: int) -> Probe:
        return probe(tiny, Concept.load("love"), protocol=replace(FEWEST, resamples=50, shuffles=20, seed=seed))

    assert ask(0).to_dict() == ask(0).to_dict()
    assert ask(0).to_dict() != ask(1).to_dict()


def test_rates_of_false_discovery_go_over_all_concepts_of_a_call(tiny: BDH) -> None:
    asked = [Concept.load(name) for name in ("love", "body")]
    alone = [probe(tiny, one, protocol=FEWEST) for one in asked]
    both = probe_together(tiny, asked, protocol=FEWEST)
    assert [found.n_tests for found in alone] == [10, 10]
    assert [found.n_tests for found in both] == [20, 20]
    least = min(finding.p for found in alone for finding in found.findings)
    assert [found.n_discovered for found in both] == [found.n_discovered for found in alone]
    first = next(f for found in both for f in found.findings if f.p == least)
    assert first.q == pytest.approx(min(20 * least, first.q))
    assert [f.p for found in both for f in found.findings] == [f.p for found in alone for f in found.findings]


def test_spiking_models_can_be_probed() -> None:
    model = BDH(replace(CONFIG, variant="hatching"))
    found = probe(model, Concept.load("royalty"), protocol=FEWEST)
    assert len(found.findings) == 10
    assert not found.passing


WRONG = [
    ({"kind": "axons"}, "kind='axons': expected"),
    ({"signal": "z"}, "signal='z'"),
    ({"levels": [3]}, "levels: expected 0..2, got 3"),
    ({"levels": []}, "levels: expected at least one"),
    ({"neurons": [128]}, "neurons: expected global neuron ids"),
    ({"neurons": range(128)}, "all 128 units of a level are tested: expected some to compare with"),
    ({"neurons": []}, "expected at least one neuron to test"),
    ({"neurons": [1], "kind": "synapses"}, "expected at least one neuron to test, and kind 'neurons'"),
]


@pytest.mark.parametrize(("arguments", "says"), WRONG)
def test_what_cannot_be_asked_is_refused_in_one_line(arguments: dict[str, object], says: str, tiny: BDH) -> None:
    with pytest.raises(ValueError) as error:
        probe(tiny, Concept.load("love"), **arguments)  # type: ignore[arg-type]
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_protocol_without_tests_is_refused() -> None:
    with pytest.raises(ValueError, match="counts >= 1"):
        Protocol(candidates=0)
