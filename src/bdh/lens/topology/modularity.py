"""Communities of a graph, and how much of it is inside them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bdh.lens.topology.graph import Graph

TRIES = 5


def modularity(graph: Graph, communities: Sequence[Sequence[int]]) -> float:
    """Return Newman's modularity of a directed graph without weights (Leicht and Newman 2008).

        Q = sum_c [ m_c / m - k_c^out k_c^in / m^2 ]

    with m_c edges inside community c, and k_c edges that leave, or enter, its neurons. 0: as many inside as chance
    would have with these degrees.

    Args:
        graph: m edges.
        communities: global ids; every neuron with an edge in exactly one of them.

    Examples:
        >>> two = Graph(4, np.array([0, 1, 2, 3]), np.array([1, 0, 3, 2]), np.ones(4))
        >>> modularity(two, [[0, 1], [2, 3]])
        0.5
    """
    of = np.full(graph.n, -1)
    for number, members in enumerate(communities):
        of[list(members)] = number
    source, target = of[graph.source], of[graph.target]
    assert min(source.min(), target.min()) >= 0, "a neuron with an edge is in no community"
    out, into = (np.bincount(ends, minlength=len(communities)) / len(graph) for ends in (source, target))
    return float(np.mean(source == target) - out @ into)


def communities(graph: Graph, tries: int = TRIES, seed: int = 0) -> list[list[int]]:
    """Return the communities that the Louvain method finds, the best of several tries by `modularity`.

    Args:
        graph: the graph; directions count, weights do not.
        tries: how often, each from another random order of the neurons.
        seed: of the first try.

    Returns:
        Global ids, the largest community first; neurons without edges are in none.

    Raises:
        ValueError: networkx is missing.

    Examples:
        >>> two = Graph(6, np.array([0, 1, 2, 3, 4, 5]), np.array([1, 2, 0, 4, 5, 3]), np.ones(6))
        >>> communities(two)
        [[0, 1, 2], [3, 4, 5]]
    """
    try:
        from networkx.algorithms.community import louvain_communities
    except ImportError:
        raise ValueError('communities need networkx: pip install "bdh[lens]"') from None
    net = graph.networkx()
    found = [[sorted(part) for part in louvain_communities(net, seed=seed + n)] for n in range(tries)]
    best = max(found, key=lambda parts: modularity(graph, parts))
    return sorted(best, key=lambda part: (-len(part), part))
