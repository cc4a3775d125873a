"""Modularity beside nulls: planted communities are found, and the trap of a random product is not walked into."""

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable

import networkx
import numpy as np
import pytest
import torch

from bdh import BDH
from bdh.lens.topology import (
    Graph,
    Wiring,
    communities,
    draw_ego,
    ego,
    examine,
    graph,
    low_rank,
    modularity,
    rewired,
    sizes_for,
    topology_panel,
    training_panel,
    wiring,
)


def gaussian(n: int, width: int, seed: int) -> Wiring:
    generator = torch.Generator().manual_seed(seed)
    return Wiring("random", *torch.randn(2, n, width, generator=generator))


def before(model: BDH) -> Callable[[int], Wiring]:
    """The model before training."""
    return lambda draw: wiring(BDH.from_seed(model.config, draw))


def planted(n: int, width: int, groups: int, seed: int) -> Wiring:
    """Neurons of one group write and read in one direction, a little."""
    wires = gaussian(n, width, seed)
    directions = torch.randn(groups, width, generator=torch.Generator().manual_seed(seed + 1))
    own = 1.2 * directions[torch.arange(n) % groups]
    return Wiring("planted", wires.sources + own, wires.targets + own)


def test_modularity_is_that_of_networkx() -> None:
    found = graph(gaussian(60, 4, 0), edges=300)
    parts = [list(range(k, 60, 3)) for k in range(3)]
    everyone = found.networkx()
    everyone.add_nodes_from(range(60))
    assert modularity(found, parts) == pytest.approx(networkx.community.modularity(everyone, parts), abs=1e-12)
    turned = Graph(60, found.target, found.source, found.weight)
    assert modularity(turned, parts) == pytest.approx(modularity(found, parts), abs=1e-12)
    assert modularity(found, parts) != pytest.approx(modularity(rewired(found, np.random.default_rng(0)), parts))


def test_planted_communities_stand_above_all_nulls() -> None:
    wires = planted(200, 16, 5, seed=3)
    found = examine(wires, lambda draw: gaussian(200, 16, 50 + draw), sizes=(1000,), draws=2, tries=2)
    assert found.last.above() == {"G(n, m)": True, "low rank": True, "initial": True, "rewired": True}
    assert found.last.modularity > 0.5
    five = communities(found.graph)[:5]
    assert all(len({neuron % 5 for neuron in part}) == 1 for part in five if len(part) > 20)


def test_a_random_product_beats_a_graph_without_structure_but_not_its_own_null() -> None:
    found = examine(gaussian(256, 4, 7), sizes=(4096,), draws=3, tries=2)
    nulls = found.last.nulls
    assert found.last.modularity > max(nulls["G(n, m)"].draws) + 0.05  # the trap
    assert found.last.modularity > max(nulls["rewired"].draws)
    spread = max(nulls["low rank"].draws) - min(nulls["low rank"].draws)
    assert abs(found.last.modularity - nulls["low rank"].mean) < max(3 * spread, 0.02)
    assert found.last.in_largest > 1.5 * nulls["G(n, m)"].in_largest
    assert "initial" not in nulls


def test_all_graphs_have_as_many_edges(tiny: BDH) -> None:
    found = examine(
        wiring(tiny), lambda draw: wiring(BDH.from_seed(tiny.config, draw)), sizes=(64, 256), draws=1, tries=1
    )
    assert [len(drawn) for drawn in found.drawn.values()] == [256] * 4
    assert set(found.drawn) == set(found.tails) == {"G(n, m)", "low rank", "initial", "rewired"}
    assert np.array_equal(found.drawn["rewired"].in_degree, found.graph.in_degree)
    assert sum(found.last.communities) + found.last.alone == 128
    assert found.hubs[0].out + found.hubs[0].into == (found.graph.out_degree + found.graph.in_degree).max()


def test_the_same_seed_finds_the_same(tiny: BDH) -> None:
    first, again, other = (
        examine(wiring(tiny), sizes=(200,), draws=2, tries=1, seed=seed).to_dict() for seed in (0, 0, 1)
    )
    assert json.dumps(first) == json.dumps(again)
    assert first["points"][0]["nulls"] != other["points"][0]["nulls"]


