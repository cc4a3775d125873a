"""From a plan to a run and back, as a user does it."""

import json
from pathlib import Path

import pytest

from bdh import planning
from bdh.cli import main
from bdh.ops import native
from bdh.planning import planner

SHAPE = ("--n-layer", 1, "--n-embd", 16, "--mlp-mult", 8, "--block-size", 16, "--warmup-steps", 2, "--eval-windows", 2)


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return int(stop.value.code or 0)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("the cat sat on the mat. " * 400)
    return file


@pytest.fixture
def trained(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    words = ("--data", text, "--out-dir", tmp_path / "run", "--log-interval", 4, "--max-steps", 12)
    assert run("train", *SHAPE, *words) == 0
    capsys.readouterr()
    return tmp_path / "run"


def test_a_plan_as_json(capsys) -> None:
    assert run("plan", *SHAPE, "--max-steps", 12, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(found["plan"]["parameters"].values()) == 3 * 128 * 16 + 2 * 256 * 16
    assert list(found["speed"]) == ["random", "trained"]
    assert found["speed"]["trained"]["tokens_per_s"] > 0


def test_the_plan_stays_with_the_run(trained: Path, capsys) -> None:
    assert run("plan", *SHAPE, "--max-steps", 12, "--no-calibrate", "--json") == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["speed"] == {}
    assert run("plan", "--run", trained, "--json", "--no-calibrate") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["plan"] == planned["plan"]
    assert found["steps"] == 12
    assert found["tokens_per_s"] == pytest.approx(12 * 8 * 16 / found["seconds"], rel=0.01)
    assert found["peak_bytes"] > 50 * 2**20
    rows = {row["name"]: row for row in found["compared"]}
    assert rows["parameters"]["measured"] == rows["parameters"]["planned"] == 3 * 128 * 16 + 2 * 256 * 16
    assert rows["checkpoint"]["ratio"] == pytest.approx(1, abs=0.05)
    assert rows["tokens/s"]["planned"] is None


def test_a_run_is_timed_at_its_own_activity(trained: Path, capsys) -> None:
    assert run("plan", "--run", trained, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["speed"]["activity"]["x"] == pytest.approx(found["activity"]["x"], abs=0.05)
    rows = {row["name"]: row for row in found["compared"]}
    assert rows["12 steps"]["planned"] == pytest.approx(12 * found["speed"]["seconds_per_step"])
    assert rows["tokens/s"]["ratio"] == pytest.approx(1 / rows["12 steps"]["ratio"], rel=0.01)
    assert run("plan", "--run", trained) == 0
    out = capsys.readouterr().out
    assert "peak memory" in out
    assert "x active" in out


@pytest.mark.skipif(not native.available(), reason=native.why_not)
def test_what_is_kept_follows_the_activity_of_the_run(trained: Path) -> None:
    found = planning.compare(trained)
    (kept,) = (row for row in found.rows() if row.name == "activations kept")
    assert found.activity is not None
    # the entries that fire cost ten bytes each; the rest is the same
    entries = 8 * 16 * 128
    assert kept.planned is not None
    assert kept.measured == pytest.approx(kept.planned - 10 * entries * (0.5 - found.activity.x), abs=10)


def test_a_run_that_is_still_writing_or_older_than_the_planner_can_be_read(trained: Path, capsys) -> None:
    log = trained / "metrics.jsonl"
    log.write_text(log.read_text() + '{"step": 13, "tok')
    facts = json.loads((trained / "run.json").read_text())
    del facts["plan"]
    (trained / "run.json").write_text(json.dumps(facts))
    found = planning.compare(trained)
    assert found.steps == 12
    assert found.plan["n_parameters"] == found.n_parameters
    # and before the first checkpoint
    (trained / "checkpoints" / "last").unlink()
    assert planning.compare(trained).n_parameters is None


def test_lengths_of_a_training(text: Path, capsys) -> None:
    tokens = []
    for words in (("--max-tokens", 1000), ("--data", text, "--max-epochs", 2), ("--max-steps", 7)):
        assert run("plan", *SHAPE, *words, "--no-calibrate", "--json") == 0
        tokens.append(json.loads(capsys.readouterr().out)["plan"]["tokens"])
    assert tokens == [1024, round(2 * 8640 / 128) * 128, 7 * 128]  # nine tenths of 9,600 bytes are for training


def test_training_takes_as_many_tokens_as_planned(text: Path, tmp_path: Path, capsys) -> None:
    words = ("--data", text, "--out-dir", tmp_path / "run", "--max-tokens", 1000, "--json")
    assert run("train", *SHAPE, *words) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 8


def test_what_does_not_fit_says_so(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(planner.memory, "of_device", lambda device: 2**20)
    assert run("plan", *SHAPE) == 0
    said = capsys.readouterr()
    assert "too much" in said.out
    assert "does not fit: lower --batch-size" in said.out
    assert "tokens/s" not in said.out
    assert "not timed: not even one level" in said.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--run", "nowhere"), "no run.json there"),
        (("--model-size", "huge"), "model size 'huge'"),
        (("--model-size", "25M"), "did you mean '25m'?"),
        (("--batch-size", "0"), "batch_size=0"),
        (("--max-tokens", "0"), "--max-tokens 0"),
        (("--max-epochs", "-1"), "--max-epochs -1"),
        (("--max-tokens", "9", "--max-epochs", "1"), "expected one of them"),
        (("--device", "abacus"), "abacus"),
        (("--backend", "abacus"), "abacus"),
        (("--max-epochs", "1", "--data", "nowhere"), "nowhere"),
    ],
)
def test_mistakes_are_one_line(words: tuple[str, ...], message: str, capsys) -> None:
    assert run("plan", *words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_run_that_has_logged_nothing_is_told(trained: Path, capsys) -> None:
    (trained / "metrics.jsonl").write_text("")
    assert run("plan", "--run", trained) == 2
    assert "nothing logged yet" in capsys.readouterr().err
