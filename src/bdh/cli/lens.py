"""Commands that look into a model one question at a time: `bdh lens ...`."""

from __future__ import annotations

from bdh.cli.lens_report import report
from bdh.parsing import Group

LENS = Group(
    "Look into a model: neurons, concepts, synapses, memory, wiring.",
    {
        "report": report,
    },
)
