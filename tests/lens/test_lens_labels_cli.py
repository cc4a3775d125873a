"""`bdh lens find` and `bdh lens label` as a user meets them."""

import json
from pathlib import Path

import numpy as np
import pytest

import bdh
from bdh.cli import main

WORDS = "love give have fine tree that with from this your lore dove much home gold king"


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return int(stop.value.code or 0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    config = bdh.BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4)
    bdh.save(bdh.BDH.from_seed(config, 0), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(" ".join(np.random.default_rng(0).choice(WORDS.split(), 12_000)))
    return file


def test_find_answers_with_neurons_or_with_none(model: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("lens", "find", "--model", model, "--token", "love", "--data", text, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["words"] == ["love"]
    assert found["n_tested"] == 128
    shown = found["neurons"][:10]
    assert {one["neuron"] for one in found["labels"]} == {one["neuron"] for one in shown}
    assert run("lens", "find", "--model", model, "--token", "love", "--data", text, "--top", 1) == 0
    out = " ".join(capsys.readouterr().out.split())
    expected = {0: "None passes", 1: "1 neuron is"}.get(len(found["neurons"]), f"{len(found['neurons'])} neurons are")
    assert out.startswith(expected + " ")
    assert "with shuffled labels" in out


def test_a_concept_is_a_file_of_words(model: Path, text: Path, tmp_path: Path, capsys) -> None:
    concept = tmp_path / "royal.txt"
    concept.write_text("king\ngold\n")
    assert run("lens", "find", "--model", model, "--concept", concept, "--data", text, "--json") == 0
    assert json.loads(capsys.readouterr().out)["words"] == ["king", "gold"]
    concept.write_text("\n")
    assert run("lens", "find", "--model", model, "--concept", concept, "--data", text) == 2
    assert "it is empty" in capsys.readouterr().err


def test_label_takes_both_ways_of_writing_a_neuron(model: Path, text: Path, capsys) -> None:
    assert run("lens", "label", "--model", model, 5, "h1:5", "--data", text, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["neuron"] for one in found] == [5, 37]
    assert {"words", "rule", "score", "means"} == set(found[0]["candidates"][0])
    assert run("lens", "label", "--model", model, "h1:5", "--data", text, "--level", 0) == 0
    out = capsys.readouterr().out
    assert out.startswith("37 h1:5: ")
    assert "of 1 neurons get a label" in " ".join(out.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("find",), "expected one of --token WORD and --concept FILE"),
        (("find", "--token", "a", "--concept", "b"), "expected one of --token WORD and --concept FILE"),
        (("find", "--token", "zebra"), "word 'zebra': expected at least 20 occurrences"),
        (("find", "--token", "to be"), "word 'to be': expected letters only"),
        (("find", "--token", "love", "--top", "0"), "--top 0: expected"),
        (("find", "--concept", "nowhere.txt"), "nowhere.txt"),
        (("label",), "no neuron: expected global ids"),
        (("label", "x7"), "neuron 'x7': expected 0..63, or h0:0"),
        (("label", "64"), "neuron 64: there is no such neuron; expected 0..63"),
        (("label", "h2:0"), "neuron h2:0: there is no such neuron; expected 0..63"),
        (("label", "1", "--level", "2"), "level=2: expected one of 0..1"),
    ],
)
def test_mistakes_end_with_one_line_and_two(model: Path, text: Path, words, message: str, capsys) -> None:
    assert run("lens", *words, "--model", model, "--data", text) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.startswith("bdh: ")
    assert captured.err.count("\n") == 1