def test_sizes_beyond_the_weights_of_a_sign_are_left_out() -> None:
    wires = Wiring("few", torch.tensor([[1.0], [0.0], [2.0], [0.5]]), torch.tensor([[1.0], [1.0], [-1.0], [0.0]]))
    assert [point.edges for point in examine(wires, sizes=(1, 2, 100), draws=1, tries=1).points][:1] == [1]
    with pytest.raises(ValueError, match="ask for fewer"):
        examine(wires, sizes=(100,), draws=1, tries=1)
    with pytest.raises(ValueError, match="expected numbers >= 1"):
        examine(wires, sizes=(0,))


def test_progress_ends_at_its_total(tiny: BDH) -> None:
    told: list[tuple[int, int]] = []
    examine(
        wiring(tiny),
        before(tiny),
        sizes=(64, 128),
        draws=2,
        tries=1,
        told=lambda _, done, total: told.append((done, total)),
    )
    assert [done for done, _ in told] == list(range(len(told)))
    assert {total for _, total in told} == {len(told)}


def test_partners_are_the_strongest_and_the_edges_between_them_are_all() -> None:
    found = graph(gaussian(80, 4, 1), edges=800)
    hub = int(np.argmax(found.out_degree + found.in_degree))
    whole, few = ego(found, hub), ego(found, hub, most=10)
    assert len(whole.sources) == found.in_degree[hub]
    assert len(whole.targets) == found.out_degree[hub]
    assert (len(few.nodes), few.left_out) == (10, len(whole.nodes) - 10)
    assert set(few.nodes) < set(whole.nodes)
    edges = set(zip(found.source.tolist(), found.target.tolist(), strict=True))
    assert {(a, b) for a, b, _ in few.edges} == {(a, b) for a, b in edges if a in few.nodes and b in few.nodes}
    alone = Graph(5, np.array([0]), np.array([1]), np.array([1.0]))
    with pytest.raises(ValueError, match="neuron=3: no edge among the 1 strongest"):
        ego(alone, 3)
    with pytest.raises(ValueError, match=r"neuron=5: expected a global neuron id 0\.\.4"):
        ego(alone, 5)


def test_sources_are_drawn_left_of_the_neuron_and_targets_right() -> None:
    line = Graph(3, np.array([0, 1]), np.array([1, 2]), np.array([2.0, 1.0]))
    drawn = draw_ego(ego(line, 1))
    circles = [e for e in ET.fromstring(str(drawn)).iter() if e.tag.endswith("circle")]
    middle, left, right = (float(circle.get("cx")) for circle in circles)
    assert left < middle < right
    assert str(drawn) == str(draw_ego(ego(line, 1)))


def test_a_panel_says_direction_nulls_and_verdict(tiny: BDH) -> None:
    found = examine(wiring(tiny), sizes=(128, 256), draws=1, tries=1)
    panel = topology_panel(found, ego(found.graph, found.hubs[0].neuron))
    assert panel.key == "topology-dx-e-positive"
    assert "from the neuron that writes" in panel.note
    assert "G(n, m) 0." in panel.baseline
    for drawn in panel.pictures:
        ET.fromstring(str(drawn))
    sweep = panel.tables["Modularity over the sweep, and means of the nulls"]
    assert sweep.column("edges") == (128, 256)
    assert sweep.column("modularity")[1] == found.last.modularity
    over = training_panel([(0, found), (10, found)])
    assert over.tables["Over training"].column("step") == (0, 10)
    assert "source to target" in panel.pictures[0].label


def test_low_rank_nulls_of_a_null_look_alike() -> None:
    wires = gaussian(256, 8, 7)
    one, two = (graph(low_rank(wires, np.random.default_rng(seed)), edges=1024).in_degree.max() for seed in (1, 2))
    assert 0.5 < one / two < 2
    assert sizes_for(32768) == (16384, 32768, 65536, 131072)
