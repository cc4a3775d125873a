"""What was found about neurons, their labels and those that fire for a word, as panels."""

from __future__ import annotations

from collections.abc import Sequence

from bdh.lens.find import Found
from bdh.lens.labels import Labelled
from bdh.lens.panel import Panel, Table


def labels_panel(found: Sequence[Labelled], neurons_per_head: int) -> Panel:
    """Return the labels as a finding, beside what chance and an untrained model reach.

    Args:
        found: what `label_neurons` returned.
        neurons_per_head: K of the model, to write ids as head and index.
    """
    columns = (
        "neuron",
        "head:index",
        "level",
        "label",
        "pearson",
        "low",
        "high",
        "needed",
        "auroc",
        "bal. acc.",
        "holds",
    )
    rows = []
    for one in found:
        score = one.candidates[0].score if one.candidates else None
        at = f"h{one.neuron // neurons_per_head}:{one.neuron % neurons_per_head}"
        figures = (
            (score.pearson, score.low, score.high, one.needed, score.auroc, score.balanced_accuracy, score.match_rate)
            if score
            else (None, None, None, one.needed, None, None, None)
        )
        rows.append((one.neuron, at, one.level, one.label or "no label", *figures))
    chance = max((one.shifted for one in found), default=0.0)
    untrained = [one.untrained for one in found if one.candidates] or [0.0]
    named = sum(one.label is not None for one in found)
    return Panel(
        key="labels",
        title="What neurons fire for",
        note="Rules found on one half of the text and scored on the other. "
        f"{named} of {len(found)} neurons get a label: the lower end of the 95 % interval of the rule's correlation "
        "with the activation exceeds what is needed.",
        baseline=f"the same search for shifted activation reaches {chance:.2f} at most; rules of as many parts reach "
        f"{min(untrained):.2f} to {max(untrained):.2f} for the best twentieth of the neurons of an untrained model",
        tables={"labels": Table(columns, tuple(rows))},
    )


def find_panel(found: Found, neurons_per_head: int) -> Panel:
    """Return what was found as a finding.

    Args:
        found: what `find_neurons` returned.
        neurons_per_head: K of the model, to write ids as head and index.
    """
    columns = (
        "neuron", "head:index", "level", "fires", "others fire", "effect", "low", "high",
        "same ending fires", "effect ", "low ", "high ", "q", "effect by level",
    )  # fmt: skip
    rows = []
    for one in found.neurons:
        e = one.ending
        rows.append(
            (
                one.neuron, f"h{one.neuron // neurons_per_head}:{one.neuron % neurons_per_head}", one.level, one.fires,
                one.other.fires, one.other.rank_biserial, one.other.low, one.other.high,
                *((e.fires, e.rank_biserial, e.low, e.high) if e else (None,) * 4),
                one.q, " ".join(f"{r:.2f}" for r in one.profile),
            )
        )  # fmt: skip
    what = " or ".join(f'"{word}"' for word in found.words[:5]) + (" ..." if len(found.words) > 5 else "")
    return Panel(
        key="find",
        title=f"Neurons that fire for {what}",
        note=wording(found),
        baseline=f"{found.by_chance:.1f} pairs pass with shuffled labels, {found.untrained} in an untrained model",
        tables={"neurons that pass": Table(columns, tuple(rows))},
    )


def wording(found: Found) -> str:
    """Say in a sentence or two what was found."""
    occurrences, other, ending = found.n_report
    n = len(found.neurons)
    who = {0: "None passes: no neuron is", 1: "1 neuron is"}.get(n, f"{n:,} neurons are")
    control = f" and than at {ending} other words with the same last byte" if ending else ""
    missing = "" if ending else " Too few other words end alike to tell the word from its last byte."
    return (
        f"{who} more active at the last byte of {occurrences} occurrences than at {other} other words of the same "
        f"length{control}, after selection on {found.n_selection[0]} other occurrences: of {found.n_tested:,} neurons "
        f"at levels {found.n_selected:,} were selected and {found.n_passing:,} confirmed, each at a false discovery "
        f"rate of {found.alpha:g}.{missing}"
    )
