"""Does a model find a fact again that it has read? Facts hidden in a filler, by distance."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bdh.compare.statistics import Estimate, estimate
from bdh.data import Tokenizer
from bdh.data.needle import ANSWERS, FACTS, needles, without_facts
from bdh.evaluation.reading import Told, loglikelihoods
from bdh.evaluation.statistics import share
from bdh.model import BDH

DISTANCES = (0, 128, 512, 2048)
COUNT = 64

Scorer = Callable[[list[tuple[tuple[int, ...], tuple[int, ...]]], Told | None], list[tuple[float, bool]]]
"""What `loglikelihoods` is once the model is given."""


@dataclass(frozen=True)
class Recall:
    """What was found again at one distance."""

    distance: int
    """bytes between facts and question"""
    needles: int
    exact: float
    """share of answers of which the model finds each token the most likely"""
    exact_interval: tuple[float, float]
    """Wilson, 95 %"""
    exact_without: float
    """the same where the facts are left out of the text: what the words alone suggest"""
    rank: Estimate
    """of the right answer among all answers by log-likelihood, 1 the best; guessing: (answers + 1) / 2"""
    rank_without: Estimate
    """the same without the facts"""
    answers: int
    facts: int
    """a model that knows which answers were told, but not of what, says the right one in 1 / facts of all cases"""


def needle_recall(
    model: BDH,
    tokenizer: Tokenizer,
    filler: bytes,
    *,
    distances: Sequence[int] = DISTANCES,
    facts: int = FACTS,
    count: int = COUNT,
    seed: int = 0,
    separator: int | None = None,
    told: Told | None = None,
) -> list[Recall]:
    """Hide facts in a filler, ask for one of them, and look where the right answer stands.

    Args:
        model: the model.
        tokenizer: what its tokens are.
        filler: text to hide them in, best one as the model was trained on; sentences in it that have the form of a
            fact are left away.
        distances: bytes between facts and question; those longer than the filler are left out.
        facts: see `bdh.data.needle.needle`.
        count: needles per distance.
        seed: of the needles.
        separator: what documents begin with in the model's training, read before each needle.
        told: progress, in needles.

    Raises:
        ValueError: no distance within the filler; see also `bdh.data.needle.needles`.
    """
    scorer = functools.partial(loglikelihoods, model)
    return recall_of(scorer, tokenizer, filler, distances, facts, count, seed, separator, told)


def recall_of(
    scorer: Scorer,
    tokenizer: Tokenizer,
    filler: bytes,
    distances: Sequence[int],
    facts: int,
    count: int,
    seed: int,
    separator: int | None = None,
    told: Told | None = None,
) -> list[Recall]:
    """Do what `needle_recall` does, with anything that tells how likely continuations are."""
    filler = without_facts(filler)
    reachable = [distance for distance in distances if distance <= len(filler)]
    if not reachable:
        raise ValueError(f"distances={list(distances)}: expected one within the {len(filler):,} bytes of the text")
    made = [needles(filler, distance=distance, facts=facts, count=count, seed=seed) for distance in reachable]
    begin = [] if separator is None else [separator]
    answers = [tuple(tokenizer.encode(answer).tolist()) for answer in ANSWERS]
    contexts = [
        tuple(begin + tokenizer.encode(text).tolist())
        for some in made
        for one in some
        for text in (one.prompt, one.bare)
    ]
    per_needle = 2 * len(answers)
    tell = (lambda done, total: told(done // per_needle, total // per_needle)) if told else None
    scores = scorer([(context, answer) for context in contexts for answer in answers], tell)
    shape = len(made), count, 2, len(ANSWERS)  # the last but one: with the facts, and without
    likely, greedy = (np.reshape([score[which] for score in scores], shape) for which in (0, 1))
    right = np.reshape([one.right for some in made for one in some], (*shape[:2], 1, 1))
    rank = 1 + (likely > np.take_along_axis(likely, right, -1)).sum(-1)
    exact = np.take_along_axis(greedy, right, -1)[..., 0].sum(1)
    return [
        Recall(
            distance,
            count,
            exact=said / count,
            exact_interval=share(said, count),
            exact_without=said_without / count,
            rank=estimate(ranks[:, 0].astype(float)),
            rank_without=estimate(ranks[:, 1].astype(float)),
            answers=len(ANSWERS),
            facts=facts,
        )
        for distance, (said, said_without), ranks in zip(reachable, exact.tolist(), rank, strict=True)
    ]
