"""Commands that teach a model to answer: finetune, sft."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Annotated

from rich.console import Console

from bdh.arguments import FLAT, FinetuneArgs, SftArgs
from bdh.cli.shared import json_text, on_all_ranks, open_model, run_facts
from bdh.config import TrainConfig
from bdh.data import ExampleCorpus, load_examples
from bdh.data.terminal import showing

if TYPE_CHECKING:
    from bdh.finetune import Tuned
    from bdh.train import World

REPLAY_SHARE, LORA_ALPHA = 0.5, 16.0
"""What holds where --replay or --lora-rank is given without them."""
SHOWN = 3
"""Held-out prompts whose answers are shown."""


def finetune(args: Annotated[FinetuneArgs, FLAT]) -> int:
    """Teach a trained model to answer instructions: only answers are learned, each example from an empty memory.

    Several processes share each batch out when torchrun starts them: torchrun --nproc-per-node 2 -m bdh finetune ...
    """
    return on_all_ranks(functools.partial(_finetune, args))


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
    share = REPLAY_SHARE if args.replay_share is None else args.replay_share
    with world.first_before_others(), showing(console) as told:
        directory = tuning.prepared_examples(args.dataset, args.data, args.template, args.model, told)
    corpus = load_examples(
        directory,
        config.block_size,
        max_examples=args.max_examples,
        replay=base if args.replay else None,
        replay_share=share,
    )
    tokenizer = checkpoint.load_tokenizer(args.model)
    if tokenizer.definition() != corpus.tokenizer.definition():
        raise ValueError(f"{directory} has other tokens than {args.model}: prepare it with the model's --tokenizer")
    trained = model.config.n_parameters
    if args.lora_rank is not None:
        alpha = LORA_ALPHA if args.lora_alpha is None else args.lora_alpha
        trained = add_low_rank(model, args.lora_rank, alpha, seed=config.seed)
    padding = tuning.padding(corpus, config)
    say(f"{trained:,} of {model.config.n_parameters:,} parameters learn {_told_of(corpus, config)}")
    replayed = f", {100 * share:.0f} % of the loss is replay of {args.replay}" if args.replay else ""
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
    say(_told_of_cost(tuned))
    result = tuned.result
    if result.interrupted:
        say(f"stopped after step {result.step}, saved in {run.path}")
        return 0 if result.interrupted == "SIGTERM" else 130
    if args.lora_rank is not None:
        say(f"the changes alone: {checkpoint.resolve(run.path) / ADAPTER}")
    say(f"step {result.step} done in {result.seconds:.0f} s of training; talk to it with: bdh chat --model {run.path}")
    return 0


def _told_of(corpus: ExampleCorpus, config: TrainConfig) -> str:
    counts, per_epoch = corpus.info["examples"], corpus.order(config).passes_per_epoch
    assert corpus.prompting is not None
    return (
        f"{counts['learned']:,} examples {config.max_steps * config.grad_acc_steps / per_epoch:.1f} times, "
        f"{counts['held_out']:,} are held out; at {config.block_size} tokens {counts['cut']:,} are cut and "
        f"{counts['left_away']:,} left away; template {corpus.prompting.template}"
    )


def _told_of_cost(tuned: Tuned) -> str:
    if tuned.base_bits is None or tuned.cost is None:
        return "what it forgets was not measured: no text of its training is known; give one with --replay"
    before, after = tuned.base_bits
    return f"base text: {before:.4f} -> {after:.4f} bits/byte, cost {100 * tuned.cost:+.1f} %"


def sft(args: Annotated[SftArgs, FLAT]) -> int:
    """Fine-tune on a few examples, for a first impression.

    Everything else is as in bdh finetune, whose flags it has.
    """
    return finetune(args)
