"""Look into a model: record and change its tensors, measure its density, find which neurons fire, write it down."""

from bdh.lens.density import density, init_density
from bdh.lens.find import find_neurons
from bdh.lens.firing import firing
from bdh.lens.index import Index, NeuronPage, build_index
from bdh.lens.inspection import Inspection, readable
from bdh.lens.intervene import intervene
from bdh.lens.interventions import Ablate, Clamp, Intervention, Patch, Scale
from bdh.lens.labels import label_neurons
from bdh.lens.mechanisms import Mechanisms, inspect_mechanisms
from bdh.lens.names import names_of
from bdh.lens.neurons import NeuronStatistics, inspect_text, neuron_statistics
from bdh.lens.panels import spike_raster_plot
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
    "EraseTokens",
    "Growth",
    "Index",
    "Inspection",
    "Intervention",
    "Ledger",
    "Mechanisms",
    "NeuronPage",
    "NeuronStatistics",
    "Patch",
    "Picture",
    "Scale",
    "ScaleSynapse",
    "SpikeRaster",
    "Trace",
    "build_index",
    "density",
    "erase_tokens",
    "find_neurons",
    "firing",
    "init_density",
    "inspect_mechanisms",
    "inspect_text",
    "intervene",
    "label_neurons",
    "names_of",
    "neuron_statistics",
    "pair_strength",
    "print_inspection",
    "readable",
    "record",
    "sigma",
    "spike_raster",
    "spike_raster_plot",
    "strongest_growth",
    "write_ledger",
    "write_report",
]
