"""Shipped concepts keep the rules of the probe; files that do not are refused in one line."""

import re
from pathlib import Path

import pytest

from bdh.lens import Concept, concept_names
from bdh.lens.probing.concept import MIN_PAIRS, MIN_SENTENCES, Sentence

ASKED = {"currency", "country", "emotion", "royalty", "kinship", "negation", "love", "mythical_creatures"}
NAMES = concept_names()


def stems(words: set[str]) -> set[str]:
    return {re.sub(r"(es|s)$", "", word) for word in words}


def test_the_concepts_that_people_ask_about_are_there() -> None:
    assert set(NAMES) >= ASKED


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_concept_is_paired_disjoint_and_large_enough(name: str) -> None:
    concept = Concept.load(name)
    for half in (concept.a, concept.b):
        sentences = half.sentences()
        n = len(half.pairs) * len(half.templates)
        assert n >= MIN_SENTENCES
        assert len(sentences) == 2 * n == len({sentence.text for sentence in sentences})
        for one, other in zip(sentences[:n], sentences[n:], strict=True):  # equal but for the word
            assert one.data[: one.start] == other.data[: other.start]
            assert one.data[one.end + 1 :] == other.data[other.end + 1 :]
            assert one.text != other.text
        lengths = [len(word) - len(contrast) for word, contrast in half.pairs]
        assert max(map(abs, lengths)) <= 3
        assert abs(sum(lengths)) / len(lengths) <= 0.5
    for side in (0, 1):
        assert not stems(concept.a.telling[side]) & stems(concept.b.telling[side])
        assert not {pair[side] for pair in concept.a.pairs} & {pair[side] for pair in concept.b.pairs}
    assert not set(concept.a.templates) & set(concept.b.templates)
    assert len(concept.control) >= MIN_PAIRS
    assert not set(concept.control) & {word for half in (concept.a, concept.b) for pair in half.pairs for word in pair}


@pytest.mark.parametrize("name", NAMES)
def test_most_control_words_have_letters_of_the_concept(name: str) -> None:
    """Letters in a row of some word of the concept, in most of them: what a detector of letters would find."""
    concept = Concept.load(name)
    words = [word.lower() for half in (concept.a, concept.b) for word, _ in half.pairs]
    least = {"negation": 2, "plural": 1}.get(name, 3)
    pieces = {word[at : at + least] for word in words for at in range(len(word) - least + 1)}
    having = [control for control in concept.control if any(piece in control.lower() for piece in pieces)]
    assert len(having) >= 0.8 * len(concept.control), set(concept.control) - set(having)


def test_the_span_of_a_word_is_in_bytes() -> None:
    sentence = Sentence.of("Früh kam die {}.", "Größe")
    assert sentence.data[sentence.start : sentence.end + 1].decode() == "Größe"


def file(folder: Path, **changes: str) -> Path:
    pairs = {half: ", ".join(f'["w{half}{n}", "v{half}{n}"]' for n in range(10)) for half in "ab"}
    parts = {
        "description": '"one against other"',
        "control": '["c1", "c2", "c3", "c4", "c5"]',
        "a_templates": '["1 {}", "2 {}", "3 {}", "4 {}", "5 {}"]',
        "a_pairs": f"[{pairs['a']}]",
        "b_templates": '["6 {}", "7 {}", "8 {}", "9 {}", "0 {}"]',
        "b_pairs": f"[{pairs['b']}]",
    } | changes
    lines = [f"description = {parts['description']}", f"control = {parts['control']}"]
    for half in "ab":
        lines += [f"[{half}]", f"templates = {parts[half + '_templates']}", f"pairs = {parts[half + '_pairs']}"]
    path = folder / "mine.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_file_of_ones_own_is_read(tmp_path: Path) -> None:
    concept = Concept.load(file(tmp_path))
    assert (concept.name, len(concept.a.sentences()), len(concept.sha256)) == ("mine", 100, 64)
    changed = Concept.load(file(tmp_path, description='"one against the other"'))
    assert changed.sha256 != concept.sha256


BAD = {
    "no TOML": ({"control": "["}, "not a TOML file"),
    "empty concept": ({"a_pairs": "[]"}, "half a: expected at least 10 word pairs and 50 sentences"),
    "too few sentences": ({"b_templates": '["6 {}"]'}, "got 10 pairs in 1 templates, 10 sentences"),
    "no slot": ({"a_templates": '["1"]'}, "template '1': expected a sentence with one {}"),
    "two slots": ({"a_templates": '["{} {}"]'}, "expected a sentence with one {}"),
    "no pair": ({"a_pairs": '[["w"]]'}, "pair ['w']: expected two words"),
    "the same twice": ({"a_pairs": '[["w", "w"]]'}, "expected two words, of the concept and of something else"),
    "a word twice": ({"a_pairs": '[["w", "v"], ["w", "u"]]'}, "concept word 'w' stands there twice"),
    "on both sides": ({"a_pairs": '[["w", "v"], ["v", "u"]]'}, "'v' is a word of the concept and of the contrast"),
    "no control": ({"control": "[]"}, "control: expected a list of at least 5"),
    "a control of the concept": ({"control": '["c1", "c2", "c3", "c4", "wa1"]'}, "'wa1' is also a word of a pair"),
    "no description": ({"description": '" "'}, "description: expected"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_gets_one_clear_line(kind: str, tmp_path: Path) -> None:
    changes, says = BAD[kind]
    with pytest.raises(ValueError) as error:
        Concept.load(file(tmp_path, **changes))
    assert says in str(error.value)
    assert "mine" in str(error.value)
    assert "\n" not in str(error.value)


def test_halves_that_share_a_word_are_refused(tmp_path: Path) -> None:
    shared = ", ".join(f'["wb{n}", "va{n}"]' for n in range(10))
    with pytest.raises(ValueError, match="'wb0' stands in both halves"):
        Concept.load(file(tmp_path, a_pairs=f"[{shared}]"))


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean currency"):
        Concept.load("curency")
