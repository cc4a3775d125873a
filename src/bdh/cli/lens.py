"""Commands that look into a model one question at a time: `bdh lens ...`."""

from __future__ import annotations

from bdh.cli.lens_index import export, index, neuron
from bdh.cli.lens_labels import find, label
from bdh.parsing import Group

LENS = Group(
    "Look into a model: neurons, concepts, synapses, memory, wiring.",
    {
        "export": export,
        "find": find,
        "index": index,
        "label": label,
        "neuron": neuron,
    },
)
