"""bdh lens topology: the wiring of a model as a graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from bdh.cli.findings import tell
from bdh.cli.shared import open_model, run_facts
from bdh.files import check_directory

if TYPE_CHECKING:
    from bdh.lens import topology as topo
    from bdh.lens.panel import Panel
    from bdh.model import BDH


def topology(
    model: Path,
    which: Literal["x", "y", "sigma"] = "x",
    text: str | None = None,
    level: int | None = None,
    edges: tuple[int, ...] = (),
    neuron: int | None = None,
    raw: bool = False,
    over_training: bool = False,
    draws: int = 3,
    seed: int = 0,
    out: Path | None = None,
    json: bool = False,
) -> int:
    """Show how the neurons are wired: degrees, communities and hubs, beside random graphs of as many edges.

    An edge runs from the neuron that writes to the neuron that reads; positive and negative weights are two graphs.

    Args:
        model: run directory, checkpoint directory or .pt file.
        which: wires to the neurons (x), to their gates (y), or the memory after a text (sigma).
        text: what the model reads before its memory is looked at; for sigma.
        level: whose memory; by default the last level's.
        edges: how many of the strongest edges; several numbers make a sweep. By default powers of two from half as many
            as neurons to four times as many. Hubs, communities and partners are those of the largest.
        neuron: a neuron, by global id, whose partners to show.
        raw: leave the mean in what neurons write, which the norm of the model takes off (the paper's D E).
        over_training: look at every checkpoint that the run keeps, with the largest number of edges.
        draws: random graphs of each kind.
        seed: decides the random graphs.
        out: a folder for pictures (SVG) and tables (CSV).
        json: print the findings as JSON.
    """
    from bdh.lens import topology as topo
    from bdh.lens.memory import check_neurons
    from bdh.model import BDH

    _check(which, text, level, neuron, raw, over_training, out)
    hatchling = open_model(model)
    if neuron is not None:
        check_neurons(hatchling, [neuron], "--neuron")
    console = Console(stderr=True, highlight=False)
    facts = run_facts(model)
    if facts is None:
        console.print(f"{model} is of no run: the initial model that it is compared with is drawn anew", soft_wrap=True)
    start = 0 if facts is None else int(facts["train"]["seed"])
    wires = _wires(model, hatchling, which, text, level, raw)
    sizes = edges or topo.sizes_for(hatchling.config.n_neurons)
    steps: dict[int, Callable[[], BDH]] = {-1: lambda: hatchling}
    if over_training:
        sizes = (max(sizes),)
        steps = {0: lambda: BDH.from_seed(hatchling.config, start), **_checkpoints(model)}
    panels: list[Panel] = []
    results: list[dict[str, Any]] = []
    for sign in topo.SIGNS:
        history = []
        for step, opened in steps.items():
            title = f"{'positive' if sign > 0 else 'negative'} half" + (f", step {step}" if over_training else "")
            with topo.showing(console, title) as told:
                found = topo.examine(
                    wires(opened()),
                    lambda draw: wires(BDH.from_seed(hatchling.config, start + draw)),
                    sign=sign,
                    sizes=sizes,
                    draws=draws,
                    seed=seed,
                    told=told,
                )
            history.append((step, found))
            results.append(found.to_dict() | ({"step": step} if over_training else {}))
        if over_training:
            panels.append(topo.training_panel(history))
            continue
        partners = None if neuron is None else _partners(found, neuron, console)
        results[-1]["ego"] = None if partners is None else asdict(partners)
        panels.append(topo.topology_panel(found, partners))
    return tell({"halves": results}, panels, json, out)


def _check(
    which: str,
    text: str | None,
    level: int | None,
    neuron: int | None,
    raw: bool,
    over_training: bool,
    out: Path | None,
) -> None:
    """Flags that do not go together."""
    if (which == "sigma") != (text is not None):
        raise ValueError(f"--which {which}: expected --text with sigma, and only there")
    if (level is not None and which != "sigma") or (raw and which == "sigma"):
        raise ValueError(f"--which {which}: expected --level only with sigma, and --raw only with x and y")
    if over_training and neuron is not None:
        raise ValueError("--over-training --neuron: expected one of them; partners are shown of one model")
    if out is not None:
        check_directory(out, "--out")


def _partners(found: topo.Topology, neuron: int, console: Console) -> topo.Ego | None:
    """The partners of a neuron, if it has any in this half."""
    if not found.graph.out_degree[neuron] + found.graph.in_degree[neuron]:
        half = "positive" if found.sign > 0 else "negative"
        edges = len(found.graph)
        console.print(f"neuron {neuron} has none of the {edges:,} strongest edges of the {half} half", soft_wrap=True)
        return None
    from bdh.lens import topology as topo

    return topo.ego(found.graph, neuron)


def _wires(
    path: Path, model: BDH, which: Literal["x", "y", "sigma"], text: str | None, level: int | None, raw: bool
) -> Callable[[BDH], topo.Wiring]:
    """What is looked at of any model of this shape."""
    from bdh import checkpoint
    from bdh.generate import remember
    from bdh.lens import topology as topo

    if which != "sigma":
        return lambda of: topo.wiring(of, which, centred=False if raw else None)
    assert text is not None
    tokenizer = checkpoint.load_tokenizer(path)
    last = model.config.n_layer - 1 if level is None else level
    return lambda of: topo.memory_wiring(of, remember(of, text, tokenizer=tokenizer), last)


def _checkpoints(run: Path) -> dict[int, Callable[[], BDH]]:
    """The checkpoints of a run by their step, opened one at a time."""
    from bdh import checkpoint

    found = sorted((run / "checkpoints").glob("step-*"))
    if not found:
        raise ValueError(f"--over-training: {run} has no checkpoints/step-...; expected a run directory")
    return {int(path.name.removeprefix("step-")): partial(checkpoint.load, path) for path in found}
