"""Rules that might say what drives a neuron, found in a training text by counting and fitted to its activation.

Two sources. Partitions: every byte, n-gram, word so far and word before that the text has often enough is a group; a
rule is grown from those groups that the neuron's activation prefers. And fixed rules: shapes, places, lists of words.

Shapes: W windows, T bytes of each, S = W*T positions, R rows (a row is one neuron at one level), G groups.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bdh.lens.rules import SHAPES, Bytes, Grams, Place, Rule, Shape, What, WordList, words_of

Values = npt.NDArray[np.float64]

MIN_COUNT = 5
"""Places of the training text that an n-gram or a word must have to be a group."""

MOST_PARTS = 12
"""Groups that a rule may be grown to: more is no longer something to read."""

SLACK = 0.02
"""Correlation that a rule with more parts must gain over one with fewer."""

LISTS = {
    "a personal pronoun": "i me we us you ye thou thee he him she her it they them",
    "a possessive": "my mine our ours your yours thy thine his her hers its their theirs",
    "an article or demonstrative": "a an the this that these those",
    "a preposition": "of in on at by to for from with without into upon over under after before against between "
    "through",
    "a conjunction": "and or nor but if though although because unless while than that as yet",
    "an auxiliary verb": "be am is are was were been being have has had hath do does did doth will would shall should "
    "can could may might must",
    "a question word": "who whom whose what which where when why how",
    "a negation": "no not nor never none nothing neither nobody",
    "a number word": "one two three four five six seven eight nine ten hundred thousand first second third",
}  # fmt: skip
"""Lists of words that are always tried."""


@dataclass(frozen=True)
class Fitted:
    """A rule, and the activation that it foretells."""

    rule: Rule
    means: tuple[float, ...]
    """Mean activation on the training text where each part of the rule holds, and last where none does."""
    pearson: float
    """Correlation with the activation on the training text."""
    partition: int
    """Which partition it was grown from; -1: none."""

    def simulate(self, data: Bytes) -> Values:
        """Return the activation that the rule foretells at each byte, in the shape of the data."""
        simulated: Values = np.asarray(self.means)[self.rule.which(data)]  # -1, no part, is the last
        return simulated


class Candidates:
    """The candidates of one training text, made once and fitted to any number of neurons.

    Args:
        data: (W, T) windows of the training text.
        lists: lists of words by what they have in common, besides `LISTS`.
    """

    def __init__(self, data: Bytes, lists: Mapping[str, Sequence[str]] | None = None) -> None:
        from scipy.sparse import csr_array

        def ones(rows: npt.NDArray[Any], columns: npt.NDArray[Any], n_rows: int) -> Any:
            return csr_array((np.ones(len(rows)), (rows, columns)), shape=(n_rows, data.size))

        self.partitions, self._members, self._counts = _partitions(data), [], []
        for partition in self.partitions:
            groups = partition.whole.which(data).ravel()
            (at,) = (groups >= 0).nonzero()
            self._members.append(ones(groups[at], at, len(partition.values)))  # (G, S)
            self._counts.append(np.bincount(groups[at], minlength=len(partition.values)).astype(np.float64))
        known = {name: tuple(text.split()) for name, text in LISTS.items()}
        known |= {name: tuple(word.lower() for word in words) for name, words in (lists or {}).items()}
        self._lists = [WordList(words, "inside", name) for name, words in known.items()]
        self.fixed: list[Rule] = [*map(Shape, SHAPES), *_place_rules(data.shape[-1]), *self._lists]
        matches = np.stack([rule.matches(data).ravel() for rule in self.fixed])
        self._fixed_members, self._fixed_counts = csr_array(matches.astype(np.float64)), matches.sum(1)
        spans = [(row * data.shape[-1] + start, word) for row, start, word in words_of(data)]
        lengths = np.array([len(word) for _, word in spans], dtype=np.int64)
        at = np.concatenate([np.arange(start, start + len(word)) for start, word in spans] or [np.zeros(0, np.int64)])
        # dividing by the length makes a sum over a word its mean
        self._words = ones(np.repeat(np.arange(len(spans)), lengths), at, len(spans)) / np.maximum(lengths, 1)[:, None]
        listed = [{word.encode() for word in rule.listed} for rule in self._lists]
        self._is_listed = np.array([[word in words for _, word in spans] for words in listed], dtype=np.float64)

    def fit(self, activation: Values, most: int = 1) -> list[list[Fitted]]:
        """Return the best rules for each row, the chosen one first.

        The correlation of what a rule foretells with the activation, from sums over groups alone:

            r^2 = (sum_g s_g^2 / n_g  +  s_rest^2 / n_rest) / sum_t (a_t - mean)^2

        where s_g sums a - mean over the n_g places of part g. A rule of one source that comes within `SLACK` of the
        best of all and has fewer parts is chosen before it.

        Args:
            activation: (R, S) of the training text.
            most: rules per row, each of another source.
        """
        rows = _Rows.of(activation)
        found: list[list[Fitted]] = [[] for _ in activation]
        for source in range(len(self.partitions)):
            self._grow(source, rows, found)
        self._try_fixed(rows, found)
        return [_chosen(row)[:most] for row in found]

    def random_like(self, fitted: Fitted, rng: np.random.Generator) -> Rule:
        """Return a rule of other groups of the same source, drawn at random, that holds about as often.

        Args:
            fitted: a rule of `fit`; in place of a shape, place or named list stands a random set of bytes.
            rng: draws the groups.
        """
        source = max(fitted.partition, 0)
        values, counts = self.partitions[source].values, self._counts[source]
        own = [values.index(part) for part in _parts_of(fitted.rule)] if fitted.partition >= 0 else []
        rate = counts[own].sum() if own else self._fixed_counts[self.fixed.index(fitted.rule)]
        order = rng.permutation(np.setdiff1d(np.arange(len(values)), own))
        # a group that would make it hold half as often again is passed over
        chosen: list[int] = []
        reached = 0.0
        for group in order:
            if reached < rate and reached + counts[group] <= 1.5 * rate:
                chosen.append(int(group))
                reached += counts[group]
        return self.partitions[source].rule([values[group] for group in chosen])

    def by_parts(self, activation: Values) -> Values:
        """Return the correlation that the best rule of at most 1, 2, ... `MOST_PARTS` parts reaches in training.

        Args:
            activation: (R, S) of the training text.

        Returns:
            (R, MOST_PARTS).
        """
        rows = _Rows.of(activation)
        reached = np.zeros((MOST_PARTS, len(activation)))
        reached[:] = self._fixed_fit(rows)[1].max(0)
        for source in range(len(self.partitions)):
            r = self._grown(source, rows)[1]  # (P, R)
            reached[: len(r)] = np.maximum(reached[: len(r)], r)
        return np.maximum.accumulate(reached).T

    def _grow(self, source: int, rows: _Rows, found: list[list[Fitted]]) -> None:
        """Add the rule of each row that grows out of the groups of one partition."""
        order, r, sums = self._grown(source, rows)
        for row in range(len(found) if len(order) else 0):
            last = int((r[:, row] >= r[:, row].max() - SLACK).argmax())  # the fewest parts that are nearly as good
            if r[last, row] > 0:
                chosen, mean = order[: last + 1, row], float(rows.mean[row])
                found[row].append(self._fitted(source, chosen, sums[chosen, row], mean, float(r[last, row])))

    def _grown(self, source: int, rows: _Rows) -> tuple[npt.NDArray[np.int64], Values, Values]:
        """Take groups one by one, the most preferred first: their order (P, R), r with 1..P of them, sums (G, R)."""
        counts, S = self._counts[source], len(rows.centred)
        sums = np.asarray(self._members[source] @ rows.centred)  # (G, R)
        share = (sums + counts[:, None] * rows.mean) / rows.largest
        z = _log_odds(share, counts, S, S * rows.mean / rows.largest)
        z[sums <= 0] = -np.inf
        order = np.argsort(-z, axis=0, kind="stable")[:MOST_PARTS]  # (P, R)
        s, n = np.take_along_axis(sums, order, 0), counts[order]
        taken = np.take_along_axis(z, order, 0) > -np.inf
        s, n = np.where(taken, s, 0), np.where(taken, n, 0)
        explained = (s**2 / np.maximum(n, 1)).cumsum(0) + s.cumsum(0) ** 2 / np.maximum(S - n.cumsum(0), 1)
        return order, _root_share(explained, rows.total), sums

    def _fixed_fit(self, rows: _Rows) -> tuple[Values, Values]:
        """Sums of the activation where each fixed rule holds, and r, both (F, R); r is 0 where none may be said."""
        sums = np.asarray(self._fixed_members @ rows.centred)
        n = self._fixed_counts[:, None].astype(np.float64)
        rest = len(rows.centred) - n
        r = _root_share(sums**2 / np.maximum(n, 1) + sums**2 / np.maximum(rest, 1), rows.total)
        r[(sums <= 0) | (n < MIN_COUNT) | (rest < 1)] = 0
        r[-len(self._lists) :] *= self._enriched(rows)
        return sums, r

    def _try_fixed(self, rows: _Rows, found: list[list[Fitted]]) -> None:
        """Add the best shape, the best place and the best list of each row."""
        sums, r = self._fixed_fit(rows)
        for kind in (Shape, Place, WordList):
            at = [index for index, rule in enumerate(self.fixed) if isinstance(rule, kind)]
            for row, best in enumerate(r[at].argmax(0)):
                index = at[best]
                if r[index, row] > 0:
                    rule, s, n = self.fixed[index], sums[index, row], self._fixed_counts[index]
                    inside, outside = rows.mean[row] + s / n, rows.mean[row] - s / (len(rows.centred) - n)
                    means = (*[float(inside)] * _n_parts(rule), float(outside))
                    found[row].append(Fitted(rule, means, float(r[index, row]), partition=-1))

    def _enriched(self, rows: _Rows, alpha: float = 0.05) -> npt.NDArray[np.bool_]:
        """Which lists have more than their share of the tenth of words that drives a row most, (lists, R).

        One-sided hypergeometric test, false discovery rate (Benjamini and Hochberg) over lists and rows.
        """
        from scipy.stats import false_discovery_control, hypergeom

        of_word = np.asarray(self._words @ rows.centred)  # (words, R)
        n_words, drawn = len(of_word), max(1, len(of_word) // 10)
        if not n_words:
            return np.zeros((len(self._lists), len(rows.mean)), dtype=bool)
        top = np.zeros_like(of_word)
        np.put_along_axis(top, np.argsort(-of_word, axis=0, kind="stable")[:drawn], 1.0, axis=0)
        p = hypergeom.sf(self._is_listed @ top - 1, n_words, self._is_listed.sum(1)[:, None], drawn)
        return np.asarray(false_discovery_control(np.clip(p, 0, 1).ravel()) <= alpha).reshape(p.shape)

    def _fitted(self, source: int, chosen: npt.NDArray[Any], sums: Values, mean: float, r: float) -> Fitted:
        partition, n = self.partitions[source], self._counts[source][chosen]
        outside = mean - sums.sum() / max(1, self._members[source].shape[1] - n.sum())
        means = (*(mean + sums / n).tolist(), float(outside))
        return Fitted(partition.rule([partition.values[group] for group in chosen]), means, r, source)


@dataclass(frozen=True, eq=False)
class _Rows:
    """Activations that rules are fitted to."""

    centred: Values
    """(S, R), the mean taken away."""
    mean: Values
    total: Values
    """Sum of squares around the mean, (R,)."""
    largest: Values

    @classmethod
    def of(cls, activation: Values) -> _Rows:
        mean = activation.mean(1)
        centred = np.ascontiguousarray((activation - mean[:, None]).T)
        return cls(centred, mean, np.square(centred).sum(0), np.maximum(activation.max(1, initial=0), 1e-30))


@dataclass(frozen=True)
class _Partition:
    """Groups of positions, of which at most one holds at each."""

    values: list[Any]
    rule: Callable[[Sequence[Any]], Rule]

    @property
    def whole(self) -> Rule:
        """The rule that all groups make."""
        return self.rule(self.values)


def _partitions(data: Bytes) -> list[_Partition]:
    rows = [row.tobytes() for row in data]
    found = []
    for n in (1, 2, 3, 4):
        counted = Counter(row[start : start + n] for row in rows for start in range(len(row) - n + 1))
        found.append(_Partition(_often(counted), lambda grams: Grams(tuple(grams))))
    spans = list(words_of(data))
    so_far = Counter(word[:n] for _, _, word in spans for n in range(1, len(word) + 1))
    before = Counter(word for _, start, word in spans if start + len(word) < data.shape[1])
    found.append(_Partition(_often(_texts(so_far)), lambda listed: WordList(tuple(listed), "so far")))
    found.append(_Partition(_often(_texts(before)), lambda listed: WordList(tuple(listed), "after")))
    return found


def _often(counted: Counter[Any]) -> list[Any]:
    return sorted(value for value, count in counted.items() if count >= MIN_COUNT)


def _texts(counted: Counter[bytes]) -> Counter[str]:
    """Words as text; what is cut inside a character is left away."""
    texts: Counter[str] = Counter()
    for word, count in counted.items():
        text = word.decode(errors="ignore")
        if text.encode() == word:
            texts[text] = count
    return texts


def _place_rules(T: int) -> list[Rule]:
    whats: tuple[What, ...] = ("window", "line", "word")
    cuts = [cut for cut in (1, 2, 3, 4, 8, 16, 32, 64, 128) if cut < T]
    early = [Place(what, 0, cut - 1) for what in whats for cut in cuts]
    late = [Place(what, cut) for what in whats for cut in cuts]
    return [*early, *late, *(Place("word", at, at) for at in (1, 2, 3))]


def _log_odds(y: Values, counts: Values, S: int, y_all: Values) -> Values:
    """How much the activation prefers each group: the log-odds ratio over its standard error, (G, R).

        d_g = ln((y_g + c_g) / (y + S - y_g - c_g)) - ln((x_g + c_g) / (x + S - x_g - c_g)),
        z_g = d_g / sqrt(1 / (y_g + c_g) + 1 / (x_g + c_g))

    with y_g the activation in group g in units of its largest, x_g = c_g - y_g, and as Dirichlet prior the counts c_g
    of the text (Monroe, Colaresi and Quinn, "Fightin' Words", 2008): what is rare needs more to stand out.
    """
    c = counts[:, None]
    x, x_all = c - y, S - y_all
    d = np.log((y + c) / np.maximum(y_all + S - y - c, 1e-9)) - np.log((x + c) / np.maximum(x_all + S - x - c, 1e-9))
    z: Values = d / np.sqrt(1 / (y + c) + 1 / (x + c))
    return z


def _chosen(found: list[Fitted]) -> list[Fitted]:
    """The rules by training correlation, but first the one of fewest parts among those within SLACK of the best."""
    ordered = sorted(found, key=lambda fitted: -fitted.pearson)
    if not ordered:
        return []
    near = [fitted for fitted in ordered if fitted.pearson >= ordered[0].pearson - SLACK]
    first = min(near, key=n_parts)
    return [first, *(fitted for fitted in ordered if fitted is not first)]


def _parts_of(rule: Rule) -> tuple[Any, ...]:
    return rule.grams if isinstance(rule, Grams) else rule.listed if isinstance(rule, WordList) else (rule,)


def _n_parts(rule: Rule) -> int:
    return len(_parts_of(rule))


def _root_share(explained: Values, total: Values) -> Values:
    """Correlation from the explained and the total sum of squares; 0 for what does not vary."""
    r: Values = np.sqrt(np.clip(explained / np.where(total > 0, total, np.inf), 0, 1))
    return r


def n_parts(fitted: Fitted) -> int:
    """Things that a reader of the rule must take in; a shape, a place and a named list are one."""
    return 1 if fitted.partition < 0 else _n_parts(fitted.rule)
