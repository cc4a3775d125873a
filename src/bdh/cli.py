"""The command line: one subcommand is one typed function; no tensor code.

Exit codes: 0 done, 1 the work failed, 2 the user's mistake (one line on stderr), 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import functools
import json as jsonlib
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from bdh import __version__, bench, checkpoint, lens, ops, planning
from bdh import compare as comparing
from bdh import generate as generation
from bdh.arguments import FLAT, PlanArgs, TrainArgs, plan_defaults, train_defaults
from bdh.config import BDHConfig, TrainConfig
from bdh.data import ByteTokenizer, Corpus, load_corpus, spread
from bdh.data import prepare as preparation
from bdh.data.shards import read_manifest
from bdh.data.terminal import showing
from bdh.model import BDH
from bdh.parsing import parse
from bdh.train import NonFiniteError, Reporter, Run, fit
from bdh.train.run import environment, read_facts

BASELINE_BYTES = 4_096, 65_536
"""Least and most validation text that `bdh inspect` compares with; a large model reads less, to answer in a minute."""
BASELINE_WORK = 2**36

ALIASES = {"--mlp-mult": "--mlp-internal-dim-multiplier"}


def train(args: Annotated[TrainArgs, FLAT]) -> int:
    """Train a model on a text and keep everything about the run in one directory."""
    console = Console(stderr=args.json, highlight=False)
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
    facts = {"model_size": args.model_size, "text": where, "plan": planned}
    result = fit(BDH.from_seed(args.model, config.seed), corpus, config, run, Reporter(console), facts)
    if args.json:
        print(jsonlib.dumps({"run": str(run.path), **vars(result)}))
    if result.interrupted:
        say(f"stopped after step {result.step}, saved; go on with: bdh train --resume-from {run.path}")
        return 0 if result.interrupted == "SIGTERM" else 130
    say(
        f"step {result.step} of {config.max_steps} done: best validation {result.best_val_loss:.4f} nats/{unit}, "
        f"{result.seconds:.0f} s of training; model in {run.path}"
    )
    return 0


def _open_run(args: TrainArgs) -> Run:
    if args.resume_from not in (None, "auto") and args.out_dir not in (None, args.run_dir):
        raise ValueError(f"--resume-from {args.resume_from} goes on in that directory: leave --out-dir away")
    run = Run(args.run_dir)
    if run.last is None and args.resume_from not in (None, "auto"):
        raise ValueError(f"--resume-from {args.resume_from}: no checkpoint there; expected a run directory")
    if run.last is not None and args.resume_from is None:
        raise ValueError(f"{run.path} holds a run already: add --resume-from auto to go on, or give another --out-dir")
    return run


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
    hatchling, tokenizer = _open_model(model), checkpoint.load_tokenizer(model)
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
        print(_json({"prompt": text, "text": "".join(pieces)}))
        return 0
    print(text, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    return 0


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
    if top < 1 or contexts < 1:
        raise ValueError(f"--top {top} --contexts {contexts}: expected integers >= 1")
    if html and (html.is_dir() or not html.parent.is_dir()):
        raise ValueError(f"--html {html}: expected the name of a file in a directory that exists")
    hatchling = _open_model(model)
    corpus = _corpus_of(model, dataset, data)
    if not text:
        raise ValueError("the text is empty: expected at least one character")
    least, most = BASELINE_BYTES
    affordable = BASELINE_WORK // (hatchling.config.n_layer * hatchling.config.n_parameters)
    baseline = spread(corpus.validation.tobytes(), min(most, max(least, affordable)))
    found = lens.inspect_text(
        hatchling, hatchling.as_ids(text), baseline, signal=signal, telling=top, contexts=contexts
    )
    if json:
        print(_json(found.to_dict()))
    else:
        lens.print_inspection(found, Console(highlight=False))
    if html:
        lens.write_report(found, html, command=shlex.join(["bdh", *sys.argv[1:]]))
        print(f"report: {html.resolve()}", file=sys.stderr if json else sys.stdout)
    return 0


def convert(source: Path, out: Path, /, n_layer: int | None = None) -> int:
    """Turn an official or community .pt checkpoint into a model directory; no code in the file is run.

    Args:
        source: the .pt file.
        out: directory to write.
        n_layer: number of levels, when the file does not say.
    """
    model = checkpoint.import_checkpoint(source, n_layer=n_layer)
    checkpoint.save(model, out)
    print(f"{out}: {model.config.n_parameters:,} parameters, {model.config.n_layer} levels")
    return 0


def doctor(json: bool = False) -> int:
    """Show what this machine has and which paths run on it.

    Args:
        json: print as JSON.
    """
    facts = environment() | {"training on CPU": ops.levels_path()}
    if json:
        print(_json(facts))
        return 0
    for name, value in facts.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        print(f"{name:18} {shown}")
    return 0


def prepare(
    name: tyro.conf.Positional[str], settings: tyro.conf.OmitArgPrefixes[preparation.Settings], json: bool = False
) -> int:
    """Make a data set ready for training: tokens on disk, in shards that need no memory.

    Args:
        name: tinystories, alpaca, dolly, europarl, owner/name of a Hugging Face data set, or a txt, jsonl, csv or
            parquet file or a directory of such files.
        settings: how.
        json: print the manifest as one JSON line; progress goes to stderr.
    """
    console = Console(stderr=json, highlight=False)
    with showing(console) as told:
        out = preparation.prepare(name, settings, told)
    manifest, _ = read_manifest(out)
    if json:
        print(_json({"prepared": str(out), **manifest}))
        return 0
    for split, found in manifest["splits"].items():
        text = f"{split:10} {found['documents']:,} documents, {found['text_bytes']:,} bytes, {found['tokens']:,} tokens"
        console.print(text, markup=False, soft_wrap=True)
    if not manifest["tokenizer"]["lossless"]:
        print("bdh: warning: the tokenizer does not keep the text: bits per byte will be too low", file=sys.stderr)
    console.print(f"licence: {manifest['source']['licence']}", markup=False, soft_wrap=True)
    console.print(f"train on it with: bdh train --data {shlex.quote(str(out))}", markup=False, soft_wrap=True)
    return 0


def plan(args: Annotated[PlanArgs, FLAT]) -> int:
    """Say what a training will take before it is begun: parameters, memory, work, time."""
    console, errors = Console(highlight=False), Console(stderr=True)
    if args.run is not None:
        found = planning.compare(args.run)
        speeds = _speeds(found.model, found.train, found.trained, errors) if args.calibrate else {}
        speed = next(reversed(speeds.values()), None)
        if args.json:
            print(_json(found.to_dict(speed)))
        else:
            planning.print_comparison(found, speed, console)
        return 0
    say = functools.partial(errors.print, markup=False, soft_wrap=True)
    train = args.training(lambda: load_corpus(args.dataset, data=args.data, progress=say))
    needed = planning.make(args.model, train)
    speeds = _speeds(args.model, train, planning.TRAINED, errors) if args.calibrate else {}
    if args.json:
        print(_json({"plan": needed.to_dict(), "speed": {name: asdict(speed) for name, speed in speeds.items()}}))
    else:
        console.print(f"{args.size_name}: {args.model.n_neurons:,} neurons, {args.model.n_layer} levels\n")
        planning.print_plan(needed, speeds, console)
    return 0


def _speeds(
    model: BDHConfig, train: TrainConfig, trained: planning.Activity, errors: Console
) -> dict[str, planning.Speed]:
    """Time a training, or say why it is not."""
    reason = planning.why_not(model, train)
    if reason:
        errors.print(f"not timed: {reason}", markup=False)
        return {}
    with errors.status("") as status:
        return planning.calibrate(model, train, trained=trained, progress=status.update)


def run_bench(settings: tyro.conf.OmitArgPrefixes[bench.Settings], json: bool = False, plot: Path | None = None) -> int:
    """Measure this machine: this package beside the released way and beside GPT-2 of equal size.

    Args:
        settings: what to measure.
        json: print all figures with every repetition as one JSON document; tables go to stderr.
        plot: draw a bar chart to this .png, .svg or .pdf file.
    """
    bench.check(settings, plot)
    text = _corpus_of(settings.run, None, settings.data).validation.tobytes() if settings.run else None
    command = shlex.join(["bdh", *sys.argv[1:]])
    found = bench.report(settings, text, Console(stderr=json, highlight=False), command=command, plot=plot)
    if json:
        print(_json(found))
    return 0


def run_compare(settings: tyro.conf.OmitArgPrefixes[comparing.Settings], json: bool = False) -> int:
    """Train variants with several seeds on the same text and tell which are better, by how much, and how surely.

    Args:
        settings: what to compare.
        json: print all figures of every run as one JSON document; all else goes to stderr.
    """
    console = Console(stderr=json, highlight=False)
    report = settings.out_dir / "report.html"
    command = shlex.join(["bdh", *sys.argv[1:]])
    write = functools.partial(comparing.write_report, path=report)
    try:
        found = comparing.compare(settings, console, command=command, after=write)
    except comparing.Stopped as stop:
        console.print("stopped; the same command goes on", markup=False)
        return 0 if stop.args[0] == "SIGTERM" else 130
    write(found)
    comparing.print_comparison(found, console)
    console.print(f"report: {report.resolve()}", markup=False, soft_wrap=True)
    if json:
        print(_json(found.to_dict()))
    return 0


COMMANDS: dict[str, Callable[..., int]] = {
    "train": train,
    "generate": generate,
    "inspect": inspect,
    "prepare": prepare,
    "plan": plan,
    "bench": run_bench,
    "compare": run_compare,
    "convert": convert,
    "doctor": doctor,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    warnings.showwarning = lambda message, *_: print(f"bdh: warning: {message}", file=sys.stderr)
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("bdh: stopped", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has left: nothing to say
        code = 1
    except (Exception, MemoryError) as error:
        if os.environ.get("BDH_DEBUG"):
            raise
        known = isinstance(error, ValueError | OSError | NonFiniteError)
        kind = "" if known else f"{type(error).__name__}: "
        hint = "" if known else " (BDH_DEBUG=1 shows where)"
        print("bdh: " + kind + " ".join(str(error).split()) + hint, file=sys.stderr)
        code = 2 if isinstance(error, ValueError | FileNotFoundError | IsADirectoryError | PermissionError) else 1
    sys.exit(code)


def _run(argv: list[str]) -> int:
    argv = [ALIASES.get(flag, flag) + equals + value for flag, equals, value in (word.partition("=") for word in argv)]
    if argv == ["--version"]:
        print(f"bdh {__version__}")
        return 0
    makers: dict[str, Callable[[list[str]], object]] = {"train": train_defaults, "plan": plan_defaults}
    defaults = {argv[0]: {"args": makers[argv[0]](argv)}} if argv and argv[0] in makers else {}
    return parse(argv, COMMANDS, defaults)()


def _open_model(path: Path) -> BDH:
    return checkpoint.import_checkpoint(path) if path.is_file() else checkpoint.load(path)


def _corpus_of(model: Path, dataset: str | None, data: Path | None) -> Corpus:
    """Return the text to compare with: as asked for, else the one that the run was trained on."""
    in_run = model.parent.name == "checkpoints"
    facts = None if dataset or data else read_facts(model.resolve().parents[1] if in_run else model)
    if facts is not None:
        dataset, data = facts["text"]["dataset"], facts["text"]["data"]
    # what is shown of texts, and what is measured on them, are bytes
    if checkpoint.load_tokenizer(model).name != ByteTokenizer.name:
        raise ValueError(f"{model} was trained on tokens that are not bytes: expected a byte model")
    corpus = load_corpus(dataset or "shakespeare", data=data, progress=lambda line: print(line, file=sys.stderr))
    if corpus.tokenizer.name != ByteTokenizer.name:
        raise ValueError(f"{corpus.name} is prepared as tokens that are not bytes: expected a text of bytes")
    return corpus


def _json(value: Any) -> str:
    return jsonlib.dumps(value, ensure_ascii=False, allow_nan=False)
