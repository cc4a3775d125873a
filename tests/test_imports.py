"""Rooms and what they may know of each other."""

import ast
import json
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import bdh
import bdh.bench
import bdh.chat
import bdh.compare
import bdh.data
import bdh.evaluation
import bdh.finetune
import bdh.generate
import bdh.lowrank
import bdh.mechanisms
import bdh.ops
import bdh.train
from bdh.cli.commands import COMMANDS, LENS
from bdh.parsing import Command

SOURCE = Path(bdh.__file__).parent
# a room imports from rooms of lower rank, or from its own rank
RANK = {
    "checks": 0,
    "sections": 0,
    "config": 0,
    "files": 0,
    "manifest": 0,
    "process": 0,
    "ops": 1,
    "mechanisms": 1,
    "state": 1,
    "taps": 1,
    "modes": 1,
    "ids": 1,
    "parts": 2,
    "model": 2,
    "checkpoint": 3,
    "foreign": 3,
    "data": 3,
    "train": 4,
    "generate": 4,
    "lens": 4,
    "bench": 5,
    "evaluation": 5,
    "planning": 5,
    "compare": 5,
    "lowrank": 3,
    "chat": 5,
    "finetune": 5,
    "arguments": 5,
    "parsing": 5,
    "cli": 6,
    "__main__": 7,
    "__init__": 7,
}
# packages of an extra (pyproject.toml; named like the room, or as EXTRA says) that a room may import inside a function,
# when they are needed
OPTIONAL = {
    "bench": {"transformers", "matplotlib"},
    "data": {"pyarrow", "tokenizers"},
    "evaluation": {"lm_eval"},
    "lens": {"scipy", "networkx", "powerlaw", "pyarrow", "matplotlib"},
    "train": {"tensorboard", "wandb"},
}
EXTRA = {"evaluation": "eval", "train": "log"}
# methods that hand over to a higher room
FACADES = {("model", "generate")}


