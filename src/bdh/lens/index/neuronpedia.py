"""Pages as the JSON that Neuronpedia shows: one object per neuron, with the field names of its dashboards.

    frac_nonzero                        share of positions and levels at which it fires
    freq_hist_data_bar_values, _heights middles of the bins of positive activations, and fires in them
                                        (at every so-manieth position of a long text)
    logits_hist_data_bar_values, _heights   the same of the logit effects on all tokens
    pos_str, pos_values, neg_str, neg_values   strongest logit effects
    activations                         examples: tokens, values, maxValue, maxValueTokenIndex, minValue, binMin,
                                        binMax, binContains, qualifyingTokenIndex

Examples come strongest first, then by tenths of a sample of all fires, strongest tenth first. binMin and binMax are the
weakest and the strongest of the group, binContains the share of the sampled fires that lie between them. Values and
heights of a histogram have the same length. An example is at one level; its number stands in `level`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bdh.files import replacing_directory
from bdh.lens.index.page import Example, NeuronPage
from bdh.lens.index.store import Index
from bdh.lens.inspection import plain, readable
from bdh.lens.names import neuron_id

LOGIT_BINS = 50


def export_neuronpedia(
    index: Index,
    folder: str | os.PathLike[str],
    neurons: Sequence[int | str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write one file ID.json per neuron to a new directory, all of them or none.

    Args:
        index: the index.
        folder: directory to make.
        neurons: which; None is every one.
        progress: called with how many are written, and of how many.

    Returns:
        How many were written.

    Raises:
        ValueError: no such neuron, or a folder that is there already.
    """
    target = Path(folder)
    if target.exists():
        raise ValueError(f"{target} exists: expected the name of a directory to make")
    shape = index.plan.shape
    wanted = range(shape.n_neurons) if neurons is None else [neuron_id(name, shape) for name in neurons]
    with replacing_directory(target) as work:
        for done, neuron in enumerate(wanted, 1):
            text = json.dumps(neuronpedia(index, index.neuron(neuron)), ensure_ascii=False, allow_nan=False)
            (work / f"{neuron}.json").write_text(text + "\n", encoding="utf-8")
            if progress:
                progress(done, len(wanted))
    return len(wanted)


def neuronpedia(index: Index, page: NeuronPage) -> dict[str, Any]:
    """Return the object of one neuron.

    Args:
        index: where the page is from.
        page: the neuron.
    """
    counts = np.sum([level.histogram for level in page.levels], 0)
    largest = max(level.largest for level in page.levels)
    uppers = [*page.edges[1:], max(largest, page.edges[-1])]
    bars = [((low + high) / 2, int(n)) for low, high, n in zip(page.edges, uppers, counts, strict=True) if n]
    heights, edges = np.histogram(index.arrays["logits"][page.neuron], LOGIT_BINS)
    sample = [e.context.activation for q in page.quantiles for e in q.examples]
    groups = [page.contexts, *(q.examples for q in reversed(page.quantiles))]
    found: dict[str, Any] = plain(
        {
            "modelId": f"bdh-{index.plan.model[:12]}",
            "layer": page.signal,
            "index": str(page.neuron),
            "maxActApprox": largest,
            "frac_nonzero": page.rate,
            "freq_hist_data_bar_values": [middle for middle, _ in bars],
            "freq_hist_data_bar_heights": [n for _, n in bars],
            "logits_hist_data_bar_values": ((edges[:-1] + edges[1:]) / 2).tolist(),
            "logits_hist_data_bar_heights": heights.tolist(),
            "pos_str": [e.shown for e in page.up],
            "pos_values": [e.effect for e in page.up],
            "neg_str": [e.shown for e in page.down],
            "neg_values": [e.effect for e in page.down],
            "activations": [found for group in groups for found in _group(index, group, sample)],
        }
    )
    return found


def _group(index: Index, examples: Sequence[Example], sample: Sequence[float]) -> list[dict[str, Any]]:
    if not examples:
        return []
    strengths = [e.context.activation for e in examples]
    low, high = min(strengths), max(strengths)
    share = sum(low <= a <= high for a in sample) / len(sample)
    return [_activation(index, e) | {"binMin": low, "binMax": high, "binContains": share} for e in examples]


def _activation(index: Index, e: Example) -> dict[str, Any]:
    at = e.context.position - e.first
    values = [*e.values[:at], e.context.activation, *e.values[at + 1 :]]  # the strips have three digits only
    strongest = int(np.argmax(values))
    return {
        "tokens": readable(index.text[e.first : e.first + len(values)].tobytes()),
        "values": values,
        "maxValue": values[strongest],
        "maxValueTokenIndex": strongest,
        "minValue": min(values),
        "qualifyingTokenIndex": at,
        "level": e.level,
    }
