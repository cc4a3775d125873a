"""Are levels quieter on a word that they have read before? The repeated-word task, and the same without repetition.

The task is the paper's (arXiv 2509.26507): a fixed warm-up of 13 letters, then 8 times one random word of 8 letters.
First the word is memorised, then it is predictable to a model that uses its memory. Activity also changes as a memory
fills, whatever is read: the control has the same warm-up and the same first word, and then seven other words.

    effect = (d_repeating - d_memorising) - (the same of the control),      d the density of the neurons that fire

with the bootstrap over words, since a row and its control share a word.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bdh.lens.inspection import plain
from bdh.lens.surprise import RANDOM, Floats, read, resampled
from bdh.lens.timescales import HALVES
from bdh.lens.untrained import untrained
from bdh.model import BDH

WARM_UP, WORD, REPEATS = 13, 8, 8
"""Letters of the warm-up, letters of the word, times that it comes: 77 letters."""


def repeated_words(words: int, seed: int = 0, repeated: bool = True) -> Tensor:
    """Return the repeated-word task: per row a warm-up of 13 letters, the same in all, and one word 8 times.

    Args:
        words: how many rows, each with a word of its own.
        seed: of the letters a to z.
        repeated: False gives the control: the same, but for seven other words after the first time.

    Returns:
        (words, 77) byte ids.

    Raises:
        ValueError: no word.

    Examples:
        >>> bytes(repeated_words(2)[1, :37].tolist()).decode()
        'wqnhibbaevqxnvrakwoatvrakwoatvrakwoat'
        >>> bytes(repeated_words(2, repeated=False)[1, :37].tolist()).decode()
        'wqnhibbaevqxnvrakwoat...'
    """
    if words < 1:
        raise ValueError(f"words={words}: expected an integer >= 1")
    letters, others = (np.random.default_rng([seed, n]) for n in range(2))
    drawn = letters.integers(ord("a"), ord("z") + 1, WARM_UP + words * WORD)
    word = torch.from_numpy(drawn[WARM_UP:]).view(words, WORD)
    later = word.repeat(1, REPEATS - 1)
    if not repeated:
        later = torch.from_numpy(others.integers(ord("a"), ord("z") + 1, later.shape))
    return torch.cat((torch.from_numpy(drawn[:WARM_UP]).expand(words, -1), word, later), 1)


@dataclass(frozen=True)
class Time:
    """One of the eight times of the word, averaged over words."""

    surprisal: float
    """Nats per letter."""
    control: float
    """Where the later words are other ones."""
    density: tuple[float, ...]
    """Of xy, by level."""
    control_density: tuple[float, ...]


@dataclass(frozen=True)
class Change:
    """How the density of some neurons changes from the first time of the word to the later ones."""

    level: int
    signal: str
    """"x", or "xy", which the paper calls y."""
    neurons: str
    """"fast" or "slow", by the period of the rotation."""
    memorising: float
    repeating: float
    control: float
    """Change of the control."""
    effect: float
    """Change less that of the control."""
    ci: tuple[float, float]
    """95 % interval of the effect, by bootstrap over words."""
    init: tuple[float, float]
    """Least and largest effect of random weights."""


@dataclass(frozen=True)
class Repetition:
    """What repetition does to surprisal and density."""

    times: tuple[Time, ...]
    changes: tuple[Change, ...]
    n_words: int

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that goes into JSON."""
        values: dict[str, Any] = plain(dataclasses.asdict(self))
        return values


def measure_repetition(model: BDH, words: int = 64, *, seed: int = 0, resamples: int = 1000) -> Repetition:
    """Let the model read repeated words and their controls, and compare density and surprisal.

    Args:
        model: a model of bytes; dropout is off.
        words: how many words; each row is read from an empty memory.
        seed: of the letters, of the random weights and of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        ValueError: no word, or a vocabulary without the letters.

    Examples:
        >>> from bdh import BDHConfig
        >>> model = BDH.from_seed(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4), 0)
        >>> found = measure_repetition(model, words=3)
        >>> len(found.times), len(found.changes)
        (8, 8)
    """
    texts = [repeated_words(words, seed, repeated).to(model.encoder.device) for repeated in (True, False)]
    density, surprisal = zip(*(_measure(model, ids) for ids in texts), strict=True)
    fresh = [untrained(model, texts[0], seed + n) for n in range(RANDOM)]
    null = [[_measure(random, ids)[0] for ids in texts] for random in fresh]
    draws = resampled(words, resamples, seed)
    changes = []
    for signal, values in density[0].items():
        for level in range(values.shape[2]):
            for half, name in enumerate(HALVES):
                at = slice(None), slice(None), level, half
                first, later = _parts(values[at])
                shift = _shift(density[1][signal][at])
                effect = later - first - shift  # (B,)
                low, high = np.quantile(draws @ effect / words, (0.025, 0.975))
                random = [(_shift(one[signal][at]) - _shift(other[signal][at])).mean() for one, other in null]
                changes.append(
                    Change(
                        level, signal, name, float(first.mean()), float(later.mean()), float(shift.mean()),
                        float(effect.mean()), (float(low), float(high)), (float(min(random)), float(max(random))),
                    )
                )  # fmt: skip
    times = []
    for time in range(REPEATS):
        places = slice(WARM_UP + time * WORD, WARM_UP + (time + 1) * WORD)
        told, other = (float(values[:, places].mean()) for values in surprisal)
        levels = [tuple(values["xy"][:, places].mean((0, 1, 3)).tolist()) for values in density]
        times.append(Time(told, other, levels[0], levels[1]))
    return Repetition(tuple(times), tuple(changes), words)


def _measure(model: BDH, ids: Tensor) -> tuple[dict[str, Floats], Floats]:
    """Density (B, T, L, 2) by signal, and the surprisal (B, T) of each letter, 0 for the first."""
    density, logits = read(model, ids)
    log_p = logits[:, :-1].double().log_softmax(-1)
    surprisal: Floats = -log_p.gather(-1, ids[:, 1:, None].cpu())[..., 0].numpy()
    return density, np.pad(surprisal, ((0, 0), (1, 0)))


def _parts(density: Floats) -> tuple[Floats, Floats]:
    """Means (B,) over the first time of the word and over the later ones, of (B, T)."""
    return density[:, WARM_UP : WARM_UP + WORD].mean(1), density[:, WARM_UP + WORD :].mean(1)


def _shift(density: Floats) -> Floats:
    first, later = _parts(density)
    return later - first