def imports() -> list[tuple[Path, str, str, bool]]:
    found = []
    for file in SOURCE.rglob("*.py"):
        room = file.relative_to(SOURCE).parts[0].removesuffix(".py")
        tree = ast.parse(file.read_text(encoding="utf-8"))
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        lazy = {node for function in functions for node in ast.walk(function)}
        for node in ast.walk(tree):
            names: list[str] = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module] if node.module != "bdh" else [f"bdh.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            found += [(file, room, name, node in lazy) for name in names]
    return found


def test_imports_point_one_way() -> None:
    for file, room, name, _ in imports():
        if name.startswith("bdh."):
            target = name.split(".")[1]
            if target in RANK and (room, target) not in FACADES:
                assert RANK[target] <= RANK[room], f"{file} imports {name}"


def test_every_room_has_a_rank() -> None:
    rooms = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms <= RANK.keys()


def test_only_core_dependencies_are_imported() -> None:
    core = {"bdh", "torch", "numpy", "safetensors", "tyro", "rich", *sys.stdlib_module_names}
    for file, room, name, lazy in imports():
        allowed = core | (OPTIONAL.get(room, set()) if lazy else set())
        assert name.split(".")[0] in allowed, f"{file} imports {name}"


def test_optional_packages_are_those_of_the_extra_of_the_room() -> None:
    extras = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    used = {(room, name.split(".")[0]) for _, room, name, _ in imports()}
    for room, packages in OPTIONAL.items():
        names = {re.split("[>=]", requirement)[0] for requirement in extras[EXTRA.get(room, room)]}
        assert {name.replace("-", "_") for name in names} == packages
        assert {(room, package) for package in packages} <= used


def test_model_py_knows_no_text_files_training_or_terminal() -> None:
    known = {name.split(".")[0] for _, room, name, _ in imports() if room == "model"}
    assert known <= {"bdh", "torch", "collections", "dataclasses", "functools", "typing", "__future__"}


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("*.py")), ids=lambda file: str(file.relative_to(SOURCE)))
def test_files_stay_readable(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 400


def test_import_has_no_side_effects() -> None:
    """No network, no random state, no thread settings, no output."""
    code = """
import socket, torch
def refuse(*a, **k): raise AssertionError("network at import")
socket.socket.connect = refuse
before, threads = torch.random.get_rng_state(), torch.get_num_threads()
import bdh, bdh.cli, bdh.train
assert torch.equal(before, torch.random.get_rng_state()) and threads == torch.get_num_threads()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def loaded(*lines: str) -> dict[str, set[str]]:
    """For each command line, run in turn by one process: the modules that are loaded after it."""
    code = """
import json, sys
from bdh.cli import main
for line in sys.argv[1:]:
    try:
        main(line.split())
    except SystemExit:
        print()
        print(json.dumps([line, *sys.modules]))
"""
    words = [sys.executable, "-c", code, *lines]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    found = (json.loads(row) for row in done.stdout.splitlines() if row.startswith('["'))
    return {line: set(modules) for line, *modules in found}


def test_a_command_line_is_read_without_torch() -> None:
    settings_in_rooms_that_need_it = {"eval", "bench", "compare"}
    names = [*(COMMANDS.keys() - settings_in_rooms_that_need_it), *(f"lens {name}" for name in LENS.commands)]
    lines = ["--help", "--version", "trian", "train --n-layre 2", *(f"{name} --help" for name in names)]
    found = loaded(*lines)
    assert found.keys() == set(lines)
    for line, modules in found.items():
        assert not {"torch", "scipy", "pyarrow"} & modules, line


def test_text_is_prepared_without_torch(tmp_path: Path) -> None:
    file, out = tmp_path / "cats.txt", tmp_path / "cats"
    file.write_text("".join(f"{n} cats sat on the mat.\n<|endoftext|>\n" for n in range(400)))
    (modules,) = loaded(f"prepare {file} --out-dir {out}").values()
    assert (out / "manifest.json").exists()
    assert "torch" not in modules


def test_torch_is_loaded_without_its_compiler() -> None:
    """It takes a second. A part may load it when it is made."""
    *_, modules = loaded("doctor", "lens topology --model none", "eval --help").values()
    assert "torch" in modules
    assert "torch._dynamo" not in modules


@pytest.mark.parametrize("name", [*COMMANDS, *(f"lens {name}" for name in LENS.commands)])
def test_the_list_of_commands_says_what_their_docstrings_say(name: str) -> None:
    *group, last = name.split()
    command = LENS.commands[last] if group else COMMANDS[last]
    if isinstance(command, Command):
        assert pkgutil.resolve_name(command.home).__doc__.splitlines()[0] == command.summary


def test_threads_are_set_up_before_torch_is_loaded() -> None:
    code = """
import os, sys
import bdh, bdh.__main__
assert "torch" not in sys.modules
sys.argv = ["bdh", "doctor"]
try:
    bdh.__main__.main()
except SystemExit:
    pass
print(os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules)
"""
    clean = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    for given, expected in (({}, "10000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None"), ({"GOMP_SPINCOUNT": "7"}, "7")):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, env=clean | given
        )
        assert done.stdout.splitlines()[-1] == f"{expected} True", done.stderr


def public_things() -> list[tuple[str, object]]:
    things: list[tuple[str, object]] = []
    for name in bdh.__all__:
        thing = getattr(bdh, name)
        things.append((name, thing))
        if isinstance(thing, type):
            things += [(f"{name}.{k}", v) for k, v in vars(thing).items() if not k.startswith("_") and callable(v)]
    rooms = (bdh.bench, bdh.compare, bdh.lens, bdh.generate, bdh.mechanisms, bdh.ops, bdh.data, bdh.train)
    for module in (*rooms, bdh.chat, bdh.evaluation, bdh.finetune, bdh.lowrank):
        names = getattr(module, "__all__", [n for n in vars(module) if not n.startswith("_")])
        things += [
            (f"{module.__name__}.{n}", getattr(module, n))
            for n in names
            if callable(getattr(module, n)) and getattr(getattr(module, n), "__module__", "").startswith("bdh")
        ]
    return things


@pytest.mark.parametrize(("name", "thing"), public_things(), ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_public_is_documented(name: str, thing: object) -> None:
    assert (getattr(thing, "__doc__", None) or "").strip(), f"{name} has no docstring"
