"""The command that puts all findings on one page: report."""

from __future__ import annotations

import hashlib
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from bdh.cli.looking import baseline_of
from bdh.cli.shared import corpus_of, json_text, open_model, run_facts, window_of
from bdh.files import check_directory, check_file


def report(
    model: Path,
    text: str = "To be, or not to be: that is the question",
    signal: Literal["x_sparse", "y_sparse", "xy_sparse"] = "x_sparse",
    dataset: str | None = None,
    data: Path | None = None,
    index: Path | None = None,
    out: Path = Path("report.html"),
    files: Path | None = None,
    json: bool = False,
) -> int:
    """Write all that is known of a model and of a text into one page that needs no network.

    Args:
        model: run directory, checkpoint directory or .pt file.
        text: what the model reads.
        signal: activity of the neurons (x_sparse), their gate (y_sparse), or the product that is written (xy_sparse).
        dataset: text to compare with; by default the one that the model was trained on.
        data: a file or directory of text to compare with instead.
        index: directory that bdh lens index wrote, for the pages of the most telling neurons.
        out: the page.
        files: write every picture (SVG, PNG) and table (CSV, Parquet) into this directory too.
        json: print what was written as JSON; progress goes to stderr.
    """
    from bdh import lens

    check_file(out, "--out")
    if files:
        check_directory(files, "--files")
    if not text:
        raise ValueError("the text is empty: expected at least one character")
    hatchling, console, begun = open_model(model), Console(stderr=True, highlight=False), time.perf_counter()
    known = None if index is None else lens.Index.open(index, hatchling)
    validation = baseline_of(hatchling, corpus_of(model, dataset, data))
    command, facts = shlex.join(["bdh", *sys.argv[1:]]), run_facts(model)

    def told(name: str) -> None:
        console.print(f"{time.perf_counter() - begun:6.1f} s  {name}", markup=False)

    told("the model")
    window = window_of(model)
    statistics = lens.neuron_statistics(hatchling, validation, signal=signal, window=window)
    measured = lens.overview(hatchling, validation, statistics, window=window)
    first = lens.overview_panel(measured, _origin(model, facts), command)
    told("the text")
    found = lens.inspect_text(hatchling, text.encode(), validation, signal=signal, window=window)
    after = []
    begun_with = 0 if facts is None else int(facts["train"]["seed"])
    for chapter in lens.chapters(hatchling, found, validation, window=window, start_seed=begun_with, index=known):
        told(chapter.title)
        again = shlex.join(["bdh", *chapter.words, "--model", str(model)])
        after.append(replace(chapter.make(), command=again))
    if hatchling.config.n_neurons > lens.MOST_WIRED:
        told(f"the wiring is left out, beyond {lens.MOST_WIRED:,} neurons it takes long: bdh lens topology")
    lens.write_report(found, out, command=command, before=[first], after=after)
    written = [out]
    if files:
        told("files")
        for panel in [first, *lens.inspection_panels(found, command), *after]:
            written += panel.save(files)
    told(f"done: {out.stat().st_size:,} bytes")
    if json:
        print(json_text({"report": str(out.resolve()), "files": [str(path) for path in written[1:]]}))
    else:
        print(f"report: {out.resolve()}" + (f", and {len(written) - 1} files in {files}" if files else ""))
    return 0


def _origin(model: Path, facts: dict[str, Any] | None) -> dict[str, str]:
    """Where the weights come from: their hash, and what the run says of itself."""
    from bdh import checkpoint

    weights = model if model.is_file() else checkpoint.resolve(model) / checkpoint.WEIGHTS
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    if facts is None:
        return {"weights": f"sha256 {digest}", "training": "unknown: the model is of no run directory"}
    last = facts["commands"][-1]
    return {
        "weights": f"sha256 {digest}",
        "trained on": f"{facts['data']['name']}, {facts['data']['train']['bytes']:,} bytes, "
        f"sha256 {facts['data']['train']['sha256']}",
        "training": f"at most {facts['train']['max_steps']:,} steps, seed {facts['train']['seed']}",
        "made with": ", ".join(f"{name} {version}" for name, version in last["environment"]["packages"].items()),
        "begun": last["environment"]["date"],
    }
