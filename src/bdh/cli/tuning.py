"""Commands that teach a model to answer: finetune, sft."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Annotated

from rich.console import Console

from bdh.arguments import FLAT, FinetuneArgs, SftArgs
from bdh.cli.shared import json_text, open_model, run_facts
from bdh.data import load_examples
from bdh.data.terminal import showing

if TYPE_CHECKING:
    from bdh.train import World

SHOWN = 3
"""Held-out prompts whose answers are shown."""


def finetune(args: Annotated[FinetuneArgs, FLAT]) -> int:
    """Teach a trained model to answer instructions: only answers are learned, each example from an empty memory.

    Several processes share each batch out when torchrun starts them: torchrun --nproc-per-node 2 -m bdh finetune ...
    """
    from bdh.train import NonFiniteError, joined

    with joined() as world:
        try:
            return _finetune(args, world)
        except NonFiniteError:
            if world.first:
                raise
            return 1  # all ranks know the same, one says it


def _finetune(args: FinetuneArgs, world: World) -> int:
    from bdh import checkpoint
    from bdh import finetune as tuning
    from bdh.lowrank import FILE as ADAPTER
    from bdh.lowrank import add_low_rank
    from bdh.train import Reporter, Run

    console = Console(stderr=args.json, highlight=False, quiet=not world.first)
    say = functools.partial(console.print, markup=False, soft_wrap=True)
    config, run = args.train, Run(args.run_dir)
    if run.last is not None and not args.resume:
        raise ValueError(f"{run.path} holds a run already: add --resume to go on, or give another --out-dir")
    model = open_model(args.model)
    before = run_facts(args.model)
    base = tuning.base_text(args.replay, before)
    with world.first_before_others(), showing(console) as told:
        directory = tuning.prepared_examples(args.dataset, args.data, args.template, args.model, told)
    corpus = load_examples(
        directory,
        config.block_size,
        max_examples=args.max_examples,
        replay=base if args.replay else None,
        replay_share=args.replay_share,
    )
    tokenizer = checkpoint.load_tokenizer(args.model)
    if tokenizer.definition() != corpus.tokenizer.definition():
        raise ValueError(f"{directory} has other tokens than {args.model}: prepare it with the model's --tokenizer")
    trained = model.config.n_parameters
    if args.lora_rank is not None:
        trained = add_low_rank(model, args.lora_rank, args.lora_alpha, seed=config.seed)
    counts, padding = corpus.info["examples"], tuning.padding(corpus, config)
    per_epoch = corpus.order(config).passes_per_epoch
    assert corpus.prompting is not None
    say(
        f"{trained:,} of {model.config.n_parameters:,} parameters learn {counts['learned']:,} examples "
        f"{config.max_steps * config.grad_acc_steps / per_epoch:.1f} times, {counts['held_out']:,} are held out; at "
        f"{config.block_size} tokens {counts['cut']:,} are cut and {counts['left_away']:,} left away; template "
        f"{corpus.prompting.template}"
    )
    replayed = f", {100 * args.replay_share:.0f} % of the loss is replay of {args.replay}" if args.replay else ""
    say(f"{100 * padding:.1f} % of the rows is padding{replayed}; run in {run.path}")
    tuned = tuning.finetune(
        model,
        corpus,
        config,
        run,
        Reporter(console),
        {"text": before["text"] if before else None, "tuned_from": str(args.model.resolve()), "examples": corpus.info},
        base=base,
        base_block=before["train"]["block_size"] if before else None,
        world=world,
    )
    if args.json and world.first:
        print(json_text({"run": str(run.path), "data": str(directory), "padding": padding, **tuned.to_dict()}))
    elif world.first:
        answering = checkpoint.load(run.path)
        asked = tuning.answers(answering, tokenizer, list(corpus.held_out[:SHOWN]), corpus.end)
        for prompt, expected, said in asked:
            say(f"\n{prompt.rstrip()}\n> {said}\n(expected: {expected})")
        say("")
    say(f"held-out answers: {tuned.answer_bits[0]:.3f} -> {tuned.answer_bits[1]:.3f} bits/byte")
    if tuned.base_bits is None or tuned.cost is None:
        say("what it forgets was not measured: no text of its training is known; give one with --replay")
    else:
        say(
            f"base text: {tuned.base_bits[0]:.4f} -> {tuned.base_bits[1]:.4f} bits/byte, cost {100 * tuned.cost:+.1f} %"
        )
    result = tuned.result
    if result.interrupted:
        say(f"stopped after step {result.step}, saved in {run.path}")
        return 0 if result.interrupted == "SIGTERM" else 130
    if args.lora_rank is not None:
        say(f"the changes alone: {checkpoint.resolve(run.path) / ADAPTER}")
    say(f"step {result.step} done in {result.seconds:.0f} s of training; talk to it with: bdh chat --model {run.path}")
    return 0


def sft(args: Annotated[SftArgs, FLAT]) -> int:
    """Fine-tune on a few examples, for a first impression.

    Everything else is as in bdh finetune, whose flags it has.
    """
    return finetune(args)
