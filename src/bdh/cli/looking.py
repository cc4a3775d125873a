"""Commands that look into a model: inspect."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console

from bdh.cli.shared import corpus_of, json_text, open_model, window_of
from bdh.data import Corpus, spread
from bdh.files import check_file

if TYPE_CHECKING:
    from bdh.model import BDH

BASELINE_BYTES = 4_096, 65_536
"""Least and most validation text that `bdh inspect` compares with; a large model reads less, to answer in a minute."""
BASELINE_WORK = 2**36


def baseline_of(model: BDH, corpus: Corpus) -> bytes:
    """Return as much validation text as the model reads in about a minute."""
    least, most = BASELINE_BYTES
    affordable = BASELINE_WORK // (model.config.n_layer * model.config.n_parameters)
    return spread(corpus.validation.tobytes(), min(most, max(least, affordable)))


def inspect(
    model: Path,
    text: str = "To be or not to be",
    top: int = 8,
    contexts: int = 5,
    signal: Literal["x_sparse", "y_sparse", "xy_sparse"] = "x_sparse",
    dataset: str | None = None,
    data: Path | None = None,
    html: Path | None = None,
    json: bool = False,
) -> int:
    """Show which neurons fire for a text, and what else in the validation text drives them.

    Args:
        model: run directory, checkpoint directory or .pt file.
        text: what the model reads.
        top: how many of the most telling neurons to show.
        contexts: how many contexts to show for each of them.
        signal: activity of the neurons (x_sparse), their gate (y_sparse), or the product that is written (xy_sparse).
        dataset: text to compare with; by default the one that the model was trained on.
        data: a file or directory of text to compare with instead.
        html: write a self-contained report there.
        json: print the findings as JSON.
    """
    from bdh import lens

    if top < 1 or contexts < 1:
        raise ValueError(f"--top {top} --contexts {contexts}: expected integers >= 1")
    if html:
        check_file(html, "--html")
    hatchling = open_model(model)
    corpus = corpus_of(model, dataset, data)
    if not text:
        raise ValueError("the text is empty: expected at least one character")
    baseline = baseline_of(hatchling, corpus)
    found = lens.inspect_text(
        hatchling,
        hatchling.as_ids(text),
        baseline,
        signal=signal,
        telling=top,
        contexts=contexts,
        window=window_of(model),
    )
    if json:
        print(json_text(found.to_dict()))
    else:
        lens.print_inspection(found, Console(highlight=False))
    if html:
        lens.write_report(found, html, command=shlex.join(["bdh", *sys.argv[1:]]))
        print(f"report: {html.resolve()}", file=sys.stderr if json else sys.stdout)
    return 0
