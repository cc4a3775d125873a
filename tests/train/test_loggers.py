"""TensorBoard and Weights & Biases: the numbers of metrics.jsonl, one line where there is no login, and no secrets."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from bdh.cli import main

SHAPE = "--n-layer 2 --n-embd 16 --n-head 2 --mlp-mult 8 --block-size 16 --batch-size 4 --warmup-steps 2"
TIMES = "--eval-interval 4 --save-every 4 --eval-windows 4 --log-interval 1 --max-steps"
KEY = "0123456789abcdef0123456789abcdef01234567"


def train(place: Path, *more: str, steps: int = 8) -> int:
    (place / "cats.txt").write_text("the cat sat on the mat. " * 60)
    words = f"train --data {place / 'cats.txt'} --out-dir {place / 'run'} --resume-from auto {SHAPE} {TIMES} {steps}"
    with pytest.raises(SystemExit) as stop:
        main([*words.split(), *more])
    return int(stop.value.code or 0)


def metrics(place: Path) -> list[dict]:
    return [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]


def test_tensorboard_shows_what_is_in_the_metrics(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train(tmp_path, "--tensorboard") == 0
    assert train(tmp_path, "--tensorboard", steps=12) == 0  # goes on in the same directory
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("train_loss")]
    expected = [(r["step"], r["train_loss"]) for r in metrics(tmp_path) if "train_loss" in r]
    assert [step for step, _ in losses] == [step for step, _ in expected] == list(range(1, 13))
    assert [value for _, value in losses] == pytest.approx([value for _, value in expected])
    density = [event.value for event in events.Scalars("density/xy/1")]
    assert density == pytest.approx([r["density"]["xy"][1] for r in metrics(tmp_path) if "density" in r])


def test_without_a_flag_nothing_is_written(tmp_path: Path) -> None:
    assert train(tmp_path) == 0
    assert not {"tensorboard", "wandb"} & {path.name for path in (tmp_path / "run").iterdir()}


class StandIn(types.ModuleType):
    """As much of wandb as is used; notes what it is given."""

    class Error(Exception):
        pass

    class Settings(dict):
        pass

    def __init__(self, logged_in: bool, reachable: bool = True) -> None:
        super().__init__("wandb")
        self.logged_in, self.reachable = logged_in, reachable
        self.begun: list[dict] = []
        self.records: list[dict] = []
        self.finished = 0

    def login(self, prompt: bool) -> bool:
        assert not prompt
        return self.logged_in

    def init(self, **about: object) -> "StandIn":
        if about["mode"] == "online" and not self.reachable:
            raise self.Error("Timed out:\nconnection refused")
        self.begun.append(about)
        self.url = "https://wandb.example/x"
        return self

    def define_metric(self, *_: object, **__: object) -> None:
        pass

    def log(self, record: dict) -> None:
        self.records.append(record)

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def stand_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    module = StandIn(**request.param)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return module


@pytest.mark.parametrize("stand_in", [{"logged_in": True}], indirect=True)
def test_wandb_gets_the_numbers_and_the_facts(stand_in: StandIn, tmp_path: Path, capsys) -> None:
    flags = ("--wandb-project", "cats", "--wandb-entity", "zoo", "--wandb-run-name", "first")
    assert train(tmp_path, *flags) == 0
    assert "Weights & Biases: https://wandb.example/x" in capsys.readouterr().out
    (begun,) = stand_in.begun
    assert [begun[key] for key in ("project", "entity", "name", "mode")] == ["cats", "zoo", "first", "online"]
    assert begun["config"]["train"]["seed"] == 1337
    assert {"git", "packages", "cpu"} <= begun["config"]["environment"].keys()
    assert [r["step"] for r in stand_in.records] == [r["step"] for r in metrics(tmp_path)]
    assert stand_in.records[0]["density/x/0"] == metrics(tmp_path)[0]["density"]["x"][0]
    assert stand_in.finished == 1
    assert train(tmp_path, *flags, steps=12) == 0
    assert stand_in.begun[1]["id"] == begun["id"]  # the same run there


@pytest.mark.parametrize(
    ("stand_in", "why"),
    [
        ({"logged_in": False}, "no login: wandb login, or WANDB_API_KEY"),
        ({"logged_in": True, "reachable": False}, "Timed out: connection refused"),
    ],
    indirect=["stand_in"],
)
def test_without_login_or_network_one_line_says_so_and_it_goes_on_offline(
    stand_in: StandIn, why: str, tmp_path: Path, capsys
) -> None:
    assert train(tmp_path, "--wandb-project", "cats") == 0
    out, err = capsys.readouterr()
    (line,) = [line for line in out.splitlines() if "Biases" in line]
    assert f"{why}; goes on offline, send later with: wandb sync" in line
    assert err == ""
    assert [begun["mode"] for begun in stand_in.begun] == ["offline"]
    assert len(stand_in.records) == len(metrics(tmp_path))


@pytest.mark.parametrize("stand_in", [{"logged_in": True}], indirect=True)
@pytest.mark.parametrize(
    ("flag", "variable", "expected"),
    [("offline", "", ["offline"]), ("disabled", "", []), (None, "offline", ["offline"]), (None, "disabled", [])],
)
def test_the_mode_is_that_of_the_flag_else_of_the_environment(
    stand_in: StandIn, flag: str | None, variable: str, expected: list[str], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", variable)
    assert train(tmp_path, "--wandb-project", "cats", *(["--wandb-mode", flag] if flag else [])) == 0
    assert [begun["mode"] for begun in stand_in.begun] == expected


@pytest.mark.parametrize(
    ("flags", "missing", "says"),
    [
        ("--tensorboard", "tensorboard", '--tensorboard needs tensorboard: pip install "bdh[log]"'),
        ("--wandb-project cats", "wandb", '--wandb-project needs wandb: pip install "bdh[log]"'),
        ("--wandb-entity zoo", "", "--wandb-entity: expected a --wandb-project beside it"),
        ("--wandb-mode later", "", "--wandb-mode"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_made(
    flags: str, missing: str, says: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    if missing:
        monkeypatch.setitem(sys.modules, missing, None)
    assert train(tmp_path, *flags.split()) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def holding(place: Path, secret: bytes) -> list[Path]:
    return [path for path in place.rglob("*") if path.is_file() and secret in path.read_bytes()]


@pytest.mark.parametrize("stand_in", [{"logged_in": True}], indirect=True)
def test_no_key_is_written_to_the_run(stand_in: StandIn, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert train(tmp_path, "--wandb-project", "cats", "--tensorboard") == 0
    assert holding(tmp_path / "run", KEY.encode()) == []
    assert holding(tmp_path / "run", b"cats")  # a control: this is how one would be found


@pytest.mark.slow
def test_the_true_package_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    (tmp_path / "cats.txt").write_text("the cat sat on the mat. " * 60)
    words = f"-m bdh train --data cats.txt --out-dir run {SHAPE} --wandb-project cats {TIMES}".split()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    for mode, steps, more in (("offline", "8", {"WANDB_API_KEY": KEY}), ("online", "12", {"HOME": str(tmp_path)})):
        done = subprocess.run(
            [sys.executable, *words, steps, "--wandb-mode", mode, "--resume-from", "auto"],
            capture_output=True, text=True, timeout=200, check=False, cwd=tmp_path, env=clean | more,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert ("no login" in done.stdout) == (mode == "online")
    assert holding(tmp_path / "run", KEY.encode()) == []
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
