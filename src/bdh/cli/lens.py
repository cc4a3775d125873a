"""The commands under `bdh lens`."""

from __future__ import annotations

from bdh.cli.lens_logits import attention, logits, surprise
from bdh.cli.lens_state import edit, ledger, state, synapses
from bdh.parsing import Group

LENS = Group(
    "Look into a model: neurons, concepts, synapses, memory, wiring.",
    {
        "attention": attention,
        "edit": edit,
        "ledger": ledger,
        "logits": logits,
        "state": state,
        "surprise": surprise,
        "synapses": synapses,
    },
)
