"""Commands around one model: generate, chat, convert, doctor."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from bdh.cli.shared import json_text, open_model
from bdh.config import Precision
from bdh.data import Prompting, Tokenizer, read_tokenizer
from bdh.files import check_directory, check_file


def generate(
    model: Path,
    prompt: str = "\n",
    max_new_tokens: int = 500,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: tuple[str, ...] = (),
    instruct: bool = False,
    state: Path | None = None,
    save_state: Path | None = None,
    precision: Precision = "float32",
    json: bool = False,
) -> int:
    """Continue a text, token by token as it is made.

    Args:
        model: run directory, checkpoint directory or .pt file.
        prompt: text to continue; - reads it from standard input.
        max_new_tokens: how many tokens (bytes, unless trained with others) at most: the end of a document ends it.
        temperature: 0 always takes the most likely byte, 1 samples as the model believes.
        top_k: choose among the k most likely bytes only.
        top_p: choose among the fewest bytes that together have probability p.
        seed: same seed, same text.
        stop: end before the first of these strings.
        instruct: the prompt is an instruction: put it into the words that the model was fine-tuned with, print the
            answer alone, and end where it ends.
        state: what the model has read before the prompt, a file written by --save-state.
        save_state: write there what the model remembers of the prompt.
        precision: bfloat16 or int8 makes text faster on a CPU, from rounded weights and a memory in bfloat16.
        json: print prompt and text as one JSON line when done.
    """
    from bdh import checkpoint
    from bdh import generate as generation
    from bdh.chat import prompt_ids

    if save_state:
        check_file(save_state, "--save-state")
    hatchling, tokenizer = open_model(model), checkpoint.load_tokenizer(model)
    text = sys.stdin.read() if prompt == "-" else prompt
    before = checkpoint.load_state(state, hatchling) if state else None
    asked = checkpoint.load_prompting(model) if instruct else None
    if instruct and asked is None:
        raise ValueError(f"--instruct: {model} was not fine-tuned, expected a model of bdh finetune; leave it away")
    reads = prompt_ids(hatchling, tokenizer, asked, text, begins=before is None) if asked else text
    if save_state:
        checkpoint.save_state(generation.remember(hatchling, reads, before, tokenizer=tokenizer), save_state, hatchling)
    pieces = generation.stream_text(
        hatchling,
        reads,
        max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=stop,
        end=asked.end if asked else tokenizer.separator,
        tokenizer=tokenizer,
        state=before,
        precision=precision,
    )
    if json:
        print(json_text({"prompt": text, "text": "".join(pieces)}))
        return 0
    print("" if asked else text, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    return 0


def chat(
    model: Path,
    memory: Path | None = None,
    max_new_tokens: int = 500,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    json: bool = False,
) -> int:
    """Talk with a model: each line of standard input is a turn, and what was said before is in its memory.

    Args:
        model: run directory, checkpoint directory or .pt file; one of bdh finetune knows how to be asked.
        memory: keep the memory in this file: gone on with if it is there, and written when the conversation ends.
        max_new_tokens: longest answer.
        temperature: 0 always takes the most likely byte, 1 samples as the model believes.
        top_k: choose among the k most likely bytes only.
        top_p: choose among the fewest bytes that together have probability p.
        seed: same seed, same answers.
        json: print turn and answer as one JSON line.
    """
    from bdh import checkpoint
    from bdh import generate as generation
    from bdh.chat import Conversation
    from bdh.train.stopping import leaving_on_sigterm, stop_requests

    generation.check_length(max_new_tokens)
    if memory:
        check_file(memory, "--memory")
    hatchling, tokenizer = open_model(model), checkpoint.load_tokenizer(model)
    asked = checkpoint.load_prompting(model)
    if asked is None:
        asked = Prompting("short", tokenizer.separator)
        print(f"bdh: {model} was not fine-tuned and may not answer; it is asked by the template short", file=sys.stderr)
    before = checkpoint.load_state(memory, hatchling) if memory and memory.exists() else None
    sampling = generation.Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    talk = Conversation(hatchling, asked, tokenizer, state=before, sampling=sampling)
    with leaving_on_sigterm():
        try:
            for turn in _turns():
                with stop_requests() as stop, contextlib.closing(talk.reply(turn, max_new_tokens)) as pieces:
                    said = ""
                    for piece in pieces:
                        said += piece
                        print("" if json else piece, end="", flush=True)
                        if stop:
                            break
                print(json_text({"turn": turn, "answer": said}) if json else "", flush=True)
                if stop:
                    return 0 if stop[0] == "SIGTERM" else 130
        finally:
            if memory:
                with stop_requests():  # not in the middle of it
                    checkpoint.save_state(talk.state, memory, hatchling)
                print(f"bdh: {talk.state.position:,} tokens remembered in {memory}", file=sys.stderr)
    return 0


def _turns() -> Iterator[str]:
    """Lines of standard input that are not empty; a terminal is asked for them."""
    while True:
        try:
            line = input("> ") if sys.stdin.isatty() else next(sys.stdin)
        except (EOFError, StopIteration):
            return
        if line.strip():
            yield line.rstrip("\r\n")


def convert(
    source: Path,
    out: Path,
    /,
    n_layer: int | None = None,
    tokenizer: Path | None = None,
    adapter: Path | None = None,
) -> int:
    """Make a model directory of a .pt file, a sharded checkpoint, or a model and an adapter; no code in them runs.

    Args:
        source: the .pt file, official or community; or a checkpoint of bdh train --parallel fsdp or neurons, or its run
            directory; or, with an adapter, any model.
        out: directory to write.
        n_layer: number of levels, when the file does not say.
        tokenizer: the tokenizer.json that the model was trained with; by default its tokens are bytes.
        adapter: adapter.safetensors of bdh finetune --lora-rank: change the model that it was trained on, the source.
    """
    from bdh import checkpoint
    from bdh.foreign import import_checkpoint
    from bdh.lowrank import load_adapter

    check_directory(out, replaced=True)
    words: Tokenizer | None = read_tokenizer(tokenizer) if tokenizer else None
    asked = None
    if source.is_dir():
        from bdh.train import sharding  # half a second of imports

        directory = checkpoint.resolve(source)
        sharded = sharding.is_sharded(directory)
        if not sharded and adapter is None:
            raise ValueError(
                f"{directory} is no sharded checkpoint: expected a .pt file, one of --parallel fsdp or neurons, or an "
                "--adapter to change it"
            )
        model = sharding.merge(directory) if sharded else checkpoint.load(directory)
        words, asked = words or checkpoint.load_tokenizer(directory), checkpoint.load_prompting(directory)
    else:
        model = import_checkpoint(source, n_layer=n_layer)
    if words is not None and words.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"{tokenizer} has {words.vocab_size:,} tokens, the model {model.config.vocab_size:,}: "
            "give the tokenizer that it was trained with"
        )
    if adapter is not None:
        asked = load_adapter(model, adapter) or asked
    checkpoint.save(model, out, words, asked)
    print(f"{out}: {model.config.n_parameters:,} parameters, {model.config.n_layer} levels")
    return 0


def doctor(json: bool = False) -> int:
    """Show what this machine has and which paths run on it.

    Args:
        json: print as JSON.
    """
    from bdh import ops
    from bdh.train.run import environment

    facts = environment() | {"training on CPU": ops.levels_path()}
    if json:
        print(json_text(facts))
        return 0
    for name, value in facts.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        print(f"{name:18} {shown}")
    return 0
