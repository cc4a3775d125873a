"""Rules hold where their words say, look back only, and survive JSON."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdh.lens.rules import SHAPES, Grams, Place, Rule, Shape, WordList, rule_from_dict

TEXT = b"ROMEO:\nLove, lovely gloves; I love 3 dogs\xc3\xa9!\n\nOK so"


def of(data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype=np.uint8)


def held(rule: Rule, data: bytes = TEXT) -> str:
    """The bytes at which the rule holds."""
    return "".join(map(chr, of(data)[rule.matches(of(data))]))


def ends(pattern: bytes, data: bytes) -> set[int]:
    """Where matches of a pattern end, overlapping ones too."""
    return {at for at in range(len(data)) if re.search(b"(?:" + pattern + rb")\Z", data[: at + 1])}


RULES: list[Rule] = [
    Grams((b"e", b"ov", b"love")),
    WordList(("love", "i"), "so far"),
    WordList(("love", "dogs"), "inside", "a dear thing"),
    WordList(("love",), "after"),
    *map(Shape, SHAPES),
    Place("window", 3, 9),
    Place("line", 0, 2),
    Place("word", 4),
]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("letter", "ROMEOLovelovelyglovesIlovedogs\xc3\xa9OKso"),
        ("lower case", "ovelovelygloveslovedogsso"),
        ("upper case", "ROMEOLIOK"),
        ("digit", "3"),
        ("punctuation", ":,;!"),
        ("space", "\n      \n\n "),
        ("newline", "\n\n\n"),
        ("beyond ASCII", "\xc3\xa9"),
        ("line start", "L\nO"),
        ("word start", "RLlgIldOs"),
        ("word end", ":, ;  ! "),
        ("capitalised", "ROMEOLoveIOK"),
        ("capitals", "OMEOK"),
    ],
)
def test_shapes_hold_where_they_say(name: str, expected: str) -> None:
    assert held(Shape(name)) == expected


def test_every_shape_is_tested_above() -> None:
    mark = test_shapes_hold_where_they_say.pytestmark[0]
    assert {name for name, _ in mark.args[1]} == set(SHAPES)


def test_word_lists_respect_the_boundaries_of_words() -> None:
    found = WordList(("love",), "so far").matches(of(TEXT)).nonzero()[0]
    assert found.tolist() == [
        TEXT.index(b"Love") + 3,
        TEXT.index(b"lovely") + 3,
        TEXT.index(b"love 3") + 3,
    ]  # not gLOVEs
    assert held(WordList(("love",), "inside")) == "Lovelove"
    assert held(WordList(("love",), "after")) == ", "


def test_places_count_from_the_beginning_of_the_window_line_or_word() -> None:
    assert held(Place("window", 0, 2)) == "ROM"
    assert held(Place("line", 0, 1)) == "ROLo\nOK"
    assert held(Place("word", 4)) == "Olyes\xc3\xa9"


def test_the_longest_gram_decides_the_part() -> None:
    parts = Grams((b"e", b"ove", b"x")).which(of(b"we love"))
    assert parts.tolist() == [-1, 0, -1, -1, -1, -1, 1]


@given(
    data=st.binary(min_size=1, max_size=40), grams=st.lists(st.binary(min_size=1, max_size=3), min_size=1, max_size=4)
)
def test_grams_hold_where_a_regular_expression_ends(data: bytes, grams: list[bytes]) -> None:
    expected = ends(b"|".join(map(re.escape, grams)), data)
    assert set(Grams(tuple(grams)).matches(of(data)).nonzero()[0].tolist()) == expected


@given(data=st.text("aA e\n.é", min_size=2, max_size=30), cut=st.integers(1, 29))
def test_rules_look_back_only_and_windows_do_not_see_each_other(data: str, cut: int) -> None:
    text = data.encode()
    cut = min(cut, len(text) - 1)
    for rule in RULES:
        whole = rule.which(of(text))
        if not (isinstance(rule, WordList) and rule.where == "inside"):  # the only one that may look ahead
            assert rule.which(of(text[:cut])).tolist() == whole[:cut].tolist(), rule
        two = np.stack([of(text), of(text[::-1])])
        assert rule.which(two).tolist() == [whole.tolist(), rule.which(of(text[::-1])).tolist()]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.words)
def test_rules_go_to_json_and_back(rule: Rule) -> None:
    again = rule_from_dict(json.loads(json.dumps(rule.to_dict())))
    assert again == rule
    assert again.words == rule.words


@pytest.mark.parametrize(
    "wrong",
    [{}, {"kind": "Words"}, {"kind": "Shape", "name": "round"}, {"kind": "Place", "where": 3}, {"kind": "Grams"}],
)
def test_what_is_no_rule_is_refused_in_one_line(wrong: dict) -> None:
    with pytest.raises(ValueError, match="expected what to_dict of a rule returns"):
        rule_from_dict(wrong)


def test_words_are_said_in_full_up_to_a_dozen() -> None:
    assert Grams(tuple(bytes([byte]) for byte in b"ab\n ")).words == "on 'a', 'b', '␊' or '␣'"
    assert WordList(tuple("abcdefghijklmnop"), "inside").words.endswith("'l' or 4 more")
    assert WordList(("he", "she"), "inside", "a pronoun").words == "inside a pronoun"
