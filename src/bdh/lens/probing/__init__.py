"""Does a neuron, or a synapse, stand for a concept? A test that can say no: `bdh probe`."""

from bdh.lens.probing.concept import Concept, concept_names
from bdh.lens.probing.findings import Probe, Protocol
from bdh.lens.probing.protocol import probe, probe_together
from bdh.lens.probing.showing import panel as probe_panel
from bdh.lens.probing.showing import print_probes

__all__ = ["Concept", "Probe", "Protocol", "concept_names", "print_probes", "probe", "probe_panel", "probe_together"]
