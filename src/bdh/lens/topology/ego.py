"""One neuron and its partners in the graph, small enough to be drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bdh.lens.svg import Picture, picture, text
from bdh.lens.topology.graph import Graph

MOST_NODES = 300
_ARC = 0.86 * math.pi
_RING = 48
"""Partners on one arc; more make further arcs."""


@dataclass(frozen=True)
class Ego:
    """A neuron, its strongest partners, and the edges between all of them."""

    neuron: int
    sources: tuple[int, ...]
    """Neurons with an edge to it, the strongest first; by global id."""
    targets: tuple[int, ...]
    """Neurons with an edge from it, the strongest first; one with edges both ways is here too."""
    edges: tuple[tuple[int, int, float], ...]
    """Source, target and size."""
    left_out: int
    """Partners beyond the most that are kept."""

    @property
    def nodes(self) -> tuple[int, ...]:
        """All neurons, each once."""
        return tuple(dict.fromkeys((self.neuron, *self.sources, *self.targets)))


def ego(graph: Graph, neuron: int, most: int = MOST_NODES) -> Ego:
    """Return the ego network of a neuron: it, its strongest partners, and all edges between these neurons.

    Args:
        graph: the graph.
        neuron: global id.
        most: nodes at most, the neuron included.

    Raises:
        ValueError: a neuron that there is not, or that has no edge in this graph.

    Examples:
        >>> some = Graph(5, np.array([0, 1, 2, 3]), np.array([1, 2, 0, 4]), np.array([4.0, 3.0, 2.0, 1.0]))
        >>> found = ego(some, 1)
        >>> found.sources, found.targets, found.edges
        ((0,), (2,), ((0, 1, 4.0), (1, 2, 3.0), (2, 0, 2.0)))
    """
    if not 0 <= neuron < graph.n:
        raise ValueError(f"neuron={neuron}: expected a global neuron id 0..{graph.n - 1}")
    mine = np.flatnonzero((graph.source == neuron) | (graph.target == neuron))  # the strongest first, as in the graph
    if not len(mine):
        raise ValueError(
            f"neuron={neuron}: no edge among the {len(graph):,} strongest; ask for more edges, or for another neuron"
        )
    others = np.where(graph.source[mine] == neuron, graph.target[mine], graph.source[mine]).tolist()
    partners = list(dict.fromkeys(others))
    kept = [neuron, *partners[: most - 1]]
    inside = np.flatnonzero(np.isin(graph.source, kept) & np.isin(graph.target, kept))
    rows = zip(graph.source[inside].tolist(), graph.target[inside].tolist(), graph.weight[inside].tolist(), strict=True)
    edges = tuple(rows)
    return Ego(
        neuron,
        tuple(source for source, target, _ in edges if target == neuron),
        tuple(target for source, target, _ in edges if source == neuron),
        edges,
        len(partners) - len(kept) + 1,
    )


def draw_ego(found: Ego) -> Picture:
    """Return the picture of an ego network: sources left of the neuron, targets right, strongest in the middle.

    A neuron with edges both ways stands on the right, with a filled ring. Edges run from left to right; those between
    partners are thin.
    """
    both = set(found.sources) & set(found.targets)
    sides = ([n for n in found.sources if n not in both], list(found.targets))
    fullest = max(map(len, sides))
    inner = max(110.0, 13 * min(fullest, _RING) / _ARC)  # room for a name beside each on the first arc
    reach = inner + 40 * ((fullest - 1) // _RING)
    width, height = 2 * (reach + 60), 2 * (reach + 30)
    x, y = width / 2, height / 2
    places = {found.neuron: (x, y)}
    for side, direction in zip(sides, (-1, 1), strict=True):
        for at, node in enumerate(side):
            ring, place = divmod(at, _RING)
            count = min(_RING, len(side) - ring * _RING)
            # from the middle outwards: 0, 1, -1, 2, -2, ... steps
            step = (place + 1) // 2 * (1 if place % 2 else -1)
            angle = step * min(0.35, _ARC / count)
            radius = inner + 40 * ring
            places[node] = (x + direction * radius * math.cos(angle), y + radius * math.sin(angle))
    largest = max(size for *_, size in found.edges)
    marks = []
    for source, target, size in sorted(found.edges, key=lambda edge: edge[2]):
        (x1, y1), (x2, y2) = places[source], places[target]
        own = found.neuron in (source, target)
        thick, clear = (0.4 + 2.2 * size / largest, 0.8) if own else (0.3, 0.35)
        css = "three" if not own else ("one" if target == found.neuron else "two")
        marks.append(
            f'<path class="{css}" style="stroke-width:{thick:.1f};stroke-dasharray:none;opacity:{clear}" '
            f'd="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"/>'
        )
    named = len(found.nodes) <= 2 * _RING
    for node, (a, b) in places.items():
        css = "mark" if node == found.neuron or node in both else "dot"
        marks.append(f'<circle class="{css}" cx="{a:.1f}" cy="{b:.1f}" r="{6 if node == found.neuron else 3}"/>')
        if named and node != found.neuron:
            marks.append(text(a + (6 if a > x else -6), b + 4, f"{node}", anchor="start" if a > x else "end"))
    marks.append(text(x, y - 10, f"#{found.neuron}", "name", "middle"))
    words = f"sources {len(found.sources)} \u2192 neuron {found.neuron} \u2192 targets {len(found.targets)}"
    marks.append(text(8, 16, words, "name"))
    return picture(round(width), round(height), f"ego network: {words}", marks)
