"""From the words of a command line to a call, ready to be made; what is wrong with them is said in one line."""

from __future__ import annotations

import contextlib
import difflib
import functools
import io
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tyro


def parse(
    argv: Sequence[str], commands: Mapping[str, Callable[..., int]], defaults: Mapping[str, Mapping[str, Any]]
) -> Callable[[], int]:
    """Return the call that the words ask for, not yet made.

    Args:
        argv: the words after the program's name.
        commands: a typed function per subcommand.
        defaults: of some of them, values of arguments that hold where no flag is given.

    Raises:
        ValueError: the words are no command line; one line.
        SystemExit: help was asked for, and printed.
    """
    if argv and argv[0] not in commands and not argv[0].startswith("-"):
        near = difflib.get_close_matches(argv[0], commands, 1)
        hint = f"did you mean {near[0]}?" if near else "see bdh --help"
        raise ValueError(f"unknown command {argv[0]!r}: expected one of {', '.join(commands)}; {hint}")
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            call: Callable[[], int] = tyro.extras.subcommand_cli_from_dict(
                {
                    name: functools.partial(_deferred(function), **defaults.get(name, {}))
                    for name, function in commands.items()
                },
                prog="bdh",
                description="Baby Dragon Hatchling: train it, let it speak, look inside.",
                args=argv,
            )
    except SystemExit as stop:
        if stop.code:
            command = f"bdh {argv[0]} --help" if argv and argv[0] in commands else "bdh --help"
            raise ValueError(_one_line(errors.getvalue(), command)) from None
        raise
    return call


def _deferred(function: Callable[..., int]) -> Callable[..., Callable[[], int]]:
    """Let the parser build the call without making it, so that only parsing errors are rewritten."""

    @functools.wraps(function)
    def parsed(*args: Any, **kwargs: Any) -> Callable[[], int]:
        return functools.partial(function, *args, **kwargs)

    return parsed


def _one_line(box: str, command: str) -> str:
    """Say what the parser's framed message says in one line."""
    rows = [row.strip("│| ") for row in box.splitlines()[1:]]  # the first row is the frame's title
    groups = itertools.groupby(rows, key=lambda row: set(row) <= set("─-╭╮╰╯+"))
    sections = [list(group) for is_rule, group in groups if not is_rule]
    message = " ".join(sections[0]) if sections else "cannot be read"
    message = re.sub(r"Error parsing (__tyro-dummy-inner__\S*?|args\.\w+): ", "", message)
    message = re.sub(r"argument '\w+\.(\w+)'", r"\1", message)
    near = [
        row.split()[0] for group in sections if group[0] == "Perhaps you meant:" for row in group if "--" in row[:2]
    ]
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{message} ({hint}see {command})"
