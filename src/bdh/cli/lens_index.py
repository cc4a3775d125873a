"""Commands of the index of neurons: index, neuron, export."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from bdh.cli.lens_labels import LABEL_BYTES, print_labels
from bdh.cli.shared import corpus_of, json_text, open_model, window_of
from bdh.data import spread
from bdh.files import check_directory


def index(
    model: Path,
    out: Path | None = None,
    dataset: str | None = None,
    data: Path | None = None,
    signal: Literal["x_sparse", "y_sparse", "xy_sparse"] = "x_sparse",
    window: int | None = None,
    seed: int = 0,
    json: bool = False,
) -> int:
    """Read a text once and write down what every neuron does in it; the same command goes on after a stop.

    Under torchrun each process reads a share of the text.

    Args:
        model: run directory, checkpoint directory or .pt file.
        out: directory to write; by default MODEL-index.
        dataset: text to read; by default the validation text of the one that the model was trained on.
        data: a file or directory of text to read instead, all of it.
        signal: activity of the neurons (x_sparse), their gate (y_sparse), or the product that is written (xy_sparse).
        window: bytes read from one empty state; by default as many as in training, at most 256.
        seed: of the sample of places at which each neuron fires.
        json: print where it is, and the density by level, as JSON.
    """
    from bdh import lens

    target = out or Path(f"{model}-index")
    check_directory(target, "--out", replaced=True)
    hatchling = open_model(model)
    corpus = corpus_of(model, dataset, data)
    text = np.concatenate([corpus.train, corpus.validation]) if data else np.asarray(corpus.validation)
    try:
        with _showing(Console(stderr=True)) as progress:
            found = lens.build_index(
                hatchling,
                text,
                target,
                signal=signal,
                window=window_of(model) if window is None else window,
                seed=seed,
                progress=progress,
            )
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    if found is None:
        print("this shard is done; others are not")
        return 0
    if json:
        about = {"path": str(found.path), "n_bytes": found.plan.n_bytes, "density": found.density}
        print(json_text(about | {"density_init": found.density_init}))
        return 0
    rates, start = (", ".join(f"{rate:.1%}" for rate in rates) for rates in (found.density, found.density_init))
    print(f"{found.path}: {hatchling.config.n_neurons:,} neurons on {found.plan.n_bytes:,} bytes")
    print(f"share that fires, by level: {rates}; at random initialisation {start}")
    print(f"look at one with: bdh lens neuron h0:0 --index {found.path}")
    return 0


def neuron(
    name: tyro.conf.Positional[str],
    index: Path,
    model: Path | None = None,
    dataset: str | None = None,
    data: Path | None = None,
    json: bool = False,
) -> int:
    """Show what an index knows of a neuron, and with its model also what to call it.

    Args:
        name: global id (4521), or head and neuron inside it (h1:425).
        index: directory that bdh lens index wrote.
        model: refuse an index that is not of this model, and look for a label as bdh lens label does.
        dataset: text to label with; by default the one that the model was trained on, its validation part.
        data: a file or directory of text to label with instead; its last tenth is read.
        json: print the page as JSON.
    """
    from bdh import lens
    from bdh.lens.index.terminal import print_page

    hatchling = open_model(model) if model else None
    page = lens.Index.open(index, hatchling).neuron(name)
    labels = []
    if model and hatchling:
        text = spread(corpus_of(model, dataset, data).validation.tobytes(), LABEL_BYTES)
        with Console(stderr=True).status("looking for a label"):
            labels = lens.label_neurons(hatchling, text, [page.neuron], signal=page.signal)
    if json:
        print(json_text(page.to_dict() | {"labels": [one.to_dict() for one in labels]}))
        return 0
    print_page(page, Console(highlight=False))
    if hatchling:
        print_labels(labels, hatchling)
    else:
        print("label: not looked for; --model RUN does")
    return 0


def export(
    index: Path, out: Path, format: Literal["neuronpedia"] = "neuronpedia", neurons: tuple[str, ...] = ()
) -> int:
    """Write neurons of an index in the form of another program: a JSON file for each.

    Args:
        index: directory that bdh lens index wrote.
        out: directory to make.
        format: neuronpedia has the fields of its dashboards.
        neurons: which, by global id or as h1:425; by default all.
    """
    from bdh import lens
    from bdh.lens.index.neuronpedia import export_neuronpedia

    with _showing(Console(stderr=True)) as progress:
        count = export_neuronpedia(
            lens.Index.open(index), out, neurons or None, lambda done, of: progress("writing", done, of)
        )
    print(f"{out}: {count:,} neurons")
    return 0


@contextmanager
def _showing(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A bar per kind of work, on a terminal only."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f}%"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield show
