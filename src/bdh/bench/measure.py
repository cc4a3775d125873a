"""Run the cases: every contender in a process of its own, asked in turn, one at a time."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bdh import checkpoint
from bdh.bench.asking import Asking
from bdh.bench.contenders import CONTENDERS
from bdh.bench.loss import corpus_of
from bdh.bench.pool import Pool
from bdh.bench.results import Cell, Column, Table, Timing
from bdh.bench.settings import TIMED, Case, Point, Settings, Work, choose
from bdh.bench.subject import Subject
from bdh.bench.worker import Setup
from bdh.config import preset

LONGEST_CALL = 5.0
"""In `length`, a contender sits out what will probably take longer than this many seconds per call."""
LENGTH_TITLES: dict[Work, str] = {"train": "length of a training text", "prefill": "length of a prompt"}


def run(settings: Settings, text: bytes | None = None, console: Console | None = None) -> Generator[Table]:
    """Measure what was asked for, and yield each table when it is complete.

    Args:
        settings: what to measure.
        text: what the models read; None for random bytes.
        console: shows progress; None: nobody looks.

    Raises:
        ValueError: see `check`.
    """
    check(settings)
    for name, cases in settings.models().items():
        with tempfile.TemporaryDirectory(prefix="bdh-bench-") as folder:
            subject = Subject.make(name, settings, text)
            subject.save(Path(folder))
            with Pool(_setups(subject, cases, settings, Path(folder))) as pool:
                bench = _Bench(name, subject, settings, pool, console or Console(quiet=True))
                for case in cases:
                    yield from bench.tables(case)


def check(settings: Settings) -> None:
    """Look whether everything is there, before anything is measured.

    Raises:
        ValueError: no such contender, none that takes part in a case, or the text of `loss` or the trained model is
            not there or does not do.
    """
    for name in settings.contenders:
        choose("--contenders", name, tuple(CONTENDERS))
    for case in settings.cases:
        taking_part = [name for name, contender in CONTENDERS.items() if case in contender.cases]
        if settings.contenders and not set(settings.contenders) & set(taking_part):
            wanted = " ".join(settings.contenders)
            raise ValueError(f"--contenders {wanted}: expected one or more of {', '.join(taking_part)} for {case}")
    if settings.run is not None:
        if not settings.run.exists():
            known = "planted, init, or the directory of a trained model"
            raise ValueError(f"--density {settings.density}: expected {known}")
        checkpoint.load(settings.run)
    for size in (size for size, cases in settings.models().items() if "loss" in cases):
        corpus_of(settings.data).require(settings.training(size).block_size)


def _setups(subject: Subject, cases: Sequence[Case], settings: Settings, folder: Path) -> dict[str, Setup]:
    config = subject.model.config
    # a peer with a window is made for what everybody is asked; in `length` it may sit out
    points = [point for case in cases if case not in ("length", "loss") for point in settings.points(case, config)]
    most = max((point.tokens for point in points), default=1)
    threads = torch.get_num_threads()
    return {name: Setup(name, folder, threads, most, settings.seed) for name in CONTENDERS}


class _Bench:
    """One model's share of the run."""

    def __init__(self, model: str, subject: Subject, settings: Settings, pool: Pool, console: Console) -> None:
        self.model, self.subject, self.settings, self.pool, self.console = model, subject, settings, pool, console

    def tables(self, case: Case) -> Iterator[Table]:
        if case == "loss":
            train = self.settings.training(self.model)
            yield self._table(case, case, [Point("train", train.batch_size, train.block_size)])
            return
        points = self.settings.points(case, self.subject.model.config)
        titles: dict[Work, str] = LENGTH_TITLES if case == "length" else {points[0].work: case}
        for work, title in titles.items():
            if self._names(case, work):
                yield self._table(case, title, [point for point in points if point.work == work])

    def _table(self, case: Case, title: str, points: Sequence[Point]) -> Table:
        """Ask every contender at every point."""
        names = self._names(case, points[0].work)
        columns: list[Column] = []
        about: dict[str, dict[str, Any]] = {}
        with _progress(self.console) as progress:
            turns = self.settings.repeats + 2 if case in TIMED else 1
            task = progress.add_task("", total=len(points) * len(names) * turns)

            def turn(name: str) -> None:
                progress.update(task, description=f"{self.model} {title}: {name}", advance=1, refresh=True)

            for point in points:
                density = None if case == "loss" else self.subject.density(point)
                cells = _sitting_out(names, columns, point) if case == "length" else {}
                asking = Asking(self.pool, self.settings, turn)
                asked = [name for name in names if name not in cells]
                if case == "loss":
                    cells |= asking.learning(asked, preset(self.model), self.settings.training(self.model))
                else:
                    cells |= (asking.memory if case == "memory" else asking.timings)(asked, point)
                columns.append(Column(point, density, {name: cells[name] for name in names}))
                about |= asking.about
        return Table(case, title, self.model, tuple(columns), about)

    def _names(self, case: Case, work: Work) -> list[str]:
        """Contenders that were asked for and have a form of their own."""
        needed = {case, work} if case == "length" else {case}
        wanted = self.settings.contenders or tuple(CONTENDERS)
        return [name for name, contender in CONTENDERS.items() if name in wanted and needed <= set(contender.cases)]


def _sitting_out(names: Sequence[str], columns: Sequence[Column], point: Point) -> dict[str, Cell]:
    """Return who does not take part at this length, with the reason: it would take too long, or failed before."""
    cells: dict[str, Cell] = {}
    for name in names:
        found = [(column.point.tokens, column.cells[name]) for column in columns]
        if found and isinstance(found[-1][1], str):
            cells[name] = found[-1][1]
            continue
        times = [(tokens, cell.cost) for tokens, cell in found if isinstance(cell, Timing)]
        seconds = expected_seconds(times, point.tokens)
        if seconds > LONGEST_CALL:
            cells[name] = f"sits out from {point.tokens:,} tokens on: about {seconds:,.0f} s per call"
    return cells


def expected_seconds(times: Sequence[tuple[int, float]], tokens: int) -> float:
    """Extrapolate (tokens, seconds) by the power law through the last two, linear to quadratic; from one, quadratic.

    Examples:
        >>> expected_seconds([(100, 1.0), (200, 2.0)], 800), expected_seconds([(100, 1.0)], 200)
        (8.0, 4.0)
    """
    if not times:
        return 0.0
    (last, seconds), power = times[-1], 2.0
    if len(times) > 1:
        before, earlier = times[-2]
        power = math.log(seconds / earlier) / math.log(last / before)
    return float(seconds * (tokens / last) ** min(2.0, max(1.0, power)))


def _progress(console: Console) -> Progress:
    """A bar that goes when the table comes; nothing where nobody looks. It stands still while somebody is measured."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        auto_refresh=False,
        disable=not console.is_terminal,
    )
