"""From the words of a command line to a call, ready to be made; what is wrong with them is said in one line."""

from __future__ import annotations

import contextlib
import difflib
import functools
import io
import itertools
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tyro


@dataclass(frozen=True)
class Command:
    """A typed function that is imported when it is chosen: the others would take longer than many a command runs."""

    home: str
    """Where the function is, as module:name."""
    summary: str
    """First line of its docstring, for the list of all."""
    defaults: str | None = None
    """Where a function is, as module:name, that makes its `args` as they are where no flag is given from the words."""


@dataclass(frozen=True)
class Group:
    """Subcommands under one word, such as `bdh lens index`."""

    summary: str
    commands: Mapping[str, Command]


def parse(
    argv: Sequence[str],
    commands: Mapping[str, Command | Group],
    prog: str = "bdh",
    description: str = "Baby Dragon Hatchling: train it, let it speak, look inside.",
) -> Callable[[], int]:
    """Return the call that the words ask for, not yet made.

    Args:
        argv: the words after the program's name.
        commands: what the first of them may be.
        prog: what the words come after.
        description: what the program is for.

    Raises:
        ValueError: the words are no command line; one line.
        SystemExit: help was asked for, and printed.
    """
    if argv and argv[0] not in commands and not argv[0].startswith("-"):
        near = difflib.get_close_matches(argv[0], commands, 1)
        hint = f"did you mean {near[0]}?" if near else f"see {prog} --help"
        raise ValueError(f"unknown command {argv[0]!r}: expected one of {', '.join(commands)}; {hint}")
    chosen = argv[0] if argv else ""
    if isinstance(group := commands.get(chosen), Group):
        return parse(argv[1:] or ["--help"], group.commands, f"{prog} {chosen}", group.summary)
    functions = {name: _listed(command.summary) for name, command in commands.items()}
    if isinstance(command := commands.get(chosen), Command):
        functions[chosen] = _loaded(command, argv)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            call: Callable[[], int] = tyro.extras.subcommand_cli_from_dict(
                functions, prog=prog, description=description, args=argv
            )
    except SystemExit as stop:
        if stop.code:
            helping = f"{prog} {chosen} --help" if command else f"{prog} --help"
            raise ValueError(_one_line(errors.getvalue(), helping)) from None
        raise
    return call


def _listed(summary: str) -> Callable[..., Callable[[], int]]:
    """What stands in the list for a command that is not chosen."""

    def listed() -> Callable[[], int]:
        raise AssertionError("only the chosen command is called")

    listed.__doc__ = summary
    return listed


def _loaded(command: Command, argv: Sequence[str]) -> Callable[..., Callable[[], int]]:
    """The function of the chosen command, with its defaults."""
    function = _deferred(pkgutil.resolve_name(command.home))
    if command.defaults is None:
        return function
    return functools.partial(function, args=pkgutil.resolve_name(command.defaults)(argv))


def _deferred(function: Callable[..., int]) -> Callable[..., Callable[[], int]]:
    """Let the parser build the call without making it, so that only parsing errors are rewritten."""

    @functools.wraps(function)
    def parsed(*args: Any, **kwargs: Any) -> Callable[[], int]:
        return functools.partial(function, *args, **kwargs)

    return parsed


def _one_line(box: str, helping: str) -> str:
    """Say what the parser's framed message says in one line."""
    rows = [row.strip("│| ") for row in box.splitlines()[1:]]  # the first row is the frame's title
    groups = itertools.groupby(rows, key=lambda row: set(row) <= set("─-╭╮╰╯+"))
    sections = [list(group) for is_rule, group in groups if not is_rule]
    message = " ".join(sections[0]) if sections else "cannot be read"
    message = re.sub(r"Error parsing (__tyro-dummy-inner__\S*?|args\.\w+): ", "", message)
    message = re.sub(r"argument '\w+\.(\w+)'", r"\1", message)
    about = [row for section in sections[1:] for row in section if row.startswith("--")]  # flags with their shapes
    if found := re.match(r"Unrecognized(?: or misplaced)? options: (.*?)(?: *Arguments are applied|$)", message):
        given = re.sub(r" \(applied to [^)]*\)|,", "", found[1]).split()
        unknown = next((word.partition("=")[0] for word in given if word.startswith("-")), None)
        near = f"did you mean {about[0].split()[0].rstrip(',')}? " if about else ""
        what = f"has no {unknown} ({near}" if unknown else f"has no place for {given[0]!r} ("
        return f"{helping.removesuffix(' --help')} {what}see {helping})"
    if found := re.match(r"invalid choice ('.*') for argument '(.*)'\. Expected one of \((.*)\)", message):
        choices = sorted(set(re.findall(r"'([^']*)'", found[3])) - {"None"})
        return f"{found[2]} {found[1]}: expected one of {', '.join(choices)} (see {helping})"
    if found := re.match(r"Error parsing (--\S+): .*?('[^']*')", message):
        shape = next((row.split(maxsplit=1)[1] for row in about if row.startswith(f"{found[1]} ")), "another value")
        shape = shape.removeprefix("{None}|")
        return f"{found[1]} {found[2]}: expected {_SHAPES.get(shape, shape)} (see {helping})"
    return f"{message} (see {helping})"


_SHAPES = {"INT": "an integer", "FLOAT": "a number", "[INT [INT ...]]": "integers"}
