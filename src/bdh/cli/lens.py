"""Commands that look into a model one question at a time: `bdh lens ...`."""

from __future__ import annotations

from bdh.cli.lens_index import export, index, neuron
from bdh.cli.lens_labels import find, label
from bdh.cli.lens_logits import attention, logits, surprise
from bdh.cli.lens_report import report
from bdh.cli.lens_state import edit, ledger, state, synapses
from bdh.cli.lens_topology import topology
from bdh.parsing import Group

LENS = Group(
    "Look into a model: neurons, concepts, synapses, memory, wiring.",
    {
        "attention": attention,
        "edit": edit,
        "export": export,
        "find": find,
        "index": index,
        "label": label,
        "ledger": ledger,
        "logits": logits,
        "neuron": neuron,
        "report": report,
        "state": state,
        "surprise": surprise,
        "synapses": synapses,
        "topology": topology,
    },
)
