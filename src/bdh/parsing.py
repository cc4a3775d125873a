"""From the words of a command line to a call, ready to be made; what is wrong with them is said in one line."""

from __future__ import annotations

import contextlib
import difflib
import functools
import io
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tyro


@dataclass(frozen=True)
class Group:
    """Subcommands under one word, such as `bdh lens index`."""

    description: str
    commands: Mapping[str, Callable[..., int]]


def parse(
    argv: Sequence[str],
    commands: Mapping[str, Callable[..., int] | Group],
    defaults: Mapping[str, Mapping[str, Any]],
    prog: str = "bdh",
    description: str = "Baby Dragon Hatchling: train it, let it speak, look inside.",
) -> Callable[[], int]:
    """Return the call that the words ask for, not yet made.

    Args:
        argv: the words after the program's name.
        commands: a typed function per subcommand, or a group of them.
        defaults: of some of them, values of arguments that hold where no flag is given.
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
    if argv and isinstance(group := commands.get(argv[0]), Group):
        words = argv[1:] or ["--help"]
        return parse(words, group.commands, defaults, f"{prog} {argv[0]}", group.description)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            call: Callable[[], int] = tyro.extras.subcommand_cli_from_dict(
                {
                    name: functools.partial(_deferred(_callable(command)), **defaults.get(name, {}))
                    for name, command in commands.items()
                },
                prog=prog,
                description=description,
                args=argv,
            )
    except SystemExit as stop:
        if stop.code:
            command = f"{prog} {argv[0]} --help" if argv and argv[0] in commands else f"{prog} --help"
            raise ValueError(_one_line(errors.getvalue(), command)) from None
        raise
    return call


def _callable(command: Callable[..., int] | Group) -> Callable[..., int]:
    """What stands for the command in the list of all; a group is parsed before it could be called."""
    if not isinstance(command, Group):
        return command

    def listed() -> int:
        raise AssertionError("a group is parsed by its own commands")

    listed.__doc__ = command.description
    return listed


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
    if found := re.match(r"Unrecognized(?: or misplaced)? options: (.*?)(?: *Arguments are applied|$)", message):
        given = re.sub(r" \(applied to [^)]*\)|,", "", found[1]).split()
        return _unknown(given, [row for section in sections[1:] for row in section], command)
    if found := re.match(r"invalid choice ('.*') for argument '(.*)'\. Expected one of \((.*)\)", message):
        choices = sorted(set(re.findall(r"'([^']*)'", found[3])) - {"None"})
        return f"{found[2]} {found[1]}: expected one of {', '.join(choices)} (see {command})"
    if found := re.match(r"Error parsing (--\S+): .*?('[^']*')", message):
        flag, value = found.groups()
        shape = next((row for section in sections[1:] for row in section if row.startswith(f"{flag} ")), flag)
        shape = shape.removeprefix(flag).replace("{None}|", "").strip()
        return f"{flag} {value}: expected {_SHAPES.get(shape, shape or 'something else')} (see {command})"
    return f"{message} (see {command})"


_SHAPES = {"INT": "an integer", "FLOAT": "a number", "[INT [INT ...]]": "integers"}


def _unknown(given: Sequence[str], near: Sequence[str], command: str) -> str:
    """Say which flag a command has not, and which it is near to, or which commands have it.

    Args:
        given: the words that found no place.
        near: rows of flags like them, "--flag SHAPE", and of where they are, "in COMMAND --help".
        command: how to ask for help.
    """
    asked = command.removesuffix(" --help")
    flag = next((word.partition("=")[0].replace("_", "-") for word in given if word.startswith("--")), None)
    if flag is None:
        return f"{asked} has no place for {given[0]!r} (see {command})"
    owners: dict[str, list[str]] = {}
    of_row: list[str] = []
    for row in near:
        if row.startswith("--"):
            of_row = owners.setdefault(row.split()[0].rstrip(","), [])
        elif row.startswith("in ") and row.endswith(" --help"):
            of_row.append(row[3:].removesuffix(" --help"))
    own = [name for name, commands in owners.items() if asked in commands]
    if flag in owners:
        hint = f"it is a flag of {', '.join(sorted(set(owners[flag])))}; "
    elif own:
        hint = f"did you mean {own[0]}? "
    else:
        hint = "".join(f"{' and '.join(sorted(set(commands)))} has {name}; " for name, commands in owners.items())
    return f"{asked} has no {flag} ({hint}see {command})"
