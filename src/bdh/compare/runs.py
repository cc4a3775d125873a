"""The runs of a comparison, seed by seed, so that whatever else the machine does meets all variants alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from bdh import files
from bdh.bench.machine import machine
from bdh.compare.peer import fit_peer, make_peer
from bdh.compare.plan import Entry, make_plan
from bdh.compare.results import FINISHED, Comparison, Contender, read_run
from bdh.compare.settings import Settings
from bdh.compare.variants import parse_variants
from bdh.data import Corpus, load_corpus
from bdh.model import BDH
from bdh.planning.terminal import duration
from bdh.train import NonFiniteError, Reporter, Result, Run, fit
from bdh.train.run import read_facts


class _Brief(Reporter):
    """Says no more of an evaluation than its loss: there are many runs, and the report shows the rest."""

    def evaluation(self, record: dict[str, Any], init: dict[str, list[float]]) -> None:
        self.note(f"step {record['step']}: validation {record['val_loss']:.4f}{'  best' if record['best'] else ''}")


class Stopped(Exception):  # noqa: N818 - not an error
    """A signal asked a run to stop; what was done is kept."""


def compare(
    settings: Settings,
    console: Console | None = None,
    *,
    command: str = "",
    corpus: Corpus | None = None,
    after: Callable[[Comparison], object] | None = None,
) -> Comparison:
    """Train every variant with every seed, or what is left of that, and return what came out.

    Args:
        settings: what to compare.
        console: where progress goes.
        command: what was typed, for the record.
        corpus: the text; None: the one that the settings name.
        after: called with what there is so far, whenever a run has ended.

    Raises:
        ValueError: the settings make no sense, or their directory holds another comparison.
        Stopped: a signal came; the argument is its name.
    """
    console = console or Console(highlight=False)

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    seeds = settings.seed_list
    variants = parse_variants(settings.variants, settings.model_size)
    corpus = corpus or load_corpus(settings.corpus_name, data=settings.data, progress=say)
    entries = make_plan(settings, variants, corpus, say)
    plan = [(seed, entry) for seed in seeds for entry in entries]
    for entry in entries:
        taken = entry.train.max_steps * entry.seconds_per_step
        say(f"{entry.variant.name}: {entry.parameters:,} parameters, {entry.train.max_steps:,} steps of about "
            f"{duration(entry.seconds_per_step)}, {duration(taken)} per run")  # fmt: skip
    left = [(seed, entry) for seed, entry in plan if not (_path(settings, entry, seed) / FINISHED).is_file()]
    expected = sum(entry.train.max_steps * entry.seconds_per_step for _, entry in left)
    say(f"{len(left)} of {len(plan)} runs to do, about {duration(expected)} of training")
    facts = {
        "model_size": settings.model_size,
        "text": {"dataset": settings.corpus_name, "data": str(settings.data.resolve()) if settings.data else None},
    }
    for number, (seed, entry) in enumerate(left, start=1):
        say(f"\nrun {number} of {len(left)}: {entry.variant.name}, seed {seed}")
        _train(entry, seed, corpus, _path(settings, entry, seed), _Brief(console), facts)
        if after is not None:
            after(gather(settings, entries, corpus, command))
    return gather(settings, entries, corpus, command)


def _path(settings: Settings, entry: Entry, seed: int) -> Path:
    return settings.out_dir / entry.variant.name / f"seed-{seed}"


def _train(entry: Entry, seed: int, corpus: Corpus, path: Path, reporter: Reporter, facts: dict[str, Any]) -> None:
    train, failed = replace(entry.train, seed=seed), None
    try:
        if entry.variant.peer:
            run = Run(path)
            with run.alone():
                result = fit_peer(make_peer(entry.variant.model, train), corpus, train, run, reporter)
        else:
            result = fit(BDH.from_seed(entry.variant.model, seed), corpus, train, Run(path), reporter, facts)
    except NonFiniteError as error:
        # one that diverges is a finding too, and no reason to lose the others
        reporter.note(str(error))
        failed, result = str(error), Result(0, 0.0, 0.0, None, 0.0)
    if result.interrupted:
        raise Stopped(result.interrupted)
    end = {"step": result.step, "seconds": result.seconds, "failed": failed}
    files.write_text(path / FINISHED, json.dumps(end) + "\n")


def gather(settings: Settings, entries: list[Entry], corpus: Corpus, command: str) -> Comparison:
    """Return what the finished runs of a comparison tell.

    Args:
        settings: what is compared.
        entries: what takes part.
        corpus: the text.
        command: what was typed.

    Raises:
        ValueError: a run directory is damaged.
    """
    contenders, machines = [], set()
    for entry in entries:
        runs = []
        for seed in settings.seed_list:
            path = _path(settings, entry, seed)
            found = read_run(path, seed)
            if found is not None:
                runs.append(found)
                machines |= _machines(path)
        train = {name: value for name, value in entry.train.to_dict().items() if name != "seed"}
        name = entry.variant.name
        contenders.append(Contender(name, entry.parameters, entry.about, train, entry.seconds_per_step, tuple(runs)))
    told = {
        "text": corpus.name,
        "training_bytes": len(corpus.train),
        "validation_bytes": len(corpus.validation),
        "model_size": settings.model_size,
        "seeds": list(settings.seed_list),
    }
    return Comparison(tuple(contenders), settings.minutes, told, machine(), len(machines), command)


def _machines(path: Path) -> set[tuple[str, ...]]:
    facts = read_facts(path)
    used = [command["environment"] for command in facts["commands"]] if facts else []
    return {tuple(str(where[key]) for key in ("platform", "cpu", "cores", "threads", "gpu")) for where in used}
