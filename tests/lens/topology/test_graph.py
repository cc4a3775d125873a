"""Edges: their direction, their order, the blocks, and the memory's graph."""

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bdh import BDH, BDHConfig, ops
from bdh.lens import record, sigma
from bdh.lens.topology import Wiring, graph, memory_wiring, wiring
from tolerances import CONTROL, SAME, error


def dense(model: BDH, which: str = "x", centred: bool = True) -> torch.Tensor:
    """All weights, a row per source, written as the equation and not as the code."""
    E, D = model.decoder.detach(), (model.encoder if which == "x" else model.encoder_v).detach()
    centre = torch.eye(E.shape[1]) - 1 / E.shape[1] if centred else torch.eye(E.shape[1])
    return torch.cat([E @ centre @ head for head in D], dim=1).fill_diagonal_(0)


def as_matrix(found, n: int) -> torch.Tensor:
    matrix = torch.zeros(n, n, dtype=torch.float64)
    matrix[found.source, found.target] = torch.from_numpy(found.weight)
    return matrix


def test_an_edge_runs_from_the_neuron_that_writes_to_the_one_that_reads(tiny: BDH) -> None:
    a, b = 3, 100  # of two heads
    with torch.no_grad():
        for weight in (tiny.encoder, tiny.decoder):
            weight.zero_()
        direction = torch.tensor([1.0, -1.0] + [0.0] * 14)
        tiny.decoder[a] = direction
        tiny.encoder[1, :, b - 64] = direction
    found = graph(wiring(tiny), edges=10)
    assert (found.source.tolist(), found.target.tolist(), found.weight.tolist()) == ([a], [b], [2.0])
    assert (found.out_degree[a], found.in_degree[b], found.out_degree[b], found.in_degree[a]) == (1, 1, 0, 0)
    # and that is how the model computes: what a writes drives b
    drive = (direction - direction.mean()) @ tiny.encoder[1, :, b - 64]
    assert drive.item() == 2.0


@pytest.mark.parametrize("which", ["x", "y"])
@pytest.mark.parametrize("sign", [1, -1])
def test_blocks_find_what_the_whole_matrix_has(tiny: BDH, which: str, sign: int) -> None:
    G = sign * dense(tiny, which)
    found = graph(wiring(tiny, which), sign, edges=500)
    expected = G.flatten().sort(descending=True).values[:500]
    assert error(torch.from_numpy(found.weight), expected) < SAME[torch.float32]
    assert error(torch.from_numpy(found.weight), G[found.source, found.target]) < SAME[torch.float32]
    assert error(torch.from_numpy(found.weight), G.T[found.source, found.target]) > CONTROL
    crossing = found.source // 64 != found.target // 64
    assert 0.3 < crossing.mean() < 0.7  # edges between heads are half of all


@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 200), st.integers(0, 1000))
def test_any_block_gives_the_same_edges(n: int, block: int, edges: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sources, targets = torch.randn(2, n, 3, generator=generator, dtype=torch.float64)
    wires = Wiring("random", sources, targets)
    whole = graph(wires, edges=edges)
    with mock.patch(f"{Wiring.__module__}._BLOCK", block):
        found = graph(wires, edges=edges)
    assert found.source.tolist() == whole.source.tolist()
    assert found.target.tolist() == whole.target.tolist()
    assert len(found) == min(edges, int(((sources @ targets.T).fill_diagonal_(0) > 0).sum()))


def test_a_threshold_keeps_what_is_at_least_as_large(tiny: BDH) -> None:
    G = dense(tiny)
    beta = G.flatten().sort(descending=True).values[299].item()
    found = graph(wiring(tiny), threshold=beta - 1e-6)
    assert len(found) == 300
    assert found.threshold == pytest.approx(beta, rel=1e-5)
    # the size of an edge counts as it
    exact = Wiring("exact", torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [1.0]]))
    assert graph(exact, threshold=1.0).weight.tolist() == [6.0, 1.0]
    assert graph(exact, threshold=1.0001).weight.tolist() == [6.0]


def test_the_mean_that_the_norm_takes_off_makes_no_edge(tiny: BDH) -> None:
    before = graph(wiring(tiny), edges=200)
    raw = graph(wiring(tiny, centred=False), edges=200)
    with torch.no_grad():
        tiny.decoder += 3.0  # the model computes the same
    after = graph(wiring(tiny), edges=200)
    assert set(zip(before.source, before.target, strict=True)) == set(zip(after.source, after.target, strict=True))
    moved = graph(wiring(tiny, centred=False), edges=200)
    assert set(zip(raw.source, raw.target, strict=True)) != set(zip(moved.source, moved.target, strict=True))
    rms = BDH.from_seed(BDHConfig(n_layer=1, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4, norm="rms"), 0)
    assert torch.equal(wiring(rms).sources, rms.decoder)


def test_the_graph_of_the_memory_is_the_explicit_sum_over_the_past(tiny: BDH) -> None:
    idx = torch.randint(256, (1, 9), generator=torch.Generator().manual_seed(1))
    _, trace = record(tiny, idx, ("layers.1.x_sparse", "layers.1.value"))
    x, v = trace["layers.1.x_sparse"], trace["layers.1.value"]
    _, state = tiny.advance(idx)
    turn = ops.rotation(64, 0, 10, like=tiny.encoder)
    expected = torch.zeros(128, 128)
    for head in range(2):
        # e_j as the next token, 9, would rotate it
        axes = ops.rotate(torch.eye(64), turn[9].expand(64, -1))
        keys = ops.rotate(x[0, head], turn[:9])
        rho = axes @ keys.T @ v[0]  # (K, D)
        read = tiny.encoder_v[head].detach()
        part = slice(64 * head, 64 * head + 64)
        expected[part, part] = rho @ (read - read.mean(0))
    at = expected.clone().fill_diagonal_(0)
    found = graph(memory_wiring(tiny, state, level=1), edges=2000)
    got = as_matrix(found, 128)
    assert error(got[got > 0], at[got > 0]) < SAME[torch.float32]
    weakest = at.flatten().sort(descending=True).values[len(found) - 1]
    assert found.threshold == pytest.approx(weakest.item(), rel=1e-4)
    assert error(got[got > 0], at.T[got > 0]) > CONTROL
    assert (found.source // 64 == found.target // 64).all()
    one = sigma(tiny, state, 1, i=int(found.target[0]), j=int(found.source[0]))
    assert one.item() == pytest.approx(found.weight[0], rel=1e-5)


def test_what_is_asked_wrongly_is_said(tiny: BDH) -> None:
    wires = wiring(tiny)
    for wrong in ({}, {"edges": 3, "threshold": 1.0}, {"edges": 0}, {"threshold": -1.0}, {"edges": 2**25}):
        with pytest.raises(ValueError, match="expected"):
            graph(wires, **wrong)
    with pytest.raises(ValueError, match="which='z': expected 'x'"):
        wiring(tiny, "z")
    with pytest.raises(ValueError, match=r"edges=11: expected 1\.\.10"):
        graph(wires, edges=10).strongest(11)
    _, state = tiny.advance(torch.tensor([[1, 2]]))
    with pytest.raises(ValueError, match="level: expected"):
        memory_wiring(tiny, state, 3)


def test_prefixes_are_the_graphs_of_fewer_edges(tiny: BDH) -> None:
    whole, few = graph(wiring(tiny), edges=300), graph(wiring(tiny), edges=100)
    assert np.array_equal(whole.strongest(100).source, few.source)
    assert np.array_equal(whole.strongest(100).weight, few.weight)
    assert few.out_degree.sum() == few.in_degree.sum() == 100
