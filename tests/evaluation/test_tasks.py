"""Recall of facts and multiple choice: known answers, chance, and clear lines for bad questions."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from bdh import BDH
from bdh.data import ByteTokenizer
from bdh.data.needle import needles
from bdh.evaluation import Question, loglikelihoods, multiple_choice, read_questions
from bdh.evaluation.recall import recall_of

BYTES = ByteTokenizer()
FILLER = b"and so the days went on as they do. " * 30

Requests = Iterable[tuple[Sequence[int], Sequence[int]]]


def reader(requests: Requests) -> Iterator[tuple[float, bool]]:
    """Find the question's sentence in what was read."""
    for context, continuation in requests:
        text = bytes(context)
        said = text.rpartition(b"\n")[2] + bytes(continuation)
        yield (0.0, True) if said in text else (-5.0, False)


def guesser(requests: Requests) -> Iterator[tuple[float, bool]]:
    """Prefer what comes first in the alphabet, whatever was read."""
    for _, continuation in requests:
        yield -float(continuation[1]), False


def test_who_reads_finds_every_needle_and_who_guesses_does_not() -> None:
    for found in recall_of(reader, BYTES, FILLER, (0, 40, 700), facts=3, count=20, seed=1):
        assert (found.exact, found.rank.mean) == (1.0, 1.0)
        assert found.rank_without.mean == 1.0  # all equal: none is above the right one
    (guessed,) = recall_of(guesser, BYTES, FILLER, (40,), facts=3, count=400, seed=1)
    assert guessed.exact == 0.0
    assert guessed.rank.half_width is not None
    assert abs(guessed.rank.mean - 8.5) < guessed.rank.half_width * 1.5
    assert guessed.rank == guessed.rank_without


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


def test_distances_beyond_the_filler_are_left_out() -> None:
    assert [r.distance for r in recall_of(reader, BYTES, b"short", (0, 5, 6), facts=1, count=1, seed=0)] == [0, 5]
    with pytest.raises(ValueError, match="expected at most the 5 bytes"):
        needles(b"short", distance=6)


def test_choices_are_those_with_the_highest_likelihood(tiny: BDH) -> None:
    questions = [Question("The cat", (" sat", " flew away over the sea", "?"), 0), Question("One", (" two", " six"), 1)]
    found = multiple_choice(tiny, BYTES, questions)
    for question, picked in zip(questions, found.picked, strict=True):
        scores = [
            next(loglikelihoods(tiny, [(question.prompt.encode(), choice.encode())]))[0] for choice in question.choices
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
