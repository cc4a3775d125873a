"""The panels of a report beyond the inspection of a text, each made when it is asked for."""

from __future__ import annotations

from collections.abc import Callable

from bdh.lens.panel import Panel
from bdh.model import BDH


def chapters(model: BDH, text: bytes, validation: bytes) -> dict[str, Callable[[], Panel]]:
    """Return, by title, what makes each further panel of a report, in the order of the page.

    Args:
        model: a model of bytes.
        text: the bytes that are inspected.
        validation: bytes of validation text.
    """
    return {}
