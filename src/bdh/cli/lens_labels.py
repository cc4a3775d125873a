"""Commands that say what neurons fire for: find, label."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from bdh.cli.shared import corpus_of, json_text, open_model
from bdh.data import spread

if TYPE_CHECKING:
    from bdh.lens.find import Found
    from bdh.lens.labels import Labelled
    from bdh.model import BDH

LABEL_BYTES = 65_536
"""Text that labels are found and scored on."""

Signal = Literal["x_sparse", "y_sparse", "xy_sparse"]


def find(
    model: Path,
    token: str | None = None,
    concept: Path | None = None,
    case: bool = False,
    top: int = 10,
    signal: Signal = "x_sparse",
    dataset: str | None = None,
    data: Path | None = None,
    json: bool = False,
) -> int:
    """Find neurons that fire for a word, told apart from other words like it, and say what else they fire for.

    Args:
        model: run directory, checkpoint directory or .pt file.
        token: the word.
        concept: a file of words instead, one a line.
        case: tell "Love" from "love".
        top: how many neurons to show and label; all are counted.
        signal: activity of the neurons (x_sparse), their gate (y_sparse), or the product that is written (xy_sparse).
        dataset: text to look for the word in; by default the one that the model was trained on, its validation part.
        data: a file or directory of text instead; its last tenth is read.
        json: print what was found as JSON.
    """
    from bdh import lens

    if (token is None) == (concept is None):
        raise ValueError("expected one of --token WORD and --concept FILE")
    if top < 1:
        raise ValueError(f"--top {top}: expected an integer >= 1")
    words = [token] if token is not None else _words_in(concept)
    hatchling = open_model(model)
    text = corpus_of(model, dataset, data).validation.tobytes()
    with Console(stderr=True).status("") as status:
        found = lens.find_neurons(hatchling, text, words, signal=signal, case=case, progress=status.update)
        labelled: dict[int, Labelled] = {}
        for level in sorted({one.level for one in found.neurons[:top]}):
            shown = [one.neuron for one in found.neurons[:top] if one.level == level]
            status.update(f"labelling {len(shown)} neurons at level {level}")
            labels = lens.label_neurons(hatchling, spread(text, LABEL_BYTES), shown, signal=signal, level=level)
            labelled |= {one.neuron: one for one in labels}
    if json:
        print(json_text(found.to_dict() | {"labels": [one.to_dict() for one in labelled.values()]}))
    else:
        _print_found(found, labelled, hatchling)
    return 0


def label(
    model: Path,
    neurons: Positional[tuple[str, ...]],
    level: int | None = None,
    signal: Signal = "x_sparse",
    dataset: str | None = None,
    data: Path | None = None,
    json: bool = False,
) -> int:
    """Say in words what neurons fire for, with scores on text that the words were not made from, or "no label".

    Args:
        model: run directory, checkpoint directory or .pt file.
        neurons: global ids such as 425, or head and index such as h1:425.
        level: look at this level only; by default at the one where a rule fits best.
        signal: activity of the neurons (x_sparse), their gate (y_sparse), or the product that is written (xy_sparse).
        dataset: text to read; by default the one that the model was trained on, its validation part.
        data: a file or directory of text instead; its last tenth is read.
        json: print the labels and all their scores as JSON.
    """
    from bdh import lens
    from bdh.lens.names import neuron_id

    hatchling = open_model(model)
    chosen = [neuron_id(word, hatchling.config) for word in neurons]
    if not chosen:
        raise ValueError("no neuron: expected global ids such as 425, or head and index such as h1:425")
    text = spread(corpus_of(model, dataset, data).validation.tobytes(), LABEL_BYTES)
    with Console(stderr=True).status("reading an untrained model to compare with") as status:
        found = lens.label_neurons(
            hatchling, text, chosen, signal=signal, level=level,
            progress=lambda done: status.update(f"{done} of {len(chosen)} neurons labelled"),
        )  # fmt: skip
    if json:
        print(json_text([one.to_dict() for one in found]))
    else:
        print_labels(found, hatchling)
    return 0


def _words_in(file: Path | None) -> list[str]:
    assert file is not None
    words = file.read_text(encoding="utf-8").split()
    if not words:
        raise ValueError(f"--concept {file}: expected a file of words, one a line; it is empty")
    return words


def _at(neuron: int, model: BDH) -> str:
    head, index = divmod(neuron, model.config.neurons_per_head)
    return f"{neuron} h{head}:{index}"


def _print_found(found: Found, labelled: dict[int, Labelled], model: BDH) -> None:
    from bdh.lens.neuron_panels import find_panel, wording

    console = Console(highlight=False)
    console.print(wording(found))
    console.print("Compared with: " + find_panel(found, model.config.neurons_per_head).baseline + ".", style="dim")
    shown = [one for one in found.neurons if one.neuron in labelled]
    if not shown:
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("neuron", no_wrap=True)
    for name in ("level", "fires", "same\nlength", "effect (95 %)", "same\nending", "effect (95 %)"):
        table.add_column(name, justify="right")
    for one in shown:
        cells = []
        for e in (one.other, one.ending):
            cells += [f"{e.fires:.0%}", f"{e.rank_biserial:.2f} ({e.low:.2f}-{e.high:.2f})"] if e else ["-", "-"]
        table.add_row(_at(one.neuron, model), str(one.level), f"{one.fires:.0%}", *cells)
    console.print()
    console.print(table)
    for one in shown:
        _print(console, f"\n{_at(one.neuron, model)}: {_said(labelled[one.neuron])}")
        _print(console, "  effect by level  " + "  ".join(f"{r:.2f}" for r in one.profile))
        for c in one.contexts:
            _print(console, f"  {c.activation:8.3g}  {c.left}[{c.shown}]{c.right}")


def print_labels(found: list[Labelled], model: BDH) -> None:
    """Print labels with their scores, the rules that were tried, and what chance reaches."""
    from bdh.lens.neuron_panels import labels_panel

    console = Console(highlight=False)
    for one in found:
        _print(console, f"{_at(one.neuron, model)}: {_said(one)}")
        for candidate in one.candidates:
            s = candidate.score
            auroc = "-" if s.auroc is None else f"{s.auroc:.2f}"
            accuracy = "-" if s.balanced_accuracy is None else f"{s.balanced_accuracy:.2f}"
            _print(
                console,
                f"  r {s.pearson:.2f} [{s.low:.2f} {s.high:.2f}]  AUROC {auroc}  balanced accuracy {accuracy}  "
                f"holds at {s.match_rate:.1%}  {candidate.rule.words}",
            )
        for level, at in enumerate(one.profile):
            _print(console, f"  level {level}: fires at {at.rate:.1%}, mean {at.mean:.3g}, r {at.pearson:.2f}")
        _print(console, f"  promotes {' '.join(one.promotes)} (not scored)\n")
    panel = labels_panel(found, model.config.neurons_per_head)
    console.print(f"{panel.note}\nCompared with: {panel.baseline}.", style="dim", markup=False)


def _print(console: Console, line: str) -> None:
    console.print(line, markup=False, soft_wrap=True)


def _said(one: Labelled) -> str:
    if one.label:
        return f"fires {one.label} (level {one.level})"
    if not one.candidates:
        return "no label: no rule holds where it is active"
    best = one.candidates[0]
    return (
        f"no label at level {one.level}: r of the best rule is at least {best.score.low:.2f}, needed {one.needed:.2f} "
        f"({best.rule.words})"
    )
