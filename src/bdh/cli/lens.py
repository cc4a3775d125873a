"""The commands under `bdh lens`."""

from __future__ import annotations

from bdh.cli.lens_index import export, index, neuron
from bdh.parsing import Group

LENS = Group(
    "Look into a model: what every neuron does.",
    {
        "export": export,
        "index": index,
        "neuron": neuron,
    },
)
