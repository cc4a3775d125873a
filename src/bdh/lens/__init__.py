"""Look into a model: record and change its tensors, measure its density, find which neurons fire, write it down."""

from bdh.lens.density import density, init_density
from bdh.lens.firing import firing
from bdh.lens.inspection import Inspection, readable
from bdh.lens.intervene import intervene
from bdh.lens.interventions import Ablate, Clamp, Intervention, Patch, Scale
from bdh.lens.mechanisms import Mechanisms, inspect_mechanisms
from bdh.lens.names import names_of
from bdh.lens.neurons import NeuronStatistics, inspect_text, neuron_statistics
from bdh.lens.panels import spike_raster_plot
from bdh.lens.probing import Concept, Probe, Protocol, concept_names, print_probes, probe, probe_panel, probe_together
from bdh.lens.raster import SpikeRaster, spike_raster
from bdh.lens.record import SIGNALS, Trace, record
from bdh.lens.report import write_report
from bdh.lens.surgery import EraseTokens, ScaleSynapse, erase_tokens
from bdh.lens.svg import Picture
from bdh.lens.synapses import Growth, Ledger, pair_strength, sigma, strongest_growth, write_ledger
from bdh.lens.terminal import print_inspection

__all__ = [
    "SIGNALS",
    "Ablate",
    "Clamp",
    "Concept",
    "EraseTokens",
    "Growth",
    "Inspection",
    "Intervention",
    "Ledger",
    "Mechanisms",
    "NeuronStatistics",
    "Patch",
    "Picture",
    "Probe",
    "Protocol",
    "Scale",
    "ScaleSynapse",
    "SpikeRaster",
    "Trace",
    "concept_names",
    "density",
    "erase_tokens",
    "firing",
    "init_density",
    "inspect_mechanisms",
    "inspect_text",
    "intervene",
    "names_of",
    "neuron_statistics",
    "pair_strength",
    "print_inspection",
    "print_probes",
    "probe",
    "probe_panel",
    "probe_together",
    "readable",
    "record",
    "sigma",
    "spike_raster",
    "spike_raster_plot",
    "strongest_growth",
    "write_ledger",
    "write_report",
]
