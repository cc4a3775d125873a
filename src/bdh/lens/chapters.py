"""What a report shows beyond the inspection of a text: labels, predictions, memory, wiring, neurons of an index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Literal

from bdh.lens import logit_panels, memory_panels, topology
from bdh.lens.attention import signed_attention
from bdh.lens.course import typical_growth
from bdh.lens.energy import memory_energy
from bdh.lens.index import Index
from bdh.lens.index.page import panel as neuron_panel
from bdh.lens.inspection import Inspection, readable
from bdh.lens.labels import label_neurons
from bdh.lens.logits import logit_lens
from bdh.lens.neuron_panels import labels_panel
from bdh.lens.panel import Panel
from bdh.lens.probing.concept import Concept
from bdh.lens.probing.findings import Probe
from bdh.lens.probing.protocol import probe_together
from bdh.lens.probing.showing import panel as probe_panel
from bdh.lens.reading import explain_reading
from bdh.lens.span import memory_span
from bdh.lens.synapses import strongest_growth
from bdh.model import BDH

LABEL_BYTES = 65_536
"""Text that labels are found and scored on."""

CONCEPTS = ("kinship", "royalty", "love")
"""Concepts that a report probes for: what plays speak of."""

PAGES = 4
"""Telling neurons with a page of their own, where there is an index."""

MOST_WIRED = 4096
"""Neurons up to which a report has the wiring: beside random graphs it takes minutes for more."""


@dataclass(frozen=True)
class Chapter:
    """A panel that is made when it is asked for."""

    title: str
    words: tuple[str, ...]
    """What makes it on the command line, after `bdh`; the model is added."""
    make: Callable[[], Panel]


def chapters(
    model: BDH,
    found: Inspection,
    validation: bytes,
    *,
    window: int = 256,
    start_seed: int = 0,
    index: Index | None = None,
) -> list[Chapter]:
    """Return the chapters of a report in the order of its page; nothing is measured yet.

    Args:
        model: a model of bytes.
        found: the inspection of the text, with its telling neurons.
        validation: bytes of validation text.
        window: bytes of it read from one empty memory.
        start_seed: of the weights that training began with, for the untrained graph beside the trained one.
        index: of the same model, for the pages of the telling neurons.

    Examples:
        >>> from bdh import BDHConfig
        >>> from bdh.lens import inspect_text
        >>> model = BDH(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4))
        >>> found = inspect_text(model, b"The dragon", b"the lazy dog. " * 9)
        >>> [" ".join(chapter.words[:2]) for chapter in chapters(model, found, b"the lazy dog. " * 9)][-4:]
        ['lens topology', 'probe kinship', 'probe kinship', 'probe kinship']
    """
    c, last = model.config, model.config.n_layer - 1
    idx = model.as_ids(found.text)
    typed = ("--text", found.text.decode("utf-8", "replace"))
    edges = max(topology.sizes_for(c.n_neurons))  # the largest size alone: a sweep takes longer than all the rest
    telling = [one.firing.neuron for one in found.telling]

    def labels() -> Panel:
        made = label_neurons(model, validation[:LABEL_BYTES], telling, signal=found.signal, window=window)
        panel = labels_panel(made, c.neurons_per_head)
        return replace(panel, python=f"bdh.lens.label_neurons(model, VALIDATION, {telling}, window={window})")

    def synapses() -> Panel:
        span = 0, idx.shape[1]
        grown = strongest_growth(model, idx, span, last, 20)
        words = "".join(readable(found.text))
        return memory_panels.growth_panel(grown, typical_growth(model, idx, span, last), words, last)

    def wiring(sign: Literal[1, -1]) -> Panel:
        made = topology.examine(
            topology.wiring(model, "x"),
            lambda draw: topology.wiring(BDH.from_seed(c, start_seed + draw), "x"),
            sign=sign,
            sizes=(edges,),
        )
        wires = 'bdh.lens.topology.wiring(model, "x")'
        return replace(
            topology.topology_panel(made),
            python=f"bdh.lens.topology.examine({wires}, sign={sign}, sizes=({edges},))",
        )

    made = [Chapter("labels of the telling neurons", ("lens", "label", *map(str, telling)), labels)] if telling else []
    made += [
        Chapter("logit lens", ("lens", "logits", *typed), lambda: logit_panels.logit_panel(logit_lens(model, idx))),
        Chapter(
            "signed attention",
            ("lens", "attention", *typed, "--level", str(last)),
            lambda: logit_panels.attention_panel(signed_attention(model, idx, last)),
        ),
        Chapter("energy", ("lens", "state", *typed), lambda: memory_panels.energy_panel(memory_energy(model, idx))),
    ]
    if c.stdp.form != "trace" and idx.shape[1] > 1:  # there pairs of tokens write, of no one age
        made.append(
            Chapter("span", ("lens", "state", *typed), lambda: memory_panels.span_panel(memory_span(model, idx)))
        )
    made += [
        Chapter("synapses", ("lens", "synapses", *typed, "--level", str(last)), synapses),
        Chapter(
            "ledger",
            ("lens", "ledger", *typed, "--level", str(last)),
            lambda: memory_panels.reading_panel(explain_reading(model, idx, last, idx.shape[1] - 1)),
        ),
    ]
    if c.n_neurons <= MOST_WIRED:
        made += [
            Chapter("wiring, positive half", ("lens", "topology", "--edges", str(edges)), lambda: wiring(1)),
            Chapter("wiring, negative half", ("lens", "topology", "--edges", str(edges)), lambda: wiring(-1)),
        ]
    # one call for all: the false discovery rates go over every concept that is asked for
    probed = cache(lambda: probe_together(model, [Concept.load(name) for name in CONCEPTS], signal=found.signal))
    for number, name in enumerate(CONCEPTS):
        made.append(Chapter(f"concept {name}", ("probe", *CONCEPTS), partial(_concept, probed, number)))
    if index is not None:
        made += [
            Chapter(
                f"neuron {neuron}", ("lens", "neuron", str(neuron), "--index", str(index.path)), _page(index, neuron)
            )
            for neuron in telling[:PAGES]
        ]
    return made


def _concept(probed: Callable[[], tuple[Probe, ...]], number: int) -> Panel:
    return probe_panel(probed()[number])


def _page(index: Index, neuron: int) -> Callable[[], Panel]:
    return lambda: neuron_panel(index.neuron(neuron))
