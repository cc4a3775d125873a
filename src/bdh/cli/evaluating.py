"""Commands that say how good a model is: eval."""

from __future__ import annotations

import sys
from pathlib import Path

import tyro
from rich.console import Console

from bdh import checkpoint, evaluation
from bdh.cli.shared import json_text, open_model, run_facts
from bdh.train import pick_device


def run_eval(
    model: Path, settings: tyro.conf.OmitArgPrefixes[evaluation.Settings], device: str = "auto", json: bool = False
) -> int:
    """Score a model: bits per byte of a text, by position too, recall of facts, multiple choice.

    Args:
        model: run directory, checkpoint directory or .pt file.
        settings: on what, and how.
        device: cpu, cuda, cuda:N, mps, or auto (the fastest one present).
        json: print the findings as one JSON document; all else goes to stderr.
    """
    console, shown = Console(stderr=json, highlight=False), Console(stderr=True, highlight=False)
    where = pick_device(device)
    hatchling, tokenizer = open_model(model).to(where), checkpoint.load_tokenizer(model)
    if model.is_file() and hatchling.config.vocab_size != tokenizer.vocab_size:
        print(
            f"bdh: warning: {model} does not say what its {hatchling.config.vocab_size:,} tokens are; the first 256 "
            "are taken for bytes (other tokens: bdh convert --tokenizer)",
            file=sys.stderr,
        )
    found = evaluation.evaluate(hatchling, tokenizer, settings, run_facts(model), console, shown)
    console.print(f"{found['seconds']:.1f} s", markup=False)
    if json:
        print(json_text({"model": str(model), **found}))
    return 0
