"""Does a model find a fact again that it has read? Facts hidden in a filler, by distance."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from bdh.compare.statistics import Estimate, estimate
from bdh.data import Tokenizer
from bdh.data.needle import Needle, needles
from bdh.evaluation.reading import loglikelihoods
from bdh.evaluation.statistics import share
from bdh.model import BDH

DISTANCES = (0, 128, 512, 2048)

Scorer = Callable[[Iterable[tuple[Sequence[int], Sequence[int]]]], Iterator[tuple[float, bool]]]
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
    rank: Estimate
    """of the right answer among all answers by log-likelihood, 1 the best; guessing: (answers + 1) / 2"""
    rank_without: Estimate
    """the same where the facts are left out of the text: what the words alone suggest"""
    answers: int


def needle_recall(
    model: BDH,
    tokenizer: Tokenizer,
    filler: bytes,
    *,
    distances: Sequence[int] = DISTANCES,
    facts: int = 2,
    count: int = 16,
    seed: int = 0,
    told: Callable[[int, int], None] | None = None,
) -> list[Recall]:
    """Hide facts in a filler, ask for one of them, and look where the right answer stands.

    Args:
        model: the model.
        tokenizer: what its tokens are.
        filler: text to hide them in, best one as the model was trained on.
        distances: bytes between facts and question; those longer than the filler are left out.
        facts: see `bdh.data.needle.needles`.
        count: needles per distance.
        seed: of the needles.
        told: progress, in needles.

    Raises:
        ValueError: see `needles`.
    """
    return recall_of(functools.partial(loglikelihoods, model), tokenizer, filler, distances, facts, count, seed, told)


def recall_of(
    scorer: Scorer,
    tokenizer: Tokenizer,
    filler: bytes,
    distances: Sequence[int],
    facts: int,
    count: int,
    seed: int,
    told: Callable[[int, int], None] | None = None,
) -> list[Recall]:
    """Do what `needle_recall` does, with anything that tells how likely a continuation is."""
    found, reachable = [], [distance for distance in distances if distance <= len(filler)]
    for number, distance in enumerate(reachable):
        exact, with_facts, without = 0, list[int](), list[int]()
        for done, needle in enumerate(needles(filler, distance=distance, facts=facts, count=count, seed=seed)):
            place, said = _rank(scorer, tokenizer, needle, needle.prompt)
            with_facts.append(place)
            exact += said
            without.append(_rank(scorer, tokenizer, needle, needle.bare)[0])
            if told:
                told(number * count + done + 1, len(reachable) * count)
        rank, rank_without = estimate(map(float, with_facts)), estimate(map(float, without))
        interval = share(exact, count)
        found.append(Recall(distance, count, exact / count, interval, rank, rank_without, len(needle.answers)))
    return found


def _rank(scorer: Scorer, tokenizer: Tokenizer, needle: Needle, prompt: bytes) -> tuple[int, bool]:
    """Where the right answer stands, and whether the model would say it."""
    context = tokenizer.encode(prompt).tolist()
    scores = list(scorer((context, tokenizer.encode(answer).tolist()) for answer in needle.answers))
    right = scores[needle.right]
    return 1 + sum(score > right[0] for score, _ in scores), right[1]
