"""Commands that train, or say what a training takes: train, pretrain, plan."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console

from bdh.arguments import FLAT, PlanArgs, TrainArgs
from bdh.cli.shared import json_text, on_all_ranks
from bdh.config import BDHConfig, TrainConfig
from bdh.data import ByteTokenizer, load_corpus

if TYPE_CHECKING:
    from bdh import planning
    from bdh.train import Run, World
    from bdh.train.loggers import Logger


def train(args: Annotated[TrainArgs, FLAT]) -> int:
    """Train a model on a text and keep everything about the run in one directory.

    Several processes share each batch out when torchrun starts them: torchrun --nproc-per-node 2 -m bdh train ...
    """
    how: dict[str, Any] = {"parallel": args.parallel, "ranks_per_model": args.ranks_per_model}
    return on_all_ranks(functools.partial(_train, args), **how)


def _train(args: TrainArgs, world: World) -> int:
    from bdh import planning
    from bdh.model import BDH
    from bdh.train import Reporter, fit

    console = Console(stderr=args.json, highlight=False, quiet=not world.first)
    say = functools.partial(console.print, markup=False, soft_wrap=True)
    run = _open_run(args)
    corpus = load_corpus(args.dataset, data=args.data, progress=say)
    config = args.training(lambda: corpus)
    unit = "byte" if corpus.tokenizer.name == ByteTokenizer.name else "token"
    say(
        f"{args.size_name}: {args.model.n_parameters:,} parameters, {args.model.n_neurons:,} neurons, "
        f"{args.model.n_layer} levels; {len(corpus.train):,} {unit}s of {corpus.name} to learn, "
        f"{len(corpus.validation):,} to validate; run in {run.path}"
    )
    data = str(args.data.resolve()) if args.data else corpus.info.get("prepared")
    where = {"dataset": args.dataset, "data": data}
    planned = planning.make(args.model, config).to_dict()
    shared = {"processes": world.size, "parallel": args.parallel, "ranks_per_model": args.ranks_per_model}
    facts = {"model_size": args.model_size, "text": where, "plan": planned, "shared": shared}
    run.loggers = _loggers(args, say) if world.first else ()
    if world.size == 1 and args.parallel != "data":
        say(f"one process alone shares nothing out: --parallel {args.parallel} is for those that torchrun starts")
    with contextlib.ExitStack() as stack:
        for logger in run.loggers:
            stack.callback(logger.close)
        result = fit(BDH.from_seed(args.model, config.seed), corpus, config, run, Reporter(console), facts, world)
    if args.json and world.first:
        print(json_text({"run": str(run.path), **vars(result)}))
    if result.interrupted:
        each = os.environ.get("LOCAL_WORLD_SIZE", world.size)
        start = "bdh" if world.size == 1 else f"torchrun --nproc-per-node {each} -m bdh"
        say(f"stopped after step {result.step}, saved; go on with: {start} train --resume-from {run.path}")
        return 0 if result.interrupted == "SIGTERM" else 130
    in_parts = world.size > 1 and args.parallel != "data"
    say(
        f"step {result.step} of {config.max_steps} done: best validation {result.best_val_loss:.4f} nats/{unit}, "
        f"{result.seconds:.0f} s of training; "
        + (f"for a model: bdh convert {run.path} DIRECTORY" if in_parts else f"model in {run.path}")
    )
    return 0


def pretrain(args: Annotated[TrainArgs, FLAT]) -> int:
    """Train as the paper does: documents in order, their memory carried on, linear decay, adaptive clipping.

    Everything else is as in bdh train, whose flags it has.
    """
    return train(args)


def _open_run(args: TrainArgs) -> Run:
    from bdh.train import Run

    if args.resume_from not in (None, "auto") and args.out_dir not in (None, args.run_dir):
        raise ValueError(f"--resume-from {args.resume_from} goes on in that directory: leave --out-dir away")
    run = Run(args.run_dir)
    if not run.kept() and args.resume_from not in (None, "auto"):
        raise ValueError(f"--resume-from {args.resume_from}: no checkpoint there; expected a run directory")
    if run.kept() and args.resume_from is None:
        raise ValueError(f"{run.path} holds a run already: add --resume-from auto to go on, or give another --out-dir")
    return run


def _loggers(args: TrainArgs, say: Callable[[str], None]) -> list[Logger]:
    from bdh.train.loggers import TensorBoard, WandB

    mode = args.wandb_mode or os.environ.get("WANDB_MODE") or "online"
    named = {
        "--wandb-entity": args.wandb_entity,
        "--wandb-run-name": args.wandb_run_name,
        "--wandb-mode": args.wandb_mode if args.wandb_mode != "disabled" else None,
    }
    lonely = [flag for flag, value in named.items() if value is not None]
    if lonely and args.wandb_project is None:
        raise ValueError(f"{lonely[0]}: expected a --wandb-project beside it; name one, or leave it away")
    loggers: list[Logger] = [TensorBoard(args.run_dir / "tensorboard")] if args.tensorboard else []
    if args.wandb_project is not None and mode != "disabled":
        name = args.wandb_run_name
        loggers.append(WandB(args.run_dir, args.wandb_project, args.wandb_entity, name, mode, say))
    return loggers


def plan(args: Annotated[PlanArgs, FLAT]) -> int:
    """Say what a training will take before it is begun: parameters, memory, work, time."""
    from bdh import planning

    console, errors = Console(highlight=False), Console(stderr=True)
    if args.run is not None:
        found = planning.compare(args.run)
        speeds = _speeds(found.model, found.train, found.trained, errors) if args.calibrate else {}
        speed = next(reversed(speeds.values()), None)
        if args.json:
            print(json_text(found.to_dict(speed)))
        else:
            planning.print_comparison(found, speed, console)
        return 0
    say = functools.partial(errors.print, markup=False, soft_wrap=True)
    train = args.training(lambda: load_corpus(args.dataset, data=args.data, progress=say))
    if args.devices != 1:
        each = planning.on_devices(args.model, train, args.devices, args.parallel, args.ranks_per_model)
        if args.json:
            print(json_text({"devices": each.to_dict()}))
        else:
            console.print(f"{args.size_name}: {args.model.n_parameters:,} parameters\n")
            planning.print_devices(each, console)
        return 0
    needed = planning.make(args.model, train)
    speeds = _speeds(args.model, train, planning.TRAINED, errors) if args.calibrate else {}
    if args.json:
        steps = {"max_steps": train.max_steps, "tokens_per_step": train.tokens_per_step}
        timed = {name: asdict(speed) for name, speed in speeds.items()}
        print(json_text({**steps, "plan": needed.to_dict(), "speed": timed}))
    else:
        console.print(f"{args.size_name}: {args.model.n_neurons:,} neurons, {args.model.n_layer} levels")
        console.print(f"{train.max_steps:,} steps of {train.tokens_per_step:,} tokens\n")
        planning.print_plan(needed, speeds, console)
    return 0


def _speeds(
    model: BDHConfig, train: TrainConfig, trained: planning.Activity, errors: Console
) -> dict[str, planning.Speed]:
    """Time a training, or say why it is not."""
    from bdh import planning

    reason = planning.why_not(model, train)
    if reason:
        errors.print(f"not timed: {reason}", markup=False)
        return {}
    with errors.status("") as status:
        return planning.calibrate(model, train, trained=trained, progress=status.update)
