"""Checks of what a user can set; each error says what was expected, what was got, and what helps."""

from __future__ import annotations

import dataclasses
import difflib
import math
from typing import Any, NoReturn, Self


def fail(name: str, got: object, expected: str, remedy: str) -> NoReturn:
    """Raise ValueError about the setting `name`."""
    raise ValueError(f"{name}={got!r}: expected {expected}; {remedy}")


def check_int(config: object, name: str, low: int = 1, *, prefix: str = "") -> None:
    """Check that a field is an integer >= low."""
    value = getattr(config, name)
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        fail(prefix + name, value, f"an integer >= {low}", f"for example {prefix}{name}={max(low, 1)}")


def check_number(
    config: object, name: str, low: float, high: float, *, open_low: bool = False, prefix: str = ""
) -> None:
    """Check low <= value < high (low < value if `open_low`); an infinite `high` still excludes inf and nan."""
    value = getattr(config, name)
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not (low < value < high or (value == low and not open_low)):
        bound = f"{'>' if open_low else '>='} {low:g}" + (f" and < {high:g}" if math.isfinite(high) else "")
        fail(prefix + name, value, f"a number {bound}", "change it")


def check_choice(config: object, name: str, choices: tuple[str, ...], *, prefix: str = "") -> None:
    """Check that a field is one of a few words."""
    value = getattr(config, name)
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, 1)
        hint = f"did you mean {near[0]!r}?" if near else "choose one of them"
        fail(prefix + name, value, "one of " + ", ".join(choices), hint)


def check_one_text(data: object, dataset: object) -> None:
    """Check that a text is not named twice, as a file and by name."""
    if data is not None and dataset is not None:
        raise ValueError("--data, --dataset: expected one of them; leave the other away")


class Json:
    """Plain-dict conversion shared by the config dataclasses."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-able dict."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build from a dict; an unknown key is an error that names the nearest known one."""
        known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else "known fields: " + ", ".join(known)
                raise ValueError(f"unknown {cls.__name__} field {key!r}: {hint}")
        return cls(**values)
