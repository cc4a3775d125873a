"""The command that asks what stands for a concept: probe."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from bdh.cli.shared import json_text, open_byte_model
from bdh.files import check_directory, write_text


def probe(
    concepts: tyro.conf.Positional[tuple[str, ...]] = (),
    model: Path | None = None,
    synapses: bool = False,
    signal: Literal["x_sparse", "y_sparse", "xy_sparse"] = "x_sparse",
    levels: tuple[int, ...] = (),
    neurons: tuple[int, ...] = (),
    list: bool = False,
    out: Path | None = None,
    json: bool = False,
) -> int:
    """Find the neurons, or synapses, that stand for a concept, and try to refute each of them.

    Args:
        concepts: names of shipped concepts (--list shows them) or TOML files; the false discovery rates go over all.
        model: run directory, checkpoint directory or .pt file.
        synapses: probe synapses instead of neurons.
        signal: activity of the neurons (x_sparse), their gate (y_sparse), or the product that is written (xy_sparse).
        levels: which levels; by default all.
        neurons: test these neurons, by global id, instead of selecting any.
        list: show the shipped concepts.
        out: write pictures, tables and probe.json into this directory.
        json: print the findings as JSON.
    """
    from bdh import lens

    if list:
        known = [lens.Concept.load(name) for name in lens.concept_names()]
        for concept in known:
            print(f"{concept.name:20} {concept.description}")
        return 0
    if not concepts:
        raise ValueError(f"CONCEPT: expected a TOML file, or one or more of {', '.join(lens.concept_names())}")
    if model is None:
        raise ValueError("--model: expected a run directory, a checkpoint directory or a .pt file")
    if out is not None:
        check_directory(out, "--out")
    asked = [lens.Concept.load(name) for name in concepts]
    hatchling = open_byte_model(model)
    with Console(stderr=True, highlight=False).status("reading") as status:
        found = lens.probe_together(
            hatchling,
            asked,
            "synapses" if synapses else "neurons",
            signal=signal,
            levels=levels or None,
            neurons=neurons or None,
            progress=status.update,
        )
    if json:
        print(json_text({"probes": [one.to_dict() for one in found]}))
    else:
        lens.print_probes(found, Console(highlight=False))
    if out is not None:
        command = shlex.join(["bdh", *sys.argv[1:]])
        for one in found:
            lens.probe_panel(one, command).save(out)
        values = {"command": command, "probes": [one.to_dict() for one in found]}
        write_text(out / "probe.json", json_text(values) + "\n")
        print(f"written: {out.resolve()}", file=sys.stderr if json else sys.stdout)
    return 0
