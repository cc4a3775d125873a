"""Random graphs that a graph of neurons is compared with: each keeps some of what the graph has.

A threshold over a product of two thin matrices makes hubs and communities without any learning: neurons that write or
read much get many edges, and neurons that point the same way share their partners. So a graph without structure,
G(n, m), is beaten by any model, a random one too, and shows nothing; the others keep norms, weights or degrees.
"""

from __future__ import annotations

import numpy as np
import torch

from bdh.lens.topology.graph import Graph, Wiring

_ROUNDS = 20
"""Times that every edge is offered a swap, in the mean."""


def uniform(like: Graph, rng: np.random.Generator) -> Graph:
    """Draw a graph of as many edges from all that are possible: G(n, m), within heads where the graph is.

    Args:
        like: neurons, edges and heads.
        rng: source of the draw.

    Examples:
        >>> some = Graph(4, np.array([0, 1]), np.array([1, 0]), np.array([2.0, 1.0]))
        >>> len(uniform(some, np.random.default_rng(0)))
        2
    """
    K = like.n // like.heads
    pairs = rng.choice(like.n * (K - 1), len(like), replace=False)
    source, other = pairs // (K - 1), pairs % (K - 1)
    # place `other` of the head with the source itself left out
    target = source // K * K + other + (other >= source % K)
    return Graph(like.n, source, target, np.ones(len(like)), like.heads)


def low_rank(like: Wiring, rng: np.random.Generator) -> Wiring:
    """Draw Gaussian sources and targets with the norm of each neuron kept: a product of the same rank and scale.

    Args:
        like: norms, width and heads. Where the sources are centred, the new ones are.
        rng: source of the draw.

    Examples:
        >>> wires = Wiring("some", torch.rand(6, 3), torch.rand(6, 3))
        >>> drawn = low_rank(wires, np.random.default_rng(0))
        >>> torch.allclose(drawn.sources.norm(dim=1), wires.sources.norm(dim=1))
        True
    """
    drawn = []
    for part in (like.sources, like.targets):
        fresh = torch.from_numpy(rng.standard_normal(part.shape)).to(part)
        if float(part.mean(1).abs().max()) <= 1e-6 * float(part.abs().max()):
            fresh -= fresh.mean(1, keepdim=True)
        drawn.append(fresh * (part.norm(dim=1) / fresh.norm(dim=1))[:, None])
    return Wiring(f"Gaussian {like.name}", drawn[0], drawn[1], like.heads)


def rewired(like: Graph, rng: np.random.Generator, rounds: int = _ROUNDS) -> Graph:
    """Swap the targets of pairs of edges at random: every neuron keeps its in- and its out-degree exactly.

        a -> b, c -> d   become   a -> d, c -> b

    Each round offers a swap to all edges at once, in random pairs. A pair keeps its edges where a swap would make an
    edge from a neuron to itself, one that is there already or that another pair makes, or one between heads.

    Args:
        like: the graph.
        rng: source of the swaps.
        rounds: how often.

    Examples:
        >>> some = uniform(Graph(9, np.arange(8), np.arange(1, 9), np.ones(8)), np.random.default_rng(0))
        >>> bool((rewired(some, np.random.default_rng(1)).in_degree == some.in_degree).all())
        True
    """
    source, target = like.source.copy(), like.target.copy()
    K, half = like.n // like.heads, len(like) // 2
    for _ in range(rounds):
        pairs = rng.permutation(len(like))[: 2 * half].reshape(2, half)
        first, second = pairs
        made = np.stack((source[first] * like.n + target[second], source[second] * like.n + target[first]))
        _, at, often = np.unique(made, return_inverse=True, return_counts=True)
        fresh = (often[at.reshape(made.shape)] == 1) & ~np.isin(made, source * like.n + target)
        loops = made // like.n == made % like.n
        good = (fresh & ~loops).all(0) & (source[first] // K == source[second] // K)
        target[first[good]], target[second[good]] = target[second[good]], target[first[good]]
    return Graph(like.n, source, target, np.ones(len(like)), like.heads)
