"""From what was asked for to figures, printed as they come."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.console import Console

from bdh.data import ByteTokenizer, Tokenizer
from bdh.evaluation import terminal
from bdh.evaluation.bits import bits_per_byte
from bdh.evaluation.choices import multiple_choice, read_questions
from bdh.evaluation.positions import by_position
from bdh.evaluation.recall import needle_recall
from bdh.evaluation.settings import Settings
from bdh.evaluation.texts import Text, load_text
from bdh.model import BDH

WINDOW = 512
"""Tokens of a window where nobody knows what the model was trained on."""
WINDOWS_PER_BLOCK = 8
FILLER = 1 << 16
"""Tokens of the text that needles are hidden in."""


def evaluate(
    model: BDH, tokenizer: Tokenizer, settings: Settings, facts: dict[str, Any] | None, console: Console, shown: Console
) -> dict[str, Any]:
    """Score a model, and print each figure when it is there.

    Args:
        model: the model.
        tokenizer: what its tokens are.
        settings: what to do.
        facts: run.json of its training, if there is one.
        console: where figures go.
        shown: where progress goes.

    Returns:
        A dict that goes into JSON: text, bits, positions, needle, choices, as asked for; tokenizer; seconds.

    Raises:
        ValueError: a text or a file of questions that cannot be used.
    """
    began = time.monotonic()
    questions = read_questions(settings.choices) if settings.choices else None
    found: dict[str, Any] = {"tokenizer": tokenizer.name}
    if settings.wants_text:
        text = load_text(
            tokenizer, settings.dataset, settings.data, facts, lambda line: shown.print(line, markup=False)
        )
        if settings.max_bytes is not None:
            text = text.beginning(settings.max_bytes, tokenizer)
        found |= _score_text(model, tokenizer, text, settings, facts, console, shown)
    if questions is not None:
        with terminal.showing(shown, "questions") as told:
            answered = multiple_choice(model, tokenizer, questions, told)
        terminal.print_choices(answered, console)
        found["choices"] = asdict(answered)
    return found | {"seconds": time.monotonic() - began}


def _score_text(
    model: BDH,
    tokenizer: Tokenizer,
    text: Text,
    settings: Settings,
    facts: dict[str, Any] | None,
    console: Console,
    shown: Console,
) -> dict[str, Any]:
    unit = "byte" if tokenizer.name == ByteTokenizer.name else "token"
    trained = facts["train"]["block_size"] if facts else None
    window = settings.block_size or trained or WINDOW
    terminal.print_text(text, tokenizer, console)
    with terminal.showing(shown, "text") as told:
        bits = bits_per_byte(
            model,
            text.tokens,
            tokenizer,
            block_size=None if settings.stream else window,
            stride=settings.stride,
            separator=text.separator,
            told=told,
        )
    terminal.print_bits(bits, unit, console)
    found: dict[str, Any] = {
        "text": {"name": text.name, "part": text.part, "lossless": text.lossless},
        "bits": {**asdict(bits), "perplexity": bits.perplexity},
    }
    if settings.by_position:
        with terminal.showing(shown, "by position") as told:
            positions = by_position(
                model,
                text.tokens,
                tokenizer,
                block_size=WINDOWS_PER_BLOCK * window,
                trained=round(trained * bits.bytes / bits.tokens) if trained else None,
                separator=text.separator,
                told=told,
            )
        terminal.print_positions(positions, unit, console)
        found["positions"] = asdict(positions)
    if settings.needle:
        with terminal.showing(shown, "needles") as told:
            recall = needle_recall(
                model,
                tokenizer,
                _filler(text, tokenizer),
                distances=settings.needle_distances,
                facts=settings.needle_facts,
                count=settings.needle_count,
                seed=settings.seed,
                separator=text.separator,
                told=told,
            )
        terminal.print_recall(recall, console)
        found["needle"] = [asdict(one) for one in recall]
    return found


def _filler(text: Text, tokenizer: Tokenizer) -> bytes:
    """Return the beginning of a text without what stands between its documents."""
    ids = np.asarray(text.tokens[:FILLER])
    return tokenizer.decode(ids if text.separator is None else ids[ids != text.separator]).encode()
