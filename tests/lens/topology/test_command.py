"""bdh lens topology as a user meets it."""

import json
from pathlib import Path

import pytest

import bdh
from bdh.cli import main
from bdh.lens import topology

QUICK = ("--edges", "128", "--draws", "1")


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["lens", "topology", *map(str, words)])
    return int(stop.value.code or 0)


@pytest.fixture
def model(tiny: bdh.BDH, tmp_path: Path) -> Path:
    return bdh.save(tiny, tmp_path / "tiny")


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    text = tmp_path / "cats.txt"
    text.write_text("the cat sat on the mat. " * 60)
    shape = "--n-layer 2 --n-embd 16 --n-head 2 --mlp-mult 8 --block-size 16 --batch-size 4 --warmup-steps 2"
    loop = "--eval-interval 5 --save-every 5 --eval-windows 4 --max-steps 10"
    with pytest.raises(SystemExit):
        main(["train", "--data", str(text), "--out-dir", str(tmp_path / "run"), *shape.split(), *loop.split()])
    return tmp_path / "run"


def test_it_prints_both_halves_and_writes_pictures_and_tables(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--model", model, *QUICK, "--out", tmp_path / "out") == 0
    printed = capsys.readouterr()
    assert "Topology of Dx E, positive half" in printed.out
    assert "Topology of Dx E, negative half" in printed.out
    assert "drawn anew" in printed.err  # no run, so no seed
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"topology-dx-e-positive-1.svg", "topology-dx-e-negative-2.csv"} <= names


def test_raw_counts_what_the_norm_takes_off(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    thresholds = []
    for more in ((), ("--raw",)):
        assert run("--model", model, "--which", "y", *QUICK, "--json", *more) == 0
        thresholds.append(json.loads(capsys.readouterr().out)["halves"][0]["points"][0]["threshold"])
    assert thresholds[0] != thresholds[1]


def test_json_has_what_was_found(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--model", model, "--which", "sigma", "--text", "to be or not to be", "--level", "1", "--neuron", "70")
    assert run(*words, "--edges", "1000", "--draws", "1", "--json") == 0
    positive, negative = json.loads(capsys.readouterr().out)["halves"]
    assert (positive["name"], positive["sign"], negative["sign"]) == ("sigma of level 1", 1, -1)
    (point,) = positive["points"]
    assert point["edges"] == 1000
    assert set(point["nulls"]) == {"G(n, m)", "low rank", "initial", "rewired"}
    assert all(source // 64 == 1 for source in positive["ego"]["sources"])  # synapses stay in their head


def test_over_training_begins_at_the_initial_model(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--model", trained, *QUICK, "--over-training", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["halves"]
    assert [(row["step"], row["sign"]) for row in rows] == [(0, 1), (5, 1), (10, 1), (0, -1), (5, -1), (10, -1)]
    start = rows[0]["points"][0]
    # the null "initial" of a run is the model that it began with
    assert start["nulls"]["initial"]["draws"] == [start["modularity"]]
    assert rows[2]["points"][0]["threshold"] != start["threshold"]


def test_a_neuron_without_edges_in_a_half_is_said(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    halves = [topology.graph(topology.wiring(bdh.load(model)), sign, edges=8) for sign in (1, -1)]
    used, other = ({*half.source.tolist(), *half.target.tolist()} for half in halves)
    neuron = min(used - other)
    assert run("--model", model, "--edges", "8", "--draws", "1", "--neuron", neuron, "--json") == 0
    printed = capsys.readouterr()
    positive, negative = json.loads(printed.out)["halves"]
    assert positive["ego"]["neuron"] == neuron
    assert negative["ego"] is None
    assert f"neuron {neuron} has none of the 8 strongest edges of the negative half" in printed.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--which", "sigma"), "expected --text with sigma"),
        (("--text", "a"), "expected --text with sigma"),
        (("--level", "0"), "--level only with sigma"),
        (("--which", "sigma", "--text", ""), "expected"),
        (("--which", "sigma", "--text", "ab", "--level", "9"), "level: expected 0..2"),
        (("--over-training",), "expected a run directory"),
        (("--edges", "0"), "expected numbers >= 1"),
        (("--draws", "0", "--edges", "64"), "expected numbers >= 1"),
        (("--edges", "128", "--draws", "1", "--neuron", "128"), "0..127"),
        (("--edges", "99999999"), "at most"),
        (("--which", "z"), "z"),
    ],
)
def test_a_mistake_is_one_line(model: Path, words: tuple[str, ...], said: str, capsys) -> None:
    assert run("--model", model, *words) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("bdh: ")
    assert said in line
