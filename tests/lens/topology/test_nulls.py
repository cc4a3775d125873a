"""Random graphs: each keeps what it says, and nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bdh.lens.topology import Graph, Wiring, graph, low_rank, rewired, uniform


def pairs(found: Graph) -> set[tuple[int, int]]:
    return set(zip(found.source.tolist(), found.target.tolist(), strict=True))


def some(n: int, share: float, heads: int, seed: int) -> Graph:
    rng = np.random.default_rng(seed)
    allowed = np.kron(np.eye(heads), np.ones((n // heads, n // heads))) - np.eye(n)
    source, target = np.nonzero((rng.random((n, n)) < share) & (allowed > 0))
    return Graph(n, source, target, np.ones(len(source)), heads)


@given(st.integers(2, 12), st.sampled_from([1, 2]), st.floats(0.1, 0.9), st.integers(0, 1000))
def test_rewiring_keeps_every_degree_and_makes_no_double_edge(half: int, heads: int, share: float, seed: int) -> None:
    before = some(2 * half, share, heads, seed)
    after = rewired(before, np.random.default_rng(seed))
    assert np.array_equal(before.out_degree, after.out_degree)
    assert np.array_equal(before.in_degree, after.in_degree)
    assert len(pairs(after)) == len(before)
    assert (after.source != after.target).all()
    assert (after.source // (2 * half // heads) == after.target // (2 * half // heads)).all()


def test_rewiring_forgets_who_was_connected_to_whom() -> None:
    before = some(100, 0.05, 1, 0)
    after = rewired(before, np.random.default_rng(0))
    shared = len(pairs(before) & pairs(after)) / len(before)
    assert shared < 0.15  # 0.05 by chance, more at high degrees
    assert pairs(rewired(before, np.random.default_rng(0), rounds=0)) == pairs(before)


@pytest.mark.parametrize("heads", [1, 2])
def test_a_uniform_graph_has_as_many_edges_anywhere(heads: int) -> None:
    like = some(20, 0.3, heads, 1)
    seen = np.zeros((20, 20))
    for seed in range(400):
        drawn = uniform(like, np.random.default_rng(seed))
        assert len(pairs(drawn)) == len(like)
        seen[drawn.source, drawn.target] += 1
    allowed = np.kron(np.eye(heads), np.ones((20 // heads, 20 // heads))) - np.eye(20)
    expected = 400 * len(like) / allowed.sum()
    assert (seen[allowed == 0] == 0).all()
    # five standard deviations of a binomial
    assert np.abs(seen[allowed > 0] - expected).max() < 5 * np.sqrt(expected * (1 - expected / 400))


def test_a_low_rank_null_keeps_norms_rank_and_the_centring() -> None:
    generator = torch.Generator().manual_seed(0)
    sources, targets = torch.randn(2, 50, 8, generator=generator) * torch.rand(50, 1, generator=generator)
    wires = Wiring("some", sources - sources.mean(1, keepdim=True), targets, 2)
    drawn = low_rank(wires, np.random.default_rng(0))
    for new, old in ((drawn.sources, wires.sources), (drawn.targets, wires.targets)):
        assert torch.allclose(new.norm(dim=1), old.norm(dim=1))
        assert not torch.allclose(new, old)
    assert drawn.sources.mean(1).abs().max() < 1e-6
    assert drawn.targets.mean(1).abs().max() > 0.01
    assert drawn.heads == 2
    assert len(graph(drawn, edges=40)) == 40
