"""Ask the contenders about one point, in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bdh.bench.pool import Failed, Pool, Worker
from bdh.bench.protocol import Declined
from bdh.bench.results import Cell, Learning, Memory, Timing
from bdh.bench.settings import Point, Settings
from bdh.config import BDHConfig, TrainConfig


class Asking:
    """Puts questions to the workers; every contender ends with a cell: figures, or why there are none.

    Args:
        pool: the workers.
        settings: how often to ask, and how long to wait.
        turn: called with the name of whoever is asked next.
    """

    def __init__(self, pool: Pool, settings: Settings, turn: Callable[[str], None]) -> None:
        self._pool, self._settings, self._turn = pool, settings, turn
        self._cells: dict[str, Cell] = {}
        self.about: dict[str, dict[str, Any]] = {}
        """Parameters and shape of those that began."""

    def timings(self, names: Sequence[str], point: Point) -> dict[str, Cell]:
        """Time the repetitions in turn, so that a disturbance of the machine meets all contenders alike."""
        self._pool.start(names)
        for name in names:
            self._try(name, Worker.wait)  # nobody is measured while another begins
        for name in names:
            self._ask(name, "warm_up", point=point)
        answers: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for _ in range(self._settings.repeats):
            for name in names:
                if answer := self._ask(name, "measure"):
                    answers[name].append(answer)
        for name in names:
            if name not in self._cells:
                seconds = tuple(answer["seconds"] for answer in answers[name])
                self._cells[name] = Timing(seconds, max(answer["peak"] for answer in answers[name]))
        return self._cells

    def memory(self, names: Sequence[str], point: Point) -> dict[str, Cell]:
        """Take one training pass each, in a fresh process."""
        for name in names:
            self._pool.drop(name)
            if answer := self._ask(name, "memory", point=point):
                self._cells[name] = Memory(answer["peak"], answer["before"], answer["kept"], answer["seconds"])
            self._pool.drop(name)
        return self._cells

    def learning(self, names: Sequence[str], config: BDHConfig, train: TrainConfig) -> dict[str, Cell]:
        """Train each from the same random weights until the validation loss that was asked for, in a fresh process."""
        s = self._settings
        for name in names:
            self._pool.drop(name)
            limits = {"data": s.data, "target_loss": s.target_loss, "max_seconds": s.max_seconds}
            if answer := self._ask(name, "learn", config=config, train=train, **limits):
                curve = tuple((seconds, loss) for seconds, loss in answer["curve"])
                self._cells[name] = Learning(curve, s.target_loss, answer["steps"], answer["density"])
            self._pool.drop(name)
        return self._cells

    def _ask(self, name: str, question: str, **arguments: Any) -> Any:
        """Return the answer of a contender; None if it is out."""
        # learning ends itself, and validates between the steps that it counts
        patience = self._settings.max_seconds * (3 if question == "learn" else 1)
        return self._try(name, lambda worker: worker.ask(question, patience, **arguments))

    def _try(self, name: str, action: Callable[[Worker], Any]) -> Any:
        """Do something with a worker that is still in the race; if that fails, its cell says why."""
        if name in self._cells:
            return None
        self._turn(name)
        try:
            worker = self._pool[name]
            self.about[name] = worker.wait()
            return action(worker)
        except Declined as reason:
            self._cells[name] = str(reason)
        except Failed as reason:
            self._cells[name] = str(reason)
            self._pool.drop(name)
        return None
