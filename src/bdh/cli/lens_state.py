"""Commands that look into the memory: lens synapses, ledger, state, edit."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bdh.cli.findings import tell
from bdh.cli.shared import open_byte_model
from bdh.files import check_file

if TYPE_CHECKING:
    from bdh.lens.panel import Panel
    from bdh.state import State

_TEXT = "To be or not to be"


def synapses(
    model: Path,
    text: str = _TEXT,
    span: str | None = None,
    pair: str | None = None,
    level: int = 0,
    top: int = 20,
    json: bool = False,
    out: Path | None = None,
) -> int:
    """Find the synapses that a span of a text strengthened most, or follow one over the text.

    Args:
        model: run directory, checkpoint directory or .pt file.
        text: what the model reads.
        span: bytes of the text as first:end, such as 3:5; by default all.
        pair: i,j instead: the synapse from neuron j to gate i, exactly, at every byte.
        level: the level.
        top: how many synapses to show.
        json: print the findings as JSON.
        out: folder for pictures (SVG) and tables (CSV).
    """
    from bdh import lens
    from bdh.lens import memory_panels

    hatchling = open_byte_model(model)
    idx = hatchling.as_ids(text)
    if pair is not None:
        if span is not None:
            raise ValueError("--span, --pair: expected one of them; a pair is followed over the whole text")
        i, j = _numbers("--pair", pair, ",", 2, "gate,neuron such as 12,47")
        course = lens.synapse_course(hatchling, idx, level, i, j)
        return tell(course.to_dict(), [memory_panels.course_panel(course)], json, out)
    start, stop = _span("--span", span, idx.shape[1]) if span is not None else (0, idx.shape[1])
    grown = lens.strongest_growth(hatchling, idx, (start, stop), level, top)
    typical = lens.typical_growth(hatchling, idx, (start, stop), level)
    words = "".join(lens.readable(bytes(idx[0, start:stop].tolist())))
    panel = memory_panels.growth_panel(grown, typical, words, level)
    found = [asdict(one) | {"growth": one.growth} for one in grown]
    values = {"span": [start, stop], "level": level, "synapses": found, "typical": typical}
    return tell(values, [panel], json, out)


def ledger(
    model: Path,
    text: str = _TEXT,
    position: int | None = None,
    neuron: int | None = None,
    level: int = 0,
    top: int = 12,
    json: bool = False,
    out: Path | None = None,
) -> int:
    """Say which past bytes a byte read from the memory, exactly, and what they did to a gate.

    Args:
        model: run directory, checkpoint directory or .pt file.
        text: what the model reads.
        position: of the reading byte; by default the last.
        neuron: the gate whose drive is split, by global id; by default the scores are.
        level: the level.
        top: how many single contributions to show.
        json: print the findings as JSON.
        out: folder for pictures (SVG) and tables (CSV).
    """
    from bdh import lens
    from bdh.lens import memory_panels

    hatchling = open_byte_model(model)
    idx = hatchling.as_ids(text)
    at = idx.shape[1] - 1 if position is None else position
    found = lens.explain_reading(hatchling, idx, level, at, neuron, top)
    return tell(found.to_dict(), [memory_panels.reading_panel(found)], json, out)


def state(
    model: Path,
    text: str | None = None,
    state: Path | None = None,
    other: Path | None = None,
    top: int = 12,
    json: bool = False,
    out: Path | None = None,
) -> int:
    """Show what the memory holds while a text is read and how far back it is read, or where two states differ.

    With --text alone: energy and span. With --state: the difference to --other, or to what --text makes of it.

    Args:
        model: run directory, checkpoint directory or .pt file.
        text: what the model reads.
        state: a file written by bdh generate --save-state or bdh lens edit.
        other: another such file.
        top: how many pairs of neurons to show at each level.
        json: print the findings as JSON.
        out: folder for pictures (SVG) and tables (CSV).
    """
    from bdh import checkpoint, lens
    from bdh.generate import prefill
    from bdh.lens import memory_panels

    if (state is None and other is not None) or (state is not None and (other is None) == (text is None)):
        raise ValueError("expected --text, or --state with --other or --text")
    hatchling = open_byte_model(model)
    if state is None:
        idx = hatchling.as_ids(_TEXT if text is None else text)
        energy = lens.memory_energy(hatchling, idx, top)
        values: dict[str, Any] = {"energy": energy.to_dict()}
        panels: list[Panel] = [memory_panels.energy_panel(energy)]
        if hatchling.config.stdp.form != "trace" and idx.shape[1] > 1:  # there pairs of tokens write, of no one age
            span = lens.memory_span(hatchling, idx)
            values["span"] = span.to_dict()
            panels.append(memory_panels.span_panel(span))
        return tell(values, panels, json, out)
    first = checkpoint.load_state(state, hatchling)
    if other is not None:
        second = checkpoint.load_state(other, hatchling)
    else:
        second = prefill(hatchling, hatchling.as_ids(text or ""), first)[1]
    diff = lens.diff_states(hatchling, first, second, top)
    return tell(diff.to_dict(), [memory_panels.diff_panel(diff)], json, out)


def edit(
    model: Path,
    save_state: Path,
    text: str | None = None,
    state: Path | None = None,
    erase: tuple[str, ...] = (),
    scale: tuple[str, ...] = (),
    levels: tuple[int, ...] = (),
    json: bool = False,
    out: Path | None = None,
) -> int:
    """Take bytes out of a memory, or scale its synapses, and save it: bdh generate --state goes on from there.

    Args:
        model: run directory, checkpoint directory or .pt file.
        save_state: file to write.
        text: what is read first, after --state.
        state: what was read before, a file of bdh generate --save-state or of this command.
        erase: spans of bytes to take out, as first:end, counted over all that was read and lying in --text.
        scale: synapses as gate,neuron,factor, or neuron,factor for all gates of the head; factor 0 forgets. The pair
            that the neuron belongs to is scaled.
        levels: where; by default at all levels.
        json: print the findings as JSON.
        out: folder for pictures (SVG) and tables (CSV).
    """
    from bdh import checkpoint, lens
    from bdh.generate import prefill
    from bdh.lens import memory_panels

    if text is None and erase:
        raise ValueError("--erase: expected --text too; a memory does not know the bytes that it was made of")
    if text is None and state is None:
        raise ValueError("expected --text or --state, whose memory is changed")
    if not erase and not scale:
        raise ValueError("expected --erase first:end or --scale gate,neuron,factor; nothing to change")
    check_file(save_state, "--save-state")
    hatchling = open_byte_model(model)
    where = levels or None
    before = checkpoint.load_state(state, hatchling) if state else None
    start = before.position if before else 0
    plain: State | None = before
    values: dict[str, Any] = {}
    panels: list[Panel] = []
    if text is not None:
        idx = hatchling.as_ids(text)
        plain = prefill(hatchling, idx, before)[1]
    assert plain is not None
    changed = plain
    if erase:
        spans = [_span("--erase", one, start + idx.shape[1], start) for one in erase]
        positions = sorted({at for first, end in spans for at in range(first, end)})
        changed = lens.erase_tokens(hatchling, idx, positions, before, layers=where)
        with lens.intervene(hatchling, [lens.EraseTokens(positions, where)]):
            never = prefill(hatchling, idx, before)[1]
        gap = lens.diff_states(hatchling, changed, never)
        values["never_written"] = gap.to_dict()
        panels.append(memory_panels.gap_panel(gap))
    for one in scale:
        target, source, factor = _scaled(one)
        changed = lens.scale_pair(hatchling, changed, source, factor, target, layers=where)
    checkpoint.save_state(changed, save_state, hatchling)
    diff = lens.diff_states(hatchling, plain, changed)
    values |= {"saved": str(save_state), "changed": diff.to_dict()}
    code = tell(values, [memory_panels.diff_panel(diff), *panels], json, out)
    if not json:
        print(f"saved: {save_state}; go on with: bdh generate --model {model} --state {save_state} --prompt TEXT")
    return code


def _numbers(flag: str, words: str, between: str, count: int, example: str) -> list[int]:
    found = words.split(between)
    if len(found) != count or not all(re.fullmatch(r"\d+", part) for part in found):
        raise ValueError(f"{flag} {words}: expected {example}")
    return [int(part) for part in found]


def _span(flag: str, words: str, end: int, start: int = 0) -> tuple[int, int]:
    first, stop = _numbers(flag, words, ":", 2, f"first:end with {start} <= first < end <= {end}")
    if not start <= first < stop <= end:
        raise ValueError(f"{flag} {words}: expected first:end with {start} <= first < end <= {end}")
    return first, stop


def _scaled(words: str) -> tuple[int | None, int, float]:
    """Gate or none, neuron, factor."""
    found = re.fullmatch(r"(?:(\d+),)?(\d+),(-?[\d.]+(?:e-?\d+)?)", words)
    try:
        if found:
            return int(found[1]) if found[1] else None, int(found[2]), float(found[3])
    except ValueError:  # the last one is no number
        pass
    raise ValueError(f"--scale {words}: expected gate,neuron,factor such as 12,47,0.5, or neuron,factor")
