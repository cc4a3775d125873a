"""Commands under `bdh lens`, which look into a model."""

from __future__ import annotations

from bdh.cli.lens_topology import topology
from bdh.parsing import Group

LENS = Group(
    "Look into a model: neurons, concepts, synapses, memory, wiring",
    {
        "topology": topology,
    },
)
