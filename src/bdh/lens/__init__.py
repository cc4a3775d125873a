"""Look into a model: record and change its tensors, measure its density, find which neurons fire, write it down."""

from bdh.lens import topology
from bdh.lens.attention import Attention, attention_scores, signed_attention
from bdh.lens.chapters import MOST_WIRED, Chapter, chapters
from bdh.lens.course import SynapseCourse, synapse_course, typical_growth
from bdh.lens.density import density, init_density
from bdh.lens.energy import MemoryEnergy, StateDiff, diff_states, memory_energy, snapshots
from bdh.lens.find import find_neurons
from bdh.lens.firing import firing
from bdh.lens.index import Index, NeuronPage, build_index
from bdh.lens.inspection import Inspection, readable
from bdh.lens.intervene import intervene
from bdh.lens.interventions import Ablate, Clamp, Intervention, Patch, Scale
from bdh.lens.labels import label_neurons
from bdh.lens.logits import Attribution, LogitLens, attribute_logit, logit_lens, split_stream
from bdh.lens.mechanisms import Mechanisms, inspect_mechanisms
from bdh.lens.names import names_of
from bdh.lens.neurons import NeuronStatistics, inspect_text, neuron_statistics
from bdh.lens.overview import Overview, overview, overview_panel
from bdh.lens.page import write_page
from bdh.lens.panel import Panel, Table
from bdh.lens.panels import spike_raster_plot
from bdh.lens.probing import Concept, Probe, Protocol, concept_names, print_probes, probe, probe_panel, probe_together
from bdh.lens.raster import SpikeRaster, spike_raster
from bdh.lens.reading import Reading, explain_reading
from bdh.lens.record import SIGNALS, Trace, record
from bdh.lens.repetition import Repetition, measure_repetition, repeated_words
from bdh.lens.report import inspection_panels, write_report
from bdh.lens.span import MemorySpan, memory_span
from bdh.lens.surgery import EraseTokens, ScaleSynapse, erase_tokens, scale_pair
from bdh.lens.surprise import Surprise, measure_surprise
from bdh.lens.svg import Picture
from bdh.lens.synapses import Growth, Ledger, pair_strength, sigma, strongest_growth, write_ledger
from bdh.lens.terminal import print_inspection
from bdh.lens.timescales import periods

__all__ = [
    "MOST_WIRED",
    "SIGNALS",
    "Ablate",
    "Attention",
    "Attribution",
    "Chapter",
    "Clamp",
    "Concept",
    "EraseTokens",
    "Growth",
    "Index",
    "Inspection",
    "Intervention",
    "Ledger",
    "LogitLens",
    "Mechanisms",
    "MemoryEnergy",
    "MemorySpan",
    "NeuronPage",
    "NeuronStatistics",
    "Overview",
    "Panel",
    "Patch",
    "Picture",
    "Probe",
    "Protocol",
    "Reading",
    "Repetition",
    "Scale",
    "ScaleSynapse",
    "SpikeRaster",
    "StateDiff",
    "Surprise",
    "SynapseCourse",
    "Table",
    "Trace",
    "attention_scores",
    "attribute_logit",
    "build_index",
    "chapters",
    "concept_names",
    "density",
    "diff_states",
    "erase_tokens",
    "explain_reading",
    "find_neurons",
    "firing",
    "init_density",
    "inspect_mechanisms",
    "inspect_text",
    "inspection_panels",
    "intervene",
    "label_neurons",
    "logit_lens",
    "measure_repetition",
    "measure_surprise",
    "memory_energy",
    "memory_span",
    "names_of",
    "neuron_statistics",
    "overview",
    "overview_panel",
    "pair_strength",
    "periods",
    "print_inspection",
    "print_probes",
    "probe",
    "probe_panel",
    "probe_together",
    "readable",
    "record",
    "repeated_words",
    "scale_pair",
    "sigma",
    "signed_attention",
    "snapshots",
    "spike_raster",
    "spike_raster_plot",
    "split_stream",
    "strongest_growth",
    "synapse_course",
    "topology",
    "typical_growth",
    "write_ledger",
    "write_page",
    "write_report",
]
