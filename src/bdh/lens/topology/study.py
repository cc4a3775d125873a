"""What a graph looks like over a sweep of its number of edges, beside random graphs of as many edges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bdh.lens.topology.degrees import Tail, Verdict, fit_tail, word
from bdh.lens.topology.graph import Graph, Sign, Wiring, graph
from bdh.lens.topology.modularity import TRIES, communities, modularity
from bdh.lens.topology.nulls import low_rank, rewired, uniform

Told = Callable[[str, int, int], None]
"""Called with what is done next, how many steps are done and how many there are."""

ORIENTATION = "an edge runs from the neuron that writes (its out-degree) to the neuron that reads (its in-degree)"
DRAWS = 3
NULLS = ("G(n, m)", "low rank", "initial", "rewired")
_HUBS = 10


@dataclass(frozen=True)
class Null:
    """Random graphs of one kind with as many edges."""

    draws: tuple[float, ...]
    """Modularity of each, by the same search."""
    out_largest: float
    """Largest out-degree, mean over the draws."""
    in_largest: float
    """Largest in-degree, mean over the draws."""

    @property
    def mean(self) -> float:
        """Mean modularity."""
        return float(np.mean(self.draws))

    @property
    def sd(self) -> float | None:
        """Standard deviation between the draws; None of a single one."""
        return float(np.std(self.draws, ddof=1)) if len(self.draws) > 1 else None


@dataclass(frozen=True)
class Point:
    """A graph of m edges, and what it is compared with."""

    edges: int
    threshold: float
    """Size of its weakest edge."""
    modularity: float
    communities: tuple[int, ...]
    """Neurons in each, the largest first."""
    alone: int
    """Neurons without edges."""
    out_largest: int
    in_largest: int
    out_tail: Tail | None
    in_tail: Tail | None
    nulls: dict[str, Null]
    """By name, of `NULLS`."""

    def above(self) -> dict[str, bool]:
        """Return of each null whether the graph is more modular than every draw of it."""
        return {name: self.modularity > max(null.draws) for name, null in self.nulls.items()}


@dataclass(frozen=True)
class Hub:
    """A neuron with many edges."""

    neuron: int
    out: int
    into: int
    community: int
    """Number of its community, 0 the largest."""


@dataclass(frozen=True, eq=False)
class Topology:
    """One signed half of a graph of neurons, over a sweep."""

    name: str
    sign: Sign
    n: int
    points: tuple[Point, ...]
    hubs: tuple[Hub, ...]
    """Of the graph with the most edges, by all of their edges."""
    tails: dict[str, tuple[Verdict, Verdict]]
    """What the tails of out- and in-degrees may be called, of the first draw of each null with the most edges."""
    graph: Graph
    """With the most edges of the sweep."""
    drawn: dict[str, Graph]
    """The first draw of each null, with as many."""

    @property
    def last(self) -> Point:
        """The graph with the most edges."""
        return self.points[-1]

    def to_dict(self) -> dict[str, Any]:
        """Return the findings as plain values, without the edges."""
        points = []
        for point in self.points:
            tails = {side: word(tail) for side, tail in (("out", point.out_tail), ("in", point.in_tail))}
            points.append(asdict(point) | {"verdict": tails, "above": point.above()})
        return {
            "name": self.name,
            "sign": self.sign,
            "neurons": self.n,
            "orientation": ORIENTATION,
            "points": points,
            "hubs": [asdict(hub) for hub in self.hubs],
            "null_tails": {name: {"out": out, "in": into} for name, (out, into) in self.tails.items()},
        }


def sizes_for(n: int) -> tuple[int, ...]:
    """Return the numbers of edges that are looked at unless others are asked for: powers of two, n/2 to 4n.

    Examples:
        >>> sizes_for(1024)
        (512, 1024, 2048, 4096)
    """
    middle = round(np.log2(n))
    return tuple(2**k for k in range(middle - 1, middle + 3))


def examine(
    wires: Wiring,
    initial: Callable[[int], Wiring] | None = None,
    *,
    sign: Sign = 1,
    sizes: Sequence[int] | None = None,
    draws: int = DRAWS,
    tries: int = TRIES,
    seed: int = 0,
    told: Told | None = None,
) -> Topology:
    """Measure degrees and modularity of the strongest edges of one sign, beside four random graphs of as many edges.

    The nulls: any edges (`uniform`), Gaussian factors of the same norms (`low_rank`), the model before training, and
    the same degrees (`rewired`).

    Args:
        wires: all weights.
        initial: the same wiring of a model before training, by the number of the draw; None: that null is left out.
        sign: which half.
        sizes: numbers of edges; None: `sizes_for` the neurons. Where fewer weights have the sign, fewer are looked at.
        draws: of each null.
        tries: of the search for communities, for the graph and each null alike.
        seed: decides everything random.
        told: hears what is done.

    Raises:
        ValueError: no number of edges >= 1, fewer than one draw or try, no weight of this sign, or a missing package.

    Examples:
        >>> from bdh import BDH, BDHConfig
        >>> from bdh.lens.topology import wiring
        >>> model = BDH(BDHConfig(n_layer=1, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4))
        >>> found = examine(wiring(model), sizes=(64, 128), draws=1, tries=1)
        >>> [point.edges for point in found.points], list(found.points[0].nulls)
        ([64, 128], ['G(n, m)', 'low rank', 'rewired'])
    """
    asked = sorted(set(sizes_for(wires.n) if sizes is None else sizes))
    if not asked or asked[0] < 1 or draws < 1 or tries < 1:
        raise ValueError(f"sizes={asked}, draws={draws}, tries={tries}: expected numbers >= 1")
    kinds = [name for name in NULLS if name != "initial" or initial is not None]
    tell = _steps(told, 1 + draws * (len(kinds) - 2) + len(asked) * (1 + draws * len(kinds)) + len(kinds))
    tell("strongest edges")
    whole = graph(wires, sign, edges=asked[-1])
    products: dict[str, list[Graph]] = {"low rank": [], "initial": []}
    for draw in range(draws):
        tell("low rank")
        products["low rank"].append(graph(low_rank(wires, _rng(seed, draw)), sign, edges=asked[-1]))
        if initial is not None:
            tell("initial")
            products["initial"].append(graph(initial(draw), sign, edges=asked[-1]))
    fewest = min(map(len, (whole, *products["low rank"], *products["initial"])))
    points: list[Point] = []
    drawn: dict[str, Graph] = {}
    for m in (size for size in asked if size <= fewest):
        tell(f"{m:,} edges")
        strong = whole.strongest(m)
        parts = communities(strong, tries, seed)
        nulls = {}
        for name in kinds:
            values, out, into = [], [], []
            for draw in range(draws):
                tell(f"{m:,} edges: {name}")
                other = products[name][draw].strongest(m) if name in products else _random(name, strong, seed, draw)
                values.append(modularity(other, communities(other, tries, seed)))
                out.append(other.out_degree.max())
                into.append(other.in_degree.max())
                if draw == 0:
                    drawn[name] = other
            nulls[name] = Null(tuple(values), float(np.mean(out)), float(np.mean(into)))
        points.append(_point(strong, parts, nulls, seed))
    if not points:
        half = "positive" if sign > 0 else "negative"
        raise ValueError(f"sizes={asked}: {wires.name}, or a null of it, has {fewest:,} {half} weights; ask for fewer")
    tails = {}
    for name, other in drawn.items():
        tell(f"tails: {name}")
        tails[name] = (word(fit_tail(other.out_degree, seed)), word(fit_tail(other.in_degree, seed)))
    return Topology(wires.name, sign, wires.n, tuple(points), _hubs(strong, parts), tails, strong, drawn)


def _random(name: str, strong: Graph, seed: int, draw: int) -> Graph:
    return (uniform if name == "G(n, m)" else rewired)(strong, _rng(seed, draw, len(strong)))


def _point(strong: Graph, parts: list[list[int]], nulls: dict[str, Null], seed: int) -> Point:
    return Point(
        len(strong),
        strong.threshold,
        modularity(strong, parts),
        tuple(map(len, parts)),
        strong.n - sum(map(len, parts)),
        int(strong.out_degree.max()),
        int(strong.in_degree.max()),
        fit_tail(strong.out_degree, seed),
        fit_tail(strong.in_degree, seed),
        nulls,
    )


def _hubs(strong: Graph, parts: list[list[int]]) -> tuple[Hub, ...]:
    of = {neuron: number for number, part in enumerate(parts) for neuron in part}
    out, into = strong.out_degree, strong.in_degree
    best = np.argsort(-(out + into), kind="stable")[:_HUBS].tolist()
    return tuple(Hub(neuron, int(out[neuron]), int(into[neuron]), of[neuron]) for neuron in best if neuron in of)


def _rng(*numbers: int) -> np.random.Generator:
    return np.random.default_rng(numbers)


def _steps(told: Told | None, total: int) -> Callable[[str], None]:
    done = iter(range(total + 1))

    def tell(what: str) -> None:
        if told is not None:
            told(what, next(done), total)

    return tell
