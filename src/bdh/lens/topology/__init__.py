"""The graph of neurons: its strongest edges, degrees, communities and hubs, beside random graphs.

`wiring` or `memory_wiring` gives all weights as a product, `graph` their strongest edges, `examine` what they look like
beside nulls of as many edges, and `topology_panel` shows it.
"""

from bdh.lens.topology.degrees import Comparison, Tail, ccdf, fit_tail, word
from bdh.lens.topology.ego import Ego, draw_ego, ego
from bdh.lens.topology.graph import SIGNS, Graph, Wiring, graph, memory_wiring, wiring
from bdh.lens.topology.modularity import communities, modularity
from bdh.lens.topology.nulls import low_rank, rewired, uniform
from bdh.lens.topology.panel import topology_panel, training_panel
from bdh.lens.topology.study import DRAWS, Hub, Null, Point, Topology, examine, sizes_for
from bdh.lens.topology.terminal import showing

__all__ = [
    "DRAWS",
    "SIGNS",
    "Comparison",
    "Ego",
    "Graph",
    "Hub",
    "Null",
    "Point",
    "Tail",
    "Topology",
    "Wiring",
    "ccdf",
    "communities",
    "draw_ego",
    "ego",
    "examine",
    "fit_tail",
    "graph",
    "low_rank",
    "memory_wiring",
    "modularity",
    "rewired",
    "showing",
    "sizes_for",
    "topology_panel",
    "training_panel",
    "uniform",
    "wiring",
    "word",
]
