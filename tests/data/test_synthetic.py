"""Texts made by rule: what they say they are, and the same everywhere."""

import functools
import hashlib
import re

import pytest

from bdh.data import load_corpus, synthetic
from bdh.data.needle import FACTS, needles, without_facts
from bdh.data.order import document_starts


@functools.cache
def documents(name: str, split: str = "train") -> list[bytes]:
    return synthetic.make(name, split).split(b"\0")[1:]


def test_repeated_words_have_the_period_of_the_paper() -> None:
    found = documents("repeated-words")
    assert {len(one) for one in found} == {77}
    for one in found[:50]:
        assert one[:13] == synthetic.WARM_UP
        assert one[13:] == one[13:21] * 8
    assert len({one[13:21] for one in found}) > 0.999 * len(found)


def test_a_copy_is_a_copy() -> None:
    words = [one.split(b"|") for one in documents("copy")]
    assert all(left == right for left, right in words)
    assert {len(left) for left, _ in words} == set(range(8, 17))


def test_a_question_asks_for_one_of_the_facts() -> None:
    asked, distances = [], []
    for one in documents("needle")[:300]:
        *facts, filler, question = one.split(b"\n")[1:]
        assert len(facts) == FACTS
        assert all(re.fullmatch(rb"The [a-z]+ is [a-z]+\.", fact) for fact in facts)
        asked.append(facts.index(question))
        distances.append(len(filler))
        assert len(one) < 85
    assert {asked.count(n) > 120 for n in range(FACTS)} == {True}
    assert (min(distances), max(distances)) == (0, synthetic.DISTANCE)


def test_evaluation_asks_what_training_teaches() -> None:
    """The same sentences, and none of the same draws."""
    filler = without_facts(synthetic.make("needle", "validation").replace(b"\0", b""))
    tests = [n.prompt + n.answers[n.right] for n in needles(filler, distance=20, count=300)]
    form = re.compile(rb"(\nThe [a-z]+ is [a-z]+\.){2}\n[a-z. ]{20}\nThe [a-z]+ is [a-z]+\.")
    assert all(form.fullmatch(text) for text in tests)
    assert sum(form.fullmatch(text) is not None for text in documents("needle")) > 50  # of so long fillers
    facts = [[text.split(b"\n")[1:3] for text in some] for some in (tests, documents("needle")[:300])]
    assert sum(a == b for a, b in zip(*facts, strict=True)) < 3


@pytest.mark.parametrize("name", synthetic.TASKS)
def test_splits_share_no_document_and_never_change(name: str) -> None:
    train, validation = documents(name), documents(name, "validation")
    # by chance: needles without a filler are 26,880
    assert len(set(train) & set(validation)) < 0.002 * len(validation)
    known = {"repeated-words": "705735f110e7", "copy": "7f99a95a7b14", "needle": "d319317f5915"}
    assert hashlib.sha256(synthetic.make(name, "validation")).hexdigest()[:12] == known[name]


def test_a_corpus_of_them_knows_its_documents() -> None:
    corpus = load_corpus("copy")
    assert len(document_starts(corpus.train, corpus.separator)) == len(documents("copy"))
