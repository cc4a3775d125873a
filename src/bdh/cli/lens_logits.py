"""Commands that look at predictions: lens surprise, logits, attention."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bdh.cli.findings import tell
from bdh.cli.shared import open_byte_model
from bdh.data import load_corpus, spread
from bdh.data.streams import tensor

_TEXT = "To be or not to be"
_WINDOW, _WINDOWS = 128, 128


def surprise(
    model: Path,
    words: int = 64,
    data: Path | None = None,
    seed: int = 0,
    json: bool = False,
    out: Path | None = None,
) -> int:
    """Measure whether levels are quieter where the text is predictable: on repeated random words, or on a text.

    Args:
        model: run directory, checkpoint directory or .pt file.
        words: how many random words of 8 letters, each repeated 8 times after a warm-up of 13 letters.
        data: a file or directory of text instead; its validation part is read in windows of 128 bytes, 128 of them.
        seed: of the letters, of the random weights to compare with, and of the bootstrap.
        json: print the findings as JSON.
        out: folder for pictures (SVG) and tables (CSV).
    """
    from bdh import lens
    from bdh.lens import logit_panels

    hatchling = open_byte_model(model)
    if data is None:
        ids = lens.repeated_words(words, seed)
    else:
        text = spread(load_corpus("shakespeare", data=data).validation.tobytes(), _WINDOW * _WINDOWS)
        rows = len(text) // _WINDOW
        if not rows:
            raise ValueError(f"--data {data}: expected {_WINDOW} bytes of validation text or more, got {len(text)}")
        ids = tensor(np.frombuffer(text, np.uint8)[: rows * _WINDOW].reshape(rows, _WINDOW).astype(np.int64))
    found = lens.measure_surprise(hatchling, ids, seed=seed)
    values, panels = {"surprise": found.to_dict()}, [logit_panels.surprise_panel(found)]
    if data is None:
        again = lens.measure_repetition(hatchling, words, seed=seed)
        values["repetition"] = again.to_dict()
        panels.insert(0, logit_panels.repetition_panel(again))
    return tell(values, panels, json, out)


def logits(
    model: Path,
    text: str = _TEXT,
    attribute: int | None = None,
    token: str | None = None,
    against: str | None = None,
    top: int = 20,
    json: bool = False,
    out: Path | None = None,
) -> int:
    """Show what each level would predict after each byte, or which neurons made a logit.

    Args:
        model: run directory, checkpoint directory or .pt file.
        text: what the model reads.
        attribute: position of a byte: split the logit of what is predicted after it by neurons.
        token: the character whose logit is split; by default the most likely one.
        against: the character whose logit is subtracted; by default the mean of all.
        top: how many neurons to show.
        json: print the findings as JSON.
        out: folder for pictures (SVG) and tables (CSV).
    """
    from bdh import lens
    from bdh.lens import logit_panels

    hatchling = open_byte_model(model)
    if attribute is None:
        if token is not None or against is not None:
            raise ValueError("--token, --against: expected with --attribute POSITION, whose logit is split")
        found = lens.logit_lens(hatchling, text)
        return tell(found.to_dict(), [logit_panels.logit_panel(found)], json, out)
    chosen, other = _byte("--token", token), _byte("--against", against)
    parts = lens.attribute_logit(hatchling, text, attribute, chosen, other, top)
    return tell(parts.to_dict(), [logit_panels.attribution_panel(parts)], json, out)


def attention(
    model: Path, text: str = _TEXT, level: int = 0, seed: int = 0, json: bool = False, out: Path | None = None
) -> int:
    """Show how much each byte reads of each byte before it, with its sign.

    Args:
        model: run directory, checkpoint directory or .pt file.
        text: what the model reads.
        level: the level.
        seed: of the random weights to compare with.
        json: print the findings as JSON.
        out: folder for pictures (SVG) and tables (CSV).
    """
    from bdh import lens
    from bdh.lens import logit_panels

    found = lens.signed_attention(open_byte_model(model), text, level, seed=seed)
    return tell(found.to_dict(), [logit_panels.attention_panel(found)], json, out)


def _byte(flag: str, character: str | None) -> int | None:
    if character is None:
        return None
    data = character.encode("utf-8", "surrogateescape")
    if len(data) != 1:
        raise ValueError(f"{flag} {character!r}: expected one character of one byte, such as e")
    return data[0]
