"""Commands around one model: generate, convert, doctor."""

from __future__ import annotations

import sys
from pathlib import Path

from bdh import checkpoint, ops
from bdh import generate as generation
from bdh.cli.shared import json_text, open_model
from bdh.train.run import environment


def generate(
    model: Path,
    prompt: str = "\n",
    max_new_tokens: int = 500,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: tuple[str, ...] = (),
    state: Path | None = None,
    save_state: Path | None = None,
    precision: ops.Precision = "float32",
    json: bool = False,
) -> int:
    """Continue a text, token by token as it is made.

    Args:
        model: run directory, checkpoint directory or .pt file.
        prompt: text to continue; - reads it from standard input.
        max_new_tokens: how many tokens (bytes, unless trained with others) to make.
        temperature: 0 always takes the most likely byte, 1 samples as the model believes.
        top_k: choose among the k most likely bytes only.
        top_p: choose among the fewest bytes that together have probability p.
        seed: same seed, same text.
        stop: end before the first of these strings.
        state: what the model has read before the prompt, a file written by --save-state.
        save_state: write there what the model remembers of the prompt.
        precision: bfloat16 or int8 makes text faster on a CPU, from rounded weights and a memory in bfloat16.
        json: print prompt and text as one JSON line when done.
    """
    hatchling, tokenizer = open_model(model), checkpoint.load_tokenizer(model)
    text = sys.stdin.read() if prompt == "-" else prompt
    before = checkpoint.load_state(state, hatchling) if state else None
    if save_state:
        checkpoint.save_state(generation.remember(hatchling, text, before, tokenizer=tokenizer), save_state, hatchling)
    pieces = generation.stream_text(
        hatchling,
        text,
        max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=stop,
        tokenizer=tokenizer,
        state=before,
        precision=precision,
    )
    if json:
        print(json_text({"prompt": text, "text": "".join(pieces)}))
        return 0
    print(text, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    return 0


def convert(source: Path, out: Path, /, n_layer: int | None = None) -> int:
    """Turn a .pt checkpoint, official or community, or a sharded one into a model directory; none of its code is run.

    Args:
        source: the .pt file; or a checkpoint of bdh train --parallel fsdp, or its run directory.
        out: directory to write.
        n_layer: number of levels, when the file does not say.
    """
    tokenizer = None
    if source.is_dir():
        from bdh.train import sharding  # half a second of imports

        directory = checkpoint.resolve(source)
        if not sharding.is_sharded(directory):
            raise ValueError(f"{directory} is no sharded checkpoint: expected a .pt file, or one of --parallel fsdp")
        model, tokenizer = sharding.merge(directory), checkpoint.load_tokenizer(directory)
    else:
        model = checkpoint.import_checkpoint(source, n_layer=n_layer)
    checkpoint.save(model, out, tokenizer)
    print(f"{out}: {model.config.n_parameters:,} parameters, {model.config.n_layer} levels")
    return 0


def doctor(json: bool = False) -> int:
    """Show what this machine has and which paths run on it.

    Args:
        json: print as JSON.
    """
    facts = environment() | {"training on CPU": ops.levels_path()}
    if json:
        print(json_text(facts))
        return 0
    for name, value in facts.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        print(f"{name:18} {shown}")
    return 0
