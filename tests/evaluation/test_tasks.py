"""Recall of facts and multiple choice: known answers, chance, and clear lines for bad questions."""

import json
from pathlib import Path

import pytest

from bdh import BDH
from bdh.data import ByteTokenizer, synthetic
from bdh.data.needle import needles, without_facts
from bdh.evaluation import Question, loglikelihoods, multiple_choice, read_questions
from bdh.evaluation.reading import Told
from bdh.evaluation.recall import needle_recall, recall_of

BYTES = ByteTokenizer()
FILLER = b"and so the days went on as they do. " * 30

Requests = list[tuple[tuple[int, ...], tuple[int, ...]]]


def reader(requests: Requests, told: Told | None) -> list[tuple[float, bool]]:
    """Find the question's sentence in what was read."""
    texts = [(bytes(context), bytes(continuation)) for context, continuation in requests]
    found = [text.rpartition(b"\n")[2] + continuation in text for text, continuation in texts]
    return [(0.0 if there else -5.0, there) for there in found]


def guesser(requests: Requests, told: Told | None) -> list[tuple[float, bool]]:
    """Prefer what comes first in the alphabet, whatever was read."""
    return [(-float(continuation[1]), False) for _, continuation in requests]


def remembers_values(requests: Requests, told: Told | None) -> list[tuple[float, bool]]:
    """Know which values were told, but not of what, and say the first of them in the alphabet."""
    told_values = [(bytes(continuation) in bytes(context), continuation[1]) for context, continuation in requests]
    return [(-float(letter) if there else -999.0, False) for there, letter in told_values]


def test_who_reads_finds_every_needle_and_who_guesses_does_not() -> None:
    for found in recall_of(reader, BYTES, FILLER, (0, 40, 700), facts=3, count=20, seed=1):
        assert (found.exact, found.rank.mean) == (1.0, 1.0)
        assert found.exact_without == 0.0
        assert found.rank_without.mean == 1.0  # all equal: none is above the right one
    (guessed,) = recall_of(guesser, BYTES, FILLER, (40,), facts=3, count=400, seed=1)
    assert guessed.exact == 0.0
    assert guessed.rank.half_width is not None
    assert abs(guessed.rank.mean - 8.5) < guessed.rank.half_width * 1.5
    assert guessed.rank == guessed.rank_without
    (half,) = recall_of(remembers_values, BYTES, FILLER, (40,), facts=3, count=400, seed=1)
    assert half.rank.half_width is not None
    assert half.rank.mean == pytest.approx(2.0, abs=1.5 * half.rank.half_width)  # of three that were told


def test_needles_are_as_far_as_asked_and_depend_on_the_seed() -> None:
    made = needles(FILLER, distance=50, facts=3, count=5, seed=2)
    assert made == needles(FILLER, distance=50, facts=3, count=5, seed=2)
    assert made != needles(FILLER, distance=50, facts=3, count=5, seed=3)
    for needle in made:
        facts, filler, question = needle.prompt.rsplit(b"\n", 2)
        assert (len(filler), facts.count(b" is ")) == (50, 3)
        assert question + needle.answers[needle.right] in facts
        assert needle.prompt.endswith(needle.bare)
        assert b" is " not in needle.bare.replace(filler, b"")


def test_the_same_facts_are_asked_for_at_every_distance() -> None:
    near, far = (needles(FILLER, distance=distance, count=9, seed=2) for distance in (0, 300))
    asked = [[(n.prompt.split(b"\n")[1:3], n.prompt.split(b"\n")[-1], n.right) for n in some] for some in (near, far)]
    assert asked[0] == asked[1]


def test_facts_in_the_text_are_no_filler() -> None:
    """The text of the task itself is full of facts, which would contradict those of a needle."""
    text = synthetic.make("needle", "validation")[:9000].replace(b"\0", b"")
    assert text.count(b" is ") > 100
    assert b" is " not in without_facts(text)
    assert len(without_facts(text)) > 1000
    assert without_facts(FILLER) == FILLER


def test_distances_beyond_the_filler_are_left_out() -> None:
    assert [r.distance for r in recall_of(reader, BYTES, b"short", (0, 5, 6), facts=1, count=1, seed=0)] == [0, 5]
    with pytest.raises(ValueError, match=r"distances=\[6, 7\]: expected one within the 5 bytes of the text"):
        recall_of(reader, BYTES, b"short", (6, 7), facts=1, count=1, seed=0)
    with pytest.raises(ValueError, match=r"distance=6: expected 0 \.\. the 5 bytes"):
        needles(b"short", distance=6)


def test_recall_is_that_of_the_model_read_one_by_one(tiny: BDH) -> None:
    """With documents that begin with a separator, which counts as read."""
    together = needle_recall(tiny, BYTES, FILLER, distances=(0, 600), count=3, separator=0)
    seen = []

    def alone(requests: Requests, told: Told | None) -> list[tuple[float, bool]]:
        seen.extend(context for context, _ in requests)
        return [loglikelihoods(tiny, [request])[0] for request in requests]

    one_by_one = recall_of(alone, BYTES, FILLER, (0, 600), facts=2, count=3, seed=0, separator=0)
    assert together == one_by_one
    assert {context[:2] for context in seen} == {(0, 10)}


def test_choices_are_those_with_the_highest_likelihood(tiny: BDH) -> None:
    questions = [Question("The cat", (" sat", " flew away over the sea", "?"), 0), Question("One", (" two", " six"), 1)]
    found = multiple_choice(tiny, BYTES, questions)
    for question, picked in zip(questions, found.picked, strict=True):
        scores = [
            loglikelihoods(tiny, [(question.prompt.encode(), choice.encode())])[0][0] for choice in question.choices
        ]
        assert picked == scores.index(max(scores))
    right = [picked == question.answer for picked, question in zip(found.picked, questions, strict=True)]
    assert found.accuracy == sum(right) / 2
    assert found.chance == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_length_counts_unless_it_is_divided_by(tiny: BDH) -> None:
    """Two bytes are less likely than one of them; per byte they need not be."""
    letters = [chr(code) for code in range(97, 123)]
    two, *ones = (score for score, _ in loglikelihoods(tiny, [(b"aaaa", c.encode()) for c in ("bc", *letters)]))
    between = next(letter for letter, score in zip(letters, ones, strict=True) if two < score < two / 2)
    found = multiple_choice(tiny, BYTES, [Question("aaaa", ("bc", between), 0)])
    assert (found.accuracy, found.accuracy_per_byte) == (0.0, 1.0)


GOOD = {"prompt": "a", "choices": ["b", "c"], "answer": 1}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not JSON"),
        ("[1]", "got a list"),
        (json.dumps(GOOD | {"prompt": ""}), "prompt: expected"),
        (json.dumps(GOOD | {"choices": ["b"]}), "two or more choices"),
        (json.dumps(GOOD | {"choices": "bc"}), "two or more choices"),
        (json.dumps(GOOD | {"answer": 2}), r"answer=2: expected the index of the right choice, 0..1"),
        (json.dumps(GOOD | {"answer": "b"}), "answer='b'"),
        (json.dumps(GOOD | {"answer": True}), "answer=True"),
    ],
)
def test_a_bad_question_is_named_by_its_line(line: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps(GOOD) + "\n\n" + line + "\n")
    with pytest.raises(ValueError, match=f"line 3: .*{says}") as error:
        read_questions(file)
    assert "\n" not in str(error.value)


def test_a_file_without_questions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no questions"):
        read_questions(tmp_path / "empty.jsonl")
    with pytest.raises(ValueError, match="expected a file of one JSON object per line, found none"):
        read_questions(tmp_path / "nowhere")
