"""Multiple choice: the answer that a model finds the most likely."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bdh.data import Tokenizer
from bdh.evaluation.reading import Told, loglikelihoods
from bdh.evaluation.statistics import share
from bdh.model import BDH


class Question(NamedTuple):
    """A text, what may follow, and which of it is right."""

    prompt: str
    choices: tuple[str, ...]
    answer: int
    """index of the right choice"""


@dataclass(frozen=True)
class Choices:
    """How many questions were answered rightly."""

    questions: int
    accuracy: float
    """by log p(choice | prompt)"""
    accuracy_per_byte: float
    """by log p(choice | prompt) / bytes of the choice, which does not prefer short choices"""
    interval: tuple[float, float]
    """of the first, Wilson, 95 %"""
    interval_per_byte: tuple[float, float]
    chance: float
    """accuracy of guessing: mean of 1 / number of choices"""
    picked: tuple[int, ...]
    """per question, by the first"""


def read_questions(file: Path) -> list[Question]:
    """Read questions, one JSON object per line: `{"prompt": "...", "choices": ["...", ...], "answer": 0}`.

    Choices follow the prompt as they are: one that is a word begins with its space. `answer` counts from 0.

    Raises:
        ValueError: no such file, no questions, or a line that is none; its number is told.
    """
    if not file.is_file():
        raise ValueError(f"--choices {file}: expected a file of one JSON object per line, found none")
    found = []
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    found.append(_question(json.loads(line)))
                except ValueError as error:
                    kind = "not JSON: " if isinstance(error, json.JSONDecodeError | UnicodeDecodeError) else ""
                    raise ValueError(f"{file}, line {number}: {kind}{error}") from None
    if not found:
        raise ValueError(f"{file} holds no questions: expected one JSON object per line")
    return found


def _question(row: Any) -> Question:
    expected = 'expected {"prompt": text, "choices": [text, text, ...], "answer": index}'
    if not isinstance(row, dict):
        raise ValueError(f"{expected}, got a {type(row).__name__}")
    prompt, choices, answer = (row.get(name) for name in ("prompt", "choices", "answer"))
    if not (isinstance(prompt, str) and prompt):
        raise ValueError(f"prompt: {expected}, a prompt of at least one character")
    if not (isinstance(choices, list) and len(choices) > 1 and all(isinstance(c, str) and c for c in choices)):
        raise ValueError(f"choices: {expected}, two or more choices that are not empty")
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise ValueError(f"answer={answer!r}: expected the index of the right choice, 0..{len(choices) - 1}")
    return Question(prompt, tuple(choices), answer)


def multiple_choice(model: BDH, tokenizer: Tokenizer, questions: list[Question], told: Told | None = None) -> Choices:
    """Answer each question by the choice with the highest log-likelihood after the prompt.

    Args:
        model: the model.
        tokenizer: what its tokens are.
        questions: at least one.
        told: progress, in questions.

    Examples:
        >>> from bdh import BDHConfig
        >>> from bdh.data import ByteTokenizer
        >>> model = BDH.from_seed(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4), 0)
        >>> found = multiple_choice(model, ByteTokenizer(), [Question("One and one is", (" two", " a fish"), 0)])
        >>> found.questions, found.chance
        (1, 0.5)
    """
    if not questions:
        raise ValueError("questions: expected at least one")
    picked, picked_per_byte = [], []
    for number, question in enumerate(questions, 1):
        pairs = [encode_pair(tokenizer, question.prompt, choice) for choice in question.choices]
        scores = np.array([score for score, _ in loglikelihoods(model, pairs)])
        lengths = np.array([len(choice.encode()) for choice in question.choices])
        picked.append(int(scores.argmax()))
        picked_per_byte.append(int((scores / lengths).argmax()))
        if told:
            told(number, len(questions))
    n = len(questions)
    right, right_per_byte = (
        sum(p == question.answer for p, question in zip(which, questions, strict=True))
        for which in (picked, picked_per_byte)
    )
    chance = statistics.fmean(1 / len(question.choices) for question in questions)
    return Choices(n, right / n, right_per_byte / n, share(right, n), share(right_per_byte, n), chance, tuple(picked))


def encode_pair(tokenizer: Tokenizer, prompt: str, choice: str) -> tuple[list[int], list[int]]:
    """Return the tokens of a prompt, and those that the choice adds behind it."""
    whole, context = tokenizer.encode(prompt + choice).tolist(), tokenizer.encode(prompt).tolist()
    # a token may span the seam: then all that differs is scored
    same = next((i for i, (a, b) in enumerate(zip(whole, context, strict=False)) if a != b), len(context))
    same = max(1, min(same, len(whole) - 1))
    return whole[:same], whole[same:]
